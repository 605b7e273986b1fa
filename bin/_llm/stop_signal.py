"""Signal the programs of a job by their process ids, and nothing else.

    llm-run --submit --requeue --stop-signal=USR1 --time=2:00:00 -- python train.py

Slurm's own step signals go to every process of the step, the one behind the image's FUSE mount
among them; it dies of them, and then the program cannot import anything any more. So each rank
writes down the id of its program on its node, and a step that shares the node reads it there.
"""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


# Around the program of a --requeue job. It turns the status 75 into the unfinished file and 0,
# because a task that ends with another status makes srun end those that are still saving. And it
# hands on signals: where Slurm finds processes by cgroups, it signals the first process of a task
# alone (cgroup.conf, SignalChildrenProcesses), and Apptainer passes that on to this shell.
PATIENT = """exec 3<&0  # a program in the background would get /dev/null
"$@" <&3 3<&- &
program=$!
for name in TERM HUP USR1 USR2; do trap "kill -$name $program" $name; done
wait $program
status=$?
while kill -0 $program 2>/dev/null; do
    wait $program
    status=$?
done
if [ $status = 75 ]; then
    : >> "$LLM_UNFINISHED_FILE" && exit 0
fi
exit $status
"""


def patient_command(command: list[str]) -> list[str]:
    """Return `command` with a shell around it for jobs with --requeue.

    A program that leaves with the status 75 becomes one that has declared itself unfinished and
    ends with 0.
    """
    return ["/bin/sh", "-c", PATIENT, "sh", *command]


def recorded_command(command: list[str], local: str, env: Mapping[str, str]) -> list[str]:
    """Return `command` with a shell before it that writes down the program's process id.

    local: this user's folder on the node; the image shows it. The shell becomes the program, and
    the image has the host's process ids.
    """
    folder = _folder(local, env.get("SLURM_JOB_ID", ""))
    os.makedirs(folder, mode=0o700, exist_ok=True)
    file = os.path.join(folder, f"{env.get('SLURM_STEP_ID', '0')}.{env.get('SLURM_PROCID', '0')}")
    return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', file, *command]


def send(name: str, local: str, job: str, to_workers: bool) -> int:
    """Send a signal to every program of a job on this node; return how many got it.

    name: without SIG. to_workers: not to the recorded processes (torchrun's agents) but to those
    that they started.
    """
    number = getattr(signal, "SIG" + name)
    recorded = set(_recorded(_folder(local, job)))
    targets = [
        pid
        for pid, parent in _parents()
        if (parent if to_workers else pid) in recorded and _is_of_job(pid, job)
    ]
    reached = 0
    for pid in targets:
        try:
            os.kill(pid, number)
            reached += 1
        except (ProcessLookupError, PermissionError):
            pass
    return reached


def _folder(local: str, job: str) -> str:
    return os.path.join(local, "programs", job)


def _recorded(folder: str) -> list[int]:
    found = []
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    for name in names:
        with open(os.path.join(folder, name), encoding="ascii", errors="replace") as file:
            text = file.read().strip()
        found += [int(text)] if text.isdigit() else []
    return found


def _is_of_job(pid: int, job: str) -> bool:
    """Say whether a process is of this job; ids of an earlier start may be others' by now."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return f"SLURM_JOB_ID={job}".encode() in file.read().split(b"\0")
    except OSError:
        return False


def _parents() -> list[tuple[int, int]]:
    """Return (process, its parent) of every process that can be seen."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                    found.append((int(name), int(file.read().rpartition(")")[2].split()[1])))
            except OSError:
                continue
    return found
