"""The command line of llm-record.

llm-record replay runs/base --dry-run
"""

from __future__ import annotations

from dataclasses import dataclass, field

from _llm.errors import LLMError
from _llm.suggest import nearest

COMMANDS = ("show", "replay")
# Option -> what it takes, "" for a switch.
OPTIONS = {
    "--json": "",
    "--check": "",
    "--output": "FOLDER",
    "--best-effort": "",
    "--dry-run": "",
    "--tolerance": "NUMBER",
    "--help": "",
    "-h": "",
    "--version": "",
}
ONLY_FOR = {
    "show": ("--check",),
    "replay": ("--output", "--best-effort", "--dry-run", "--tolerance"),
}
DEFAULT_TOLERANCE = 0.01

HELP = f"""\
usage: llm-record show RECORD... [--check] [--json]
       llm-record replay RECORD [OPTION...] [-- RECIPE_OPTION...]

RECORD is a run.json, a folder that has one, or a file of results (answers.jsonl, whose record is
answers.run.json).

show prints a record on one screen, several as a table. replay runs the recorded recipe again, with
the same image, code and configuration, and compares the results. What can't be had is listed
before anything runs.

examples:
  llm-record show runs/base                is it complete, on what did it run, with which result?
  llm-record show --check runs/base        are image, code, model and data still here, and the same?
  llm-record show runs/*                   a line each
  llm-record replay runs/base              again, into runs/base.replay-1
  llm-record replay runs/base -- --device cpu     again, with other options of the recipe

options:
  --check             compare what the record names with what is here; nothing is run
  --json              print one JSON object (show: the record with all its fields)
  --output FOLDER     new folder for the replay [RECORD's folder with .replay-1, .replay-2 ...]
  --best-effort       go on without what can't be had, and say what differs
  --dry-run           say what would be run and what can't be had, and stop
  --tolerance NUMBER  share by which losses and scores may differ where the recipe does not promise
                      the same bytes; 0: not at all [{DEFAULT_TOLERANCE}]
  --version           print the version
  -h, --help          print this help

exit status: show: 0, with --check 1 when something differs; replay: 0 for the same results, 1 for
others, 2 when it can't be run."""


@dataclass
class Options:
    """What the command line says. extra: options for the recipe, behind --."""

    command: str = ""
    paths: list[str] = field(default_factory=list)
    json: bool = False
    check: bool = False
    output: str | None = None
    best_effort: bool = False
    dry_run: bool = False
    tolerance: float = DEFAULT_TOLERANCE
    extra: list[str] = field(default_factory=list)
    information: str = ""


def parse(arguments: list[str]) -> Options:
    """Return what `arguments`, those of llm-record without its name, say.

    Raises LLMError that names every fault.
    """
    options = Options()
    faults: list[str] = []
    given: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if word == "--":
            options.extra, rest = rest, []
        elif not word.startswith("-") or word == "-":
            _take_word(options, word, faults)
        elif option not in OPTIONS:
            near = nearest(option, list(OPTIONS))
            hint = f"; did you mean {near}?" if near else ""
            faults.append(f"there is no option {option}{hint}")
        elif OPTIONS[option]:
            given.append(option)
            if not equals and not rest:
                faults.append(f"{option} needs a value: {option} {OPTIONS[option]}")
                break
            _take(options, option, value if equals else rest.pop(0), faults)
        elif equals:
            faults.append(f"{option} takes no value")
        elif option in ("--help", "-h", "--version"):
            options.information = options.information or option
        else:
            given.append(option)
            setattr(options, option[2:].replace("-", "_"), True)
    if not options.information:
        _check_together(options, given, faults)
        if faults:
            raise LLMError("wrong use of llm-record", "\n       ".join(faults), "llm-record --help")
    return options


def _take_word(options: Options, word: str, faults: list[str]) -> None:
    if options.command:
        options.paths.append(word)
        return
    options.command = word
    if word not in COMMANDS:
        near = nearest(word, COMMANDS)
        hint = f"; did you mean {near}?" if near else ": show or replay comes first"
        faults.append(f"there is no command '{word}'{hint}")


def _take(options: Options, option: str, value: str, faults: list[str]) -> None:
    if not value:
        faults.append(f"{option} has an empty value; it takes {OPTIONS[option]}")
    elif option == "--output":
        options.output = value
    else:
        try:
            options.tolerance = float(value)
        except ValueError:
            options.tolerance = -1.0
        if not 0 <= options.tolerance < 1:
            faults.append(f"--tolerance {value}: it takes a share from 0 to below 1, such as 0.01")


def _check_together(options: Options, given: list[str], faults: list[str]) -> None:
    """Add what is wrong with options that are right by themselves."""
    if not options.command:
        faults.append("no command given: show or replay")
    elif not options.paths and options.command in COMMANDS:
        faults.append(f"{options.command} needs a record: a run.json, or a folder that has one")
    elif options.command == "replay" and len(options.paths) > 1:
        faults.append("replay takes one record; options of the recipe stand behind --")
    for command, names in ONLY_FOR.items():
        faults += [f"{name} is for {command}" for name in names
                   if name in given and options.command in COMMANDS and options.command != command]
    if options.extra and options.command == "show":
        faults.append("show takes nothing behind --")
