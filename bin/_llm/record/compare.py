"""Compare the record of a replay with the one that was replayed: results, metrics, what differs.

Results are files, by hash. Where the recipe promises the same bytes (`deterministic`), they decide.
Elsewhere metrics do: counts must be equal, losses and scores within a tolerance. What a clock or a
memory meter says is shown and decides nothing.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from _llm.record.reading import Record, inputs, plain, recipe_file
from _llm.record.surroundings import hardware

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SAME, OTHER, MISSING, NEW, CLOSE, SHOWN = "same", "other", "missing", "new", "close", "shown"
MOST_LINES = 40
# Parts of a metric's name: clocks, memory, speed, and the place of a run.
MEASURED = re.compile(
    r"(?:^|[._])(?:s|ms|us|seconds|per_s|per_second|per_min|min|flops|mfu|mbu|uptime|speed|port|waited|eta)"
    r"(?:$|[._])|(?:peak|host|gpu|memory|rss|free|predicted)\w*_bytes"
)
# Counts of what a model chose to say: they move with the last digit of a logit.
SAID = re.compile(r"completion|generated|unread|stopped|finish|new_tokens|answer")


@dataclass(frozen=True)
class Row:
    """One result or metric. state: same, other, missing (in the replay), new (only there), close
    (within the tolerance) or shown (decides nothing).
    """

    name: str
    state: str
    then: Any
    now: Any


@dataclass
class Comparison:
    """What came out. is_same: the verdict. causes: what the replay had not the same."""

    results: list[Row]
    metrics: list[Row]
    causes: list[str]
    hardware: list[str]
    deterministic: bool
    tolerance: float
    notes: list[str] = field(default_factory=list)

    @property
    def is_same(self) -> bool:
        """Say whether the replay gave what the recorded run gave."""
        wrong = (OTHER, MISSING, NEW)
        decides = [*self.metrics, *(self.results if self.deterministic else ())]
        return not any(row.state in wrong for row in decides) and self.compared > 0

    @property
    def compared(self) -> int:
        """Return how many things have decided."""
        rows = [*self.metrics, *(self.results if self.deterministic else ())]
        return sum(row.state != SHOWN for row in rows)

    def verdict(self) -> str:
        """Return the verdict in a line."""
        if not self.compared:
            return "different: the records have nothing in common that can be compared"
        files = sum(row.state == SAME for row in self.results)
        decided = [row for row in self.metrics if row.state != SHOWN]
        equal = sum(row.state == SAME for row in decided)
        close = sum(row.state == CLOSE for row in decided)
        said = [f"{equal} of {len(decided)} metrics equal"]
        if self.results:
            said.insert(0, f"{files} of {len(self.results)} files of results identical")
        said += [f"{close} within {self.tolerance:g}"] if close else []
        words = "same" if self.is_same else "different"
        if not self.is_same and (self.causes or self.hardware):
            said.append("see above what was not the same")
        return f"{words}: {', '.join(said)}"

    def as_json(self) -> dict[str, Any]:
        """Return the comparison as an object."""
        return {
            "same": self.is_same, "verdict": self.verdict(), "deterministic": self.deterministic,
            "tolerance": self.tolerance, "results": [vars(row) for row in self.results],
            "metrics": [vars(row) for row in self.metrics], "causes": self.causes,
            "hardware": self.hardware, "notes": self.notes,
        }

    def lines(self) -> str:
        """Return the comparison for people, the verdict last."""
        lines = [f"note: {note}" for note in self.notes]
        lines += [f"not the same: {cause}" for cause in self.causes]
        lines += [f"other hardware: {text}" for text in self.hardware]
        for row in self.results[:MOST_LINES]:
            word = {SAME: "identical", OTHER: "different"}.get(row.state, row.state)
            lines.append(f"{word:<10} {plain(row.name)}")
        if len(self.results) > MOST_LINES:
            lines.append(f"... and {len(self.results) - MOST_LINES} more files")
        order = {OTHER: 0, MISSING: 0, NEW: 0, CLOSE: 1, SHOWN: 2}
        rows = [row for row in self.metrics if row.state in order]
        for row in sorted(rows, key=lambda row: order[row.state])[:MOST_LINES]:
            values = f"{_short(row.then)} -> {_short(row.now)}"
            lines.append(f"{row.state:<10} {plain(row.name)}: {values}")
        if len(rows) > MOST_LINES:
            lines.append(f"... and {len(rows) - MOST_LINES} more metrics (--json has all)")
        return "\n".join([*lines, self.verdict()])


def compare(then: Record, now: Record, tolerance: float) -> Comparison:
    """Compare two records of the same recipe. tolerance: relative, where bytes are not promised."""
    deterministic = then.data.get("deterministic") is True and now.data.get("deterministic") is True
    results = compare_results(then, now)
    metrics = compare_metrics(then.part("metrics"), now.part("metrics"),
                              0.0 if deterministic else tolerance)
    found = Comparison(results, metrics, causes(then, now),
                       hardware(then, now.part("host")), deterministic, tolerance)
    if not results:
        found.notes.append("the record has no hashes of results: only metrics are compared")
    elif not deterministic:
        found.notes.append("the recipe does not promise the same bytes here: metrics decide")
    return found


def compare_results(then: Record, now: Record) -> list[Row]:
    """Return a row for every file of results. Older records have the hash of one file at most."""
    old, new = then.part("results"), now.part("results")
    if not old and then.text("output_digest") and now.text("output_digest"):
        old = {"output": then.text("output_digest")}
        new = {"output": now.text("output_digest")}
    if not old:
        return []
    rows = []
    for name in sorted({*old, *new}):
        before, after = old.get(name), new.get(name)
        if name in old and not isinstance(before, str):
            state = SHOWN  # it could not be read then
        elif name not in new or not isinstance(after, str):
            state = MISSING
        else:
            state = NEW if name not in old else SAME if before == after else OTHER
        rows.append(Row(name, state, before, after))
    return rows


def compare_metrics(then: dict[str, Any], now: dict[str, Any], tolerance: float) -> list[Row]:
    """Return a row for every number, by its path in the metrics. Texts are shown where they differ.

    tolerance: 0 for exact.
    """
    old, new = dict(flat(then)), dict(flat(now))
    rows = []
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name), new.get(name)
        if before is None and after is None:
            continue
        if MEASURED.search(name):
            state = SHOWN
        elif all(isinstance(value, (str, type(None))) for value in (before, after)):
            if before == after:
                continue
            state = SHOWN  # a path, a version, a sentence about numbers that are compared
        elif name not in new:
            state = MISSING
        elif name not in old:
            state = NEW
        else:
            state = _state(name, before, after, tolerance)
        rows.append(Row(name, state, before, after))
    return rows


def causes(then: Record, now: Record) -> list[str]:
    """Return what of image, code, inputs and variables was not the same, a line each."""
    found = []
    pairs = {
        "image": (then.text("digest", "image"), now.text("digest", "image")),
        "recipe": (recipe_file(then)[1], recipe_file(now)[1]),
        "commit": (then.text("commit", "code"), now.text("commit", "code")),
        "recipes' files": (then.text("files_sha256", "code"), now.text("files_sha256", "code")),
    }
    before, after = pairs["recipes' files"]
    if before and before == after:
        del pairs["commit"]  # the commits differ elsewhere
    for name, (before, after) in pairs.items():
        if before and after and before != after:
            found.append(f"{name}: {before[:19]} -> {after[:19]}")
    read = {(part, number): line for number, (part, *line) in enumerate(inputs(now))}
    for number, (part, given, path, content) in enumerate(inputs(then)):
        _, again, after = read.get((part, number), ("", "", ""))
        if content and after and content != after:
            found.append(f"{part} {path or given}: {content[:19]} -> {after[:19]}")
        elif path and again and path != again and not (content and after):
            found.append(f"{part}: {path} -> {again}")
    return list(map(plain, found))


def _state(name: str, before: object, after: object, tolerance: float) -> str:
    if before == after or (_is_nan(before) and _is_nan(after)):
        return SAME
    numbers = [value for value in (before, after)
               if isinstance(value, (int, float)) and not isinstance(value, bool)]
    counts = all(isinstance(value, int) for value in numbers) and not SAID.search(name)
    if len(numbers) < 2 or not tolerance or counts:
        return OTHER
    try:
        is_close = math.isclose(*numbers, rel_tol=tolerance, abs_tol=1e-9)
    except OverflowError:  # a whole number of hundreds of digits
        is_close = False
    return CLOSE if is_close else OTHER


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """Return (path, value) of every value in an object, with dots in the path."""
    if isinstance(value, dict):
        found = [pair for name, item in value.items()
                 for pair in flat(item, f"{path}.{name}" if path else str(name))]
        return found
    if isinstance(value, list):
        return [pair for number, item in enumerate(value)
                for pair in flat(item, f"{path}.{number}")]
    return [(path, value)]


def _short(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else plain(value)
    return text if len(text) <= 60 else text[:57] + "..."
