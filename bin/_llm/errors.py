"""The one exception of the host side: what happened, why, and what to do next."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class LLMError(Exception):
    """A user's mistake or a missing part of the system, never a bug of ours.

    what: the fact, one line. why: the cause, one line. fix: the next command to type, one line or
    several. Printed as three short parts; the exit status is 2.
    """

    def __init__(self, what: str, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append("  fix: " + self.fix.replace("\n", "\n       "))
        return "\n".join(lines)


def make_command(home: str, target: str) -> str:
    """Return the command that makes a target: here in a checkout, elsewhere in an installation."""
    if os.path.exists(os.path.join(home, "Makefile")):
        quoted = home.replace("'", "'\"'\"'")
        return f"make -C '{quoted}' {target}"
    return f"make {target}    (in the checkout that {home} was installed from)"


def report(program: str, errors: Sequence[LLMError]) -> int:
    """Print every error to standard error and return the exit status of a user's mistake (2)."""
    for error in errors:
        print(f"{program}: {error}", file=sys.stderr)
    return 2
