"""A base image from a container registry: by its digest, its blobs in the archive.

A tag may name another image tomorrow, so it is asked for before each build, and the image's inputs
hold the digest. Apptainer talks to the registry (accounts, mirrors, names without a host are its
own); what it fetched is kept by hash, and the build takes it from there as an OCI image layout
(specification 1.0), without a network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from _llm.debian import sha256_of
from _llm.errors import LLMError
from _llm.files import write_text
from _llm.images import store

PREFIX = "docker://"
REFERENCES = "references"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def is_reference(base: str) -> bool:
    """Whether BASE names an image in a registry."""
    return base.startswith(PREFIX)


def pin(
    base: str, packages: store.Store, cache: Path, apptainer: str, env: Mapping[str, str],
) -> str:
    """Return the SHA-256 of the manifest that a reference names now, all its blobs in the archive.

    base: docker://NAME:TAG or docker://NAME@sha256:DIGEST; a digest that is in the archive is not
    asked for again. cache: for Apptainer's files of this reference.
    Raises LLMError where neither the registry nor the archive has it.
    """
    known = recorded(base, packages)
    if known and re.search(r"@sha256:[0-9a-f]{64}$", base):
        return known
    folder = cache / hashlib.sha256(base.encode()).hexdigest()[:16]
    folder.mkdir(parents=True, exist_ok=True)
    note, blobs = folder / "manifest", folder / "cache/blob"
    before = note.read_text().strip() if note.exists() else ""
    if not (before and members_of(before, packages)):
        shutil.rmtree(folder / "cache", ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        (blobs / "index.json").unlink()
    print(f"image: asking for {base}", file=sys.stderr, flush=True)
    words = pull(base, folder, apptainer, env)
    if words is not None:
        if not known:
            raise LLMError(f"cannot fetch {base}", words, "check the name, the network and "
                           "APPTAINER_DOCKER_USERNAME, or name an archive that has it in "
                           "LLM_ARCHIVE_DIR")
        print(f"image: note: the registry did not answer; {base} is sha256:{known[:12]}… of the "
              "archive", file=sys.stderr, flush=True)
        return known
    # Apptainer writes no index when the image that it made last time is still the one.
    if before and not (blobs / "index.json").exists():
        found = before
    else:
        found = take_in(blobs, packages, base)
        write_text(str(note), f"{found}\n")
        forget_others(folder / "cache/oci-tmp")
        shutil.rmtree(blobs, ignore_errors=True)
    if found != known:
        record(base, found, packages)
    return found


def forget_others(folder: Path) -> None:
    """Remove the images that Apptainer made before the newest: a tag may move back to one, and
    Apptainer would not say so."""
    with contextlib.suppress(OSError):
        for path in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime_ns)[:-1]:
            path.unlink()


def pull(base: str, folder: Path, apptainer: str, env: Mapping[str, str]) -> str | None:
    """Let Apptainer fetch the image; None, or its last words where it failed."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        done = subprocess.run(
            [apptainer, "pull", "--force", f"{scratch}/base.sif", base], check=False, text=True,
            errors="replace", capture_output=True, stdin=subprocess.DEVNULL,
            env={**env, "APPTAINER_CACHEDIR": str(folder), "APPTAINER_TMPDIR": scratch})
    if not done.returncode:
        return None
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return "\n       ".join(lines[-2:]) or f"apptainer pull: exit status {done.returncode}"


def take_in(blobs: Path, packages: store.Store, base: str) -> str:
    """Move an image from Apptainer's cache into the archive; return its manifest's SHA-256."""
    try:
        index = json.loads((blobs / "index.json").read_text(encoding="utf-8"))
        sha256 = _hex(index["manifests"][-1])
        manifest = json.loads((blobs / "blobs/sha256" / sha256).read_text(encoding="utf-8"))
        if "manifests" in manifest:  # of several platforms
            sha256 = _hex(next(m for m in manifest["manifests"]
                               if m.get("platform", {}).get("architecture") == "amd64"))
            manifest = json.loads((blobs / "blobs/sha256" / sha256).read_text(encoding="utf-8"))
        members = {sha256: "manifest.json", _hex(manifest["config"]): "config.json",
                   **{_hex(layer): "layer" for layer in manifest["layers"]}}
        for member, name in members.items():
            blob = blobs / "blobs/sha256" / member
            if sha256_of(blob) != member:
                raise ValueError(f"{member[:12]} has another SHA-256")
            if not store.find(packages, member, name):
                store.add(packages, blob, member, name)
    except (OSError, ValueError, KeyError, TypeError, IndexError, StopIteration) as error:
        raise LLMError(f"{base} can't be kept", f"Apptainer's copy of it is not whole: {error!r}",
                       f"rm -r '{blobs.parent.parent}', then the same command again") from None
    return sha256


def record(base: str, sha256: str, packages: store.Store) -> None:
    """Note in the user's own archive which manifest a reference named."""
    file = packages.own / REFERENCES / hashlib.sha256(base.encode()).hexdigest()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(str(file), json.dumps({"reference": base, "manifest": sha256}) + "\n")
    except OSError as error:
        raise store.not_writable(packages.own, error) from None


def recorded(base: str, packages: store.Store) -> str:
    """The manifest that a reference had when it was asked for last, "" where the archives don't
    know or don't have all of it."""
    name = hashlib.sha256(base.encode()).hexdigest()
    for folder in (packages.own, *packages.shared):
        try:
            noted = json.loads((folder / REFERENCES / name).read_text(encoding="utf-8"))
            sha256 = str(noted["manifest"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if re.fullmatch(r"[0-9a-f]{64}", sha256) and members_of(sha256, packages):
            return sha256
    return ""


def members_of(sha256: str, packages: store.Store) -> list[Path]:
    """The files of an image in the archive, the manifest first, contents checked; empty where one
    is missing."""
    manifest = store.find(packages, sha256, "manifest.json")
    if not manifest:
        return []
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))
        parts = [(_hex(found["config"]), "config.json"),
                 *((_hex(layer), "layer") for layer in found["layers"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    files = [store.find(packages, part, name) for part, name in parts]
    return [manifest, *(f for f in files if f)] if all(files) else []


def make_layout(sha256: str, packages: store.Store, folder: Path) -> str:
    """Lay an image of the archive out for Apptainer in a new folder; return BASE for it.

    Raises LLMError where the archive lost a part of it.
    """
    members = members_of(sha256, packages)
    if not members:
        raise LLMError(f"the base image sha256:{sha256[:12]}… is not whole",
                       "a file of it is missing in the archive", "the same command with a network")
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True)
    for file in members:
        try:
            os.link(file, blobs / file.parent.name)
        except OSError:  # another file system, or links are not allowed
            shutil.copyfile(file, blobs / file.parent.name)
    manifest = json.loads(members[0].read_text(encoding="utf-8"))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [{
        "mediaType": manifest.get("mediaType", MANIFEST), "digest": f"sha256:{sha256}",
        "size": members[0].stat().st_size}]}))
    return f"oci:{folder}"


def _hex(descriptor: Mapping[str, str]) -> str:
    """The SHA-256 of an OCI descriptor. Raises ValueError for another digest."""
    found = re.fullmatch(r"sha256:([0-9a-f]{64})", descriptor["digest"])
    if not found:
        raise ValueError(f"no SHA-256: {descriptor['digest']}")
    return found.group(1)
