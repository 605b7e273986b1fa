"""The manual builds, its links lead somewhere, its variables and profiles are real ones."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from documents import HOME, Block, anchors, blocks, code_spans, documents, links

sys.path.insert(0, str(HOME / "bin"))
from _llm.errors import LLMError
from _llm.options import OPTIONS
from _llm.settings import KEYS, load_settings

sys.path.insert(1, str(HOME / "recipes"))
from llm_recipes.meta.releases import RELEASES

DOCUMENTS = documents()
SOURCES = ("bin/**/*.py", "bin/**/*.sh", "bin/llm-run", "recipes/**/*.py", "Makefile")


def broken_links(document: str, text: str) -> list[str]:
    """Links of a document to files and headings that don't exist."""
    found = []
    for line, target in links(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (HOME / document).parent / path if path else HOME / document
        content = text if not path else ""
        if path and file.is_file():
            content = file.read_text(encoding="utf-8")
        if not file.exists() or (anchor and anchor not in anchors(content)):
            found.append(f"{document}:{line}: {target}")
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    assert not broken_links(document, DOCUMENTS[document])


def test_a_broken_link_is_found() -> None:
    text = "# Head\n[a](docs/no.md) [b](#nowhere) [c](docs/index.md#nowhere) [d](#head)\n"
    assert [fault.split(": ")[1] for fault in broken_links("README.md", text)] == [
        "docs/no.md",
        "#nowhere",
        "docs/index.md#nowhere",
    ]


def test_variables_are_known_to_the_programs() -> None:
    files = [file for pattern in SOURCES for file in HOME.glob(pattern)]
    code = "\n".join(file.read_text(encoding="utf-8") for file in files)
    known = set(re.findall(r"\bLLM_[A-Z][A-Z0-9_]*", code))
    assert "LLM_IMAGE_DIR" in known
    for document, text in DOCUMENTS.items():
        assert set(re.findall(r"\bLLM_[A-Z][A-Z0-9_]*", text)) <= known, document


def test_every_setting_is_in_the_manual() -> None:
    text = DOCUMENTS["docs/sites.md"]
    assert not [name for name in KEYS if f"`{name.partition('.')[2]}`" not in text]
    assert not [name for name in KEYS if f"`[{name.partition('.')[0]}]`" not in text]


def test_every_option_of_llm_run_is_in_the_manual() -> None:
    text = DOCUMENTS["docs/llm-run.md"]
    assert not [option for option in OPTIONS if f"`{option}" not in text]


def test_releases_of_meta_are_as_the_recipes_know_them() -> None:
    """Number of shards, GB of weights in each, context, rope factor."""
    text = DOCUMENTS["docs/meta-checkpoints.md"].partition("\n### Releases\n")[2]
    cells = (re.split(r" *\| *", line) for line in text.partition("\n#")[0].splitlines())
    rows = {row[1]: row[2:6] for row in cells if len(row) == 7 and row[2].isdigit()}
    known = {release.name: release for release in RELEASES}
    assert len(rows) > 15
    for name, (shards, size, context, factor) in rows.items():
        release = known.pop(name)
        assert (int(shards), int(context)) == (release.degree, release.context), name
        assert factor == ("" if release.rope_factor is None else f"{release.rope_factor:g}"), name
        keys = release.dim * release.kv_heads // release.heads
        layer = release.dim * (2 * release.dim + 2 * keys + 3 * release.ffn)
        ends = release.vocabulary * release.dim * (1 if release.tied else 2)
        weights = 2 * (release.layers * layer + ends) / release.degree
        assert abs(weights / 1e9 - float(size)) < 0.06, name
    assert all(re.match("Code Llama .+ (Python|Instruct)$", name) for name in known)


def test_fields_of_the_manual_are_written_by_the_recipes() -> None:
    code = "\n".join(file.read_text(encoding="utf-8") for file in HOME.glob("recipes/**/*.py"))
    spans = [span for _, span in code_spans(DOCUMENTS["docs/inference.md"])]
    fields = {span for span in spans if re.fullmatch("[a-z]+(_[a-z]+)+", span)}
    programs = {"convert_hf_to_gguf", "llama_cpp", "gpu_usage_live"}
    assert len(fields) > 20
    assert not [field for field in fields - programs if f'"{field}"' not in code]


@pytest.mark.parametrize(
    "block",
    [b for name, text in DOCUMENTS.items() for b in blocks(name, text) if b.language == "ini"],
    ids=str,
)
def test_profiles_are_valid(block: Block, tmp_path: Path) -> None:
    profile = tmp_path / "example.ini"
    env = {"HOME": str(tmp_path), "USER": "somebody"}
    profile.write_text(block.text, encoding="utf-8")
    load_settings(env, str(HOME), str(profile))
    profile.write_text(profile.read_text() + "\n[container]\nvariant = cpu\n", encoding="utf-8")
    with pytest.raises(LLMError):
        load_settings(env, str(HOME), str(profile))


def test_manual_builds_and_needs_no_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    done = subprocess.run(
        [*command, "--config-file", str(HOME / "mkdocs.yml"), "--site-dir", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = sorted((tmp_path / "site").glob("**/*.html"))
    assert len(pages) > len(list((HOME / "docs").glob("*.md")))
    for page in pages:
        html = page.read_text(encoding="utf-8")
        assert not re.findall(r'<(?:script|img|iframe|source)[^>]*\bsrc="?(?:https?:)?//', html)
        assert not re.findall(r'<link[^>]*\bhref="?(?:https?:)?//', html), page
