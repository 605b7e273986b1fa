"""`llm-run --submit`: render a batch script, check everything, submit it, say how to follow it.

    llm-run --submit --gpus=1 --time=2:00:00 -- python train.py
    llm-run --submit --dry-run --nodes=2 --gpus=2 --torchrun -- train.py

The site's resources stand in the script as #SBATCH lines, what the user gave stands on sbatch's
command line: so an option beats an SBATCH_ variable, and that beats the profile, as Slurm has it.
"""

from __future__ import annotations

import os
import shlex
import sys

from _llm import visible
from _llm.binds import parse_bind
from _llm.errors import LLMError, report
from _llm.job_folder import VARIABLES
from _llm.lookup import PINS, find_image, image_folders, is_path
from _llm.pins import pin_images, wanted_image
from _llm.settings import VARIANTS
from _llm.signing.ahead import look_ahead
from _llm.slurm import ask, log_stem, need, show_job, submission_environment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from _llm.options import Options
    from _llm.settings import Settings

LOG_FOLDER = "logs"
# What Slurm says of nodes that are not there now, and of ones that never are. sbatch would take
# both, and the second kind of job would fail.
NOT_NOW = "Requested node configuration is not available"
RESOURCES = ("account", "qos", "constraint", "time")


class Job:
    """A job to submit: the batch script, sbatch's command line, the folder for its logs."""

    __slots__ = ("arguments", "log_folder", "script")

    def __init__(self, script: str, arguments: list[str], log_folder: str) -> None:
        self.script = script
        self.arguments = arguments
        self.log_folder = log_folder


def submit(options: Options, settings: Settings, env: Mapping[str, str], home: str) -> int:
    """Submit the command as a job, or with --dry-run show what would be; return an exit status."""
    clean = {n: v for n, v in submission_environment(env).items() if n not in VARIABLES}
    errors = check(options, settings, clean, home)
    job = render(options, settings, clean, home)
    errors += _make_log_folder(job.log_folder, dry_run=options.dry_run)
    sbatch = ""
    try:
        sbatch = need("sbatch", env)
    except LLMError as error:
        errors.append(error)
    refusal = _test(sbatch, job, clean) if sbatch else None
    if refusal and not (NOT_NOW in refusal.why and _nodes_are_away(env)):
        errors.append(refusal)
    if errors:
        return report("llm-run", errors)
    if refusal:
        note = "some nodes are down or drained; without them this job cannot start"
        print(f"llm-run: note: {note} (sinfo --list-reasons)", file=sys.stderr)
    if options.dry_run:
        print("# " + shlex.join(["sbatch", *job.arguments]) + " < this script")
        print(job.script, end="")
        return 0
    number, status = _submit(sbatch, job, clean)
    if "--parsable" in options.sbatch:
        print(number, flush=True)
    else:
        _tell(number, job, is_array(options), env)
    if options.follow:
        from _llm.follow import follow

        return follow(number, job.log_folder, env)
    return status


def check(
    options: Options, settings: Settings, env: Mapping[str, str], home: str
) -> list[LLMError]:
    """Return what is wrong with a job as far as this node can tell."""
    errors: list[LLMError] = []
    wanted = wanted_image(settings)
    if is_path(wanted) or not pin_images(settings, env, home):
        _collect(errors, lambda: find_image(wanted, image_folders(settings, home), VARIANTS, home))
    _collect(errors, lambda: _look_ahead(options, settings, env, home))
    binds = []
    for text in options.binds:
        try:
            binds += parse_bind(text)
        except LLMError as error:
            errors.append(error)
    _collect(errors, lambda: visible.working_directory(env, binds))
    folder = os.path.abspath(options.log_dir or LOG_FOLDER)
    if "\n" in folder or "\\" in folder:
        errors.append(
            LLMError(
                f"the log folder {folder!r} cannot be used",
                "a #SBATCH line has no way to write a line break or a backslash",
                "llm-run --submit --log-dir /another/folder ... -- COMMAND",
            )
        )
    if options.follow and is_array(options):
        errors.append(
            LLMError(
                "--follow follows one job, and --array makes several",
                "their output would be mixed",
                f"submit without --follow, then: tail -F {LOG_FOLDER}/*.log",
            )
        )
    return errors


