"""The command line of llm-run: its options end where the command begins.

Read by hand: argparse would take abbreviations for options, options after the command for its own,
and 8 ms of every start. Behind --submit, options that llm-run does not know are sbatch's; `--` ends
them, because only sbatch knows which of its options take a value.
"""

from __future__ import annotations

from _llm.errors import LLMError

# Option -> what it takes, "" for a switch. `--option VALUE` and `--option=VALUE` are the same.
OPTIONS = {
    "--image": "NAME or PATH",
    "--site": "NAME or PATH",
    "--bind": "PATH[:PATH_IN_IMAGE[:ro]]",
    "--env": "NAME=VALUE",
    "--gpu": "",
    "--no-gpu": "",
    "--launch": "auto or local",
    "--tasks-per-node": "NUMBER",
    "--torchrun": "",
    "--nproc-per-node": "NUMBER",
    "--max-restarts": "NUMBER",
    "--requeue": "",
    "--max-requeues": "NUMBER",
    "--stop-before": "SECONDS",
    "--stop-signal": "SIGNAL",
    "--submit": "",
    "--follow": "",
    "--log-dir": "FOLDER",
    "--dry-run": "",
    "--show-config": "",
    "--version": "",
    "--help": "",
    "-h": "",
}
# Of the roles that llm-run gives to itself on its way to the node; no user types it.
INTERNAL = {"--role": "batch, rank or signal"}
ROLES = ("batch", "rank", "signal")
# Signals that a program can be told to stop by. USR2 is the batch role's own.
STOP_SIGNALS = ("USR1", "USR2", "TERM", "HUP", "CONT")


class Options:
    """What the command line says.

    image, site, log_dir: None when not given. gpu: True, False, or None when the node decides.
    launch: "auto" or "local". role: "" for whoever typed the command. tasks_per_node, processes
    (of --nproc-per-node), max_restarts: None when not given. stop_before: seconds before the time
    limit at which a --requeue job is told to stop. stop_signal: without SIG, "" for none. sbatch:
    the options that --submit passes on. information: the option that prints something instead of
    running a command, "" for none. command: the command to run and its arguments.
    """

    __slots__ = (
        *("binds", "command", "dry_run", "env", "follow", "gpu", "image", "information", "launch"),
        *("log_dir", "max_requeues", "max_restarts", "processes", "requeue", "role", "sbatch"),
        *("site", "stop_before", "stop_signal", "submit", "tasks_per_node", "torchrun"),
    )

    def __init__(self) -> None:
        self.image: str | None = None
        self.site: str | None = None
        self.binds: list[str] = []
        self.env: dict[str, str] = {}
        self.gpu: bool | None = None
        self.launch = "auto"
        self.role = ""
        self.tasks_per_node: int | None = None
        self.torchrun = False
        self.processes: int | None = None
        self.max_restarts: int | None = None
        self.requeue = False
        self.max_requeues = 20
        self.stop_before = 300
        self.stop_signal = ""
        self.submit = False
        self.follow = False
        self.log_dir: str | None = None
        self.sbatch: list[str] = []
        self.dry_run = False
        self.information = ""
        self.command: list[str] = []

    def words(self) -> list[str]:
        """Return the options that a later role on another node needs, as they would be typed.

        Without image and site, which are handed on as what they turned out to be here.
        """
        words = [word for bind in self.binds for word in ("--bind", bind)]
        words += [w for name, value in self.env.items() for w in ("--env", f"{name}={value}")]
        if self.gpu is not None:
            words.append("--gpu" if self.gpu else "--no-gpu")
        if self.torchrun:
            words.append("--torchrun")
        for option, number in (
            ("--nproc-per-node", self.processes),
            ("--max-restarts", self.max_restarts),
        ):
            words += [option, str(number)] if number is not None else []
        if self.requeue:
            words += ["--requeue", "--stop-before", str(self.stop_before)]
            words += ["--max-requeues", str(self.max_requeues)]
        return words + (["--stop-signal", self.stop_signal] if self.stop_signal else [])


