"""Check a release folder and install its images; no step needs a network.

    make import FROM=/media/disk/llm-recipes-1.2.0 KEY=release.pem

Nothing is installed before everything was checked. Images get their names when they are complete,
and the links that users mean move last. Done again, it does nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _llm import sif
from _llm.apptainer import find_apptainer, private_apptainer
from _llm.errors import LLMError, report
from _llm.files import write_text
from _llm.image import end_like_ctrl_c
from _llm.images.steps import set_link
from _llm.locking import only_one
from _llm.printable import shown
from _llm.releasing import check, files, source
from _llm.releasing.manifest import (
    MANIFEST,
    MOST_BYTES,
    NAME,
    Entry,
    Manifest,
    read_manifest,
)
from _llm.settings import Settings, load_settings
from _llm.signing.check import verify
from _llm.signing.keys import Key, load_keys

HOME = Path(__file__).resolve().parents[3]
# Exit status of a release that is not as it was made; a user's mistake is 2.
DAMAGED = 1
MOST_SHOWN = 100
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


def main(arguments: Sequence[str]) -> int:
    """`import --from FOLDER [--key FILE] [--check] [--prefix FOLDER …]`."""
    parser = argparse.ArgumentParser(prog="make import", description=__doc__.partition("\n")[0])
    parser.add_argument("--from", dest="folder", default="", help="folder that make release made")
    parser.add_argument("--key", default="", help="public key, certificate or PGP key of who made "
                        "it; empty: the site's")
    parser.add_argument("--check", action="store_true", help="check, install nothing")
    parser.add_argument("--link", action="store_true",
                        help="hard links in place of copies, where the release is on the same disk")
    parser.add_argument("--prefix", default="", help="also make install of the release's source")
    parser.add_argument("--modulepath", default="", help="with --prefix: as of make install")
    parser.add_argument("--site", default="", help="with --prefix: as of make install")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    folder = check.find_folder(options.folder)
    refuse_source_inside(folder)
    settings = load_settings(os.environ, str(HOME))
    keys = [os.path.expanduser(options.key)] if options.key else settings.items("container", "keys")
    trusted = load_keys(keys)
    images = image_folder(settings, options.prefix)
    if options.prefix:
        os.umask(0o022)  # users have to read what an administrator installs
    if not (options.check or options.prefix) and is_imported(folder, images, keys):
        print(f"import: the images of {folder.name} are in {images} already; nothing to do "
              "(ARGS=--check reads the release again)")
        return 0
    program = find_apptainer(os.environ, str(HOME), settings.get("container", "apptainer")).path \
        if keys else ""
    result = check.check_release(folder, program, trusted)
    if result.faults or not result.manifest:
        return refuse(folder, result.faults)
    for line in [*describe(folder, result, keys), *later_imports(images, result.manifest)]:
        print(f"import: {line}")
    if options.check:
        return 0
    with files.explain_full(images, "LLM_IMAGE_DIR=/folder/with/room make import FROM=…"):
        faults = install_images(folder, result.manifest, images, program, trusted, options.link)
        if faults:
            return report("import", faults)
        remember(images, result, keys)
    if options.prefix:
        return install_source(folder, result.manifest, options)
    return 0


def refuse_source_inside(folder: Path) -> None:
    """Raise LLMError where this program lies in the release: its files would all be foreign."""
    release = folder.resolve()
    if release in (HOME, *HOME.parents):
        away = shlex.quote(shown(str(release.parent / "source")))
        raise LLMError(
            f"the source was unpacked into the release itself, {shown(str(release))}",
            "a release holds its own files and no others, and this program is one of the others",
            "remove that folder and copy the release again; then unpack the source elsewhere: "
            f"mkdir {away}; tar -xf {release.name}.tar -C {away}")


def image_folder(settings: Settings, prefix: str) -> Path:
    """Where the images go: the site's or the environment's folder, else that of the prefix."""
    chosen = settings.get("container", "image_dir")
    if prefix and settings.origin("container", "image_dir").startswith("default"):
        chosen = os.path.join(os.path.expanduser(prefix), "images")
    return Path(os.path.abspath(chosen))


def refuse(folder: Path, faults: Sequence[str]) -> int:
    """Print every fault of a release and return the exit status."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    report("import", [LLMError(
        f"{shown(folder.name)} is not as it was released: {count}; nothing was installed",
        "\n       ".join([*faults[:MOST_SHOWN], *(["..."] if faults[MOST_SHOWN:] else [])]),
        "copy it again (rsync --checksum), and ask whom it came from if that does not help")])
    return DAMAGED


