"""Prepared data: cached by content, split by context, cut to the limit, counted."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("datasets")

from llm_recipes import prepared_data
from llm_recipes.errors import LLMError
from llm_recipes.examples import Columns, DataOptions
from llm_recipes.prepared_data import PreparedData, cache_folder, example_lengths, prepare
from llm_recipes.prompts import Prompt, render

TATQA = Path(__file__).resolve().parents[3] / "shared/data/tatqa/tatqa_dataset_dev.json"


@pytest.fixture(scope="module")
def tokenizer(model_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder)


@pytest.fixture
def make(model_folder: Path, tokenizer: Any, tmp_path: Path) -> Any:
    """`make(rows)`: prepare them; `make.said`: what the user was told."""

    def run(rows: Any, **options: Any) -> PreparedData:
        path = tmp_path / options.pop("name", "it's; data ü.jsonl")
        text = rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows))
        path.write_text(text)
        run.said = []  # type: ignore[attr-defined]
        chosen = DataOptions(str(path), **options)
        return prepare(
            chosen,
            options.pop("tokenizer", tokenizer),
            model_folder,
            tmp_path / "cache",
            run.said.append,  # type: ignore[attr-defined]
        )

    return run


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"q {i}", "response": f"a {i}", **changes} for i in range(count)]


def test_columns_types_and_facts(make: Any, tokenizer: Any) -> None:
    data = make(rows(40), held_out=0.25)
    assert (len(data.train), len(data.held_out)) == (30, 10)
    assert {name: str(f) for name, f in data.train.features.items()} == {
        "input_ids": "List(Value('int32'))",
        "labels": "List(Value('int32'))",
        "id": "Value('string')",
    }
    both = [*data.train, *data.held_out]
    assert {row["id"] for row in both} == {str(n) for n in range(1, 41)}
    for row in both:
        number = int(row["id"]) - 1
        prompt = render(Prompt(1, f"q {number}"), tokenizer, "auto")
        assert row["input_ids"][: len(prompt)] == prompt
        learned = [label for label in row["labels"] if label != -100]
        assert tokenizer.decode(learned) == f"a {number}</s>"
    facts = data.facts
    lengths = [len(row["input_ids"]) for row in both]
    assert (facts["examples"], facts["bad"], facts["contexts"]) == (40, 0, 40)
    assert (facts["train"], facts["held_out"]) == (30, 10)
    assert facts["tokens"] == sum(lengths)
    assert facts["train_tokens"] == sum(map(len, data.train["input_ids"]))
    assert facts["loss_tokens"] == sum(label != -100 for row in both for label in row["labels"])
    assert facts["longest"] == max(lengths) == max(example_lengths(data))
    assert facts["percentiles"]["99"] == max(lengths)
    assert (facts["truncated"], facts["dropped"]) == (0, 0)


def test_the_same_again_is_loaded(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = make(rows(5))
    assert make.said[0].endswith("read as columns (prompt: prompt, response: response)")
    warnings = make.said[1:]
    assert warnings
    monkeypatch.setattr(prepared_data, "_make", None)  # must not be called again
    again = make(rows(5))
    assert "prepared before" in make.said[0]
    assert make.said[1:] == warnings  # what the user should know is said again
    assert again.folder == first.folder
    assert again.facts == first.facts
    assert again.train[:] == first.train[:]


def test_what_makes_another_folder(make: Any, model_folder: Path, tmp_path: Path) -> None:
    seen = {make(rows(5)).folder}
    changes: list[dict[str, Any]] = [
        {"max_length": 100},
        {"held_out": 0.3},
        {"split_seed": 1},
        {"learn_prompt": True},
        {"prompt_style": "raw"},
        {"system": "Be brief"},
        {"columns": Columns("response", "prompt")},
        {"name": "other.jsonl"},
    ]
    for change in changes:
        seen.add(make(rows(5), **change).folder)
    seen.add(make(rows(6)).folder)
    assert len(seen) == len(changes) + 2


def test_another_tokenizer_makes_another_folder(
    model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(rows(1)[0]))
    options, said = DataOptions(str(data)), print
    first = prepare(options, tokenizer, model_folder, tmp_path, said).folder
    other = shutil.copytree(model_folder, tmp_path / "model")
    assert prepare(options, tokenizer, other, tmp_path, said).folder == first
    settings = json.loads((other / "tokenizer_config.json").read_bytes())
    (other / "tokenizer_config.json").write_text(json.dumps(settings | {"note": 1}))
    assert prepare(options, tokenizer, other, tmp_path, said).folder != first


def test_data_elsewhere_are_the_same_data(
    model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    folders = set()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        path = tmp_path / name / "d.jsonl"
        path.write_text(json.dumps(rows(1)[0]))
        options = DataOptions(str(path))
        folders.add(prepare(options, tokenizer, model_folder, tmp_path, print).folder)
    assert len(folders) == 1


@pytest.mark.parametrize("damage", ["facts.json", "train", "lengths.npy", "arrow"])
def test_a_damaged_cache_is_made_again(damage: str, make: Any) -> None:
    data = make(rows(30))
    target = data.folder / damage
    if damage == "arrow":
        (target,) = (data.folder / "train").glob("*.arrow")
        cut = target.read_bytes()[:-100]
        target.unlink()  # `data` has it mapped
        target.write_bytes(cut)
    elif target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink()
    again = make(rows(30))
    assert "prepared before" not in make.said[0]
    assert again.train[:] == data.train[:]
    assert len(example_lengths(again)) == 30


def test_the_split_goes_by_context(make: Any) -> None:
    shared = [r | {"doc": f"d{i // 4}"} for i, r in enumerate(rows(100))]
    columns = Columns("prompt", "response", context="doc")
    data = make(shared, columns=columns, held_out=0.2)
    train, held = (
        {shared[int(i) - 1]["doc"] for i in d["id"]} for d in (data.train, data.held_out)
    )
    assert not train & held
    assert (len(train), len(held)) == (20, 5)


def test_the_split_does_not_depend_on_the_order_of_rows(make: Any) -> None:
    given = rows(50)
    shuffled = random.Random(0).sample(given, 50)

    def held(data: PreparedData, order: list[dict[str, Any]]) -> set[str]:
        return {order[int(i) - 1]["prompt"] for i in data.held_out["id"]}

    first = held(make(given, held_out=0.2), given)
    assert held(make(shuffled, held_out=0.2), shuffled) == first
    assert held(make(given, held_out=0.2, split_seed=1), given) != first


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.9, 0), (2, 0.99, 1), (5, 0.05, 0), (20, 0.001, 1), (40, 0.0, 0), (3, 0.999, 2)],
)
def test_sizes_of_the_split(count: int, share: float, expected: int, make: Any) -> None:
    data = make(rows(count), held_out=share)
    assert len(data.held_out) == expected
    assert len(data.train) == count - expected
    assert any("nothing is held out" in text for text in make.said) == (share > 0 and not expected)


def test_long_examples_lose_their_end_or_go(make: Any, tokenizer: Any) -> None:
    given = [
        {"prompt": "q", "response": "a"},
        {"prompt": "q", "response": "a " * 100},
        {"prompt": "q " * 100, "response": "a"},
    ]
    data = make(given, max_length=20, held_out=0.0)
    assert data.train["id"][:] == ["1", "2"]
    assert len(data.train[1]["input_ids"]) == 20
    assert data.train[1]["labels"][-1] != tokenizer.eos_token_id
    assert (data.facts["truncated"], data.facts["dropped"]) == (1, 1)
    assert data.facts["longest"] > 100
    assert data.facts["longest_kept"] == 20
    assert "1 of 3 examples are cut off at 20 tokens" in "\n".join(make.said)
    assert "1 of 3 examples are dropped" in "\n".join(make.said)
    with pytest.raises(LLMError, match="nothing to learn"):
        make(given[2:], max_length=20)


def test_long_documents_become_several(make: Any, tokenizer: Any) -> None:
    text = " ".join(f"word{i}" for i in range(100))
    data = make(f"{text}\n<|endoftext|>\nshort", name="d.txt", max_length=32, held_out=0.0)
    blocks = [row["input_ids"] for row in data.train if row["id"].startswith("1")]
    assert len(blocks) > 3
    assert all(len(block) <= 32 and block[0] == tokenizer.bos_token_id for block in blocks)
    joined = [token for block in blocks for token in block[1:]]
    assert joined == [
        *tokenizer(text, add_special_tokens=False)["input_ids"],
        tokenizer.eos_token_id,
    ]
    assert all(row["labels"] == [-100, *row["input_ids"][1:]] for row in data.train)
    assert data.train["id"][-1] == "2"
    assert (data.facts["examples"], data.facts["truncated"]) == (2, 0)


def test_bad_rows_and_chats_that_do_not_fit(make: Any) -> None:
    chats = [
        {"messages": [{"role": role, "content": "a"}, {"role": "assistant", "content": "b"}]}
        for role in ("user", "user")
    ]
    chats.insert(1, {"messages": [{"role": "robot", "content": "x"}, *chats[0]["messages"]]})
    chats.append({"messages": []})
    with pytest.raises(LLMError, match="messages is a list"):
        make(chats)
    with pytest.raises(LLMError, match="line 2 does not fit the model's chat template"):
        make(chats[:3])
    data = make(chats, skip_bad=True)
    assert (data.facts["bad"], data.facts["train"]) == (2, 2)
    assert "warning: 2 bad examples are left out" in make.said[1]
    with pytest.raises(LLMError, match="does not fit"):
        make(chats[1:2], skip_bad=True)


def test_options_that_fit_no_row_are_one_fault(make: Any) -> None:
    with pytest.raises(LLMError, match="--system has no place in the style 'raw'"):
        make("a text", name="a.txt", system="Be brief")


def test_a_cache_that_cannot_be_written(model_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    data = tmp_path / "d.jsonl"
    data.write_text(json.dumps(rows(1)[0]))
    (tmp_path / "file").write_text("")
    with pytest.raises(LLMError, match="cannot write the cache") as caught:
        prepare(DataOptions(str(data)), tokenizer, model_folder, tmp_path / "file", print)
    assert "LLM_CACHE_DIR" in caught.value.fix


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/llm/prepared")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder() == Path("~/.cache/llm/prepared").expanduser()
    monkeypatch.setenv("LLM_CACHE_DIR", "/y z")
    assert cache_folder() == Path("/y z/prepared")


def test_two_processes_at_once(model_folder: Path, tokenizer: Any, tmp_path: Path) -> None:
    """Both get the data, and they are made once."""
    data = tmp_path / "d.jsonl"
    data.write_text("\n".join(map(json.dumps, rows(200))))
    said = tmp_path / "said"

    def work() -> None:
        def say(text: str) -> None:
            with said.open("a") as file:
                file.write(text + "\n")

        found = prepare(DataOptions(str(data)), tokenizer, model_folder, tmp_path / "c", say)
        os._exit(0 if len(found.train) == 190 else 1)

    context = multiprocessing.get_context("fork")
    both = [context.Process(target=work) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    lines = said.read_text().splitlines()
    assert sum("prepared before" in line for line in lines) == 1
    assert sum("read as" in line for line in lines) == 1


def test_no_context_of_tatqa_is_on_both_sides(
    model_folder: Path, tokenizer: Any, tmp_path: Path
) -> None:
    if not TATQA.is_file():
        pytest.skip(f"{TATQA.name} is not here")
    contexts = json.loads(TATQA.read_bytes())[:60]  # tokenizing them all takes a while
    part = tmp_path / "dev.json"
    part.write_text(json.dumps(contexts))
    options = DataOptions(str(part), max_length=8192, held_out=0.1)
    data = prepare(options, tokenizer, model_folder, tmp_path / "c", print)
    context_of = {q["uid"]: c["table"]["uid"] for c in contexts for q in c["questions"]}
    train, held = ({context_of[i] for i in d["id"]} for d in (data.train, data.held_out))
    assert not train & held
    assert (len(train), len(held)) == (54, 6)
    assert len(data.train) + len(data.held_out) == len(context_of)
