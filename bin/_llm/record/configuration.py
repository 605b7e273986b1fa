"""The recorded configuration, made ready to be given to the recipe again as --config FILE.

Outputs go to a new folder, the rest stays as it was. JSON is YAML too, with two exceptions that
PyYAML makes: a number such as 1e-05 is a text to it, and some characters must be escaped.
https://yaml.org/spec/1.1/ (5.1, and the type repository's float)
"""

from __future__ import annotations

import json
import math
import os
import re

from _llm.record.finding import GONE, OTHER, UNKNOWN, Finding
from _llm.record.reading import RECORD, Record, inputs, output_names, plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# Where a secret was: a whole value, a user of an address, a part of its query.
HIDDEN = "***"
HIDDEN_IN = re.compile(r"\*\*\*|.*(?::/{1,3}\*\*\*@|[?&;#][\w.-]+=\*\*\*).*", re.DOTALL)
# Folders in which a recipe looks for what it has computed before: a replay must compute it.
CACHES = ("cache",)
# Also what is a line break to YAML, or begins a file.
UNPRINTABLE = re.compile("[^\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd"
                         "\U00010000-\U0010ffff]")


def redirected(record: Record, folder: str, scratch: str) -> tuple[dict[str, Any], list[str]]:
    """Return the configuration with its outputs in `folder`, and the paths of these.

    A run that wrote one folder writes `folder` itself: links out of it lead to the same places.
    scratch: a folder that goes when the replay is done, for caches.
    """
    config = dict(record.part("config"))
    paths: list[str] = []
    named = [name for name in output_names(record) if config.get(name) and name not in CACHES]
    if os.path.basename(record.path) == RECORD and len(named) == 1:
        name = named[0]
        if isinstance(config[name], str):
            folder, config[name] = os.path.split(folder)
    for name in output_names(record):
        old = config.get(name)
        if name in CACHES and name in config:
            config[name] = os.path.join(scratch, name)
        elif isinstance(old, list):
            config[name] = [_moved(one, name, folder, paths) for one in old]
        elif isinstance(old, str) and old:
            config[name] = _moved(old, name, folder, paths)
    return config, paths


def working_directory(record: Record, config: dict[str, Any], extra: list[str]) -> \
        tuple[str, list[Finding]]:
    """Return the folder to run in; where the recorded one is gone, this one, with what that means.

    Changes relative paths of inputs in `config` into absolute ones where the record knows them.
    extra: options that the user gives.
    """
    here = os.getcwd()
    wanted = record.text("cwd")
    if wanted and os.path.isabs(wanted) and os.path.isdir(wanted):
        return wanted, []
    known = {given: path for _, given, path, _ in inputs(record) if given and path}
    relative = sorted(given for _, given, path, _ in inputs(record)
                      if given and not path and not os.path.isabs(os.path.expanduser(given)))
    for name, value in config.items():
        if isinstance(value, str) and value in known:
            config[name] = known[value]
        elif isinstance(value, list):
            config[name] = [known.get(one, one) if isinstance(one, str) else one for one in value]
    if not wanted:
        text = "the record has no working directory: relative paths are those from here"
        return here, [Finding("folder", UNKNOWN, text)]
    text = f"the working directory {wanted} is gone: relative paths are those from here"
    text += "".join(f", such as {one}" for one in relative[:1])
    return here, [Finding("folder", GONE if relative and not extra else UNKNOWN, text)]


def secrets_in(record: Record, config: dict[str, Any], extra: list[str]) -> list[Finding]:
    """Return the options whose values the record hides, unless the user gives them.

    They are taken out of `config`: a recipe never gets a stand-in for a secret.
    """
    named = record.data.get("config_hidden")
    if not isinstance(named, list):  # an older record
        named = [name for name, value in config.items()
                 if any(isinstance(one, str) and HIDDEN_IN.fullmatch(one)
                        for one in (value if isinstance(value, list) else [value]))]
    given = {word.partition("=")[0].lstrip("-").replace("-", "_") for word in extra}
    hidden = [name for name in named if isinstance(name, str) and name in config]
    for name in hidden:
        del config[name]
    hidden = [name for name in hidden if name not in given]
    fix = "give them again: llm-record replay RECORD -- " + " ".join(
        f"--{plain(name).replace('_', '-')} VALUE" for name in hidden)
    text = f"the record hides the secret of {', '.join(hidden)}"
    return [Finding("config", OTHER, text, fix)] if hidden else []


def as_yaml(value: object) -> str:
    """Return JSON that PyYAML reads as the same values."""
    if isinstance(value, dict):
        items = (f"{as_yaml(str(name))}: {as_yaml(item)}" for name, item in value.items())
        return "{" + ", ".join(items) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if isinstance(value, float):
        if math.isinf(value) or math.isnan(value):
            return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
        digits, e, exponent = repr(value).partition("e")
        digits += "" if "." in digits else ".0"
        return digits + (f"e{exponent}" if e else "")
    text = json.dumps(value, ensure_ascii=False)
    return UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def config_file(config: dict[str, Any]) -> str:
    """Return the text of a file for --config, an option a line."""
    lines = (f"  {as_yaml(name)}: {as_yaml(value)}" for name, value in config.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _moved(old: object, name: str, folder: str, paths: list[str]) -> object:
    if not isinstance(old, str) or not old:
        return old
    base = os.path.basename(os.path.expanduser(old).rstrip("/"))
    base = name if base in ("", ".", "..") else base
    path = os.path.join(folder, base)
    if path in paths:
        path = os.path.join(folder, f"{name}-{len(paths)}-{base}")
    paths.append(path)
    return path
