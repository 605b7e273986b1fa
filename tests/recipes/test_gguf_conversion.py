"""llm_recipes/gguf/conversion.py and its checks: drafts of GGUFs, and what can't become one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_model
from safetensors.torch import load_file, save_file

from llm_recipes.errors import LLMError, faults_of
from llm_recipes.gguf import conversion, pre_tokenizers
from llm_recipes.gguf.agreement import (
    compare_scores,
    default_text,
    gguf_scores,
    special_token_differences,
    transformers_scores,
    windows_of,
)
from llm_recipes.gguf.conversion import Source, draft_gguf, header_tokenizer
from llm_recipes.gguf.conversion_checks import row_remarks, source_faults, vocabulary_faults
from llm_recipes.gguf.file import GgufFile, GgufTensor, read_gguf
from llm_recipes.gguf.new_gguf import disagreeing_name, finish, made_again, new_gguf
from llm_recipes.model_folder import find_model
from llm_recipes.model_settings import copy_tokenizer
from llm_recipes.record import read_record, record_path
from llm_recipes.tiny_models import Architecture, Shape, model_config

pytest.importorskip("llama_cpp", reason="llama.cpp is not here")
Edit = Callable[..., Path]


@pytest.fixture
def edited(tiny_hf: Path, tmp_path: Path) -> Edit:
    """A copy of the tiny model with other values in a file of settings."""

    def edit(name: str = "config.json", **changes: Any) -> Path:
        folder = shutil.copytree(tiny_hf, tmp_path / "model", dirs_exist_ok=True)
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**settings, **changes}))
        return folder

    return edit


@pytest.fixture(scope="module")
def home_made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 whose byte-level BPE tokenizer was trained here: in no list of llama.cpp."""
    from transformers import AutoModelForCausalLM

    from llm_recipes.tiny_tokenizer import qwen2_tokenizer, save_tokenizer

    folder = tmp_path_factory.mktemp("models") / "home-made"
    shape = Shape(hidden_size=64, intermediate_size=96, vocab_size=512, context_length=128)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(model_config("qwen2", shape)).save_pretrained(folder)
    texts = ["def mean(values): return sum(values) / len(values)\n\n", "It's the year 1984. "] * 50
    save_tokenizer(qwen2_tokenizer(texts, 512), None, folder)
    return folder


def faults(folder: Path, trust: bool = False) -> list[LLMError]:
    return source_faults(find_model(str(folder)), trust_remote_code=trust)


