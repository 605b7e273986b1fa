"""What one job leaves behind for its later starts and for its programs: a small folder of its own.

The folder is in the cache, which all nodes see. It holds which images the job began with, the stop
file that tells its programs to save and leave, and their answer that they are not finished.
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from _llm.files import write_text
from _llm.lookup import PINS
from _llm.pins import pin_images

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from _llm.settings import Settings

KEPT_SECONDS = 60 * 86400
PRUNED_EVERY_SECONDS = 86400
# Variables of one job; another one that is submitted from inside it must not inherit them. LLM_JOB
# says whose they are.
OWNER = "LLM_JOB"
VARIABLES = (
    *(OWNER, "LLM_STOP_FILE", "LLM_UNFINISHED_FILE", "LLM_DEADLINE", "LLM_RESTARTS"),
    "LLM_STOP_BEFORE",
    *("LLM_LOG_DIR", PINS, "LLM_RENDEZVOUS_PORT"),
)


class JobFolder:
    """The paths of one job and one start of it; the folder is made when something is written.

    restarts: 0 at its first start. A script may start programs several times, also side by side,
    so the files carry the id of this process.
    """

    __slots__ = ("folder", "images", "restarts", "stop_file", "unfinished_file")

    def __init__(self, folder: str, restarts: int) -> None:
        self.folder = folder
        self.restarts = restarts
        self.images = os.path.join(folder, "images")
        self.stop_file = os.path.join(folder, f"stop.r{restarts}.{os.getpid()}")
        self.unfinished_file = os.path.join(folder, f"unfinished.r{restarts}.{os.getpid()}")

    def variables(self, deadline: float | None) -> dict[str, str]:
        """Return what the programs have to know. deadline: seconds since 1970, None for none."""
        variables = {
            "LLM_STOP_FILE": self.stop_file,
            "LLM_UNFINISHED_FILE": self.unfinished_file,
            "LLM_RESTARTS": str(self.restarts),
        }
        if deadline is not None:
            variables["LLM_DEADLINE"] = f"{deadline:.0f}"
        return variables

    def make(self) -> None:
        """Make the folder; remove those of jobs long past. Raises OSError."""
        if not os.path.isdir(self.folder):
            os.makedirs(self.folder, exist_ok=True)
            _prune(os.path.dirname(self.folder))

    def request_stop(self, reason: str, deadline: float | None) -> None:
        """Write the stop file. reason: for people. Raises OSError."""
        self.make()
        write_text(self.stop_file, json.dumps({"reason": reason, "deadline": deadline}) + "\n")

    def is_unfinished(self) -> bool:
        """Say whether the program has declared that it has more to do."""
        return os.path.exists(self.unfinished_file)

    def forget_start(self) -> None:
        """Remove the files of this start, of which nobody asks any more."""
        for path in (self.stop_file, self.unfinished_file):
            with contextlib.suppress(OSError):
                os.unlink(path)


def job_folder(settings: Settings, env: Mapping[str, str]) -> JobFolder:
    """Return this job's folder. Clusters may share a cache, and job ids start again some day."""
    name = f"{env.get('SLURM_CLUSTER_NAME', 'cluster')}-{env['SLURM_JOB_ID']}"
    restarts = env.get("SLURM_RESTART_COUNT", "0")
    folder = os.path.join(settings.get("paths", "cache"), "jobs", name)
    return JobFolder(folder, int(restarts) if restarts.isdigit() else 0)


def keep_images(
    job: JobFolder, settings: Settings, env: Mapping[str, str], home: str, dry_run: bool
) -> dict[str, str]:
    """Return the variable that pins the images of this job, the same at each of its starts."""
    if env.get(PINS):  # --submit has written them into the script
        return {}
    try:
        with open(job.images, encoding="utf-8") as file:
            return {PINS: file.read()}
    except OSError:  # the first start
        pass
    pins = pin_images(settings, env, home)
    if pins and not dry_run:
        job.make()
        write_text(job.images, pins)
    return {PINS: pins} if pins else {}


def without_other_job(env: dict[str, str]) -> dict[str, str]:
    """Return `env` without the variables of a job that this one was submitted from."""
    if env.get(OWNER, env.get("SLURM_JOB_ID")) == env.get("SLURM_JOB_ID"):
        return env
    return {name: value for name, value in env.items() if name not in VARIABLES}


def _prune(parent: str) -> None:
    """Remove the folders of jobs long past, once a day: there may be thousands."""
    import shutil

    marker, now = os.path.join(parent, ".pruned"), time.time()
    try:
        if now - os.stat(marker).st_mtime < PRUNED_EVERY_SECONDS:
            return
    except OSError:
        pass
    write_text(marker, "")
    for name in os.listdir(parent):
        path = os.path.join(parent, name)
        try:
            if os.path.isdir(path) and now - os.stat(path).st_mtime > KEPT_SECONDS:
                shutil.rmtree(path, ignore_errors=True)
        except OSError:
            continue
