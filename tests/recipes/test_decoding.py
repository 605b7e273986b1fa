"""The decode loop against transformers' own generate, and what it promises beyond that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from llm_recipes.decoding import Decoder, DecodeSettings, Request  # noqa: E402
from llm_recipes.running_batch import READY_MASK_TYPES, RunningBatch, static_shape  # noqa: E402
from llm_recipes.sampling import Sampling  # noqa: E402
from llm_recipes.stopping import Row  # noqa: E402

NEW = 12
LENGTHS = (5, 1, 9, 3, 17, 9)
COMMON: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
WITH_MLP = {**COMMON, "intermediate_size": 64}
GROUPED = {**WITH_MLP, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": None}),
    "mistral window": ("MistralConfig", {**GROUPED, "sliding_window": 8}),
    "mistral wide window": ("MistralConfig", {**GROUPED, "sliding_window": 64}),
    "mixtral": ("MixtralConfig", {**GROUPED, "num_local_experts": 2}),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 8}),
    "gpt_neox": ("GPTNeoXConfig", WITH_MLP),
    "falcon": ("FalconConfig", {**COMMON, "alibi": False}),
    "falcon alibi": ("FalconConfig", {**COMMON, "alibi": True, "multi_query": False}),
    "phi": ("PhiConfig", WITH_MLP),
    "phi3": ("Phi3Config", {**GROUPED, "sliding_window": None}),
    "gemma": ("GemmaConfig", {**GROUPED, "head_dim": 8}),
    "gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 8, "sliding_window": 8}),
    "olmo2": ("Olmo2Config", GROUPED),
    "starcoder2": ("Starcoder2Config", GROUPED),
    "stablelm": ("StableLmConfig", GROUPED),
    "granite": ("GraniteConfig", GROUPED),
    "gpt2": ("GPT2Config", COMMON),
    "gptj": ("GPTJConfig", {**COMMON, "rotary_dim": 4}),
    "opt": ("OPTConfig", {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("BloomConfig", COMMON),
}


class NumberTokenizer:
    """Decodes token 7 to " 7"."""

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return "".join(f" {token}" for token in token_ids)


def make(name: str) -> Any:
    config_class, settings = ARCHITECTURES[name]
    torch.manual_seed(1)
    config = getattr(transformers, config_class)(**settings)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def prompts(lengths: Sequence[int] = LENGTHS) -> list[tuple[int, ...]]:
    generator = torch.Generator().manual_seed(2)
    return [tuple(torch.randint(3, 128, (n,), generator=generator).tolist()) for n in lengths]


def requests(lengths: Sequence[int] = LENGTHS) -> list[Request]:
    return [Request(str(i), 0, ids) for i, ids in enumerate(prompts(lengths))]


def complete(
    model: Any, asked: Sequence[Request], size: int = 99, **settings: Any
) -> dict[str, tuple[int, ...]]:
    settings = {"max_new_tokens": NEW, "sampling": Sampling(), **settings}
    decoder = Decoder(model, NumberTokenizer(), DecodeSettings(**settings))
    found = tokens_of(decoder, asked, size)
    assert decoder.compiled == decoder.settings.compiled
    return found


def tokens_of(
    decoder: Decoder, asked: Sequence[Request], size: int = 99
) -> dict[str, tuple[int, ...]]:
    return {
        completion.request.prompt_id: completion.token_ids
        for start in range(0, len(asked), size)
        for completion in decoder.complete(asked[start : start + size])
    }


def reference(model: Any, ids: tuple[int, ...], **settings: Any) -> tuple[int, ...]:
    """transformers' generate with a batch of one, so without padding."""
    tensor = torch.tensor([ids])
    out = model.generate(
        tensor,
        attention_mask=torch.ones_like(tensor),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        **settings,
    )
    return tuple(out[0, len(ids) :].tolist())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_equals_transformers_generate(name: str) -> None:
    model = make(name)
    found = complete(model, requests())
    assert found == {str(i): reference(model, ids) for i, ids in enumerate(prompts())}


