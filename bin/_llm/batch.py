"""The batch role: what `sbatch llm-run COMMAND` runs on the first node of a job.

    sbatch --nodes=2 --gpus=2 llm-run python train.py
    sbatch --time=8:00:00 llm-run --requeue python train.py

It starts the program on every node through srun and becomes srun. With --requeue it stays: before
the time limit it tells the program to stop, and when the program left unfinished, it puts the job
back into the queue. Only the program is told; a signal of Slurm's to the whole step would end the
process behind the image's FUSE mount.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

from _llm.errors import LLMError
from _llm.job_folder import OWNER, JobFolder, job_folder, keep_images, without_other_job
from _llm.slurm import (
    ask,
    job_nodes,
    log_stem,
    need,
    scontrol_name,
    show_job,
    step_command,
    step_environment,
)
from _llm.step import plan_step

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from types import FrameType

    from _llm.options import Options
    from _llm.place import Place
    from _llm.settings import Settings
    from _llm.step import Step

# sysexits.h, EX_TEMPFAIL: "try again later". A program that leaves with it has more to do.
UNFINISHED = 75
# Seconds before the time limit at which a program that did not leave is put back all the same.
FORCE_BEFORE = 20
# Seconds that Slurm has to end this process after a requeue; between two questions to a controller
# that is away.
END_LIMIT, RETRY_SECONDS = 120, 10


def plan_batch(
    options: Options, settings: Settings, env: dict[str, str], home: str, place: Place
) -> tuple[Step, JobFolder]:
    """Decide how the job's program starts, and where its output goes."""
    env = {**without_other_job(env), OWNER: place.job}
    job = job_folder(settings, env)
    env.update(keep_images(job, settings, env, home, options.dry_run))
    if options.requeue:
        fields = _look_at_start(place.job, env)
        if fields.get("Requeue") == "0":
            _say("this job cannot be requeued here; submit it with sbatch --requeue")
        if not options.dry_run:
            job.make()
        env.update(job.variables(_end_time(fields, env)))
        env["LLM_STOP_BEFORE"] = str(options.stop_before)
    step = plan_step(options, settings, env, home, place, _log_options(options, env, job.restarts))
    return step, job


def run_resident(
    options: Options, env: dict[str, str], home: str, place: Place, step: Step, job: JobFolder
) -> int:
    """Run the program, tell it when to stop, and requeue the job where it is not finished.

    Returns the exit status of the batch script.
    """
    deadline = float(step.environment.get("LLM_DEADLINE", "inf"))
    begin = time.time()
    # A time limit may be shorter than the warning; the program has half of it at least.
    halfway = begin + (deadline - begin) / 2
    is_short = deadline - options.stop_before < halfway
    stop_at = halfway if is_short else deadline - options.stop_before
    _say(
        f"start {job.restarts + 1} of job {place.job} on {env.get('SLURM_JOB_NODELIST', '')}"
        + (f", until {_clock(deadline)}" if deadline < float("inf") else ", without a time limit")
    )
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    # The handlers come first: Slurm's warning must not find the default, which ends this process.
    for number in (signal.SIGUSR2, signal.SIGTERM):
        signal.signal(number, remember)
    import subprocess

    program = subprocess.Popen(step.arguments, env=step.environment)
    told = False
    while True:
        status = _wait(program, 0.5)
        if status is not None:
            break
        if is_short and signal.SIGUSR2 in received and time.time() < halfway:
            received.remove(signal.SIGUSR2)
            _say(f"a warning in the first half of the job waits for the other, {_clock(stop_at)}")
        reason = _reason_to_stop(received, stop_at)
        if reason and not told:
            told = True
            _tell(options, step, job, place, home, reason, deadline)
        if told and time.time() > deadline - FORCE_BEFORE and signal.SIGTERM not in received:
            _say("the program has not left; its last checkpoint has to do")
            return _requeue(options, env, job, 1, deadline, received)
    unfinished = job.is_unfinished() or status == UNFINISHED or (told and status != 0)
    job.forget_start()
    if not unfinished:
        _say("finished" if status == 0 else f"the program failed with status {status}")
        return status
    return _requeue(options, env, job, status, deadline, received)


def _wait(program: subprocess.Popen[bytes], seconds: float) -> int | None:
    import subprocess

    try:
        status = program.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    return 128 - status if status < 0 else status


def _reason_to_stop(received: list[int], stop_at: float) -> str:
    if signal.SIGTERM in received:
        return "the job is preempted or cancelled"
    if signal.SIGUSR2 in received or time.time() > stop_at:
        return "the time limit is near"
    return ""


