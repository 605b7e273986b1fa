"""Find a run record by what a user names, and read it, whoever wrote it and however damaged it is.

Fields: docs/run-records.md. Records of older versions lack some of them: every look at a record
goes through the functions here, which take a missing or wrong field for an empty one.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import dataclass
from typing import Any

from _llm.errors import LLMError
from _llm.printable import escaped

SCHEMA = 1
RECORD = "run.json"
ENDING = ".run.json"
LARGEST_BYTES = 64 << 20
PARTS = ("code", "image", "environment", "host", "slurm", "model", "adapter", "data", "metrics")


@dataclass(frozen=True)
class Record:
    """A record that was read. path: absolute. digest: of the file, `sha256:` and 64 digits."""

    path: str
    data: dict[str, Any]
    digest: str

    def part(self, name: str) -> dict[str, Any]:
        """Return an object of the record, empty where there is none."""
        found = self.data.get(name)
        return found if isinstance(found, dict) else {}

    def text(self, name: str, part: str = "") -> str:
        """Return a text, "" where there is none."""
        found = (self.part(part) if part else self.data).get(name)
        return found if isinstance(found, str) else ""


def find_record(given: str) -> str:
    """Return the absolute path of the record that `given` means.

    given: a record, a folder that has one, or a file of results. Raises LLMError.
    """
    path = os.path.abspath(os.path.expanduser(given))
    if os.path.isdir(path):
        return _in_folder(path)
    if is_record_name(os.path.basename(path)):
        if os.path.exists(path):
            return path
        raise LLMError(f"there is no run record {given}", "no such file", "check the path")
    beside = record_beside(path)
    if os.path.exists(beside):
        return beside
    if path.endswith(".json") and os.path.exists(path):  # a record under another name
        return path
    is_there = os.path.exists(path)
    raise LLMError(
        f"there is no run record of {given}" if is_there else f"there is no file {given}",
        f"no such file: {beside}",
        "a run leaves its record beside its output: name the folder, the output or the record",
    )


def is_record_name(name: str) -> bool:
    """Say whether a file of this name is a record."""
    return name == RECORD or name.endswith(ENDING)


def record_beside(output: str) -> str:
    """Return where the record of a file of results is: of a.jsonl in a.run.json."""
    folder, name = os.path.split(output)
    stem = name[: -len(".jsonl")] if name.endswith(".jsonl") else name
    return os.path.join(folder, stem + ENDING)


def read_record(path: str) -> Record:
    """Read a record. Raises LLMError where it is none."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise LLMError(
            f"the run record {path} can't be read", error.strerror or str(error), f"ls -l '{path}'"
        ) from None
    if len(content) > LARGEST_BYTES:
        raise LLMError(f"{path} is too large for a run record",
                       f"it has more than {LARGEST_BYTES >> 20} MiB", "name the run.json of a run")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        what = "it is empty" if not content.strip() else f"it is no JSON, or cut off: {error}"
        raise LLMError(
            f"{path} is no run record", " ".join(what.split()),
            "take the record from where the run wrote it; a copy may have broken off",
        ) from None
    wrong = _what_is_wrong(data)
    if wrong:
        raise LLMError(f"{path} is no run record", wrong, "name the run.json of a run")
    if data["schema"] > SCHEMA:
        raise LLMError(
            f"{path} has schema version {data['schema']}",
            f"this program knows versions up to {SCHEMA}", "read it with a newer version of this",
        )
    return Record(path, data, "sha256:" + hashlib.sha256(content).hexdigest())


def normalised(record: Record) -> dict[str, Any]:
    """Return the record with every field there, so that programs need not ask."""
    empty: dict[str, Any] = {part: {} for part in PARTS}
    empty.update(started=None, finished=None, status=None, argv=[], cwd=None, launch=None,
                 config={}, outputs=output_names(record), results={}, deterministic=None)
    for name, kind in (("code", ("commit", "dirty", "recipe", "files_sha256")),
                       ("image", ("name", "variant", "digest", "inputs"))):
        empty[name] = {**dict.fromkeys(kind), **record.part(name)}
    return {**empty, **record.data, "code": empty["code"], "image": empty["image"]}


def output_names(record: Record) -> list[str]:
    """Return the options that name what the run wrote; older records don't say."""
    named = record.data.get("outputs")
    if isinstance(named, list):
        return [name for name in named if isinstance(name, str)]
    return ["output"] if record.part("config").get("output") else []


def recipe_file(record: Record) -> tuple[str, str]:
    """Return the path of the recipe's file, relative to the checkout or absolute, and its SHA-256.

    Older records have no hash: "".
    """
    found = record.part("code").get("recipe")
    found = found if isinstance(found, dict) else {}
    path, digest = found.get("path"), found.get("sha256")
    path = path if isinstance(path, str) and path else f"recipes/{record.text('recipe')}.py"
    return path, digest if isinstance(digest, str) else ""


def inputs(record: Record) -> list[tuple[str, str, str, str]]:
    """Return (part, as given, absolute path, content) of what the run read; "" for what is unknown.

    Parts are model, adapter and data; one that has several files has a line each.
    """
    found = []
    for part in ("model", "adapter", "data"):
        fields = [_texts(record.part(part).get(name)) for name in ("path", "resolved", "content")]
        for number in range(max(map(len, fields))):
            given, path, content = (one[number] if number < len(one) else "" for one in fields)
            found.append((part, given, path, content))
    return found


def plain(value: object) -> str:
    """Return a text for a terminal: nothing in a record may move its cursor or forge a line."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return escaped(text)


def _texts(value: object) -> list[str]:
    values = value if isinstance(value, list) else [] if value is None else [value]
    return [one if isinstance(one, str) else "" for one in values]


def _what_is_wrong(data: object) -> str:
    if not isinstance(data, dict):
        return f"it holds {'a list' if isinstance(data, list) else 'one value'} and no object"
    schema, recipe = data.get("schema"), data.get("recipe")
    if "schema" not in data or "recipe" not in data:
        return "it has no 'schema' and 'recipe': some other program's JSON"
    if isinstance(schema, bool) or not isinstance(schema, int) or schema < 1:
        return f"its 'schema' is {plain(schema)[:40]} and no version"
    if not isinstance(recipe, str) or not re.fullmatch(r"[\w.+-]+(/[\w.+-]+)*", recipe) \
            or ".." in recipe:
        return f"its 'recipe' is {plain(recipe)[:80]} and no recipe's name"
    return ""


def _in_folder(folder: str) -> str:
    path = os.path.join(folder, RECORD)
    if os.path.exists(path):
        return path
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(ENDING))
    except OSError as error:
        raise LLMError(f"the folder {folder} can't be read", error.strerror or str(error),
                       f"ls -ld '{folder}'") from None
    if len(names) == 1:
        return os.path.join(folder, names[0])
    why = f"it has {', '.join(names[:5])}" if names else f"it has no {RECORD}"
    more = ", ..." if len(names) > 5 else ""
    raise LLMError(
        f"the folder {folder} has {len(names)} records" if names
        else f"the folder {folder} has no run record",
        why + more,
        "name one of them" if names else "name a folder that a run wrote, or its run.json",
    )
