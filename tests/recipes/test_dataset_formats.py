"""Formats: found from the rows, every bad row named, columns that are not there explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llm_recipes.dataset_formats import Examples, Source, open_source, read_examples
from llm_recipes.errors import LLMError
from llm_recipes.examples import Columns, DataOptions, Example, option_faults

DOLLY = {"instruction": " Name it.\n", "context": "A passage.", "response": "It.", "category": "x"}
ALPACA = {"instruction": "Add", "input": "2 3", "output": "5"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}


def messages_of(error: BaseException) -> str:
    if isinstance(error, ExceptionGroup):
        return "\n".join(messages_of(inner) for inner in error.exceptions)
    return str(error)


def read(folder: Path, rows: list[Any] | str, **options: Any) -> tuple[Examples, list[str]]:
    path = folder / options.pop("name", "it's; data ü.jsonl")
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)))
    said: list[str] = []
    needs_answer = options.pop("needs_answer", True)
    chosen = DataOptions(str(path), **options)
    return read_examples(open_source(str(path)), chosen, said.append, needs_answer), said


def fault(folder: Path, rows: list[Any] | str, **options: Any) -> str:
    with pytest.raises((LLMError, ExceptionGroup)) as caught:
        read(folder, rows, **options)
    return messages_of(caught.value)


def only(found: tuple[Examples, list[str]]) -> Example:
    (example,) = found[0].examples
    return example


def test_dolly(tmp_path: Path) -> None:
    found = read(tmp_path, [DOLLY])
    example = only(found)
    assert (example.instruction, example.input, example.response) == (
        "Name it.",
        "A passage.",
        "It.",
    )
    assert found[0].format == "dolly"
    assert "read as dolly" in found[1][0]
    assert only(read(tmp_path, [DOLLY | {"context": None}])).input == ""


def test_alpaca(tmp_path: Path) -> None:
    example = only(read(tmp_path, json.dumps([ALPACA]), name="alpaca.json"))
    assert (example.instruction, example.input, example.response) == ("Add", "2 3", "5")
    without = only(read(tmp_path, [{"instruction": "a", "output": "b"}]))
    assert without.input == ""


def test_messages(tmp_path: Path) -> None:
    example = only(read(tmp_path, [CHAT]))
    assert example.messages == (
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes"},
    )
    assert example.prompt.messages == example.messages[:1]
    assert example.answer == "Yes"


def test_text(tmp_path: Path) -> None:
    assert only(read(tmp_path, [{"text": " kept \n"}])).text == " kept \n"
    assert only(read(tmp_path, "a\nb\n", name="a.txt")).text == "a\nb"


def test_columns(tmp_path: Path) -> None:
    rows = "id,q,a,doc\n7,Why? ,Because ,d1\n8,Who?,Me,d1\n"
    columns = Columns("q", "a", context="doc")
    found, said = read(tmp_path, rows, name="a.csv", columns=columns)
    first, second = found.examples
    assert (first.id, first.instruction, first.response) == ("7", "Why? ", "Because ")
    assert first.context == second.context
    assert "prompt: q, response: a" in said[0]
    for prompt, response in (("prompt", "completion"), ("question", "answer")):
        for format in ("auto", "columns"):
            example = only(read(tmp_path, [{prompt: "a", response: "b"}], format=format))
            assert (example.instruction, example.response) == ("a", "b")


def test_tatqa(tmp_path: Path) -> None:
    question = {"uid": "q", "question": "How much?", "answer": 3, "scale": ""}
    one = {"table": {"uid": "t", "table": [["a"]]}, "paragraphs": [], "questions": [question]}
    found, _ = read(tmp_path, json.dumps([one]), name="t.json")
    assert (found.format, found.examples[0].id, found.examples[0].context) == ("tatqa", "q", "t")
    error = fault(tmp_path, json.dumps([one, one]), name="t.json")
    assert "item 2 (line 1), question 1: uid q is used twice" in error
    assert "holds no examples" in fault(
        tmp_path, json.dumps([one | {"questions": []}]), name="t.json"
    )


def test_an_unknown_format_names_the_columns(tmp_path: Path) -> None:
    error = fault(tmp_path, [{"frage": "a", "antwort": "b"}])
    assert "frage, antwort" in error
    assert "--prompt-column" in error


def test_a_column_that_is_not_there_names_the_nearest(tmp_path: Path) -> None:
    rows = [{"question": "a", "answers": "b"}] * 30
    columns = Columns("questoin", "answer", context="dock")
    error = fault(tmp_path, rows, columns=columns)
    assert "has no column questoin" in error
    assert "did you mean question?" in error
    assert "did you mean answers?" in error
    assert "has no column dock" in error
    assert "it has question, answers" in error
    assert "has no column output" in fault(tmp_path, [DOLLY], format="alpaca")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2 is not JSON"),
        ('"text"', "line 2 is no JSON object"),
        (json.dumps({"instruction": "a"}), "line 2 has no response"),
        (json.dumps(DOLLY | {"response": " \n"}), "line 2: response is empty"),
        (json.dumps(DOLLY | {"instruction": None}), "line 2: instruction is empty"),
        (json.dumps(DOLLY | {"response": 5}), "line 2: response is a number, expected a text"),
        (json.dumps(DOLLY | {"context": ["a"]}), "line 2: context is a list, expected a text"),
    ],
)
def test_a_bad_row_is_named_or_skipped(bad: str, message: str, tmp_path: Path) -> None:
    text = f"{json.dumps(DOLLY)}\n{bad}\n{json.dumps(DOLLY | {'instruction': 'b'})}\n"
    assert message in fault(tmp_path, text)
    found, _ = read(tmp_path, text, skip_bad=True)
    assert [e.instruction for e in found.examples] == ["Name it.", "b"]
    assert message in str(found.bad[0])


def test_bad_rows_of_all_kinds_at_once(tmp_path: Path) -> None:
    text = json.dumps(DOLLY) + "\n{\n" + '{"instruction": "a"}\n' * 20
    error = fault(tmp_path, text)
    assert "line 2 is not JSON" in error
    assert "line 3 has no response" in error
    assert "and 11 more bad lines\n  fix: --skip-bad leaves" in error


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("hi", "messages is a text, expected a list"),
        ([], "messages is a list, expected a list of messages"),
        (["hi"], "message 1 has no role"),
        ([{"role": "user"}], "message 1: content is missing"),
        ([{"role": "user", "content": [{"type": "text"}]}], "message 1: content is a list"),
        ([{"role": "user", "content": "a"}], "no answer of the assistant"),
        ([{"role": "assistant", "content": "a"}], "no message of the user"),
        (
            [*CHAT["messages"][:1], {"role": "assistant", "content": ""}],
            "message 2: content is empty",
        ),
    ],
)
def test_bad_chats(messages: Any, message: str, tmp_path: Path) -> None:
    assert message in fault(tmp_path, [CHAT, {"messages": messages}])


@pytest.mark.parametrize("text", ["", "\n\n", "[]"])
def test_empty(text: str, tmp_path: Path) -> None:
    assert "holds no examples" in fault(tmp_path, text, name="a.json")
    assert "is bad" not in fault(tmp_path, text, name="a.json", skip_bad=True)


def test_all_rows_bad_is_no_dataset(tmp_path: Path) -> None:
    assert "line 1 is not JSON" in fault(tmp_path, "{\n{\n", skip_bad=True)
    assert "response is empty" in fault(tmp_path, [DOLLY | {"response": ""}], skip_bad=True)


def test_ids_are_the_rows_own_if_they_differ(tmp_path: Path) -> None:
    def ids(*own: Any) -> list[str]:
        found, _ = read(
            tmp_path, [{"prompt": str(i), "response": "b", "id": o} for i, o in enumerate(own)]
        )
        return [e.id for e in found.examples]

    assert ids("x", 5) == ["x", "5"]
    assert ids("x", "x") == ["1", "2"]
    assert ids("x", None) == ["1", "2"]


def test_contexts(tmp_path: Path) -> None:
    """Rows of one prompt, or of one passage of Dolly's, are one context in whatever order."""
    rows = [
        DOLLY,
        DOLLY | {"instruction": "Another question"},
        DOLLY | {"context": ""},
        DOLLY | {"context": "", "response": "Another answer"},
    ]
    contexts = [e.context for e in read(tmp_path, rows)[0].examples]
    assert contexts[0] == contexts[1] != contexts[2] == contexts[3]
    assert [e.context for e in read(tmp_path, rows[::-1])[0].examples] == contexts[::-1]


