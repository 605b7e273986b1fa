"""A report as one HTML file that needs nothing else.

from llm_recipes.evaluation.report.html import html

Texts of records are hostile until they are escaped: jinja2 escapes them all, and characters that
control a screen are shown by their code.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from llm_recipes.evaluation.report.blocks import Report
from llm_recipes.evaluation.report.values import clean

TEMPLATES = Path(__file__).parent


def html(report: Report) -> str:
    """The page."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES, encoding="utf-8"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=_harmless,
    )
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    # The browser runs no script and loads nothing, whatever a text may contain.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    template = environment.get_template("report.html.j2")
    return template.render(report=report, style=Markup(style), policy=policy)


def _harmless(value: Any) -> Any:
    return clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
