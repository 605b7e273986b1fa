"""recipes/inference/reshard.py against checkpoints made without our code, and against transformers.

Each generation to each degree and back, bit for bit, with the files beside the weights.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import RECIPES, recipe_environment
from meta_checkpoints import (
    GENERATIONS,
    LLAMA_1,
    LLAMA_2,
    LLAMA_3,
    LLAMA_3_1,
    LLAMA_3_2,
    Generation,
    Weights,
    hf_model,
    hf_weights,
    make_checkpoint,
    shard,
    weights,
)
from paused import go_on, paused, wait_for_pause
from safetensors.torch import load_file, save_file

from llm_recipes.errors import LLMError
from llm_recipes.meta.reshard_write import check_safetensors, write_shards
from llm_recipes.meta.reshard_write import check_shards as written_shards
from llm_recipes.meta.resharding import BLOCKS_BYTES, prepare
from llm_recipes.safetensors_writer import write_safetensors
from llm_recipes.stored_weights import OpenFiles

SCRIPT = RECIPES / "inference" / "reshard.py"
DEGREES = (1, 2, 4, 8)
Reshard = Callable[..., None]
every_generation = pytest.mark.parametrize("generation", GENERATIONS, ids=lambda g: g.name)


@pytest.fixture(scope="module")
def reshard() -> Reshard:
    """The recipe's function."""
    spec = importlib.util.spec_from_file_location("reshard_recipe", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.reshard


@pytest.fixture(scope="module")
def metas(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Generation, int], Path]:
    """A checkpoint in Meta's format of a generation and degree; nobody may change it."""
    folder = tmp_path_factory.mktemp("metas")

    def find(generation: Generation, degree: int) -> Path:
        path = folder / f"{generation.name}; it's ü" / str(degree)
        return path if path.exists() else make_checkpoint(path, generation, degree)

    return find


@pytest.fixture(scope="module")
def hfs(
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[Generation], Path]:
    """A Hugging Face folder of a generation, made of two shards; nobody may change it."""
    folder = tmp_path_factory.mktemp("hfs")

    def find(generation: Generation) -> Path:
        path = folder / generation.name
        if not path.exists():
            reshard(metas(generation, 2), path, "hf", **facts(generation))
        return path

    return find


def facts(generation: Generation) -> dict[str, Any]:
    """What params.json lacks, with a Hugging Face folder as the goal."""
    return {"rope_factor": generation.rope_factor, "context_length": generation.context}


def start(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env=recipe_environment(), **options
    )


def faults(error: BaseException) -> str:
    found = error.exceptions if isinstance(error, ExceptionGroup) else [error]
    return "\n".join(faults(e) if isinstance(e, ExceptionGroup) else str(e) for e in found)


def loaded(folder: Path) -> Weights:
    return {n: t for f in sorted(folder.glob("*.safetensors")) for n, t in load_file(f).items()}


def is_equal(one: Weights, other: Weights) -> bool:
    same_types = {n: t.dtype for n, t in one.items()} == {n: t.dtype for n, t in other.items()}
    return same_types and all(torch.equal(one[name], other[name]) for name in one)


def check_shards(folder: Path, generation: Generation, degree: int) -> None:
    """All shards are those that the other code makes of the same weights."""
    assert len(list(folder.glob("*.pth"))) == degree
    for rank in range(degree):
        found = torch.load(folder / f"consolidated.{rank:02d}.pth", weights_only=True)
        wanted = shard(generation, weights(generation), rank, degree)
        del wanted["rope.freqs"]
        assert is_equal(found, wanted), rank
        head, embeddings = found["output.weight"], found["tok_embeddings.weight"]
        assert (head.data_ptr() == embeddings.data_ptr()) == generation.tied


