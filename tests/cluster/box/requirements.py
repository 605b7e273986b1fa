"""What a box needs of this machine, and what of it is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from box.namespaces import subordinate_ids

PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sinfo": "slurm-client",
    "munged": "munge",
    "ip": "iproute2",
    "tc": "iproute2",
}
APT_LINE = "apt-get install --no-install-recommends " + " ".join(dict.fromkeys(PACKAGES.values()))


def missing(root: str = "") -> str:
    """Return in one sentence what this machine lacks for a box, "" when it has everything.

    root: the folder of another system that programs are taken from, "" for the host's.
    """
    if sys.platform != "linux":
        return "a cluster in a box needs Linux"
    if root and not os.path.isdir(os.path.join(root, "etc/slurm")):
        return f"{root} is no folder with Slurm in it"
    folders = [*os.environ.get("PATH", os.defpath).split(":"), "/usr/sbin", "/sbin"]
    search = ":".join(root + folder for folder in folders)
    absent = [program for program in PACKAGES if not shutil.which(program, path=search)]
    if absent:
        return f"{', '.join(absent)} not found; as root: {APT_LINE}"
    if not Path(root + "/etc/slurm").is_dir():
        return f"there is no /etc/slurm; as root: {APT_LINE}"
    if os.geteuid() != 0:
        refused = _missing_for_ordinary_users()
        if refused:
            return f"{refused}; or as root: sudo make cluster-up"
    user = ["--user", "--map-root-user"] if os.geteuid() else []
    probe = subprocess.run(
        ["unshare", *user, "--mount", "--net", "--uts", "--ipc", "--pid", "--fork", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if probe.returncode:
        return f"namespaces can't be made here: {probe.stderr.strip()}"
    return ""


def _missing_for_ordinary_users() -> str:
    absent = [program for program in ("newuidmap", "newgidmap") if not shutil.which(program)]
    if absent:
        return f"{' and '.join(absent)} not found; as root: apt-get install uidmap"
    try:
        for kind in ("uid", "gid"):
            subordinate_ids(kind)
    except (OSError, KeyError) as error:
        ids = "--add-subuids 100000-165535 --add-subgids 100000-165535"
        return f"{error}; as root: usermod {ids} NAME"
    return ""
