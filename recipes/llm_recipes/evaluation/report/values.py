"""Values of records, which may hold anything, and numbers with as many digits as they deserve.

from llm_recipes.evaluation.report.values import at, figure, number
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

GB = 1e9
MOST = 300  # characters of a value in a table
# What would change the order or the look of all text around it.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufff9-\ufffb\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]"
)


def at(record: Any, *names: str) -> Any:
    """The value under these names, one in the other; None where there is none."""
    for name in names:
        if not isinstance(record, Mapping):
            return None
        record = record.get(name)
    return record


def number(value: Any) -> float | None:
    """The value if it is a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    return found if math.isfinite(found) else None


def words(value: Any, most: int = MOST) -> str:
    """A value for people: texts as they are, nothing as "", others as JSON; long ones are cut."""
    if value is None:
        return ""
    if isinstance(value, str):
        text = value
    elif isinstance(value, bool):
        text = "yes" if value else "no"
    elif isinstance(value, list) and all(isinstance(part, str) for part in value):
        text = ", ".join(value)
    else:
        text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def clean(text: str) -> str:
    """The text without characters that control a screen: they are shown by their code instead."""
    return CONTROLS.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    code = ord(found[0])
    return chr(0x2400 + code) if code < 32 else f"[U+{code:04X}]"


def figure(value: float | None, decimals: int | None = None) -> str:
    """A number; decimals: None for four significant digits."""
    if value is None:
        return "–"
    if decimals is not None:
        text = f"{value:,.{decimals}f}"
        return text.replace("-", "−") if text.strip("-0.,") else text.lstrip("-")
    if abs(value) >= 1000:
        text = f"{value:,.0f}"
    elif value == 0 or abs(value) >= 1e-3:
        text = f"{value:.4g}"
    else:
        text = f"{value:.3g}"
    return text.replace("-", "−") if not text.startswith("1e") else text


def decimals_for(low: float | None, high: float | None) -> int | None:
    """As many decimals as half of an interval has in two significant digits."""
    if low is None or high is None or not high > low:
        return None
    return max(0, min(6, 1 - math.floor(math.log10((high - low) / 2))))


def interval(low: float | None, high: float | None, decimals: int | None = None) -> str:
    """Both ends of an interval."""
    if low is None or high is None:
        return "–"
    return f"{figure(low, decimals)} to {figure(high, decimals)}"


def bytes_text(count: float | None) -> str:
    """A size with its unit."""
    if count is None:
        return "–"
    return f"{count / GB:,.3g}\xa0GB" if count >= GB / 10 else f"{count / 1e6:,.3g}\xa0MB"


def rate(value: float | None) -> str:
    """A number a second."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percent(share: float | None) -> str:
    """A share of a machine's limit."""
    return "–" if share is None else f"{100 * share:.3g}\xa0%"


def count_text(count: float | None) -> str:
    """A number of parameters in words."""
    if count is None:
        return ""
    return f"{count / GB:.3g} billion" if count >= GB / 10 else f"{count / 1e6:.3g} million"


def duration(seconds: float | None) -> str:
    """A time with its unit."""
    if seconds is None:
        return "–"
    if seconds < 100:
        return f"{seconds:.3g}\xa0s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes}\xa0min"
    return f"{minutes // 60}\xa0h {minutes % 60:02d}\xa0min"


def moment(value: Any) -> datetime | None:
    """The time of a record."""
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None


def seconds_between(started: Any, finished: Any) -> float | None:
    """How long a run took by its record."""
    begin, end = moment(started), moment(finished)
    if begin is None or end is None or (begin.tzinfo is None) != (end.tzinfo is None):
        return None
    return (end - begin).total_seconds()


def moment_text(value: Any) -> str:
    """A time to the minute, in the zone that the record has."""
    found = moment(value)
    if found is None:
        return words(value)
    zone = f" {found.tzname()}" if found.tzinfo else ""
    return f"{found:%Y-%m-%d %H:%M}{zone}"
