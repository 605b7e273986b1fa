"""Image, code and inputs of a record: here and the same, here and another, or gone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from git_folders import git

from _llm.errors import LLMError
from _llm.record.code import copy_commit, find_code
from _llm.record.content import content_digest, file_sha256, files_sha256
from _llm.record.finding import GONE, OK, OTHER, UNKNOWN
from _llm.record.images import find_image, identity
from _llm.record.inputs import check_inputs
from _llm.record.reading import Record
from _llm.settings import Settings, load_settings
from _llm.sif import payload_digest

REPOSITORY = Path(__file__).resolve().parents[3]


def record(whole: dict[str, Any], /, **parts: dict[str, Any]) -> Record:
    changed = {name: {**whole.get(name, {}), **part} for name, part in parts.items()}
    return Record("/runs/x.run.json", {**whole, **changed}, "sha256:0")


@pytest.fixture
def settings(image: Path, tmp_path: Path) -> Settings:
    env = {"LLM_IMAGE_DIR": str(image.parent), "LLM_CACHE_DIR": str(tmp_path / "cache"),
           "HOME": str(tmp_path), "LLM_SITE": "default"}
    return load_settings(env, str(REPOSITORY))


def test_the_image_is_found_by_what_it_holds(
    data: dict[str, Any], settings: Settings, image: Path, tmp_path: Path
) -> None:
    path, finding = find_image(record(data), settings, str(tmp_path))
    assert (path, finding.state) == (str(image), OK)
    moved = image.with_name("a copy; 'x'.sif")
    image.rename(moved)
    image.write_bytes(b"hsqs another of the same name")
    assert find_image(record(data), settings, str(tmp_path))[0] == str(moved)
    moved.unlink()
    path, finding = find_image(record(data), settings, str(tmp_path))
    assert (path, finding.state) == (str(image), OTHER)  # for --best-effort
    assert "make image IMAGE=llm VARIANT=cpu" in finding.fix and data["code"]["commit"][:12] in \
        finding.fix and "llm-cpu-0123456789ab.sif" in finding.fix and "make import" in finding.fix


def test_an_image_elsewhere_is_found_by_its_recorded_path(
    data: dict[str, Any], settings: Settings, image: Path, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "mine.sif"
    image.rename(elsewhere)
    data["launch"]["image"] = str(elsewhere)
    assert find_image(record(data), settings, str(tmp_path))[1].state == OK
    elsewhere.unlink()
    path, finding = find_image(record(data), settings, str(tmp_path))
    assert (path, finding.state) == ("", GONE)


def test_older_and_odd_images(
    data: dict[str, Any], settings: Settings, image: Path, tmp_path: Path
) -> None:
    old = record(data, image={"digest": "0123456789ab", "inputs": None})
    assert identity(old) == ("llm-cpu", "", "0123456789ab")
    path, finding = find_image(old, settings, str(tmp_path))
    assert (path, finding.state) == (str(image), UNKNOWN)
    gone = record(data, image={"digest": "ba9876543210", "inputs": None})
    path, finding = find_image(gone, settings, str(tmp_path))
    assert (path, finding.state) == (str(image), GONE)
    for name in (None, "", "../../x", "a b", 7):
        assert find_image(record(data, image={"name": name}), settings, "/")[1].state == GONE
    image.write_bytes(b"")  # damaged: said, and no reason to stop looking
    assert find_image(record(data), settings, "/")[1].state in (GONE, OTHER)


def code(data: dict[str, Any], checkout: Path, tmp_path: Path, **part: Any) -> Any:
    return find_code(record(data, code=part), str(checkout), str(tmp_path / "cache"))


def test_the_same_commit_is_used_as_it_is(
    data: dict[str, Any], checkout: Path, tmp_path: Path
) -> None:
    found = code(data, checkout, tmp_path)
    assert [one.state for one in found.findings] == [OK, OK] and found.home == str(checkout)
    assert found.recipe == str(checkout / "recipes/inference/generate.py") and not found.commit


def test_another_commit_is_copied(data: dict[str, Any], checkout: Path, tmp_path: Path) -> None:
    (checkout / "recipes/inference/generate.py").write_text("later")
    dirty = code(data, checkout, tmp_path)
    git(checkout, "commit", "-qam", "later")
    found = code(data, checkout, tmp_path)
    assert [one.state for one in found.findings] == [OK, OK]
    assert dirty.commit == found.commit == data["code"]["commit"]
    assert not os.path.exists(found.home)  # looking copies nothing
    for _ in range(2):
        copy_commit(found.commit, str(checkout), found.home)
    assert file_sha256(found.recipe) == data["code"]["recipe"]["sha256"]
    assert os.access(os.path.join(found.home, "bin/llm-run"), os.X_OK)
    assert Path(found.home, ".commit").read_text().strip() == found.commit
    assert os.listdir(os.path.dirname(found.home)) == [found.commit]
    Path(found.recipe).unlink()  # as cleaners of scratch file systems do
    copy_commit(found.commit, str(checkout), found.home)
    assert file_sha256(found.recipe) == data["code"]["recipe"]["sha256"]
    with pytest.raises(LLMError, match="can't be copied"):
        copy_commit("0" * 40, str(checkout), str(tmp_path / "no"))


def test_code_that_is_nowhere_is_named(
    data: dict[str, Any], checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finding = code(data, checkout, tmp_path, commit="0" * 40).findings[0]
    assert finding.state == GONE and "git here does not know it" in finding.text
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = code(data, checkout, tmp_path, commit="0" * 40).findings[0]
    assert finding.state == GONE and "git does not start" in finding.text
    monkeypatch.undo()
    (checkout / ".git").rename(checkout / "git")
    (checkout / ".commit").write_text("1" * 40)
    finding = code(data, checkout, tmp_path).findings[0]
    assert finding.state == GONE and "no checkout with git" in finding.text
    (checkout / ".commit").write_text(data["code"]["commit"])
    assert code(data, checkout, tmp_path).findings[0].state == OK


def test_changes_that_were_never_committed(
    data: dict[str, Any], checkout: Path, tmp_path: Path
) -> None:
    files = files_sha256(str(checkout / "recipes"))
    for commit in (data["code"]["commit"], None):
        part = {"commit": commit, "dirty": True, "files_sha256": files}
        assert code(data, checkout, tmp_path, **part).findings[0].state == OK
        part["files_sha256"] = "0" * 64
        finding = code(data, checkout, tmp_path, **part).findings[0]
        assert finding.state == GONE and "it can't be had" in finding.text
        finding = code(data, checkout, tmp_path, **{**part, "files_sha256": None}).findings[0]
        assert finding.state == GONE and "does not say" in finding.text


def test_new_and_staged_files_are_known_by_their_hash(
    data: dict[str, Any], checkout: Path, tmp_path: Path
) -> None:
    """A record calls such a tree clean, and its commit alone is not what ran."""
    clean = files_sha256(str(checkout / "recipes"))
    recipe, new = checkout / "recipes/inference/generate.py", checkout / "recipes/new.py"

    def found(files: str) -> Any:
        return code(data, checkout, tmp_path, files_sha256=files)

    assert found(clean).findings[0].state == OK and not found(clean).commit
    new.write_text("x")
    with_new = files_sha256(str(checkout / "recipes"))
    assert found(with_new).findings[0].state == OK and not found(with_new).commit
    before = found(clean)  # is what git has, without the file that came later
    assert before.findings[0].state == OK and before.commit == data["code"]["commit"]
    new.unlink()
    recipe.write_text(recipe.read_text() + "changed = 1\n")
    git(checkout, "add", ".")
    data["code"]["recipe"]["sha256"] = file_sha256(str(recipe))
    staged = files_sha256(str(checkout / "recipes"))
    assert [one.state for one in found(staged).findings] == [OK, OK]
    git(checkout, "commit", "-qm", "what ran")  # only after the run: the recorded commit lacks it
    later = found(staged)
    assert [one.state for one in later.findings] == [OK, OK] and not later.commit
    assert "the same, byte for byte" in later.findings[0].text
    git(checkout, "reset", "-q", "--hard", "HEAD~1")
    for files in (with_new, staged):
        finding = found(files).findings[0]
        assert finding.state == GONE and "new or staged files" in finding.text
        assert finding.fix == "--best-effort takes what is here"


def test_changes_only_by_the_times_of_files(
    data: dict[str, Any], checkout: Path, tmp_path: Path
) -> None:
    """As in a checkout that was copied: git has all that ran."""
    files = files_sha256(str(checkout / "recipes"))
    (checkout / "recipes/inference/generate.py").write_text("later")
    found = code(data, checkout, tmp_path, dirty=True, files_sha256=files)
    assert [one.state for one in found.findings] == [OK, OK]
    assert found.commit == data["code"]["commit"] and "copied out" in found.findings[0].text


@pytest.mark.parametrize(("recipe", "state"), [
    ({"path": "recipes/inference/generate.py", "sha256": "0" * 64}, OTHER),
    ({"path": "recipes/inference/generate.py"}, UNKNOWN),
    ({"path": "recipes/gone.py", "sha256": "0" * 64}, GONE),
    ({"path": "../../etc/passwd", "sha256": "0" * 64}, GONE),
    ({"path": "/nowhere/mine.py", "sha256": "0" * 64}, GONE),
    (None, UNKNOWN),
    ("recipes/inference/generate.py", UNKNOWN),
])
def test_the_recipes_file(
    data: dict[str, Any], checkout: Path, tmp_path: Path, recipe: Any, state: str
) -> None:
    assert code(data, checkout, tmp_path, recipe=recipe).findings[-1].state == state


def test_inputs(data: dict[str, Any], run_folder: Path, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    prompts = run_folder / "prompts.txt"
    assert [one.state for one in check_inputs(record(data), cache)] == [OK]
    prompts.write_text("a\nc\n")
    (finding,) = check_inputs(record(data), cache)
    assert finding.state == OTHER and str(prompts) in finding.text
    prompts.unlink()
    assert check_inputs(record(data), cache)[0].state == GONE
    stdin = record(data, data={"path": "-", "resolved": None, "content": None})
    (finding,) = check_inputs(stdin, cache)
    assert finding.state == GONE and "standard input" in finding.text
    old = record(data, data={"resolved": None, "content": None})
    assert check_inputs(old, cache)[0].state == UNKNOWN
    prompts.touch()
    assert check_inputs(old, cache)[0].state == UNKNOWN
    several = record(data, data={"files": {str(prompts): "0" * 64, "relative": "0", "/x": 1}})
    assert [one.state for one in check_inputs(several, cache)] == [OTHER, OTHER]


def test_what_a_run_made_is_nothing_that_it_needs(tmp_path: Path) -> None:
    """A folder that was moved away must not hinder the run that makes it again."""

    def states(output: str, **part: str) -> list[str]:
        data = {"config": {"output": output}, "cwd": str(tmp_path), "data": part}
        found = check_inputs(Record("/runs/x.run.json", data, ""), str(tmp_path))
        return [one.state for one in found]

    assert states("m", path=f"{tmp_path}/m") == []
    assert states(f"{tmp_path}/m", path=f"{tmp_path}/m/train.jsonl") == []
    assert states("m", path=f"{tmp_path}/m2") == [GONE]
    assert states("m", path="m", resolved=f"{tmp_path}/m") == [GONE]  # it was read


def test_the_cache_is_believed_until_the_file_changes(tmp_path: Path) -> None:
    file, cache = tmp_path / "weights.bin", tmp_path / "cache"
    file.write_bytes(b"one")
    os.utime(file, (1, 1))
    first = content_digest(str(file), str(cache))
    assert first == "sha256:" + file_sha256(str(file))
    status = file.stat()
    kept = cache / "digests" / f"file-{status.st_dev:x}-{status.st_ino:x}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    key = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    kept.write_text(f"{key} {'a' * 64}\n")
    assert content_digest(str(file), str(cache)) == "sha256:" + "a" * 64
    for damage in ("", "1 2", f"{key} {'z' * 64}\n", f"9{key} {'a' * 64}\n"):
        kept.write_text(damage)
        assert content_digest(str(file), str(cache)) == first
    with pytest.raises(OSError, match="no regular file"):
        content_digest(os.devnull, str(cache))


def test_the_folder_of_a_model_counts_without_its_records(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    before = content_digest(str(folder), str(tmp_path))
    for name in ("run.json", "x.run.json", "plot.png", ".hidden.json"):
        (folder / name).write_text("x")
    assert content_digest(str(folder), str(tmp_path)) == before
    (folder / "tokenizer.json").write_text("{}")
    assert content_digest(str(folder), str(tmp_path)) != before
    assert payload_digest(str(folder / "config.json")).startswith("sha256:")
