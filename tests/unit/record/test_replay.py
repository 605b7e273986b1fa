"""llm-record as it is typed, with a stand-in for llm-run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from git_folders import git

from _llm.record.code import Code
from _llm.record.replay import Plan, _take_folder, run

REPOSITORY = Path(__file__).resolve().parents[3]
# The library of this repository, as if it lay in the checkout of the test.
PROGRAM = """
import sys
sys.path.insert(0, {bin!r})
from _llm.errors import LLMError, report
from _llm.record import main, replay
from _llm.record.options import parse
from _llm.record.reading import find_record, read_record
from _llm.settings import load_settings
import os
try:
    options = parse(sys.argv[1:])
    settings = load_settings(dict(os.environ), {repository!r})
    if options.command == "replay":
        record = read_record(find_record(options.paths[0]))
        status = replay.replay(record, options, settings, {home!r})
    else:
        status = main.show(options, {home!r})
except LLMError as error:
    status = report("llm-record", [error])
except KeyboardInterrupt:
    status = 130
sys.exit(status)
"""


class Here:
    """A checkout and the environment of a user."""

    def __init__(self, checkout: Path, image: Path, tmp_path: Path, data: dict[str, Any]) -> None:
        text = {"bin": str(REPOSITORY / "bin"), "repository": str(REPOSITORY),
                "home": str(checkout)}
        self.program = [sys.executable, "-c", PROGRAM.format(**text)]
        self.checkout = checkout
        self.env = {
            "PATH": os.environ["PATH"], "HOME": str(tmp_path), "LLM_SITE": "default",
            "LLM_IMAGE_DIR": str(image.parent), "LLM_CACHE_DIR": str(tmp_path / "cache"),
            "LLM_APPTAINER": "/bin/true", "OMP_NUM_THREADS": "8",
            "RECORD_TEMPLATE": json.dumps(data),
        }

    def __call__(self, *words: object, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*self.program, *map(str, words)], env={**self.env, **env},
                              capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def llm_record(checkout: Path, image: Path, tmp_path: Path, data: dict[str, Any]) -> Here:
    return Here(checkout, image, tmp_path, data)


def change(record_file: Path, **parts: Any) -> None:
    record_file.write_text(json.dumps({**json.loads(record_file.read_text()), **parts}))


def test_a_replay_is_the_same(llm_record: Here, record_file: Path, run_folder: Path) -> None:
    before = {path: path.read_bytes() for path in run_folder.iterdir()}
    done = llm_record("replay", record_file)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("same: 1 of 1 files of results identical")
    folder = run_folder / "answers.replay-1"
    made = json.loads((folder / "answers.run.json").read_text())
    digest = subprocess.run(["sha256sum", record_file], capture_output=True, text=True, check=True)
    assert made["replay_of"] == {
        "path": str(record_file), "digest": f"sha256:{digest.stdout.split()[0]}", "same": True,
        "verdict": done.stdout.splitlines()[-1]}
    assert made["config"] == {"model": "owner/name", "prompts": "prompts.txt", "seed": 0,
                              "temperature": 1e-05, "output": str(folder / "answers.jsonl")}
    assert made["environment"]["OMP_NUM_THREADS"] == "3"  # as recorded, not as here
    assert "shown      load_s: 1.5 -> 9.5" in done.stdout  # a clock decides nothing
    assert {path: path.read_bytes() for path in before} == before
    assert sorted(os.listdir(folder)) == ["answers.jsonl", "answers.run.json"]
    assert not os.listdir(Path(llm_record.env["LLM_CACHE_DIR"]) / "replays")
    assert llm_record("replay", run_folder / "answers.jsonl").returncode == 0
    assert (run_folder / "answers.replay-2").is_dir()


def test_other_results_are_different(
    llm_record: Here, record_file: Path, run_folder: Path
) -> None:
    (run_folder / "prompts.txt").write_text("other\n")
    stopped = llm_record("replay", record_file)
    assert stopped.returncode == 2 and not (run_folder / "answers.replay-1").exists()
    assert "data: " in stopped.stderr and "has changed since" in stopped.stderr
    done = llm_record("replay", "--best-effort", "--json", record_file)
    answer = json.loads(done.stdout)
    assert done.returncode == 1 and answer["same"] is False
    assert answer["results"][0]["state"] == "other"


def test_options_of_the_recipe_and_another_folder(
    llm_record: Here, record_file: Path, run_folder: Path
) -> None:
    folder = run_folder / "new; folder"
    done = llm_record("replay", record_file, "--output", folder, "--", "--device", "cpu")
    assert done.returncode == 1 and (folder / "answers.jsonl").read_text().endswith("--device cpu")
    again = llm_record("replay", record_file, "--output", folder)
    assert again.returncode == 2 and "is there already" in again.stderr


def test_all_that_is_missing_is_listed_at_once(
    llm_record: Here, record_file: Path, run_folder: Path, image: Path, checkout: Path
) -> None:
    image.unlink()
    (run_folder / "prompts.txt").unlink()
    (checkout / "recipes/inference/generate.py").unlink()
    git(checkout, "commit", "-qam", "later")
    change(record_file, code={"commit": "0" * 40, "dirty": False}, status="interrupted")
    done = llm_record("replay", record_file)
    assert done.returncode == 2 and "5 things of the recorded run can't be had" in done.stderr
    for part in ("status: ", "image: ", "code: ", "recipe: ", "data: "):
        assert part in done.stderr
    best = llm_record("replay", "--best-effort", record_file)
    assert best.returncode == 2 and "not even nearly" in best.stderr
    assert not list(run_folder.glob("*replay*"))


def test_a_dry_run_says_what_would_run(
    llm_record: Here, record_file: Path, run_folder: Path
) -> None:
    done = llm_record("replay", "--dry-run", record_file)
    assert done.returncode == 0 and "llm-run" in done.stdout and "would write to" in done.stdout
    plan = json.loads(llm_record("replay", "--dry-run", "--json", record_file).stdout)
    assert plan["can_run"] and plan["command"][-2] == "--config" and plan["cwd"] == str(run_folder)
    assert not list(run_folder.glob("*replay*"))
    change(record_file, image={})
    plan = llm_record("replay", "--dry-run", "--json", record_file)
    assert plan.returncode == 2 and json.loads(plan.stdout)["can_run"] is False


def test_a_run_that_fails_is_no_result(
    llm_record: Here, record_file: Path, run_folder: Path
) -> None:
    done = llm_record("replay", record_file, FAIL="1")
    assert done.returncode == 2 and "ended with status 3" in done.stderr
    assert "it wrote nothing" in done.stderr and not list(run_folder.glob("*replay*"))
    template = json.loads(llm_record.env["RECORD_TEMPLATE"])
    template["status"] = "interrupted"
    done = llm_record("replay", record_file, RECORD_TEMPLATE=json.dumps(template))
    assert done.returncode == 2 and "interrupted" in done.stderr


def test_ctrl_c_reaches_the_run_and_what_it_wrote_stays(
    llm_record: Here, record_file: Path, run_folder: Path, checkout: Path
) -> None:
    script = "#!/bin/sh\ntrap 'echo stopped > \"$F\"; exit 130' INT\n" \
        "touch \"$LEFT\" \"$F\"\n" \
        "while :; do sleep 0.05; done\n"
    (checkout / "bin/llm-run").write_text(script)
    git(checkout, "commit", "-qam", "waits")
    change(record_file, code={**json.loads(record_file.read_text())["code"],
                              "commit": git(checkout, "rev-parse", "HEAD")})
    mark = run_folder / "mark"
    left = run_folder / "answers.replay-1" / "left"
    process = subprocess.Popen(
        [*llm_record.program, "replay", str(record_file)],
        env={**llm_record.env, "F": str(mark), "LEFT": str(left)},
        stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 30
    while not mark.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and "interrupted" in err and "Traceback" not in err
    assert mark.read_text() == "stopped\n" and left.exists() and str(left.parent) in err
    assert not os.listdir(Path(llm_record.env["LLM_CACHE_DIR"]) / "replays")


def test_replays_at_once_have_folders_of_their_own(
    llm_record: Here, record_file: Path, run_folder: Path
) -> None:
    command = [*llm_record.program, "replay", str(record_file)]
    all_of_them = [subprocess.Popen(command, env=llm_record.env, stderr=subprocess.PIPE,
                                    stdout=subprocess.DEVNULL, text=True) for _ in range(3)]
    for process in all_of_them:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert len(list(run_folder.glob("answers.replay-*/answers.run.json"))) == 3


def test_a_folder_that_another_replay_took_is_left_to_it(tmp_path: Path) -> None:
    path = str(tmp_path / "a" / "x.replay-1")
    assert _take_folder(path, None) and not _take_folder(path, None)
    assert _take_folder(path, path)  # one that the user names may be there, and is empty


def test_a_hidden_secret_stops_a_replay(
    llm_record: Here, record_file: Path, run_folder: Path
) -> None:
    config = json.loads(record_file.read_text())["config"]
    config |= {"key": "***", "prompts": str(run_folder / "prompts.txt")}
    change(record_file, config=config, config_hidden=["key"])
    done = llm_record("replay", record_file)
    assert done.returncode == 2 and "the record hides the secret of key" in done.stderr
    assert "llm-record replay RECORD -- --key VALUE" in done.stderr
    llm_record("replay", record_file, "--", "--key", "x")
    made = json.loads((run_folder / "answers.replay-1/answers.run.json").read_text())
    assert "key" not in made["config"]  # only the user's own value


def test_a_folder_that_can_not_be_made(
    llm_record: Here, record_file: Path, run_folder: Path
) -> None:
    done = llm_record("replay", record_file, "--output", run_folder / "prompts.txt/x")
    assert done.returncode == 2 and "can't be made" in done.stderr


def test_show(llm_record: Here, record_file: Path, run_folder: Path) -> None:
    screen = llm_record("show", record_file).stdout
    for part in ("inference/generate: complete", "10 min", "llm-cpu-0123456789ab.sif",
                 "no unstaged changes", "load_s 1.5 s", "tokens_per_s 10 /s", "prompts.txt",
                 "OMP_NUM_THREADS=3"):
        assert part in screen, screen
    assert "seed=0" not in screen and "temperature=1e-05" in screen  # only what is not the default
    assert json.loads(llm_record("show", "--json", record_file).stdout)["schema"] == 1
    table = llm_record("show", record_file, run_folder).stdout.splitlines()
    assert len(table) == 3 and table[0].split()[:3] == ["record", "recipe", "status"]
    bad = llm_record("show", record_file, run_folder / "prompts.txt")
    assert bad.returncode == 2 and "inference/generate" in bad.stdout and "no run record" in \
        bad.stderr


def test_show_check(llm_record: Here, record_file: Path, run_folder: Path) -> None:
    done = llm_record("show", "--check", record_file)
    assert done.returncode == 0 and "gone" not in done.stdout and "other " not in done.stdout
    (run_folder / "answers.jsonl").write_text("x")
    done = llm_record("show", "--check", "--json", record_file)
    states = {one["part"]: one["state"] for one in json.loads(done.stdout)["findings"]}
    assert done.returncode == 1 and states["result"] == "other" and states["image"] == "ok"


def test_show_of_hostile_and_of_old_records(llm_record: Here, record_file: Path) -> None:
    evil = "x\x1b[2J\nok: y"
    change(record_file, status=evil, started=evil, metrics={evil: evil}, config={evil: evil},
           host={"nodes": evil, "gpus": [evil], "cpus": evil}, code={"recipe": {"path": evil}},
           results={evil: evil}, replay_of={"path": evil}, launch={"env": {evil: evil}},
           model={"path": [evil, None], "resolved": 7})
    done = llm_record("show", record_file)
    assert done.returncode == 0 and "\x1b" not in done.stdout and "\nok: y" not in done.stdout
    assert llm_record("show", "--check", record_file).returncode == 1
    record_file.write_text('{"schema": 1, "recipe": "a/b"}')
    for words in (("show",), ("show", "--json"), ("show", "--check"), ("replay", "--dry-run")):
        done = llm_record(*words, record_file)
        assert "Traceback" not in done.stderr and done.returncode in (0, 1, 2), done.stderr


def test_a_signal_that_comes_while_the_program_starts_reaches_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = subprocess.Popen

    def popen(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        signal.raise_signal(signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr("_llm.record.replay.subprocess.Popen", popen)
    plan = Plan([], Code(""), "", "", [], {}, "/", ["sleep", "60"], dict(os.environ))
    assert run(plan, quiet=False) == 128 + signal.SIGTERM
