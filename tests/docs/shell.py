"""Check shell commands without running them: programs, targets, options, recipes, files.

`faults_of("make no-such-target")` returns sentences, none for a command that would be understood.
"""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

from documents import HOME

sys.path.insert(0, str(HOME / "bin"))
sys.path.insert(0, str(HOME / "tests" / "cluster"))
from _llm.doctor.options import parse as parse_doctor
from _llm.errors import LLMError
from _llm.options import parse
from _llm.record.options import parse as parse_record
from box.cli import parser as box_parser

SEPARATORS = frozenset("\n;|&()")
# Programs of any Linux system that the documents use.
HOST_PROGRAMS = frozenset(
    (
        *("apptainer", "cat", "cd", "cp", "echo", "export", "git", "grep", "ls", "mkdir", "paste"),
        *("module", "printf", "rm", "scp", "sed", "sort", "pip", "#!/bin/bash"),
        *("cmp", "curl", "openssl", "rsync", "sha256sum", "tar"),
        *("exit", "hostname", "scancel", "scontrol", "sinfo", "sleep", "squeue"),
    )
)
IMAGE_PROGRAMS = frozenset(
    ("python", "python3", "bash", "sh", "cat", "true", "env", "hf", "nvidia-smi", "pip", "pytest")
)
WRAPPERS = frozenset(("time", "exec", "sudo"))
SLURM_STARTERS = frozenset(("srun", "salloc", "sbatch"))
RECIPE_OPTIONS = frozenset(("config", "print_config", "help"))
# Words that stand for something the reader puts in: never checked for existence.
PLACEHOLDER = re.compile(r"[A-Z_]*(NAME|VARIANT|TARGET|FOLDER)[A-Z_]*|\$.*|")


def faults_of(text: str) -> list[str]:
    """Everything in a piece of shell that would not work, each as a sentence."""
    done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        return [f"bash does not understand it: {done.stderr.strip()}"]
    try:
        commands = split_commands(text)
    except ValueError as error:
        return [f"cannot be split into words: {error}"]
    return [fault for words in commands for fault in check_command(words)]


def split_commands(text: str) -> list[list[str]]:
    """The simple commands of a piece of shell, as words; redirections and comments left out."""
    text = re.sub(r"\\\n", " ", text)
    text = re.sub(r"(?m)(^|\s)#[^'\"\n]*$", r"\1", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t", "", True
    commands: list[list[str]] = [[]]
    skip = False
    for word in lexer:
        if set(word) <= SEPARATORS:
            commands.append([])
        elif set(word) <= SEPARATORS | set("<>"):
            skip = True
            if commands[-1] and commands[-1][-1].isdigit():
                commands[-1].pop()
        elif skip:
            skip = False
        else:
            commands[-1].append(word)
    return [words for words in commands if words]


def check_command(words: list[str]) -> list[str]:
    """Faults of one simple command on the host."""
    words = list(words)
    while words and (re.match(r"[A-Za-z_]\w*=", words[0]) or words[0] in WRAPPERS):
        words.pop(0)
    if words and words[0] in SLURM_STARTERS:
        starter = words.pop(0)
        while words and words[0].startswith("-"):  # options of Slurm: --name=value
            words.pop(0)
        ours = bool(words) and words[0].removeprefix("bin/").startswith("llm-")
        if starter != "srun" and not ours:
            return []  # a batch script, or a shell
    if not words:
        return []
    program = words[0]
    if program == "make":
        return check_make(words[1:])
    if program in ("bin/llm-run", "llm-run"):
        return check_llm_run(words[1:])
    if program in ("bin/llm-doctor", "llm-doctor"):
        return check_llm_doctor(words[1:])
    if program in ("bin/llm-record", "llm-record"):
        return check_llm_record(words[1:])
    if program in ("python3", "sh"):
        return check_script(words)
    return [] if program in HOST_PROGRAMS else [f"unknown program {program}"]


def check_make(words: list[str]) -> list[str]:
    """Targets and variables are the Makefile's, images and variants exist."""
    text = (HOME / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"(?m)^([a-z-]+):", text))
    variables = set(re.findall(r"(?m)^([A-Z_]+) \?=", text))
    faults = []
    values: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name not in variables:
            faults.append(f"make knows no variable {name}")
        elif equals:
            values[name] = value
        elif word not in targets:
            faults.append(f"make knows no target {word}")
    image = values.get("IMAGE", "llm")
    if not PLACEHOLDER.fullmatch(image) and not (HOME / f"containers/{image}/image.def").exists():
        faults.append(f"there is no image {image}")
    for variant in values.get("VARIANT", "").replace(",", " ").split():
        file = HOME / f"containers/{image}/requirements-{variant}.in"
        if not PLACEHOLDER.fullmatch(variant) and not file.exists():
            faults.append(f"image {image} has no variant {variant}")
    return faults


