"""What every check needs to know."""

from __future__ import annotations

from dataclasses import dataclass

from _llm.settings import Settings


@dataclass(frozen=True)
class Context:
    """What every check needs: settings, the environment, the checkout, and a name for our files."""

    settings: Settings
    env: dict[str, str]
    home: str
    token: str
    models: tuple[str, ...] = ()
    hash_image: bool = False
    collect_env: bool = False
