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
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from _llm import image as images
from _llm import sif
from _llm.errors import LLMError, report
from _llm.images import build as builder
from _llm.images.catalog import Image, image_names, load_image, variants_of
from _llm.images.inputs import DIGEST_LENGTH, digest_of, lock_date
from _llm.images.store import DAMAGED
from _llm.releasing import files, keys, manifest, source
from _llm.run import VERSION
from _llm.settings import load_settings
from _llm.signing.check import verify
from _llm.signing.keys import load_keys
from _llm.signing.sign import sign_image

HOME = Path(__file__).resolve().parents[3]
# Of the header of a SIF: https://github.com/apptainer/sif/blob/main/pkg/sif/arch.go
ARCHITECTURES = {b"02": "amd64", b"04": "arm64", b"06": "ppc64le", b"09": "s390x"}


@dataclass(frozen=True)
class Built:
    """An image that is there. inputs: the whole digest of its inputs."""

    image: Image
    path: Path
    inputs: str

    @property
    def stem(self) -> str:
        """Its file's name without `.sif`."""
        return f"{self.image.label}-{self.inputs[:DIGEST_LENGTH]}"


@dataclass(frozen=True)
class Plan:
    """Everything that a release depends on. archive: folder of inputs, None without."""

    version: str
    home: Path
    output: Path
    source: source.Source
    images: tuple[Built, ...]
    archive: Path | None
    apptainer: str
    key: str
    signer: str
    public_key: str

    @property
    def signs(self) -> bool:
        """Whether the release is signed."""
        return bool(self.key or self.signer)

    @property
    def folder(self) -> Path:
        """Where the release will be."""
        return self.output / f"{manifest.NAME}-{self.version}"


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
    images.end_like_ctrl_c()
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


def make_plan(options: argparse.Namespace) -> tuple[Plan | None, list[LLMError]]:
    """Return what will be done, and everything that speaks against it."""
    faults: list[LLMError] = []
    version = options.version
    if not manifest.SEMANTIC.fullmatch(version):
        faults.append(LLMError(f"VERSION='{version}' is no semantic version",
                               "it is three numbers, and perhaps more: 1.2.0, 1.2.0-rc.1",
                               "make release VERSION=1.2.0"))
        version = "0.0.0"
    for name in ("key", "public_key", "archive"):
        setattr(options, name, os.path.expanduser(getattr(options, name)))
    if options.key and options.signer:
        faults.append(LLMError("KEY and SIGNER are both given", "one of them signs the release",
                               "leave one of them out"))
    for name, path in (("KEY", options.key), ("--public-key", options.public_key)):
        if path and not os.path.isfile(path):
            faults.append(LLMError(f"{name}={path} is no file", "no such file", "correct the path"))
    if options.public_key and not (options.key or options.signer):
        faults.append(LLMError("--public-key does not sign anything", "KEY or SIGNER is missing",
                               "make release … KEY=private.pem"))
    output = Path(os.path.abspath(os.path.expanduser(options.output or str(HOME / "build"))))
    folder = output / f"{manifest.NAME}-{version}"
    if os.path.lexists(folder):
        faults.append(LLMError(f"{folder} is there already", "a release is never overwritten",
                               "choose another VERSION or OUTPUT, or remove it"))
    archive = Path(os.path.abspath(options.archive)) if options.archive else None
    if archive and not archive.is_dir():
        faults.append(LLMError(f"ARCHIVE={options.archive} is no folder", "no such folder",
                               "make archive ARCHIVE=…, or correct the path"))
    tree = None
    try:
        tree = source.read_source(HOME, builder.epoch_of(newest_lock(HOME / "containers")))
        faults += tree_faults(tree, version, options.allow_dirty)
    except LLMError as error:
        faults.append(error)
    built: list[Built] = []
    apptainer = ""
    try:
        built, missing, apptainer = find_images(
            options.variant, options.base, options.cuda_architectures)
        if not options.without_missing or not built:
            faults += missing
        faults += without_sbom(built)
    except LLMError as error:
        faults.append(error)
    if faults or not tree:
        return None, faults
    plan = Plan(version, HOME, output, tree, tuple(built), archive, apptainer,
                options.key, options.signer, options.public_key)
    files.check_room(output, room(plan), "make release … OUTPUT=/folder/with/room")
    return plan, []


def tree_faults(tree: source.Source, version: str, allow_dirty: bool) -> list[LLMError]:
    """Return what keeps this tree from being released as this version."""
    faults = source.tag_faults(HOME, version, tree.commit)
    if tree.changes and not allow_dirty:
        listed = ", ".join(manifest.shown(name) for name in tree.changes[:5])
        more = f" and {len(tree.changes) - 5} more" if tree.changes[5:] else ""
        faults.append(LLMError(
            "the checkout has changes that are not committed: no release of it", listed + more,
            "git commit, or: make release … ARGS=--allow-dirty   (the manifest says so)"))
    odd = [f"{manifest.shown(name)}: {fault}" for name in tree.files
           if (fault := manifest.name_fault(name))]
    if odd:
        faults.append(LLMError("some files of the checkout can't be released", "; ".join(odd[:10]),
                               "rename them"))
    return faults


