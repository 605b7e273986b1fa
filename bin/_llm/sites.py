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
    wanted = site if site is not None else env.get("LLM_SITE", "")
    if wanted:
        if "/" in wanted or wanted.endswith(".ini"):
            path = os.path.abspath(wanted)
            name = os.path.basename(path)
            name = name[:-4] if name.endswith(".ini") else name
        else:
            name, path = wanted, profile_path(home, wanted)
        if not os.path.isfile(path):
            _refuse_site(wanted, path, home, "--site" if site is not None else "LLM_SITE")
        return name, path
    found = [n for n in profile_names(home) if n != "default" and _names_host(env, home, n)]
    if len(found) > 1:
        raise LLMError(
            f"{len(found)} site profiles match this host: {', '.join(found)}",
            f"[network] hosts of each of them names {os.uname().nodename}",
            f"choose one: export LLM_SITE={found[0]}",
        )
    name = found[0] if found else "default"
    return name, profile_path(home, name)


def _refuse_site(wanted: str, path: str, home: str, source: str) -> None:
    names = profile_names(home)
    near = nearest(wanted, names)
    raise LLMError(
        f"there is no site profile '{wanted}' ({source})",
        f"no file {path}; profiles: {', '.join(names) or 'none'}",
        f"did you mean {near}?" if near else f"choose one of them, or write {path}",
    )


def profile_folders(home: str) -> list[str]:
    """Return where profiles are looked for: the site's own, then those that are shipped.

    In an installation sites/local leads to PREFIX/sites, which all versions share.
    """
    shipped = os.path.join(home, "sites")
    return [os.path.join(shipped, "local"), shipped]


def profile_path(home: str, name: str) -> str:
    """Return the path of a profile: of the first that there is, else where it belongs."""
    own, shipped = (os.path.join(folder, name + ".ini") for folder in profile_folders(home))
    if os.path.isfile(own):
        return own
    return own if os.path.isdir(os.path.dirname(own)) and not os.path.isfile(shipped) else shipped


def profile_names(home: str) -> list[str]:
    """Return the names of all profiles."""
    names: set[str] = set()
    for folder in profile_folders(home):
        try:
            files = os.listdir(folder)
        except OSError:
            continue
        names.update(n[:-4] for n in files if n.endswith(".ini") and n[0] != ".")
    return sorted(names)


def _names_host(env: Mapping[str, str], home: str, name: str) -> bool:
    # Faults of a profile that isn't chosen are none of this user's business.
    try:
        profile = read_profile(profile_path(home, name))
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
