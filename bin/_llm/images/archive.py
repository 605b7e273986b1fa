"""Keep every input of an image and its parents by hash in a folder, for builds without a network.

    make archive IMAGE=llm VARIANT=cpu ARCHIVE=/data/llm-inputs
    make archive IMAGE=llm VARIANT=cpu ARCHIVE=/data/llm-inputs CHECK=1
    LLM_ARCHIVE_DIR=/data/llm-inputs make image VARIANT=cpu      # there, with no network

The folder gets SHA256SUMS, which sha256sum -c reads, and index.json, which says what each file is
for. Files that are there already are checked and stay; several images may share a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from _llm import image as images
from _llm.debian import sha256_of
from _llm.errors import LLMError
from _llm.files import write_text
from _llm.images import build, needs, parallel, python_files, registry, store
from _llm.images.catalog import Image, load_image
from _llm.images.locks import read_apt_lock
from _llm.locking import only_one
from _llm.settings import load_settings

SCHEMA = 1
INDEX, SUMS = "index.json", "SHA256SUMS"


def main(arguments: Sequence[str]) -> int:
    """Fill or check an archive; 1 where a check finds something missing or damaged.

    Raises LLMError for a user's mistake, and where something can't be had.
    """
    parser = argparse.ArgumentParser(prog="archive", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="llm", help="name: a folder of containers/")
    parser.add_argument("--variant", default="", help="as make image has it")
    parser.add_argument("--archive", default="", help="the folder; empty: the user's own, in the "
                        "cache folder")
    parser.add_argument("--base", default="", help="as make image has it: docker://NAME:TAG is "
                        "kept too, by its digest")
    parser.add_argument("--check", action="store_true", help="fetch nothing: check every file's "
                        "SHA-256 and say what is missing")
    options = parser.parse_args(arguments)
    images.end_like_ctrl_c()
    settings = load_settings(os.environ, str(images.HOME))
    containers = images.HOME / "containers"
    cache = Path(settings.get("paths", "cache")) / "build"
    kept = store.make_store(cache, settings.items("container", "archive"))
    folder = Path(os.path.abspath(options.archive)) if options.archive else kept.own
    variants = images.wanted_variants(containers, options.image, options.variant, settings)
    wanted = [(label, need) for variant in variants for label, need in
              sandboxes(load_image(containers, options.image, variant), containers)]
    if options.check:
        return check(folder, wanted, options.base)
    # What this user or the site has already is copied, not fetched.
    others = [place for place in kept.folders if place != folder]
    target = store.Store(folder, (folder, *others) if folder.is_dir() else tuple(others), kept.old)
    mirror = " ".join(settings.items("container", "debian_mirror"))
    base = []
    if registry.is_reference(options.base):
        request = images.make_request(settings, options.base, "", False)
        base = keep_base(replace(request, archives=tuple(map(str, target.shared))), target)
    fill(target, wanted, mirror, base)
    return 0


def keep_base(request: build.Request, target: store.Store) -> list[Path]:
    """The files of a base image of a registry, and the note of its digest in this archive."""
    members = registry.members_of(request.pinned_base, request.store)
    store.incoming(target)
    registry.record(request.base, request.pinned_base, target)
    return members


def sandboxes(image: Image, containers: Path) -> list[tuple[str, needs.Needs]]:
    """Every sandbox that is built for an image: its parents', llama.cpp's, its own; with a name."""
    found: list[tuple[str, needs.Needs]] = []
    if image.parent:
        found += sandboxes(load_image(containers, image.parent), containers)
    if (image.folder / needs.COMPILED).is_dir():
        flavours = ["cpu", *([image.variant] if build.compiles_for_gpus(image) else [])]
        found += [(f"{image.label}: llama.cpp ({flavour})", needs.needs_of_compiling(
            replace(image, variant="cpu"), flavour, containers)) for flavour in flavours]
    absent = [str(lock) for lock in build.locks_of(image) if not lock.exists()]
    if absent:
        raise LLMError(f"image {image.label} can't be archived: it is not locked",
                       f"missing: {', '.join(absent)}",
                       f"make lock IMAGE={image.name} VARIANT={image.variant}")
    return [*found, (image.label, needs.needs_of(image, containers))]


def fill(
    target: store.Store, wanted: Sequence[tuple[str, needs.Needs]], mirror: str,
    base: Sequence[Path] = (),
) -> None:
    """Bring every file of the sandboxes into the archive and write what it holds.

    base: files of a base image that are in another archive.
    """
    folder = target.own
    store.incoming(target)
    purposes: dict[str, set[str]] = {}
    for label, need in [("the base image", None), *wanted]:
        paths = list(base)
        if need:
            files = needs.collect(need, target, mirror)
            paths = [path for _, path in files.debian] + list(files.python)
        results = parallel.run_all([lambda stop, p=p: bring(p, target)  # type: ignore[misc]
                                    for p in paths if not is_in(p, target)])
        failed = [result.error for result in results if isinstance(result, parallel.Failed)]
        if failed:
            raise failed[0]
        for path in paths:
            purposes.setdefault(path.parent.name, set()).add(label)
        if paths:
            print(f"archive: {label}: {len(paths)} files", flush=True)
    try:
        with only_one(folder / ".lock"):
            entries = write_index(folder, purposes)
    except OSError as error:
        raise store.not_writable(folder, error) from None
    size = sum(int(str(entry["bytes"])) for entry in entries)
    print(f"archive: {folder} holds {len(entries)} files, {size / 1e6:.0f} MB")


def is_in(path: Path, target: store.Store) -> bool:
    """Whether the archive itself has the file; it was checked when it was found."""
    return target.own in path.parents


def bring(path: Path, target: store.Store) -> Path:
    """Copy a file of another archive into this one; its content is checked once more."""
    sha256 = path.parent.name if len(path.parent.name) == 64 else sha256_of(path)
    handle, name = tempfile.mkstemp(dir=target.own / store.INCOMING, prefix=".part-")
    os.close(handle)
    part = Path(name)
    try:
        shutil.copyfile(path, part)
        if sha256_of(part) != sha256:
            raise LLMError(f"{path} changed while it was copied", "its SHA-256 is another one",
                           "the same command again")
        return store.add(target, part, sha256, path.name)
    except OSError as error:
        raise store.not_writable(target.own, error) from None
    finally:
        part.unlink(missing_ok=True)


def write_index(folder: Path, purposes: dict[str, set[str]]) -> list[dict[str, object]]:
    """Write SHA256SUMS and index.json over all files of an archive. Returns the index's entries."""
    for entry in read_index(folder):
        purposes.setdefault(str(entry["sha256"]), set()).update(map(str, entry["for"]))  # type: ignore[call-overload]
    entries: list[dict[str, object]] = []
    for sha256, path in store.everything(folder):
        entries.append({"path": str(path.relative_to(folder)), "sha256": sha256,
                        "bytes": path.stat().st_size, "for": sorted(purposes.get(sha256, ()))})
    write_text(str(folder / SUMS), "".join(f"{e['sha256']}  {e['path']}\n" for e in entries))
    write_text(str(folder / INDEX), json.dumps({"schema": SCHEMA, "files": entries}, indent=1,
                                               sort_keys=True) + "\n")
    return entries