def test_a_draft_has_everything_but_weights(tiny_hf: Path, tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "{ftype}; draft"
    whole = read_gguf(tiny_gguf)
    with draft_gguf(Source(tiny_hf, "f32", name="tiny"), path) as draft:
        assert draft.file.tensors == whole.tensors
        assert draft.file.bytes == path.stat().st_size
        assert path.stat().st_blocks * 512 < whole.bytes / 10
        with header_tokenizer(path) as tokenizer:
            assert tokenizer.bos_token_id == 1 and "assistant" in (tokenizer.chat_template or "")
        draft.write_weights()
    # The model's name is all that the converter's own program would have written otherwise.
    written = read_gguf(path).metadata
    others = {
        key for key in written | whole.metadata if written.get(key) != whole.metadata.get(key)
    }
    assert others == {"general.name"}, written
    assert path.read_bytes()[-whole.tensor_bytes :] == tiny_gguf.read_bytes()[-whole.tensor_bytes :]


def test_llama_cpp_refuses_what_does_not_fit(edited: Edit, tmp_path: Path) -> None:
    folder = edited(num_attention_heads=8, num_key_value_heads=8, head_dim=64)
    with (
        draft_gguf(Source(folder, "f16"), tmp_path / "draft") as draft,
        pytest.raises(LLMError, match="could not load the GGUF of this model") as error,
        header_tokenizer(draft.path),
    ):
        pass
    assert "attn" in error.value.why


def test_an_unknown_architecture(edited: Edit) -> None:
    [fault] = faults(edited(architectures=["LamaForCausalLM"]))
    assert "LamaForCausalLM can't be converted" in fault.what
    assert "LlamaForCausalLM" in fault.why
    assert faults(edited(architectures=["LlamaForCausalLM"])) == []


def test_quantized_sources(edited: Edit) -> None:
    [fault] = faults(edited(quantization_config={"quant_method": "bitsandbytes"}))
    assert "quantized already, by bitsandbytes" in fault.what and "gptq" in fault.why
    assert faults(edited(quantization_config={"quant_method": "gptq", "bits": 4})) == []


def test_code_of_the_tokenizer(edited: Edit) -> None:
    code = {"AutoTokenizer": ["tokenization_mine.MyTokenizer", None]}
    folder = edited("tokenizer_config.json", auto_map=code)
    [fault] = faults(folder)
    assert "brings Python code" in fault.what and "--trust-remote-code" in fault.fix
    assert faults(folder, trust=True) == []


def test_weights_that_would_be_mixed_in(edited: Edit) -> None:
    folder = edited()
    shutil.copy(folder / "model.safetensors", folder / "model.old.safetensors")
    [fault] = faults(folder)
    assert "model.old.safetensors" in fault.why


def test_a_tensor_without_a_place(edited: Edit, tmp_path: Path) -> None:
    folder = edited()
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.self_attn.gate.weight"] = torch.zeros(4, 4)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "tokenizer.model").write_bytes(b"not a SentencePiece model")
    both = faults_of(lambda: draft_gguf(Source(folder, "f16"), tmp_path / "draft"))
    assert [fault.what.split(str(folder))[0] for fault in both] == [
        "llama.cpp has no place for the tensor model.layers.0.self_attn.gate.weight of ",
        "llama.cpp's converter can't convert ",
    ]


def test_a_home_made_tokenizer(home_made: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    source = Source(home_made, "f16")
    [fault] = faults_of(lambda: draft_gguf(source, tmp_path / "draft"))
    assert fault.what == conversion.unknown_tokenizer(home_made)
    assert "--pre-tokenizer" in fault.fix
    tokenizer = AutoTokenizer.from_pretrained(home_made)
    assert pre_tokenizers.fitting(source, tokenizer) == "qwen2"
    named = Source(home_made, "f16", pre_tokenizer="qwen2")
    with draft_gguf(named, tmp_path / "draft") as draft:
        assert draft.file.metadata["tokenizer.ggml.pre"] == "qwen2"
    assert vocabulary_faults(home_made, tokenizer) == []
    tokenizer.add_tokens([f"<new{number}>" for number in range(512)])
    [fault] = vocabulary_faults(home_made, tokenizer)
    assert "512 tokens" in fault.why and "resize_token_embeddings" in fault.fix


def test_tokens_that_were_added_to_a_sentencepiece_model(tiny_hf: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_hf)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.add_tokens(["<tool>"])
    model = AutoModelForCausalLM.from_pretrained(tiny_hf)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    folder = shutil.copytree(tiny_hf, tmp_path / "more tokens")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with (
        draft_gguf(Source(folder, "f16"), tmp_path / "draft") as draft,
        header_tokenizer(draft.path) as found,
    ):
        assert special_token_differences(tokenizer, found) == []
        assert found.encode("a<|im_end|>", False)[-1] == len(tokenizer) - 2
        assert len(tokenizer) - 2 in found.end_ids


@pytest.mark.parametrize("family", ["gpt_neox", "falcon"])
def test_other_families(family: Architecture, tiny_hf: Path, tmp_path: Path) -> None:
    """Their converters expect a BPE tokenizer, and settings as transformers 4 had them."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    shape = Shape(hidden_size=64, intermediate_size=96, vocab_size=512, context_length=128)
    model = AutoModelForCausalLM.from_config(model_config(family, shape))
    model.save_pretrained(tmp_path / "model")
    copy_tokenizer([tiny_hf], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_hf)
    with draft_gguf(Source(tmp_path / "model", "f32"), tmp_path / "draft") as draft:
        with header_tokenizer(draft.path) as found:
            assert special_token_differences(tokenizer, found) == []
        assert draft.file.context_length == 128
        draft.write_weights()
    windows = windows_of(default_text(1000), tokenizer, count=100, length=128)
    wanted = transformers_scores(tmp_path / "model", torch.float32, windows)
    same = compare_scores(gguf_scores(tmp_path / "draft", windows, threads=1), wanted, "f32")
    assert same.holds and same.logprob_difference < 0.01


def test_names_of_pre_tokenizers() -> None:
    assert {*pre_tokenizers.COMMON} <= {*pre_tokenizers.known()}
    assert pre_tokenizers.name_faults("qwen2") == pre_tokenizers.name_faults(None) == []
    [fault] = pre_tokenizers.name_faults("qwen-2")
    assert "qwen2" in fault.fix


def test_rows_that_blocks_do_not_fit() -> None:
    def file(*sizes: int) -> GgufFile:
        tensors = tuple(
            GgufTensor(f"blk.{i}.ffn_down.weight", "F16", (size, 256), 512 * size)
            for i, size in enumerate(sizes)
        )
        return GgufFile(Path("x"), (), {"general.file_type": 1}, tensors, 0)

    assert row_remarks(file(256, 768)) == []
    [remark] = row_remarks(file(672, 672))
    assert "2 of 2 matrices" in remark and "ffn_down.weight (672)" in remark
    assert "about 1 bits a weight more" in remark  # Q4_K has 4.5, Q5_0 5.5
    large, odd = row_remarks(file(33, 32, 256))
    assert large.startswith("rows of 1 of 3 matrices (blk.1") and "16 bits" in odd


def test_a_new_file_is_whole_or_not_there(tiny_gguf: Path, tmp_path: Path) -> None:
    path = tmp_path / "a; 'b'.gguf"
    record: dict[str, Any] = {"recipe": "quantized/convert", "model": {}}
    record["made_with"] = {"type": "f32"}
    with pytest.raises(KeyboardInterrupt), new_gguf(path) as partial:
        shutil.copy(tiny_gguf, partial)
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with new_gguf(path) as partial:
        with pytest.raises(LLMError, match="another process is writing"), new_gguf(path):
            pass
        shutil.copy(tiny_gguf, partial)
        finish(partial, path, record)
    assert sorted(tmp_path.iterdir()) == [path, record_path(path)]
    assert made_again(path, {"type": "f32"}) and not made_again(path, {"type": "f16"})
    with open(path, "r+b") as file:
        file.truncate(1000)
    assert not made_again(path, {"type": "f32"})


def test_nothing_of_others_is_replaced_by_what_disagrees(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    first = disagreeing_name(path)
    assert first.name == "a.disagrees.gguf"
    first.write_text("mine")
    assert disagreeing_name(path).name == "a.disagrees-2.gguf"
    record_path(first).write_text('{"recipe": "quantized/convert"}')
    assert disagreeing_name(path) == first
    assert read_record(record_path(first)) is not None


def test_sharded_sources(tmp_path: Path, tiny_hf: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(tiny_hf, tmp_path / "sharded")
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(tiny_hf).save_pretrained(folder, max_shard_size="1MB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2
    assert faults(folder) == []
    with draft_gguf(Source(folder, "q8_0"), tmp_path / "draft") as draft:
        assert draft.file.file_type == "Q8_0"
        assert len(draft.file.tensors) == len(load_file(tiny_hf / "model.safetensors"))


def test_rows_of_q8_0(tmp_path: Path) -> None:
    narrow = make_model(tmp_path / "narrow", hidden_size=40, intermediate_size=64)
    with draft_gguf(Source(narrow, "q8_0"), tmp_path / "draft") as draft:
        kinds = {tensor.type for tensor in draft.file.tensors}
        assert kinds == {"F32", "F16", "Q8_0"}
        assert any("as they do in this file" in remark for remark in row_remarks(draft.file))
