"""llm-doctor on the login node and in jobs, on a whole cluster and on one with real faults.

make test-cluster ARGS="-k test_doctor"
"""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from llm_run import REPOSITORY, SMALL, Desk

from box.cluster import Cluster

DOCTOR = str(REPOSITORY / "bin" / "llm-doctor")
PRIVATE = REPOSITORY / ".tools/apptainer/usr/bin"


def findings(text: str) -> dict[str, list[dict[str, Any]]]:
    """The findings of `llm-doctor --json` by the name of their check."""
    found: dict[str, list[dict[str, Any]]] = {}
    for finding in json.loads(text)["findings"]:
        found.setdefault(finding["check"], []).append(finding)
    return found


def statuses(found: dict[str, list[dict[str, Any]]], check: str) -> list[tuple[str, str]]:
    return [(finding["node"], finding["status"]) for finding in found[check]]


def left_over(desk: Desk) -> str:
    """What a run may have left: files of ours in any folder of the user, and processes."""
    look = "find ~ /tmp /dev/shm -name '.llm-doctor-*'; pgrep -af bin/[l]lm-doctor"
    return desk.run(["srun", "--nodes=4", "sh", "-c", look]).stdout


@contextmanager
def started(desk: Desk, *command: str, user: bool = True) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on meanwhile, and ends with the test at the latest."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with desk.cluster.start(command, user=user, cwd=desk.folder, **pipes) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def as_root(cluster: Cluster, node: str, do: str, undo: str) -> Iterator[None]:
    """Break something of a node, and mend it."""
    cluster.run(["sh", "-ec", do], node=node, user=False, check=True)
    try:
        yield
    finally:
        cluster.run(["sh", "-ec", undo], node=node, user=False, check=True)


def test_on_the_login_node(desk: Desk) -> None:
    done = desk.run([DOCTOR, *SMALL, "--json"])
    found = findings(done.stdout)
    assert done.returncode == 0, done.stdout
    assert found["slurm"][0]["status"] == "ok" and "UP" in found["slurm"][0]["text"]
    assert {"research", "research-gpu"} <= set(found["partitions"][0]["data"]["partitions"])
    assert statuses(found, "start") == [("login", "ok")]
    assert "working folder" in found["binds"][0]["text"]


def test_an_unknown_partition(desk: Desk) -> None:
    done = desk.run([DOCTOR, *SMALL, "--json"], env={"LLM_SLURM_PARTITION": "reserch"})
    assert done.returncode == 1
    assert findings(done.stdout)["partitions"][0]["fix"] == "did you mean research?"


