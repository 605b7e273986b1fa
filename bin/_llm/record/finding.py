"""What was found about one thing that a record names: is it here, and is it the same?"""

from __future__ import annotations

from dataclasses import dataclass

# OTHER is here and not the same, GONE is not here, UNKNOWN can't be told from the record.
OK, OTHER, GONE, UNKNOWN = "ok", "other", "gone", "unknown"


@dataclass(frozen=True)
class Finding:
    """part: image, code, recipe, model, data and so on. text: one line. fix: what to type."""

    part: str
    state: str
    text: str
    fix: str = ""

    def lines(self) -> str:
        """Return the finding for people."""
        from _llm.record.reading import plain

        shown = f"{self.state:<8} {self.part:<9} {plain(self.text)}"
        if self.fix:
            shown += "\n" + " " * 19 + "fix: " + self.fix.replace("\n", "\n" + " " * 24)
        return shown

    def as_json(self) -> dict[str, str]:
        """Return the finding as an object."""
        return {"part": self.part, "state": self.state, "text": self.text, "fix": self.fix}


def obstacles(findings: list[Finding]) -> list[Finding]:
    """Return those without which the same run can't be had."""
    return [finding for finding in findings if finding.state in (OTHER, GONE)]
