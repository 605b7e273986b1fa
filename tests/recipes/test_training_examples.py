"""Training sees the prompt ids that generation sees, and learns the answers with their ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")

from llm_recipes.errors import LLMError
from llm_recipes.examples import Example
from llm_recipes.prompts import Prompt, encode, render
from llm_recipes.training_examples import (
    NOT_LEARNED,
    TrainingExample,
    check_style,
    example_style,
    training_examples,
)

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + m['content'].strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'].strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (  # ends the whole chat once more
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
THINKING = (  # Qwen3: an empty thought in the last turn only
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
MARKED = (  # shouts earlier answers, so that only its marks say where they are
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'assistant' %}A:"
    "{%- generation %}{{ m['content'] | upper }}{{ eos_token }}{% endgeneration %}"
    "{% else %}Q:{{ m['content'] }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A:{% endif %}"
)
REASONING = (  # DeepSeek-R1: the prompt for an answer begins a thought, a finished chat has none
    "{% for m in messages %}{{ m['role'] }}:{{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:<think>{% endif %}"
)
CHAT = (
    {"role": "user", "content": "First question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": "\n last  answer"},
)


@pytest.fixture
def tokenizer(model_folder: Path) -> Any:
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(model_folder)
    loaded.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    return loaded


@pytest.fixture(scope="session")
def byte_tokenizer() -> Any:
    """A byte-level BPE without BOS, whose tokens reach across borders (` ` + `a`, `\\n\\n`)."""
    import pydoc_data.topics

    from transformers import Qwen2Tokenizer

    texts = list(pydoc_data.topics.topics.values())[:20]
    made = Qwen2Tokenizer().train_new_from_iterator(
        texts, 600, new_special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    made.eos_token = "<|im_end|>"
    made.chat_template = CHATML
    return made


def train(
    examples: list[Example], tokenizer: Any, style: Any = "auto", **options: Any
) -> list[TrainingExample]:
    options = {"system": None, "learn_prompt": False, **options}
    found = list(training_examples(examples, tokenizer, style, **options))
    for one in found:
        assert isinstance(one, TrainingExample), str(one)
        assert len(one.ids) == len(one.labels)
        assert all(label in (NOT_LEARNED, i) for i, label in zip(one.ids, one.labels, strict=True))
    return found  # type: ignore[return-value]


def learned(found: TrainingExample, tokenizer: Any) -> list[str]:
    """Texts of the learned runs of tokens, special tokens included."""
    runs: list[list[int]] = [[]]
    for label in found.labels:
        if label == NOT_LEARNED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run) for run in runs if run]


def chat(messages: Any = CHAT) -> Example:
    return Example("c", "c", messages=messages, where="f, line 1")


def task(**values: str) -> Example:
    return Example("e", "e", **{"instruction": "Do it", "response": "Done", **values})  # type: ignore[arg-type]


TASKS = [
    task(),
    task(input="with this\n\nthing"),
    task(instruction="ends in a space ", response="the end"),
    task(instruction="ends in a line\n", response="\n\nfoo"),
    task(instruction="ü €", response=" leading"),
    task(instruction="{braces} {instruction}", response="{0} %s"),
    task(response="multi\nline\n"),
]


@pytest.mark.parametrize("style", ["raw", "alpaca", "chat"])
@pytest.mark.parametrize("which", ["sentencepiece", "bytes"])
def test_prompt_ids_are_those_of_generation(
    style: Any, which: str, tokenizer: Any, byte_tokenizer: Any
) -> None:
    t = tokenizer if which == "sentencepiece" else byte_tokenizer
    for found in train(TASKS, t, style):
        prompt = render(found.example.prompt, t, style)
        assert found.ids[: len(prompt)] == prompt
        assert set(found.labels[: len(prompt)]) == {NOT_LEARNED}
        rest = found.ids[len(prompt) :]
        assert found.labels[len(prompt) :] == rest
        assert rest[-1] == t.eos_token_id
        assert rest.count(t.eos_token_id) == 1
        if t.bos_token_id is not None:
            assert found.ids.count(t.bos_token_id) == 1
        text = t.decode(found.ids).removesuffix(t.eos_token)
        assert text.strip().endswith(found.example.response.strip())


def test_text_is_joined_as_it_is_written(tokenizer: Any, byte_tokenizer: Any) -> None:
    """No space is lost or put in between, whichever way the ids were made."""
    for t in (tokenizer, byte_tokenizer):
        for found in train(TASKS, t, "raw"):
            e = found.example
            text = f"{e.prompt.whole_text}{e.response}{t.eos_token}"
            assert t.decode(found.ids, clean_up_tokenization_spaces=False).endswith(text)


def test_many_at_once_are_as_one_by_one(tokenizer: Any) -> None:
    examples = [*TASKS, chat(), Example("d", "d", text="A document.")] * 3
    for style in ("chat",):
        together = train(examples, tokenizer, style)
        alone = [train([e], tokenizer, style)[0] for e in examples]
        assert together == alone
    texts = [f"{e.instruction} {e.response}" for e in TASKS]
    assert encode(texts, tokenizer) == [encode([text], tokenizer)[0] for text in texts]


def test_alpacas_published_form_with_an_input(tokenizer: Any) -> None:
    (found,) = train([task(input="This")], tokenizer, "alpaca")
    assert tokenizer.decode(found.ids[1:]) == (
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nDo it\n\n### Input:\nThis\n\n### Response:Done</s>"
    )
    assert learned(found, tokenizer) == ["Done</s>"]


def test_auto(tokenizer: Any) -> None:
    document = Example("d", "d", text="a")
    assert example_style("auto", tokenizer, task()) == "chat"
    assert example_style("auto", tokenizer, document) == "raw"
    tokenizer.chat_template = None
    assert example_style("auto", tokenizer, task()) == "alpaca"
    assert example_style("raw", tokenizer, task()) == "raw"
    (found,) = train([chat(CHAT[:2])], tokenizer)
    assert "### Instruction:\nFirst question" in tokenizer.decode(found.ids)
    (fault,) = training_examples([chat()], tokenizer, "auto", None, False)
    assert "f, line 1 is a chat, which the style 'alpaca' cannot show" in str(fault)


def test_a_document_is_learned_as_a_whole(tokenizer: Any, byte_tokenizer: Any) -> None:
    text = "<s>Text with <s>a strike</s> and an end</s>\n"
    for t in (tokenizer, byte_tokenizer):
        (found,) = train([Example("d", "d", text=text)], t)
        assert found.labels[1:] == found.ids[1:]
        assert found.labels[0] == NOT_LEARNED
        assert found.ids[-1] == t.eos_token_id
        assert found.ids.count(t.eos_token_id) == 1
    (found,) = train([Example("d", "d", text=text)], tokenizer)
    assert found.ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(found.ids) == "<s> Text with <s>a strike</s> and an end</s>"


def test_special_tokens_that_a_response_spells_are_text(tokenizer: Any) -> None:
    (found,) = train([task(response="<s>old</s> price <s>x")], tokenizer, "alpaca")
    assert found.ids.count(tokenizer.bos_token_id) == 1
    assert found.ids.count(tokenizer.eos_token_id) == 1
    (found,) = train([task(response="Done</s>")], tokenizer, "alpaca")
    assert learned(found, tokenizer) == ["Done</s>"]


def test_a_template_without_an_end_gets_the_end_token(tokenizer: Any) -> None:
    (found,) = train([chat()], tokenizer)
    assert learned(found, tokenizer) == ["first answer", "\n last  answer</s>"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (CHATML, ["first answer<|im_end|>", "\n last  answer<|im_end|>"]),
        (LLAMA2, ["first answer </s>", "last  answer </s>"]),
        (PHI3, ["first answer<|im_end|>", "\n last  answer<|im_end|>"]),
        (THINKING, ["first answer<|im_end|>", "<think>\n\n</think>\n\n\n last  answer<|im_end|>"]),
        (MARKED, ["FIRST ANSWER</s>", "\n LAST  ANSWER</s>"]),
    ],
)
def test_every_turn_of_the_assistant_is_learned(
    template: str, expected: list[str], tokenizer: Any
) -> None:
    tokenizer.chat_template = template
    (found,) = train([chat()], tokenizer)
    assert learned(found, tokenizer) == expected
    first = render(Prompt(1, messages=CHAT[:1]), tokenizer, "chat")
    assert found.ids[: len(first)] == first
    last = render(Prompt(1, messages=CHAT[:3]), tokenizer, "chat")
    if template != MARKED:
        assert found.ids[: len(last)] == last
    assert found.labels[-1] == found.ids[-1]  # nothing behind the end


def test_a_repeated_answer_is_found_in_its_own_place(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    same = ({"role": "user", "content": "ok"}, {"role": "assistant", "content": "ok"}) * 3
    (found,) = train([chat(same)], tokenizer)
    assert learned(found, tokenizer) == ["ok<|im_end|>"] * 3
    plain = tokenizer.apply_chat_template(list(same), tokenize=False).removesuffix("\n")
    assert found.ids[1:] == encode([plain], tokenizer)[0][1:]


def test_a_system_message(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    for example in (task(), chat()):
        (found,) = train([example], tokenizer, system="Be brief")
        assert "system\nBe brief<|im_end|>" in tokenizer.decode(found.ids)
        assert "Be brief" not in "".join(learned(found, tokenizer))


def test_learn_prompt(tokenizer: Any) -> None:
    for example in (task(), chat()):
        (found,) = train([example], tokenizer, learn_prompt=True)
        assert found.labels == [NOT_LEARNED, *found.ids[1:]]


def test_templates_that_cannot_be_learned_with(tokenizer: Any) -> None:
    tokenizer.chat_template = REASONING
    (fault,) = training_examples([chat(CHAT[:2])], tokenizer, "auto", None, False)
    assert "f, line 1 cannot be learned with the model's chat template" in str(fault)
    assert "'<think>'" in str(fault)
    tokenizer.chat_template = MARKED.replace("{%- generation %}", "").replace(
        "{% endgeneration %}", ""
    )
    (fault,) = training_examples([chat()], tokenizer, "auto", None, False)
    assert "{% generation %}" in str(fault)


def test_a_chat_that_the_template_refuses_does_not_stop_the_others(tokenizer: Any) -> None:
    robot = ({"role": "robot", "content": "a"}, *CHAT[:2])
    found = list(training_examples([chat(robot), chat()], tokenizer, "auto", None, False))
    assert isinstance(found[1], TrainingExample)
    assert "f, line 1 does not fit the model's chat template" in str(found[0])
    assert "unknown role robot" in str(found[0])


def test_styles_that_fit_no_example(tokenizer: Any) -> None:
    check_style("chat", tokenizer, "Be brief")
    with pytest.raises(LLMError, match="--system"):
        check_style("alpaca", tokenizer, "Be brief")
    tokenizer.chat_template = None
    with pytest.raises(LLMError, match="knows no chat"):
        check_style("chat", tokenizer, None)
    tokenizer.eos_token = None
    with pytest.raises(LLMError, match="no end token"):
        check_style("raw", tokenizer, None)
