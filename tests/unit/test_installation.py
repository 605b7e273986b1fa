"""The parts of an installation: versions, manifests, modulefiles, an Apptainer of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from _llm.apptainer import private_apptainer
from _llm.installation import build, manifest, modulefiles, tools
from _llm.installation.layout import Layout, version_order

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "llm", "0.1.0", tmp_path / "modulefiles")
    found.builds.mkdir(parents=True)
    return found


def test_versions_are_ordered_as_people_do() -> None:
    versions = ["0.9", "0.10", "1.0rc1", "1.0", "1.0.1", "1.1a1", "1.1"]
    shuffled = versions[::-1]
    assert sorted(shuffled, key=version_order) == versions


def test_only_links_to_builds_are_versions(layout: Layout) -> None:
    assert layout.current() is None and not layout.is_foreign()
    layout.link.symlink_to(".versions/0.1.0-abcdefgh")
    assert layout.current() is None and not layout.is_foreign() and layout.installed() == []
    (layout.builds / "0.1.0-abcdefgh").mkdir()
    assert layout.current() == layout.builds / "0.1.0-abcdefgh"
    for name, target in (("0.2.0", "/elsewhere"), ("0.3.0", "../0.1.0"), ("latest", "0.1.0")):
        (layout.prefix / name).symlink_to(target)
    (layout.prefix / "0.4.0").mkdir()
    assert layout.installed() == ["0.1.0"]
    assert Layout(layout.prefix, "0.2.0", layout.modulepath).is_foreign()
    assert Layout(layout.prefix, "0.4.0", layout.modulepath).is_foreign()


def test_a_manifest_knows_what_is_not_ours(tmp_path: Path) -> None:
    (tmp_path / "a/__pycache__").mkdir(parents=True)
    for name in ("one", "a/two", "a/three"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("one")
    manifest.write_manifest(tmp_path)
    assert manifest.foreign_files(tmp_path) == ([], [])
    (tmp_path / "a/__pycache__/two.cpython-311.pyc").write_text("")
    (tmp_path / "a/two").write_text("changed")
    (tmp_path / "a/four").write_text("added")
    (tmp_path / "link").unlink()
    (tmp_path / "link").symlink_to("a/two")
    (tmp_path / "one").unlink()
    added, changed = manifest.foreign_files(tmp_path)
    assert added == [tmp_path / "a/four"]
    assert sorted(changed) == [tmp_path / "a/two", tmp_path / "link"]
    assert manifest.remove_installed(tmp_path) == sorted([*added, *changed])
    assert {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*")} == {
        "a", "a/two", "a/four", "link"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}'])
def test_without_a_whole_manifest_nothing_is_removed(tmp_path: Path, text: str) -> None:
    (tmp_path / "one").write_text("one")
    (tmp_path / manifest.NAME).write_text(text)
    stays = manifest.remove_installed(tmp_path)
    assert tmp_path / "one" in stays and (tmp_path / "one").exists()


def test_modulefiles_say_what_they_are(layout: Layout) -> None:
    files = modulefiles.render_modulefiles(REPOSITORY / "modules", layout, "mine", ["tool/1.4"])
    assert set(files) == {f"0.1.0{variant}{end}" for variant in ("", "-cpu", "-cuda12", "-cuda13")
                          for end in ("", ".lua")}
    for name, text in files.items():
        assert "@" not in text, name
        assert "tool/1.4" in text and "mine" in text
        assert ("LLM_IMAGE" in text) is ("-" in name)
        assert text.startswith("--" if name.endswith(".lua") else "#%Module1.0\n")
        assert ('add_property("arch", "gpu")' in text) is (
            name.endswith(".lua") and "cuda" in name)
    path = layout.prefix / "file"
    path.write_text(files["0.1.0"])
    assert modulefiles.is_ours(path) and not modulefiles.is_ours(layout.prefix)
    path.write_text("#%Module1.0\nsomebody's\n")
    assert not modulefiles.is_ours(path)


def test_words_are_quoted_for_tcl_and_lua() -> None:
    hostile = """it's "my" $x [y] {z; ü\\"""
    assert modulefiles.tcl_word(hostile) == (
        "it\\'s\\ \\\"my\\\"\\ \\$x\\ \\[y\\]\\ \\{z\\;\\ \\ü\\\\")
    assert modulefiles.tcl_word("") == "{}"
    assert modulefiles.lua_text('a"b\\') == '"a\\"b\\\\"'


def test_the_way_from_a_modulefile_to_the_installation(tmp_path: Path) -> None:
    def steps(prefix: str, modulepath: str) -> tuple[int, str]:
        return modulefiles.steps_to(Layout(tmp_path / prefix, "1", tmp_path / modulepath))

    assert steps("apps/llm", "apps/modulefiles") == (2, "/llm/1")
    assert steps("apps/llm", "apps/llm/modulefiles") == (2, "/1")
    assert steps("apps", "apps/a/b/c") == (4, "/1")


def test_parts_of_dead_processes_are_abandoned(layout: Layout) -> None:
    host = os.uname().nodename
    for pid, wanted in ((str(os.getpid()), False), ("999999999", True)):
        part = layout.builds / f"{build.PART}{host}-{pid}-0.1.0-abcd_fgh"
        part.mkdir()
        assert build.is_abandoned(part) is wanted
    elsewhere = layout.builds / f"{build.PART}other-host-999999999-0.1.0-abcdefgh"
    elsewhere.mkdir()
    assert not build.is_abandoned(elsewhere)  # that process can't be seen from here
    os.utime(elsewhere, (0, 0))
    assert build.is_abandoned(elsewhere)


@pytest.mark.skipif(not private_apptainer(str(REPOSITORY)), reason="this checkout has no Apptainer")
def test_an_apptainer_is_copied_so_that_it_starts(layout: Layout, tmp_path: Path) -> None:
    layout.tools.mkdir()
    target, why = tools.copy_apptainer(REPOSITORY, layout)
    assert target and not why
    used = layout.builds / "0.1.0-abcdefgh/.tools"
    used.mkdir(parents=True)
    (used / "apptainer").symlink_to(f"../../../.tools/{target.name}")
    program = private_apptainer(str(used.parent))
    assert program
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("apptainer version"), done.stderr
    old = os.fsencode((REPOSITORY / ".tools/apptainer").resolve())
    assert not [p for p in manifest.files_in(target) if not p.is_symlink()
                and p.name != manifest.NAME and old in p.read_bytes()]
    assert tools.copy_apptainer(REPOSITORY, layout) == (target, "")
    assert tools.copy_apptainer(tmp_path, layout) == (target, "")  # a checkout without one
    assert tools.remove_unused(layout) == [] and target.exists()
    (used / "apptainer").unlink()
    assert tools.remove_unused(layout) == [] and not target.exists()
    spaced = Layout(tmp_path / "a b", "0.1.0", tmp_path)
    assert tools.copy_apptainer(REPOSITORY, spaced)[0] is None