def check_llm_run(arguments: list[str]) -> list[str]:
    """The options are llm-run's, and the image brings the program."""
    try:
        options = parse(arguments)
    except LLMError as error:
        return [f"llm-run: {error.why}"]
    if options.information:
        return []
    if not options.command:
        return ["llm-run without a command"]
    program = options.command[0]
    if options.torchrun and program.endswith(".py"):
        return check_script(["python", *options.command])
    if program not in IMAGE_PROGRAMS | image_programs() and program != "COMMAND":
        return [f"the image has no program {program}"]
    if program in ("python", "python3", "sh", "bash"):
        return check_script(options.command)
    return []


def check_llm_doctor(arguments: list[str]) -> list[str]:
    """The options are llm-doctor's."""
    try:
        parse_doctor(arguments)
    except LLMError as error:
        return [f"llm-doctor: {error.why}"]
    return []


def check_llm_record(arguments: list[str]) -> list[str]:
    """The options are llm-record's."""
    try:
        parse_record(arguments)
    except LLMError as error:
        return [f"llm-record: {error.why}"]
    return []


def check_script(words: list[str]) -> list[str]:
    """A script exists and knows its options; code on the command line can be parsed."""
    program, arguments = words[0], words[1:]
    if not arguments or arguments[0] == "-m" or arguments[0] == "--version":
        return []
    if arguments[0] == "-c":
        if program.startswith("python"):
            try:
                ast.parse(arguments[1])
            except SyntaxError as error:
                return [f"python -c: {error}"]
            return []
        return faults_in_image(arguments[1])
    path = arguments[0].replace("$LLM_HOME/", "")  # the checkout, or what was installed from it
    if "/" not in path:
        return []  # a program of the reader's own
    if path.startswith("/opt/"):  # in the image that has the folder's name
        inside = (HOME / "containers" / path.removeprefix("/opt/")).is_file()
        return [] if inside else [f"there is no file {path}"]
    if path == "tests/cluster/box":
        return check_box(arguments[1:])
    if not (HOME / path).is_file():
        return [f"there is no file {path}"]
    if path.endswith(".py"):
        return check_options(path, arguments[1:])
    if path == "bin/_llm/tool.sh" and arguments[1:2] == ["image"]:
        return check_options("bin/_llm/image.py", arguments[2:])
    return []


def check_box(arguments: list[str]) -> list[str]:
    """The cluster in a box knows the verb and its options."""
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints), contextlib.redirect_stdout(complaints):
            box_parser().parse_args(arguments)
    except SystemExit as stopped:
        return [complaints.getvalue().splitlines()[-1]] if stopped.code else []
    return []


def faults_in_image(text: str) -> list[str]:
    """Programs of a small shell script that runs in the image."""
    known = HOST_PROGRAMS | IMAGE_PROGRAMS | image_programs()
    commands = split_commands(text)
    faults = [f"unknown program {words[0]}" for words in commands if words[0] not in known]
    for words in commands:
        if words[0].startswith("python"):
            faults += check_script(words)
    return faults


def check_options(path: str, arguments: list[str]) -> list[str]:
    """Every option of a Python script is one of its own, and none that it needs is missing."""
    parameters = recipe_parameters(path)
    known = script_options(path) if parameters is None else set(parameters) | RECIPE_OPTIONS
    given = {
        word.partition("=")[0].lstrip("-").replace("-", "_")
        for word in arguments
        if word.startswith("--") and word != "--"
    }
    faults = [
        f"there is no file {value}"
        for value in re.findall(r"--config[ =](recipes/\S+)", " ".join(arguments))
        if not (HOME / value).is_file()
    ]
    for name in sorted(given - known):
        if not (parameters and name.startswith("no_") and name[3:] in parameters):
            faults.append(f"{path} has no option --{name.replace('_', '-')}")
    if parameters and not given & RECIPE_OPTIONS and "..." not in arguments:
        missing = [n for n, required in parameters.items() if required and n not in given]
        faults += [f"{path} needs --{name.replace('_', '-')}" for name in missing]
    return faults


@cache
def recipe_parameters(path: str) -> dict[str, bool] | None:
    """Parameter -> whether it is required, of the function that a script gives to run_recipe.

    None for a script that is no recipe. Read from the source: nothing is imported.
    """
    tree = ast.parse((HOME / path).read_text(encoding="utf-8"))
    called = [
        node.args[0].id
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "run_recipe"
        and isinstance(node.args[0], ast.Name)
    ]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name in called:
            arguments = [*node.args.posonlyargs, *node.args.args]
            required = len(arguments) - len(node.args.defaults)
            found = {a.arg: position < required for position, a in enumerate(arguments)}
            for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults):
                found[argument.arg] = default is None
            return found
    return None


@cache
def script_options(path: str) -> set[str]:
    """Options that a script gives to argparse."""
    tree = ast.parse((HOME / path).read_text(encoding="utf-8"))
    return {"help"} | {
        str(argument.value).lstrip("-").replace("-", "_")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"
        for argument in node.args
        if isinstance(argument, ast.Constant) and str(argument.value).startswith("--")
    }


@cache
def image_programs() -> frozenset[str]:
    """Programs that the smoke test of the image `llm` starts."""
    tree = ast.parse(Path(HOME / "containers/llm/smoke.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "PROGRAMS":
            return frozenset(ast.literal_eval(node.value))
    raise AssertionError("containers/llm/smoke.py has no PROGRAMS")
