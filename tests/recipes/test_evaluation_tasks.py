"""The lm-eval tasks in recipes/evaluate/tasks: their items are right, and lm-eval loads them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from conftest import RECIPES, recipe_environment

from llm_recipes.errors import LLMError
from llm_recipes.evaluation import arithmetic_task, pydocs_task, tatqa_task
from llm_recipes.tiny_corpus import natural_documents, split_documents

TASKS = RECIPES / "evaluate" / "tasks"
DEV = Path(__file__).parents[3] / "shared" / "data" / "tatqa" / "tatqa_dataset_dev.json"
WORDS = {" plus ": "+", " minus ": "-", " times ": "*"}
# Other items are another task: raise the version in the YAML file with this.
ARITHMETIC_DIGEST = "2e3de638410d550d0836ab211b9ed01bad9055d6df676e463d55e0bab370c6aa"
CONTEXT = {
    "table": {"uid": "t1", "table": [["", "2019", "2018"], ["Sales", "$ 3,000", "(12)"]]},
    "paragraphs": [{"uid": "p1", "order": 1, "text": "Amounts are in thousands."}],
    "questions": [
        {
            "uid": "q1",
            "order": 1,
            "question": "What were the sales in 2019 and in 2018?",
            "answer": ["$ 3,000", "(12)"],
            "derivation": "",
            "answer_type": "multi-span",
            "answer_from": "table",
            "scale": "thousand",
        },
        {
            "uid": "q2",
            "order": 2,
            "question": "By how much did they grow?",
            "answer": 25100.0,
            "derivation": "(3000 + 12) / 12",
            "answer_type": "arithmetic",
            "answer_from": "table",
            "scale": "percent",
        },
    ],
}


@pytest.fixture(scope="module")
def manager() -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=TASKS, include_defaults=False)


def load(manager: Any, name: str) -> Any:
    return manager.load([name])["tasks"][name]


@pytest.fixture(scope="module")
def split() -> tuple[list[str], list[str]]:
    return split_documents(natural_documents())


def plain(items: Any) -> list[dict[str, Any]]:
    return [dict(item) for item in items]


def digest(items: list[dict[str, Any]]) -> str:
    return sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()


# Arithmetic


@pytest.mark.parametrize("kind", arithmetic_task.KINDS)
def test_every_answer_is_right_and_no_question_twice(manager: Any, kind: str) -> None:
    task = load(manager, f"llm_arithmetic_{kind}")
    items, solved = plain(task.eval_docs), plain(task.fewshot_docs())
    assert len(items) == 2000 and len(solved) == 64
    assert len({item["question"] for item in [*items, *solved]}) == 2064
    for item in [*items, *solved]:
        found = re.fullmatch(r"Question: What is (.+)\?\nAnswer:", item["question"])
        assert found
        asked = found[1]
        for word, sign in WORDS.items():
            asked = asked.replace(word, sign)
        assert re.fullmatch(r"\d+[+*-]\(\d[+*-]\d\)" if kind == "1dc" else r"\d+[+*-]\d+", asked)
        assert item["answer"] == f" {eval(asked)}"
        largest = 9 if kind == "1dc" else 10 ** int(kind[0]) - 1
        assert max(map(int, re.findall(r"\d+", asked))) <= largest
    signs = Counter(sign for item in items for sign in re.findall(r"[+*-]", item["question"]))
    assert kind != "1dc" or min(signs[sign] for sign in "+*-") > 1200  # of 4,000


def test_all_sums_of_two_digits(manager: Any) -> None:
    from llm_recipes.tiny_corpus import sum_text

    task = load(manager, "llm_arithmetic_1d")
    items = plain(task.eval_docs)
    texts = [item["question"] + item["answer"] for item in items]
    assert texts[23] == "2 + 3 = 5" and len(set(texts)) == 100
    assert set(texts) == {sum_text(left, right) for left in range(10) for right in range(10)}
    # Solved examples in front of a question never give its answer away.
    task.sampler.set_rnd(0)
    for item in items:
        shown = task.fewshot_context(item, 3).split("\n")
        assert shown[-1] == item["question"] and len(shown) == 4
        assert item["question"] + item["answer"] not in shown


def test_the_arithmetic_stays_the_same() -> None:
    items = [item for kind in arithmetic_task.KINDS for item in arithmetic_task.draw(kind, 2064)]
    assert digest(items) == ARITHMETIC_DIGEST


# Python's documentation


def test_held_out_documents_are_not_in_the_training_text(
    split: tuple[list[str], list[str]],
) -> None:
    training, held_out = split
    documents = pydocs_task.held_out_documents()
    assert len(documents) > 200 and set(documents) <= set(held_out)
    paragraphs = {line for text in training for line in text.split("\n")}
    assert not paragraphs & {line for text in documents for line in text.split("\n")}
    everything = "\n".join(" ".join(text.split()) for text in training)
    for text in documents[::5]:  # searching takes its time
        words = text.split()
        runs = [" ".join(words[n : n + 13]) for n in range(len(words) - 12)]
        assert not [run for run in runs if run in everything]
    # The rule leaves something out: some documents are repeated in part.
    assert len(documents) < len(held_out)


def test_choices_can_only_be_told_apart_by_reading() -> None:
    documents = pydocs_task.held_out_documents()
    items = pydocs_task.make_choices(documents)
    assert len(items) > 100
    places = Counter(item["gold"] for item in items)
    assert sorted(places) == [0, 1, 2, 3] and max(places.values()) - min(places.values()) <= 1
    longest = shortest = unlike = 0
    for item in items:
        right = item["endings"][item["gold"]]
        text = documents[item["document"]]
        assert f"{item['beginning']} {right}" in text
        assert len(set(item["endings"])) == 4
        assert not [end for end in item["endings"] if end != right and end in text]
        lengths = [len(end) for end in item["endings"]]
        longest += lengths.count(len(right)) == 1 and max(lengths) == len(right)
        shortest += lengths.count(len(right)) == 1 and min(lengths) == len(right)
        unlike += max(lengths) > 1.3 * min(lengths)
    assert unlike < 0.1 * len(items)  # only the longest and shortest have no neighbours
    for count in (longest, shortest):  # a quarter by chance, less where lengths are equal
        assert 0.05 < count / len(items) < 0.35
    assert len({item["beginning"] for item in items}) == len(items)


def test_the_documentation_stays_the_same_within_a_python() -> None:
    """In a process of its own, in which sets have another order."""
    code = (
        "import json, sys; from llm_recipes.evaluation import pydocs_task as task;"
        "texts = task.held_out_documents();"
        "json.dump([texts, task.make_choices(texts)], sys.stdout)"
    )
    env = {**recipe_environment(), "PYTHONHASHSEED": "7"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    documents = pydocs_task.held_out_documents()
    expected = [list(documents), pydocs_task.make_choices(documents)]
    assert json.loads(done.stdout) == expected


# TAT-QA


@pytest.fixture
def tatqa_file(tmp_path: Path) -> Path:
    path = tmp_path / "it's; TAT-QA ü.json"
    path.write_text(json.dumps([CONTEXT]), encoding="utf-8")
    return path


def load_tatqa(file: Path) -> Any:
    from lm_eval.tasks import TaskManager

    metadata: Any = {"tatqa_file": str(file)}
    manager = TaskManager(include_path=TASKS, include_defaults=False, metadata=metadata)
    return load(manager, "llm_tatqa")


def test_tatqa_over_a_local_file(tatqa_file: Path) -> None:
    from llm_recipes.dataset_formats import open_source, read_examples
    from llm_recipes.examples import DataOptions

    task = load_tatqa(tatqa_file)
    assert task.config.metadata["cluster"] == "context" and task.VERSION == 1.0
    items = plain(task.eval_docs)
    assert [item["uid"] for item in items] == ["q1", "q2"]
    assert {item["context"] for item in items} == {"t1"}
    # The prompt is that of all recipes.
    options = DataOptions(str(tatqa_file), "tatqa")
    examples = read_examples(open_source(str(tatqa_file)), options, print).examples
    for item, example in zip(items, examples, strict=True):
        assert task.fewshot_context(item, 0) == example.prompt.whole_text
        assert task.doc_to_target(item) == example.response
        assert task.process_results(item, [example.response + "\nand more"]) == {
            "exact_match": 1,
            "f1": 1,
            "scale": 1,
        }
    # A scale that is wrong makes the number wrong.
    assert task.process_results(items[1], [" 25100"]) == {"exact_match": 0, "f1": 0, "scale": 0}
    found = task.process_results(items[0], ["$ 3,000 thousand"])
    assert found["exact_match"] == 0 and 0 < found["f1"] < 1 and found["scale"] == 1
    assert task.process_results(items[0], [""])["exact_match"] == 0


def test_tatqa_without_its_file_says_where_to_get_it() -> None:
    with pytest.raises(LLMError, match="needs TAT-QA's file") as raised:
        tatqa_task.questions(version=1.0)
    assert "--task-data tatqa=" in raised.value.fix


def test_data_that_no_task_takes_are_not_left_out_in_silence(tatqa_file: Path) -> None:
    from llm_recipes.harness_tasks import load_tasks

    data = {"tatqa": tatqa_file, "tatqua": tatqa_file}
    with pytest.raises(LLMError, match="--task-data tatqua: no task"):
        load_tasks(["llm_tatqa"], [TASKS], data)
    _, loaded = load_tasks(["llm_tatqa"], [TASKS], {"tatqa": tatqa_file})
    assert len(loaded) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "holds no questions"),
        ('[{"table": 3}]', "table"),
        (json.dumps([{**CONTEXT, "questions": [{"uid": "q", "question": "?"}]}]), "answer"),
        ("[", "JSON"),
    ],
)
def test_a_bad_tatqa_file(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(content)
    with pytest.raises((LLMError, ExceptionGroup)) as raised:
        tatqa_task.questions(tatqa_file=str(path))
    error = raised.value
    faults = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    assert said in "\n".join(f"{fault.what} {fault.why}" for fault in faults)


def test_a_missing_tatqa_file(tatqa_file: Path) -> None:
    with pytest.raises(LLMError) as raised:
        tatqa_task.questions(tatqa_file=str(tatqa_file.with_suffix(".jsn")))
    assert tatqa_file.name in f"{raised.value.why} {raised.value.fix}"


@pytest.mark.skipif(not DEV.exists(), reason="TAT-QA is not here")
def test_tatqa_as_published() -> None:
    task = load_tatqa(DEV)
    items = plain(task.eval_docs)
    assert len(items) == 1668 and len({item["uid"] for item in items}) == 1668
    assert set(Counter(item["context"] for item in items).values()) == {6}
    right = [task.process_results(item, [item["response"]]) for item in items]
    assert sum(found["scale"] for found in right) == 1668
    assert sum(found["exact_match"] for found in right) == 1668


# lm-eval itself


def test_lm_eval_runs_them_without_noise(manager: Any, caplog: pytest.LogCaptureFixture) -> None:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.dummy import DummyLM

    names = ["llm_arithmetic", "llm_pydocs", "llm_pydocs_choice"]
    with caplog.at_level("WARNING"):
        found = evaluate(DummyLM(), manager.load(names), limit=4, bootstrap_iters=0)
    assert not [entry for entry in caplog.messages if "llm_" in entry]
    assert len(found["results"]) == 13
    assert {"acc,none", "acc_norm,none"} <= set(found["results"]["llm_pydocs_choice"])
    assert {"word_perplexity,none", "bits_per_byte,none"} <= set(found["results"]["llm_pydocs"])
    assert {found["versions"][name] for name in found["results"]} == {1.0}


def test_the_folder_says_what_each_task_is(manager: Any) -> None:
    text = (TASKS / "README.md").read_text(encoding="utf-8")
    assert not [name for name in manager.all_tasks if f"`{name}`" not in text]
