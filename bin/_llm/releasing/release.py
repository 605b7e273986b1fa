"""Put a version's images and all that belongs to them into one folder that a site can mirror.

    make release VERSION=1.2.0 VARIANT="cpu cuda13" KEY=release-key.pem OUTPUT=/scratch

The folder appears in one step when it is complete. Without a key, the same commit and images give
the same bytes. What is in it: docs/releases.md; how it is received: receive.py.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from _llm import sif
from _llm.errors import LLMError, report
from _llm.image import end_like_ctrl_c
from _llm.releasing import files, keys, manifest, source
from _llm.releasing.plan import Built, Plan, archive_files, describe, make_plan
from _llm.signing.check import verify
from _llm.signing.keys import load_keys
from _llm.signing.sign import sign_image

# Of the header of a SIF: https://github.com/apptainer/sif/blob/main/pkg/sif/arch.go
ARCHITECTURES = {b"02": "amd64", b"04": "arm64", b"06": "ppc64le", b"09": "s390x"}


def main(arguments: Sequence[str]) -> int:
    """`release --version V [--variant …] [--key FILE | --signer NAME] [--output FOLDER] …`."""
    parser = argparse.ArgumentParser(prog="make release", description=__doc__.partition("\n")[0])
    parser.add_argument("--version", default="", help="such as 1.2.0")
    parser.add_argument("--variant", default="", help="cpu, cuda13, cuda12, several with spaces; "
                        "empty: as make image chooses")
    parser.add_argument("--base", default="", help="as make image was given it")
    parser.add_argument("--cuda-architectures", default="", help="as make image was given them")
    parser.add_argument("--key", default="", help="private key, a PEM file")
    parser.add_argument("--signer", default="", help="PGP key of Apptainer's keyring")
    parser.add_argument("--public-key", default="", help="what goes along to check the signatures; "
                        "empty: made of --key or --signer")
    parser.add_argument("--output", default="", help="folder for the release; empty: build")
    parser.add_argument("--archive", "--with-archive", dest="archive", default="",
                        help="folder that make archive filled; it is put in, to build images there")
    parser.add_argument("--without-missing", action="store_true",
                        help="leave out the images that are not built")
    parser.add_argument("--allow-dirty", action="store_true",
                        help="release changes that are not committed; the manifest says so")
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")
    options = parser.parse_args(arguments)
    end_like_ctrl_c()
    plan, faults = make_plan(options)
    if faults or not plan:
        return report("release", faults)
    for line in describe(plan):
        print(f"release: {line}")
    if options.dry_run:
        return 0
    with files.explain_full(plan.output, "make release … OUTPUT=/folder/with/room"):
        done = make_release(plan)
    print(f"release: {plan.folder} is ready ({files.gib(total_size(done))}, "
          f"{len(done.files)} files)\n"
          f"release: check it: make import FROM={shlex.quote(str(plan.folder))}"
          " ARGS=--check" + (" KEY=PUBLIC_KEY" if plan.signs else ""))
    return 0


def total_size(done: manifest.Manifest) -> int:
    """Bytes of all files of a release."""
    return sum(file.size for file in done.files.values())


def make_release(plan: Plan) -> manifest.Manifest:
    """Make the folder of a release, complete or not at all. Return its manifest."""
    plan.output.mkdir(parents=True, exist_ok=True)
    part = plan.output / f".{plan.folder.name}.part"
    with own_folder(part):
        done = fill(part, plan)
        make_readable(part)
        if os.path.lexists(plan.folder):
            raise LLMError(f"{plan.folder} is there already", "it was made in the meantime",
                           "choose another VERSION or OUTPUT, or remove it")
        part.rename(plan.folder)
        files.sync_folder(plan.output)
    return done


def make_readable(folder: Path) -> None:
    """Let everybody read a release, whatever the umask, and let it survive a power cut."""
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            if path.stat().st_nlink == 1:  # a hard link is the user's own file
                path.chmod(path.stat().st_mode | 0o444)
        Path(parent).chmod(0o755)
        files.sync_folder(Path(parent))


@contextmanager
def own_folder(part: Path) -> Iterator[None]:
    """Hold the new and empty folder `part`; remove it where it is not given another name."""
    with contextlib.suppress(FileExistsError):
        part.mkdir()
    number = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LLMError(f"{part} is in use", "another make release writes this version there",
                           "wait for it, or choose another OUTPUT") from None
        except OSError:
            pass  # no locks on this file system
        if not part.exists() or not os.path.samestat(os.fstat(number), part.stat()):
            raise LLMError(f"{part} is in use", "another make release has just finished there",
                           "see whether the release is there, or try again")
        empty(part)  # what an interrupted one left
        try:
            yield
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    finally:
        os.close(number)


def empty(folder: Path) -> None:
    """Remove what is in a folder."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def fill(part: Path, plan: Plan) -> manifest.Manifest:
    """Write every file of a release into the empty folder `part`. Return the manifest."""
    found: dict[str, manifest.File] = {}
    epoch = plan.source.epoch

    def write(name: str, data: bytes) -> None:
        found[name] = manifest.File(*files.write_bytes(part / name, data, epoch))

    tar = f"{plan.folder.name}.tar"
    source.make_tar(plan.home, plan.source, plan.folder.name, part / tar)
    found[tar] = manifest.File(*files.sha256_of(part / tar))
    described = [name for name in plan.source.files if name.startswith("containers/")]
    for name, data in source.copy_text_files(plan.home, described).items():
        write(name, data)
    public = ""
    if plan.signs:
        name, data = ("release.pem", Path(plan.public_key).read_bytes()) if plan.public_key else (
            keys.public_key(plan.apptainer, plan.key, plan.signer))
        if plan.public_key and b"PGP" in data[:100]:
            name = "release.asc"
        public = f"keys/{name}"
        write(public, data)
    (part / "images").mkdir()
    entries = [add_image(one, part, public, plan, write) for one in plan.images]
    found.update({entry.file: manifest.File(entry.sha256, entry.size) for entry in entries})
    for name, path in (archive_files(plan.archive) if plan.archive else {}).items():
        target = part / "archive" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        file = manifest.File(*files.copy_file(path, target, link=True))
        if manifest.HEX.fullmatch(path.parent.name) and path.parent.name != file.sha256:
            raise LLMError(f"{path} is damaged", "its SHA-256 is not that of its folder",
                           f"rm '{path}', then make archive again")
        found[f"archive/{name}"] = file
    locks = {name: file.sha256 for name, file in found.items()
             if name.startswith("containers/") and name.endswith(".lock")}
    done = manifest.Manifest(
        plan.version, plan.source.commit, bool(plan.source.changes), plan.source.day, tar, public,
        "archive" if plan.archive else "", tuple(entries), locks, found)
    text = done.to_bytes()
    checked, faults = manifest.read_manifest(text)
    assert checked == done, faults  # what is written can be read
    files.write_bytes(part / manifest.MANIFEST, text, epoch)
    sums = manifest.sums(text, found)
    files.write_bytes(part / manifest.SUMS, sums, epoch)
    if plan.signs:
        signed = part / manifest.SIGNED
        keys.make_signed(plan.apptainer, part, signed, plan.key, plan.signer)
        keys.check_signed(plan.apptainer, signed, (text, sums),
                          load_keys([str(part / public)]))
    return done


