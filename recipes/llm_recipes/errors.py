"""The one exception of the recipes: what happened, why, and what to do next.

from llm_recipes.errors import LLMError
raise LLMError("--top-p 1.5 is not a share", "it must be in (0, 1]", "leave it out to turn it off")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

USER_MISTAKE = 2  # exit status


class LLMError(Exception):
    """A user's mistake or a missing part of the system, never a bug of ours.

    Args:
        what: The fact, one line, with the value that is wrong.
        why: The cause, one line.
        fix: What to do next, one line or several.
    """

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append("  why: " + self.why.replace("\n", "\n       "))
        if self.fix:
            lines.append("  fix: " + self.fix.replace("\n", "\n       "))
        return "\n".join(lines)


def raise_all(faults: Sequence[LLMError]) -> None:
    """Raise every fault at once: nothing for none, the fault itself for one.

    Raises:
        LLMError: If there is exactly one fault.
        ExceptionGroup: Of LLMErrors, if there are several; `run_recipe` prints them all.
    """
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise ExceptionGroup("several faults", list(faults))


def faults_of(work: Callable[[], object]) -> list[LLMError]:
    """The faults that a check raises, so that they are reported with those of others."""
    found: list[LLMError] = []
    try:
        work()
    except* LLMError as group:
        found += leaves(group)
    return found


def leaves(group: BaseExceptionGroup[LLMError]) -> Iterator[LLMError]:
    """Every fault in a group of groups."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from leaves(error)
        else:
            yield error