def _look_ahead(
    options: Options, settings: Settings, env: Mapping[str, str], home: str
) -> None:
    """Raise LLMError for images that the site does not allow. Nothing is read without need."""
    has_gpus = asks_for_gpus(options.sbatch)
    for notice in look_ahead(options, settings, env, home, has_gpus, several=False):
        print(f"llm-run: note: {notice}", file=sys.stderr)


def is_array(options: Options) -> bool:
    """Say whether a job array is asked for."""
    return any(word.startswith(("--array", "-a")) for word in options.sbatch)


def render(options: Options, settings: Settings, env: Mapping[str, str], home: str) -> Job:
    """Return the job: its script holds all that must not change while it waits in the queue."""
    name = job_title(options.command)
    folder = os.path.abspath(options.log_dir or LOG_FOLDER)
    log_name = "%x-%A_%a.log" if is_array(options) else "%x-%j.log"
    lines = [
        f"--job-name={name}",
        # sbatch expands %; in a path it stands for itself.
        "--output=" + os.path.join(folder.replace("%", "%%"), log_name),
        "--open-mode=append",
    ]
    partition = settings.get("slurm", "partition")
    if asks_for_gpus(options.sbatch):
        partition = settings.get("slurm", "gpu_partition") or partition
    lines += [f"--partition={partition}"] if partition else []
    for key in RESOURCES:
        value = settings.get("slurm", key)
        lines += [f"--{key}={value}"] if value else []
    lines += settings.items("slurm", "options")
    if options.tasks_per_node:
        lines.append(f"--ntasks-per-node={options.tasks_per_node}")
    if options.requeue:
        lines += ["--requeue", f"--signal=B:USR2@{options.stop_before}"]
    modules = settings.items("modules", "names")
    script = ["#!/bin/bash -l" if modules else "#!/bin/sh"]
    script += ["#SBATCH " + quoted(line) for line in lines]
    script.append(f"# written by llm-run --submit; {home}")
    if options.requeue:
        # With a time limit as short as the warning, Slurm's signal may come before llm-run listens,
        # and would end the job. It reckons the time itself.
        script.append("trap '' USR2")
    if modules:
        # A login shell, because only that knows `module`.
        script.append(f"module load {shlex.join(modules)} || exit 2")
    script.append(f"export LLM_LOG_DIR={shlex.quote(folder)}")
    pins = pin_images(settings, env, home)
    if pins:
        script.append(f"export {PINS}={shlex.quote(pins)}")
    command = [os.path.join(home, "bin", "llm-run"), "--site", settings.site_file]
    command += ["--image", wanted_image(settings), *options.words()]
    if options.tasks_per_node:
        command += ["--tasks-per-node", str(options.tasks_per_node)]
    script.append("exec " + shlex.join([*command, "--", *options.command]))
    return Job("\n".join(script) + "\n", list(options.sbatch), folder)


def quoted(option: str) -> str:
    """Return an option as sbatch reads it in a #SBATCH line: quotes as in a shell, # a comment."""
    if not any(character in option for character in " \t\"'\\#"):
        return option
    name, equals, value = option.partition("=")
    value = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'{name}{equals}"{value}"'


def asks_for_gpus(words: list[str]) -> bool:
    """Say whether options of sbatch ask for GPUs."""
    text = " ".join(words)
    return any(w.startswith(("--gpus", "-G")) for w in words) or (
        "gpu" in text and any(w.startswith(("--gres", "--tres-per")) for w in words)
    )


