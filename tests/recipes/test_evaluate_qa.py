"""qa.py as a user runs it: answers, scores, resuming, predictions in and out, single questions."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from conftest import RECIPES, generate_command, recipe_environment

from llm_recipes.answers import Answers
from llm_recipes.cli import run_recipe
from llm_recipes.errors import LLMError
from llm_recipes.evaluation.harness_scores import SHOWN_CHARACTERS
from llm_recipes.evaluation.judging import FAULTS, judge
from llm_recipes.evaluation.questions import Questions, chosen_numbers, read_questions
from llm_recipes.evaluation.run import Item, Shown, Task, read_run, write_tasks
from llm_recipes.examples import DataOptions
from llm_recipes.files import write_fault
from llm_recipes.record import start_record, write_record
from llm_recipes.tatqa import INSTRUCTION

sys.path.insert(0, str(RECIPES / "evaluate"))

from qa import qa as recipe

SCRIPT = RECIPES / "evaluate" / "qa.py"
TATQA = Path(__file__).parents[3] / "shared" / "data" / "tatqa"
DEV, SAMPLE = TATQA / "tatqa_dataset_dev.json", TATQA / "sample_prediction.json"


def run(*arguments: object) -> int:
    """Run in this process: as the command line would, without importing torch again."""
    with pytest.raises(SystemExit) as end:
        run_recipe(recipe, [str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def asked(uid: str, text: str, answer: Any, kind: str, source: str, scale: str = "") -> dict:
    return {
        "uid": uid,
        "question": text,
        "answer": answer,
        "answer_type": kind,
        "answer_from": source,
        "scale": scale,
        "req_comparison": uid.endswith("2"),
    }


def context(uid: str, rows: list[list[str]], text: str, questions: list[dict]) -> dict:
    return {
        "table": {"uid": uid, "table": rows},
        "paragraphs": [{"uid": f"{uid}-p", "order": 1, "text": text}],
        "questions": questions,
    }


@pytest.fixture
def tatqa(tmp_path: Path) -> Path:
    """Two contexts, and a third that no model of 256 tokens can see as a whole."""
    sales = [["", "2019", "2018"], ["Sales", "$1,496.5", "$1,202.9"]]
    by = asked("b1", "By?", ["IFRS"], "span", "text")
    years = asked("c1", "Years?", ["2019", "2018"], "multi-span", "table")
    contexts = [
        context(
            "t1",
            sales,
            "In millions.",
            [
                asked("a1", "Sales in 2019?", ["$1,496.5"], "span", "table-text", "million"),
                asked("a2", "Change?", 293.6, "arithmetic", "table-text", "million"),
                asked("a3", "How many years?", "2", "count", "table"),
            ],
        ),
        context("t2", [["Year"], ["2020"]], "By IFRS.", [by]),
        context("t3", sales, "word " * 400, [years]),
    ]
    file = tmp_path / "data's; ü" / "tatqa.json"
    file.parent.mkdir()
    file.write_text(json.dumps(contexts))
    return file


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    rows = [
        {"question": f"What is {n}+1?", "answer": str(n + 1), "kind": "odd" if n % 2 else "even"}
        for n in range(6)
    ]
    rows[0]["also"] = ["one"]
    file = tmp_path / "sums.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """All that must not depend on how often a run was stopped."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith("run.json")
    }


