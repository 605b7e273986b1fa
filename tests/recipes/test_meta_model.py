"""Llamas in one and several processes against transformers' with the same weights; loading."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairscale")

import torch
from forked_ranks import run_ranks
from meta_checkpoints import (
    GENERATIONS,
    LLAMA_1,
    LLAMA_2,
    LLAMA_3,
    LLAMA_3_2,
    Generation,
    hf_model,
    make_checkpoint,
    shard,
    weights,
)
from torch import Tensor

from llm_recipes.errors import LLMError
from llm_recipes.meta.checkpoint import MetaCheckpoint, find_checkpoint, read_shard
from llm_recipes.meta.loading import MappedFiles, load_shard
from llm_recipes.meta.model import MetaLlama
from llm_recipes.meta.parallel import split_by_columns, split_by_rows, start_model_parallel
from llm_recipes.meta.rotary import frequencies
from llm_recipes.ranks import Ranks, end_ranks, start_ranks
from llm_recipes.stored_weights import Extent, StoredTensor

CPU = torch.device("cpu")
LENGTHS = (5, 300, 9, 9)  # tokens of the prompts
# Rows that go on from a step: the last one ends, then the longest, and the others change places.
KEPT = {1: (0, 1, 2), 3: (2, 0), 5: (1,)}
RAN = [8, 4, 6, 2]  # logits that each row gets, the prompt's among them
STEPS = 7
GREEDY = 40
NAMES = {generation.name: generation for generation in GENERATIONS}
# On few CPUs a sum over 8 processes takes 20 ms. There, K/V heads are as many as processes, half as
# many and a quarter.
FEW = [LLAMA_1.name, LLAMA_2.name, LLAMA_3_2.name]
RUNS = [(degree, name) for degree in (1, 2, 4, 8) for name in (FEW if degree == 8 else NAMES)]
LONG_RUNS = [(degree, name) for degree, name in RUNS if degree <= 2]


@dataclass(frozen=True)
class Given:
    """Prompts, and the token that each row gets at each step, [rows, steps]."""

    prompts: list[list[int]]
    forced: Tensor


def given(generation: Generation) -> Given:
    noise = torch.Generator().manual_seed(7)
    prompts = [
        torch.randint(generation.vocabulary, (length,), generator=noise).tolist()
        for length in LENGTHS
    ]
    shape = (len(LENGTHS), STEPS)
    return Given(prompts, torch.randint(generation.vocabulary, shape, generator=noise))


def padded(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    width = max(map(len, prompts))
    rows = [[0] * (width - len(prompt)) + prompt for prompt in prompts]
    return torch.tensor(rows), torch.tensor([len(prompt) for prompt in prompts])


def forced_logits(model: MetaLlama, asked: Given) -> Tensor:
    """Logits of all rows and steps, [rows, steps + 1, vocabulary]; NaN where a row has ended."""
    logits = model.prefill(*padded(asked.prompts))
    rows = list(range(len(asked.prompts)))
    found = torch.full((len(rows), STEPS + 1, logits.shape[-1]), torch.nan)
    found[:, 0] = logits.float()
    for step in range(STEPS):
        if step in KEPT:
            model.keep(torch.tensor(KEPT[step]))
            rows = [rows[index] for index in KEPT[step]]
        found[rows, step + 1] = model.step(asked.forced[rows, step]).float()
    return found


def greedy(model: MetaLlama, prompts: list[list[int]]) -> list[list[int]]:
    tokens = [model.prefill(*padded(prompts)).argmax(dim=-1)]
    while len(tokens) < GREEDY:
        tokens.append(model.step(tokens[-1]).argmax(dim=-1))
    return torch.stack(tokens, dim=1).tolist()


def find(folder: Path, generation: Generation) -> MetaCheckpoint:
    return find_checkpoint(folder, rope_factor=generation.rope_factor)


def load(
    folder: Path, generation: Generation, rank: int = 0, dtype: torch.dtype = torch.float32
) -> MetaLlama:
    checkpoint = find(folder, generation)
    model = load_shard(checkpoint, read_shard(checkpoint, rank), CPU, dtype)
    model.allocate(len(LENGTHS), max(LENGTHS) + GREEDY)
    return model


def run_all(folders: dict[str, Path], output: Path) -> None:
    """On every rank: the generations' logits and tokens, written by the first."""
    ranks = start_ranks(use_gpus=False)
    start_model_parallel(ranks)
    found: dict[str, dict[str, Any]] = {}
    for name, folder in folders.items():
        generation, asked = NAMES[name], given(NAMES[name])
        model = load(folder, generation, ranks.index)
        found[name] = {"logits": forced_logits(model, asked)}
        if (ranks.count, name) in LONG_RUNS:
            found[name]["tokens"] = greedy(model, asked.prompts)
            rounded = load(folder, generation, ranks.index, torch.bfloat16)
            found[name]["bf16"] = forced_logits(rounded, asked)
    # Bit by bit the same everywhere, so that each rank may choose tokens by itself.
    every = ranks.of_all({name: one["logits"].nan_to_num() for name, one in found.items()})
    assert all(torch.equal(every[0][name], one[name]) for one in every for name in found)
    check_layers_take_no_memory()
    if ranks.is_first:
        torch.save(found, output)
    end_ranks()


