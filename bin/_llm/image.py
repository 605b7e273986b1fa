"""Build, find, list and lock the images: what `make image`, `make lock` and the tests call.

    sh bin/_llm/tool.sh image build --image llm --variant cpu
    sh bin/_llm/tool.sh image path  --image llm --variant cpu     # where it is or would be
    sh bin/_llm/tool.sh image digest --image llm --variant cpu    # of what it holds; or FILE.sif
    sh bin/_llm/tool.sh image list
    sh bin/_llm/tool.sh image lock  --image llm
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

from _llm import setup
from _llm.apptainer import exec_flags
from _llm.errors import LLMError
from _llm.gpus import find_gpus, variants_for
from _llm.images import build as builder
from _llm.images import pip_settings
from _llm.images.catalog import Image, image_names, load_image, variants_of
from _llm.images.llama_cpp import cuda_architectures
from _llm.images.lock import find_uv, lock_image
from _llm.images.steps import absolute_base
from _llm.settings import Settings, load_settings
from _llm.sif import DamagedError, payload_digest

HOME = Path(__file__).resolve().parent.parent.parent


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands. Raises LLMError for a user's mistake."""
    parser = argparse.ArgumentParser(prog="image", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["build", "path", "list", "lock", "inputs", "digest"])
    parser.add_argument("--image", default="llm", help="name: a folder of containers/")
    parser.add_argument("--variant", default="", help="cpu, cuda13, cuda12; several by commas; "
                        "empty: for this machine")
    parser.add_argument("--base", default="", help="docker://NAME:TAG, oci-archive:FILE or a local "
                        "image in place of Debian's packages")
    parser.add_argument("--cuda-architectures", default="", help="such as '80 90'; empty: the site "
                        "profile's, else this machine's GPUs")
    parser.add_argument("--keep", action="store_true", help="lock: leave versions that are locked "
                        "already as they are, for a package more or less")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    settings = load_settings(os.environ, str(HOME))
    containers = HOME / "containers"
    if options.command == "digest" and options.image not in image_names(containers):
        # A file from elsewhere, or an installation, which has no definitions of images.
        from _llm.contents.choose import choose_image

        print_digest(Path(choose_image(options.image, options.variant, "image")))
        return 0
    need_checkout(HOME)
    if options.command == "lock":
        wanted = options.variant.replace(",", " ").split()
        state = Path(settings.get("paths", "cache"))
        report = lock_image(containers, options.image, wanted, state, find_uv(HOME), options.keep)
        if not options.keep:
            lock_checkers(find_uv(HOME))
        print("\n".join(report) or "nothing changed")
        return 0
    if options.command == "list":
        for name in image_names(containers):
            print(name, *variants_of(containers, name))
        return 0
    for variant in wanted_variants(containers, options.image, options.variant, settings):
        image = load_image(containers, options.image, variant)
        request = make_request(settings, options.base, options.cuda_architectures,
                               builder.compiles_for_gpus(image))
        if options.command == "path":
            print(builder.target_of(image, request))
        elif options.command == "digest":
            print_digest(builder.target_of(image, request), image)
        elif options.command == "inputs":
            for key, value in sorted(builder.inputs_of(image, request).items()):
                print(f"{key}: {value}")
        else:
            if not builder.target_of(image, request).exists():
                request = replace(request, fakeroot=setup.ensure_fakeroot())
            print(builder.build(image, request))
    return 0


def need_checkout(home: Path) -> None:
    """Raise LLMError in an installation, which lacks what images are built from."""
    if not (home / "containers").is_dir():
        raise LLMError(f"{home} is no checkout", "an installation holds nothing that images are "
                       "built from", "the same in the checkout that it was installed from")