def add_image(
    one: Built, part: Path, public: str, plan: Plan, write: Callable[[str, bytes], None],
) -> manifest.Entry:
    """Put one image and its SBOM into the folder. Return its entry."""
    name, sbom = f"images/{one.stem}.sif", f"images/{one.stem}.sbom.cdx.json"
    target = part / name
    print(f"release: {one.stem}", flush=True)
    show = files.progress_line(f"release: {one.stem}")
    digest, size = files.copy_file(one.path, target, show, link=not plan.signs)
    signed_by = ""
    if plan.signs:
        sign_image(plan.apptainer, target, plan.key, plan.signer)
        signed_by = verify(plan.apptainer, str(target), load_keys([str(part / public)])).fingerprint
        digest, size = files.sha256_of(target, show)
    item = next(item for item in sif.read_objects(str(target)) if item.type == sif.SBOM)
    write(sbom, sif.read_object(str(target), item))
    return manifest.Entry(
        one.image.name, one.image.variant, name, digest, size,
        sif.payload_digest(str(target), show), one.inputs, architecture(target), sbom, signed_by)


def architecture(path: Path) -> str:
    """What processors a SIF is for, as Apptainer names them."""
    with open(path, "rb") as file:
        code = sif.HEADER.unpack(file.read(sif.HEADER.size))[3].rstrip(b"\0")
    return ARCHITECTURES.get(code, "unknown")
