"""The image that a record names, among the image files that are here: by what it holds.

A file's name is a hint where to look first; whether it is the image, its digest says.
"""

from __future__ import annotations

import os
import re

from _llm.errors import LLMError
from _llm.image_digest import cached_digest
from _llm.lookup import image_folders
from _llm.record.finding import GONE, OK, OTHER, UNKNOWN, Finding
from _llm.record.reading import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from _llm.settings import Settings

PAYLOAD = re.compile("sha256:[0-9a-f]{64}")
INPUTS = re.compile("[0-9a-f]{12,}")
NAME = re.compile(r"\w[\w.-]*")


def find_image(record: Record, settings: Settings, home: str) -> tuple[str, Finding]:
    """Return the path of the record's image, or of the nearest one, "" for none, and what it is."""
    label, digest, by_inputs = identity(record)
    folders = image_folders(settings, home)
    if not label:
        return _named("llm", folders), Finding(
            "image", GONE, "the record names no image: llm-run did not start the program",
            "--best-effort takes the image llm",
        )
    wanted = f"{label}-{by_inputs}.sif" if by_inputs else f"{label}.sif"
    if not digest:
        path = _named(wanted[:-4], folders) if by_inputs else ""
        text = f"{wanted}: the record has no digest of what it holds, so its name has to do"
        if path:
            return path, Finding("image", UNKNOWN, text)
        return _named(label, folders), Finding("image", GONE, f"{wanted} is not here",
                                               how_to_get(record, label, by_inputs))
    unread: list[str] = []
    cache = settings.get("paths", "cache")
    for path in candidates(record, label, wanted, folders):
        try:
            if cached_digest(path, cache) == digest:
                return path, Finding("image", OK, f"{label} {digest}: {path}")
        except LLMError as error:
            unread.append(error.what)
    other = _named(label, folders)
    if other:
        text = f"{wanted} with {digest[:19]} is not here; {os.path.basename(other)} holds another"
    else:
        text = f"{wanted} with {digest[:19]} is not here"
    text += "".join(f"; {what}" for what in unread)
    state = OTHER if other else GONE
    return other, Finding("image", state, text, how_to_get(record, label, by_inputs))


def identity(record: Record) -> tuple[str, str, str]:
    """Return label (llm-cpu), payload digest and inputs digest of the record's image, or "".

    Before records had the payload's digest, the inputs' stood in its place.
    """
    name, variant, digest, given = (record.text(field, "image")
                                    for field in ("name", "variant", "digest", "inputs"))
    if not NAME.fullmatch(name):
        return "", "", ""
    label = f"{name}-{variant}" if variant and not name.endswith(f"-{variant}") else name
    if not NAME.fullmatch(label):
        label = name
    if not given and INPUTS.fullmatch(digest):
        given = digest
    payload = digest if PAYLOAD.fullmatch(digest) else ""
    return label, payload, given if INPUTS.fullmatch(given) else ""


def candidates(record: Record, label: str, wanted: str, folders: Sequence[str]) -> list[str]:
    """Return the files to look at, those first that are likely to be the one; each file once."""
    launch = record.data.get("launch")
    given = launch.get("image") if isinstance(launch, dict) else ""
    paths = [given] if isinstance(given, str) and os.path.isabs(given) else []
    everything = []
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        everything += [os.path.join(folder, name) for name in names
                       if name.endswith(".sif") and not name.startswith(".")]

    def rank(path: str) -> int:
        name = os.path.basename(path)
        return 0 if name == wanted else 1 if name == f"{label}.sif" else 2 \
            if name.startswith(f"{label}-") else 3

    paths = [*paths, *sorted(everything, key=rank)]
    return list(dict.fromkeys(os.path.realpath(path) for path in paths if os.path.isfile(path)))


def how_to_get(record: Record, label: str, by_inputs: str) -> str:
    """Return what brings the image here."""
    name, variant = record.text("name", "image"), record.text("variant", "image")
    name = name[: -len(variant) - 1] if variant and name.endswith(f"-{variant}") else name
    make = f"make image IMAGE={name}" + (f" VARIANT={variant}" if variant else "")
    commit = record.text("commit", "code")
    at = f"in a checkout of commit {commit[:12]}: " if re.fullmatch("[0-9a-f]{40}", commit) else ""
    makes = f"    (makes {label}-{by_inputs}.sif)" if by_inputs else ""
    return f"{at}{make}{makes}\nor, from a release that has it: make import FROM=FOLDER"


def _named(name: str, folders: Sequence[str]) -> str:
    paths = (os.path.join(folder, name + ".sif") for folder in folders)
    found = next((path for path in paths if os.path.isfile(path)), "")
    if not found and name == "llm":
        found = _named("llm-cpu", folders)
    return os.path.realpath(found) if found else ""
