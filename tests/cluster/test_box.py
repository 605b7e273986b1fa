"""The cluster in a box itself: what the other tests of this folder stand on.

make test-cluster ARGS="-k test_box"
"""

from __future__ import annotations

import ast
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from llm_run import Desk

from box.cgroups import box_folders, find_version
from box.cluster import BoxError, Cluster, clean, is_up
from box.mounts import closed_folder_above
from box.requirements import missing
from box.settings import Box
from box.state import PROGRAM


def test_nodes_are_machines_of_their_own(cluster: Cluster) -> None:
    done = cluster.run(["srun", "-N4", "hostname"])
    assert sorted(done.stdout.split()) == cluster.nodes, done.stderr
    cluster.run("touch /dev/shm/mine /tmp/mine", node="n1", check=True)
    # A checkout in /tmp is there too.
    script = "echo $(hostname) $(ls -d /dev/shm/mine /tmp/mine 2>&-)"
    seen = cluster.run(["srun", "-N4", "sh", "-c", script]).stdout
    assert sorted(seen.splitlines()) == ["n1 /dev/shm/mine /tmp/mine", *cluster.nodes[1:]]


def test_64_tasks_on_one_node(cluster: Cluster) -> None:
    done = cluster.run(["srun", "-N1", "-n64", "sh", "-c", "echo $SLURM_PROCID"])
    assert sorted(int(line) for line in done.stdout.split()) == list(range(64)), done.stderr


def submit(cluster: Cluster, *options: str, script: str = "sleep 300") -> str:
    """Submit a batch job and return its id."""
    words = ["sbatch", "--parsable", "--open-mode=append", *options, f"--wrap={script}"]
    return cluster.run(words, check=True).stdout.strip()


def test_gpus_are_counted_and_handed_out(cluster: Cluster) -> None:
    show = ["sh", "-c", "echo $CUDA_VISIBLE_DEVICES"]
    done = cluster.run(["srun", "-N2", "--gpus-per-node=2", *show])
    assert done.stdout.split() == ["0,1"] * 2, done.stderr
    first = submit(cluster, "--nodelist=n1", "--gpus-per-node=2")
    cluster.wait(first, "RUNNING")
    second = submit(cluster, "--nodelist=n1", "--gpus-per-node=1")
    time.sleep(1)
    assert cluster.job(second)["JobState"] == "PENDING"
    refused = cluster.run(["srun", "--gpus-per-node=3", "true"])
    assert refused.returncode and "not available" in refused.stderr


def test_a_dead_node_is_noticed_and_its_job_is_requeued(cluster: Cluster) -> None:
    job = submit(cluster, "--nodelist=n2", "--requeue")
    cluster.wait(job, "RUNNING")
    cluster.kill_node("n2")
    cluster.wait_node("n2", "DOWN", timeout=90)
    seen = cluster.wait(job, "PENDING")
    assert seen["Restarts"] == "1"
    with pytest.raises(BoxError, match="switched off"):
        cluster.run("true", node="n2")
    cluster.start_node("n2")
    cluster.wait_node("n2", ("IDLE", "MIXED"))  # the job may be there already
    cluster.wait(job, "RUNNING", timeout=120)


def test_a_cut_cable(cluster: Cluster) -> None:
    ping = "import socket; socket.create_connection(('n3', 6818), 2).close()"
    assert cluster.run(["python3", "-c", ping]).returncode == 0
    cluster.cut("n3")
    assert cluster.run(["python3", "-c", ping]).returncode == 1
    cluster.wait_node("n3", "DOWN", timeout=90)
    cluster.mend("n3")
    # The kernel notices a plug after a moment.
    cluster.wait_until(
        lambda: cluster.run(["python3", "-c", ping]).returncode, lambda status: status == 0,
        30, "n3 cannot be reached",
    )  # fmt: skip
    cluster.wait_node("n3", "IDLE", timeout=90)


def test_drain_and_resume(cluster: Cluster) -> None:
    cluster.drain("n4")
    job = submit(cluster, "--nodelist=n4", script="true")
    time.sleep(1)
    assert cluster.job(job)["JobState"] == "PENDING"
    cluster.resume("n4")
    cluster.wait(job, "COMPLETED", timeout=30)


def test_requeue(cluster: Cluster) -> None:
    job = submit(cluster)
    cluster.wait(job, "RUNNING")
    cluster.requeue(job)
    seen = cluster.wait_until(lambda: cluster.job(job), lambda j: j["Restarts"] == "1", 60, "no")
    assert seen["JobState"] in ("PENDING", "COMPLETING", "RUNNING")
    cluster.wait(job, "RUNNING", timeout=120)


