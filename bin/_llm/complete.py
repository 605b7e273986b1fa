"""What can stand at the cursor of a command line, for the shells' completion.

    sh bin/_llm/tool.sh complete llm-run --image llm-

prints `words` and, a line each, what the last word may become; or `files`; or `command N`: from the
word N on (the program's name is word 0) it is another command's line. completions/ asks this.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from _llm.errors import LLMError

HOME = Path(__file__).resolve().parent.parent.parent
# Program -> the module that has its OPTIONS.
PROGRAMS = {
    "llm-run": "_llm.options",
    "llm-doctor": "_llm.doctor.options",
    "llm-record": "_llm.record.options",
}
WITH_COMMAND = "llm-run"


def main(arguments: Sequence[str]) -> int:
    """Print the answer for a program and the words behind its name, the last one unfinished.

    An error prints nothing: a completion must not write into a user's command line.
    """
    try:
        print("\n".join(complete(arguments[0], [*arguments[1:]] or [""])))
    except (LLMError, OSError, ImportError, IndexError, KeyError):
        return 1
    return 0


def complete(program: str, words: list[str]) -> list[str]:
    """Return the lines to print.

    words: those behind the program's name, the last one unfinished.
    """
    commands = commands_of(program)
    options = options_of(program, words[0] if words else "")
    if commands and len(words) == 1 and not words[0].startswith("-"):
        return names(commands, words[0])
    position = 0
    submits = False
    while position < len(words):
        word = words[position]
        is_last = position == len(words) - 1
        if word == "--" and not is_last:
            return after_options(program, position + 1)
        if not word.startswith("-") or (word == "-" and not is_last):
            if commands and is_last:
                return ["files"]
            if commands:  # of commands and files there may be several
                position += 1
                continue
            if submits and not is_last:  # the value of an option of sbatch's: only that knows
                position += 1
                continue
            if submits:
                return ["files"] if word else names(["--", *options], word)
            if is_last and not word:
                here = names(options, word) if program != WITH_COMMAND else []
                return here or after_options(program, position)
            return after_options(program, position)
        option, equals, value = word.partition("=")
        submits = submits or option == "--submit"
        if equals and is_last:
            return [line if number == 0 else f"{option}={line}"
                    for number, line in enumerate(values(options, option, value))]
        if is_last:
            return names([*options, *(["--"] if submits else [])], word)
        position += 1
        if options.get(option) and not equals:
            # bash takes `--image=llm` apart, into three words.
            if words[position] == "=":
                if position == len(words) - 1:
                    return values(options, option, "")
                position += 1
            if position == len(words) - 1:
                return values(options, option, words[position])
            position += 1
    return ["words"]


def options_of(program: str, command: str = "") -> dict[str, str]:
    """Return option -> what it takes. Raises KeyError for an unknown program.

    command: of the program; options of its other commands are left out.
    """
    module = __import__(PROGRAMS[program], fromlist=["OPTIONS"])
    only_for = getattr(module, "ONLY_FOR", {})
    others = [names for name, names in only_for.items() if command in only_for and name != command]
    hidden = {*getattr(module, "HIDDEN", ()), *(name for names in others for name in names)}
    return {name: takes for name, takes in module.OPTIONS.items() if name not in hidden}


def commands_of(program: str) -> tuple[str, ...]:
    """Return the commands of a program, of which one is its first word; () where it has none."""
    module = __import__(PROGRAMS[program], fromlist=["COMMANDS"])
    return tuple(getattr(module, "COMMANDS", ()))


def after_options(program: str, position: int) -> list[str]:
    """Return the answer for a word that is no option of ours."""
    return [f"command {position + 1}"] if program == WITH_COMMAND else ["words"]


def names(candidates: Sequence[str] | dict[str, str], word: str) -> list[str]:
    """Return the answer `words` with the candidates that begin with `word`."""
    return ["words", *(name for name in candidates if name.startswith(word))]


def values(options: dict[str, str], option: str, word: str) -> list[str]:
    """Return the answer for the value of an option."""
    takes = options.get(option, "")
    if option in ("--image", "--site"):
        if "/" in word or word.startswith("~"):
            return ["files"]
        return names(image_names() if option == "--image" else site_names(), word)
    if option == "--stop-signal":
        from _llm.options import STOP_SIGNALS

        return names(STOP_SIGNALS, word)
    if "PATH" in takes or "FOLDER" in takes:
        return ["files"]
    choices = re.split(r", | or ", takes)
    return names(choices if takes.islower() else [], word)


def image_names() -> list[str]:
    """Return the names of the images that llm-run would find here."""
    from _llm.lookup import image_folders, list_names
    from _llm.settings import load_settings

    return list_names(image_folders(load_settings(dict(os.environ), str(HOME)), str(HOME)))


def site_names() -> list[str]:
    """Return the names of the site profiles."""
    from _llm.sites import profile_names

    return profile_names(str(HOME))
