"""Continuous batching: the same tokens whatever runs beside, equal to the transformers recipe."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
torch = pytest.importorskip("torch")

from llm_recipes.decoding import Completion, Decoder, DecodeSettings, Request  # noqa: E402
from llm_recipes.device import DTYPES  # noqa: E402
from llm_recipes.errors import LLMError  # noqa: E402
from llm_recipes.gguf.decoder import GgufDecoder  # noqa: E402
from llm_recipes.gguf.file import read_gguf  # noqa: E402
from llm_recipes.gguf.model import ContextSettings, GgufModel  # noqa: E402
from llm_recipes.model_folder import find_model  # noqa: E402
from llm_recipes.models import load_model  # noqa: E402
from llm_recipes.sampling import Sampling  # noqa: E402
from llm_recipes.stopping import UNFINISHED  # noqa: E402

GREEDY = DecodeSettings(max_new_tokens=12, sampling=Sampling(), context=256)
PROMPTS = [
    "The for statement",
    "An object",
    "Import",
    "The following " * 20,
    "a",
    "class C:",
    "é ü",
]


@pytest.fixture(scope="module")
def model(tiny_gguf: Path) -> Iterator[GgufModel]:
    with GgufModel.load(read_gguf(tiny_gguf)) as loaded:
        yield loaded


def requests(model: GgufModel, count: int = len(PROMPTS), samples: int = 1) -> list[Request]:
    texts = PROMPTS[:count]
    return [
        Request(str(index), sample, tuple(model.tokenizer(text)["input_ids"]))
        for index, text in enumerate(texts)
        for sample in range(samples)
    ]


def complete(
    model: GgufModel,
    asked: list[Request],
    settings: DecodeSettings = GREEDY,
    **room: object,
) -> dict[tuple[str, int], Completion]:
    wanted = {"tokens": 256, "sequences": 4, "batch": 256, **room}
    with model.context(ContextSettings(**wanted)) as context:  # type: ignore[arg-type]
        found = list(GgufDecoder(context, model.tokenizer, settings).complete(asked))
    assert len(found) == len(asked)
    return {(c.request.prompt_id, c.request.sample): c for c in found}


@pytest.mark.parametrize("sequences", [2, 3, 7, 16])
def test_side_by_side_as_one_by_one(model: GgufModel, sequences: int) -> None:
    asked = requests(model)
    alone = complete(model, asked, sequences=1)
    assert complete(model, asked, sequences=sequences) == alone
    assert complete(model, asked[::-1], sequences=sequences, batch=64) == alone


@pytest.mark.parametrize(
    "settings",
    [
        GREEDY,
        DecodeSettings(16, Sampling(0.8, top_p=0.9, seed=3), context=256),
        DecodeSettings(16, Sampling(1.0, top_k=20, repetition_penalty=1.3, seed=1), context=256),
        DecodeSettings(100, Sampling(), context=256),
        DecodeSettings(24, Sampling(0.9), stop=("e",), context=256),
    ],
)
def test_the_same_tokens_as_transformers(
    model: GgufModel, tiny_hf: Path, settings: DecodeSettings
) -> None:
    device, dtype = torch.device("cpu"), DTYPES["fp32"]
    loaded = load_model(find_model(str(tiny_hf)), None, device, dtype, False)
    asked = requests(model, samples=2 if settings.sampling.temperature else 1)
    assert [r.token_ids for r in asked[:1]] == [tuple(loaded.tokenizer(PROMPTS[0])["input_ids"])]
    theirs = {
        (c.request.prompt_id, c.request.sample): c
        for request in asked
        for c in Decoder(loaded.model, loaded.tokenizer, settings).complete([request])
    }
    exact = {"key_type": "f32", "value_type": "f32", "flash_attention": "off"}
    ours = complete(model, asked, settings, **exact)
    for key, completion in theirs.items():
        assert ours[key].token_ids == completion.token_ids
        assert ours[key].finish_reason == completion.finish_reason
        # Bytes that are no character are shown in different ways.
        if UNFINISHED not in ours[key].text + completion.text:
            assert ours[key].text == completion.text


def test_limits_and_stop_tokens(model: GgufModel) -> None:
    plain = complete(model, requests(model))
    fifth = plain["0", 0].token_ids[4]
    stopping = DecodeSettings(12, Sampling(), stop_token_ids=frozenset({fifth}), context=256)
    found = complete(model, requests(model), stopping)
    first = plain["0", 0].token_ids.index(fifth)
    assert found["0", 0].token_ids == plain["0", 0].token_ids[: first + 1]
    assert found["0", 0].finish_reason == "stop"
    for key, completion in found.items():
        if completion.finish_reason == "length":
            assert completion.token_ids == plain[key].token_ids
    one = DecodeSettings(1, Sampling(), context=256)
    assert all(len(c.token_ids) == 1 for c in complete(model, requests(model), one).values())


def test_equal_prompts_are_computed_once(model: GgufModel) -> None:
    asked = requests(model, count=2, samples=8)
    settings = DecodeSettings(8, Sampling(1.0), context=256)
    with model.context(ContextSettings(256, sequences=16)) as context:
        decoder = GgufDecoder(context, model.tokenizer, settings)
        found = list(decoder.complete(asked))
        lengths = [len(asked[0].token_ids), len(asked[8].token_ids)]
        assert decoder.work.prompt_tokens == sum(lengths)
    alone = complete(model, asked, settings, sequences=1)
    assert {(c.request.prompt_id, c.request.sample): c for c in found} == alone


def test_a_prompt_longer_than_a_batch_and_one_as_long_as_the_context(model: GgufModel) -> None:
    ids = tuple(model.tokenizer("word " * 200)["input_ids"])
    asked = [Request("long", 0, ids[:150]), Request("full", 0, ids[:255])]
    small = complete(model, asked, batch=32, micro_batch=16)
    assert small == complete(model, asked, batch=512, sequences=2)
    assert len(small["full", 0].token_ids) == 1
    assert small["full", 0].finish_reason == "length"


def test_text_comes_in_pieces(model: GgufModel) -> None:
    pieces: list[str] = []
    with model.context(ContextSettings(256)) as context:
        decoder = GgufDecoder(context, model.tokenizer, GREEDY)
        [whole] = decoder.complete(requests(model, 1), on_text=pieces.append)
    assert "".join(pieces) == whole.text
    assert len(pieces) > 1


def test_work_is_counted(model: GgufModel) -> None:
    asked = requests(model, 3)
    with model.context(ContextSettings(256, sequences=2)) as context:
        decoder = GgufDecoder(context, model.tokenizer, GREEDY)
        list(decoder.complete(asked))
    work = decoder.work
    assert work.prompt_tokens == sum(len(request.token_ids) for request in asked)
    assert work.generated_tokens == 3 * 12
    assert work.decoded_tokens == 3 * 11
    assert work.steps == 22
    assert work.prefill_s > 0 and work.decode_s > 0


def test_leaving_in_the_middle_empties_the_context(model: GgufModel) -> None:
    asked = requests(model)
    with model.context(ContextSettings(256, sequences=4)) as context:
        decoder = GgufDecoder(context, model.tokenizer, GREEDY)
        running = decoder.complete(asked)
        next(running)
        running.close()
        again = {c.request.prompt_id: c for c in decoder.complete(asked)}
    assert again["0"] == complete(model, asked)["0", 0]


def test_a_sequence_too_long_for_its_room_is_an_error(model: GgufModel) -> None:
    with model.context(ContextSettings(256)) as context:
        with pytest.raises(ValueError, match="300 tokens are more than a batch of 256"):
            context.decode([5] * 300, range(300), [0] * 300, [0] * 300)
        context.decode([5] * 200, range(200), [0] * 200, [0] * 200)
        with pytest.raises(LLMError, match="no room left in the context"):
            context.decode([5] * 100, range(200, 300), [0] * 100, [0] * 100)
