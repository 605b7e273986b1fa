"""Which site profile applies: sites/NAME.ini by --site, LLM_SITE or the name of this host.

llm-run --site NAME --show-config
"""

from __future__ import annotations

import os

from _llm.errors import LLMError
from _llm.ini import read_profile
from _llm.suggest import nearest
from _llm.values import split_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def choose_site(env: Mapping[str, str], home: str, site: str | None) -> tuple[str, str]:
    folder = os.path.join(home, "sites")
    wanted = site if site is not None else env.get("LLM_SITE", "")
    if wanted:
        if "/" in wanted or wanted.endswith(".ini"):
            path = os.path.abspath(wanted)
            name = os.path.basename(path)
            name = name[:-4] if name.endswith(".ini") else name
        else:
            name, path = wanted, os.path.join(folder, wanted + ".ini")
        if not os.path.isfile(path):
            _refuse_site(wanted, path, folder, "--site" if site is not None else "LLM_SITE")
        return name, path
    found = [n for n in _site_names(folder) if n != "default" and _names_host(env, folder, n)]
    if len(found) > 1:
        raise LLMError(
            f"{len(found)} site profiles match this host: {', '.join(found)}",
            f"[network] hosts of each of them names {os.uname().nodename}",
            f"choose one: export LLM_SITE={found[0]}",
        )
    name = found[0] if found else "default"
    return name, os.path.join(folder, name + ".ini")


def _refuse_site(wanted: str, path: str, folder: str, source: str) -> None:
    names = _site_names(folder)
    near = nearest(wanted, names)
    raise LLMError(
        f"there is no site profile '{wanted}' ({source})",
        f"no file {path}; profiles: {', '.join(names) or 'none'}",
        f"did you mean {near}?" if near else f"choose one of them, or write {path}",
    )


def _site_names(folder: str) -> list[str]:
    try:
        return sorted(n[:-4] for n in os.listdir(folder) if n.endswith(".ini") and n[0] != ".")
    except OSError:
        return []


def _names_host(env: Mapping[str, str], folder: str, name: str) -> bool:
    # Faults of a profile that isn't chosen are none of this user's business.
    try:
        profile = read_profile(os.path.join(folder, name + ".ini"))
    except (OSError, UnicodeDecodeError):
        return False
    for entry in profile.entries:
        if (entry.section, entry.key) == ("network", "hosts"):
            host = os.uname().nodename
            names = {host, host.partition(".")[0], env.get("SLURM_CLUSTER_NAME", "")} - {""}
            patterns = split_words(entry.value)
            return any(matches(pattern, n) for pattern in patterns for n in names)
    return False


def matches(pattern: str, name: str) -> bool:
    """Say whether `name` matches `pattern` (* stands for anything), whatever the case."""
    first, *middle = pattern.lower().split("*")
    rest = name.lower()
    if not middle:
        return rest == first
    last = middle.pop()
    if len(rest) < len(first) + len(last) or not (rest.startswith(first) and rest.endswith(last)):
        return False
    rest = rest[len(first) : len(rest) - len(last)]
    for part in middle:
        _, found, rest = rest.partition(part) if part else ("", "*", rest)
        if not found:
            return False
    return True
