"""What a release will hold, and everything that speaks against it, before anything is written.

    make release VERSION=1.2.0 ARGS=--dry-run
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from _llm import image as images
from _llm import sif
from _llm.errors import LLMError
from _llm.images import build as builder
from _llm.images.catalog import Image, image_names, load_image, variants_of
from _llm.images.inputs import DIGEST_LENGTH, digest_of, lock_date
from _llm.images.store import DAMAGED
from _llm.printable import shown
from _llm.releasing import files, manifest, source
from _llm.run import VERSION
from _llm.settings import load_settings
from _llm.signing.keys import MOST_BYTES, load_keys
from _llm.signing.sign import choose_signer, pem_signer, why_not_private

HOME = Path(__file__).resolve().parents[3]
SECRET = re.compile(rb"^-----BEGIN [A-Z ]*PRIVATE KEY( BLOCK)?-----", re.MULTILINE)


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


def make_plan(options: argparse.Namespace) -> tuple[Plan | None, list[LLMError]]:
    """Return what will be done, and everything that speaks against it."""
    for name in ("key", "public_key", "archive", "output"):
        setattr(options, name, os.path.expanduser(getattr(options, name)))
    output = Path(os.path.abspath(options.output or str(HOME / "build")))
    faults = option_faults(options, output)
    built: list[Built] = []
    tree, apptainer = None, ""
    try:
        images.need_checkout(HOME)
        tree = source.read_source(HOME, builder.epoch_of(newest_lock(HOME / "containers")))
        faults += tree_faults(tree, options.version, options.allow_dirty, options.key)
    except LLMError as error:
        faults.append(error)
    try:
        built, missing, apptainer = find_images(
            options.variant, options.base, options.cuda_architectures)
        if not options.without_missing or not built:
            faults += missing
        faults += without_sbom(built)
    except LLMError as error:
        faults.append(error)
    if not faults:
        faults += signing_faults(options, apptainer)
    if faults or not tree:
        return None, faults
    archive = Path(os.path.abspath(options.archive)) if options.archive else None
    plan = Plan(options.version, HOME, output, tree, tuple(built), archive, apptainer,
                options.key, options.signer, options.public_key)
    files.check_room(output, room(plan), "make release … OUTPUT=/folder/with/room")
    return plan, []


def option_faults(options: argparse.Namespace, output: Path) -> list[LLMError]:
    """Return what is wrong with the options themselves."""
    faults = []
    if not manifest.SEMANTIC.fullmatch(options.version):
        faults.append(LLMError(f"VERSION='{options.version}' is no semantic version",
                               "it is three numbers, and perhaps more: 1.2.0, 1.2.0-rc.1",
                               "make release VERSION=1.2.0"))
    elif os.path.lexists(folder := output / f"{manifest.NAME}-{options.version}"):
        faults.append(LLMError(f"{folder} is there already", "a release is never overwritten",
                               "choose another VERSION or OUTPUT, or remove it"))
    if options.key and options.signer:
        faults.append(LLMError("KEY and SIGNER are both given", "one of them signs the release",
                               "leave one of them out"))
    for name, path in (("KEY", options.key), ("--public-key", options.public_key)):
        if path and not os.path.isfile(path):
            why = "it is a folder" if os.path.isdir(path) else "no such file"
            faults.append(LLMError(f"{name}={path} is no file", why, "correct the path"))
    if os.path.isfile(options.key) and (why := why_not_private(options.key, "apptainer")):
        faults.append(LLMError(f"{options.key} is no private key that can be used", why,
                               "KEY is a PEM file: openssl genpkey -algorithm ed25519 -out FILE"))
    if not nearest(output).is_dir():
        faults.append(LLMError(f"OUTPUT={output} is no folder", f"{nearest(output)} is a file",
                               "correct the path"))
    if options.public_key and not (options.key or options.signer):
        faults.append(LLMError("--public-key does not sign anything", "KEY or SIGNER is missing",
                               "make release … KEY=private.pem"))
    if options.archive and not os.path.isdir(options.archive):
        faults.append(LLMError(f"ARCHIVE={options.archive} is no folder", "no such folder",
                               "make archive ARCHIVE=…, or correct the path"))
    return faults


def signing_faults(options: argparse.Namespace, apptainer: str) -> list[LLMError]:
    """Return why no signature could be made, or none that the public key would check."""
    try:
        public = load_keys([options.public_key]) if options.public_key else []
        if not (options.key or options.signer):
            return []
        who = (pem_signer(apptainer, options.key) if options.key
               else choose_signer(apptainer, options.signer))
    except LLMError as error:
        return [error]
    if public and who.fingerprint not in [key.fingerprint for key in public]:
        return [LLMError(f"--public-key {options.public_key} is not that of {who.name}",
                         f"{who.fingerprint} will sign", "name its public key, or leave it out")]
    return []


def tree_faults(
    tree: source.Source, version: str, allow_dirty: bool, key: str = "",
) -> list[LLMError]:
    """Return what keeps this tree from being released as this version. key: that will sign it."""
    faults = []
    if manifest.SEMANTIC.fullmatch(version):
        faults += source.tag_faults(HOME, version, tree.commit)
    secret = secret_files(tree, key)
    if secret:
        words = " ".join(shlex.quote(str(HOME / name)) for name in secret)
        faults.append(LLMError(
            "a private key lies in the checkout: everybody would get it with the source",
            ", ".join(map(shown, secret)), f"mv {words} ~/"))
    changes = [name for name in tree.changes if name not in secret]
    if changes and not allow_dirty:
        listed = ", ".join(shown(name) for name in changes[:5])
        more = f" and {len(changes) - 5} more" if changes[5:] else ""
        faults.append(LLMError(
            "the checkout has changes that are not committed: no release of it", listed + more,
            "git commit, or: make release … ARGS=--allow-dirty   (the manifest says so)"))
    odd = [f"{shown(name)}: {fault}" for name in tree.files
           if (fault := manifest.name_fault(name))]
    if odd:
        faults.append(LLMError("some files of the checkout can't be released", "; ".join(odd[:10]),
                               "rename them"))
    return faults


def secret_files(tree: source.Source, key: str) -> list[str]:
    """Return the files that would be released and hold a private key.

    Those of the commit are its author's affair, such as keys of tests, but for the one that signs.
    """
    own = os.path.relpath(os.path.realpath(key), HOME.resolve()) if key else ""
    found = []
    for name in tree.files:
        path = HOME / name
        if name == own:
            found.append(name)
        elif name in tree.changes and path.is_file():
            with open(path, "rb") as file:
                found += [name] if SECRET.search(file.read(MOST_BYTES)) else []
    return found


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
                odd.append(shown(short))
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
