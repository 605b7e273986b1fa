"""Secrets stay out of run records: tokens, keys and passwords of options, variables and addresses.

from llm_recipes.run_secrets import is_secret_name, without_secret, without_secrets
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HIDDEN = "***"
# Words of a name that say so: HF_TOKEN, --hubtoken, MY_AUTH, password2.
SECRET_WORD = re.compile(
    r"[a-z0-9]*(?:token|secret|password|passwd|passphrase|passcode|credentials?|apikey)\d*"
    r"|o?auth|authorization|bearer|cookies?|jwt|pass"
)
SECRET_KEYS = re.compile(r"(?:^|_)(?:api|access|private|secret|auth|encryption|ssh)_key(?:_|$)")
# Where a secret is, and not the secret.
PLACES = ("file", "path", "dir", "folder")
SECRET_PREFIXES = (
    *("hf_", "sk-", "ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "nvapi-", "xoxb-", "xoxp-"),
)
# Tokens of the same makers in the middle of a text, by their lengths: hf_out is a name.
TOKEN = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{30,}|gh[a-z]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    r"|(?:sk-|glpat-|nvapi-|xox[a-z]-)(?=[\w-]*\d)[\w-]{18,}"
    r"|(?<=Bearer )(?=\S*\d)[\w.~+/-]{16,}=*)"
)
# https://USER:PASSWORD@HOST; the last form is for passwords that hold a slash. A path has but one
# slash behind the colon.
USER_OF_ADDRESS = re.compile(r"(\b[a-z][a-z0-9+.-]+:/{1,3})(?:[^/?#\s]*|[^/@:\s]*:[^@\s]*)@", re.I)
# https://HOST/FILE?token=…
QUERY = re.compile(
    r"([?&;#][\w.-]*(?:token|secret|password|signature|key|sig|auth)=)[^&;#\s]+", re.I
)


def is_secret_name(name: str) -> bool:
    """Whether an option or a variable of this name holds a secret: HF_TOKEN, --api-key."""
    words = re.sub("[^a-z0-9]+", "_", name.lower()).strip("_").split("_")
    if words[-1] in PLACES:
        return False
    return any(map(SECRET_WORD.fullmatch, words)) or bool(SECRET_KEYS.search("_".join(words)))


def without_secret(argument: str) -> str:
    """An argument, or a stand-in for what in it is or names a secret."""
    name, equals, value = argument.partition("=")
    if equals and is_secret_name(name):
        return f"{name}={HIDDEN}"
    if (value or argument).startswith(SECRET_PREFIXES):
        return HIDDEN
    if re.fullmatch(r"--?\w[\w-]*", name) and "=" in value:  # --env=HF_TOKEN=…
        return f"{name}={without_secret(value)}"
    return without_passwords(argument)


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """A command line without secrets, also where option and value are two arguments."""
    shown: list[str] = []
    expected = False
    for argument in arguments:
        value = expected and not argument.startswith("--")
        shown.append(HIDDEN if value else without_secret(argument))
        expected = argument.startswith("-") and "=" not in argument and is_secret_name(argument)
    return shown


def without_passwords(text: str) -> str:
    """A text whose addresses carry no user, password or token, and that holds no known token."""
    if ":/" in text:
        text = QUERY.sub(rf"\g<1>{HIDDEN}", USER_OF_ADDRESS.sub(rf"\g<1>{HIDDEN}@", text))
    return TOKEN.sub(HIDDEN, text)


def plain(value: Any, name: str = "", hide: bool = True) -> Any:
    """A value in types that JSON knows, without secrets.

    name: of the option or variable; all that is in a secret one is secret, but on and off. hide:
    False leaves secrets as they are.
    """
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, Mapping):
        own = is_secret_name(name)
        return {str(k): plain(item, name if own else str(k), hide) for k, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, name, hide) for item in value]
    if not hide or value is None or isinstance(value, bool):
        return value
    if is_secret_name(name):
        return HIDDEN
    return without_passwords(value) if isinstance(value, str) else value


def without_passwords_within(value: Any) -> Any:
    """A value of JSON's types whose texts are those of `without_passwords`; names don't count."""
    if isinstance(value, str):
        return without_passwords(value)
    if isinstance(value, dict):
        return {key: without_passwords_within(item) for key, item in value.items()}
    return list(map(without_passwords_within, value)) if isinstance(value, list) else value


def hidden_options(config: Mapping[str, Any]) -> list[str]:
    """The options that `plain` does not show as they are."""
    return [
        name
        for name, value in config.items()
        if plain(value, name) != plain(value, name, hide=False)
    ]