def test_preemption_requeues(cluster: Cluster) -> None:
    job = submit(cluster, "--nodelist=n1")
    cluster.wait(job, "RUNNING")
    urgent = cluster.preempt("n1", seconds=1)
    cluster.wait(urgent, "COMPLETED")
    assert cluster.job(job)["Restarts"] == "1"
    cluster.wait(job, "RUNNING", timeout=120)


SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 5001), 60) as link:
    block = bytes(1 << 20)
    began = time.monotonic()
    for _ in range(int(sys.argv[2])):
        link.sendall(block)
    link.shutdown(socket.SHUT_WR)
    link.recv(1)
    print(int(sys.argv[2]) * 8.39 / (time.monotonic() - began))
"""
RECEIVE = """
import socket
with socket.create_server(("", 5001)) as door:
    print("ready", flush=True)
    link = door.accept()[0]
    while link.recv(1 << 20):
        pass
    link.sendall(b"x")
"""


def megabits_per_second(cluster: Cluster, sender: str, receiver: str, mebibytes: int) -> float:
    """Measure what a connection between two nodes carries."""
    with cluster.start(["python3", "-c", RECEIVE], receiver, stdout=subprocess.PIPE) as door:
        try:
            assert door.stdout and door.stdout.readline() == "ready\n"
            send = ["python3", "-c", SEND, receiver, str(mebibytes)]
            return float(cluster.run(send, sender, check=True).stdout)
        finally:
            door.kill()


def fastest(cluster: Cluster, sender: str, receiver: str, mebibytes: int, enough: float) -> float:
    """Measure up to ten times, until it is enough; return the best, in megabits per second.

    A process that waits for a CPU makes no link slower.
    """
    best = 0.0
    for _ in range(10):
        best = max(best, megabits_per_second(cluster, sender, receiver, mebibytes))
        if best > enough:
            break
    return best


def test_links_are_as_fast_as_told(cluster: Cluster) -> None:
    free = fastest(cluster, "n1", "n2", 100, 300)
    cluster.set_speed("n2", "100mbit")
    inwards = fastest(cluster, "n1", "n2", 10, 70)
    outwards = fastest(cluster, "n2", "n1", 10, 70)
    others = fastest(cluster, "n1", "n3", 100, 300)
    cluster.set_speed("n2")
    again = fastest(cluster, "n1", "n2", 100, 300)
    assert 70 < inwards < 110 and 70 < outwards < 110
    assert min(free, others, again) > 300


def test_memory_is_limited(cluster: Cluster) -> None:
    if not cluster.box.cgroups:
        pytest.skip("no control groups of the first version here")
    fill = ["python3", "-c", "import sys; x = b'x' * (int(sys.argv[1]) << 20); print(len(x) >> 20)"]
    assert cluster.run(["srun", "--mem=300", *fill, "100"]).stdout == "100\n"
    done = cluster.run(["srun", "--mem=300", *fill, "600"])
    assert done.returncode and "oom" in done.stderr.lower(), done.stderr


def test_signals_and_the_exit_status_pass(cluster: Cluster) -> None:
    assert cluster.run("exit 7").returncode == 7
    assert cluster.run("kill -9 $$").returncode == 137
    assert cluster.run(["no-such-program"]).returncode == 127
    assert cluster.run("true", cwd="/no/such/folder").returncode == 126
    text = "trap 'echo got TERM; exit 3' TERM; echo ready; while :; do sleep 0.1; done"
    process = cluster.start(text, stdout=subprocess.PIPE)
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert (process.communicate(timeout=60)[0], process.returncode) == ("got TERM\n", 3)


HOSTILE = "my; 'jobs' \"ü\" $HOME"


def test_hostile_paths_and_input(cluster: Cluster) -> None:
    folder = cluster.home / HOSTILE
    cluster.run(["mkdir", str(folder)], check=True)
    cluster.run(["tee", "a b.sh"], cwd=folder, input="#!/bin/sh\npwd\n", check=True)
    done = cluster.run(["sbatch", "--wait", "--output=o%j.txt", "a b.sh"], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [file.read_text() for file in folder.glob("o*.txt")] == [f"{folder}\n"]


@pytest.fixture
def spare(cluster: Cluster) -> Iterator[Box]:
    """Settings for one more box, beside the one of the other tests."""
    state = tempfile.mkdtemp(prefix="llm-box-spare ü;", dir="/var/tmp")
    yield Box(state=state, nodes=2, cpus=os.cpu_count() or 1, cgroups=find_version(),
              root=cluster.box.root)  # fmt: skip
    if is_up(state):
        Cluster.find(state).down()
    clean(state, everything=True)


def traces(state: str) -> list[str]:
    """What is there of a box: processes, mounts, groups; and links of this machine."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            files = [process / name for name in ("cmdline", "environ", "mountinfo")]
            data = b"".join(file.read_bytes() for file in files)
            data += os.fsencode(os.readlink(process / "cwd"))
        except OSError:
            continue
        if any(os.fsencode(name) in data for name in (state, state.replace(" ", "\\040"))):
            found.append(f"{process}: {data[:200]!r}")
    found += [folder for folder in box_folders(Box(state=state)) if os.path.isdir(folder)]
    return found + [f"link {name}" for name in os.listdir("/sys/class/net") if name != "lo"]


