"""Pieces of harness.py: kept responses, shares of several processes, batches, scores."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("lm_eval")

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.evaluation_folder import code_digest
from llm_recipes.evaluation.harness_options import data_paths, split_names
from llm_recipes.evaluation.harness_scores import _shown, scored_tasks
from llm_recipes.evaluation.harness_transformers import answer_in_batches
from llm_recipes.evaluation.kept_responses import KeptResponses
from llm_recipes.evaluation.task_by_task import TaskByTask, deal
from llm_recipes.ranks import Ranks

KEY = {"model": "a", "adapter": None, "dtype": "fp32", "window": 256, "lm_eval": "0.4.13"}
RESPONSES = [(-0.1 - 0.2, True), (-float("inf"), False), (-1e-300, False)]


def requests(*texts: str, doc: int = 0) -> list[Any]:
    return [SimpleNamespace(args=(text, " x"), doc_id=doc, task_name="task") for text in texts]


ASKED = requests("a", "b", "é\ud800")


def test_responses_come_back_as_they_were(tmp_path: Path) -> None:
    kept = KeptResponses(tmp_path / "new" / "answers", KEY)
    assert kept.read("a/b: ü", "loglikelihood", ASKED) is None
    kept.write("a/b: ü", "loglikelihood", ASKED, RESPONSES)
    found = KeptResponses(tmp_path / "new" / "answers", KEY).read("a/b: ü", "loglikelihood", ASKED)
    assert found == RESPONSES
    assert all(isinstance(pair, tuple) for pair in found)
    kept.write("say", "generate_until", ASKED, ["x", "", "\u2028\n"])
    assert kept.read("say", "generate_until", ASKED) == ["x", "", "\u2028\n"]
    nowhere = KeptResponses(None, KEY)
    nowhere.write("say", "generate_until", ASKED, ["x", "", "y"])
    assert nowhere.read("say", "generate_until", ASKED) is None


@pytest.mark.parametrize("changed", KEY)
def test_other_models_and_settings_find_nothing(tmp_path: Path, changed: str) -> None:
    KeptResponses(tmp_path, KEY).write("task", "loglikelihood", ASKED, RESPONSES)
    other = KeptResponses(tmp_path, {**KEY, changed: "other"})
    assert other.read("task", "loglikelihood", ASKED) is None


def test_other_tasks_and_texts_find_nothing(tmp_path: Path) -> None:
    kept = KeptResponses(tmp_path, KEY)
    kept.write("task version 1.0", "loglikelihood", ASKED, RESPONSES)
    assert kept.read("task version 1.1", "loglikelihood", ASKED) is None
    assert kept.read("task version 1.0", "loglikelihood_rolling", ASKED) is None
    for asked in (requests("a", "b", "c"), requests("b", "a", "é\ud800"), requests("a", "b")):
        assert kept.read("task version 1.0", "loglikelihood", asked) is None
    assert kept.read("task version 1.0", "loglikelihood", ASKED) == RESPONSES


@pytest.mark.parametrize("damage", ["cut", "changed", "empty", "binary", "folder"])
def test_damaged_files_are_made_again(tmp_path: Path, damage: str) -> None:
    kept = KeptResponses(tmp_path, KEY)
    kept.write("task", "loglikelihood", ASKED, RESPONSES)
    [file] = tmp_path.iterdir()
    text = file.read_text()
    if damage == "folder":
        file.unlink()
        file.mkdir()
    else:
        damaged = {"cut": text[:-9], "changed": text.replace("true", "null"), "empty": ""}
        file.write_bytes(damaged[damage].encode() if damage in damaged else b"\xff\x00" * 40)
    assert kept.read("task", "loglikelihood", ASKED) is None
    if damage != "folder":
        kept.write("task", "loglikelihood", ASKED, RESPONSES)
        assert kept.read("task", "loglikelihood", ASKED) == RESPONSES


def test_shares_are_whole_documents_of_about_the_same_length() -> None:
    asked = [r for doc in range(9) for r in requests("x" * (doc + 1) * 10, "y" * doc, doc=doc)]
    shares = deal(asked, 3)
    assert sorted(place for share in shares for place in share) == list(range(18))
    assert all(share == sorted(share) for share in shares)
    owners = [{asked[place].doc_id for place in share} for share in shares]
    assert not owners[0] & owners[1] and not owners[0] & owners[2] and not owners[1] & owners[2]
    lengths = [sum(len(asked[place].args[0]) for place in share) for share in shares]
    assert max(lengths) < 1.2 * min(lengths)
    assert deal(asked[:2], 4)[1:] == [[], [], []]


class FullMemory:
    """Stands for a model on which only so many rows fit."""

    def __init__(self, fits: int) -> None:
        self.fits = fits
        self.batch_size_per_gpu = 0
        self.max_length = 64
        self.max_gen_toks = 16
        self.fault: Exception | None = None
        self.tried: list[int] = []

    def loglikelihood(self, asked: list[Any], disable_tqdm: bool) -> list[str]:
        self.tried.append(self.batch_size_per_gpu)
        if self.fault:
            raise self.fault
        if self.batch_size_per_gpu > self.fits:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")
        return [request.args[0] for request in asked]

    def tok_encode(self, text: str) -> list[int]:
        return [1] * len(text)


def test_batches_are_halved_until_they_fit(capsys: pytest.CaptureFixture[str]) -> None:
    lm = FullMemory(3)
    found = answer_in_batches(lm, None, 12, "loglikelihood", ASKED)  # type: ignore[arg-type]
    assert found == [request.args[0] for request in ASKED] and lm.tried == [12, 6, 3]
    assert "out of memory with 12 rows a batch: going on with 6" in capsys.readouterr().err
    with pytest.raises(LLMError, match="a single request"):
        answer_in_batches(FullMemory(0), None, 2, "loglikelihood", ASKED)  # type: ignore[arg-type]
    assert answer_in_batches(FullMemory(0), None, 2, "loglikelihood", []) == []  # type: ignore[arg-type]


def test_continuations_that_cannot_be_scored_and_texts_that_are_cut(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lm = FullMemory(12)
    answer_in_batches(lm, None, 1, "loglikelihood", requests("a" * 63))  # type: ignore[arg-type]
    assert capsys.readouterr().err == ""
    # One token more than the model sees, and the last one is only predicted.
    answer_in_batches(lm, None, 1, "loglikelihood", requests("a" * 64))  # type: ignore[arg-type]
    assert "up to 66 tokens are longer than the 65" in capsys.readouterr().err
    lm.fault = AssertionError()
    with pytest.raises(LLMError, match="can't score a continuation"):
        answer_in_batches(lm, None, 1, "loglikelihood", ASKED)  # type: ignore[arg-type]


def test_numbers_that_are_none_are_no_answers(tmp_path: Path) -> None:
    """A model whose training has diverged would be right where the first choice is."""
    kept = KeptResponses(tmp_path, KEY)
    for answers in ([(math.nan, False)], [math.nan]):
        lm = TaskByTask(None, lambda *_, found=answers: found, kept, Ranks(), {})
        with pytest.raises(LLMError, match=r"log-likelihoods in task are no numbers"):
            lm.loglikelihood(requests("a"))
    assert not list(tmp_path.iterdir())
    lm = TaskByTask(None, lambda *_: [(-math.inf, False)], kept, Ranks(), {})
    assert lm.loglikelihood(requests("a")) == [(-math.inf, False)]


def test_folders_of_tasks_by_what_is_in_them(tmp_path: Path) -> None:
    found = set()
    for name, text in (("a.yaml", "task: x"), ("a.yaml", "task: y"), ("deep/b.py", ""), ("c", "")):
        file = tmp_path / "one" / name
        file.parent.mkdir(exist_ok=True, parents=True)
        file.write_text(text)
        found.add(code_digest(tmp_path / "one"))
    assert len(found) == 3  # the last file is no task
    assert code_digest((tmp_path / "one").rename(tmp_path / "two")) in found


def test_names_files_and_data(tmp_path: Path) -> None:
    file = tmp_path / "a,b.yaml"
    file.write_text("task: x")
    assert split_names(["a, b,,c", str(file), ","]) == ["a", "b", "c", str(file)]
    assert data_paths(["a = x=y", "b=~/z"]) == {"a": Path(" x=y"), "b": Path.home() / "z"}


def test_choices_that_are_shown() -> None:
    def shown(arguments: list[tuple[str, str]], likely: list[float], target: Any) -> Any:
        sample = {
            "doc": {},
            "target": target,
            "arguments": arguments,
            "filtered_resps": [(value, False) for value in likely],
        }
        task = SimpleNamespace(OUTPUT_TYPE="multiple_choice", doc_to_text=lambda doc: 3)
        return _shown(task, sample)

    endings = [("Q: a", " one"), ("Q: a", " two")]
    found = shown(endings, [-2.0, -1.0], 0)
    assert (found.question, found.gold, found.answer) == ("Q: a", "one", "two")
    # Endings by themselves, for what mutual information counts.
    found = shown([*endings, ("", " one"), ("", " two")], [-1.0, -2.0, -0.5, -0.1], 1)
    assert (found.gold, found.answer) == ("two", "one")
    # Beginnings that differ, of one ending.
    found = shown([("It is", " late."), ("He is", " late.")], [-2.0, -1.0], 1)
    assert (found.gold, found.answer) == ("He is", "He is")


def test_filters_and_metrics_that_are_no_means(capsys: pytest.CaptureFixture[str]) -> None:
    """Two filters of a task, a metric of pairs, a share, a value that is missing once."""
    samples = []
    for number, value in enumerate([1.0, 0.0, 1.0]):
        for name in ("strict", "flexible"):
            samples.append(
                {
                    "doc_id": 2 - number,
                    "doc": {"q": f"question {number}"},
                    "target": "yes",
                    "arguments": [("prompt", {"until": ["\n"]})],
                    "filtered_resps": ["yes" if value else "no"],
                    "filter": name,
                    "metrics": ["exact_match", "f1", *(["part"] if number else [])],
                    "doc_hash": f"{number}" * 64,
                    "target_hash": "f" * 64,
                    "exact_match": value if name == "strict" else 1.0,
                    "f1": (1, int(value)),
                    "part": 0.25 * number,
                }
            )
    row = {"alias": "task", "exact_match,strict": 2 / 3, "exact_match_stderr,strict": 1 / 3}
    row |= {"exact_match,flexible": 1.0, "exact_match_stderr,flexible": "N/A"}
    row |= {"f1,strict": 0.8, "f1,flexible": 0.8, "part,strict": 0.375, "part,flexible": math.nan}
    results = {
        "results": {"task": row},
        "samples": {"task": samples},
        "versions": {"task": 2.0},
        "n-shot": {"task": 5},
        "higher_is_better": {"task": {"exact_match": True, "f1": True, "part": False}},
    }
    task = SimpleNamespace(
        task_name="task",
        OUTPUT_TYPE="generate_until",
        config=SimpleNamespace(metadata=None),
        doc_to_text=lambda doc: doc["q"],
    )
    [found] = scored_tasks(results, [task], lambda _: {"scorer": "x"})
    assert (found.main, found.version, found.fewshot) == ("exact_match,strict", "2.0", 5)
    kinds = {name: metric.kind for name, metric in found.metrics.items()}
    assert kinds == {
        "exact_match,strict": "right",
        "exact_match,flexible": "right",
        "f1,strict": "aggregate",
        "f1,flexible": "aggregate",
        "part,strict": "mean",
    }
    assert found.metrics["exact_match,strict"].stderr == 1 / 3
    assert found.metrics["exact_match,flexible"].stderr is None
    assert not found.metrics["part,strict"].higher_is_better
    assert [item.id for item in found.items] == ["0", "1", "2"]
    assert "part,strict" not in found.items[2].scores  # the first sample has none
    for sample in samples:
        sample["filtered_resps"] = []  # of a form that can't be shown
    [unseen] = scored_tasks(results, [task], lambda _: {"scorer": "x"})
    assert unseen.metrics == found.metrics and not any(item.shown for item in unseen.items)
    results["results"] = {"task": {"exact_match,strict": math.nan, "part,strict": "N/A"}}
    assert scored_tasks(results, [task], lambda _: {}) == []
    assert "task has no result that is a number" in capsys.readouterr().err
    assert found.items[0].scores["part,strict"] == 0.5
    shown = found.items[1].shown
    assert shown is not None
    assert (shown.question, shown.gold, shown.answer) == ("question 1", "yes", "no")