def parse(arguments: list[str]) -> Options:
    """Return what `arguments`, those of llm-run without its name, say.

    Raises LLMError that names every wrong option, the nearest right one, and every missing value.
    """
    options = Options()
    faults: list[str] = []
    rest = list(arguments)
    ended = False
    while rest and (options.submit or (rest[0].startswith("-") and rest[0] != "-")):
        word = rest.pop(0)
        if word == "--":
            ended = True
            break
        option, equals, value = word.partition("=")
        takes = OPTIONS.get(option, INTERNAL.get(option))
        if takes is None and options.submit:
            options.sbatch.append(word)
        elif takes is None:
            faults.append(f"there is no option {option}{_hint(option)}")
        elif takes:
            if not equals and not rest:
                faults.append(f"{option} needs a value: {option} {takes}")
                break
            _take(options, option, value if equals else rest.pop(0), faults)
        elif equals:
            faults.append(f"{option} takes no value")
        else:
            _switch(options, option, faults)
    options.command = rest
    if options.submit and not ended and not options.information:
        faults.append(
            "--submit needs -- before the command: only sbatch knows which of its options take a "
            "value (llm-run --submit --gpus=1 -- python train.py)"
        )
    _check_together(options, faults)
    if faults:
        raise LLMError(
            "wrong use of llm-run" if len(faults) == 1 else f"{len(faults)} faults in the options",
            "\n       ".join(faults),
            "llm-run --help",
        )
    return options


def _take(options: Options, option: str, value: str, faults: list[str]) -> None:
    if not value:
        faults.append(f"{option} has an empty value; it takes {OPTIONS.get(option, '')}")
    elif option == "--image":
        options.image = value
    elif option == "--site":
        options.site = value
    elif option == "--bind":
        options.binds.append(value)
    elif option == "--log-dir":
        options.log_dir = value
    elif option == "--env":
        name, equals, text = value.partition("=")
        if not equals or not name.isidentifier() or not name.isascii():
            faults.append(f"--env {value}: write it as NAME=VALUE")
        options.env[name] = text
    elif option in ("--launch", "--role", "--stop-signal"):
        _choose(options, option, value, faults)
    else:
        _count(options, option, value, faults)


def _choose(options: Options, option: str, value: str, faults: list[str]) -> None:
    choices: tuple[str, ...]
    if option == "--stop-signal":
        value = value.upper()
        value = value[3:] if value.startswith("SIG") else value
        choices = STOP_SIGNALS
    else:
        choices = ROLES if option == "--role" else ("auto", "local")
    if value not in choices:
        faults.append(f"{option} {value}: it takes {', '.join(choices[:-1])} or {choices[-1]}")
    setattr(options, {"--stop-signal": "stop_signal"}.get(option, option[2:]), value)


COUNTS = {
    "--tasks-per-node": ("tasks_per_node", 1),
    "--nproc-per-node": ("processes", 1),
    "--max-restarts": ("max_restarts", 0),
    "--max-requeues": ("max_requeues", 0),
    "--stop-before": ("stop_before", 0),
}


def _count(options: Options, option: str, value: str, faults: list[str]) -> None:
    attribute, least = COUNTS[option]
    if not (value.isascii() and value.isdigit()) or int(value) < least:
        faults.append(f"{option} {value}: it takes a number from {least}")
    else:
        setattr(options, attribute, int(value))


def _switch(options: Options, option: str, faults: list[str]) -> None:
    if option in ("--gpu", "--no-gpu"):
        if options.gpu is not None and options.gpu != (option == "--gpu"):
            faults.append("--gpu and --no-gpu contradict each other")
        options.gpu = option == "--gpu"
    elif option in ("--dry-run", "--torchrun", "--requeue", "--submit", "--follow"):
        setattr(options, option[2:].replace("-", "_"), True)
    else:
        options.information = options.information or ("--help" if option == "-h" else option)


def _check_together(options: Options, faults: list[str]) -> None:
    """Add what is wrong with options that are right by themselves."""
    if options.torchrun and options.tasks_per_node not in (None, 1):
        faults.append(
            "--torchrun starts the processes of a node itself: --nproc-per-node, "
            "not --tasks-per-node"
        )
    if not options.torchrun:
        for option, number in (
            ("--nproc-per-node", options.processes),
            ("--max-restarts", options.max_restarts),
        ):
            if number is not None:
                faults.append(f"{option} is for --torchrun")
    if not options.submit:
        if options.follow:
            faults.append("--follow is for --submit")
        if options.log_dir is not None:
            faults.append("--log-dir is for --submit")
    elif options.launch == "local":
        faults.append("--submit and --launch=local contradict each other")
    if options.stop_signal and not options.requeue:
        faults.append("--stop-signal is for --requeue")


def _hint(option: str) -> str:
    from _llm.suggest import nearest

    near = nearest(option, list(OPTIONS))
    return f"; did you mean {near}?" if near else ""
