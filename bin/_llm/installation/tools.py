"""Give an installation an Apptainer of its own, where the checkout had to unpack one.

    make install PREFIX=/apps/llm

Unpacked programs name their loader and libraries by absolute paths (see setup.py), so a copy has to
be told its own. PREFIX that was moved gets a working one by another `make install`.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

from _llm.apptainer import private_apptainer
from _llm.installation import manifest
from _llm.installation.build import PART, make_readable, remove_abandoned
from _llm.installation.layout import Layout

NOT_COPIED = shutil.ignore_patterns("doc", "info", "locale", "man", "lintian")
NAME = "apptainer"


def copy_apptainer(home: Path, layout: Layout) -> tuple[Path | None, str]:
    """Return the installation's own Apptainer, copied from the checkout `home` if need be.

    Where the checkout has none, one that is there already. None where there is neither, or where a
    copy could not work; the second value says why.
    """
    if not private_apptainer(str(home)):
        return next(filter(starts, sorted(layout.tools.glob(f"{NAME}-*"))), None), ""
    if re.search(r"\s", str(layout.tools.resolve())):
        return None, ("Apptainer does not work from a folder whose path has a space, so the "
                      "checkout's was not copied: users need one on PATH")
    source = (home / ".tools" / NAME).resolve()
    target = layout.tools / f"{NAME}-{digest_of(source)}"
    if starts(target):
        return target, ""
    from _llm.setup import ensure_debian_tool

    layout.tools.mkdir(exist_ok=True)
    part = layout.tools / f"{PART}{os.uname().nodename}-{os.getpid()}-{target.name}"
    try:
        shutil.copytree(source, part, symlinks=True, ignore=NOT_COPIED)
        make_readable(part)
        relocate(part, source, target.resolve(), ensure_debian_tool("patchelf", "usr/bin/patchelf"))
        manifest.write_manifest(part)
        if target.exists():  # PREFIX was moved: what lies there does not start
            shutil.rmtree(target)
        part.rename(target)
    except OSError:
        if not starts(target):  # else another installation was faster
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target, ""


def starts(folder: Path) -> bool:
    """Say whether an Apptainer lies where its programs look for their libraries."""
    here = folder / "here"
    return here.is_symlink() and os.readlink(here) == str(folder.resolve())


def digest_of(folder: Path) -> str:
    """Return 12 hexadecimal digits that tell one unpacked Apptainer from another."""
    digest = hashlib.sha256()
    for path in manifest.files_in(folder):
        status = path.lstat()
        digest.update(f"{path.relative_to(folder)}\0{status.st_size}\0".encode())
        digest.update(f"{int(status.st_mtime)}\n".encode())
    return digest.hexdigest()[:12]


def relocate(part: Path, old: Path, new: Path, patchelf: Path) -> None:
    """Replace the path `old` by `new` in what lies in `part` and will lie in `new`.

    Links, scripts and configuration files, and the loader and library path of programs.
    """
    for path in list(manifest.files_in(part)):
        if path.is_symlink():
            target = os.readlink(path)
            if target == str(old) or target.startswith(f"{old}/"):
                path.unlink()
                path.symlink_to(str(new) + target[len(str(old)):])
            continue
        data = path.read_bytes()
        if os.fsencode(old) not in data:
            continue
        if data[:4] != b"\x7fELF":
            path.write_bytes(data.replace(os.fsencode(old), os.fsencode(new)))
            continue
        for option in ("interpreter", "rpath"):
            value = subprocess.run([patchelf, f"--print-{option}", path], capture_output=True,
                                   text=True, check=False).stdout.strip()
            if str(old) in value:
                # DT_RPATH, as setup.py makes it: it holds for the libraries' own libraries too.
                subprocess.run([patchelf, "--force-rpath", f"--set-{option}",
                                value.replace(str(old), str(new)), path], check=True)


def remove_unused(layout: Layout) -> list[Path]:
    """Remove each Apptainer that no build uses any more; return files of others that stay."""
    remove_abandoned(layout.tools)
    used = {os.path.basename(os.readlink(link))
            for link in layout.builds.glob(f"*/.tools/{NAME}") if link.is_symlink()}
    stays: list[Path] = []
    for folder in layout.tools.glob(f"{NAME}-*"):
        if folder.name not in used:
            stays += manifest.remove_installed(folder)
    return stays