def read_index(folder: Path) -> list[dict[str, object]]:
    """The entries of an archive's index.json; empty, and said, where it can't be read."""
    try:
        found = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        entries = list(found["files"])
        if all(isinstance(e["sha256"], str) and isinstance(e["for"], list) for e in entries):
            return entries
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError):
        pass
    print(f"archive: note: {folder / INDEX} could not be read; it is written anew", flush=True)
    return []


def check(folder: Path, wanted: Sequence[tuple[str, needs.Needs]], base: str = "") -> int:
    """Print what is damaged and what is missing; 1 where there is any. Needs no network.

    Raises LLMError where there is no such folder.
    """
    if not folder.is_dir():
        raise LLMError(f"there is no archive {folder}", "it is not a folder",
                       "make archive ARCHIVE=FOLDER")
    files = store.everything(folder)
    intact = parallel.run_all([
        lambda stop, s=sha256, p=path: store.is_intact(p, s)  # type: ignore[misc]
        for sha256, path in files])
    damaged = [path for (_, path), good in zip(files, intact) if good is not True]
    archive = store.Store(folder)
    missing: dict[str, list[str]] = {}
    for label, need in wanted:
        for what in lacking(need, archive):
            missing.setdefault(what, []).append(label)
    if registry.is_reference(base) and not registry.recorded(base, archive):
        missing[base] = ["the base image"]
    for path in damaged:
        print(f"archive: damaged: {path}")
    for what, labels in sorted(missing.items()):
        print(f"archive: missing: {what} (for {', '.join(labels)})")
    size = sum(path.stat().st_size for _, path in files)
    print(f"archive: {folder} holds {len(files)} files, {size / 1e6:.0f} MB; "
          f"{len(damaged)} damaged, {len(missing)} missing")
    return 1 if damaged or missing else 0


def lacking(need: needs.Needs, archive: store.Store) -> list[str]:
    """What of a sandbox's locks the archive has no file of."""
    found = [f"Debian package {package.name} {package.version}"
             for lock in need.debian for package in read_apt_lock(lock)
             if package.file_name not in store.names_of(archive, package.sha256)]
    found += [f"Python package {package.name} {package.version}"
              for lock in need.python for package in python_files.read_python_lock(lock)
              if not python_files.candidates(archive, package)]
    return found
