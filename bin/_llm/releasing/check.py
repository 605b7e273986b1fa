"""Check a release folder as if a stranger had made it: nothing of it is used before.

    make import FROM=/media/disk/llm-recipes-1.2.0 KEY=release.pem ARGS=--check

Every fault is found in one go. The folder is only read, and no link in it is followed.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from _llm import sif
from _llm.errors import LLMError
from _llm.files import raise_error
from _llm.printable import shown
from _llm.releasing import files, keys, source
from _llm.releasing.manifest import (
    MANIFEST,
    MOST_BYTES,
    NAME,
    SIGNED,
    SUMS,
    Entry,
    Manifest,
    read_manifest,
    sums,
)
from _llm.signing.check import verify
from _llm.signing.keys import Key

# SHA256SUMS has a line of at most this length for each file.
MOST_SUMS = 64 << 20


@dataclass
class Result:
    """What a check found.

    text: of the manifest, read once. signed_by: "" where no key was asked for.
    """

    text: bytes = b""
    manifest: Manifest | None = None
    signed_by: str = ""
    faults: list[str] = field(default_factory=list)


def find_folder(given: str) -> Path:
    """Return the folder of a release. Raises LLMError with a proposal where it is none."""
    if not given:
        raise LLMError("which release?", "FROM is empty", f"make import FROM=/path/{NAME}-1.2.0")
    folder = Path(os.path.abspath(os.path.expanduser(given)))
    if not folder.is_dir():
        why, fix = "no such folder", "correct the path"
        if folder.is_file():
            why = "it is a file; unpack it first"
            if folder.name in (MANIFEST, SIGNED, SUMS):
                why = "it is a file of a release"
                fix = f"make import FROM={shlex.quote(shown(str(folder.parent)))}"
        raise LLMError(f"FROM={shown(given)} is no folder", why, fix)
    if os.path.lexists(folder / MANIFEST):
        return folder
    inside = sorted(path.name for path in folder.iterdir()
                    if os.path.lexists(path / MANIFEST) and path.name.startswith(NAME))
    raise LLMError(f"{shown(str(folder))} is no release", f"it has no {MANIFEST}",
                   f"make import FROM={shlex.quote(shown(str(folder / inside[-1])))}" if inside else
                   "give the folder that make release made; a copy of it may have broken off")


def check_release(folder: Path, apptainer: str, wanted_keys: Sequence[Key]) -> Result:
    """Check everything in a folder; with keys also who made it.

    apptainer: the program, needed for keys only. Raises OSError where the folder can't be read.
    """
    result = Result()
    try:
        result.text = files.read_small(folder / MANIFEST, MOST_BYTES)
    except PermissionError:
        raise  # the reader's mistake, and no fault of the release
    except OSError as error:
        result.faults.append(f"{MANIFEST}: {error.strerror or error}")
        return result
    manifest, faults = read_manifest(result.text)
    if manifest is None:
        result.faults += [f"{MANIFEST}: {fault}" for fault in faults]
        return result
    result.manifest = manifest
    faults, whole = check_files(folder, manifest)
    faults += check_sums(folder, result)
    for entry in manifest.images:
        if entry.file in whole:
            sbom = manifest.files[entry.sbom].sha256
            faults += [f"{entry.file}: {fault}" for fault in check_image(folder, entry, sbom)]
    if manifest.source in whole:
        faults += [f"{manifest.source}: {fault}" for fault in
                   source.tar_faults(folder / manifest.source, manifest.folder())]
    if wanted_keys:
        result.signed_by, more = check_signatures(folder, result, whole, apptainer, wanted_keys)
        faults += more
    result.faults = faults
    return result


def check_files(folder: Path, manifest: Manifest) -> tuple[list[str], set[str]]:
    """Compare the files that are there with the manifest: faults, and those that are whole."""
    faults, sizes = [], {}
    for parent, folders, names in os.walk(folder, onerror=raise_error):
        for name in [*folders, *names]:
            path = Path(parent, name)
            short = str(path.relative_to(folder))
            status = path.lstat()
            if stat.S_ISREG(status.st_mode):
                sizes[short] = status.st_size
            elif not stat.S_ISDIR(status.st_mode):
                kind = "a link" if stat.S_ISLNK(status.st_mode) else "neither a file nor a folder"
                faults.append(f"{shown(short)}: it is {kind}")
                sizes[short] = -1
    known = {*manifest.files, MANIFEST, SUMS, SIGNED}
    faults += [f"{shown(name)}: it is not in the manifest" for name in sorted(sizes)
               if name not in known]
    whole = set()
    total = sum(max(size, 0) for name, size in sizes.items() if name in manifest.files)
    done = 0
    for name, file in sorted(manifest.files.items()):
        if name not in sizes:
            faults.append(f"{name}: it is missing")
        elif 0 <= sizes[name] != file.size:
            faults.append(f"{name}: it has {sizes[name]} bytes of {file.size}")
        elif sizes[name] >= 0:
            show, before = files.progress_line("import: checking"), done
            digest, _ = files.sha256_of(
                folder / name, lambda now, _, show=show, before=before:  # type: ignore[misc]
                show(before + now, total))
            if digest == file.sha256:
                whole.add(name)
            else:
                faults.append(f"{name}: its SHA-256 is another one")
            done += file.size
    return faults, whole


def check_sums(folder: Path, result: Result) -> list[str]:
    """Compare SHA256SUMS with the manifest."""
    assert result.manifest
    try:
        found = files.read_small(folder / SUMS, MOST_SUMS)
    except OSError as error:
        return [f"{SUMS}: {error.strerror or error}"]
    if found != sums(result.text, result.manifest.files):
        return [f"{SUMS}: it says something else than {MANIFEST}"]
    return []


def check_image(folder: Path, entry: Entry, sbom: str) -> list[str]:
    """Compare an image whose checksum is right with what the manifest says of its inside.

    sbom: SHA-256 of the list of software beside it.
    """
    path = str(folder / entry.file)
    try:
        show = files.progress_line(f"import: {entry.file}")
        digest = sif.payload_digest(path, show)
        boms = [item for item in sif.read_objects(path) if item.type == sif.SBOM]
        if digest != entry.payload:
            return [f"it holds {digest}, the manifest says {entry.payload}"]
        if len(boms) != 1:
            return ["it has no SBOM" if not boms else "it has several SBOMs"]
        if sif.object_sha256(path, boms[0]) != sbom:
            return [f"its SBOM is not {entry.sbom}"]
    except sif.DamagedError as error:
        return [f"it is no whole image: {error}"]
    return []


def check_signatures(
    folder: Path, result: Result, whole: set[str], apptainer: str, wanted: Sequence[Key],
) -> tuple[str, list[str]]:
    """Return who signed the manifest, and what is not signed with one of the keys."""
    assert result.manifest
    signed_by, faults = "", []
    contents = (result.text, sums(result.text, result.manifest.files))
    if not os.path.lexists(folder / SIGNED):
        faults.append(f"{SIGNED}: it is missing: the release is not signed")
    else:
        try:
            signed_by = keys.check_signed(apptainer, folder / SIGNED, contents, wanted)
        except LLMError as error:
            faults.append(f"{SIGNED}: {one_line(error)}")
        except OSError as error:
            faults.append(f"{SIGNED}: {error.strerror or error}")
    for entry in result.manifest.images:
        if entry.file in whole:
            try:
                verify(apptainer, str(folder / entry.file), wanted)
            except LLMError as error:
                path = str(folder / entry.file)
                said = one_line(error).replace(f"the image {path} is", "it is")
                faults.append(f"{entry.file}: {said.replace(path, entry.file)}")
    return signed_by, faults


def one_line(error: LLMError) -> str:
    """An error without its cure."""
    return " - ".join(filter(None, [error.what, error.why])).replace("\n", " ")
