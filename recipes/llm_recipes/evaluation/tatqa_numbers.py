"""Numbers in TAT-QA's answers: what the published scoring reads in a text, and what is meant.

    published("$1,496.5")        # Amount(1496.5, is_share=False)
    meant("(1,234)")             # Amount(-1234.0, is_share=False); published reads 1234

Both give None for a text that is no number. Published rules: tatqa_metric.py and tatqa_utils.py
of https://github.com/NExTplusplus/TAT-QA (Zhu et al. 2021).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

FACTORS = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "percent": 0.01}
SIGNS = str.maketrans("", "", "'\"\\$€£¥%(),[]")
MOST_DIGITS = 100  # a float holds 308, a scale included
DIGITS = re.compile(r"(?P<number>[+-]?\d+(?:\.\d+)?)|[+-]?\.\d+")
PUBLISHED_NEGATIVE = re.compile(r"\([\d.\s]+\)")
# One character where the published program has several: the same is found, in linear time.
PUBLISHED_PERCENT = re.compile(r"[\d.\s]%")
NUMBER_AND_WORD = re.compile(r"[\d.]\s?[a-zA-Z]+")
# Minus signs and dashes that stand for one in front of a number.
MINUSES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-"))
CURRENCY = r"(?:(?:US|A|C|HK)?[$€£¥]|US\b|USD|EUR|GBP|RMB)?"
WRITTEN = re.compile(
    rf"(?P<minus>[-+]?)\s*{CURRENCY}\s*(?P<open>\(?)\s*(?P<inner>[-+]?)\s*{CURRENCY}\s*"
    r"(?P<digits>(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d*)?|\.\d+)(?P<exponent>e[-+]?\d{1,3})?\s*"
    r"(?P<percent>%?)\s*(?P<close>\)?)\s*(?P<percent_behind>%?)"
    r"(?:\s*(?P<word>hundred|thousand|million|billion|percent)s?)?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True)
class Amount:
    """A number that was read. is_share: a percent sign made it a fraction, and no scale applies.

    own_scale: the scale that the text itself names and that the value has in it already.
    """

    value: float
    is_share: bool
    own_scale: str = ""


def factor(scale: str) -> float:
    """What a scale multiplies by: 1 for none."""
    return next((value for name, value in FACTORS.items() if name in scale.lower()), 1)


def published(text: str) -> Amount | None:
    """A number as the published scoring reads it, with all of its peculiarities."""
    cleaned = text.translate(SIGNS)
    words = cleaned.split()
    if not words or not _is_float(words[0]) or (len(words) > 1 and factor(words[1]) == 1):
        return None
    found = DIGITS.search(cleaned)
    if found is None or found["number"] is None or len(found["number"]) > MOST_DIGITS:
        return None
    number = float(found["number"]) if "." in found["number"] else int(found["number"])
    word = NUMBER_AND_WORD.search(text)
    own = factor(word[0]) if word else 1
    sign = -1 if PUBLISHED_NEGATIVE.search(text) else 1
    percent = 0.01 if PUBLISHED_PERCENT.search(text) else 1
    return Amount(round(number * own * sign * percent, 4), "%" in text)


def meant(text: str) -> Amount | None:
    """A number as people write it: accounting's parentheses, separators, any minus, exponents."""
    written = text.strip().translate(MINUSES).rstrip(".;:!?").strip(" '\"[]")
    found = WRITTEN.fullmatch(written)
    if found is None or bool(found["open"]) != bool(found["close"]):
        return published(text)
    if found["minus"] and found["inner"]:
        return None
    value = float(found["digits"].replace(",", "") + (found["exponent"] or ""))
    if value > 10**MOST_DIGITS:
        return None
    negative = "-" in (found["minus"], found["inner"]) or bool(found["open"])
    is_share = bool(found["percent"] or found["percent_behind"])
    own = (found["word"] or "").lower()
    value *= (0.01 if is_share else 1) * factor(own) * (-1 if negative else 1)
    return Amount(round(value, 4), is_share, own)


def _is_float(word: str) -> bool:
    try:
        return not math.isnan(float(word))
    except ValueError:
        return False
