"""Small releases for tests: image files without Apptainer, a checkout of a few files."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from _llm import sif
from _llm.images.catalog import Image
from _llm.releasing import plan, release
from _llm.releasing.manifest import Manifest
from _llm.releasing.source import read_source

HOSTILE = "it's; a \"folder\" ü\n2"
SBOM = b'{"bomFormat": "CycloneDX", "specVersion": "1.6", "components": []}\n'
DIGESTS = {"base": "0123456789ab" + "0" * 52, "llm": "ba9876543210" + "0" * 52}


def write_sif(path: Path, squashfs: bytes, sbom: bytes | None = SBOM, note: bytes = b"") -> Path:
    """Write an image with the four objects that builds give it. note: of a fifth, unless empty."""
    parts = [(sif.DEFINITION, b"Bootstrap: x\n", "image.def"),
             (sif.JSON, b"{}", "inspect-metadata.json")]
    if sbom is not None:
        parts.append((sif.SBOM, sbom, "sbom.cdx.json"))
    parts.append((sif.PARTITION, squashfs, "squashfs"))
    if note:
        parts.append((sif.SIGNATURE, note, ""))
    begin = sif.HEADER.size + len(parts) * sif.DESCRIPTOR.size
    at, table = begin, b""
    for number, (kind, data, name) in enumerate(parts, 1):
        table += sif.DESCRIPTOR.pack(kind, True, number, 0xF0000001, 0, at, len(data), len(data),
                                     0, 0, 0, 0, name.encode(), b"")
        at += len(data)
    head = sif.HEADER.pack(b"#!/usr/bin/env run-singularity\n", b"SIF_MAGIC\0", b"01\0", b"02\0",
                           b"i" * 16, 0, 0, 0, len(parts), sif.HEADER.size, len(table), begin,
                           at - begin)
    path.write_bytes(head + table + b"".join(data for _, data, _ in parts))
    path.chmod(0o755)
    return path


def git(folder: Path, *words: str) -> str:
    """Run git as somebody, at a fixed time."""
    env = {"PATH": "/usr/bin:/bin", "HOME": str(folder), "GIT_CONFIG_NOSYSTEM": "1"}
    for role in ("AUTHOR", "COMMITTER"):
        env.update({f"GIT_{role}_NAME": "a", f"GIT_{role}_EMAIL": "a@b",
                    f"GIT_{role}_DATE": "1767268800 +0000"})
    return subprocess.run(["git", "-C", str(folder), *words], env=env, check=True, text=True,
                          capture_output=True).stdout.strip()


def make_checkout(folder: Path) -> Path:
    """A checkout with one commit of 2026-01-01."""
    texts = {"bin/_llm/tool.sh": "#!/bin/sh\necho installed: \"$@\"\ncat \"$(dirname \"$0\")\""
             "/../../.commit\n", "containers/base/image.def": "Bootstrap: x\n",
             "containers/base/apt.lock": "# locked: 2025-12-31\n", "recipes/ü recipe.py": "x = 1\n",
             ".gitignore": "/build/\n"}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "bin/llm-run").symlink_to("_llm/tool.sh")
    (folder / "bin/_llm/tool.sh").chmod(0o755)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "all")
    return folder


def make_images(folder: Path) -> tuple[plan.Built, ...]:
    """The images base and llm-cpu."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for name, variant in (("base", ""), ("llm", "cpu")):
        image = Image(name, variant, folder, "")
        built = plan.Built(image, folder / "none", DIGESTS[name])
        path = folder / f"{built.stem}.sif"
        made.append(plan.Built(image, path, DIGESTS[name]))
        if not path.exists():
            write_sif(path, b"hsqs" + name.encode() * 5000)
    return tuple(made)


def make_plan(folder: Path, **changes: object) -> plan.Plan:
    """A release 1.2.0 of a checkout below `folder`, into `folder`/out."""
    home = folder / "checkout"
    if not home.exists():
        make_checkout(home)
    fields: dict[str, object] = {
        "version": "1.2.0", "home": home, "output": folder / "out", "source": read_source(home, 0),
        "images": make_images(folder / "images"), "archive": None, "apptainer": "", "key": "",
        "signer": "", "public_key": "", **changes}
    return plan.Plan(**fields)  # type: ignore[arg-type]


def make(folder: Path, **changes: object) -> tuple[Path, Manifest]:
    """Make a small release; return its folder and manifest."""
    wanted = make_plan(folder, **changes)
    return wanted.folder, release.make_release(wanted)


def rewrite(folder: Path, **changes: object) -> None:
    """Change fields of a manifest as somebody would who also knows SHA256SUMS."""
    import hashlib

    content = {**json.loads((folder / "manifest.json").read_text()), **changes}
    text = json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"
    lines = {name: file["sha256"] for name, file in content["files"].items()}
    lines["manifest.json"] = hashlib.sha256(text).hexdigest()
    replace(folder / "manifest.json", text)
    replace(folder / "SHA256SUMS", "".join(
        f"{digest}  {name}\n" for name, digest in sorted(lines.items())).encode())


def replace(path: Path, data: bytes) -> None:
    """Put another file in the place of one; the old one may be a hard link to an image."""
    path.unlink()
    path.write_bytes(data)