def print_digest(file: Path, image: Image | None = None) -> None:
    """Print the digest of what an image file holds.

    image: of this checkout, to be built where it is not there. Raises LLMError for what has none.
    """
    if file.is_dir():
        raise LLMError(f"{file} is an unpacked folder", "a digest is that of an image file",
                       "name the file that it was made from")
    try:
        print(payload_digest(str(file)))
    except FileNotFoundError:
        command = f"make image IMAGE={image.name}" if image else "make image"
        command += f" VARIANT={image.variant}" if image and image.variant else ""
        raise LLMError(f"{file} is not built", "a digest is that of what an image holds",
                       command) from None
    except DamagedError as error:
        raise LLMError(f"{file} is damaged", str(error), "remove it and build it again") from None


def lock_checkers(uv: str) -> None:
    """Lock the environment of the checkers, for every Python that the host side supports."""
    packages = pip_settings.read_pip_settings(os.environ, Path.home())
    env = {**os.environ, **pip_settings.package_environment(packages, "", os.environ)}
    command = [uv, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--upgrade",
               "--generate-hashes", "--universal", "--python-version", "3.9",
               *(["--no-index"] if packages.no_index else []),
               "requirements-dev.in", "--output-file", "requirements-dev.lock"]
    if subprocess.run(command, check=False, env=env, cwd=HOME).returncode:
        raise LLMError("requirements-dev.lock could not be resolved", "uv's words stand above",
                       "correct requirements-dev.in or pip's configuration")


def make_request(
    settings: Settings, base: str, architectures: str, for_gpus: bool,
) -> builder.Request:
    """Put together what a build depends on, from options and settings."""
    configured = architectures.split() or settings.items("container", "cuda_architectures")
    words: list[str] = []
    if for_gpus:
        words = cuda_architectures(configured, {} if configured else gpus_here())
    return builder.Request(
        containers=HOME / "containers", images=Path(settings.get("container", "image_dir")),
        cache=Path(settings.get("paths", "cache")) / "build",
        apptainer=setup.ensure_apptainer(), flags=exec_flags(),
        base=absolute_base(base),
        fakeroot=setup.find_fakeroot(),
        architectures=tuple(words),
        mirror=" ".join(settings.items("container", "debian_mirror")),
        archives=tuple(settings.items("container", "archive")),
    )


def wanted_variants(
    containers: Path, name: str, asked: str, settings: Settings,
) -> list[str]:
    """The variants to build: asked for, the site profile's, for the GPU that is here, else cpu.

    Raises LLMError where the profile says that the site has GPUs and this machine shows none: a
    login node is no proof of a site without GPUs.
    """
    if name in image_names(containers) and not variants_of(containers, name):
        return [""]
    if asked:
        return asked.replace(",", " ").split()
    profile = settings.items("container", "variants")
    if profile:
        return profile
    gpus = find_gpus(os.environ)
    if gpus.usable:
        return variants_for(gpus, None)[:1]
    model, count = settings.get("gpus", "model"), settings.get("gpus", "per_node")
    if model or count not in ("", "0"):
        raise LLMError(
            "which variant?", f"the site profile '{settings.site}' has GPUs ({model or count}) "
            "and this machine shows none that would tell which",
            f"make image IMAGE={name} VARIANT=cuda13   (driver 580 or newer; else cuda12 or cpu)",
        )
    return ["cpu"]


def gpus_here() -> dict[str, str]:
    """GPU name -> compute capability of this machine, as nvidia-smi tells."""
    if not shutil.which("nvidia-smi"):
        return {}
    done = subprocess.run(["nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader"],
                          capture_output=True, text=True, check=False)
    rows = (line.rsplit(",", 1) for line in done.stdout.splitlines() if "," in line)
    return {name.strip(): capability.strip() for name, capability in rows}


def end_like_ctrl_c() -> None:
    """Let SIGTERM end a build as Ctrl-C does, and a lost terminal too unless nohup ignores it."""
    signal.signal(signal.SIGTERM, _as_interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, _as_interrupt)


def _as_interrupt(number: int, frame: FrameType | None) -> None:
    """What is half done is removed."""
    del frame
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"image: signal {number}", file=sys.stderr)
    raise KeyboardInterrupt
