"""The batch role: what `sbatch llm-run COMMAND` runs on the first node of a job.

    sbatch --nodes=2 --gpus=2 llm-run python train.py
    sbatch --time=8:00:00 llm-run --requeue python train.py

It starts the program on every node through srun and becomes srun. With --requeue it stays: before
the time limit it tells the program to stop, and when the program left unfinished, it puts the job
back into the queue. Only the program is told; a signal of Slurm's to the whole step would end the
process behind the image's FUSE mount.
"""

from __future__ import annotations

import os
import signal
import sys
import time

from _llm.job_folder import JobFolder, keep_images, open_job_folder
from _llm.slurm import ask, job_nodes, need, show_job, step_command, step_environment
from _llm.step import plan_step

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from types import FrameType

    from _llm.options import Options
    from _llm.place import Place
    from _llm.settings import Settings
    from _llm.step import Step

# sysexits.h, EX_TEMPFAIL: "try again later". A program that leaves with it has more to do.
UNFINISHED = 75
# Seconds before the time limit at which a program that did not leave is put back all the same.
FORCE_BEFORE = 20
# Seconds that Slurm has to end this process after a requeue.
END_LIMIT = 120


def plan_batch(
    options: Options, settings: Settings, env: dict[str, str], home: str, place: Place
) -> tuple[Step, JobFolder]:
    """Decide how the job's program starts, and where its output goes."""
    job = open_job_folder(settings, env)
    env = {**env, **keep_images(job, settings, env, home)}
    if options.requeue:
        env.update(job.variables(_end_time(place.job, env)))
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
    stop_at = max(deadline - options.stop_before, halfway)
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
        if signal.SIGUSR2 in received and time.time() < halfway < float("inf"):
            received.remove(signal.SIGUSR2)
        reason = _reason_to_stop(received, stop_at)
        if reason and not told:
            told = True
            _tell(options, step, job, place, home, reason, deadline)
        if told and time.time() > deadline - FORCE_BEFORE and signal.SIGTERM not in received:
            _say("the program has not left; its last checkpoint has to do")
            return _requeue(options, env, place, job, 1)
    unfinished = job.is_unfinished() or status == UNFINISHED or (told and status != 0)
    if not unfinished:
        _say("finished" if status == 0 else f"the program failed with status {status}")
        job.remove()
        return status
    return _requeue(options, env, place, job, status)


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
    job.request_stop(reason, deadline if deadline < float("inf") else None)
    _say(f"{reason}: told the program to save and leave")
    if not options.stop_signal:
        return
    nodes = job_nodes(step.environment)
    start = step_command(need("srun", step.environment), nodes, 1, extra=["--overlap"])
    words = ["--role", "signal", "--stop-signal", options.stop_signal, "--requeue"]
    words += ["--torchrun"] if options.torchrun else []
    program = os.path.join(home, "bin", "llm-run")
    site = step.arguments[step.arguments.index("--site") + 1]
    status, output, complaint = ask(
        [*start, program, *words, "--site", site, "--", place.job],
        step_environment(step.environment),
    )
    for line in output.splitlines():
        _say(line)
    if status:
        _say(f"the signal did not reach every node: {complaint}")


def _requeue(
    options: Options, env: dict[str, str], place: Place, job: JobFolder, status: int
) -> int:
    if job.restarts >= options.max_requeues:
        _say(f"unfinished after {job.restarts} requeues, which is the limit (--max-requeues)")
        return status or UNFINISHED
    if show_job(place.job, env).get("JobState") != "RUNNING":
        # Cancelled, or preempted without grace; a requeue would bring a cancelled job back to life.
        _say("the program left, unfinished; Slurm is ending this job and decides what comes next")
        return status or UNFINISHED
    _say(f"the program left, unfinished; requeue {job.restarts + 1} of {options.max_requeues}")
    code, _, complaint = ask([need("scontrol", env), "requeue", place.job], env)
    if code:
        _say(f"the job cannot be requeued: {complaint}. Submit it again with sbatch --requeue")
        return status or UNFINISHED
    # Slurm ends this process now. Leaving before would make the job a finished one.
    time.sleep(END_LIMIT)
    return UNFINISHED


def _log_options(options: Options, env: dict[str, str], restarts: int) -> list[str]:
    """Return srun's options for the program's own log, where --submit has named a folder for it.

    A file for each start of the job: srun would begin an existing one anew.
    """
    folder = env.get("LLM_LOG_DIR", "")
    if not folder:
        return []
    path = os.path.join(folder, f"{log_stem(env)}.r{restarts}.log")
    _say(f"output of the program: {path}")
    many = job_nodes(env) * (options.tasks_per_node or 1) > 1
    # srun expands %; in a path it stands for itself.
    return ["--output=" + path.replace("%", "%%"), "--open-mode=append"] + (
        ["--label"] if many else []
    )


def log_stem(env: dict[str, str]) -> str:
    """Return the beginning of the log files' names, as sbatch makes it of %x-%j or %x-%A_%a."""
    job = env.get("SLURM_JOB_ID", "")
    if env.get("SLURM_ARRAY_TASK_ID"):
        job = f"{env.get('SLURM_ARRAY_JOB_ID', job)}_{env['SLURM_ARRAY_TASK_ID']}"
    return f"{env.get('SLURM_JOB_NAME', 'job').replace('/', '_')}-{job}"


def _end_time(job: str, env: dict[str, str]) -> float | None:
    """Return when Slurm will end the job, in seconds since 1970, None for never."""
    if env.get("SLURM_JOB_END_TIME", "").isdigit():
        return float(env["SLURM_JOB_END_TIME"])
    text = show_job(job, env).get("EndTime", "")
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _say(text: str) -> None:
    print(f"llm-run: {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
