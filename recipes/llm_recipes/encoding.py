"""Texts of the command line that are not UTF-8: Python passes their bytes on as half characters.

from llm_recipes.encoding import is_utf8, not_utf8
"""

from __future__ import annotations

from llm_recipes.errors import LLMError


def is_utf8(text: str | None) -> bool:
    """Whether a text can be written as UTF-8; None can."""
    try:
        (text or "").encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def not_utf8(what: str) -> LLMError:
    """The fault of a text in another encoding."""
    fix = "set the terminal to UTF-8, or convert the script: iconv -f latin1 -t utf-8"
    return LLMError(f"{what} is not UTF-8", "it has bytes of another encoding", fix)