@pytest.mark.parametrize("victim", ["supervisor", "holder", "owner"])
def test_nothing_is_left_after_kill_9(cluster: Cluster, spare: Box, victim: str) -> None:
    before = traces("no such state")
    box = Cluster.up(spare, attached=True)
    assert box.process and box.process.stdin
    box.run(["sbatch", "--exclusive", "--nodes=2", "--wrap=srun sleep 600"], check=True)
    box.wait("1", "RUNNING")
    # Somebody who ignores every signal but the last one.
    orphan = box.run("setsid sh -c 'trap \"\" TERM HUP INT; sleep 600' >/dev/null 2>&1 &", "n1")
    assert orphan.returncode == 0
    assert len(traces(spare.state)) > len(before) + 5
    if victim == "owner":
        box.process.stdin.close()
    else:
        os.kill(box.supervisor if victim == "supervisor" else box.process.pid, signal.SIGKILL)
    box.process.wait(30)
    deadline = time.monotonic() + 30
    while is_up(spare.state) and time.monotonic() < deadline:
        time.sleep(0.05)
    if victim == "holder":  # which would have removed the groups; the next start does
        clean(spare.state)
    while traces(spare.state) != before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert traces(spare.state) == before
    again = Cluster.up(spare, attached=True)
    assert sorted(again.run(["srun", "-N2", "hostname"]).stdout.split()) == ["n1", "n2"]


def test_two_boxes_at_once(cluster: Cluster, spare: Box) -> None:
    other = Cluster.up(spare, attached=True)
    with pytest.raises(BoxError, match="already"):
        Cluster.up(spare, attached=True)
    one, two = (box.start(["srun", "-N2", "sh", "-c", "hostname; sleep 1"], stdout=subprocess.PIPE)
                for box in (cluster, other))  # fmt: skip
    for process in (one, two):
        assert sorted(process.communicate(timeout=30)[0].split()) == ["n1", "n2"]
    assert other.run(["sinfo", "-h", "-o", "%D", "-p", "research"]).stdout == "2\n"
    other.down()
    assert cluster.run(["srun", "-N4", "true"]).returncode == 0


def test_tasks_are_bound_to_cpus_that_exist(spare: Box) -> None:
    if spare.cpus < 2:
        pytest.skip("this machine has one CPU")
    box = Cluster.up(spare, attached=True)
    show = ["python3", "-c", "import os; print(os.sched_getaffinity(0))"]
    done = box.run(["srun", "-n2", "-N1", *show])
    # Which ones depends on how this machine numbers the threads of its cores.
    one, other = (ast.literal_eval(line) for line in done.stdout.splitlines())
    assert len(one) == len(other) == 1 and one != other, done
    assert one | other <= set(range(spare.cpus)), done


def box_program(*arguments: str, state: str) -> subprocess.CompletedProcess[str]:
    """Run the command line of the box."""
    return subprocess.run(
        [sys.executable, PROGRAM, "--state", state, *arguments],
        capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)  # fmt: skip


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["kill-node", "n9"], "there is no node 'n9'; nodes: login n1 n2 n3 n4"),
        (["run", "n1"], "which command?"),
        (["speed", "n1", "fast"], "fast"),
        (["configure", "LaunchParameters"], "NAME=VALUE is needed, not LaunchParameters"),
        (["requeue", "4711"], "Invalid job id"),
        (["start-node", "n1"], "n1 is running"),
        (["up"], "already"),
        (["up", "--nodes", "0", "--gpus", "-1"], "--nodes must be 1 to 100, not 0; --gpus must"),
        (["up", "--slurm", "KillWait"], "NAME=VALUE is needed, not KillWait"),
    ],
)
def test_mistakes_have_an_answer(cluster: Cluster, words: list[str], complaint: str) -> None:
    done = box_program(*words, state=cluster.box.state)
    assert (done.returncode, done.stdout) == (2, "")
    assert complaint in done.stderr and "Traceback" not in done.stderr