def _tell(
    options: Options,
    step: Step,
    job: JobFolder,
    place: Place,
    home: str,
    reason: str,
    deadline: float,
) -> None:
    """Tell the programs to save and leave: by the stop file, and by a signal where asked."""
    try:
        job.request_stop(reason, deadline if deadline < float("inf") else None)
        _say(f"{reason}: told the program to save and leave")
    except OSError as error:
        # A full quota must not end what it was to save.
        _say(f"{reason}, but the program cannot be told: {job.stop_file}: {error.strerror}")
    if not options.stop_signal:
        return
    nodes = job_nodes(step.environment)
    start = step_command(need("srun", step.environment), nodes, 1, extra=["--overlap"])
    words = ["--role", "signal", "--stop-signal", options.stop_signal, "--requeue"]
    words += ["--torchrun"] if options.torchrun else []
    program = os.path.join(home, "bin", "llm-run")
    status, output, complaint = ask(
        [*start, program, *words, "--site", step.site, "--", place.job],
        step_environment(step.environment),
    )
    for line in output.splitlines():
        _say(line)
    if status:
        _say(f"the signal did not reach every node: {complaint}")


def _requeue(
    options: Options,
    env: dict[str, str],
    job: JobFolder,
    status: int,
    deadline: float,
    received: list[int],
) -> int:
    if job.restarts >= options.max_requeues:
        _say(f"unfinished after {job.restarts} requeues, which is the limit (--max-requeues)")
        return status or UNFINISHED
    name = scontrol_name(env)
    state = _retried(lambda: show_job(env["SLURM_JOB_ID"], env).get("JobState", ""), deadline)
    if state != "RUNNING":
        # Cancelled, or preempted without grace; a requeue would bring a cancelled job back to life.
        _say("the program left, unfinished; Slurm is ending this job and decides what comes next")
        return status or UNFINISHED
    _say(f"the program left, unfinished; requeue {job.restarts + 1} of {options.max_requeues}")
    complaint = _retried(lambda: _requeue_once(name, env), deadline)
    if complaint:
        _say(f"the job cannot be requeued: {complaint}. Submit it again with sbatch --requeue")
        return status or UNFINISHED
    # Slurm ends this process now. Leaving before would make the job a finished one.
    end = time.monotonic() + END_LIMIT
    while time.monotonic() < end and signal.SIGTERM not in received:
        time.sleep(0.1)
    return UNFINISHED


def _requeue_once(name: str, env: dict[str, str]) -> str:
    """Ask Slurm to requeue; return its complaint, "" for none. Raises LLMError for no answer."""
    code, _, complaint = ask([need("scontrol", env), "requeue", name], env)
    if code and ("contact" in complaint or code == 124):
        raise LLMError("Slurm does not answer", complaint)
    return complaint if code else ""


def _retried(question: Callable[[], str], deadline: float) -> str:
    """Return the answer to a question to Slurm, asked again while the controller is away.

    After the deadline, or a day, what Slurm said instead.
    """
    end = min(deadline, time.time() + 86400)
    while True:
        try:
            return question()
        except LLMError as error:
            _say(f"{error.what}: {error.why}")
            if time.time() + RETRY_SECONDS > end:
                return error.why
            time.sleep(RETRY_SECONDS)


def _log_options(options: Options, env: dict[str, str], restarts: int) -> list[str]:
    """Return srun's options for the program's own log, where --submit has named a folder for it.

    A file for each start of the job: srun would begin an existing one anew.
    """
    folder = env.get("LLM_LOG_DIR", "")
    if not folder:
        return []
    stem = log_stem(env.get("SLURM_JOB_NAME", "job"), scontrol_name(env))
    path = os.path.join(folder, f"{stem}.r{restarts}.log")
    _say(f"output of the program: {path}")
    many = job_nodes(env) * (options.tasks_per_node or 1) > 1
    # srun expands %; in a path it stands for itself.
    return ["--output=" + path.replace("%", "%%"), "--open-mode=append"] + (
        ["--label"] if many else []
    )


def _look_at_start(job: str, env: dict[str, str]) -> dict[str, str]:
    """Return what Slurm says of the job, {} when it does not answer: the program need not wait."""
    try:
        return show_job(job, env)
    except LLMError as error:
        _say(f"{error.what}: {error.why}; the time limit is unknown")
        return {}


def _end_time(fields: dict[str, str], env: dict[str, str]) -> float | None:
    """Return when Slurm will end the job, in seconds since 1970, None for never or unknown."""
    if env.get("SLURM_JOB_END_TIME", "").isdigit():
        return float(env["SLURM_JOB_END_TIME"])
    try:
        return time.mktime(time.strptime(fields.get("EndTime", ""), "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # a full disk
        print(f"llm-run: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
