"""Reading prompts: every bad line is named; rendering: exactly one BOS."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from llm_recipes.errors import LLMError
from llm_recipes.prompts import Prompt, digest, read_prompts, render, style_faults


def messages_of(error: BaseException) -> str:
    if isinstance(error, ExceptionGroup):
        return "\n".join(messages_of(inner) for inner in error.exceptions)
    return str(error)


def fault(data: bytes, path: Path) -> str:
    path.write_bytes(data)
    with pytest.raises((LLMError, ExceptionGroup)) as caught:
        read_prompts(None, str(path))
    return messages_of(caught.value)


def test_text_file_has_one_prompt_a_line(tmp_path: Path) -> None:
    file = tmp_path / "it's; prompts ü.txt"
    file.write_bytes("\ufeffErste Zeile\r\n\n{not json}\n".encode())
    prompts = read_prompts(None, str(file))
    assert [(p.id, p.text) for p in prompts] == [(1, "Erste Zeile"), (3, "{not json}")]


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    chat = [{"role": "user", "content": "hi"}]
    rows = [{"id": "a", "prompt": "x", "other": 1}, {"id": 1, "messages": chat}, {"prompt": "y"}]
    file.write_text("\n".join(map(json.dumps, rows)))
    prompts = read_prompts(None, str(file))
    assert [(p.id, p.content) for p in prompts] == [("a", "x"), (1, chat), (3, "y")]


def test_an_input_apart(tmp_path: Path, model_folder: Path) -> None:
    from transformers import AutoTokenizer

    file = tmp_path / "p.jsonl"
    rows = [{"prompt": "Add", "input": "{2} 3"}, {"prompt": "a", "input": ""}, {"prompt": "a"}]
    file.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "a", "input": None}])))
    first, *others = read_prompts(None, str(file))
    assert first.content == "Add\n\n{2} 3"
    assert [p.content for p in others] == ["a"] * 3
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    texts = {
        style: tokenizer.decode(render(first, tokenizer, style)[1:]).strip()
        for style in ("raw", "chat", "alpaca")
    }
    assert texts["raw"] == "Add\n\n{2} 3"
    assert texts["chat"] == "<user>Add\n\n{2} 3\n<assistant>"
    assert "paired with an input that provides further context" in texts["alpaca"]
    assert texts["alpaca"].endswith("### Instruction:\nAdd\n\n### Input:\n{2} 3\n\n### Response:")
    assert "Input" not in tokenizer.decode(render(others[0], tokenizer, "alpaca"))


@pytest.mark.parametrize(("data", "ids"), [(b'{"prompt": "x"}\n', [1]), (b"x\n\ny", [1, 3])])
def test_standard_input(data: bytes, ids: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    prompts = read_prompts(None, "-")
    assert [p.id for p in prompts] == ids
    assert prompts[0].text == "x"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "is no JSON object"),
        (b"{}", "needs either prompt or messages"),
        (b'{"prompt": "a", "messages": []}', "needs either prompt or messages"),
        (b'{"prompt": 1}', "prompt is not a text"),
        (b'{"prompt": " "}', "is empty"),
        (b'{"prompt": "a", "input": 1}', "input is not a text"),
        (b'{"messages": []}', "messages are not valid"),
        (b'{"messages": [{"role": "user"}]}', "messages are not valid"),
        (b'{"id": 1.5, "prompt": "a"}', "id 1.5 is not valid"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"prompt": "\xff"}', "is not UTF-8"),
    ],
)
def test_a_bad_line_is_named(line: bytes, message: str, tmp_path: Path) -> None:
    error = fault(b'{"prompt": "good"}\n' + line + b"\n", tmp_path / "p.jsonl")
    assert "p.jsonl, line 2" in error
    assert message in error


def test_all_bad_lines_at_once(tmp_path: Path) -> None:
    error = fault(
        b'{"id": 7, "prompt": "a"}\n{\n\xff\n{"id": 7, "prompt": "b"}', tmp_path / "p.json"
    )
    assert "line 2 is not JSON" in error
    assert "line 3 is not UTF-8" in error
    assert "line 4: id 7 is used twice" in error
    assert "line 1 has it already" in error


def test_many_bad_lines_are_counted(tmp_path: Path) -> None:
    assert "and 90 more bad lines" in fault(b"{\n" * 100, tmp_path / "p.jsonl")


@pytest.mark.parametrize("data", [b"", b"\n\n \n", b"\xef\xbb\xbf"])
def test_no_prompts(data: bytes, tmp_path: Path) -> None:
    assert "holds no prompts" in fault(data, tmp_path / "p.txt")


def test_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.txt", tmp_path):
        with pytest.raises(LLMError, match="cannot read prompts from"):
            read_prompts(None, str(path))


def test_empty_prompt_on_the_command_line() -> None:
    with pytest.raises(LLMError, match="--prompt number 2 is empty"):
        read_prompts(["a", " "], None)


def test_prompt_on_the_command_line_that_is_not_utf8() -> None:
    latin1 = os.fsdecode("café".encode("latin1"))
    with pytest.raises(LLMError, match="--prompt number 2 is not UTF-8"):
        read_prompts(["café", latin1], None)


def test_digest_tells_prompts_apart() -> None:
    lists = [
        [Prompt(1, "a")],
        [Prompt("1", "a")],
        [Prompt(1, "b")],
        [Prompt(1, "a"), Prompt(2, "b")],
        [Prompt(1, "a\n\nb")],
        [Prompt(1, "a", input="b")],
    ]
    assert len({digest(prompts) for prompts in lists}) == 6


def test_exactly_one_bos(model_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    bos = tokenizer.bos_token
    chat = Prompt(1, messages=({"role": "user", "content": "Hello"},))
    cases = [
        render(Prompt(1, "Hello"), tokenizer, "raw"),
        render(Prompt(1, f"{bos}Hello"), tokenizer, "raw"),
        render(Prompt(1, f"{bos}{bos}Hello"), tokenizer, "raw"),
        render(Prompt(1, "Hello"), tokenizer, "alpaca"),
        render(Prompt(1, "Hello"), tokenizer, "auto"),
        render(chat, tokenizer, "auto", "Be brief"),
    ]
    for ids in cases:
        assert ids[0] == tokenizer.bos_token_id
        assert ids.count(tokenizer.bos_token_id) == 1
        assert tokenizer.eos_token_id not in ids
    assert cases[0] == cases[1] == cases[2] == tokenizer("Hello")["input_ids"]
    assert tokenizer.decode(cases[4][1:]) == "<user>Hello\n<assistant>"
    assert tokenizer.decode(cases[5][1:]) == "<system>Be brief\n<user>Hello\n<assistant>"


def test_a_tokenizer_without_bos_gets_none(model_folder: Path, tmp_path: Path) -> None:
    from transformers import LlamaTokenizer

    tokenizer = LlamaTokenizer.from_pretrained(model_folder, add_bos_token=False)
    assert tokenizer.bos_token_id not in render(Prompt(1, "Hello"), tokenizer, "raw")


def test_style_that_does_not_fit(model_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    chat = Prompt(1, messages=({"role": "user", "content": "a"}, {"role": "user", "content": "b"}))
    with pytest.raises(LLMError, match="is a chat, which the style 'raw' cannot show"):
        render(chat, tokenizer, "raw")
    robot = Prompt(1, messages=({"role": "robot", "content": "a"},))
    with pytest.raises(LLMError, match="does not fit the model's chat template"):
        render(robot, tokenizer, "auto")
    tokenizer.chat_template = None
    with pytest.raises(LLMError, match="knows no chat"):
        render(chat, tokenizer, "chat")


def test_a_system_message_needs_a_chat(model_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    with pytest.raises(LLMError, match="--system has no place in the style 'alpaca'"):
        render(Prompt(1, "Hello"), tokenizer, "alpaca", "Be brief")
    tokenizer.chat_template = None
    with pytest.raises(LLMError, match="--system has no place in the style 'raw'"):
        render(Prompt(1, "Hello"), tokenizer, "auto", "Be brief")


def test_options_of_style_that_exclude_each_other() -> None:
    assert len(style_faults("raw", chat=True, system="Be brief")) == 2
    assert len(style_faults("alpaca", chat=False, system="Be brief")) == 1
    assert style_faults("raw", chat=False, system=None) == []
    assert style_faults("auto", chat=True, system="Be brief") == []
