"""What one job leaves behind for its later starts and for its programs: a small folder of its own.

The folder is in the cache, which all nodes see. It holds which images the job began with, the stop
file that tells its programs to save and leave, and their answer that they are not finished.
"""

from __future__ import annotations

import json
import os
import time

from _llm.pins import VARIABLE as PINS
from _llm.pins import pin_images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from _llm.settings import Settings

KEPT_SECONDS = 60 * 86400
# Variables of one job; another one that is submitted from inside it must not inherit them.
VARIABLES = (
    *("LLM_JOB_DIR", "LLM_STOP_FILE", "LLM_UNFINISHED_FILE", "LLM_DEADLINE", "LLM_RESTARTS"),
    *("LLM_LOG_DIR", "LLM_PINNED_IMAGES", "LLM_RENDEZVOUS_PORT"),
)


class JobFolder:
    """The paths of one job and one start of it. restarts: 0 at its first start."""

    __slots__ = ("folder", "images", "restarts", "stop_file", "unfinished_file")

    def __init__(self, folder: str, restarts: int) -> None:
        self.folder = folder
        self.restarts = restarts
        self.images = os.path.join(folder, "images")
        self.stop_file = os.path.join(folder, f"stop.r{restarts}")
        self.unfinished_file = os.path.join(folder, f"unfinished.r{restarts}")

    def variables(self, deadline: float | None) -> dict[str, str]:
        """Return what the programs have to know. deadline: seconds since 1970, None for none."""
        variables = {
            "LLM_JOB_DIR": self.folder,
            "LLM_STOP_FILE": self.stop_file,
            "LLM_UNFINISHED_FILE": self.unfinished_file,
            "LLM_RESTARTS": str(self.restarts),
        }
        if deadline is not None:
            variables["LLM_DEADLINE"] = f"{deadline:.0f}"
        return variables

    def request_stop(self, reason: str, deadline: float | None) -> None:
        """Write the stop file. reason: for people."""
        write_text(self.stop_file, json.dumps({"reason": reason, "deadline": deadline}) + "\n")

    def remove(self) -> None:
        """Remove the folder of a job that will not start again."""
        import shutil

        shutil.rmtree(self.folder, ignore_errors=True)

    def is_unfinished(self) -> bool:
        """Say whether the program has declared that it has more to do."""
        return os.path.exists(self.unfinished_file)


def open_job_folder(settings: Settings, env: Mapping[str, str]) -> JobFolder:
    """Return this job's folder, made if need be; remove those of jobs long past."""
    parent = os.path.join(settings.get("paths", "cache"), "jobs")
    folder = os.path.join(parent, job_name(env))
    os.makedirs(folder, exist_ok=True)
    _prune(parent)
    restarts = env.get("SLURM_RESTART_COUNT", "0")
    return JobFolder(folder, int(restarts) if restarts.isdigit() else 0)


def job_name(env: Mapping[str, str]) -> str:
    """Return a name for this job that no job of another cluster has."""
    return f"{env.get('SLURM_CLUSTER_NAME', 'cluster')}-{env['SLURM_JOB_ID']}"


def keep_images(
    job: JobFolder, settings: Settings, env: Mapping[str, str], home: str
) -> dict[str, str]:
    """Return the variable that pins the images of this job, the same at each of its starts."""
    if job.restarts and not env.get(PINS):
        try:
            with open(job.images, encoding="utf-8") as file:
                return {PINS: file.read()}
        except OSError:
            pass
    pins = pin_images(settings, env, home)
    if pins:
        write_text(job.images, pins)
    return {PINS: pins} if pins else {}


def write_text(path: str, text: str) -> None:
    """Write a whole file or nothing."""
    temporary = f"{path}.{os.uname().nodename}.{os.getpid()}"
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _prune(parent: str) -> None:
    import shutil

    now = time.time()
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        try:
            if now - os.stat(path).st_mtime > KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