def test_a_models_answers_are_those_of_generate_and_all_is_kept(
    model_folder: Path, tatqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "runs" / "base"
    options = ["--model", model_folder, "--data", tatqa, "--output", output]
    assert run(*options, "--max-new-tokens", 6, "--group-by", "req_comparison") == 0
    printed, said = capsys.readouterr()
    assert "1 of 5 questions are not asked: the longest has " in said
    answers = rows_of(output / "answers.jsonl")
    assert [row["id"] for row in answers] == ["a1", "a2", "a3", "b1"]

    # the same prompts by the recipe that generates text, in its own process
    examples = read(tatqa).questions[:4]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(
        "".join(
            json.dumps({"id": q.example.id, "prompt": INSTRUCTION, "input": q.example.input}) + "\n"
            for q in examples
        )
    )
    made = tmp_path / "generated.jsonl"
    command = ["--model", model_folder, "--prompts", prompts, "--output", made]
    arguments = generate_command([*command, "--max-new-tokens", 6])
    subprocess.run(arguments, check=True, env=recipe_environment(), timeout=120)
    assert rows_of(made) == answers

    found = read_run(output)
    task = found.tasks["tatqa"]
    assert (task.version, task.fewshot, task.main) == ("1", 0, "exact_match")
    assert {key: metric.kind for key, metric in task.metrics.items()} == {
        "exact_match": "right",
        "f1": "mean",
        "scale": "right",
    }
    assert [item.cluster for item in task.items] == ["t1", "t1", "t1", "t2", "t3"]
    assert dict(task.items[1].groups) == {
        "answer_type": "arithmetic",
        "answer_from": "table-text",
        "req_comparison": "yes",
    }
    shown = task.items[0].shown
    assert shown is not None
    assert (shown.question, shown.gold) == ("Sales in 2019?", "$1,496.5 million")
    assert shown.answer == answers[0]["completion"]
    assert "| Sales | $1,496.5 | $1,202.9 |" in shown.context and "In millions." in shown.context
    told = task.conditions
    assert (told["prompt_style"], told["system"], told["scorer"]) == ("chat", "", "tatqa 1")
    assert (told["max_new_tokens"], told["sampling"]) == ("6", "greedy")
    assert len(told["chat_template"]) == 16
    record = found.record
    assert (record["status"], record["recipe"]) == ("complete", "evaluate/qa")
    assert record["model"]["architecture"] == "LlamaForCausalLM"
    assert record["metrics"]["unread"]["too long"] == 1
    cut = sum(
        row["finish_reason"] == "length" and "\n" not in row["completion"].strip()
        for row in answers
    )
    assert record["metrics"]["unread"].get("unfinished", 0) == cut
    assert "can't be read and score 0: " in printed
    assert f"1 {FAULTS['too long']}" in printed
    given = json.loads((output / "predictions.json").read_text())
    assert list(given) == ["a1", "a2", "a3", "b1", "c1"]
    assert given["c1"] == [[], ""]


def test_the_same_command_finds_nothing_to_do_and_others_are_refused(
    model_folder: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    options = ["--model", model_folder, "--data", sums, "--output", output, "--max-new-tokens", 3]
    assert run(*options) == 0
    table = capsys.readouterr().out
    before, record = contents(output), (output / "run.json").read_bytes()
    assert set(before) == {"answers.jsonl", "predictions.json", "results.txt", "scores/sums.jsonl"}
    assert run(*options) == 0
    again = capsys.readouterr()
    assert "nothing to do" in again.err and again.out == table
    assert (output / "run.json").read_bytes() == record

    assert run(*options, "--seed", 5, "--stop", "x") == 2
    error = capsys.readouterr().err
    assert "seed was 0 and is 5" in error and "stop was None and is ['x']" in error
    assert run(*options, "--sid", "0-2") == 2  # fewer questions
    assert "the prompts differ" in capsys.readouterr().err
    assert contents(output) == before and (output / "run.json").read_bytes() == record

    # what only concerns scoring asks nothing again
    answers = os.stat(output / "answers.jsonl")
    assert run(*options, "--group-by", "kind", "--golds-column", "also") == 0
    result = capsys.readouterr()
    assert "loading" not in result.err and "even" in result.out
    assert os.stat(output / "answers.jsonl").st_mtime_ns == answers.st_mtime_ns
    assert read_run(output).tasks["sums"].items[0].shown.gold == "1 / one"  # type: ignore[union-attr]

    assert run(*options, "--seed", 5, "--overwrite") == 0
    assert read_run(output).record["config"]["seed"] == 5

    # damaged scores are made again, without asking again
    (output / "scores" / "sums.jsonl").write_text("")
    capsys.readouterr()
    assert run(*options, "--seed", 5) == 0
    assert "loading" not in capsys.readouterr().err
    assert len(read_run(output).tasks["sums"].items) == 6


def test_interrupted_and_resumed_equals_uninterrupted(
    model_folder: Path,
    tatqa: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ["--model", model_folder, "--data", tatqa, "--max-new-tokens", 4, "--batch-size", 1]
    assert run(*options, "--output", tmp_path / "whole") == 0

    def stopping(self: Answers, answer: Any) -> None:
        if len(self.done) == 2:
            raise KeyboardInterrupt
        original(self, answer)

    original = Answers.append
    with monkeypatch.context() as patched:
        patched.setattr(Answers, "append", stopping)
        assert run(*options, "--output", tmp_path / "cut") == 130
    assert json.loads((tmp_path / "cut" / "run.json").read_text())["status"] == "interrupted"
    with pytest.raises(LLMError, match="has no results") as fault:
        read_run(tmp_path / "cut")
    assert "give its command again" in fault.value.fix
    assert run(*options, "--output", tmp_path / "cut") == 0
    assert "generate" in capsys.readouterr().err
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert (tmp_path / "cut" / "answers.jsonl").exists()
    whole, cut = (read_run(tmp_path / name) for name in ("whole", "cut"))
    assert whole.tasks == cut.tasks


def test_a_killed_run_goes_on(model_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "many.jsonl"
    data.write_text(
        "".join(json.dumps({"question": f"{n}?", "answer": "x"}) + "\n" for n in range(400))
    )
    output = tmp_path / "out"
    command = [sys.executable, SCRIPT, "--model", model_folder, "--data", data, "--output", output]
    command += ["--max-new-tokens", "30", "--batch-size", "1"]
    partial = output / "answers.jsonl.partial"
    process = subprocess.Popen(
        list(map(str, command)), env=recipe_environment(), stderr=subprocess.PIPE
    )
    deadline = time.monotonic() + 90
    while not (partial.exists() and len(partial.read_bytes().splitlines()) > 5):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert run(*map(str, command[2:-1]), "auto") == 0
    assert len(rows_of(output / "answers.jsonl")) == 400
    assert read_run(output).record["status"] == "complete"


def test_a_full_disk_loses_nothing(
    model_folder: Path,
    sums: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "out"
    options = ["--model", model_folder, "--data", sums, "--output", output, "--max-new-tokens", 2]

    def full(folder: Path, *rest: object) -> None:
        raise write_fault(folder / "scores", OSError(errno.ENOSPC, "No space left on device"))

    with monkeypatch.context() as patched:
        patched.setattr("llm_recipes.evaluation.qa_folder.write_tasks", full)
        assert run(*options) == 2
    assert "no space left" in capsys.readouterr().err
    assert json.loads((output / "run.json").read_text())["status"] == "failed"
    assert run(*options) == 0
    assert "loading" not in capsys.readouterr().err  # the answers were kept
    assert read_run(output).record["status"] == "complete"


def test_foreign_folders_are_left_alone(
    model_folder: Path, sums: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.tex").write_text("mine")
    options = ["--model", model_folder, "--data", sums, "--max-new-tokens", 2]
    assert run(*options, "--output", folder) == 2
    assert "is not the folder of a run of questions" in capsys.readouterr().err
    assert run(*options, "--output", folder / "chapter.tex") == 2
    assert "is a file" in capsys.readouterr().err
    assert contents(folder) == {"chapter.tex": b"mine"}


def test_published_predictions_score_as_published(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not SAMPLE.exists():
        pytest.skip("TAT-QA's files are not here")
    output = tmp_path / "sample"
    options = ["--data", DEV, "--predictions", SAMPLE]
    assert run(*options, "--output", output) == 0
    last = capsys.readouterr().out.splitlines()[-3].split()
    assert last[:3] == ["all", "1,668", "45.92"]
    assert (last[4], last[6]) == ("58.88", "90.95")
    found = read_run(output)
    metrics = found.tasks["tatqa"].metrics
    assert found.record["evaluation"]["tasks"]["tatqa"]["clusters"] == 278
    assert round(100 * metrics["exact_match"].value, 2) == 45.92
    # what was read is written, and is worth the same
    table = (output / "results.txt").read_text()
    assert run("--data", DEV, "--predictions", output) == 0
    assert capsys.readouterr().out == table


def test_a_runs_own_predictions_are_worth_the_same(
    model_folder: Path, tatqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    options = ["--model", model_folder, "--data", tatqa, "--output", output]
    assert run(*options, "--max-new-tokens", 40, "--stop", "e") == 0
    capsys.readouterr()
    assert run("--data", tatqa, "--predictions", output, "--output", tmp_path / "scored") == 0
    one, other = (read_run(path).tasks["tatqa"] for path in (output, tmp_path / "scored"))
    assert [item.scores for item in one.items] == [item.scores for item in other.items]
    # the two are not mixed
    assert run("--data", tatqa, "--predictions", output, "--output", output) == 2
    assert "holds the results of other answers" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[1]", "are no JSON object"),
        ("{", "are not JSON"),
        ("", "are not JSON"),
        ("[" * 100000, "are not JSON"),
        ('{"a1": ["x"]}', "the prediction a1 can't be used\n  why: it is a list of 1, not of"),
        ('{"a1": ["x", "millions"]}', 'its scale "millions" is none of TAT-QA\'s'),
        ('{"a1": ["x", ["million"]]}', "none of TAT-QA's"),
        ('{"a1": [{"x": 1}, ""]}', "its answer is no text, number or list of them"),
        ('{"a1": [[["x"]], ""]}', "its answer is no text, number or list of them"),
        ('{"a1": ["x", ""], "a1": ["y", ""]}', "it is there twice"),
        ('{"nobody": ["x", ""]}', "has no answer to a question of"),
    ],
)
def test_malformed_predictions(
    content: str, said: str, tatqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "given.json"
    file.write_text(content)
    assert run("--data", tatqa, "--predictions", file) == 2
    assert said in capsys.readouterr().err


def test_missing_and_unknown_predictions(
    tatqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "given.json"
    given = {"a1": [["1496.5"], "million"], "a2": [None, "million"], "a3": ["two", ""]}
    file.write_text(json.dumps({**given, "zz": [1, ""], "b1": "IFRS"}))
    assert run("--data", tatqa, "--predictions", file, "--output", tmp_path / "out") == 0
    printed, said = capsys.readouterr()
    assert "1 predictions are of no question: zz" in said
    assert "1 questions have no prediction: c1" in said
    record = read_run(tmp_path / "out").record
    assert record["metrics"]["unread"] == {"empty": 1, "no number": 1, "missing": 1}
    assert record["metrics"]["exact_match"] == 0.4
    assert "3 of 5 answers can't be read and score 0: 1 empty; 1 without the one number" in printed
    assert run("--data", tatqa, "--predictions", tmp_path / "none.json") == 2
    assert "cannot read the predictions" in capsys.readouterr().err


def test_what_is_read_of_an_answer(tatqa: Path, sums: Path) -> None:
    span, change, count = read(tatqa).questions[:3]
    free = read(sums, golds_column="also").questions[0]

    def told(question: Any, text: str, reason: str = "stop") -> tuple[float, str]:
        judged = judge(question, text, reason)
        return judged.scores["exact_match"], judged.fault

    assert told(span, " 1,496.5 million") == (1, "")
    assert told(span, "\n1,496.5 million\nI am sure", "length") == (1, "")
    assert told(span, "1,496.5 million", "length") == (0, "unfinished")
    assert told(span, " \n ", "length") == (0, "empty")
    assert told(span, "") == (0, "empty")
    assert told(span, "Sales of Sensors") == (0, "")
    assert told(change, "293.6 million") == (1, "")
    assert told(change, "293.6; 293.6 million") == (0, "no number")
    assert told(change, "It rose.") == (0, "no number")
    assert told(count, "2") == (1, "")
    assert told(count, "-2") == (0, "")
    assert told(free, "One!") == (1, "")
    assert told(free, "1") == (1, "")
    assert told(free, "one", "length") == (0, "unfinished")
    assert told(free, "1\nor so") == (0, "")


def read(path: Path, **options: Any) -> Questions:
    given = {"group_by": (), "golds_column": None, "say": lambda text: None, **options}
    return read_questions(DataOptions(str(path), held_out=0.0), **given)


def test_numbers_lists_ranges_and_ids(tatqa: Path) -> None:
    found = read(tatqa)
    assert chosen_numbers(["3"], found) == [3]
    assert chosen_numbers(["4,0, 2"], found) == [4, 0, 2]
    assert chosen_numbers(["1-3", "2", "b1,a1"], found) == [1, 2, 3, 0]
    with pytest.raises(ExceptionGroup) as faults:
        chosen_numbers(["5", "a11", "3-1", "0-9", "-1", ""], found)
    told = [str(fault) for fault in faults.value.exceptions]
    assert "--sid 5 is out of range" in told[0] and "5 questions: 0 to 4" in told[0]
    assert "did you mean a1?" in told[1]
    assert "its end is before its start" in told[2]
    assert len(told) == 6


def test_single_questions_beside_each_other_without_a_model(
    tatqa: Path, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = []
    for name, answer in (("full", "1496.5"), ("lora", "$1,202.9"), ("none", None)):
        file = tmp_path / f"{name}.json"
        file.write_text(json.dumps({"a1": [answer, "million"], "b1": ["IFRS", ""]}))
        runs += ["--beside", tmp_path / name]
        assert run("--data", tatqa, "--predictions", file, "--output", runs[-1]) == 0
    # as a user does, and quickly: without torch
    program = (
        "import sys, time; start = time.perf_counter()\n"
        f"sys.path[:0] = [{str(RECIPES)!r}, {str(SCRIPT.parent)!r}]\n"
        "from llm_recipes.cli import run_recipe; from qa import qa\n"
        "try: run_recipe(qa)\n"
        "finally: assert 'torch' not in sys.modules and 'transformers' not in sys.modules\n"
    )
    command = [sys.executable, "-c", program, "--data", tatqa, "--sid", "0", *runs]
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        timeout=60,
        env={**recipe_environment(), "COLUMNS": "80"},
    )
    assert done.returncode == 0, done.stderr
    for text in (
        "sid 0, uid a1",
        "$1,202.9",
        "In millions.",
        "Question  Sales in 2019?",
        "answer_type span, answer_from table-text",
        "[-$1,496.5-]",
        "[+$1,202.9+]",
    ):
        assert text in done.stdout
    assert done.stdout.count("right") == 1 and done.stdout.count("wrong") == 2
    capsys.readouterr()
    # with a model only those questions are asked
    options = ["--data", tatqa, "--sid", "3", "--model", model_folder, "--max-new-tokens", 3]
    assert run(*options, *runs[:2]) == 0
    printed = capsys.readouterr().out
    assert "uid b1" in printed and "uid a1" not in printed
    heads = printed.split("Question  By?")[1]
    assert "full" in heads and model_folder.name[:12] in heads


def test_answers_of_other_recipes_are_found_by_the_question(
    tatqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """harness.py numbers its items, and shows a prompt as a whole."""
    wanted = read(tatqa).questions[0]
    prompt = f"{INSTRUCTION}\n\n{wanted.example.input}"
    texts = ["By?", prompt.replace("1,496.5", "0"), prompt]  # another, another table, this one
    items = [
        Item(str(n), "d", "t", "p", {"exact_match": 0.0}, shown=Shown(text, "g", f"given {n}"))
        for n, text in enumerate(texts)
    ]
    record = start_record("evaluate/harness", {}, "CPU")
    task = Task("llm_tatqa", "1", 0, {}, "exact_match", {}, tuple(items))
    write_tasks(tmp_path / "h", [task], record)
    write_record(tmp_path / "h" / "run.json", record, "complete")
    assert run("--data", tatqa, "--sid", "0", "--sid", "3", "--beside", tmp_path / "h") == 0
    first, second = capsys.readouterr().out.split("uid b1")
    assert "given 2" in first.replace("[+", "").replace("+]", "")
    assert "(not in this run)" in second


def test_a_long_prompt_of_which_only_the_end_was_kept(
    tatqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = read(tatqa).questions[4]
    end = f"{INSTRUCTION}\n\n{wanted.example.input}"[-SHOWN_CHARACTERS:]
    assert wanted.context not in end
    texts = [end.replace("word", "words"), "Question: Years?", "Years?", end]
    items = [
        Item(str(n), "d", "t", "p", {"exact_match": 0.0}, shown=Shown(text, "g", f"given {n}"))
        for n, text in enumerate(texts)
    ]
    for count, found in ((3, "(not in this run)"), (4, "given 3")):
        record = start_record("evaluate/harness", {}, "CPU")
        task = Task("llm_tatqa", "1", 0, {}, "exact_match", {}, tuple(items[:count]))
        write_tasks(tmp_path / "h", [task], record)
        write_record(tmp_path / "h" / "run.json", record, "complete")
        assert run("--data", tatqa, "--sid", "c1", "--beside", tmp_path / "h") == 0
        assert found in capsys.readouterr().out.replace("[+", "").replace("+]", "")


def test_question_on_a_narrow_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.cells import cell_len

    rows = [["表" * 30, *(f"列{n}" * 8 for n in range(20))] for _ in range(50)]
    data, given = tmp_path / "wide.json", tmp_path / "given.json"
    question = asked("w[1]", "問題は何ですか" * 20, ["答え[bold]"], "span", "table")
    data.write_text(json.dumps([context("t", rows, "[red]本文" * 60, [question])]))
    given.write_text(json.dumps({"w[1]": ["ちがう [/bold] \\[x] \x1b[2J\ud800", ""]}))
    assert run("--data", data, "--predictions", given, "--output", tmp_path / "o") == 0
    capsys.readouterr()
    monkeypatch.setenv("COLUMNS", "80")
    runs = [part for _ in range(5) for part in ("--beside", tmp_path / "o")]
    assert run("--data", data, "--sid", "w[1]", *runs) == 0
    printed = capsys.readouterr().out
    assert max(map(cell_len, printed.splitlines())) <= 80
    assert (
        "(the table has 20 more rows and " in printed and " more columns than are shown)" in printed
    )
    assert "uid w[1] ===" in printed
    assert "答え[bold]" in printed and "[/bold]" in printed and "[red]" in printed
    assert "\x1b" not in printed and "\ufffd[2J\ufffd" in printed


def test_unlabelled_questions_can_be_shown(
    tatqa: Path, tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contexts = json.loads(tatqa.read_text())
    for one in contexts:
        for question in one["questions"]:
            del question["answer"], question["answer_type"], question["answer_from"]
    tatqa.write_text(json.dumps(contexts))
    assert run("--data", tatqa, "--sid", "3") == 0
    assert "(the file has none)" in capsys.readouterr().out
    assert run("--data", tatqa, "--sid", "3", "--model", model_folder, "--max-new-tokens", 3) == 0
    assert "wrong" not in capsys.readouterr().out
    assert run("--data", tatqa, "--model", model_folder, "--output", tmp_path / "o") == 2
    assert "answer is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", "m"], ["--output is missing"]),
        ([], ["nothing is asked or shown"]),
        (["--output", "x"], ["nothing is asked or shown", "--output has nothing to hold"]),
        (["--model", "m", "--predictions", "p", "--output", "x"], ["goes without --model"]),
        (["--predictions", "p", "--beside", "x"], ["--beside needs --sid"]),
        (
            ["--model", "m.gguf", "--output", "x", "--adapter", "a", "--dtype", "bf16"],
            ["--adapter has no meaning for m.gguf", "--dtype has no meaning"],
        ),
        (["--model", "m", "--output", "x", "--threads", "2"], ["--threads has no meaning for m"]),
        (["--adapter", "a", "--output", "x", "--threads", "2"], ["--threads has no meaning for a"]),
        (
            ["--model", "m", "--output", "x", "--max-new-tokens", "0", "--top-p", "2"],
            ["--max-new-tokens 0 is too small", "--top-p 2.0 is no share"],
        ),
        (["--model", "m", "--output", "x", "--group-by", "colour"], ["no column colour"]),
        (["--model", "m", "--output", "x", "--golds-column", "alsoo"], ["did you mean also?"]),
        (["--sid", "99"], ["--sid 99 is out of range"]),
        (["--sid", "1", "--beside", "nowhere"], ["nowhere is no evaluation"]),
        (["--model", "nowhere", "--output", "x"], ["nowhere"]),
    ],
)
def test_wrong_command_lines(
    options: list[str],
    said: list[str],
    sums: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--data", sums, *options) == 2
    error = capsys.readouterr().err
    for text in said:
        assert text in error
    assert not (tmp_path / "x").exists()


def test_data_that_is_no_questions(
    tmp_path: Path, model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "novel.txt"
    text.write_text("Call me Ishmael.\n")
    options = ["--model", model_folder, "--output", tmp_path / "o"]
    assert run("--data", text, *options) == 2
    assert "holds no questions" in capsys.readouterr().err
    many = tmp_path / "many.jsonl"
    many.write_text(
        "".join(json.dumps({"question": f"{n}?", "answer": f"{n}"}) + "\n" for n in range(60))
    )
    assert run("--data", many, *options, "--group-by", "answer") == 2
    assert "--group-by answer does not group the questions" in capsys.readouterr().err
    long = tmp_path / "long.jsonl"
    long.write_text(json.dumps({"question": "word " * 500, "answer": "x"}) + "\n")
    assert run("--data", long, *options) == 2
    assert "all questions are too long for the model" in capsys.readouterr().err


@pytest.fixture
def adapter(model_folder: Path, tmp_path: Path) -> Iterator[Path]:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_folder)
    torch.manual_seed(1)
    tuned = get_peft_model(
        model, LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"])
    )
    tuned.save_pretrained(tmp_path / "adapter")
    yield tmp_path / "adapter"


def test_bad_contexts_and_odd_types_beside_good_ones(
    tatqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = json.loads(tatqa.read_text())[0]
    good["questions"][0]["answer_type"] = {"of": 1}
    bad = {**good, "table": None}  # with questions of the same ids
    tatqa.write_text(json.dumps([bad, good]))
    given = tmp_path / "given.json"
    given.write_text(json.dumps({"a1": ["1,496.5", "million"]}))
    options = ("--data", tatqa, "--format", "tatqa", "--skip-bad", "--predictions", given)
    assert run(*options, "--output", tmp_path / "out") == 0
    assert [
        item.scores["exact_match"] for item in read_run(tmp_path / "out").tasks["tatqa"].items
    ] == [1.0, 0.0, 0.0]
    assert "{'of': 1}" in capsys.readouterr().out


def test_an_adapter_finds_its_base(
    adapter: Path, model_folder: Path, sums: Path, tmp_path: Path
) -> None:
    options = ["--data", sums, "--max-new-tokens", 5, "--adapter", adapter]
    assert run(*options, "--output", tmp_path / "one") == 0
    assert run(*options, "--output", tmp_path / "two", "--model", model_folder) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    model = read_run(tmp_path / "one").record["model"]
    assert Path(model["adapter"]) == adapter and Path(model["path"]) == model_folder


def test_gguf_answers_as_the_folder_does(
    tiny_hf: Path, tatqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here")
    gguf = tmp_path / "tiny's; ü.gguf"
    script = RECIPES / "quantized" / "convert.py"  # the file carries the tokenizer
    command = [sys.executable, script, "--model", tiny_hf, "--output", gguf, "--type", "f32"]
    command += ["--check-tokens", "0"]
    environment = recipe_environment()
    subprocess.run(list(map(str, command)), check=True, env=environment, timeout=300)
    options = ["--data", tatqa, "--max-new-tokens", 5, "--output"]
    assert run("--model", tiny_hf, *options, tmp_path / "hf") == 0
    assert run("--model", gguf, *options, tmp_path / "gguf") == 0
    one, other = (read_run(tmp_path / name) for name in ("hf", "gguf"))
    # The same questions under the same conditions; keys and values in fp16 may turn a near tie of
    # random weights, so not each answer is the same.
    (here,), (there,) = one.tasks.values(), other.tasks.values()
    assert (here.name, here.conditions) == (there.name, there.conditions)
    asked = [[(i.id, i.doc, i.target, i.prompt) for i in task.items] for task in (here, there)]
    assert asked[0] == asked[1]
    answers = [[i.shown and i.shown.answer for i in task.items] for task in (here, there)]
    same = sum(a == b for a, b in zip(*answers, strict=True))
    assert 2 * same >= len(here.items) > 2, answers
    before = contents(tmp_path / "gguf")
    assert other.record["model"]["dtype"] == "F32"
    capsys.readouterr()
    shutil.rmtree(tmp_path / "gguf" / "scores")
    assert run("--model", gguf, *options, tmp_path / "gguf") == 0
    assert "loading" not in capsys.readouterr().err
    assert contents(tmp_path / "gguf") == before
    assert run("--model", gguf, *options, tmp_path / "gguf", "--threads", 1) == 0
    assert "nothing to do" in capsys.readouterr().err
