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


# A task that ends with a status other than 0 makes srun end the others, which may still be saving.
# The shell stays, so it has to outlive the signals that its program may get; `trap :` lets the
# program have them, unlike `trap ""`.
PATIENT = """trap : TERM INT HUP USR1 USR2
"$@"
status=$?
if [ $status = 75 ] && [ -e "$LLM_STOP_FILE" ]; then
    : >> "$LLM_UNFINISHED_FILE" && exit 0
fi
exit $status
"""


def patient_command(command: list[str]) -> list[str]:
    """Return `command` with a shell around it for jobs with --requeue.

    A program that leaves with the status 75 after a request to stop becomes one that has declared
    itself unfinished and ends with 0.
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
    targets = [pid for pid, parent in _parents() if (parent if to_workers else pid) in recorded]
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