def test_questions_without_answers_can_be_shown(tmp_path: Path) -> None:
    rows = [DOLLY, DOLLY | {"response": ""}]
    assert len(read(tmp_path, rows, needs_answer=False)[0].examples) == 2
    chats = [CHAT, {"messages": CHAT["messages"][:1]}]
    found, _ = read(tmp_path, chats, needs_answer=False)
    assert [e.answer for e in found.examples] == ["Yes", ""]


def test_a_hub_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)
    dolly = datasets.Dataset.from_list([DOLLY, DOLLY | {"response": ""}])
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: dolly)
    source = open_source("databricks/databricks-dolly-15k")
    assert source.digest() == Source(source.name, hub=dolly).digest()
    with pytest.raises(LLMError, match="databricks-dolly-15k, row 2: response is empty"):
        read_examples(source, DataOptions(source.name), lambda text: None)


def test_a_hub_without_network_and_paths_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.chdir(tmp_path)

    def offline(name: str, split: str) -> None:
        raise ConnectionError("Couldn't reach it\non the Hub")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    with pytest.raises(LLMError, match="cannot find the data owner/name") as caught:
        open_source("owner/name")
    assert "Couldn't reach it" in caught.value.why
    assert "--repo-type dataset" in caught.value.fix
    for name in ("./a/b", "nowhere", "data/dolly.jsonl", "/no/where"):
        with pytest.raises(LLMError, match="does not exist"):
            open_source(name)


def test_the_digest_is_of_names_and_bytes(tmp_path: Path) -> None:
    def digest(folder: str, name: str, data: str) -> str:
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(data)
        return open_source(str(tmp_path / folder / name)).digest()

    first = digest("a", "x.jsonl", "1")
    assert first == digest("b", "x.jsonl", "1")
    assert len({first, digest("a", "y.jsonl", "1"), digest("b", "x.jsonl", "2")}) == 3


def test_option_faults() -> None:
    bad = DataOptions(" ", "dolly", Columns("a"), "raw", "Be\udc80", max_length=1, held_out=1.0)
    faults = "\n".join(map(str, option_faults(bad)))
    for word in ("--data is empty", "--max-length 1", "--held-out 1.0", "--format dolly", "raw"):
        assert word in faults
    assert "--system is not UTF-8" in faults
    assert option_faults(DataOptions("x")) == []
