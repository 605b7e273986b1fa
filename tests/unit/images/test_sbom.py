"""The list of software: CycloneDX, and the same bytes for the same tree."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from _llm.images.sbom import make_sbom, supplier

SITE = "usr/local/lib/python3.11/dist-packages"
DIGEST = "3f9c" * 16


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = tmp_path / "tree"
    for name in ("zebra", "ape"):
        folder = tree / SITE / f"{name}-1.dist-info"
        folder.mkdir(parents=True)
        (folder / "METADATA").write_text(
            f"Name: {name}\nVersion: 1\nLicense-Expression: MIT\nRequires-Dist: ape\n"
            "Author-email: Ä <a@b.org>\n\n")
        (folder / "RECORD").write_text(f"{name}-1.dist-info/METADATA,,\n")
    (tree / "etc").mkdir()
    (tree / "etc/os-release").write_text('ID=debian\nVERSION_ID="12"\nPRETTY_NAME="Debian 12"\n')
    return tree


def test_same_bytes_for_the_same_tree(tree: Path, tmp_path: Path) -> None:
    first = make_sbom(tree, "llm-cpu", DIGEST, "2026-11-22")
    copy = tmp_path / "copied"
    # Made in another order, with other times.
    for path in sorted(tree.rglob("*"), reverse=True):
        if path.is_file():
            target = copy / path.relative_to(tree)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            os.utime(target, (1, 1))
    assert make_sbom(copy, "llm-cpu", DIGEST, "2026-11-22") == first
    assert make_sbom(tree, "llm-cpu", DIGEST[::-1], "2026-11-22") != first
    (tree / SITE / "ape-1.dist-info/METADATA").write_text("Name: ape\nVersion: 2\n")
    assert make_sbom(tree, "llm-cpu", DIGEST, "2026-11-22") != first


def test_what_it_holds(tree: Path) -> None:
    document = json.loads(make_sbom(tree, "llm-cpu", DIGEST, "2026-11-22"))
    assert (document["bomFormat"], document["specVersion"]) == ("CycloneDX", "1.6")
    assert document["metadata"]["timestamp"] == "2026-11-22T00:00:00Z"
    assert document["metadata"]["component"]["name"] == "llm-cpu"
    assert [c["name"] for c in document["components"]] == ["debian", "ape", "zebra"]
    for part in document["components"]:
        assert any(p["name"] == "llm:installed-bytes" for p in part["properties"])
    facts = {p["name"]: int(p["value"], 16 if "digest" in p["name"] else 10)
             for p in document["metadata"]["component"]["properties"]}
    sizes = [int(p["value"]) for c in document["components"] for p in c["properties"]
             if p["name"] == "llm:installed-bytes"]
    assert facts["llm:installed-bytes"] == sum(sizes) + facts["llm:unowned-bytes"]
    needs = {d["ref"]: d.get("dependsOn", []) for d in document["dependencies"]}
    assert needs["pkg:pypi/zebra@1"] == ["pkg:pypi/ape@1"]
    assert needs["pkg:pypi/ape@1"] == [], "not itself"
    references = [c["bom-ref"] for c in document["components"]]
    assert len(set(references)) == len(references)


def test_the_source_that_llama_cpp_was_compiled_from(tree: Path) -> None:
    containers = Path(__file__).parents[3] / "containers" / "llm"
    copied = "    llama.cpp/source.lock /opt/llm/llama.cpp.lock\n"
    assert copied in (containers / "image.def").read_text()
    (tree / "opt/llm").mkdir(parents=True)
    (tree / "opt/llama.cpp/lib").mkdir(parents=True)
    (tree / "opt/llama.cpp/lib/libllama.so.0.0.1").touch()
    lock = (containers / "llama.cpp/source.lock").read_text()
    (tree / "opt/llm/llama.cpp.lock").write_text(lock)
    document = json.loads(make_sbom(tree, "llm-cpu", DIGEST, "2026-11-22"))
    found = next(c for c in document["components"] if c["name"] == "llama.cpp")
    assert [h["content"] in lock for h in found["hashes"]] == [True]
    facts = {p["name"]: p["value"] for p in found["properties"]}
    assert facts["llm:source-package"] == "llama-cpp-python"
    assert f"llama-cpp-python=={facts['llm:source-version']} " in lock


def test_no_day_no_timestamp(tree: Path) -> None:
    assert "timestamp" not in json.loads(make_sbom(tree, "x", "", "unknown"))["metadata"]


def test_an_empty_tree(tmp_path: Path) -> None:
    assert json.loads(make_sbom(tmp_path, "x", DIGEST, ""))["components"] == []


@pytest.mark.parametrize("text, expected", [
    ("A Person <a@b.org>", {"name": "A Person", "contact": [{"email": "a@b.org"}]}),
    ("<a@b.org>", {"name": "a@b.org", "contact": [{"email": "a@b.org"}]}),
    ("A <no address>", {"name": "A <no address>"}), ("A, B", {"name": "A, B"}),
    ('"Q" <a"b@c.org>', {"name": "Q"}),
])
def test_supplier(text: str, expected: dict[str, object]) -> None:
    assert supplier(text) == expected