def newest_lock(containers: Path) -> str:
    """The day of the newest lock of all images."""
    days = [lock_date(load_image(containers, name, variant)) for name in image_names(containers)
            for variant in variants_of(containers, name) or [""]]
    return max(days, default="unknown")


def find_images(
    asked: str, base: str, architectures: str,
) -> tuple[list[Built], list[LLMError], str]:
    """Return the images of this checkout that are built, an error for each other, and Apptainer."""
    settings = load_settings(os.environ, str(HOME))
    containers = HOME / "containers"
    wanted = images.wanted_variants(containers, "llm", asked, settings)
    known = {v for name in image_names(containers) for v in variants_of(containers, name)}
    for variant in wanted:
        if variant not in known:
            load_image(containers, "llm", variant)  # it names those that there are
    found, missing, program = [], [], ""
    for name in image_names(containers):
        variants = variants_of(containers, name)
        for variant in [v for v in wanted if v in variants] if variants else [""]:
            image = load_image(containers, name, variant)
            locks = [str(lock) for lock in builder.locks_of(image) if not lock.exists()]
            command = f"make image IMAGE={name}" + (f" VARIANT={variant}" if variant else "")
            if locks:
                missing.append(LLMError(f"the image {image.label} is not built",
                                        f"it is not locked: {', '.join(locks)}",
                                        without(command)))
                continue
            request = images.make_request(settings, base, architectures,
                                          builder.compiles_for_gpus(image))
            program = request.apptainer
            inputs = builder.inputs_of(image, request)
            path = builder.file_for(image, request, inputs)
            if path.is_file():
                found.append(Built(image, path, digest_of(inputs)))
            else:
                missing.append(LLMError(f"the image {image.label} is not built",
                                        f"no {path}", without(command)))
    return found, missing, program


def without(command: str) -> str:
    """The two ways out where an image is missing."""
    return f"{command}, or: make release … ARGS=--without-missing"


def without_sbom(built: Sequence[Built]) -> list[LLMError]:
    """Return an error for each image that can't be released: damaged, or without an SBOM."""
    faults = []
    for one in built:
        command = f"rm '{one.path}', then make image IMAGE={one.image.name}" + (
            f" VARIANT={one.image.variant}" if one.image.variant else "")
        try:
            if not any(item.type == sif.SBOM for item in sif.read_objects(str(one.path))):
                faults.append(LLMError(f"the image {one.path} has no SBOM",
                                       "it was built by an older version", command))
        except sif.DamagedError as error:
            faults.append(LLMError(f"the image {one.path} is damaged", str(error), command))
    return faults


def room(plan: Plan) -> int:
    """Bytes that the release takes at most; shared blocks and links only make it less."""
    size = sum((plan.home / name).lstat().st_size for name in plan.source.files) * 2
    for one in plan.images:
        status = one.path.stat()
        shared = status.st_dev == nearest(plan.output).stat().st_dev and not plan.signs
        # Signing makes a second copy for a while.
        size += 0 if shared else status.st_size
    if plan.signs:
        size += max((one.path.stat().st_size for one in plan.images), default=0)
    if plan.archive:
        size += sum(path.stat().st_size for path in archive_files(plan.archive).values())
    return size


def nearest(folder: Path) -> Path:
    """The folder, or the nearest above that exists."""
    while not folder.exists():
        folder = folder.parent
    return folder


def archive_files(folder: Path) -> dict[str, Path]:
    """Name -> file of an archive of inputs, sorted. Raises LLMError for what can't be released."""
    found, odd = {}, []
    for parent, folders, names in os.walk(folder):
        # Not what is still being fetched, nor what was found damaged.
        folders[:] = sorted(f for f in folders if not f.startswith(".") and f != DAMAGED)
        for name in sorted(names):
            path = Path(parent, name)
            short = path.relative_to(folder).as_posix()
            if not stat.S_ISREG(path.lstat().st_mode) or manifest.name_fault(short):
                odd.append(manifest.shown(short))
            elif not name.startswith("."):  # locks, and what is still being written
                found[short] = path
    if odd:
        raise LLMError(f"some files of {folder} can't be released",
                       "no ordinary files, or odd names: " + ", ".join(odd[:10]),
                       "remove or rename them")
    return found


def describe(plan: Plan) -> list[str]:
    """Lines that say what will be in the release."""
    tree = plan.source
    said = [f"{plan.folder} of commit {tree.commit[:12] or 'unknown'}, {tree.day}"]
    if tree.changes:
        said.append("note: with changes that are not committed; the manifest says so")
    said += [f"image {one.stem} ({files.gib(one.path.stat().st_size)})" for one in plan.images]
    said.append(f"source: {len(tree.files)} files")
    if plan.archive:
        said.append(f"archive of inputs: {len(archive_files(plan.archive))} files")
    said.append(f"signed with {plan.key or plan.signer}" if plan.signs else
                "note: not signed; KEY= or SIGNER= signs it")
    if plan.version != VERSION:
        said.append(f"note: the source calls itself {VERSION}, and is installed under that name")
    return said


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
