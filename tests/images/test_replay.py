"""llm-record through the real CPU image: runs are had again from their records alone.

python -m pytest tests/images/test_replay.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
RECIPES = REPOSITORY / "recipes"
NAMES = ("generate", "sft", "qa")
LIMIT_S = 300


class Runs:
    """Three recorded runs of a tiny model, in a folder with a hostile name."""

    def __init__(self, folder: Path, image: Path, apptainer: str) -> None:
        self.folder = folder / "runs of ünï; 'x'"
        self.folder.mkdir()
        images = folder / "images"
        images.mkdir()
        (images / "llm-cpu-0123456789ab.sif").symlink_to(image)
        (images / "llm-cpu.sif").symlink_to("llm-cpu-0123456789ab.sif")
        self.env = {
            **{name: os.environ[name] for name in ("PATH", "HOME")},
            "LLM_IMAGE_DIR": str(images), "LLM_CACHE_DIR": str(folder / "cache"),
            "LLM_SITE": "default", "LLM_APPTAINER": apptainer, "OMP_NUM_THREADS": "1",
        }
        self.records = {name: self.folder / "out" / name / "run.json" for name in NAMES}
        self.records["generate"] = self.folder / "answers.run.json"
        self.replayed: dict[str, tuple[subprocess.CompletedProcess[str], dict[str, Any]]] = {}

    def start(self, *words: object, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(
            list(map(str, words)), cwd=self.folder, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)

    def recipe(self, path: str, *words: str) -> subprocess.Popen[str]:
        run = (REPOSITORY / "bin/llm-run", "--image", "llm-cpu", "--", "python", RECIPES / path)
        return self.start(*run, *words)

    def llm_record(
        self, *words: object, home: Path = REPOSITORY
    ) -> subprocess.CompletedProcess[str]:
        return ended(self.start(home / "bin/llm-record", *words))

    def changed(self, name: str, change: Callable[[dict[str, Any]], object]) -> Path:
        """A copy of a record, beside it, with something changed."""
        data = json.loads(self.records[name].read_text())
        change(data)
        path = self.records[name].with_name(f"changed.{self.records[name].name}")
        path.write_text(json.dumps(data))
        return path


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, cpu_image: Path, apptainer: list[str]
) -> Runs:
    made = Runs(tmp_path_factory.mktemp("replay"), cpu_image, apptainer[0])
    sizes = ("--steps=0", "--hidden-size=32", "--intermediate-size=64", "--layers=1", "--heads=2",
             "--vocab-size=512")
    done = ended(made.recipe("data/tiny.py", "--output", "tiny", *sizes))
    assert done.returncode == 0, done.stderr
    (made.folder / "prompts.txt").write_text("The sum of\nA list is\n")
    rows = [{"instruction": f"What is {a} plus {b}?", "context": "", "response": str(a + b),
             "category": "sums"} for a in range(4) for b in range(4)]
    (made.folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = ("--model", "tiny", "--data", "sums.jsonl", "--output")
    started = [
        made.recipe("inference/generate.py", "--model", "tiny", "--prompts", "prompts.txt",
                    "--output", "answers.jsonl", "--max-new-tokens", "6", "--temperature", "0.7"),
        made.recipe("finetune/sft.py", *data, "out/sft", "--max-steps", "3", "--max-length", "64",
                    "--global-batch", "4", "--learning-rate", "1e-05"),
        made.recipe("evaluate/qa.py", *data, "out/qa", "--max-new-tokens", "4"),
    ]
    for done in list(map(ended, started)):
        assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def replayed(runs: Runs) -> Runs:
    program = REPOSITORY / "bin/llm-record"
    # From elsewhere, with other variables: only the record says how it ran.
    runs.env["OMP_NUM_THREADS"] = "2"
    started = {name: runs.start(program, "replay", "--json", record)
               for name, record in runs.records.items()}
    for name, process in started.items():
        done = ended(process)
        assert done.stdout, done.stderr
        runs.replayed[name] = (done, json.loads(done.stdout))
    runs.env["OMP_NUM_THREADS"] = "1"
    return runs


@pytest.fixture
def prompts(runs: Runs) -> Iterator[Path]:
    """The prompts, which a test changes; afterwards they are what they were."""
    path = runs.folder / "prompts.txt"
    before = path.read_bytes()
    yield path
    path.write_bytes(before)


def test_what_a_record_names_is_here_and_the_same(runs: Runs) -> None:
    for name, record in runs.records.items():
        done = runs.llm_record("show", "--check", "--json", record)
        found = {one["part"]: one["state"] for one in json.loads(done.stdout)["findings"]}
        assert done.returncode == 0, (name, done.stdout)
        assert found["image"] == found["code"] == found["recipe"] == "ok", (name, found)
        assert found["model"] == found["data"] == found["result"] == "ok", (name, found)


@pytest.mark.parametrize("name", NAMES)
def test_a_replay_gives_the_same_bytes(replayed: Runs, name: str) -> None:
    done, answer = replayed.replayed[name]
    assert done.returncode == 0, (done.stdout, done.stderr)
    record, again = replayed.records[name], Path(answer["replay"])
    assert json.loads(record.read_text())["deterministic"] is True
    results = json.loads(record.read_text())["results"]
    assert results and {row["name"] for row in answer["results"]} == set(results)
    for file in results:
        assert (again.parent / file).read_bytes() == (record.parent / file).read_bytes(), file
    assert json.loads(again.read_text())["replay_of"]["path"] == str(record)
    assert json.loads(again.read_text())["environment"]["OMP_NUM_THREADS"] == "1"


def test_changed_prompts_are_named_and_change_the_answers(replayed: Runs, prompts: Path) -> None:
    prompts.write_text("The sum of\nA list was\n")
    record = replayed.records["generate"]
    before = set(replayed.folder.iterdir())
    done = replayed.llm_record("replay", record)
    assert done.returncode == 2
    assert f"data: {prompts} has changed" in done.stderr and "--best-effort" in done.stderr
    assert set(replayed.folder.iterdir()) == before
    done = replayed.llm_record("replay", "--best-effort", record)
    assert done.returncode == 1, done.stderr
    assert f"not the same: data {prompts}" in done.stdout
    assert "different  answers.jsonl" in done.stdout


def test_another_model_of_the_same_name_is_named(runs: Runs) -> None:
    weights = runs.folder / "tiny/model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    try:
        done = runs.llm_record("replay", "--dry-run", runs.records["sft"])
    finally:
        weights.write_bytes(before)
    assert done.returncode == 2
    assert f"model: {runs.folder / 'tiny'} has changed" in done.stderr


def test_another_image_is_named(runs: Runs) -> None:
    def other_image(data: dict[str, Any]) -> None:
        data["image"]["digest"] = "sha256:" + "0" * 64

    record = runs.changed("qa", other_image)
    done = runs.llm_record("replay", record)
    assert done.returncode == 2 and "with sha256:0000" in done.stderr
    assert "make image IMAGE=llm VARIANT=cpu" in done.stderr and "make import" in done.stderr
    assert runs.llm_record("replay", "--dry-run", "--best-effort", record).returncode == 0


def test_another_recipe_is_named(runs: Runs) -> None:
    def other_recipe(data: dict[str, Any]) -> None:
        data["code"]["recipe"]["sha256"] = "0" * 64

    done = runs.llm_record("replay", runs.changed("qa", other_recipe))
    assert done.returncode == 2 and "recipes/evaluate/qa.py has changed" in done.stderr


def test_an_earlier_commit_is_copied_out_of_git(runs: Runs, tmp_path: Path) -> None:
    if not (REPOSITORY / ".git").exists() or not shutil.which("git"):
        pytest.skip("no checkout")
    clone, recipe = tmp_path / "the clone", "recipes/inference/generate.py"

    def git(*words: str) -> str:
        identity = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
        command = ["git", "-C", str(clone), *identity, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    subprocess.run(["git", "clone", "-q", REPOSITORY, clone], check=True)
    commit = git("rev-parse", "HEAD")
    digest = subprocess.run(["sha256sum", clone / recipe], check=True, capture_output=True,
                            text=True).stdout.split()[0]
    (clone / recipe).write_text("raise SystemExit('a later version')\n")
    git("commit", "-qam", "later")

    def of_that_commit(data: dict[str, Any]) -> None:
        data["code"] = {"commit": commit, "dirty": False, "files_sha256": None,
                        "recipe": {"path": recipe, "sha256": digest}}

    record = runs.changed("generate", of_that_commit)
    done = runs.llm_record("replay", "--output", tmp_path / "again", record, home=clone)
    assert done.returncode == 0, done.stderr + done.stdout
    made = json.loads(next((tmp_path / "again").glob("*.run.json")).read_text())
    assert made["code"]["commit"] == commit
    assert made["argv"][0].startswith(str(runs.env["LLM_CACHE_DIR"]))
