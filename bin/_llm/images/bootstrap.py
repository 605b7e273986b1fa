"""The first file tree of `base`: the locked Debian packages unpacked, not yet configured.

What debootstrap does first, without what keeps it from running as an ordinary user: it makes
devices and calls chroot, which needs a range of subordinate ids and a setuid newuidmap. Here files
are only unpacked; dpkg installs and configures the packages inside the build.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from _llm.debian import unpack

# Folders of the root that are links since Debian 12 (Debian's "usrmerge").
MERGED = ("bin", "sbin", "lib", "lib64")


def unpack_base(debs: Iterable[Path], folder: Path) -> None:
    """Unpack packages into a new folder so that dpkg can run in it.

    debs: the packages' files. The folder gets what dpkg needs before base-passwd is configured.
    """
    for name in MERGED:
        (folder / "usr" / name).mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(f"usr/{name}")
    for deb in sorted(debs):
        unpack(deb, folder)
    for name in ("passwd", "group"):
        master = folder / "usr/share/base-passwd" / f"{name}.master"
        (folder / "etc" / name).write_text(master.read_text())
    for name in ("status", "available"):
        (folder / "var/lib/dpkg" / name).touch()
    awk = folder / "usr/bin/awk"
    if not awk.exists():
        awk.symlink_to("mawk")
    for name in ("tmp", "mnt", "proc", "sys", "dev", "root", "opt"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "tmp").chmod(0o1777)
