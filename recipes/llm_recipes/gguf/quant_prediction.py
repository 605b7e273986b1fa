"""What a quantization will give, before it starts: the file's exact size, each tensor's type.

    from llm_recipes.gguf.quant_prediction import QuantSettings, predict
    predict(read_gguf("model-F16.gguf"), TYPES["Q4_K_M"], QuantSettings()).bytes

llama.cpp decides by itself, in a dry run, which type each tensor gets; what it says is read here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.gguf import engine, file
from llm_recipes.gguf.file import GgufFile, GgufTensor
from llm_recipes.gguf.quant_types import QuantType

ALIGNMENT = 32  # GGUF_DEFAULT_ALIGNMENT, to which llama-quant.cpp fills up each tensor
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")
NUMBER_KEYS = ("general.quantization_version", "general.file_type")
IMPORTANCE_NUMBERS = ("quantize.imatrix.entries_count", "quantize.imatrix.chunks_count")
IMPORTANCE_FILE, IMPORTANCE_TEXT = "quantize.imatrix.file", "quantize.imatrix.dataset"
LONGEST_TEXT = 127  # bytes of a text that llama-quantize adds to the metadata
UNQUANTIZED = ("F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64")
# Lines of llama-quant.cpp: `[   1/  21] output.weight - [ 256, 512, 1, 1], type = f32, size = …`
TENSOR_LINE = re.compile(
    r"^\[ *\d+/ *\d+\] (\S+) +- \[.*\], type = +(\S+), size = .*?(?:\((\S+)\))?$"
)
FALLBACK_LINE = re.compile(
    r"^warning: (\S+) +- ncols .* for type +(\S+?)\).*falling back to +(\S+)"
)


@dataclass(frozen=True)
class QuantSettings:
    """What changes a type's recipe.

    embeddings, output: tensor type of the token embeddings and the output layer; None: the
    recipe's. pure: every tensor gets the same type. requantize: take sources that are quantized.
    """

    embeddings: str | None = None
    output: str | None = None
    pure: bool = False
    requantize: bool = False


@dataclass(frozen=True)
class Importance:
    """An importance matrix as the files that are made with it name it.

    file: its name. text: name of the text it was made with.
    """

    file: str
    text: str | None


@dataclass(frozen=True)
class Fallback:
    """A tensor whose rows do not divide into blocks of the type that it should have got."""

    name: str
    row: int
    wanted: str
    used: str
    extra_bytes: int


@dataclass(frozen=True)
class Prediction:
    """What a type makes of a source. tensors: each one's type. bytes: of the file."""

    kind: QuantType
    tensors: Mapping[str, str]
    bytes: int
    bits_per_weight: float
    fallbacks: tuple[Fallback, ...]
    needs_importance: bool


def predict(
    source: GgufFile, kind: QuantType, settings: QuantSettings, importance: Importance | None = None
) -> Prediction:
    """Ask llama.cpp what it would make of a model; takes milliseconds and reads no weights.

    Raises:
        LLMError: If llama.cpp can't quantize this model.
    """
    lines = _dry_run(source, kind, settings, importance is not None)
    types = {m[1]: (m[3] or m[2]).upper() for m in map(TENSOR_LINE.match, lines) if m}
    missing = [tensor.name for tensor in source.tensors if tensor.name not in types]
    if missing:
        why = f"llama.cpp's dry run doesn't name {missing[0]}"
        raise LLMError(f"cannot tell what {kind.name} makes of {source.path}", why)
    sizes = {t.name: tensor_bytes(t, types[t.name]) for t in source.tensors}
    padded = sum(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())
    return Prediction(
        kind,
        types,
        _header_bytes(source, importance) + padded,
        8 * sum(sizes.values()) / max(1, source.parameters),
        _fallbacks(source, kind, settings, types, lines),
        any("will require an imatrix" in line for line in lines),
    )