def test_every_ready_mask_type_is_compared() -> None:
    assert {make(name).config.model_type for name in ARCHITECTURES} >= READY_MASK_TYPES


@pytest.mark.parametrize("name", ["llama", "mistral wide window", "qwen2", "gpt_neox", "falcon"])
def test_static_cache_gives_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # What would be compiled on a GPU, run as it is: shapes, masks and the reused cache.
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model = make(name)
    expected = {str(i): reference(model, ids) for i, ids in enumerate(prompts())}
    assert complete(model, requests(), compiled=True) == expected
    assert complete(model, requests(), size=2, compiled=True) == expected


def test_rows_that_end_early_leave_the_batch() -> None:
    model = make("llama")
    whole = {str(i): reference(model, ids) for i, ids in enumerate(prompts())}
    ends = frozenset({whole["0"][2], whole["3"][1], whole["4"][5]})

    def cut(tokens: tuple[int, ...]) -> tuple[int, ...]:
        last = next((i for i, token in enumerate(tokens) if token in ends), NEW - 1)
        return tokens[: last + 1]

    expected = {key: cut(tokens) for key, tokens in whole.items()}
    assert len({len(tokens) for tokens in expected.values()}) > 2
    assert complete(model, requests(), stop_token_ids=ends) == expected


def test_samples_depend_on_neither_batch_size_nor_order() -> None:
    model = make("llama")
    sampling = Sampling(temperature=1.0, top_p=0.95, top_k=50, seed=3)
    expected = complete(model, requests(), sampling=sampling)
    assert complete(model, requests(), size=1, sampling=sampling) == expected
    assert complete(model, requests()[::-1], size=4, sampling=sampling) == expected
    other = Sampling(temperature=1.0, top_p=0.95, top_k=50, seed=4)
    assert complete(model, requests(), sampling=other) != expected


def test_samples_of_a_prompt_differ() -> None:
    asked = [Request("same", sample, prompts()[0]) for sample in range(4)]
    decoder = Decoder(make("llama"), NumberTokenizer(), DecodeSettings(NEW, Sampling(1.0)))
    assert len({completion.token_ids for completion in decoder.complete(asked)}) == 4


@pytest.mark.parametrize("name", ["llama", "falcon alibi"])
def test_repetition_penalty_equals_transformers(name: str) -> None:
    model = make(name)
    found = complete(model, requests(), sampling=Sampling(repetition_penalty=1.7))
    assert found == {
        str(i): reference(model, ids, repetition_penalty=1.7) for i, ids in enumerate(prompts())
    }
    assert found != complete(model, requests())


def test_context_ends_a_completion() -> None:
    found = complete(make("llama"), requests(), context=20)
    assert {key: len(tokens) for key, tokens in found.items()} == {
        str(i): min(NEW, 20 - length) for i, length in enumerate(LENGTHS)
    }