def test_four_nodes_and_the_real_image(desk: Desk) -> None:
    done = desk.run(["salloc", "--nodes=4", DOCTOR, "--job"], timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for check in ("apptainer", "image file", "start", "isolation", "binds", "torch"):
        assert [line for line in lines if line.startswith(f"ok    {check:<18} 4 nodes: ")], check
    for words in (
        "all 4 nodes resolve the names of all",
        "every node reaches every other",
        "clocks agree",
        "all 4 nodes add up numbers by gloo, in the image",
    ):
        assert words in done.stdout
    assert "0 failed" in lines[-1] and "on 4 nodes" in lines[-1]


def test_in_a_batch_script_and_in_a_step(desk: Desk) -> None:
    command = shlex.join([DOCTOR, "--job", *SMALL, "--json"])
    _, log = desk.sbatch("--nodes=2", "--ntasks=4", "--wrap", command)
    assert json.loads(log)["nodes"] == ["n1", "n2"]
    assert statuses(findings(log), "start") == [("n1", "ok"), ("n2", "ok")]
    inner = f"test $SLURM_PROCID != 0 || {command}"
    done = desk.run(["salloc", "--nodes=2", "srun", "--nodes=2", "sh", "-c", inner])
    assert statuses(findings(done.stdout), "start") == [("n1", "ok"), ("n2", "ok")], done.stderr


def test_outside_of_a_job(desk: Desk) -> None:
    done = desk.run([DOCTOR, "--job"])
    assert done.returncode == 2 and "salloc --nodes=2 llm-doctor --job" in done.stderr


def test_names_that_mean_something_else(cluster: Cluster, desk: Desk) -> None:
    wrong = "127.0.0.1 localhost\\n10.77.0.101 n1\\n127.0.1.1 n2\\n127.0.1.1 n3\\n"
    do = f"printf '{wrong}' > /tmp/hosts; mount --bind /tmp/hosts /etc/hosts"
    with as_root(cluster, "n2", do, "umount /etc/hosts; rm /tmp/hosts"):
        done = desk.run(["salloc", "--nodes=4", DOCTOR, "--job", *SMALL, "--json"])
    found = findings(done.stdout)
    assert done.returncode == 1
    assert [finding["text"].split(":")[0] for finding in found["names"]] == [
        "the name n4 can't be resolved on n2",
        "n3 means 127.0.1.1 on n2",
    ]
    assert ("n2", "warn") in statuses(found, "own name")
    assert ("n1", "ok") in statuses(found, "own name")
    # By name n2 would call itself, and nothing listens there on the port of n3.
    assert "n3 can't be reached from n2 by name" in found["connections"][0]["text"]


def test_a_firewall_between_nodes(cluster: Cluster, desk: Desk) -> None:
    # Slurm's own connections go on, to ports that are open before.
    do = "ip route add blackhole 10.77.0.103/32"
    with as_root(cluster, "n1", do, "ip route del blackhole 10.77.0.103/32"):
        done = desk.run(["salloc", "--nodelist=n1,n3,n4", DOCTOR, "--job", *SMALL, "--json"])
    found = findings(done.stdout)["connections"]
    texts = [finding["text"] for finding in found]
    assert any(text.startswith("n3 can't be reached from n1 by name") for text in texts), texts
    assert not any("n4 can't" in text for text in texts)


def test_a_node_without_a_cable(cluster: Cluster, desk: Desk) -> None:
    command = shlex.join([DOCTOR, "--job", *SMALL, "--json", "--limit", "60"])
    job = f"touch started; while [ ! -e cut ]; do sleep 0.1; done; {command}"
    with started(desk, "salloc", "--nodes=4", "--no-kill", "sh", "-c", job) as process:
        desk.cluster.wait_until((desk.folder / "started").exists, bool, 60, "the job did not start")
        cluster.cut("n3")
        desk.run("touch cut", check=True)
        out, errors = process.communicate(timeout=150)
    found = findings(out)
    assert process.returncode == 1, errors
    assert any("n3" in finding["text"] for finding in found["nodes"])
    assert statuses(found, "start") == [("n1", "ok"), ("n2", "ok"), ("n4", "ok")]


def test_gpus_that_slurm_counts_and_nobody_sees(desk: Desk) -> None:
    done = desk.run(["salloc", "--gpus=1", DOCTOR, "--job", *SMALL, "--json"])
    (found,) = findings(done.stdout)["gpu"]
    assert done.returncode == 1 and "was given GPUs here (0)" in found["text"]


def test_a_job_that_is_stopped_leaves_nothing(cluster: Cluster, desk: Desk) -> None:
    job = (
        # As soon as its files are there: it is not long busy.
        '"$0" --job & until ls .llm-doctor-* >/dev/null 2>&1; do sleep 0.05; done; '
        "kill -TERM $!; wait $!; echo $? > status; "
        # Slurm itself knows of a step's end a moment later.
        "for i in $(seq 60); do squeue --noheader --steps > steps; "
        "grep -qE 'llm-doc|srun' steps || break; sleep 0.5; done; cat steps"
    )
    out = desk.run(["salloc", "--nodes=4", "bash", "-c", job, DOCTOR], timeout=200).stdout
    assert desk.read("status").strip() == str(128 + signal.SIGTERM)
    assert not [line for line in out.splitlines() if "llm-doc" in line or "srun" in line]
    cluster.wait_until(lambda: left_over(desk), lambda text: not text, 30, "something is left")


def test_real_faults_of_folders(cluster: Cluster, desk: Desk) -> None:
    do = (
        "mkdir -p /tmp/full /tmp/closed && mount -t tmpfs -o size=2m,noexec,mode=1777 x /tmp/full"
        " && head -c 2090000 /dev/zero > /tmp/full/x && chmod 000 /tmp/closed"
    )
    with as_root(cluster, "login", do, "umount /tmp/full; rmdir /tmp/full /tmp/closed"):
        full = desk.run([DOCTOR, *SMALL, "--json"], env={"LLM_CACHE_DIR": "/tmp/full"})
        closed = desk.run([DOCTOR, *SMALL, "--json"], env={"LLM_CACHE_DIR": "/tmp/closed"})
    texts = [finding["text"] for finding in findings(full.stdout)["cache"]]
    assert full.returncode == 1 and "/tmp/full has less than 1 GiB free" in texts
    assert any("noexec" in text for text in texts)
    (found,) = findings(closed.stdout)["cache"]
    assert found["text"] == "/tmp/closed can't be written: Permission denied"


@pytest.mark.skipif(not (PRIVATE / "squashfuse").exists(), reason="no private squashfuse")
def test_a_file_system_that_hangs(cluster: Cluster, desk: Desk) -> None:
    """A FUSE server that was stopped does to a program what a dead NFS server does."""
    desk.run("mkdir files mnt; echo 1 > files/one", check=True)
    desk.run([str(PRIVATE / "mksquashfs"), "files", "files.sqsh", "-quiet"], check=True)
    mount = [str(PRIVATE / "squashfuse"), "-f", "-o", "allow_other", "files.sqsh", "mnt"]
    kill = ["sh", "-c", 'kill "-$1" $(cat id)', "sh"]
    # As root, because users would need a fusermount with root's rights.
    with started(desk, "sh", "-c", f"echo $$ > id; exec {shlex.join(mount)}", user=False):
        try:
            desk.cluster.wait_until(
                lambda: desk.run("ls mnt").stdout, lambda names: "one" in names, 60, "no mount"
            )
            cluster.run([*kill, "STOP"], user=False, cwd=desk.folder, check=True)
            # For a second the kernel knows by itself what the folder is.
            desk.cluster.wait_until(
                lambda: desk.run("timeout 3 stat mnt").returncode, lambda status: status == 124,
                60, "it does not hang",
            )  # fmt: skip
            begin = time.monotonic()
            data = {"LLM_DATA_DIR": str(desk.folder / "mnt")}
            done = desk.run([DOCTOR, *SMALL, "--json"], env=data)
            taken = time.monotonic() - begin
        finally:
            for name in ("CONT", "TERM"):
                cluster.run([*kill, name], user=False, cwd=desk.folder)
    found = findings(done.stdout)
    assert taken < 60
    assert "did not end within 10 s while looking for" in found["data"][0]["text"]
    assert found["start"][0]["status"] == "skip" and done.returncode == 1