def describe(folder: Path, result: check.Result, keys: Sequence[str]) -> list[str]:
    """Lines that say what was checked, and what was not."""
    manifest = result.manifest
    assert manifest
    said = [f"{manifest.folder()} is whole: {len(manifest.files)} files, commit "
            f"{manifest.commit[:12] or 'unknown'} of {manifest.day}"]
    if folder.name.startswith(NAME) and folder.name != manifest.folder():
        said.append(f"note: its folder has another name, {shown(folder.name)}: is it the version "
                    "that you want?")
    if manifest.dirty:
        said.append("note: it was made of changes that no commit holds")
    if not keys:
        said.append("note: only checksums were checked: KEY= is not given, and the site profile "
                    "names no [container] keys. The key in the release proves nothing; get it from "
                    "whom you trust")
    else:
        said.append(f"manifest and images: {result.signed_by}")
        inside = str(folder.resolve()) + os.sep
        if all(os.path.realpath(key).startswith(inside) for key in keys):
            said.append("note: that key came with the release, so it proves nothing about who "
                        "made it")
    here = MACHINES.get(os.uname().machine, os.uname().machine)
    said += [f"note: the image {entry.label} is for {entry.architecture}, this machine is {here}"
             for entry in manifest.images if entry.architecture not in (here, "unknown")]
    return said


def later_imports(images: Path, manifest: Manifest) -> list[str]:
    """Say which versions of a later day were imported here: somebody may pass an old one off."""
    said = []
    for path in sorted(images.glob(".imported-*.json")):
        with contextlib.suppress(OSError, ValueError, RecursionError, KeyError, TypeError):
            record = json.loads(path.read_text())
            version, day = record["version"], record["day"]
            if day > manifest.day:
                said.append(f"note: {shown(version)} of {shown(day)}, which is newer, was imported "
                            "here before; the links go back to this older one")
    return said


def install_images(
    folder: Path, manifest: Manifest, images: Path, apptainer: str, keys: Sequence[Key],
    link: bool,
) -> list[LLMError]:
    """Install what is not there yet. Return what is in the way; then nothing was installed."""
    images.mkdir(parents=True, exist_ok=True)
    with only_one(images / ".import.lock", "import", "import"):
        for part in images.glob(".import-*.part"):
            part.unlink()
        wanted, faults = [], []
        for entry in manifest.images:
            try:
                if needs_copy(entry, images, apptainer, keys):
                    wanted.append(entry)
            except LLMError as error:
                faults.append(error)
        if faults:
            return faults
        files.check_room(images, sum(entry.size for entry in wanted if not link),
                         "LLM_IMAGE_DIR=/folder/with/room make import FROM=…")
        for entry in wanted:
            install_image(folder / entry.file, entry, images, link)
        files.sync_folder(images)
        for entry in manifest.images:
            set_link(images / entry.file_name, images / f"{entry.label}.sif")
            state = "installed" if entry in wanted else "was there"
            print(f"import: {images / entry.label}.sif -> {entry.file_name} ({state})")
        files.sync_folder(images)
    return []


def needs_copy(entry: Entry, images: Path, apptainer: str, keys: Sequence[Key]) -> bool:
    """Whether an image is not there yet. Raises LLMError where something else has its name."""
    path, link = images / entry.file_name, images / f"{entry.label}.sif"
    if os.path.lexists(link) and not link.is_symlink():
        raise LLMError(f"{link} is there and no link", "make image and make import make links",
                       f"mv '{link}' '{link}.old'")
    if not os.path.lexists(path):
        return True
    try:
        if path.is_symlink() or not path.is_file():
            raise sif.DamagedError("it is no file")
        show = files.progress_line(f"import: {path.name}")
        if sif.payload_digest(str(path), show) != entry.payload:
            raise sif.DamagedError("the same inputs, and something else in it")
    except sif.DamagedError as error:
        raise LLMError(f"{path} is there and is not the release's image", str(error),
                       f"mv '{path}' '{path}.old'") from None
    if keys:
        try:
            verify(apptainer, str(path), keys)
        except LLMError:
            return True  # the same image, without the signature that the site asks for
    return False


