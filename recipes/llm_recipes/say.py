"""Tell the user something; standard output is for results.

from llm_recipes.say import say
"""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Tell the user something, in one piece: several tasks may write to the same place."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
