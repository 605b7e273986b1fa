"""The manifest of a release: what is in the folder, and what a receiver must find there.

    sha256sum -c SHA256SUMS        # the same checksums, by hand

`manifest.json` names every file of the release by SHA-256 and size. It is read as hostile input:
a release comes over a disk or a mirror, and each name in it becomes a path.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

from _llm.printable import shown

SCHEMA = 1
NAME = "llm-recipes"
MANIFEST, SUMS, SIGNED = "manifest.json", "SHA256SUMS", "manifest.sif"
# A manifest of an archive with 20,000 inputs has 4 MB.
MOST_BYTES = 32 << 20
MOST_NAME, MOST_PATH, MOST_DIGITS = 255, 1024, 18
# https://semver.org, section 2, 9 and 10.
NUMBER = r"(?:0|[1-9]\d*)"
WORD = r"(?:0|[1-9]\d*|\d*[A-Za-z-][0-9A-Za-z-]*)"
SEMANTIC = re.compile(rf"{NUMBER}\.{NUMBER}\.{NUMBER}(?:-{WORD}(?:\.{WORD})*)?"
                      r"(?:\+[0-9A-Za-z-]+(?:\.[0-9A-Za-z-]+)*)?", re.ASCII)
HEX, PAYLOAD = re.compile(r"[0-9a-f]{64}"), re.compile(r"sha256:[0-9a-f]{64}")
LABEL = re.compile(r"[a-z0-9][a-z0-9._-]*", re.ASCII)
DAY = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
DIGEST_LENGTH = 12


@dataclass(frozen=True)
class File:
    """One file of a release. size: in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Entry:
    """One image of a release.

    file, sbom: paths in the release. payload: the digest that signatures don't change. inputs: the
    digest of what it was built from. signed_by: "" for an image that the release did not sign.
    """

    name: str
    variant: str
    file: str
    sha256: str
    size: int
    payload: str
    inputs: str
    architecture: str
    sbom: str
    signed_by: str

    @property
    def label(self) -> str:
        """Such as `llm-cpu` or `base`: the name of the link to the image."""
        return f"{self.name}-{self.variant}" if self.variant else self.name

    @property
    def file_name(self) -> str:
        """The name that the image has wherever it is installed."""
        return self.file.rpartition("/")[2]


@dataclass(frozen=True)
class Manifest:
    """A release. source: the archive of this repository. key: the public key, "" if it is unsigned.

    locks: path -> SHA-256 of the lock files. archive: the folder with the inputs of the images, ""
    without them. files: everything but manifest, checksums and their signature.
    """

    version: str
    commit: str
    dirty: bool
    day: str
    source: str
    key: str
    archive: str
    images: tuple[Entry, ...]
    locks: dict[str, str]
    files: dict[str, File]

    def folder(self) -> str:
        """Name of the release's folder, and of the folder in its source archive."""
        return f"{NAME}-{self.version}"

    def to_bytes(self) -> bytes:
        """The text of manifest.json: the same manifest, the same bytes."""
        content = {"schema": SCHEMA, "name": NAME, **asdict(self)}
        return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def sums(manifest: bytes, files: dict[str, File]) -> bytes:
    """The text of SHA256SUMS, as `sha256sum -c` reads it."""
    all_of_them = {name: file.sha256 for name, file in files.items()}
    all_of_them[MANIFEST] = hashlib.sha256(manifest).hexdigest()
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(all_of_them.items())).encode()


def name_fault(path: str) -> str:
    """Say what is wrong with the name of a file in a release, "" for a good one.

    A name leads nowhere else, stands on one line of SHA256SUMS as it is, and fits a file system.
    """
    try:
        long = len(path.encode()) > MOST_PATH
        long = long or any(len(part.encode()) > MOST_NAME for part in path.split("/"))
    except UnicodeEncodeError:
        return "it is no text"
    if long:
        return "it is too long"
    if path.startswith("/"):
        return "it is absolute"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "it leads elsewhere"
    if "\\" in path or not path.isprintable():
        return "it has a backslash or a character that can't be printed"
    return ""


