"""The nearest known name for a mistyped one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def nearest(name: str, choices: Sequence[str]) -> str:
    """Return the choice that looks most like `name`, "" when none does."""
    import difflib

    near = difflib.get_close_matches(name.lower(), choices, 1, cutoff=0.5)
    return near[0] if near else ""


def hint(name: str, choices: Sequence[str], form: str = "{}") -> str:
    """Return "; did you mean X?", or the list of all choices when none looks like `name`."""
    near = nearest(name, choices)
    if near:
        return "; did you mean " + form.format(near) + "?"
    return "; known: " + ", ".join(form.format(choice) for choice in choices)
