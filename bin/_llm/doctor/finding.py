"""What a check found: one line for people, one object for programs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from _llm.checks import Problem
from _llm.errors import LLMError

OK, WARN, FAIL, SKIP = "ok", "warn", "fail", "skip"
STATUSES = (OK, WARN, FAIL, SKIP)


@dataclass(frozen=True)
class Finding:
    """The result of one check on one node.

    check: its name, such as `apptainer`. status: ok, warn, fail or skip. text: the fact, the same
    on every node where the same is true. measured: what differs all the same (seconds, free space).
    fix: what to do about it, a command where there is one. data: the numbers, for programs; JSON
    types only. node: the node's name, "" for this one.
    """

    check: str
    status: str
    text: str
    fix: str = ""
    measured: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    node: str = ""

    def on(self, node: str) -> Finding:
        """The same finding with the name of its node."""
        return replace(self, node=node)

    def as_dict(self) -> dict[str, Any]:
        """The finding in JSON's types."""
        return asdict(self)


def from_dict(values: Mapping[str, Any]) -> Finding:
    """The finding that `as_dict` made. Raises TypeError for anything else."""
    return Finding(**values)


def from_error(check: str, error: LLMError, status: str = FAIL) -> Finding:
    """What llm-run would stop with, as a finding."""
    why = " ".join(error.why.split())
    return Finding(check, status, f"{error.what}: {why}" if why else error.what, error.fix)


def from_problem(check: str, problem: Problem | None, fine: str) -> Finding:
    """A problem of checks.py as a finding; `fine` is what to say where there is none."""
    if problem is None:
        return Finding(check, OK, fine)
    return Finding(
        check, FAIL if problem.fatal else WARN, f"{problem.what}: {problem.why}", problem.fix
    )
