"""What of a model can't be converted to GGUF, or not well: found before its weights are read.

from llm_recipes.gguf.conversion_checks import row_remarks, source_faults
raise_all(source_faults(find_model("models/tiny"), trust_remote_code=False))
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llm_recipes.architecture import read_json
from llm_recipes.errors import LLMError, faults_of
from llm_recipes.gguf.conversion import architecture_of, converter
from llm_recipes.gguf.file import GgufFile, GgufTensor
from llm_recipes.model_folder import WEIGHT_INDEXES, ModelFolder

# What the converter itself can make plain again (dequant_model in conversion/base.py).
UNDONE = ("bitnet", "fp8", "gptq", "compressed-tensors", "modelopt", "mxfp4")
SUPER_ROW, ROW = 256, 32  # weights of a block of K-quants, and of Q8_0 (ggml-common.h)
# Bits of a weight in Q4_K, what llama-quant.cpp takes for rows it can't cut, and the last resort.
Q4_K_BITS, FALLBACK_BITS, LAST_BITS = 4.5, 5.5, 16.0
SHOWN = 4


def source_faults(model: ModelFolder, trust_remote_code: bool) -> list[LLMError]:
    """All that keeps the converter from a model, as its files' names and settings tell.

    Args:
        model: Found and complete.
        trust_remote_code: Code that the model brings may run.
    """
    folder = model.path
    faults = faults_of(lambda: _check_architecture(folder))
    settings = read_json(folder / "config.json")
    faults += _quantized(folder, settings)
    faults += _other_weights(model)
    if not trust_remote_code:
        faults += _remote_code(folder, settings)
    return faults


def vocabulary_faults(folder: Path, tokenizer: Any) -> list[LLMError]:
    """Whether the tokenizer has tokens that the model has no embedding for.

    Of a SentencePiece model's, such as a token for padding that was only added to the tokenizer,
    the converter leaves out what is too much.
    """
    settings = read_json(folder / "config.json")
    size = (settings.get("text_config") or settings).get("vocab_size")
    most = max(tokenizer.get_vocab().values(), default=0)
    if not isinstance(size, int) or most < size or (folder / "tokenizer.model").is_file():
        return []
    what = f"the tokenizer of {folder} has tokens that the model does not know"
    why = f"its last one has the number {most}, and the model knows {size} tokens, from 0"
    fix = "take the tokenizer that belongs to the model, or give the model more embeddings:\n"
    return [LLMError(what, why, f"{fix}model.resize_token_embeddings(len(tokenizer))")]


def row_remarks(file: GgufFile) -> list[str]:
    """Which matrices have rows that quantization can't cut into its blocks, and what that costs.

    Args:
        file: The GGUF's header.
    """
    matrices = [t for t in file.tensors if len(t.shape) > 1 and t.name.endswith(".weight")]
    odd = [t for t in matrices if t.shape[0] % ROW]
    large = [t for t in matrices if t.shape[0] % SUPER_ROW and not t.shape[0] % ROW]
    remarks = []
    if large:
        more = _more_bits(large, FALLBACK_BITS, file)
        remarks.append(
            f"rows of {_named(large, len(matrices))} are no multiple of {SUPER_ROW}: K-quants "
            f"take larger types there, Q4_K_M about {more:.2g} bits a weight more in all"
        )
    if odd:
        more = _more_bits(odd, LAST_BITS, file)
        kept = " as they do in this file" if file.file_type == "Q8_0" else ""
        remarks.append(
            f"rows of {_named(odd, len(matrices))} are no multiple of {ROW}: they stay in 16 bits "
            f"whatever the type{kept}, with Q4_K_M about {more:.2g} bits a weight more in all"
        )
    return remarks


def _check_architecture(folder: Path) -> None:
    name = architecture_of(folder)
    known = converter().TEXT_MODEL_MAP
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        why = f"it is none of the {len(known)} that it knows"
        why += f"; the nearest are {', '.join(nearest)}" if nearest else ""
        fix = "a newer image may know it; transformers runs it: recipes/inference/generate.py"
        raise LLMError(f"the architecture {name} can't be converted by llama.cpp", why, fix)


def _quantized(folder: Path, settings: dict[str, Any]) -> list[LLMError]:
    found = settings.get("quantization_config")
    if not isinstance(found, dict):
        return []
    method = found.get("quant_method", "an unknown method")
    if method in UNDONE:
        return []
    what = f"the weights of {folder} are quantized already, by {method}"
    why = f"the converter can undo only {', '.join(UNDONE)}"
    fix = "convert the model that it was made of, in 16 or 32 bits; quantize.py makes it small"
    return [LLMError(what, why, fix)]


def _other_weights(model: ModelFolder) -> list[LLMError]:
    """The converter reads all files of weights that are named alike; transformers does not."""
    folder = model.path
    if any((folder / name).is_file() for name in WEIGHT_INDEXES):
        return []
    suffix = model.weights[0].suffix
    prefix = "model" if suffix == ".safetensors" else "pytorch_model"
    alike = {p.name for p in folder.iterdir() if p.name.startswith(prefix) and p.suffix == suffix}
    others = sorted(alike - {file.name for file in model.weights})
    if not others:
        return []
    what = f"{folder} holds weights beside the model's"
    why = f"the converter would mix them into it: {', '.join(others[:SHOWN])}"
    return [LLMError(what, why, "move them to another folder")]


def _remote_code(folder: Path, settings: dict[str, Any]) -> list[LLMError]:
    """Of many architectures the converter loads the tokenizer with trust_remote_code."""
    path = folder / "tokenizer_config.json"
    everything = [settings, read_json(path) if path.is_file() else {}]
    maps = [found.get("auto_map") for found in everything]
    if not any(isinstance(found, dict) and "AutoTokenizer" in found for found in maps):
        return []
    what = f"the tokenizer of {folder} brings Python code of its own"
    why = "the converter would run it with your rights"
    return [LLMError(what, why, "read that code; if you trust it: --trust-remote-code true")]


def _more_bits(tensors: Sequence[GgufTensor], bits: float, file: GgufFile) -> float:
    """What these tensors add to the mean bits of all weights if they are not Q4_K."""
    return (bits - Q4_K_BITS) * sum(t.elements for t in tensors) / max(1, file.parameters)


def _named(tensors: Sequence[GgufTensor], count: int) -> str:
    names = ", ".join(f"{tensor.name} ({tensor.shape[0]})" for tensor in tensors[:SHOWN])
    return f"{len(tensors)} of {count} matrices ({names}{' …' if len(tensors) > SHOWN else ''})"
