"""Collect the messages of the programs from their source, to compare the manual with them.

A message is a text in which `…` stands for whatever a program puts in.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ERRORS = frozenset(("LLMError", "Problem"))
LETTERS_TO_TELL_APART = 5


def python_texts(source: str) -> set[str]:
    """Every text in Python source, line by line, with `…` for its placeholders."""
    tree = ast.parse(source)
    found: set[str] = set()
    for node in ast.walk(tree):
        for text in templates(node):
            found |= _lines(text)
    return found


def error_messages(source: str) -> set[str]:
    """What the errors of some Python source say: the first argument of each LLMError and Problem.

    A message that is put together elsewhere and only handed over can't be seen here.
    """
    found: set[str] = set()
    tree = ast.parse(source)
    for function in ast.walk(tree):
        if not isinstance(function, (ast.FunctionDef, ast.ClassDef, ast.Module)):
            continue
        known: dict[str, list[ast.expr]] = {}
        for node in ast.walk(function):
            if isinstance(node, ast.Assign):
                for name, value in _assigned(node):
                    known.setdefault(name, []).append(value)
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and _name(node.func) in ERRORS and node.args:
                    what = node.args[0]
                    values = known.get(what.id, []) if isinstance(what, ast.Name) else [what]
                    found |= {t for value in values for t in templates(value)}
    return {text for text in map(_collapsed, found) if _can_be_told_apart(text)}


def shell_texts(source: str) -> set[str]:
    """Every text that a shell script prints."""
    found: set[str] = set()
    for text in re.findall(r'echo "([^"]*)"', source):
        found |= _lines(re.sub(r"\$(\w+|\{[^}]*\})", "…", text))
    return found


def templates(node: ast.AST) -> Iterator[str]:
    """The texts that an expression may be, as far as the source tells."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"\{\w+\}", "…", node.value)
    elif isinstance(node, ast.JoinedStr):
        yield "".join(
            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
        )
    elif isinstance(node, ast.IfExp):
        yield from templates(node.body)
        yield from templates(node.orelse)


def is_same(quoted: str, message: str) -> bool:
    """Whether the manual's `quoted` is the program's `message`, one of them filled in or cut."""
    return bool(_pattern(quoted).fullmatch(message) or _pattern(message).fullmatch(quoted))


def source_texts(home: Path) -> set[str]:
    """Every text in the programs of the project."""
    found: set[str] = set()
    for folder in ("bin", "recipes"):
        for file in sorted((home / folder).rglob("*.py")):
            found |= python_texts(file.read_text(encoding="utf-8"))
        for file in [*sorted((home / folder).rglob("*.sh")), *home.glob(f"{folder}/llm-run")]:
            found |= shell_texts(file.read_text(encoding="utf-8"))
    return {text for text in found if _can_be_told_apart(text)}


def source_errors(home: Path) -> dict[str, str]:
    """Message -> file, of every error in the programs of the project."""
    found: dict[str, str] = {}
    for folder in ("bin", "recipes"):
        for file in sorted((home / folder).rglob("*.py")):
            for message in error_messages(file.read_text(encoding="utf-8")):
                found[message] = str(file.relative_to(home))
    return found


def _assigned(node: ast.Assign) -> Iterator[tuple[str, ast.expr]]:
    """Name and value of an assignment, of `a, b = x, y` too."""
    target, value = node.targets[0], node.value
    targets = target.elts if isinstance(target, ast.Tuple) else [target]
    values = value.elts if isinstance(value, ast.Tuple) else [value]
    for one, other in zip(targets, values):
        if isinstance(one, ast.Name):
            yield one.id, other


def _lines(text: str) -> set[str]:
    lines = {_collapsed(line) for line in text.splitlines()}
    # "image: another build is under way": the program's name is no part of the message.
    return lines | {re.sub(r"^[\w…-]+: (note: )?", "", line) for line in lines}


def _collapsed(text: str) -> str:
    return re.sub("…+", "…", text.strip())


def _can_be_told_apart(text: str) -> bool:
    return len(re.findall("[a-z]", text)) >= LETTERS_TO_TELL_APART


@cache
def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".+".join(re.escape(part) for part in text.split("…")), re.DOTALL)


def _name(node: ast.expr) -> str:
    return getattr(node, "id", "") or getattr(node, "attr", "")
