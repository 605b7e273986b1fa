"""generate.py's decoder on a GPU: the compiled steps give the eager steps' tokens."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "recipes"))

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
LENGTHS = (5, 1, 9, 3, 17)
ALL = (len(LENGTHS),)


class NoText:
    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return ""


def model(dtype: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    return LlamaForCausalLM(config).to("cuda", dtype).eval()


def completions(
    on: Any,
    compiled: bool,
    lengths: Sequence[int] = LENGTHS,
    sizes: Sequence[int] = ALL * 2,  # again with the static cache and the graph of the first
    **sampling: Any,
) -> list[dict[str, tuple[int, ...]]]:
    """All prompts once for each of the sizes, so many a batch."""
    from llm_recipes.decoding import Decoder, DecodeSettings, Request
    from llm_recipes.sampling import Sampling

    generator = torch.Generator().manual_seed(2)
    requests = [
        Request(str(n), 0, tuple(torch.randint(3, 1024, (n,), generator=generator).tolist()))
        for n in lengths
    ]
    decoder = Decoder(on, NoText(), DecodeSettings(40, Sampling(**sampling), compiled=compiled))
    found = [
        {
            made.request.prompt_id: made.token_ids
            for start in range(0, len(requests), size)
            for made in decoder.complete(requests[start : start + size])
        }
        for size in sizes
    ]
    assert decoder.compiled == compiled, "compiling failed"
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_compiled_gives_the_eager_tokens(temperature: float) -> None:
    on = model(torch.float32)
    eager = completions(on, compiled=False, temperature=temperature)
    assert completions(on, compiled=True, temperature=temperature) == eager
    assert all(len(tokens) == 40 for tokens in eager[0].values())


def test_every_shape_is_compiled() -> None:
    # Three numbers of rows, two lengths of the cache; at last a shape that was compiled before,
    # with another cache than its graph was made with.
    from torch._dynamo.utils import counters

    on = model(torch.float32)
    shapes: dict[str, Any] = {"lengths": (300, *LENGTHS[:4]), "sizes": (5, 2, 1, 5)}
    eager = completions(on, compiled=False, **shapes)
    before = counters["stats"]["unique_graphs"]
    assert completions(on, compiled=True, **shapes) == eager
    assert counters["stats"]["unique_graphs"] - before == 5


def test_samples_on_a_gpu_equal_those_on_a_cpu() -> None:
    on = model(torch.float32)
    [gpu] = completions(on, compiled=False, sizes=ALL, temperature=1.0, top_p=0.9)
    [cpu] = completions(on.cpu(), compiled=False, sizes=ALL, temperature=1.0, top_p=0.9)
    equal = sum(a == b for key in gpu for a, b in zip(gpu[key], cpu[key], strict=True))
    # The noise is the same; a rounding of the logits may turn a near tie, and what follows it.
    assert equal >= 0.8 * 40 * len(LENGTHS)


def test_precision_policy() -> None:
    from llm_recipes.device import choose_device, choose_dtype

    device = choose_device("auto")
    capable = torch.cuda.get_device_capability(device) >= (8, 0)
    assert device.type == "cuda"
    assert choose_dtype("auto", device) == (torch.bfloat16 if capable else torch.float16)
