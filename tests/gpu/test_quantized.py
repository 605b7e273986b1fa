"""llama.cpp on GPUs: layers are really there, splits and caches give the CPU's tokens."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("llama_cpp")

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT / "benchmarks")]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A small random model of two layers in fp16."""
    from gguf_models import make_model

    from llm_recipes.gguf.file import read_gguf

    yield read_gguf(make_model("tiny", "F16", tmp_path_factory.mktemp("gguf")))


PROMPTS = [tuple(range(3, 3 + n)) for n in (5, 40, 9)]


def tokens(
    file: object,
    placement: object,
    prompts: Sequence[tuple[int, ...]] = PROMPTS,
    sequences: int = 2,
    stop: int | None = None,
    **room: object,
) -> tuple[list[tuple[int, ...]], object]:
    """Greedy completions of a few prompts, and where llama.cpp says the layers are."""
    from llm_recipes.decoding import DecodeSettings, Request
    from llm_recipes.gguf.decoder import GgufDecoder
    from llm_recipes.gguf.model import ContextSettings, GgufModel
    from llm_recipes.sampling import Sampling

    requests = [Request(str(n), 0, ids) for n, ids in enumerate(prompts)]
    with GgufModel.load(file, placement) as model:  # type: ignore[arg-type]
        settings = ContextSettings(tokens=256, sequences=sequences, **room)  # type: ignore[arg-type]
        with model.context(settings) as context:
            stops = frozenset() if stop is None else frozenset({stop})
            limits = DecodeSettings(24, Sampling(), stop_token_ids=stops, context=256)
            decoder = GgufDecoder(context, model.tokenizer, limits)
            found = {c.request.prompt_id: c.token_ids for c in decoder.complete(requests)}
        return [found[request.prompt_id] for request in requests], model.layer_devices


def test_layers_are_where_they_are_asked_for(file: object) -> None:
    from llm_recipes.gguf.model import Placement

    for count in (0, 2, -1):
        _, layers = tokens(file, Placement(count))
        on_gpu = [name for name in layers.values() if name.startswith("CUDA")]  # type: ignore[attr-defined]
        assert len(on_gpu) == (3 if count < 0 else count)


def test_auto_takes_all_layers_of_a_small_model(file: object) -> None:
    from llm_recipes.gguf.model import ContextSettings
    from llm_recipes.gguf.placement import plan_placement

    room = ContextSettings(tokens=256)
    assert plan_placement(file, "auto", "layer", (), room).gpu_layers == 3  # type: ignore[arg-type]


def test_predicted_memory_is_what_llama_cpp_takes(file: object) -> None:
    from llm_recipes.gguf.model import ContextSettings, GgufModel, Placement
    from llm_recipes.gguf.placement import memory_need

    room = ContextSettings(tokens=256, sequences=2)
    need = memory_need(file, room)  # type: ignore[arg-type]
    with GgufModel.load(file, Placement(-1)) as model, model.context(room) as context:  # type: ignore[arg-type]
        weights = sum(size for name, size in model.buffers.items() if name.startswith("CUDA"))
        beside = sum(size for name, size in context.buffers.items() if name.startswith("CUDA"))
    assert weights == pytest.approx(sum(need.layers), rel=0.02)
    assert beside <= (sum(need.cache) + need.scratch) * 1.1 + 2**25


def test_the_first_tokens_are_those_of_the_cpu(file: object) -> None:
    from llm_recipes.gguf.model import Placement

    cpu, _ = tokens(file, Placement(0), key_type="f32", value_type="f32")
    for placement in (Placement(-1), Placement(2)):
        gpu, _ = tokens(file, placement)
        # Random weights part ways after some tokens of other rounding; the first ones agree.
        assert [row[:4] for row in gpu] == [row[:4] for row in cpu]


def check_samples_of_a_prompt(file: object, placement: object) -> None:
    """The prompt is computed once, and its keys and values are copied to the other samples."""
    found, _ = tokens(file, placement, [PROMPTS[1]] * 3, sequences=3)
    # Their cells lie elsewhere in the cache, which may round otherwise after some tokens.
    first = [row[:4] for row in found]
    assert len(found[0]) > 4 and first == first[:1] * 3


NEAR_TIE = 0.05  # nats: of random weights; the rounding of another batch decides


def same_but_for_ties(
    file: object, prompt: tuple[int, ...], first: tuple[int, ...], other: tuple[int, ...]
) -> bool:
    """Whether two greedy completions are the same up to where two tokens are nearly as likely."""
    from llm_recipes.gguf.model import ContextSettings, GgufModel, Placement
    from llm_recipes.gguf.scoring import score_all

    pairs = enumerate(zip(first, other, strict=False))
    parted = next((place for place, (one, two) in pairs if one != two), None)
    if parted is None:
        return True
    before = [*prompt, *first[:parted]]
    asked = [([*before, completion[parted]], len(before)) for completion in (first, other)]
    room = ContextSettings(tokens=256, sequences=1)
    with GgufModel.load(file, Placement(0)) as model, model.context(room) as context:  # type: ignore[arg-type]
        nats = {n: float(scores.logprobs[0]) for n, scores in score_all(context, asked)}
    return abs(nats[0] - nats[1]) < NEAR_TIE


def check_places_of_the_ended(file: object, placement: object) -> None:
    """A sequence that ends early gives its place to another, whose keys and values move there."""
    alone, _ = tokens(file, placement, sequences=1)
    others = {token for row in alone[1:] for token in row[:4]}
    stop = next(token for token in alone[0][:2] if token not in others)
    found, _ = tokens(file, placement, sequences=3, stop=stop)
    assert len(found[0]) <= 2
    for prompt, one, moved in zip(PROMPTS[1:], alone[1:], found[1:], strict=True):
        assert same_but_for_ties(file, prompt, one[:4], moved[:4]), (one, moved)


def test_samples_of_a_prompt_are_the_same(file: object) -> None:
    from llm_recipes.gguf.model import Placement

    check_samples_of_a_prompt(file, Placement(-1))


def test_a_sequence_that_moves_goes_on(file: object) -> None:
    from llm_recipes.gguf.model import Placement

    check_places_of_the_ended(file, Placement(-1))


@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.device_count() < 2, reason="needs two GPUs"
)
@pytest.mark.parametrize("split", ["layer", "row", "tensor"])
def test_two_gpus_share(file: object, split: str) -> None:
    from llm_recipes.gguf.model import Placement

    one, _ = tokens(file, Placement(-1, "none"))
    two, layers = tokens(file, Placement(-1, split, (1.0, 1.0)))  # type: ignore[arg-type]
    assert [row[:4] for row in two] == [row[:4] for row in one]
    if split == "layer":
        assert {"CUDA0", "CUDA1"} <= set(layers.values())  # type: ignore[attr-defined]
