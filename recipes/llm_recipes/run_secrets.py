"""Secrets stay out of run records: tokens, keys and passwords of options, variables and addresses.

from llm_recipes.run_secrets import is_secret_name, without_secret, without_secrets
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HIDDEN = "***"
SECRET_WORDS = (
    *("token", "secret", "password", "passwd", "passphrase", "credential", "credentials"),
    *("api_key", "apikey", "access_key", "private_key", "secret_key", "authorization"),
)
# Where a secret is, and not the secret.
PLACES = ("file", "path", "dir", "folder")
SECRET_PREFIXES = (
    *("hf_", "sk-", "ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "nvapi-", "xoxb-", "xoxp-"),
)
# https://USER:PASSWORD@HOST; the second form is for passwords that hold a slash.
USER_OF_ADDRESS = re.compile(r"(?<=://)(?:[^/?#\s]*|[^/@:\s]*:[^@\s]*)@")
# https://HOST/FILE?token=…
QUERY = re.compile(r"([?&;][\w.-]*(?:token|secret|password|signature|key|sig)=)[^&;#\s]+", re.I)


def is_secret_name(name: str) -> bool:
    """Whether an option or a variable of this name holds a secret: HF_TOKEN, --api-key."""
    spelled = name.lower().lstrip("-").replace("-", "_")
    if spelled.rpartition("_")[2] in PLACES:
        return False
    return any(f"_{word}_" in f"_{spelled}_" for word in SECRET_WORDS)


def without_secret(argument: str) -> str:
    """An argument, or a stand-in for what in it is or names a secret."""
    name, equals, value = argument.partition("=")
    if equals and is_secret_name(name):
        return f"{name}={HIDDEN}"
    if (value or argument).startswith(SECRET_PREFIXES):
        return HIDDEN
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
    """A text whose addresses carry no user, password or token."""
    if "://" not in text:
        return text
    return QUERY.sub(rf"\g<1>{HIDDEN}", USER_OF_ADDRESS.sub(f"{HIDDEN}@", text))


def plain(value: Any, name: str = "") -> Any:
    """A value in types that JSON knows, without secrets. name: of the option or variable."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        return HIDDEN if is_secret_name(name) else without_passwords(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, name) for item in value]
    return value