def install_image(file: Path, entry: Entry, images: Path, link: bool) -> None:
    """Copy one image under a temporary name, compare it with the manifest, give it its name."""
    part = images / f".import-{entry.file_name}-{os.getpid()}.part"
    try:
        show = files.progress_line(f"import: {entry.file_name}")
        if files.copy_file(file, part, show, link) != (entry.sha256, entry.size):
            raise LLMError(f"{file} changed while it was copied", "its SHA-256 is another one now",
                           "make import FROM=… again, when nobody writes there")
        with contextlib.suppress(PermissionError):  # a hard link to somebody else's file
            part.chmod(0o755)
        os.replace(part, images / entry.file_name)
    finally:
        part.unlink(missing_ok=True)


def record_path(images: Path, version: str) -> Path:
    """Where it is written down that a version was imported."""
    return images / f".imported-{version}.json"


def remember(images: Path, result: check.Result, keys: Sequence[str]) -> None:
    """Write down what was imported, so that a second time is fast."""
    assert result.manifest
    content = {"version": result.manifest.version, "day": result.manifest.day,
               "manifest": hashlib.sha256(result.text).hexdigest(), "keys": key_digests(keys),
               "images": {entry.label: [entry.file_name, *state_of(images / entry.file_name)]
                          for entry in result.manifest.images}}
    write_text(str(record_path(images, result.manifest.version)),
               json.dumps(content, indent=1) + "\n", 0o644)


def state_of(path: Path) -> list[int]:
    """What changes when a file is changed or replaced."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def key_digests(keys: Sequence[str]) -> list[str]:
    """What tells whether other keys are asked for."""
    return sorted(files.sha256_of(Path(os.path.realpath(key)))[0] for key in keys)


def is_imported(folder: Path, images: Path, keys: Sequence[str]) -> bool:
    """Whether this very release was imported, checked with these keys, and nothing changed since.

    The images of the release itself are not read.
    """
    try:
        text = files.read_small(folder / MANIFEST, MOST_BYTES)
        manifest, _ = read_manifest(text)
        if manifest is None:
            return False
        record: Any = json.loads(record_path(images, manifest.version).read_text())
        if record["manifest"] != hashlib.sha256(text).hexdigest():
            return False
        if record["keys"] != key_digests(keys):
            return False
        return all(os.readlink(images / f"{label}.sif") == name
                   and state_of(images / name) == state
                   for label, (name, *state) in record["images"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def install_source(folder: Path, manifest: Manifest, options: argparse.Namespace) -> int:
    """Run `make install` of the source in the release. Return its exit status."""
    with tempfile.TemporaryDirectory(prefix="llm-import-") as work:
        own = Path(work, "source.tar")
        found = files.copy_file(folder / manifest.source, own)
        expected = manifest.files[manifest.source]
        if found != (expected.sha256, expected.size):
            raise LLMError(f"{folder / manifest.source} changed while it was copied",
                           "its SHA-256 is another one now",
                           "make import FROM=… again, when nobody writes there")
        with files.explain_full(Path(work), "export TMPDIR=/folder/with/room"):
            source.unpack(own, Path(work))
        unpacked = Path(work, manifest.folder())
        if private_apptainer(str(HOME)):  # then the installation gets one of its own too
            (unpacked / ".tools").symlink_to(HOME / ".tools")
        command = ["sh", str(unpacked / "bin/_llm/tool.sh"), "install", "--prefix", os.path.abspath(
            os.path.expanduser(options.prefix))]
        for name in ("modulepath", "site"):
            value = getattr(options, name)
            command += [f"--{name}", value] if value else []
        sys.stdout.flush()
        return subprocess.run(command, check=False).returncode