def check_layers_take_no_memory() -> None:
    side = 8192  # 256 MB in fp32
    weight = torch.zeros(1).expand(side, side)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    split_by_rows(weight)
    split_by_columns(weight)
    risen = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert risen < 32 * 1024, f"{risen} KiB"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What each degree found for all generations."""
    found = {}
    for degree in (1, 2, 4, 8):
        folder = tmp_path_factory.mktemp(f"degree{degree}")
        names = {
            name: make_checkpoint(folder / name, NAMES[name], degree)
            for one, name in RUNS
            if one == degree
        }

        def recipe(names: dict[str, Path] = names, output: Path = folder / "found.pt") -> None:
            run_all(names, output)

        for ended in run_ranks(recipe, [], degree, folder):
            assert ended.status == 0, ended.err
            assert not ended.out  # of fairscale, which likes to say what it does
        found[degree] = torch.load(folder / "found.pt")
    return found


@pytest.fixture(scope="module")
def expected() -> dict[str, Any]:
    """The same by transformers, row by row; bf16 too."""
    found = {}
    for name, generation in NAMES.items():
        asked, model = given(generation), hf_model(generation)
        ids, lengths = padded(asked.prompts)
        tokens = model.generate(
            ids,
            attention_mask=torch.arange(ids.shape[1]) >= ids.shape[1] - lengths[:, None],
            max_new_tokens=GREEDY,
            min_new_tokens=GREEDY,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )[:, ids.shape[1] :].tolist()
        logits = hf_logits(model, asked)
        rounded = hf_logits(model.to(torch.bfloat16), asked)
        found[name] = {"logits": logits, "tokens": tokens, "bf16": rounded}
    return found


def hf_logits(model: Any, asked: Given) -> Tensor:
    rows = []
    for prompt, forced in zip(asked.prompts, asked.forced.tolist(), strict=True):
        logits = model(input_ids=torch.tensor([prompt + forced])).logits[0]
        rows.append(logits[len(prompt) - 1 :].float())
    return torch.stack(rows)


@pytest.mark.parametrize(("degree", "name"), RUNS)
def test_logits(
    degree: int, name: str, runs: dict[int, dict[str, Any]], expected: dict[str, Any]
) -> None:
    found, right = runs[degree][name]["logits"], expected[name]["logits"]
    ran = ~found.isnan().any(dim=-1)
    assert ran.sum(dim=1).tolist() == RAN
    # The largest difference that was seen is 7e-6 of the spread; a wrong turn is far more.
    assert (found - right)[ran].abs().max() < 5e-5 * right.std()


@pytest.mark.parametrize(("degree", "name"), LONG_RUNS)
def test_greedy_tokens(
    degree: int, name: str, runs: dict[int, dict[str, Any]], expected: dict[str, Any]
) -> None:
    assert runs[degree][name]["tokens"] == expected[name]["tokens"]


@pytest.mark.parametrize(("degree", "name"), LONG_RUNS)
def test_bf16_is_as_close_to_fp32_as_transformers(
    degree: int, name: str, runs: dict[int, dict[str, Any]], expected: dict[str, Any]
) -> None:
    found, theirs = runs[degree][name]["bf16"], expected[name]["bf16"]
    ran, exact = ~found.isnan().any(dim=-1), expected[name]["logits"]
    ours_off, theirs_off = ((one - exact)[ran].square().mean().sqrt() for one in (found, theirs))
    assert ours_off < 1.2 * theirs_off


@pytest.fixture
def alone() -> Iterator[None]:
    """A model-parallel group of this process."""
    start_model_parallel(Ranks())
    yield
    end_ranks()


def test_a_process_may_start_again(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        start_model_parallel(Ranks())
        start_model_parallel(Ranks())
        assert split_by_rows(torch.ones(3, 4))(torch.ones(2, 4)).tolist() == [[4.0] * 3] * 2
        end_ranks()
    assert not capfd.readouterr().out


@pytest.mark.parametrize("head_size", [64, 128])
@pytest.mark.parametrize("factor", [None, 8.0, 32.0])
def test_frequencies(head_size: int, factor: float | None) -> None:
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope: dict[str, Any] = {"rope_theta": 500000.0, "rope_type": "llama3", "factor": factor}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192}
    if factor is None:
        rope = {"rope_theta": 500000.0, "rope_type": "default"}
    config = LlamaConfig(
        hidden_size=4 * head_size,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters=rope,
    )
    found = frequencies(head_size, 500000.0, factor)
    if factor is None:
        right = 500000.0 ** (-torch.arange(0, head_size, 2).double() / head_size)
    else:
        right, _ = ROPE_INIT_FUNCTIONS["llama3"](config, device="cpu")
        assert len((found / frequencies(head_size, 500000.0, None)).unique()) > 3
    assert torch.allclose(found, right.float(), rtol=1e-6, atol=0)


def test_cache_is_not_overrun(tmp_path: Path, alone: None) -> None:
    model = load(make_checkpoint(tmp_path, LLAMA_3), LLAMA_3)
    ids, lengths = torch.ones(2, 6, dtype=torch.int64), torch.tensor([6, 6])
    model.allocate(1, 7)
    with pytest.raises(ValueError, match="2 rows of 6 tokens do not fit into 1 rows of 7"):
        model.prefill(ids, lengths)
    model.allocate(2, 7)
    model.prefill(ids, lengths)
    model.step(ids[:, 0])
    with pytest.raises(ValueError, match="no room beyond 7 tokens"):
        model.step(ids[:, 0])


def test_a_batch_leaves_nothing_to_the_next(tmp_path: Path, alone: None) -> None:
    model = load(make_checkpoint(tmp_path, LLAMA_3), LLAMA_3)
    asked = given(LLAMA_3)
    right = forced_logits(model, asked)
    with torch.inference_mode():
        for layer in model.layers:
            layer.attention.keys.fill_(torch.inf)
            layer.attention.values.fill_(torch.nan)
    assert torch.equal(forced_logits(model, asked).nan_to_num(), right.nan_to_num())


def test_only_its_own_shard_is_read(tmp_path: Path, alone: None) -> None:
    folder = make_checkpoint(tmp_path / "it's; ü", LLAMA_3_2, degree=2)
    checkpoint = find(folder, LLAMA_3_2)
    checkpoint.shards[0].unlink()
    checkpoint.shards[1].chmod(0o400)
    model = load_shard(checkpoint, read_shard(checkpoint, 1), CPU, torch.float32)
    right = shard(LLAMA_3_2, weights(LLAMA_3_2), 1, 2)
    found = model.state_dict()
    del right["rope.freqs"]
    assert found.keys() == right.keys()
    for name, tensor in right.items():
        assert torch.equal(found[name], tensor), name
    assert all(str(checkpoint.shards[1]) == mapped_file(tensor) for tensor in found.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_conversion(dtype: torch.dtype, tmp_path: Path, alone: None) -> None:
    model = load(make_checkpoint(tmp_path, LLAMA_3_2), LLAMA_3_2, 0, dtype)
    assert (model.dtype, model.device) == (dtype, CPU)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights(LLAMA_3_2)[name].to(dtype)), name
    # Tied weights stay one.
    assert model.output.weight.data_ptr() == model.tok_embeddings.weight.data_ptr()


def test_memory_of_conversion_is_one_tensor(tmp_path: Path) -> None:
    count, size = 4 << 20, 16 << 20
    stored = tensors_in(tmp_path / "weights", torch.ones(3 * count), count)
    files = MappedFiles()
    for tensor in stored:
        found = files.load(tensor, CPU, torch.bfloat16)
        assert found.sum() == count and mapped_file(found) is None
        assert resident(tmp_path / "weights") < size / 8


def test_weights_that_fit_stay_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    (tensor,) = tensors_in(path, torch.arange(1000.0), 1000)
    path.chmod(0o400)
    found = MappedFiles().load(tensor, CPU, torch.float32)
    assert mapped_file(found) == str(path)
    found += 1  # a private page: the file stays as it is
    assert torch.equal(torch.from_file(str(path), size=1000), found - 1)


def test_tensors_at_odd_places(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"odd" + torch.arange(12.0).numpy().tobytes())
    tensor = StoredTensor((3, 4), torch.float32, (Extent(path, 3, 12),))
    found = MappedFiles().load(tensor, CPU, torch.float32)
    assert torch.equal(found, torch.arange(12.0).view(3, 4))
    assert found.data_ptr() % 4 == 0


def test_file_that_shrank_or_went(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    (tensor,) = tensors_in(path, torch.ones(1000), 1000)
    for content, what in ((bytes(3999), "cut off"), (b"", "cut off"), (None, "cannot read")):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(LLMError, match=what):
            MappedFiles().load(tensor, CPU, torch.float32)


def tensors_in(path: Path, values: Tensor, count: int) -> list[StoredTensor]:
    """A file of these numbers as tensors of `count` each."""
    path.write_bytes(values.numpy().tobytes())
    size = values.dtype.itemsize
    return [
        StoredTensor((count,), values.dtype, (Extent(path, start * size, count),))
        for start in range(0, len(values), count)
    ]


def mapped_file(tensor: Tensor) -> str | None:
    """The file whose mapping holds a tensor's memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, _, _, _, *name = line.split(maxsplit=5)
        start, end = (int(number, 16) for number in span.split("-"))
        if start <= tensor.data_ptr() < end and name and name[0].startswith("/"):
            return name[0]
    return None


def resident(path: Path) -> int:
    """Bytes of a mapped file that this process has in memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split()[0]:
            ours = line.endswith(str(path))
        elif ours and line.startswith("Rss:"):
            found += int(line.split()[1]) * 1024
    return found
