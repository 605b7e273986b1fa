"""What llm-run prints for people: help, version, settings, the command line of a dry run."""

from __future__ import annotations

import shlex

from _llm.commit import has_changes, read_commit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from _llm.rank import Plan
    from _llm.settings import Settings
    from _llm.step import Step

UNSET_BY_THE_STUB = {"LD_AUDIT", "LD_LIBRARY_PATH", "LD_PRELOAD"}
USAGE = """\
usage: llm-run [OPTION...] [--] COMMAND [ARGUMENT...]
       llm-run --submit [OPTION...] [OPTION OF SBATCH...] -- COMMAND [ARGUMENT...]

  llm-run python train.py     run train.py in the image, with everything that it brings
  llm-run --help              all options and more examples"""

HELP = """\
usage: llm-run [OPTION...] [--] COMMAND [ARGUMENT...]
       llm-run --submit [OPTION...] [OPTION OF SBATCH...] -- COMMAND [ARGUMENT...]

Runs COMMAND in an image: a file with Python, torch, transformers, llama.cpp and all that belongs to
them. Your home folder, the working directory, the site's data and scratch folders look the same
inside as outside; what conda, modules or ~/.local have installed does not reach the program. GPUs
of the node are used if there are any. The exit status is the command's own.

examples:
  llm-run python train.py --epochs 3       a Python program
  llm-run python                           Python, interactively
  llm-run bash                             a shell in the image
  llm-run llama-quantize --help            a program that the image brings
  llm-run pip install --user einops        one more package, for this image only
  llm-run --image llm-cpu python x.py      a certain image
  llm-run --bind /projects/p1 python x.py  show one more folder
  llm-run --dry-run python x.py            only print what would be started
  salloc --gpus=1 llm-run python x.py      on a node with a GPU, as soon as one is free
  sbatch --gpus=1 llm-run python x.py      the same, as a job
  llm-run --submit --gpus=1 --follow -- python x.py
                                           a job with the site's defaults, its log shown here
  sbatch --nodes=2 --gpus=4 llm-run --torchrun train.py
                                           four processes on two nodes

options (they stand before the command; what stands after it belongs to the command):
  --image NAME|PATH   image to use: llm (the variant that fits this node), llm-cpu, or a .sif file
                      [LLM_IMAGE; otherwise from the site profile; otherwise llm]
  --bind PATH[:PATH_IN_IMAGE[:ro]]
                      show one more folder or file in the image; may be given several times.
                      It must exist. ro: the program cannot write there
  --env NAME=VALUE    set a variable for the program; may be given several times
  --gpu, --no-gpu     pass the GPUs on, or do not [otherwise: if this node has any]
  --site NAME|PATH    site profile [LLM_SITE; otherwise by the name of the host; otherwise default]
  --dry-run           print the command line, with --submit the batch script, and do nothing else
  --show-config       print every setting and where its value comes from
  --version           print the version
  -h, --help          print this help

in a job of Slurm, COMMAND runs once on each of its nodes:
  --tasks-per-node N  so many times on each node [1]
  --launch=local      run it here and now, whatever job this is in [auto]
  --torchrun          start COMMAND (a .py file, python FILE, python -m MODULE or any program) by
                      torchrun, with as many processes a node as it has GPUs
  --nproc-per-node N  so many processes a node [its GPUs; without any, 1]
  --max-restarts N    torchrun starts failed processes again, so many times [0]

a job of its own:
  --submit            submit COMMAND with sbatch. Its options may stand before --; what they leave
                      open comes from the site profile. Everything is checked before
  --log-dir FOLDER    folder for the logs [logs]
  --follow            show the logs until the job is over; Ctrl-C leaves the job running
  --requeue           tell the program to save and leave before the time limit, then put the job
                      back into the queue until it is finished. Also: sbatch llm-run --requeue ...
  --stop-before SECONDS  tell it so long before the time limit [300]
  --stop-signal SIGNAL   tell it by a signal too, such as USR1 [only by a stop file]
  --max-requeues N    so many times at most [20]

variables: every setting can be set by a variable (--show-config names them). The usual ones are
  LLM_IMAGE_DIR       folder with images [~/.cache/llm/images]
  LLM_CACHE_DIR       downloads, caches, your additional packages [~/.cache/llm]
  LLM_DATA_DIR, LLM_SCRATCH_DIR, LLM_BINDS     more folders to show in the image

exit status: 2 when llm-run itself found a mistake, otherwise that of COMMAND (of several tasks, the
highest)."""


def version_text(program: str, version: str, home: str) -> str:
    """Return the version and, in a checkout, the commit and whether files were changed since."""
    commit = read_commit(home)
    if not commit:
        return f"{program} {version}"
    return f"{program} {version} (commit {commit[:12]}{', changed' if has_changes(home) else ''})"


def config_text(settings: Settings) -> str:
    """Return every setting as `section.key = value  (origin)`, one a line."""
    from _llm.settings import KEYS

    lines = [f"site = {settings.site}    ({settings.site_file})"]
    for name, value, origin in settings:
        variable = KEYS[name][1]
        how = f"; set it with {variable}" if variable and not origin.startswith("env") else ""
        shown = ", ".join(value.split("\n")) if value else "(not set)"
        lines.append(f"{name} = {shown}    ({origin}{how})")
    return "\n".join(lines)


def command_line(plan: Plan, env: Mapping[str, str]) -> str:
    """Return the start as one line for a shell, with what it changes in the environment."""
    words = ["env"]
    # The program's stub has unset the LD_ ones before this could see them.
    for name in sorted(set(plan.dropped) & set(env) | UNSET_BY_THE_STUB):
        words += ["-u", name]
    words += [f"{name}={value}" for name, value in plan.added().items()]
    words += plan.arguments
    return " ".join(_quote(word) for word in words)


def step_line(step: Step, env: Mapping[str, str]) -> str:
    """Return the start of a step as one line for a shell."""
    words = ["env"]
    for name in sorted(set(env) - set(step.environment)):
        words += ["-u", name]
    words += [f"{n}={v}" for n, v in step.environment.items() if env.get(n) != v]
    return " ".join(_quote(word) for word in (words if len(words) > 1 else []) + step.arguments)


def _quote(word: str) -> str:
    # Not shlex.quote alone: it puts NAME= inside the quotes, which reads badly.
    name, equals, value = word.partition("=")
    if equals and name.isidentifier():
        return f"{name}={shlex.quote(value) if value else ''}"
    return shlex.quote(word)
