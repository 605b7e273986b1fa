"""compare.py as a user runs it, on evaluations that were written as harness.py and qa.py do."""

from __future__ import annotations

import errno
import json
import math
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llm_recipes.cli import run_recipe
from llm_recipes.evaluation.intervals import with_interval
from llm_recipes.evaluation.run import Item, Kind, Metric, Score, Task, digest, write_tasks
from llm_recipes.record import write_record

RECIPES = Path(__file__).parents[2] / "recipes"
CONDITIONS = {"scorer": "lm-eval 0.4.13", "prompt_style": "raw", "chat_template": "", "system": ""}


@dataclass(frozen=True)
class Said:
    """What the recipe has printed."""

    stdout: str
    stderr: str


Run = Callable[..., Said]


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]) -> Run:
    """The recipe with a command line, in this process: one of its own needs a second to start."""
    recipe = runpy.run_path(str(RECIPES / "evaluate/compare.py"))["compare"]

    def run(*arguments: object, status: int = 0) -> Said:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            run_recipe(recipe, [str(part) for part in arguments])
        said = Said(*capsys.readouterr())
        assert ended.value.code == status, said.stdout + said.stderr
        return said

    return run


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, RECIPES / "evaluate/compare.py", *arguments]
    return subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(RECIPES), "OMP_NUM_THREADS": "1"},
        timeout=120,
        check=False,
    )