def read_manifest(data: bytes) -> tuple[Manifest | None, list[str]]:
    """Return the manifest, or None and a sentence for each of its faults."""
    if len(data) > MOST_BYTES:
        return None, [f"it has {len(data)} bytes; {MOST_BYTES} are the most"]
    try:
        content = json.loads(data.decode("utf-8"), object_pairs_hook=_object, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        return None, [f"it is no JSON: {shown(str(error)) or 'nested too deep'}"]
    if not isinstance(content, dict):
        return None, ["it is no JSON object"]
    schema = content.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        return None, [f"its schema is {shown(repr(schema))}, this version reads {SCHEMA}: "
                      "import it with the version that is in the release"]
    fields = _Fields(content, "")
    manifest = Manifest(
        version=fields.text("version", SEMANTIC.fullmatch, "no semantic version"),
        commit=fields.text("commit", re.compile(r"[0-9a-f]{40}|").fullmatch, "no commit"),
        dirty=fields.of("dirty", bool, False),
        day=fields.text("day", DAY.fullmatch, "no day"),
        source=fields.text("source", _is_path, "no path"),
        key=fields.text("key", lambda text: not text or _is_path(text), "no path"),
        archive=fields.text("archive", lambda text: not text or _is_path(text), "no path"),
        images=tuple(_read_images(fields)),
        locks=_read_locks(fields),
        files=_read_files(fields),
    )
    if content.get("name") != NAME:
        fields.faults.append(f"name is {shown(repr(content.get('name')))}, not {NAME!r}")
    known = {"schema", "name", *Manifest.__dataclass_fields__}
    extra = sorted(name for name in content if name not in known)
    fields.faults += [f"unknown field {shown(name)}" for name in extra]
    faults = fields.faults or _contradictions(manifest)
    return (None, faults) if faults else (manifest, [])


class _Fields:
    """Typed reading of a JSON object; every fault is noted, with a harmless value in its place."""

    def __init__(
        self, content: dict[str, Any], where: str, faults: list[str] | None = None,
    ) -> None:
        self.content, self.where = content, where
        self.faults: list[str] = [] if faults is None else faults

    def of(self, name: str, kind: type, otherwise: Any) -> Any:
        value = self.content.get(name)
        # A bool is an int to Python, and none to JSON.
        if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
            return value
        what = "is missing" if name not in self.content else f"is no {kind.__name__}"
        self.faults.append(f"{self.where}{name} {what}")
        return otherwise

    def text(self, name: str, good: Callable[[str], Any], otherwise: str) -> str:
        value = self.content.get(name)
        if isinstance(value, str) and len(value) <= MOST_PATH and good(value):
            return value
        what = "is missing" if name not in self.content else f"is {otherwise}"
        self.faults.append(f"{self.where}{name} {what}")
        return ""


def _read_images(fields: _Fields) -> Iterable[Entry]:
    for number, item in enumerate(fields.of("images", list, []), 1):
        where = f"image {number}: "
        if not isinstance(item, dict):
            fields.faults.append(f"{where}is no object")
            continue
        of = _Fields(item, where, fields.faults)
        size = of.of("size", int, 0)
        yield Entry(
            name=of.text("name", LABEL.fullmatch, "no name of an image"),
            variant=of.text("variant", re.compile(r"[a-z0-9]*").fullmatch, "no variant"),
            file=of.text("file", _is_path, "no path in the release"),
            sha256=of.text("sha256", HEX.fullmatch, "no SHA-256"),
            size=size,
            payload=of.text("payload", PAYLOAD.fullmatch, "no digest"),
            inputs=of.text("inputs", HEX.fullmatch, "no SHA-256"),
            architecture=of.text("architecture", LABEL.fullmatch, "no architecture"),
            sbom=of.text("sbom", _is_path, "no path in the release"),
            signed_by=of.text("signed_by", str.isprintable, "no text"),
        )
        extra = sorted(set(item) - set(Entry.__dataclass_fields__))
        fields.faults += [f"{where}unknown field {shown(name)}" for name in extra]


def _read_locks(fields: _Fields) -> dict[str, str]:
    found = {}
    for path, digest in fields.of("locks", dict, {}).items():
        if isinstance(digest, str) and HEX.fullmatch(digest):
            found[path] = digest
        else:
            fields.faults.append(f"lock {shown(path)}: no SHA-256")
    return found


def _read_files(fields: _Fields) -> dict[str, File]:
    found = {}
    for path, item in fields.of("files", dict, {}).items():
        fault = name_fault(path)
        if fault or path in (MANIFEST, SUMS, SIGNED):
            fields.faults.append(f"the name of the file '{shown(path)}' is refused: "
                                 + (fault or "the release itself has that name"))
        elif not isinstance(item, dict):
            fields.faults.append(f"file {path}: is no object")
        else:
            of = _Fields(item, f"file {path}: ", fields.faults)
            found[path] = File(of.text("sha256", HEX.fullmatch, "no SHA-256"),
                               of.of("size", int, 0))
            if found[path].size < 0:
                fields.faults.append(f"file {path}: its size is negative")
    return found


def _contradictions(manifest: Manifest) -> list[str]:
    """Return what two places of a manifest say differently."""
    faults = []
    named = [manifest.source, *filter(None, [manifest.key])]
    for image in manifest.images:
        named += [image.sbom, image.file]
        wanted = f"images/{image.label}-{image.inputs[:DIGEST_LENGTH]}.sif"
        if image.file != wanted:
            faults.append(f"the image {image.label} is {image.file} and not {wanted}")
        if manifest.files.get(image.file) not in (None, File(image.sha256, image.size)):
            faults.append(f"{image.file} has two checksums or sizes")
    labels = [image.label for image in manifest.images]
    faults += [f"the image {label} is there twice"
               for label in sorted({label for label in labels if labels.count(label) > 1})]
    own = {image.file_name for image in manifest.images}
    faults += [f"the link {label}.sif has the name of an image file"
               for label in labels if f"{label}.sif" in own]
    faults += [f"{name} is not among the files" for name in named if name not in manifest.files]
    for path, digest in manifest.locks.items():
        if path not in manifest.files:
            faults.append(f"the lock {shown(path)} is not among the files")
        elif manifest.files[path].sha256 != digest:
            faults.append(f"the lock {path} has two checksums")
    # A file can't be a folder too.
    folders = {path[:at] for path in manifest.files for at, c in enumerate(path) if c == "/"}
    faults += [f"{path} is a file and a folder"
               for path in sorted(folders & {*manifest.files, MANIFEST, SUMS, SIGNED})]
    return faults


def _is_path(text: str) -> bool:
    return not name_fault(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice in one object")
    return found


def _integer(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"a number has {len(text)} digits")
    return int(text)