def test_the_command_line(cluster: Cluster) -> None:
    state = cluster.box.state
    done = box_program("run", "n2", "--", "sh", "-c", "hostname; id -un; exit 5", state=state)
    assert (done.returncode, done.stdout) == (5, "n2\nalice\n")
    assert box_program("run", "--root", "n2", "--", "id", "-u", state=state).stdout == "0\n"
    for words in (["cut", "n2"], ["mend", "n2"], ["fuse", "n2", "off"], ["drain", "n3"]):
        assert box_program(*words, state=state).returncode == 0
    seen = box_program("status", state=state).stdout
    assert "n2      up, no /dev/fuse for users\n" in seen and "drain" in seen
    assert cluster.run("test -w /dev/fuse", node="n2").returncode == 1
    assert cluster.run("test -w /dev/fuse", node="n1").returncode == 0


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "mine").touch()
    assert box_program("down", "--delete", state=str(tmp_path)).returncode == 0
    done = box_program("up", state=str(tmp_path))
    assert done.returncode == 2 and ("other things" in done.stderr or missing() in done.stderr)
    assert (tmp_path / "etc" / "mine").exists()


def test_no_box_is_no_traceback(tmp_path: Path) -> None:
    done = box_program("status", state=str(tmp_path / "none"))
    assert done.returncode == 2 and "make cluster-up" in done.stderr
    assert box_program("down", state=str(tmp_path / "none")).returncode == 0


# Makes an ordinary user with subordinate ids, for this process alone, and runs a command as him.
AS_ORDINARY_USER = r"""
set -eu
mount --make-rprivate /
cp /etc/passwd /etc/group "$1"
echo "tester:x:1234:1234::$1/home:/bin/sh" >>"$1/passwd"
echo "tester:200000:65536" >"$1/subids"
mkdir "$1/home"
chown 1234:1234 "$1/home"
mount --bind "$1/passwd" /etc/passwd
mount --bind "$1/subids" /etc/subuid
mount --bind "$1/subids" /etc/subgid
mknod -m 666 "$1/fuse" c 10 229
mount --bind "$1/fuse" /dev/fuse
export HOME="$1/home" PATH=/usr/bin:/bin:/usr/sbin:/sbin
exec setpriv --reuid=1234 --regid=1234 --clear-groups sh -c "$2" sh "$1/home/state" "$3"
"""
ROOTLESS = r"""
set -eu
box() { /usr/bin/python3 "$program" --state "$state" "$@"; }
state=$1 program=$2
box up --nodes 2
box run login -- srun -N2 sh -c 'echo "$(hostname) $(id -un) $(unshare -Ur id -u)"'
box cut n2
box speed n1 100mbit
box kill-node n2
box start-node n2
box fuse n1 off
box run n1 -- sh -c 'test -r /dev/fuse || echo no FUSE'
box fuse n1 on
box run n1 -- sh -c 'test -r /dev/fuse && echo FUSE'
box status
box down --delete
test ! -e "$state" && echo gone
"""


def test_an_ordinary_user_needs_no_root(cluster: Cluster) -> None:
    if os.geteuid() or not shutil.which("newuidmap"):
        pytest.skip("needs root, who lends an ordinary user some ids, and newuidmap")
    if closed_folder_above(PROGRAM) or not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("ordinary users can't reach this checkout, or a Python")
    with tempfile.TemporaryDirectory(prefix="llm-box-user-", dir="/var/tmp") as folder:
        os.chmod(folder, 0o755)
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", AS_ORDINARY_USER, "sh", folder, ROOTLESS, PROGRAM],
            capture_output=True, text=True, timeout=400, check=False)  # fmt: skip
    if "namespaces can't be made" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {"n1 alice 0", "n2 alice 0", "no FUSE", "FUSE", "gone"} <= set(lines), done.stdout
    assert "n1      up, link 100mbit" in lines and "n2      up" in lines


def test_lines_of_slurm_conf_can_be_changed(cluster: Cluster, desk: Desk) -> None:
    allocate, ask = "salloc --nodelist=n3 --quiet", "echo I am on $(hostname)\nexit\n"
    assert "I am on login" in desk.terminal(allocate, ask)
    cluster.configure(LaunchParameters="use_interactive_step")
    try:
        assert "I am on n3" in desk.terminal(allocate, ask)
    finally:
        cluster.configure(LaunchParameters="")