def tensor_bytes(tensor: GgufTensor, type_name: str) -> int:
    """Bytes of a tensor in another type."""
    row = tensor.shape[0]
    return engine.row_bytes(type_name, row) * (tensor.elements // max(1, row))


def block_size(type_name: str) -> int:
    """Numbers that a tensor type stores together: rows are multiples of it."""
    size: int = engine._ggml().ggml_blck_size(engine.type_number(type_name))
    return size


def bits(type_name: str) -> float:
    """Bits of a number in a tensor type."""
    block = block_size(type_name)
    return 8 * engine.row_bytes(type_name, block) / block


def quantized_types(source: GgufFile) -> list[str]:
    """Tensor types of a source that have lost something already, sorted."""
    return sorted({tensor.type for tensor in source.tensors} - set(UNQUANTIZED))


def metadata_texts(importance: Importance | None) -> dict[str, str]:
    """Texts that llama-quantize adds to the metadata."""
    if importance is None:
        return {}
    named = {IMPORTANCE_FILE: importance.file, IMPORTANCE_TEXT: importance.text}
    return {key: text for key, text in named.items() if text is not None}


def _dry_run(
    source: GgufFile, kind: QuantType, settings: QuantSettings, importance: bool
) -> list[str]:
    llama = engine.library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.dry_run = True
    parameters.ftype = file_type_number(kind.name)
    parameters.pure = settings.pure
    parameters.allow_requantize = True  # whether it may be is ours to say
    if settings.embeddings is not None:
        parameters.token_embedding_type = engine.type_number(settings.embeddings)
    if settings.output is not None:
        parameters.output_tensor_type = engine.type_number(settings.output)
    # Some types choose otherwise with an importance matrix; what is in it does not matter here.
    values = (ctypes.c_float * 1)(1.0)
    entries = (llama.llama_model_imatrix_data * 2)()
    entries[0].name, entries[0].size = b"none", 1
    entries[0].data = values
    if importance:
        parameters.imatrix = entries
    engine.forget_errors()
    with engine.captured_log() as lines:
        status = llama.llama_model_quantize(os.fsencode(source.path), b"", ctypes.byref(parameters))
    if status != 0:
        why = engine.last_error() or "llama.cpp gives no reason"
        raise LLMError(f"{source.path} cannot be quantized to {kind.name}", why)
    return lines


def file_type_number(name: str) -> int:
    """llama.cpp's number of a type (llama_ftype)."""
    llama = engine.library()
    for prefix in ("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_"):
        number = getattr(llama, prefix + name, None)
        if number is not None:
            return int(number)
    fix = "use a newer image, or another type"
    raise LLMError(f"this llama.cpp does not know the type {name}", fix=fix)


def _fallbacks(
    source: GgufFile,
    kind: QuantType,
    settings: QuantSettings,
    types: Mapping[str, str],
    lines: list[str],
) -> tuple[Fallback, ...]:
    wanted = {m[1]: m[2].upper() for m in map(FALLBACK_LINE.match, lines) if m}
    names = {tensor.name for tensor in source.tensors}
    output = "output.weight" if "output.weight" in names else "token_embd.weight"
    blocks_of_256 = block_size(kind.tensor_type) == 256
    found = []
    for tensor in source.tensors:
        row = tensor.shape[0]
        # llama.cpp does not speak of the output layer: it gets Q8_0 where it should get Q6_K.
        if (
            tensor.name == output
            and blocks_of_256
            and row % 256
            and not settings.output
            and not settings.pure
            and types[output] == "Q8_0"
        ):
            wanted.setdefault(output, "Q6_K")
        if tensor.name in wanted:
            # What it would take if its rows were longer by a part of a block.
            ideal = tensor.elements * bits(wanted[tensor.name]) / 8
            extra = tensor_bytes(tensor, types[tensor.name]) - round(ideal)
            found.append(Fallback(tensor.name, row, wanted[tensor.name], types[tensor.name], extra))
    return tuple(found)


def _header_bytes(source: GgufFile, importance: Importance | None) -> int:
    """Size of the metadata that llama-quantize writes, as gguf computes it."""
    gguf = _library()
    made = gguf.gguf_init_empty()
    opened: list[tuple[int, ctypes.c_void_p]] = []
    try:
        for shard in source.shards:
            tensors = ctypes.c_void_p()
            parameters = file._InitParameters(True, ctypes.addressof(tensors))
            handle = gguf.gguf_init_from_file(os.fsencode(shard), parameters)
            opened.append((handle, tensors))
            if len(opened) == 1:
                gguf.gguf_set_kv(made, handle)
            for index in range(gguf.gguf_get_n_tensors(handle)):
                name = gguf.gguf_get_tensor_name(handle, index)
                gguf.gguf_add_tensor(made, gguf.ggml_get_tensor(tensors, name))
        for key in SPLIT_KEYS:
            gguf.gguf_remove_key(made, key.encode())
        for key in (*NUMBER_KEYS, *(IMPORTANCE_NUMBERS if importance else ())):
            gguf.gguf_set_val_u32(made, key.encode(), 0)
        for key, text in metadata_texts(importance).items():
            gguf.gguf_set_val_str(made, key.encode(), os.fsencode(text)[:LONGEST_TEXT])
        return int(gguf.gguf_get_meta_size(made))
    finally:
        gguf.gguf_free(made)
        for handle, tensors in opened:
            gguf.gguf_free(handle)
            gguf.ggml_free(tensors)


@functools.cache
def _library() -> Any:
    gguf = file._library()
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "gguf_init_empty": (pointer, []),
        "gguf_set_kv": (None, [pointer, pointer]),
        "gguf_add_tensor": (None, [pointer, pointer]),
        "gguf_remove_key": (ctypes.c_int64, [pointer, text]),
        "gguf_set_val_u32": (None, [pointer, text, ctypes.c_uint32]),
        "gguf_set_val_str": (None, [pointer, text, text]),
        "gguf_get_meta_size": (ctypes.c_size_t, [pointer]),
        "ggml_get_tensor": (pointer, [pointer, text]),
        "ggml_free": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(gguf, name)
        function.restype, function.argtypes = result, arguments
    return gguf
