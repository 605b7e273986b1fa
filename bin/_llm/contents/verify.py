"""Build an image twice from nothing and compare every byte; say what differs and why.

    make verify-image IMAGE=base
    make verify-image IMAGE=llm VARIANT=cpu COMPILED=1   # llama.cpp as it is in the cache

Both builds begin without parent images, compiled parts and caches; what they fetch is taken from
the archive of inputs, by hash. The second one runs under other conditions: another folder, home,
umask, locale, time zone and hash seed, on one CPU, and for root on a machine of another name. Exit
status 0: the same bytes; 1: not.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from _llm.contents.trees import differences, object_differences
from _llm.debian import sha256_of
from _llm.errors import LLMError
from _llm.image import end_like_ctrl_c, need_checkout, wanted_variants
from _llm.images.build import NEED_GIB
from _llm.images.catalog import load_image
from _llm.images.staging import uninterrupted, work_folder
from _llm.settings import load_settings

HOME = Path(__file__).resolve().parents[3]
SHOWN = 20
COMPILING_GIB = 8
# What the second build sees otherwise. Turkish has its own capital of i, Kiritimati its own day.
CONDITIONS = {"TZ": "Pacific/Kiritimati", "LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8",
              "PYTHONHASHSEED": "77", "SOURCE_DATE_EPOCH": "77"}

OTHER_NAME = ("unshare", "--uts", "sh", "-c", 'hostname another-machine && exec "$@"', "sh")


@dataclass(frozen=True)
class Build:
    """One of the two: its folder, and the seconds that it took."""

    folder: Path
    seconds: float

    @property
    def images(self) -> list[Path]:
        """The image and its parents that were built for it, parents first."""
        files = [file for file in (self.folder / "images").glob("*.sif") if not file.is_symlink()]
        return sorted(files, key=lambda file: file.stat().st_mtime_ns)


def main(arguments: Sequence[str]) -> int:
    """Verify the images that the command line names. Raises LLMError for a user's mistake."""
    parser = argparse.ArgumentParser(prog="verify-image", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="llm", help="name: a folder of containers/")
    parser.add_argument("--variant", default="",
                        help="cpu, cuda13, cuda12; empty: for this machine")
    parser.add_argument("--base", default="", help="as for make image")
    parser.add_argument("--cuda-architectures", default="", help="as for make image")
    parser.add_argument("--compiled", action="store_true",
                        help="don't compile llama.cpp anew, twice: take it from the cache")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    need_checkout(HOME)
    settings = load_settings(os.environ, str(HOME))
    cache = Path(settings.get("paths", "cache")) / "build"
    status = 0
    for variant in wanted_variants(HOME / "containers", options.image, options.variant, settings):
        image = load_image(HOME / "containers", options.image, variant)
        words = ["--image", image.name, "--variant", variant, "--base", options.base,
                 "--cuda-architectures", options.cuda_architectures]
        compiles = (image.folder / "llama.cpp").is_dir() and not options.compiled
        need = 2 * NEED_GIB.get(variant, 4) + (COMPILING_GIB if compiles else 0)
        with work_folder(os.environ, need) as work:
            first = build(work / "a", words, cache, options.compiled, None)
            second = build(work / "another folder", words, cache, options.compiled, CONDITIONS)
            same = compare(first, second)
            if not same:
                keep(first, second, Path(settings.get("container", "image_dir")))
        status = status if same else 1
    return status


def build(
    folder: Path, words: Sequence[str], cache: Path, compiled: bool,
    conditions: Mapping[str, str] | None,
) -> Build:
    """Build an image and its parents in a folder of their own.

    words: options of `image build`. cache: of ordinary builds; its archive of inputs is shared, and
    with `compiled` its llama.cpp. conditions: variables of the second build, None for the first.
    Raises LLMError when the build fails.
    """
    for name in ("images", "build", "home", "cache/build"):
        (folder / name).mkdir(parents=True)
    shared = ["archive", *(["llama.cpp"] if compiled else [])]
    for name in shared:
        (cache / name).mkdir(parents=True, exist_ok=True)
        (folder / "cache/build" / name).symlink_to(cache / name)
    env = {**os.environ, "LLM_IMAGE_DIR": str(folder / "images"),
           "LLM_BUILD_DIR": str(folder / "build"), "LLM_CACHE_DIR": str(folder / "cache")}
    before: Callable[[], None] | None = None
    if conditions is not None:
        env.update(conditions, HOME=str(folder / "home"), TMPDIR=str(folder / "build"))
        before = other_conditions
    number = "first" if conditions is None else "second"
    print(f"verify-image: the {number} build", flush=True)
    began = time.monotonic()
    command = ["sh", str(HOME / "bin/_llm/tool.sh"), "image", "build", *words]
    if conditions is not None and may_rename_machine():
        command = [*OTHER_NAME, *command]
    with subprocess.Popen(command, env=env, preexec_fn=before) as process:
        try:
            status = process.wait()
        except BaseException:
            # The builder removes what is half done when it is told to stop.
            with uninterrupted():
                process.terminate()
                process.wait()
            raise
    if status:
        raise LLMError(f"the {number} build failed", "its words stand above",
                       "make image with the same values shows whether it can be built at all")
    return Build(folder, time.monotonic() - began)


def may_rename_machine() -> bool:
    """Whether a process and its children may see another name of this machine."""
    try:
        done = subprocess.run([*OTHER_NAME, "true"], check=False, capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def other_conditions() -> None:
    """In the process of the second build: another umask, and one CPU only."""
    os.umask(0o077)
    cpus = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cpus)})


def compare(first: Build, second: Build) -> bool:
    """Say of each image whether both builds gave the same bytes, and what differs in the first that
    is not the same."""
    a, b = ([file.name for file in build.images] for build in (first, second))
    if a != b:
        print(f"verify-image: the builds don't even have the same inputs: {', '.join(a)}; then "
              f"{', '.join(b)}")
        return False
    for one, other in zip(first.images, second.images):
        digest = sha256_of(one)
        if digest == sha256_of(other):
            print(f"verify-image: {one.name}: the same {one.stat().st_size:,} bytes twice, SHA-256 "
                  f"{digest}")
            continue
        print(f"verify-image: {one.name}: the two builds DIFFER")
        for line in explain(one, other):
            print(f"  {line}")
        return False
    print(f"verify-image: built in {first.seconds:.0f} and {second.seconds:.0f} s", flush=True)
    return True


def explain(one: Path, other: Path) -> list[str]:
    """What differs between two image files, a line each; most of it left out where it is much."""
    found = differences(one, other)
    lines = [str(item) for item in [*object_differences(one, other), *found[:SHOWN]]]
    return lines + ([f"… and {len(found) - SHOWN} more files"] if len(found) > SHOWN else [])


def keep(first: Build, second: Build, images: Path) -> None:
    """Move the images that differ to a folder beside the other images, and name it."""
    folder = images / f"differing-{time.strftime('%Y%m%d-%H%M%S')}"
    for name, build in (("a", first), ("b", second)):
        (folder / name).mkdir(parents=True)
        for file in build.images:
            shutil.move(str(file), folder / name / file.name)
    print(f"verify-image: both are kept in {folder}", flush=True)
