"""Values of settings: ${VARIABLES}, home folders, lists, and the checks of each kind."""

from __future__ import annotations

import os

from _llm.errors import LLMError
from _llm.suggest import hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATH_KINDS = ("path", "paths", "binds", "image", "digests")
# What a site can demand of an image before a program is started in it.
REQUIREMENTS = ("none", "signature", "digest")


def split_words(text: str) -> list[str]:
    """Split a list whose items are separated by spaces, line breaks or commas."""
    return text.replace(",", " ").split()


def expand_value(text: str, env: Mapping[str, str], values: Mapping[str, tuple[str, str]]) -> str:
    """Replace ${VARIABLE}, ${VARIABLE:-otherwise} and ${section.key} in a profile's value.

    Raises ValueError for an unset variable without `otherwise`, and for a stray $.
    """
    before, dollar, rest = text.partition("$")
    if not dollar:
        return text
    if not rest.startswith("{"):
        raise ValueError(f"'${rest[:12]}': write a variable as ${{NAME}}")
    depth, end = 0, -1
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            end = position
            break
    if end < 0:
        raise ValueError(f"'${rest}' has no closing brace")
    name, otherwise, default = rest[1:end].partition(":-")
    if name in values:
        found = values[name][0]
    elif "." in name:
        raise ValueError(f"${{{name}}} is no setting that comes before this one")
    elif env.get(name):
        found = env[name]
    elif otherwise:
        found = expand_value(default, env, values)
    else:
        raise ValueError(f"${name} is not set; write ${{{name}:-otherwise}} if it may be missing")
    return before + found + expand_value(rest[end + 1 :], env, values)


def normalize(kind: str, text: str, env: Mapping[str, str], written_in_file: bool) -> str:
    """Return a value in the form that Settings promises: ~ and relative paths made absolute.

    kind: as in settings.KEYS. written_in_file: a profile's value; there a relative path is a fault.
    Raises ValueError for a value that its kind does not allow.
    """
    text = text.strip() if written_in_file or kind not in PATH_KINDS else text
    if kind in ("words", "patterns"):
        return "\n".join(split_words(text))
    if kind == "requirement":
        return _requirement(split_words(text))
    if kind == "count" and text and not (text.isascii() and text.isdigit()):
        raise ValueError(f"'{text}' is no number from 0")
    if kind not in PATH_KINDS or not text:
        return text
    items = [text]
    if kind == "binds":
        items = text.replace(",", "\n").split("\n")
    elif kind == "digests":
        items = text.split("\n")
    elif kind == "paths":
        items = text.split("\n") if written_in_file else text.split(":")
    items = [_expand_user(item.strip() if written_in_file else item, env) for item in items if item]
    if kind == "digests":
        return "\n".join(_digest_or_path(item) for item in items)
    if kind in ("path", "paths"):
        if written_in_file and not all(item.startswith("/") for item in items):
            wrong = next(item for item in items if not item.startswith("/"))
            raise ValueError(f"'{wrong}' is no absolute path")
        items = [os.path.abspath(item) for item in items]
    return "\n".join(items)


def _requirement(words: list[str]) -> str:
    for word in words:
        if word not in REQUIREMENTS:
            raise ValueError(f"'{word}' is no requirement" + hint(word, REQUIREMENTS))
    return "\n".join(dict.fromkeys(word for word in words if word != "none")) or "none"


def _digest_or_path(item: str) -> str:
    if item.startswith("/"):
        return os.path.abspath(item)
    algorithm, _, digits = item.partition(":")
    if algorithm != "sha256" or len(digits) != 64 or digits.strip("0123456789abcdef"):
        raise ValueError(f"'{item}' is neither sha256: with 64 digits nor an absolute path")
    return item


def _expand_user(path: str, env: Mapping[str, str]) -> str:
    if path != "~" and not path.startswith("~/"):
        return path
    return user_home(env) + path[1:]


def user_home(env: Mapping[str, str]) -> str:
    """Return the user's home folder: HOME, else what the user database says."""
    home = env.get("HOME", "")
    if home.startswith("/"):
        return home.rstrip("/") or "/"
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_dir
    except KeyError:
        raise LLMError(
            "the home folder is unknown",
            f"HOME is not set and user {os.getuid()} has no entry in the user database",
            "export HOME=/path/to/your/home",
        ) from None


def check_variants(value: str, variants: Sequence[str]) -> None:
    """Raise ValueError for a word in `value` that is no variant of an image."""
    for variant in value.split():
        if variant not in variants:
            raise ValueError(f"unknown variant '{variant}'" + hint(variant, variants))
