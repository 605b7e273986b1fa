"""The host's own package settings (pip's index, folders of wheels, certificates) for a build.

uv does not read pip's configuration (seen with uv 0.13), so it gets the same as variables. Nothing
of it stays in an image.
"""

from __future__ import annotations

import configparser
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CA_VARIABLES = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
SYSTEM_FILES = ("/etc/xdg/pip/pip.conf", "/etc/pip.conf")
PROXY_VARIABLES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY",
                   "all_proxy", "ALL_PROXY")


@dataclass(frozen=True)
class PipSettings:
    """What pip is configured with: "" or empty where it is not. Folders exist on this host."""

    index: str
    extra_indexes: tuple[str, ...]
    find_links: tuple[str, ...]
    ca_bundle: str
    trusted_hosts: tuple[str, ...]
    no_index: bool = False


def read_pip_settings(
    env: Mapping[str, str], home: Path, system: Sequence[str] = SYSTEM_FILES,
) -> PipSettings:
    """Read pip's configuration files in pip's order (later wins) and its variables.

    system: files of the whole machine.

    Source of places and order: pip's documentation, "Configuration".
    """
    values: dict[str, str] = {}
    files = [*system, str(home / ".pip/pip.conf"),
             os.path.join(env.get("XDG_CONFIG_HOME") or str(home / ".config"), "pip/pip.conf")]
    if env.get("PIP_CONFIG_FILE") == os.devnull:
        files = []
    elif env.get("PIP_CONFIG_FILE"):
        files.append(env["PIP_CONFIG_FILE"])
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read(file, encoding="utf-8")
        except (OSError, configparser.Error, UnicodeDecodeError):
            continue
        for section in ("global", "install", "download"):
            if parser.has_section(section):
                values.update({k.replace("_", "-"): v for k, v in parser.items(section)})
    for name, value in env.items():
        if name.startswith("PIP_"):
            values[name[4:].lower().replace("_", "-")] = value
    bundle = next((env[name] for name in CA_VARIABLES if env.get(name)), values.get("cert", ""))
    return PipSettings(
        index=values.get("index-url", ""),
        extra_indexes=tuple(filter(_exists, _words(values.get("extra-index-url", "")))),
        find_links=tuple(filter(_exists, _words(values.get("find-links", "")))),
        ca_bundle=bundle if bundle and os.path.isfile(bundle) else "",
        trusted_hosts=tuple(_words(values.get("trusted-host", ""))),
        no_index=values.get("no-index", "").strip().lower() in ("1", "true", "yes", "on", "y", "t"),
    )


def folder_of(link: str) -> str:
    """The folder that a file:// address or a path names, "" for an address on the network."""
    if link.startswith("file://"):
        return urllib.parse.unquote(link[7:]).rstrip("/")
    return "" if re.match(r"[a-z]+://", link) else os.path.abspath(os.path.expanduser(link))


def package_environment(
    settings: PipSettings, staging: str, env: Mapping[str, str],
) -> dict[str, str]:
    """Return the variables that give pip and uv these settings.

    staging: where the staging folder is seen in a build, in which folders of wheels appear as
    `wheels/0`, `wheels/1` … and the CA bundle as `ca.pem`; "" for a program on this host.
    """
    variables: dict[str, str] = {n: env[n] for n in PROXY_VARIABLES if env.get(n)}
    seen_as = {folder: f"{staging}/wheels/{number}"
               for number, folder in enumerate(local_folders(settings))} if staging else {}

    def inside(folder: str) -> str:
        """The same folder as the build sees it."""
        parent, name = os.path.split(folder)
        return seen_as.get(folder) or (f"{seen_as[parent]}/{name}" if parent in seen_as else folder)

    links = [inside(folder_of(link)) if folder_of(link) else link for link in settings.find_links]

    def address(index: str) -> str:
        """An index as the build reaches it."""
        return f"file://{inside(folder_of(index))}" if folder_of(index) else index

    remote = [address(index) for index in settings.extra_indexes]
    if settings.no_index:
        variables["PIP_NO_INDEX"] = "1"  # uv knows only its option --no-index
    if settings.index:
        variables["PIP_INDEX_URL"] = variables["UV_DEFAULT_INDEX"] = address(settings.index)
    if remote:
        variables["PIP_EXTRA_INDEX_URL"] = variables["UV_INDEX"] = " ".join(remote)
        # pip takes the best version of all indexes; uv left alone stops at the first that knows the
        # name, and a site's mirror that has an old version hides the new ones.
        variables["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if links:
        variables["PIP_FIND_LINKS"] = " ".join(links)
        variables["UV_FIND_LINKS"] = ",".join(links)
    if settings.trusted_hosts:
        variables["PIP_TRUSTED_HOST"] = variables["UV_INSECURE_HOST"] = " ".join(
            settings.trusted_hosts)
    if settings.ca_bundle:
        for name in CA_VARIABLES:
            variables[name] = f"{staging}/ca.pem" if staging else settings.ca_bundle
    return variables


def folder_environment(folder: str) -> dict[str, str]:
    """Return the variables with which pip and uv know one folder of files and no network."""
    return {"PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder,
            "PIP_DISABLE_PIP_VERSION_CHECK": "1", "UV_NO_CONFIG": "1",
            "UV_FIND_LINKS": folder, "UV_OFFLINE": "1"}


def as_shell(variables: Mapping[str, str]) -> str:
    """Return variables as shell text that exports them."""
    return "".join(f"export {name}={_quote(value)}\n" for name, value in sorted(variables.items()))


def local_folders(settings: PipSettings) -> list[str]:
    """Folders of wheels on this host, in the order in which package_environment numbers them.

    Of an index it is the parent: its pages name files by relative links (`../../files/…`).
    """
    found = [folder_of(link) for link in settings.find_links]
    indexes = filter(_exists, [settings.index, *settings.extra_indexes])
    found += [os.path.dirname(folder_of(i)) for i in indexes if i and folder_of(i)]
    return list(dict.fromkeys(folder for folder in found if folder))


def _exists(link: str) -> bool:
    folder = folder_of(link)
    return not folder or os.path.isdir(folder)


def _words(value: str) -> list[str]:
    return value.split()


def _quote(value: str) -> str:
    return "'" + value.replace("'", "'\\''") + "'"