def test_work_counts_tokens_without_padding() -> None:
    decoder = Decoder(make("llama"), NumberTokenizer(), DecodeSettings(NEW, Sampling()))
    list(decoder.complete(requests()))
    work = decoder.work
    assert work.prompt_tokens == sum(LENGTHS)
    assert work.prompt_attended == sum(n * (n + 1) // 2 for n in LENGTHS)
    assert work.generated_tokens == NEW * len(LENGTHS)
    assert work.steps == NEW - 1
    # The second token sees prompt and first token, the last one all but itself.
    assert work.decode_attended == sum(n + k for n in LENGTHS for k in range(1, NEW))


def test_streamed_pieces_make_the_text() -> None:
    pieces: list[str] = []
    decoder = Decoder(make("llama"), NumberTokenizer(), DecodeSettings(NEW, Sampling()))
    [completion] = decoder.complete(requests()[:1], on_text=pieces.append)
    assert len(pieces) == NEW
    assert "".join(pieces) == completion.text


def test_goes_on_without_a_compiler(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(function: Any, **options: Any) -> Any:
        def fail(*arguments: Any) -> Any:
            raise RuntimeError("Failed to find C compiler")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    model = make("llama")
    decoder = Decoder(model, NumberTokenizer(), compiled_settings())
    assert tokens_of(decoder, requests()) == complete(model, requests())
    assert "going on without compiling: Failed to find C compiler" in capsys.readouterr().err
    assert not decoder.compiled
    assert decoder.kept_bytes() == 0
    assert tokens_of(decoder, requests(), size=2) == complete(model, requests())


def test_goes_on_when_a_later_shape_cannot_be_compiled(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails_for_one_row(function: Any, **options: Any) -> Any:
        def step(*arguments: Any) -> Any:
            logits = function(*arguments)  # the cache has the token already
            if len(arguments[0]) == 1:
                raise RuntimeError("no kernel for this shape")
            return logits

        return step

    monkeypatch.setattr(torch, "compile", fails_for_one_row)
    model = make("llama")
    decoder = Decoder(model, NumberTokenizer(), compiled_settings())
    asked = requests((5, 1, 9))
    assert tokens_of(decoder, asked, size=2) == complete(model, asked)
    assert capsys.readouterr().err.count("going on without compiling: no kernel") == 1
    assert not decoder.compiled


def test_a_model_that_takes_no_ready_mask_is_not_compiled() -> None:
    decoder = Decoder(make("bloom"), NumberTokenizer(), compiled_settings())
    assert not decoder.compiled
    decoder = Decoder(make("mistral window"), NumberTokenizer(), compiled_settings())
    assert decoder.compiles(8)
    assert not decoder.compiles(9)


def test_more_shapes_than_torch_compiles_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    # Dynamo without code generation: a second a shape instead of ten.
    from torch._dynamo import config
    from torch._dynamo.utils import counters

    original = torch.compile
    monkeypatch.setattr(config, "recompile_limit", 8)
    monkeypatch.setattr(
        torch, "compile", lambda step, **_: original(step, backend="eager", dynamic=False)
    )
    model = make("llama")
    decoder = Decoder(model, NumberTokenizer(), compiled_settings(max_new_tokens=3))
    before = counters["stats"]["unique_graphs"]
    sizes = (1, 2, 4)
    for length in (5, 300, 600):
        asked = requests((length,) * 4)
        expected = complete(model, asked, max_new_tokens=3)
        for size in sizes:
            assert tokens_of(decoder, asked, size) == expected
    assert decoder.compiled
    assert counters["stats"]["unique_graphs"] - before == 3 * len(sizes)


def test_compiled_steps_of_two_shapes() -> None:
    # The real compiler, which is why the model has one layer: it takes about 5 seconds a shape.
    torch.manual_seed(1)
    config = transformers.LlamaConfig(**{**GROUPED, "num_hidden_layers": 1})
    model = transformers.LlamaForCausalLM(config).eval()
    asked = requests((5, 1, 9))
    expected = complete(model, asked)
    assert complete(model, asked, size=2, compiled=True) == expected


def compiled_settings(max_new_tokens: int = NEW) -> DecodeSettings:
    return DecodeSettings(max_new_tokens, Sampling(), compiled=True)


def test_few_shapes() -> None:
    assert static_shape(1, 1) == (1, 256)
    assert static_shape(5, 257) == (8, 512)
    assert static_shape(8, 512) == (8, 512)


def test_seen_tokens_are_those_of_the_prompt_and_not_the_padding() -> None:
    asked = [Request("a", 0, (0, 7, 9)), Request("b", 0, (8,)), Request("c", 0, (7, 0))]
    settings = DecodeSettings(NEW, Sampling(repetition_penalty=1.5))
    decoder = Decoder(make("llama"), NumberTokenizer(), settings)
    rows = [Row(i, r.token_ids, NumberTokenizer(), settings) for i, r in enumerate(asked)]
    seen = RunningBatch(decoder, asked, rows).seen
    assert seen is not None
    assert [set(row.nonzero().flatten().tolist()) for row in seen] == [{0, 7, 9}, {8}, {7, 0}]
