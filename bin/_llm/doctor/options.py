"""The command line of llm-doctor.

llm-doctor --job --json
"""

from __future__ import annotations

from dataclasses import dataclass, field

from _llm.errors import LLMError
from _llm.suggest import nearest

# Option -> what it takes, "" for a switch. --node is what --job starts on every node.
OPTIONS = {
    "--job": "",
    "--json": "",
    "--model": "NAME or PATH",
    "--image": "NAME or PATH",
    "--site": "NAME or PATH",
    "--limit": "SECONDS",
    "--checksum": "",
    "--collect-env": "",
    "--help": "",
    "-h": "",
    "--version": "",
    "--node": "",
}
HIDDEN = ("--node",)
DEFAULT_LIMIT = 180
SHORTEST_LIMIT = 5
SHORTEST_JOB_LIMIT = 20

HELP = f"""\
usage: llm-doctor [OPTION...]

Says what works on this machine, and what to do about the rest: Apptainer, image, folders, GPUs,
network, Slurm. One line for each check: ok, warn, fail, or skip with the reason. Nothing is
changed; small files that it writes to try folders are removed at once. No check can hang it.

examples:
  llm-doctor                               this machine, such as a login node
  salloc --nodes=2 llm-doctor --job        every node of a job, and the network between them
  llm-doctor --model /models/Mistral-7B    is this model complete, without a network?

options:
  --job               check every node of the Slurm job in which this is started
  --model NAME|PATH   also check that this model can be loaded offline; may be given several times
  --image NAME|PATH   image to check [LLM_IMAGE; otherwise from the site profile; otherwise llm]
  --site NAME|PATH    site profile [LLM_SITE; otherwise by the name of the host; otherwise default]
  --checksum          also read the whole image and print its SHA-256; with --job compare the nodes'
  --collect-env       also print torch's own description of its environment, for a bug report
  --json              print one JSON object instead of lines
  --limit SECONDS     end after this time, whatever hangs [{DEFAULT_LIMIT}]
  --version           print the version
  -h, --help          print this help

exit status: 0 when nothing failed (warnings don't count), 1 when something did, 2 for wrong use."""


@dataclass
class Options:
    """What the command line says."""

    job: bool = False
    json: bool = False
    node: bool = False
    checksum: bool = False
    collect_env: bool = False
    models: list[str] = field(default_factory=list)
    image: str | None = None
    site: str | None = None
    limit: float = DEFAULT_LIMIT
    information: str = ""


def parse(arguments: list[str]) -> Options:
    """Return what `arguments`, those of llm-doctor without its name, say.

    Raises LLMError that names every fault.
    """
    options = Options()
    faults: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option not in OPTIONS:
            near = nearest(option, [name for name in OPTIONS if name not in HIDDEN])
            kind = "option" if word.startswith("-") else "argument"
            hint = f"; did you mean {near}?" if near else ""
            faults.append(f"there is no {kind} {option}{hint}")
        elif OPTIONS[option]:
            if not equals and not rest:
                faults.append(f"{option} needs a value: {option} {OPTIONS[option]}")
                break
            _take(options, option, value if equals else rest.pop(0), faults)
        elif equals:
            faults.append(f"{option} takes no value")
        elif option in ("--help", "-h", "--version"):
            options.information = options.information or option
        else:
            setattr(options, option[2:].replace("-", "_"), True)
    if options.job and options.limit < SHORTEST_JOB_LIMIT:
        faults.append(
            f"--limit {options.limit:g} is too short for --job: from {SHORTEST_JOB_LIMIT}"
        )
    if faults:
        raise LLMError("wrong use of llm-doctor", "\n       ".join(faults), "llm-doctor --help")
    return options


def _take(options: Options, option: str, value: str, faults: list[str]) -> None:
    if not value:
        faults.append(f"{option} has an empty value; it takes {OPTIONS[option]}")
    elif option == "--model":
        options.models.append(value)
    elif option == "--image":
        options.image = value
    elif option == "--site":
        options.site = value
    else:
        try:
            options.limit = float(value)
        except ValueError:
            options.limit = 0
        if not SHORTEST_LIMIT <= options.limit < 1e6:
            faults.append(f"--limit {value}: write it in seconds, from {SHORTEST_LIMIT}")


def as_arguments(options: Options) -> list[str]:
    """The options that the doctor on each node of a job gets as well, without --job and --json."""
    words = [word for model in options.models for word in ("--model", model)]
    words += ["--image", options.image] if options.image else []
    words += ["--site", options.site] if options.site else []
    words += ["--checksum"] if options.checksum else []
    words += ["--collect-env"] if options.collect_env else []
    return words
