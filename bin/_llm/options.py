"""The command line of llm-run: its options end where the command begins.

Read by hand: argparse would take abbreviations for options, options after the command for its own,
and 8 ms of every start.
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
    "--dry-run": "",
    "--show-config": "",
    "--version": "",
    "--help": "",
    "-h": "",
}


class Options:
    """What the command line says.

    image, site: None when not given. gpu: True, False, or None when the node decides.
    information: the option that prints something instead of running a command, "" for none.
    command: the command to run and its arguments.
    """

    __slots__ = ("binds", "command", "dry_run", "env", "gpu", "image", "information", "site")

    def __init__(self) -> None:
        self.image: str | None = None
        self.site: str | None = None
        self.binds: list[str] = []
        self.env: dict[str, str] = {}
        self.gpu: bool | None = None
        self.dry_run = False
        self.information = ""
        self.command: list[str] = []


def parse(arguments: list[str]) -> Options:
    """Return what `arguments`, those of llm-run without its name, say.

    Raises LLMError that names every wrong option, the nearest right one, and every missing value.
    """
    options = Options()
    faults: list[str] = []
    rest = list(arguments)
    while rest and rest[0].startswith("-") and rest[0] != "-":
        word = rest.pop(0)
        if word == "--":
            break
        option, equals, value = word.partition("=")
        if option not in OPTIONS:
            faults.append(f"there is no option {option}{_hint(option)}")
        elif OPTIONS[option]:
            if not equals and not rest:
                faults.append(f"{option} needs a value: {option} {OPTIONS[option]}")
                break
            _take(options, option, value if equals else rest.pop(0), faults)
        elif equals:
            faults.append(f"{option} takes no value")
        else:
            _switch(options, option, faults)
    options.command = rest
    if faults:
        raise LLMError(
            "wrong use of llm-run" if len(faults) == 1 else f"{len(faults)} faults in the options",
            "\n       ".join(faults),
            "llm-run --help",
        )
    return options


def _take(options: Options, option: str, value: str, faults: list[str]) -> None:
    if not value:
        faults.append(f"{option} has an empty value; it takes {OPTIONS[option]}")
    elif option == "--image":
        options.image = value
    elif option == "--site":
        options.site = value
    elif option == "--bind":
        options.binds.append(value)
    else:
        name, equals, text = value.partition("=")
        if not equals or not name.isidentifier() or not name.isascii():
            faults.append(f"--env {value}: write it as NAME=VALUE")
        options.env[name] = text


def _switch(options: Options, option: str, faults: list[str]) -> None:
    if option in ("--gpu", "--no-gpu"):
        if options.gpu is not None and options.gpu != (option == "--gpu"):
            faults.append("--gpu and --no-gpu contradict each other")
        options.gpu = option == "--gpu"
    elif option == "--dry-run":
        options.dry_run = True
    else:
        options.information = options.information or ("--help" if option == "-h" else option)


def _hint(option: str) -> str:
    from _llm.suggest import nearest

    near = nearest(option, list(OPTIONS))
    return f"; did you mean {near}?" if near else ""
