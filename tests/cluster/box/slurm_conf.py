"""Slurm's own files for a box: slurm.conf, gres.conf, cgroup.conf, and the hosts and users."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from box.settings import (
    CLUSTER_NAME,
    CONTROLLER,
    DEFAULT_PARTITION,
    FIXED,
    NETWORK,
    SEARCH_PATH,
    URGENT_PARTITION,
    USER,
    USER_ID,
    Box,
)

# What a job gets that doesn't ask for memory; Slurm believes that nodes have that much.
MEMORY_PER_CPU_MIB = 4096
# Short times, so that nobody waits for minutes to see a node fail or a job start again. cred_expire
# is also how long Slurm holds back a job that was requeued.
SLURM = {
    "ClusterName": CLUSTER_NAME,
    "SlurmUser": "root",
    "SlurmdUser": "root",
    "AuthType": "auth/munge",
    "AuthInfo": "cred_expire=10",
    "AccountingStorageType": "accounting_storage/none",
    "JobAcctGatherType": "jobacct_gather/none",
    "JobCompType": "jobcomp/none",
    "MpiDefault": "none",
    "SelectType": "select/cons_tres",
    "SelectTypeParameters": "CR_CPU_Memory",
    "DefMemPerCPU": str(MEMORY_PER_CPU_MIB),
    "GresTypes": "gpu",
    "ReturnToService": "2",
    "JobRequeue": "1",
    "PreemptType": "preempt/partition_prio",
    "PreemptMode": "REQUEUE",
    "SlurmdParameters": "config_overrides",
    "SchedulerType": "sched/backfill",
    "SchedulerParameters": "batch_sched_delay=0,sched_interval=2,bf_interval=2",
    "SlurmctldTimeout": "30",
    "SlurmdTimeout": "8",
    "InactiveLimit": "0",
    "MinJobAge": "3600",
    "KillWait": "5",
    "Waittime": "0",
    "MessageTimeout": "5",
    "SlurmctldDebug": "info",
    "SlurmdDebug": "info",
}


def slurm_conf(box: Box) -> str:
    """Return the text of slurm.conf."""
    lines = dict(SLURM)
    lines["SlurmctldHost"] = f"{CONTROLLER}({box.address(CONTROLLER)})"
    lines["StateSaveLocation"] = FIXED + "/slurmctld"
    lines["SlurmdSpoolDir"] = FIXED + "/spool/%n"
    lines["SlurmctldLogFile"] = FIXED + "/log/slurmctld.log"
    lines["SlurmdLogFile"] = FIXED + "/log/slurmd-%n.log"
    lines["SlurmctldPidFile"] = FIXED + "/slurmctld.pid"
    lines["SlurmdPidFile"] = FIXED + "/slurmd-%n.pid"
    lines["ProctrackType"] = "proctrack/cgroup" if box.cgroups else "proctrack/linuxproc"
    lines["TaskPlugin"] = "task/affinity,task/cgroup" if box.cgroups else "task/affinity"
    lines.update(box.slurm)
    text = "".join(f"{name}={value}\n" for name, value in lines.items() if value)
    nodes = f"n[1-{box.nodes}]" if box.nodes > 1 else "n1"
    gres = f" Gres=gpu:{box.gpus}" if box.gpus else ""
    # Tasks can't be bound to CPUs that only Slurm believes in; with --cpu-bind they still may try.
    binding = "" if has_real_cpus(box) else " CpuBind=none"
    for node in box.compute_nodes:
        text += f"NodeName={node} NodeAddr={box.address(node)} CPUs={box.cpus}"
        text += f" RealMemory={box.cpus * MEMORY_PER_CPU_MIB}{gres}{binding} State=UNKNOWN\n"
    common = f"Nodes={nodes} MaxTime=INFINITE DefaultTime=01:00:00 State=UP"
    text += f"PartitionName={DEFAULT_PARTITION} Default=YES PriorityTier=1 {common}\n"
    text += f"PartitionName={URGENT_PARTITION} PriorityTier=10 PreemptMode=OFF {common}\n"
    return text


def gres_conf(box: Box) -> str:
    """Return the text of gres.conf: fake GPUs, which are /dev/null under other names."""
    if not box.gpus:
        return ""
    last = f"[0-{box.gpus - 1}]" if box.gpus > 1 else "0"
    return f"Name=gpu File={FIXED}/fake-gpu{last}\n"


def cgroup_conf(box: Box) -> str:
    """Return the text of cgroup.conf. Devices stay unconstrained: the fake GPUs are one device."""
    if not box.cgroups:
        # Left to itself slurmd wants to use groups of the second version, and ends where it can't.
        # "disabled" is newer than Debian 12's Slurm, which leaves those of the first alone.
        return f"CgroupPlugin={'disabled' if slurm_version(box) >= (23, 11) else 'cgroup/v1'}\n"
    cores = "yes" if has_real_cpus(box) else "no"
    return f"ConstrainCores={cores}\nConstrainRAMSpace=yes\nConstrainDevices=no\n"


def slurm_version(box: Box) -> tuple[int, int]:
    """Return the first two numbers of Slurm's version, such as (22, 5)."""
    chroot = ["chroot", box.root] if box.root else []
    command = [*chroot, "slurmd", "-V"]
    environment = {**os.environ, "PATH": SEARCH_PATH}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+)\.(\d+)", done.stdout)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def has_real_cpus(box: Box) -> bool:
    """Say whether each node has the CPUs that Slurm believes in."""
    return box.cpus <= (os.cpu_count() or 1)


def hosts(box: Box) -> str:
    """Return the text of /etc/hosts."""
    text = "127.0.0.1 localhost\n::1 localhost ip6-localhost\n"
    return text + "".join(f"{box.address(n)} {n}\n" for n in [CONTROLLER, *box.all_nodes])


def users(box: Box, system: str = "/etc") -> dict[str, str]:
    """Return the texts of passwd and group: the system's, and the box's user."""
    new = {
        "passwd": f"{USER}:x:{USER_ID}:{USER_ID}:user of the box:{box.home}:/bin/bash\n",
        "group": f"{USER}:x:{USER_ID}:\n",
    }
    texts = {}
    for name, line in new.items():
        old = Path(system, name).read_text(encoding="utf-8", errors="surrogateescape")
        kept = [n for n in old.splitlines(keepends=True) if not n.startswith(f"{USER}:")]
        texts[name] = "".join(kept) + line
    return texts


def write_all(box: Box) -> None:
    """Write every file of the box's /etc to the state folder."""
    slurm = {
        "slurm.conf": slurm_conf(box),
        "gres.conf": gres_conf(box),
        "cgroup.conf": cgroup_conf(box),
    }
    others = {**users(box, box.root + "/etc"), "hosts": hosts(box)}
    others["resolv.conf"] = f"# none: {NETWORK}.0/24 is all there is\n"
    # For `sbatch --export=NONE` Slurm runs `su - alice`, which asks for the account's expiry.
    others["shadow"] = f"root:*:1::::::\n{USER}:*:1::::::\n"
    for folder, files in (("slurm", slurm), ("etc", others)):
        os.makedirs(box.path(folder), exist_ok=True)
        for name, text in files.items():
            path = Path(box.path(folder, name))
            # A new file would not be seen in the nodes, which have this one mounted.
            if path.exists() and path.read_text(encoding="utf-8", errors="surrogateescape") == text:
                continue
            temporary = path.with_name(f".{name}")
            temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
            temporary.chmod(0o600 if name == "shadow" else 0o644)
            os.replace(temporary, path)