def job_title(command: list[str]) -> str:
    """Return a job name from a command: the script that python runs, else the program."""
    word = command[0]
    if os.path.basename(word) in ("python", "python3", "bash", "sh"):
        scripts = [other for other in command[1:] if not other.startswith("-")]
        word = scripts[0] if scripts and " " not in scripts[0] else word
    stem = os.path.basename(word.rstrip("/")).partition(".")[0]
    name = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "_" for c in stem)
    return name[:40] or "job"


def _make_log_folder(folder: str, dry_run: bool) -> list[LLMError]:
    """Make the folder: Slurm ends a job whose log it cannot open, without a word."""
    try:
        if not dry_run:
            os.makedirs(folder, exist_ok=True)
        parent = folder
        while not os.path.isdir(parent):
            if os.path.lexists(parent):
                raise NotADirectoryError(20, f"{parent} is no folder")
            parent = os.path.dirname(parent)
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(13, f"{parent} is not writable for you")
    except OSError as error:
        return [
            LLMError(
                f"the log folder {folder} cannot be used",
                error.strerror or str(error),
                "llm-run --submit --log-dir /path/with/room ... -- COMMAND",
            )
        ]
    return []


def _test(sbatch: str, job: Job, env: Mapping[str, str]) -> LLMError | None:
    """Let Slurm check the job without submitting it; return what it has against it."""
    status, _, complaint = ask([sbatch, "--test-only", *job.arguments], env, job.script)
    if not status:
        return None
    said = [line.partition("error: ")[2] or line for line in complaint.splitlines()]
    return LLMError(
        "Slurm would not accept this job",
        "\n       ".join(dict.fromkeys(line for line in said if line)) or f"status {status}",
        "sinfo shows partitions and nodes; llm-run --submit --dry-run ... shows the script",
    )


def _nodes_are_away(env: Mapping[str, str]) -> bool:
    """Say whether nodes of the cluster cannot be used at present."""
    states = "--states=down,drain,fail,maint,reserved"
    _, output, _ = ask([need("sinfo", env), "--noheader", states, "--format=%n"], env)
    return bool(output.strip())


def _submit(sbatch: str, job: Job, env: Mapping[str, str]) -> tuple[str, int]:
    """Submit the job; return its id and, of `sbatch --wait`, its exit status.

    Raises LLMError when Slurm refuses it.
    """
    words = [word for word in job.arguments if word != "--parsable"]
    # sbatch --wait stays until the job is over.
    status, output, complaint = ask([sbatch, "--parsable", *words], env, job.script, limit=None)
    number = output.strip().partition(";")[0]
    if not number.isdigit():
        raise LLMError(
            "Slurm did not accept the job",
            complaint or output.strip() or f"sbatch: status {status}",
            "sinfo shows partitions and nodes; llm-run --submit --dry-run ... shows the script",
        )
    if complaint:
        print(complaint, file=sys.stderr)
    return number, status


def _tell(number: str, job: Job, array: bool, env: Mapping[str, str]) -> None:
    print(f"Submitted batch job {number}")
    try:
        fields = show_job(number, env)
    except LLMError:  # it is submitted, whatever the controller does now
        fields = {}
    log = os.path.join(job.log_folder, log_stem(fields.get("JobName", "NAME"), number))
    first, program = fields.get("StdOut", f"{log}.log"), f"{log}.r0.log"
    if array:
        # Their names begin with the array's id; quoted, the shell would not find them.
        first, program = f"{log}_N.log", f"{log}_N.r0.log"
        watched = f"{shlex.quote(log)}_*.log"
    else:
        watched = shlex.join([first, program])
    print(f"  log:     {first} (the job), {program} (the program)")
    print(f"  follow:  tail -F {watched}")
    print(f"  state:   squeue --jobs={number}      end it: scancel {number}", flush=True)


def _collect(errors: list[LLMError], step: object) -> None:
    try:
        step()  # type: ignore[operator]
    except LLMError as error:
        errors.append(error)