def task_of(
    scores: Mapping[str, Sequence[Score]],
    name: str = "sums",
    kinds: Mapping[str, Kind] | None = None,
    size: int = 1,
    lower_is_better: Sequence[str] = ("bits_per_byte",),
    conditions: Mapping[str, str] | None = None,
    **other: Any,
) -> Task:
    """A task whose items have these scores; `size` items share a cluster."""
    count = len(next(iter(scores.values())))
    items = tuple(
        Item(
            id=str(n),
            doc=digest(f"doc {n}"),
            target=digest(f"target {n}"),
            prompt=digest(f"prompt {n}"),
            scores={key: values[n] for key, values in scores.items()},
            cluster=None if size == 1 else str(n // size),
        )
        for n in range(count)
    )
    metrics = {}
    for key, values in scores.items():
        pairs = [value if isinstance(value, tuple) else (value, 1.0) for value in values]
        total = sum(part for part, _ in pairs) / sum(whole for _, whole in pairs)
        kind = (kinds or {}).get(key, "right")
        metrics[key] = with_interval(key, Metric(total, key not in lower_is_better, kind), items)
    told = {**CONDITIONS, **(conditions or {})}
    main = next(iter(scores))
    return replace(Task(name, "1", 0, told, main, metrics, items), **other)


def write(folder: Path, *tasks: Task, status: str = "complete", **record: Any) -> Path:
    """An evaluation on disk."""
    held: dict[str, Any] = {"schema": 1, "recipe": "evaluate/harness", **record}
    write_tasks(folder, tasks, held)
    write_record(folder / "run.json", held, status)
    return folder


def answers(right: int, of: int, start: int = 0) -> list[float]:
    """0/1 of so many items, right from `start` on."""
    return [1.0 if start <= n < start + right else 0.0 for n in range(of)]


def test_better_worse_and_no_difference(tmp_path: Path, compare: Run) -> None:
    rng = np.random.default_rng(1)
    size = rng.integers(50, 500, 200).astype(float)
    nats = size * (1 + 0.1 * rng.normal(size=200))

    def text(factor: float) -> list[Score]:
        noise = 1 + 0.002 * rng.normal(size=200)
        return [
            (float(a * factor * b), float(c)) for a, b, c in zip(nats, noise, size, strict=True)
        ]

    def docs(factor: float) -> Task:
        return task_of({"bits_per_byte": text(factor)}, "docs", {"bits_per_byte": "ratio"})

    base = write(tmp_path / "base", task_of({"acc": answers(100, 200)}), docs(1))
    lora = write(tmp_path / "lora", task_of({"acc": answers(140, 200)}), docs(1.01))
    q4 = write(tmp_path / "q4", task_of({"acc": answers(100, 200, 1)}), docs(1))
    output = tmp_path / "out put"
    found = compare("--run", base, "--run", lora, "--run", q4, "--output", output)
    assert "lora is better than base in sums: acc 50.00 % -> 70.00 %, +20.00 points" in found.stdout
    assert "lora is worse than base in docs: bits_per_byte" in found.stdout  # more is worse
    assert "no detectable difference between q4 and base in sums" in found.stdout
    assert "equal" not in found.stdout
    record = json.loads((output / "run.json").read_text())
    assert (record["recipe"], record["status"]) == ("evaluate/compare", "complete")
    assert record["metrics"] == json.loads((output / "comparison.json").read_text())
    assert [run["name"] for run in record["metrics"]["runs"]] == ["base", "lora", "q4"]
    told = {(c["other"], c["task"]): c for c in record["metrics"]["comparisons"]}
    sums = told["lora", "sums"]
    assert (sums["gained"], sums["lost"], sums["items"], sums["units"]) == (40, 0, 200, 200)
    assert sums["p"] == pytest.approx(2 / 2**40)
    assert sums["p_corrected"] == pytest.approx(4 * 2 / 2**40)  # the smallest of four
    assert sums["difference"] == pytest.approx(0.2)
    assert 0.1 < sums["low"] < 0.2 < sums["high"] < 0.3
    assert 0 < sums["detectable"] < 0.2
    same = told["q4", "sums"]
    assert (same["difference"], same["gained"], same["lost"]) == (0, 1, 1)
    assert same["low"] < 0 < same["high"]
    markdown = (output / "comparison.md").read_text()
    assert "| sums | acc | base | lora | 50.00 % | 70.00 % | +20.00 points |" in markdown
    again = compare("--run", base, "--run", lora, "--run", q4, "--output", output)
    assert again.stdout == found.stdout
    assert (output / "comparison.md").read_text() == markdown


def test_every_fault_at_once(tmp_path: Path, compare: Run) -> None:
    base = write(
        tmp_path / "base",
        task_of({"acc": answers(3, 20)}),
        task_of({"acc": answers(3, 20)}, "docs"),
        task_of({"acc": answers(3, 20)}, "shots"),
    )
    docs = task_of({"acc": answers(3, 20)}, "docs")
    changed = [replace(item, target="other") if item.id == "7" else item for item in docs.items]
    other = {"chat_template": "f00", "scorer": "lm-eval 0.4.14", "system": "be short"}
    chat = write(
        tmp_path / "chat",
        task_of({"acc": answers(3, 18)}, conditions=other, version="2"),
        replace(docs, items=tuple(changed)),
        task_of({"acc": answers(3, 20)}, "shots", fewshot=5, conditions={"prompt_style": "chat"}),
    )
    found = compare("--run", base, "--run", chat, status=2).stderr
    for told in (
        "chat can't be compared with base: chat_template differs",
        "sums: none in base, f00 in chat",
        "scorer differs",
        "lm-eval 0.4.13 in base, lm-eval 0.4.14 in chat",
        "system differs",
        "version differs",
        "sums: 1 in base, 2 in chat",
        "fewshot differs",
        "shots: 0 in base, 5 in chat",
        "prompt_style differs",
        "they have different samples",
        "sums: 2 only in base (such as 18, 19)",
        "docs: 1 have another right answer (such as 7)",
        "--despite chat_template",
    ):
        assert told in found
    assert found.count("different samples") == 1


def test_despite_lets_one_condition_pass_and_says_so(tmp_path: Path, compare: Run) -> None:
    base = write(tmp_path / "base", task_of({"acc": answers(50, 100)}))
    asked = task_of({"acc": answers(90, 100)}, conditions={"chat_template": "f00"})
    asked = replace(asked, items=tuple(replace(item, prompt="x") for item in asked.items))
    chat = write(tmp_path / "chat", asked)
    refused = compare("--run", base, "--run", chat, status=2).stderr
    assert "chat_template differs" in refused
    assert "prompts differs" not in refused  # a consequence, not one more fault
    output = tmp_path / "out"
    options = ("--despite", "chat_template", "--despite", "system", "--output", output)
    found = compare("--run", base, "--run", chat, *options)
    assert "compared despite: chat_template (none in base, f00 in chat)" in found.stdout
    assert "--despite system was not needed" in found.stderr
    record = json.loads((output / "run.json").read_text())
    assert record["metrics"]["despite"] == ["chat_template (none in base, f00 in chat)"]
    assert "Compared despite: chat" in (output / "comparison.md").read_text()
    unknown = compare("--run", base, "--run", chat, "--despite", "chat_templat", status=2).stderr
    assert "did you mean chat_template?" in unknown
    assert "nothing can be said" in compare(
        "--run", base, "--run", chat, "--despite", "samples", status=2
    ).stderr  # fmt: skip


def test_other_prompts_under_the_same_conditions(tmp_path: Path, compare: Run) -> None:
    base = task_of({"acc": answers(50, 100)}, fewshot=5)
    items = [replace(i, prompt="x") if i.id in ("4", "8") else i for i in base.items]
    one, two = write(tmp_path / "one", base), tmp_path / "two"
    write(two, replace(base, items=tuple(items)))
    found = compare("--run", one, "--run", two, status=2).stderr
    assert "prompts differs" in found
    assert "sums: 2 of 100 items (such as 4, 8)" in found
    compare("--run", one, "--run", two, "--despite", "prompts")


def test_items_may_come_in_another_order(tmp_path: Path, compare: Run) -> None:
    base = task_of({"acc": answers(50, 100)})
    write(tmp_path / "one", base)
    write(tmp_path / "two", replace(base, items=base.items[::-1]))
    found = compare("--run", tmp_path / "one", "--run", tmp_path / "two").stdout
    assert "+0.00 points" in found
    assert "a true difference below" in found


def test_clusters_decide(tmp_path: Path, compare: Run) -> None:
    """Twelve more right answers: as single items a difference, in two tables none."""
    base, lora = answers(60, 120), answers(72, 120)
    for size, verdict in ((1, "better"), (6, "no detectable difference")):
        folder = tmp_path / str(size)
        write(folder / "base", task_of({"acc": base}, size=size))
        write(folder / "lora", task_of({"acc": lora}, size=size))
        options = ("--run", folder / "base", "--run", folder / "lora", "--output", folder / "out")
        found = compare(*options)
        (told,) = json.loads((folder / "out/comparison.json").read_text())["comparisons"]
        assert told["verdict"] == verdict
        assert ("in 20 clusters" in found.stdout) == (size > 1)
    assert told["p"] == pytest.approx(0.5)  # two tables: 2 of 4 patterns of signs
    assert told["low"] < 0


def test_margins(tmp_path: Path, compare: Run) -> None:
    base = write(tmp_path / "base", task_of({"acc": answers(200, 400)}))
    same = write(tmp_path / "same", task_of({"acc": answers(200, 400)}))
    some = write(tmp_path / "some", task_of({"acc": answers(196, 400)}))
    bad = write(tmp_path / "bad", task_of({"acc": answers(100, 400)}))
    check = ("--fail-if-worse", "--margin", "0.02")
    assert "passed: same in sums: not worse than base by 2.00 points or more" in compare(
        "--run", base, "--run", same, *check
    ).stdout  # fmt: skip
    unsure = compare("--run", base, "--run", some, *check, status=1).stdout
    assert "FAILED: some in sums: not shown to be non-inferior to base: lower end -2." in unsure
    assert "with 400 items a margin of" in unsure
    assert "could have been shown" in unsure
    worse = compare("--run", base, "--run", bad, "--run", same, *check, status=1).stdout
    assert "FAILED: bad in sums: worse than base by more than 2.00 points" in worse
    assert "passed: same in sums" in worse
    # worse, but by less than the margin: passes and says so
    wide = compare("--run", base, "--run", bad, "--fail-if-worse", "--margin", "0.4").stdout
    assert "or more, although worse" in wide
    compare("--run", base, "--run", bad, "--fail-if-worse", "--margin", "sums=0.4")
    assert "is of no task here" in compare(
        "--run", base, "--run", bad, "--fail-if-worse", "--margin", "sum=0.4", status=2
    ).stderr  # fmt: skip
    assert (
        "needs --margin" in compare("--run", base, "--run", bad, "--fail-if-worse", status=2).stderr
    )
    for wrong in ("-1", "nan", "much", "=1"):
        options = ("--fail-if-worse", f"--margin={wrong}")
        found = compare("--run", base, "--run", bad, *options, status=2)
        assert "margin" in found.stderr


def test_margin_of_a_metric_where_less_is_better(tmp_path: Path, compare: Run) -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(50, 500, 100).astype(float)

    def run(name: str, factor: float) -> Path:
        found = [(float(s * factor * (1 + 0.001 * rng.normal())), float(s)) for s in sizes]
        kinds: dict[str, Kind] = {"bits_per_byte": "ratio"}
        return write(tmp_path / name, task_of({"bits_per_byte": found}, "docs", kinds))

    base, less, more = run("base", 1.0), run("less", 0.9), run("more", 1.1)
    check = ("--fail-if-worse", "--margin", "0.05")
    compare("--run", base, "--run", less, *check)
    assert "worse than base by more than 0.0500" in compare(
        "--run", base, "--run", more, *check, status=1
    ).stdout  # fmt: skip


def test_pairs_names_and_reference(tmp_path: Path, compare: Run) -> None:
    one = write(tmp_path / "a/base", task_of({"acc": answers(50, 100)}))
    two = write(tmp_path / "b/base", task_of({"acc": answers(60, 100)}))
    three = write(tmp_path / "b/lora", task_of({"acc": answers(90, 100)}))
    runs = ("--run", one, "--run", two, "--run", three)
    found = compare(*runs).stdout
    assert "between b/base and a/base" in found or "b/base is better than a/base" in found
    assert "lora is better than a/base" in found
    assert "lora is better than b/base" not in found
    assert "lora is better than b/base" in compare(*runs, "--all-pairs").stdout
    assert "lora is better than b/base" in compare(*runs, "--against", "b/base").stdout
    turned = compare(*runs, "--against", three).stdout
    assert "a/base is worse than lora" in turned
    named = compare(*runs, "--names", "x", "--names", "y", "--names", "z").stdout
    assert "z is better than x" in named
    assert "none of the runs" in compare(*runs, "--against", "bas", status=2).stderr
    assert "2 different names" in compare(*runs, "--names", "x", "--names", "y", status=2).stderr


def test_a_margin_claims_no_more_than_the_verdict(tmp_path: Path, compare: Run) -> None:
    """An interval below the margin is of one comparison; the verdict is corrected for all."""
    tasks = [str(n) for n in range(30)]
    base = write(tmp_path / "base", *(task_of({"acc": answers(8, 100)}, n) for n in tasks))
    q4 = write(tmp_path / "q4", *(task_of({"acc": answers(0, 100)}, n) for n in tasks))
    check = ("--run", base, "--run", q4, "--fail-if-worse", "--margin", "0.01")
    assert "FAILED: q4 in 0: worse than base by more than" in compare(
        *check, "--task", "0", status=1
    ).stdout  # fmt: skip
    found = compare(*check, status=1).stdout
    assert "no detectable difference between q4 and base in 0: acc" in found
    assert "leaves out 0, but after correction it is not enough" in found
    assert "FAILED: q4 in 0: not shown to be non-inferior to base: lower end" in found
    assert "worse than base" not in found


def test_large_numbers_can_be_read(tmp_path: Path, compare: Run) -> None:
    rng = np.random.default_rng(4)

    def run(name: str, factor: float) -> Path:
        found = [float(34000 * factor + n) for n in rng.normal(size=50)]
        task = task_of({"ppl": found}, kinds={"ppl": "mean"}, lower_is_better=["ppl"])
        return write(tmp_path / name, task)

    found = compare("--run", run("base", 1), "--run", run("q4", 1.5)).stdout
    assert "ppl 34,000 -> 51,000, +17,000 (95 % interval +1" in found
    assert "e+" not in found


@pytest.mark.parametrize(
    ("where", "wrong"),
    [
        (("evaluation", "tasks", "sums", "metrics", "acc", "value"), "0.5"),
        (("evaluation", "tasks", "sums", "metrics", "acc", "value"), 10**400),
        (("evaluation", "tasks", "sums", "metrics", "acc", "high"), 1e308),
        (("evaluation", "tasks", "sums", "metrics", "acc", "kind"), []),
        (("evaluation", "tasks", "sums", "fewshot"), math.inf),
        (("status",), None),
    ],
)
def test_a_record_that_was_changed(
    tmp_path: Path, compare: Run, where: Sequence[str], wrong: object
) -> None:
    base = write(tmp_path / "base", task_of({"acc": answers(5, 10)}))
    other = write(tmp_path / "other", task_of({"acc": answers(5, 10)}))
    record = json.loads((other / "run.json").read_text())
    place = record
    for name in where[:-1]:
        place = place[name]
    place[where[-1]] = wrong
    (other / "run.json").write_text(json.dumps(record))
    found = compare("--run", base, "--run", other, status=2).stderr
    assert "can't be used" in found or "is not complete" in found


@pytest.mark.parametrize("score", [[], 10**400])
def test_scores_of_another_shape(tmp_path: Path, compare: Run, score: Any) -> None:
    base = write(tmp_path / "base", task_of({"acc": answers(5, 10)}))
    task = task_of({"acc": answers(5, 10)})
    items = (replace(task.items[0], scores={"acc": score}), *task.items[1:])
    other = write(tmp_path / "other", replace(task, items=items), model="none")
    assert "can't be used" in compare("--run", base, "--run", other, status=2).stderr


def test_a_multiturn_prompt_is_one_difference(tmp_path: Path, compare: Run) -> None:
    task = task_of({"acc": answers(50, 100)}, conditions={"fewshot_as_multiturn": "no"})
    base = write(tmp_path / "base", task)
    turns = {**task.conditions, "fewshot_as_multiturn": "yes"}
    items = tuple(replace(item, prompt="x") for item in task.items)
    other = write(tmp_path / "other", replace(task, conditions=turns, items=items))
    found = compare("--run", base, "--run", other, status=2).stderr
    assert "fewshot_as_multiturn differs" in found
    assert "prompts differs" not in found
    compare("--run", base, "--run", other, "--despite", "fewshot_as_multiturn")


def test_other_metric_and_tasks(tmp_path: Path, compare: Run) -> None:
    kinds: dict[str, Kind] = {"f1": "mean"}
    rng = np.random.default_rng(3)
    low, high = (list(map(float, rng.uniform(*ends, 80))) for ends in ((0, 0.5), (0.5, 1)))
    same = answers(40, 80)
    one = write(
        tmp_path / "one",
        task_of({"acc": same, "f1": low}, kinds=kinds),
        task_of({"acc": same}, "docs"),
    )
    two = write(
        tmp_path / "two",
        task_of({"acc": same, "f1": high}, kinds=kinds),
        task_of({"acc": same}, "only"),
    )
    runs = ("--run", one, "--run", two)
    plain = compare(*runs)
    assert "no detectable difference between two and one in sums: acc" in plain.stdout
    assert "only in one, not compared: docs" in plain.stderr
    assert "only in two, not compared: only" in plain.stderr
    chosen = compare(*runs, "--metric", "f1").stdout
    assert "two is better than one in sums: f1" in chosen
    assert "points" in chosen
    assert "no task has the metric" in compare(*runs, "--metric", "f2", status=2).stderr
    assert "did you mean sums?" in compare(*runs, "--task", "sum", status=2).stderr
    three = write(tmp_path / "three", task_of({"acc": same}, "docs"))
    assert "no task in common" in compare("--run", two, "--run", three, status=2).stderr


def test_a_mean_that_happens_to_be_0_or_1_throughout(tmp_path: Path, compare: Run) -> None:
    one = write(tmp_path / "one", task_of({"f1": answers(0, 40)}, kinds={"f1": "right"}))
    two = write(tmp_path / "two", task_of({"f1": [0.5] * 40}, kinds={"f1": "mean"}))
    found = compare("--run", one, "--run", two).stdout
    assert "two is better than one in sums: f1 0.00 % -> 50.00 %" in found


def test_without_a_number_an_item(tmp_path: Path, compare: Run) -> None:
    def run(name: str, value: float, stderr: float | None) -> Path:
        plain = task_of({"acc": answers(5, 10)})
        metric = Metric(value, True, "aggregate", stderr)
        return write(tmp_path / name, replace(plain, main="bleu", metrics={"bleu": metric}))

    base, good = run("base", 20.0, 0.6), run("good", 24.0, 0.8)
    found = compare("--run", base, "--run", good).stdout
    assert "good is better than base in sums: bleu 20 -> 24" in found
    assert "p < 0.0001" in found  # z = 4
    assert "not item by item" in found
    unknown = run("unknown", 24.0, None)
    check = ("--fail-if-worse", "--margin", "1")
    untested = compare("--run", base, "--run", unknown, *check, status=1).stdout
    assert "unknown and base could not be tested in sums" in untested
    assert "its interval is unknown" in untested


def test_few_items_and_no_variance(tmp_path: Path, compare: Run) -> None:
    one = write(tmp_path / "one", task_of({"acc": [0.0]}))
    two = write(tmp_path / "two", task_of({"acc": [1.0]}))
    found = compare("--run", one, "--run", two).stdout
    assert "no detectable difference" in found
    assert "so few independent items can't show any difference" in found
    kinds: dict[str, Kind] = {"f1": "mean"}
    flat = write(tmp_path / "flat", task_of({"f1": [0.25] * 50}, kinds=kinds))
    also = write(tmp_path / "also", task_of({"f1": [0.25] * 50}, kinds=kinds))
    same = compare("--run", flat, "--run", also).stdout
    assert "no detectable difference between also and flat" in same
    assert "all scores are the same, which tells nothing" in same
    assert "0.00 points would" not in same
    single = write(tmp_path / "single", task_of({"f1": [0.25]}, kinds=kinds))
    other = write(tmp_path / "other", task_of({"f1": [0.5]}, kinds=kinds))
    assert "so few independent items" in compare("--run", single, "--run", other).stdout


def test_scores_that_are_no_numbers(tmp_path: Path, compare: Run) -> None:
    kinds: dict[str, Kind] = {"f1": "mean"}
    good = task_of({"f1": [0.5] * 10}, kinds=kinds)
    write(tmp_path / "good", good)
    items = [replace(i, scores={"f1": math.nan}) if i.id == "3" else i for i in good.items]
    write(tmp_path / "bad", replace(good, items=tuple(items)))
    found = compare("--run", tmp_path / "good", "--run", tmp_path / "bad", status=2).stderr
    assert "the score f1 of item 3 in sums of bad can't be used" in found
    assert "it is nan" in found


def test_runs_that_are_none(tmp_path: Path, compare: Run) -> None:
    base = write(tmp_path / "base", task_of({"acc": answers(50, 100)}))
    lora = write(tmp_path / "lora", task_of({"acc": answers(50, 100)}))
    assert "needs two runs" in compare("--run", base, status=2).stderr
    assert "given twice" in compare("--run", base, "--run", base / "run.json", status=2).stderr
    missing = compare("--run", base, "--run", tmp_path / "no;such 'run'", status=2).stderr
    assert "is no evaluation" in missing
    stopped = write(tmp_path / "stopped", task_of({"acc": [1.0]}), status="interrupted")
    several = compare("--run", base, "--run", stopped, "--level", "2", "--run", "/x", status=2)
    for told in ("is not complete", "--level 2.0 is not possible", "/x is no evaluation"):
        assert told in several.stderr
    with (lora / "scores/sums.jsonl").open("r+") as file:
        file.truncate(200)
    damaged = compare("--run", base, "--run", lora, status=2).stderr
    assert "the scores of sums in" in damaged
    taken = compare("--run", base, "--run", stopped, "--output", base, status=2).stderr
    assert "is not the folder of a comparison" in taken
    assert (base / "run.json").read_text().count("evaluate/harness") == 1


def test_hostile_names(tmp_path: Path, compare: Run) -> None:
    folder = tmp_path / "a b;'\"|*é"
    scores = {"acc": answers(50, 100)}
    one = write(folder / "x|y", task_of(scores, "a/b | *c*"))
    two = write(folder / "z", task_of(scores, "a/b | *c*"))
    output = folder / "out"
    found = in_a_process("--run", one, "--run", two, "--output", output)
    assert found.returncode == 0, found.stderr
    markdown = (output / "comparison.md").read_text()
    assert "a/b \\| \\*c\\*" in markdown
    rows = [line for line in markdown.splitlines() if line.startswith("| a/b")]
    assert all(line.replace("\\|", "").count("|") == 11 for line in rows)
    locked = folder / "locked"
    locked.mkdir()
    (locked / "file").write_text("")
    assert "is not the folder" in compare(
        "--run", one, "--run", two, "--output", locked, status=2
    ).stderr  # fmt: skip


def test_a_full_disk_leaves_a_folder_that_can_be_used_again(
    tmp_path: Path, compare: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write(tmp_path / "one", task_of({"acc": answers(5, 100)}))
    two = write(tmp_path / "two", task_of({"acc": answers(90, 100)}))
    options = ("--run", one, "--run", two, "--output", tmp_path / "out")
    real = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target).name == "comparison.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        assert "no space left" in compare(*options, status=2).stderr
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "running"
    compare(*options)
    assert json.loads((tmp_path / "out/run.json").read_text())["status"] == "complete"


def test_an_output_below_a_file(tmp_path: Path, compare: Run) -> None:
    one = write(tmp_path / "one", task_of({"acc": answers(5, 100)}))
    two = write(tmp_path / "two", task_of({"acc": answers(90, 100)}))
    locked = tmp_path
    (locked / "file").write_text("")
    assert "file" in compare(
        "--run", one, "--run", two, "--output", locked / "file/out", status=2
    ).stderr  # fmt: skip


def test_help_needs_no_libraries() -> None:
    code = (
        "import runpy, sys\n"
        "path, sys.argv = sys.argv[1], ['compare.py', '--help']\n"
        "try: runpy.run_path(path, run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print(sorted({'numpy', 'scipy', 'torch'} & set(sys.modules)))"
    )
    path = str(RECIPES / "evaluate/compare.py")
    env = {**os.environ, "PYTHONPATH": str(RECIPES)}
    command = [sys.executable, "-c", code, path]
    said = subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout
    assert "--fail_if_worse" in said
    assert said.splitlines()[-1] == "[]"