def without_record(folder: Path) -> dict[str, bytes]:
    """Files by their path in the folder."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != "run.json"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


@every_generation
@pytest.mark.parametrize("degree", DEGREES)
def test_to_hugging_face(
    generation: Generation,
    degree: int,
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
) -> None:
    output = tmp_path / "new" / "it's; ü"
    reshard(metas(generation, degree), output, "hf", **facts(generation))
    wanted = hf_weights(generation, weights(generation))
    if generation.tied:
        del wanted["lm_head.weight"]
    assert is_equal(loaded(output), wanted)
    config = json.loads((output / "config.json").read_text())
    assert config["torch_dtype"] == "float32" and config["tie_word_embeddings"] == generation.tied
    assert config["max_position_embeddings"] == generation.context
    record = json.loads((output / "run.json").read_text())
    assert (record["recipe"], record["status"]) == ("inference/reshard", "complete")
    assert record["model"]["from_shards"] == degree and record["model"]["to"] == "hf"


@every_generation
def test_transformers_loads_it_and_computes_the_same(
    generation: Generation, hfs: Callable[[Generation], Path]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = hfs(generation)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values())
    ids = torch.tensor([[1, 5, 300, 17, 42, 9, 500, 77]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, hf_model(generation)(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.bos_token_id == model.config.bos_token_id
    assert tokenizer.eos_token_id == model.generation_config.eos_token_id
    assert tokenizer.decode(tokenizer.encode("It works"), skip_special_tokens=True) == "It works"
    assert tokenizer.chat_template is None


@every_generation
@pytest.mark.parametrize("degree", DEGREES)
def test_to_meta_and_back(
    generation: Generation,
    degree: int,
    reshard: Reshard,
    hfs: Callable[[Generation], Path],
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
) -> None:
    meta, again = tmp_path / "meta", tmp_path / "again"
    reshard(hfs(generation), meta, "meta", degree)
    check_shards(meta, generation, degree)
    for name in ("params.json", "tokenizer.model"):
        assert (meta / name).read_bytes() == (metas(generation, 2) / name).read_bytes()
    reshard(meta, again, "hf")  # neither the rope factor nor the context is asked for
    assert without_record(again) == without_record(hfs(generation))


@every_generation
@pytest.mark.parametrize("degree, other", [p for p in product(DEGREES, DEGREES) if p[0] != p[1]])
def test_to_other_shards(
    generation: Generation,
    degree: int,
    other: int,
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
) -> None:
    source = metas(generation, degree)
    reshard(source, tmp_path / "out", "meta", other, rope_factor=generation.rope_factor)
    check_shards(tmp_path / "out", generation, other)
    for name in ("params.json", "tokenizer.model"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_the_same_shards_are_the_same_bytes(
    reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    reshard(metas(LLAMA_2, 8), tmp_path / "4", "meta", 4)
    reshard(tmp_path / "4", tmp_path / "2", "meta", 2)
    reshard(tmp_path / "2", tmp_path / "again", "meta", 4)
    assert without_record(tmp_path / "again") == without_record(tmp_path / "4")


DEFAULTS: dict[str, Any] = {"to": "meta", "model_parallel": None, "dtype": "keep", "chat": False}
DEFAULTS |= {"embeddings": "auto", "shard_size": "5GB"}
DEFAULTS |= dict.fromkeys(("tokenizer", "rope_factor", "context_length"))


def test_what_is_written_is_looked_at_again(
    metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    model = metas(LLAMA_2, 2)
    conversion = prepare({**DEFAULTS, "model": model, "model_parallel": 4})
    assert conversion.shards is not None
    write_shards(tmp_path, conversion.shards, None)
    sizes = (conversion.source.params, conversion.split)
    written_shards(tmp_path, conversion.shards, *sizes)
    one, other = tmp_path / "consolidated.01.pth", tmp_path / "consolidated.02.pth"
    contents = one.read_bytes(), other.read_bytes()
    other.write_bytes(contents[0])
    one.write_bytes(contents[1])
    with pytest.raises(LLMError, match="does not hold what was written") as error:
        written_shards(tmp_path, conversion.shards, *sizes)
    kinds = ("tok_embeddings", "wq", "wk", "wv", "wo", "w1", "w2", "w3")
    assert "norm" not in str(error.value)
    assert all(kind in str(error.value) for kind in kinds), error.value
    shutil.copy(model / "consolidated.01.pth", tmp_path)
    with pytest.raises(LLMError, match="does not hold what was written") as error:
        written_shards(tmp_path, conversion.shards, *sizes)
    assert "consolidated.01.pth" in str(error.value) and "tok_embeddings" in str(error.value)
    conversion = prepare({**DEFAULTS, "model": model, "to": "hf", "context_length": 5})
    write_safetensors(tmp_path, conversion.tensors, torch.bfloat16, 10**9)
    check_safetensors(tmp_path, conversion.hf_files, torch.bfloat16)
    with pytest.raises(LLMError, match="does not hold what was written"):
        check_safetensors(tmp_path, conversion.hf_files, None)
    wrong = load_file(tmp_path / "model.safetensors")
    q = "model.layers.1.self_attn.q_proj.weight"
    wrong[q] = weights(LLAMA_2)["layers.1.attention.wq.weight"].bfloat16()  # in pairs
    wrong["model.norm.weight"][63] += 1
    save_file(wrong, tmp_path / "model.safetensors")
    with pytest.raises(LLMError, match="does not hold what was written") as error:
        check_safetensors(tmp_path, conversion.hf_files, torch.bfloat16)
    assert error.value.why == f"{q}, model.norm.weight"


@pytest.mark.parametrize("to", ["hf", "meta"])
def test_a_model_that_changes_while_it_is_read(
    to: str,
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = shutil.copytree(metas(LLAMA_2, 2), tmp_path / "a")
    part, plain = source / "consolidated.01.pth", OpenFiles.__exit__

    def download_again(files: OpenFiles, *error: object) -> None:
        plain(files, *error)
        if list(tmp_path.glob(".out.partial-*/*")):
            shutil.copy(part, tmp_path / "a" / "new")
            (tmp_path / "a" / "new").rename(part)

    monkeypatch.setattr(OpenFiles, "__exit__", download_again)
    options = {"context_length": 5} if to == "hf" else {"model_parallel": 4}
    with pytest.raises(LLMError, match="has changed while it was read") as error:
        reshard(source, tmp_path / "out", to, **options)
    assert error.value.why == str(part)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("to", ["hf", "meta"])
def test_a_model_that_is_cut_off_while_it_is_read(
    to: str,
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread that reads ends, and those that convert and write with it."""
    source = shutil.copytree(metas(LLAMA_2, 2), tmp_path / "a")
    plain = OpenFiles._read

    def written() -> list[Path]:
        return [
            p for n in ("c*.pth", "*.safetensors") for p in tmp_path.glob(f".out.partial-*/{n}")
        ]

    def cut_off(files: OpenFiles, path: Path, offset: int, length: int) -> bytearray:
        if any(file.stat().st_size > 50_000 for file in written()):
            cut(source / "consolidated.01.pth")
        return plain(files, path, offset, length)

    monkeypatch.setattr(OpenFiles, "_read", cut_off)
    threads = threading.active_count()
    options = {"context_length": 5} if to == "hf" else {"model_parallel": 4}
    with pytest.raises(LLMError, match=r"consolidated\.01\.pth is cut off"):
        reshard(source, tmp_path / "out", to, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert threading.active_count() <= threads


def test_the_model_is_not_replaced(
    reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    source = tmp_path / "a" / "b"
    reshard(metas(LLAMA_2, 2), source, "meta", 4)
    before = without_record(tmp_path)
    (tmp_path / "linked").mkdir()
    for path in source.iterdir():
        (tmp_path / "linked" / path.name).symlink_to(path)
    (tmp_path / "link").symlink_to(source)
    for model in (source, tmp_path / "link", tmp_path / "linked"):
        for output in (source, source.parent):
            with pytest.raises(LLMError, match="holds the model that is to be read"):
                reshard(model, output, "meta", 8, overwrite=True)
    shutil.rmtree(tmp_path / "linked")
    (tmp_path / "link").unlink()
    assert without_record(tmp_path) == before


def test_every_byte_is_read_once(
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[int] = []
    plain = OpenFiles._read

    def counted(files: OpenFiles, path: Path, offset: int, length: int) -> bytearray:
        read.append(length)
        return plain(files, path, offset, length)

    monkeypatch.setattr(OpenFiles, "_read", counted)
    conversion = prepare({**DEFAULTS, "model": metas(LLAMA_2, 2), "model_parallel": 8})
    read.clear()  # norms, a few KB of each tensor, and what tells that it is not tied
    assert conversion.shards is not None
    write_shards(tmp_path, conversion.shards, None)
    assert (
        sum(read) == conversion.bytes_read == 4 * sum(map(torch.numel, weights(LLAMA_2).values()))
    )


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_types(
    name: str, reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[name]
    wanted = {n: t.to(dtype) for n, t in hf_weights(LLAMA_2, weights(LLAMA_2)).items()}
    reshard(metas(LLAMA_2, 2), tmp_path / "hf", "hf", dtype=name, context_length=4096)
    assert is_equal(loaded(tmp_path / "hf"), wanted)
    stated = json.loads((tmp_path / "hf" / "config.json").read_text())["torch_dtype"]
    assert stated == str(dtype).removeprefix("torch.")
    reshard(metas(LLAMA_2, 2), tmp_path / "meta", "meta", 4, dtype=name)
    found = torch.load(tmp_path / "meta" / "consolidated.03.pth", mmap=True)
    part = shard(LLAMA_2, weights(LLAMA_2), 3, 4)
    del part["rope.freqs"]
    assert is_equal(found, {n: t.to(dtype) for n, t in part.items()})
    reshard(tmp_path / "hf", tmp_path / "kept", "meta", 1)  # each as it is: what hf has now
    kept = torch.load(tmp_path / "kept" / "consolidated.00.pth", mmap=True)
    assert {t.dtype for t in kept.values()} == {dtype}
    if name == "bf16":
        reshard(tmp_path / "kept", tmp_path / "wide", "hf", dtype="fp32")
        config = json.loads((tmp_path / "wide" / "config.json").read_text())
        assert config["torch_dtype"] == "float32"
        assert is_equal(loaded(tmp_path / "wide"), {n: t.float() for n, t in wanted.items()})


def test_numbers_that_fp16_has_not_and_nan(
    reshard: Reshard, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_checkpoint(tmp_path / "a", LLAMA_3, 2)
    tensors = torch.load(folder / "consolidated.01.pth")
    tensors["layers.1.feed_forward.w2.weight"][3, 4] = 1e6
    torch.save(tensors, folder / "consolidated.01.pth")
    with pytest.raises(LLMError, match="do not fit into fp16"):
        reshard(folder, tmp_path / "out", "meta", 1, dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    tensors["layers.1.feed_forward.w2.weight"][3, 4] = float("nan")
    torch.save(tensors, folder / "consolidated.01.pth")
    reshard(folder, tmp_path / "out", "meta", 4)
    assert "1 tensors hold NaN or infinity (layers.1.feed" in capsys.readouterr().err


def test_files_of_a_size_with_an_index(
    reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    output = tmp_path / "out"
    reshard(metas(LLAMA_1, 4), output, "hf", shard_size="100KB", context_length=2048)
    index = json.loads((output / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(output.glob("*.safetensors"))) > 5
    assert is_equal(loaded(output), hf_weights(LLAMA_1, weights(LLAMA_1)))
    _, info = AutoModelForCausalLM.from_pretrained(output, output_loading_info=True)
    assert not any(info.values())
    reshard(output, tmp_path / "meta", "meta", 2)
    check_shards(tmp_path / "meta", LLAMA_1, 2)


def test_a_folder_of_transformers_own(
    reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    """config.json of version 5, weights as pickles with an index, buffers of old versions."""
    folder = tmp_path / "hf"
    hf_model(LLAMA_3_1).save_pretrained(folder)
    (folder / "model.safetensors").unlink()
    wanted = hf_weights(LLAMA_3_1, weights(LLAMA_3_1))
    names = sorted(wanted)
    places = ("model.layers.0.self_attn.", "model.")
    extra = {f"{place}rotary_emb.inv_freq": torch.ones(4) for place in places}
    index: dict[str, str] = {}
    for number, part in enumerate((names[:9], names[9:])):
        file = f"pytorch_model-{number}.bin"
        torch.save({n: wanted[n].clone() for n in part} | extra, folder / file)
        index |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": index}))
    tokenizer = (metas(LLAMA_3_1, 1) / "tokenizer.model").read_bytes()
    (folder / "tokenizer.model").write_bytes(tokenizer)
    reshard(folder, tmp_path / "meta", "meta", 4)
    check_shards(tmp_path / "meta", LLAMA_3_1, 4)
    raw = json.loads((tmp_path / "meta" / "params.json").read_text())
    assert raw["use_scaled_rope"] is True and raw["n_kv_heads"] == 4
    assert (tmp_path / "meta" / "tokenizer.model").read_bytes() == tokenizer
    config = (tmp_path / "meta" / "huggingface" / "config.json").read_bytes()
    assert config == (folder / "config.json").read_bytes()


def test_embeddings_the_other_way(
    reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    whole = weights(LLAMA_3_2)["tok_embeddings.weight"]
    options = {"embeddings": "columns", "rope_factor": 32.0}
    reshard(metas(LLAMA_3_2, 2), tmp_path / "columns", "meta", 4, **options)
    found = torch.load(tmp_path / "columns" / "consolidated.01.pth")
    assert torch.equal(found["tok_embeddings.weight"], whole[:, 16:32])
    assert torch.equal(found["output.weight"], whole[192:384])  # tied, and cut otherwise
    reshard(tmp_path / "columns", tmp_path / "kept", "meta", 2)
    assert torch.load(tmp_path / "kept" / "consolidated.00.pth")["tok_embeddings.weight"].shape == (
        768,
        32,
    )
    reshard(tmp_path / "columns", tmp_path / "rows", "meta", 4, embeddings="rows")
    check_shards(tmp_path / "rows", LLAMA_3_2, 4)


@pytest.mark.parametrize("kind", ["absent", "equal", "shared"])
def test_every_way_to_be_tied(kind: str, reshard: Reshard, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", LLAMA_3_2, 2)
    for path in folder.glob("*.pth"):
        tensors = torch.load(path)
        if kind == "absent":
            del tensors["output.weight"]
        elif kind == "equal":
            tensors["output.weight"] = tensors["tok_embeddings.weight"].clone()
        torch.save(tensors, path)
    reshard(folder, tmp_path / "hf", "hf", **facts(LLAMA_3_2))
    assert "lm_head.weight" not in loaded(tmp_path / "hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["tie_word_embeddings"]
    reshard(folder, tmp_path / "meta", "meta", 4, rope_factor=32.0)
    check_shards(tmp_path / "meta", LLAMA_3_2, 4)


def test_one_matrix_twice_that_is_not_tied(
    reshard: Reshard, hfs: Callable[[Generation], Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(hfs(LLAMA_3_2), tmp_path / "hf")
    tensors = loaded(folder)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    reshard(folder, tmp_path / "meta", "meta", 2)
    reshard(tmp_path / "meta", tmp_path / "again", "hf")
    assert is_equal(loaded(tmp_path / "again"), tensors)
    assert (tmp_path / "again" / "config.json").read_bytes() == (
        folder / "config.json"
    ).read_bytes()
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors["lm_head.weight"][5, 5] += 1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(LLMError, match="differ, and the configuration says"):
        reshard(folder, tmp_path / "out", "meta", 2)


def test_copies_of_heads_that_differ(reshard: Reshard, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "a", LLAMA_3_2, 8)
    tensors = torch.load(folder / "consolidated.05.pth")
    tensors["layers.1.attention.wk.weight"][2, 2] += 1
    torch.save(tensors, folder / "consolidated.05.pth")
    with pytest.raises(LLMError, match="no shard of the same model") as error:
        reshard(folder, tmp_path / "out", "hf", **facts(LLAMA_3_2))
    assert "consolidated.05.pth" in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_chat_models_and_what_the_sidecar_keeps(
    reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    source = shutil.copytree(metas(LLAMA_3_1, 2), tmp_path / "source")
    (source / "LICENSE").write_text("terms")
    reshard(source, tmp_path / "chat", "hf", chat=True, **facts(LLAMA_3_1))
    config = json.loads((tmp_path / "chat" / "config.json").read_text())
    assert config["eos_token_id"] == [513, 520, 521]
    template = AutoTokenizer.from_pretrained(tmp_path / "chat").chat_template
    assert "start_header_id" in template
    reshard(tmp_path / "chat", tmp_path / "meta", "meta", 4)
    kept = {path.name for path in (tmp_path / "meta" / "huggingface").iterdir()}
    assert {"config.json", "generation_config.json", "tokenizer.json"} <= kept
    assert "chat_template.jinja" in kept
    reshard(tmp_path / "meta", tmp_path / "meta2", "meta", 2)
    reshard(tmp_path / "meta2", tmp_path / "again", "hf")
    assert without_record(tmp_path / "again") == without_record(tmp_path / "chat")
    assert (tmp_path / "again" / "LICENSE").read_text() == "terms"
    # A sidecar without a template gets one when it is asked for.
    (tmp_path / "meta" / "huggingface" / "chat_template.jinja").unlink()
    reshard(tmp_path / "meta", tmp_path / "asked", "hf", chat=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "asked").chat_template == template


def test_the_rope_factor_is_asked_for_once(
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    hfs: Callable[[Generation], Path],
    tmp_path: Path,
) -> None:
    with pytest.raises(LLMError, match="does not say by how much") as error:
        reshard(metas(LLAMA_3_1, 1), tmp_path / "out", "meta", 2)
    assert "--rope-factor" in str(error.value)
    reshard(metas(LLAMA_3_1, 1), tmp_path / "2", "meta", 2, rope_factor=8.0)
    reshard(tmp_path / "2", tmp_path / "4", "meta", 4)
    check_shards(tmp_path / "4", LLAMA_3_1, 4)
    with pytest.raises(LLMError, match="nothing says for how many tokens"):
        reshard(tmp_path / "4", tmp_path / "hf", "hf")
    reshard(tmp_path / "4", tmp_path / "hf", "hf", context_length=131072)
    assert without_record(tmp_path / "hf") == without_record(hfs(LLAMA_3_1))
    with pytest.raises(LLMError, match="differ") as error:
        reshard(tmp_path / "4", tmp_path / "other", "meta", 8, rope_factor=32.0)
    assert "rope_factor: 32.0 and 8.0" in str(error.value)


def test_the_same_command_again(
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source, output = shutil.copytree(metas(LLAMA_1, 2), tmp_path / "a"), tmp_path / "out"
    reshard(source, output, "meta", 4)
    before = {path: path.stat().st_mtime_ns for path in output.iterdir()}
    reshard(source, output, "meta", 4)
    assert "nothing to do" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(LLMError, match="exists"):
        reshard(source, output, "meta", 8)
    shutil.copy(metas(LLAMA_1, 4) / "consolidated.03.pth", output / "notes.txt")
    with pytest.raises(LLMError, match="has not made"):
        reshard(source, output, "meta", 8, overwrite=True)
    (output / "notes.txt").unlink()
    reshard(source, output, "meta", 8, overwrite=True)
    check_shards(output, LLAMA_1, 8)
    for path in source.glob("*.pth"):  # other weights of the same sizes are another model
        tensors = torch.load(path)
        tensors["layers.1.attention.wo.weight"] += 1
        torch.save(tensors, path)
    with pytest.raises(LLMError, match="exists"):
        reshard(source, output, "meta", 8)
    with pytest.raises(LLMError, match="something else made it"):
        reshard(output, source, "meta", 1, overwrite=True)


OPTIONS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "no degree": ({"to": "meta"}, ("needs the number of shards",)),
    "of the other format": (
        {"to": "hf", "model_parallel": 2, "embeddings": "rows"},
        ("--model-parallel is for --to meta", "--embeddings is for --to meta"),
    ),
    "of Hugging Face's": (
        {"to": "meta", "model_parallel": 0, "chat": True, "context_length": 5}
        | {"shard_size": "big"},
        (
            "--chat is for",
            "--context-length is for",
            "--model-parallel 0 is below 1",
            "'big' is no size",
        ),
    ),
    "nothing to change": (
        {"to": "meta", "model_parallel": 2, "dtype": "fp32"},
        ("has this number of shards already: 2", "nothing would change"),
    ),
    "no divisor": (
        {"to": "meta", "model_parallel": 3},
        (
            "8 attention heads",
            "4 K/V heads",
            "224 numbers",
            "512 tokens",
            "64 columns",
            "1, 2, 4, 8",
        ),
    ),
    "context": ({"to": "hf"}, ("nothing says for how many tokens", "--context-length")),
    "not scaled": (
        {"to": "hf", "rope_factor": 8.0, "chat": True},
        ("--rope-factor 8 does not fit",),
    ),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_that_do_not_fit(
    name: str, reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    options, said = OPTIONS[name]
    with pytest.raises((LLMError, ExceptionGroup)) as error:
        reshard(metas(LLAMA_2, 2), tmp_path / "out", **options)
    assert all(words in faults(error.value) for words in said), faults(error.value)
    assert not list(tmp_path.iterdir())


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


class Attack:
    """Unpickled, it would make a file."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.proof}'",)


META_DAMAGE: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "shard missing": (lambda f: (f / "consolidated.01.pth").unlink(), ("has 3 of 4 shards",)),
    "first and last cut": (
        lambda f: [cut(f / f"consolidated.0{n}.pth") for n in (1, 3)],
        ("consolidated.01.pth is cut off", "consolidated.03.pth is cut off"),
    ),
    "of another model": (
        lambda f: shutil.copy(
            make_checkpoint(f.parent / "other", LLAMA_2, 4, seed=1) / "consolidated.02.pth", f
        ),
        ("mixes shards of different models", "consolidated.02.pth"),
    ),
    "code": (
        lambda f: torch.save({"a": Attack(f.parent / "proof")}, f / "consolidated.03.pth"),
        ("wants to run code",),
    ),
    "other sizes": (lambda f: change(f / "params.json", n_layers=3, dim=128), ("contradict",)),
    "no JSON": (lambda f: (f / "params.json").write_text("{"), ("is not JSON",)),
    "no tokenizer": (lambda f: (f / "tokenizer.model").unlink(), ("has no tokenizer",)),
}
HF_DAMAGE: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "cut": (lambda f: cut(f / "model.safetensors"), ("is cut off",)),
    "missing": (lambda f: (f / "model.safetensors").unlink(), ("lacks 1 file",)),
    "other sizes": (
        lambda f: change(f / "config.json", num_hidden_layers=3, intermediate_size=256),
        ("missing: model.layers.2.self_attn.q_proj", "up_proj.weight is [224, 64], not [256, 64]"),
    ),
    "no plain Llama": (
        lambda f: change(f / "config.json", model_type="mistral", attention_bias=True),
        ("describes no plain Llama", "mistral", "attention_bias"),
    ),
    "code": (
        lambda f: [
            torch.save({"lm_head.weight": Attack(f.parent / "proof")}, f / "pytorch_model.bin"),
            (f / "model.safetensors").unlink(),
        ],
        ("wants to run code",),
    ),
    "no model": (lambda f: shutil.rmtree(f), ("does not exist",)),
}


@pytest.mark.parametrize("name", META_DAMAGE)
def test_damage_of_a_checkpoint_in_metas_format(
    name: str, reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    do, said = META_DAMAGE[name]
    folder = shutil.copytree(metas(LLAMA_2, 4), tmp_path / "inner" / "a")
    do(folder)
    with pytest.raises((LLMError, ExceptionGroup)) as error:
        reshard(folder, tmp_path / "out", "hf", context_length=4096)
    assert all(words in faults(error.value) for words in said), faults(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert not (tmp_path / "inner" / "proof").exists()


@pytest.mark.parametrize("name", HF_DAMAGE)
def test_damage_of_a_hugging_face_folder(
    name: str, reshard: Reshard, hfs: Callable[[Generation], Path], tmp_path: Path
) -> None:
    do, said = HF_DAMAGE[name]
    folder = shutil.copytree(hfs(LLAMA_2), tmp_path / "inner" / "a")
    do(folder)
    with pytest.raises((LLMError, ExceptionGroup)) as error:
        reshard(folder, tmp_path / "out", "meta", 2)
    assert all(words in faults(error.value) for words in said), faults(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    assert not (tmp_path / "inner" / "proof").exists()


def test_folders_that_need_another_command(
    reshard: Reshard, hfs: Callable[[Generation], Path], tmp_path: Path
) -> None:
    with pytest.raises(LLMError, match="is in Hugging Face's format already") as error:
        reshard(hfs(LLAMA_1), tmp_path / "out", "hf", dtype="bf16")
    assert "consolidate.py" in str(error.value)
    with pytest.raises(ExceptionGroup) as group:
        reshard(hfs(LLAMA_1), tmp_path / "out", "meta", 2, rope_factor=8.0, tokenizer=tmp_path)
    assert "--tokenizer is for" in faults(group.value)
    assert "--rope-factor is for" in faults(group.value)


def test_folders_that_hold_no_model(
    reshard: Reshard, metas: Callable[[Generation, int], Path], tmp_path: Path
) -> None:
    model = metas(LLAMA_1, 2)
    with pytest.raises(LLMError, match="holds no model") as error:
        reshard(model.parent, tmp_path / "out", "meta", 4)
    assert str(model) in str(error.value)
    with pytest.raises(LLMError, match="holds no model"):
        reshard(tmp_path, tmp_path / "out", "meta", 4)
    with pytest.raises(LLMError, match="is a file and no folder"):
        reshard(model / "params.json", tmp_path / "out", "meta", 4)


def test_params_json_of_another_model_is_not_carried(
    reshard: Reshard,
    hfs: Callable[[Generation], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(hfs(LLAMA_2), tmp_path / "a")
    change(folder / "original" / "params.json", n_kv_heads=8)
    reshard(folder, tmp_path / "out", "meta", 2)
    assert "is damaged or of another model" in capsys.readouterr().err
    raw = json.loads((tmp_path / "out" / "params.json").read_text())
    assert raw["n_kv_heads"] == 4 and raw["vocab_size"] == 512
    check_shards(tmp_path / "out", LLAMA_2, 2)


def test_a_byte_level_tokenizer_becomes_metas(
    reshard: Reshard,
    hfs: Callable[[Generation], Path],
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = shutil.copytree(hfs(LLAMA_3), tmp_path / "a")
    shutil.rmtree(folder / "original")
    reshard(folder, tmp_path / "out", "meta", 2)  # the embeddings by rows, by its kind
    check_shards(tmp_path / "out", LLAMA_3, 2)
    tokenizer = (tmp_path / "out" / "tokenizer.model").read_bytes()
    assert tokenizer == (metas(LLAMA_3, 2) / "tokenizer.model").read_bytes()
    raw = json.loads((tmp_path / "out" / "params.json").read_text())
    assert {"rope_theta", "n_kv_heads"} <= raw.keys()
    other = shutil.copytree(hfs(LLAMA_2), tmp_path / "b")
    shutil.rmtree(other / "original")
    (other / "tokenizer.model").unlink()
    reshard(other, tmp_path / "out2", "meta", 2)  # by columns: a tokenizer with byte fallback
    check_shards(tmp_path / "out2", LLAMA_2, 2)
    assert "no tokenizer.model can be made" in capsys.readouterr().err
    reshard(tmp_path / "out2", tmp_path / "again", "hf")
    assert (tmp_path / "again" / "tokenizer.json").is_file()


def test_the_plan_writes_nothing(metas: Callable[[Generation, int], Path], tmp_path: Path) -> None:
    model, output = metas(LLAMA_3_2, 8), tmp_path / "out"
    options = ("--to", "meta", "--model-parallel", 2, "--rope-factor", 32, "--plan")
    done = start("--model", model, "--output", output, *options)
    assert done.returncode == 0, done.stderr
    assert "8 shards, fp32" in done.stdout and "2 shards, fp32, embeddings by rows" in done.stdout
    assert "consolidated.01.pth  " in done.stdout and "free there" in done.stdout
    whole = 4 * sum(t.numel() for n, t in weights(LLAMA_3_2).items() if n != "output.weight")
    copies = 4 * 3 * 2 * 2 * 2 * 8 * 64  # of the K/V heads: fp32, each 3 times, of 2 layers
    assert f"read      {(whole + copies) / 1e3:.3g} KB" in done.stdout
    norms = 4 * 5 * 64  # that both shards hold
    assert f"write     {(whole + norms) / 1e3:.3g} KB" in done.stdout
    assert not list(tmp_path.iterdir())
    done = start("--model", model, "--output", output, *options[:3], 5, *options[4:])
    assert done.returncode == 2 and "cannot be split into 5" in done.stderr


def test_no_space(
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    for plan in (False, True):
        with pytest.raises(LLMError, match="no space left") as error:
            reshard(metas(LLAMA_1, 2), tmp_path / "out", "meta", 4, plan=plan)
        assert error.value.what.endswith(str(tmp_path / "out"))
    assert "consolidated.03.pth" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_closed_folders(
    reshard: Reshard,
    metas: Callable[[Generation, int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On Python 3.11 even Path.is_dir and its like raise for what lies in one."""
    closed, plain = tmp_path / "closed", Path.stat

    def stat(path: Path, **options: Any) -> os.stat_result:
        if closed in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return plain(path, **options)

    monkeypatch.setattr(Path, "stat", stat)
    with pytest.raises(LLMError, match=r"cannot read .*closed/model"):
        reshard(closed / "model", tmp_path / "out", "meta", 4)
    for plan in (False, True):
        with pytest.raises(LLMError, match=r"cannot write .*closed/out"):
            reshard(metas(LLAMA_1, 2), closed / "out", "meta", 4, plan=plan)


def test_full_disk(metas: Callable[[Generation, int], Path], tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    output = tmp_path / "out"
    done = start(
        *("--model", metas(LLAMA_1, 2), "--output", output, "--to", "meta"),
        *("--model-parallel", 4),
        preexec_fn=limit,
    )
    assert done.returncode == 2, done.stderr
    assert f"cannot write {output}" in done.stderr and "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr
    assert not list(tmp_path.iterdir())


LARGE = """
import json, sys, torch
from pathlib import Path
from llm_recipes.meta.layout import layout, shard_shape
from llm_recipes.meta.params import Params
from llm_recipes.torch_writer import Header, TorchFile
folder = Path(sys.argv[1])
params = Params(1024, 4, 16, 8, 2816, 64000, 1e-5, 10000.0, None)
raw = {"dim": 1024, "n_layers": 4, "n_heads": 16, "n_kv_heads": 8, "norm_eps": 1e-5}
(folder / "params.json").write_text(json.dumps({**raw, "vocab_size": -1}))
tensors = layout(params, "columns")
shapes = {name: shard_shape(tensor, params, 2) for name, tensor in tensors.items()}
headers = {name: Header(shape, torch.bfloat16) for name, shape in shapes.items()}
for rank in range(2):
    with TorchFile(folder / f"consolidated.{rank:02d}.pth", headers) as file:
        for name, shape in shapes.items():
            file.write(name, torch.full(shape, 0.5, dtype=torch.bfloat16))
"""
MEASURE = """
import sys
from pathlib import Path
from llm_recipes.meta.reshard_plan import hf_tensors
from llm_recipes.meta.resharding import convert, prepare
from llm_recipes.safetensors_writer import write_safetensors

def kib(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":"))

model, output, to, degree, dtype = sys.argv[1:]
settings = dict(model=Path(model), to="meta", model_parallel=int(degree), dtype=dtype, chat=False)
settings |= dict(shard_size="5GB", embeddings="auto", tokenizer=None, rope_factor=None)
Path("/proc/self/clear_refs").write_text("5")  # peak RSS starts anew
before = kib("VmRSS")  # what importing takes is not the question
conversion = prepare({**settings, "context_length": None})
if to == "meta":
    convert(conversion, Path(output), lambda text: None)
else:  # without a tokenizer, whose library takes more than all of the weights' blocks
    tensors = hf_tensors(conversion.source, False)
    write_safetensors(Path(output), tensors, conversion.dtype, 10**8)
print(kib("VmHWM") - before)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 350 MB, whose largest tensors have 131 MB."""
    folder = tmp_path_factory.mktemp("large")
    python(LARGE, folder)
    return folder


def python(program: str, *arguments: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        env=recipe_environment(),
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "to, degree, dtype", [("meta", 8, "keep"), ("meta", 1, "fp32"), ("hf", 4, "keep")]
)
def test_memory_is_bounded_whatever_the_model(
    to: str, degree: int, dtype: str, large: Path, tmp_path: Path
) -> None:
    """Resident memory counts all, as files are read and never mapped."""
    (tmp_path / "out").mkdir()
    used = int(python(MEASURE, large, tmp_path / "out", to, degree, dtype)) * 1024
    written = [*(tmp_path / "out").glob("*.pth"), *(tmp_path / "out").glob("*.safetensors")]
    assert sum(path.stat().st_size for path in written) > 340e6
    assert used < BLOCKS_BYTES  # what --plan says


def test_stopped_by_ctrl_c_nothing_is_left(large: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--model", str(large), "--to", "meta"]
    command += ["--model-parallel", "8", "--output", str(tmp_path / "out"), "--dtype", "fp32"]
    command = paused("llm_recipes.torch_writer:TorchFile.write", 20, command)
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=recipe_environment()
    ) as running:
        pid = wait_for_pause(running)
        begun = list(tmp_path.glob(".out.partial-*/*.07.pth"))
        running.send_signal(signal.SIGINT)
        go_on(pid, signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert begun and running.returncode == 130 and "interrupted" in said, said
    assert "Traceback" not in said and "Exception ignored" not in said
    assert not list(tmp_path.iterdir())
