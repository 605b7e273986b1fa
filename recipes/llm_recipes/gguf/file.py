"""What a GGUF file says about its model, and whether it is whole.

    llm-run python recipes/llm_recipes/gguf/file.py model.gguf

The header is read by llama.cpp's own parser. Files in several shards (`-00001-of-00003.gguf`) are
one model.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.gguf import engine

MAGIC = b"GGUF"
SHARD = re.compile(r"^(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf$", re.DOTALL)
LONGEST_LIST = 1024  # a vocabulary is longer; nobody wants it as a list of Python's
DIGEST_PART = 1 << 16  # bytes of a tensor's beginning and middle that a file's identity is made of
# gguf.h: numbers of value types, and their size and format
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q"}
SCALARS[12] = "d"
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """A tensor of the file. shape: in ggml's order, the length of a row first."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """Numbers in the tensor."""
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True)
class GgufFile:
    """The header of a model.

    path: the first shard. metadata: scalars, texts and short lists by key; of a long list its
    length under `KEY#count`. bytes: of all shards.
    """

    path: Path
    shards: tuple[Path, ...]
    metadata: dict[str, Any]
    tensors: tuple[GgufTensor, ...]
    bytes: int

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the model's family."""
        return str(self.metadata.get("general.architecture", "unknown"))

    @property
    def name(self) -> str:
        """The model's name as the file says it, or the file's."""
        return str(self.metadata.get("general.name") or self.path.stem)

    @property
    def file_type(self) -> str:
        """The quantization type, such as Q4_K_M or F16; else that of most weights."""
        number = self.metadata.get("general.file_type")
        known = _file_types()
        if isinstance(number, int) and number in known:
            return known[number]
        sizes: dict[str, int] = {}
        for tensor in self.tensors:
            sizes[tensor.type] = sizes.get(tensor.type, 0) + tensor.elements
        return max(sizes, key=lambda name: sizes[name], default="unknown")

    @property
    def parameters(self) -> int:
        """Numbers in all tensors."""
        return sum(tensor.elements for tensor in self.tensors)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """Bits of a number on average."""
        return 8 * self.tensor_bytes / max(1, self.parameters)

    @property
    def layers(self) -> int:
        """Repeating layers."""
        return int(self.value("block_count", 0))

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was trained to see; None if the file doesn't say."""
        found = self.value("context_length", None)
        return None if found is None else int(found)

    @property
    def vocabulary(self) -> int:
        """Tokens of the vocabulary."""
        listed = self.metadata.get("tokenizer.ggml.tokens")
        if isinstance(listed, list):
            return len(listed)
        return int(self.metadata.get("tokenizer.ggml.tokens#count", 0))

    def value(self, key: str, default: Any = None) -> Any:
        """A value of the architecture: `context_length` is `llama.context_length` of a Llama."""
        return self.metadata.get(f"{self.architecture}.{key}", default)


def read_gguf(path: Path | str) -> GgufFile:
    """Read the header of a model file, with all its shards.

    Raises:
        LLMError, ExceptionGroup: It is missing, a folder, no GGUF or of another byte order; it or
            a shard is cut off, or a shard is missing.
    """
    first = Path(path).expanduser()
    shards = _shards_of(first)
    raise_all([fault for shard in shards if (fault := _file_fault(shard))])
    metadata: dict[str, Any] = {}
    tensors: list[GgufTensor] = []
    for shard in shards:
        found, held = _read_header(shard)
        metadata = {**found, **metadata}
        tensors += held
    size = sum(os.path.getsize(shard) for shard in shards)
    return GgufFile(shards[0], shards, metadata, tuple(tensors), size)


@functools.cache
def _digest(path: Path, size: int, modified_ns: int) -> str:
    found = hashlib.sha256(str(size).encode())
    start, places = _places(path)
    with open(path, "rb") as file:
        found.update(file.read(start))
        for offset, length in places:
            for part in sorted({0, max(0, (length - DIGEST_PART) // 2)}):
                file.seek(start + offset + part)
                found.update(file.read(min(DIGEST_PART, length)))
    return found.hexdigest()


def _places(path: Path) -> tuple[int, list[tuple[int, int]]]:
    """Where a shard's tensors begin, and offset and bytes of each."""
    gguf = _library()
    handle = gguf.gguf_init_from_file(os.fsencode(path), _InitParameters(True, None))
    if not handle:
        raise LLMError(f"{path} is damaged", engine.last_error(), "copy or convert it again")
    try:
        places = [
            (gguf.gguf_get_tensor_offset(handle, i), gguf.gguf_get_tensor_size(handle, i))
            for i in range(gguf.gguf_get_n_tensors(handle))
        ]
        return int(gguf.gguf_get_data_offset(handle)), places
    finally:
        gguf.gguf_free(handle)


def gguf_digest(file: GgufFile) -> str:
    """Identity of a model's content: a hash of the header and of two parts of every tensor.

    Reading all of a large file would take longer than using it.
    """
    parts = []
    for shard in file.shards:
        status = os.stat(shard)
        parts.append(_digest(shard, status.st_size, status.st_mtime_ns))
    return hashlib.sha256("".join(parts).encode()).hexdigest() if len(parts) > 1 else parts[0]


def _shards_of(path: Path) -> tuple[Path, ...]:
    named = SHARD.match(path.name)
    if named is None:
        return (path,)
    count = int(named["count"])
    names = [f"{named['stem']}-{n:05}-of-{count:05}.gguf" for n in range(1, count + 1)]
    found = tuple(path.with_name(name) for name in names)
    missing = [shard.name for shard in found if not shard.is_file()]
    if missing and len(missing) < count:
        listed = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        fix = "copy all of them into the same folder"
        raise LLMError(f"shards of {path} are missing", listed, fix)
    return found


def _file_fault(path: Path) -> LLMError | None:
    fix = "give the path of a .gguf file"
    if os.path.isdir(path):
        inside = sorted(entry.name for entry in path.glob("*.gguf"))[:3]
        fix = f"such as {path / inside[0]}" if inside else "recipes/quantized/convert.py makes one"
        return LLMError(f"{path} is a folder and no GGUF file", fix=fix)
    try:
        with open(path, "rb") as file:
            head = file.read(8)
    except OSError as error:
        return LLMError(f"cannot read the model {path}", error.strerror or str(error), fix)
    if head[:4] != MAGIC:
        what = "it is empty" if not head else f"it begins with {head[:4]!r}, not with {MAGIC!r}"
        fix = "recipes/quantized/convert.py makes a GGUF of a Hugging Face folder"
        return LLMError(f"{path} is no GGUF file", what, fix)
    if len(head) == 8 and struct.unpack("<I", head[4:])[0] > 0xFFFF:
        why = "its bytes are in big-endian order"
        return LLMError(f"{path} can't be read here", why, "get a little-endian file")
    return None


def _read_header(path: Path) -> tuple[dict[str, Any], list[GgufTensor]]:
    gguf = _library()
    engine.forget_errors()
    handle = gguf.gguf_init_from_file(os.fsencode(path), _InitParameters(True, None))
    if not handle:
        why = engine.last_error() or "llama.cpp can't read its header"
        raise LLMError(f"{path} is damaged", why, "copy or convert it again")
    try:
        metadata: dict[str, Any] = {}
        for index in range(gguf.gguf_get_n_kv(handle)):
            key = gguf.gguf_get_key(handle, index).decode("utf-8", "replace")
            metadata.update(_value(gguf, handle, index, key))
        tensors = [_tensor(gguf, handle, i) for i in range(gguf.gguf_get_n_tensors(handle))]
        ends = [
            gguf.gguf_get_tensor_offset(handle, index) + tensor.bytes
            for index, tensor in enumerate(tensors)
        ]
        needed = gguf.gguf_get_data_offset(handle) + max(ends, default=0)
    finally:
        gguf.gguf_free(handle)
    if os.path.getsize(path) < needed:
        why = f"it has {os.path.getsize(path)} bytes of {needed}"
        raise LLMError(f"{path} is cut off", why, "copy or convert it again")
    return metadata, tensors


def _tensor(gguf: Any, handle: int, index: int) -> GgufTensor:
    sizes = gguf.gguf_get_tensor_ne(handle, index)
    shape = [int(sizes[dimension]) for dimension in range(4)]
    while len(shape) > 1 and shape[-1] == 1:
        shape.pop()
    return GgufTensor(
        gguf.gguf_get_tensor_name(handle, index).decode("utf-8", "replace"),
        engine.type_name(gguf.gguf_get_tensor_type(handle, index)) or "unknown",
        tuple(shape),
        int(gguf.gguf_get_tensor_size(handle, index)),
    )


def _value(gguf: Any, handle: int, index: int, key: str) -> dict[str, Any]:
    kind = gguf.gguf_get_kv_type(handle, index)
    if kind == STRING:
        return {key: gguf.gguf_get_val_str(handle, index).decode("utf-8", "replace")}
    if kind in SCALARS:
        return {key: _unpack(SCALARS[kind], gguf.gguf_get_val_data(handle, index), 1)[0]}
    if kind != ARRAY:
        return {}
    count = int(gguf.gguf_get_arr_n(handle, index))
    if count > LONGEST_LIST:
        return {f"{key}#count": count}
    element = gguf.gguf_get_arr_type(handle, index)
    if element == STRING:
        texts = [gguf.gguf_get_arr_str(handle, index, i) for i in range(count)]
        return {key: [text.decode("utf-8", "replace") for text in texts]}
    if element in SCALARS:
        return {key: _unpack(SCALARS[element], gguf.gguf_get_arr_data(handle, index), count)}
    return {f"{key}#count": count}


def _unpack(letter: str, address: int, count: int) -> list[Any]:
    form = f"<{count}{letter}"
    return list(struct.unpack(form, ctypes.string_at(address, struct.calcsize(form))))


@functools.cache
def _file_types() -> dict[int, str]:
    """Numbers of `general.file_type` and our names of them: LLAMA_FTYPE_MOSTLY_Q4_K_M is Q4_K_M."""
    return {
        value: re.sub(r"^LLAMA_FTYPE_(MOSTLY_|ALL_)", "", name)
        for name, value in vars(engine.library()).items()
        if name.startswith(("LLAMA_FTYPE_MOSTLY_", "LLAMA_FTYPE_ALL_"))
    }


class _InitParameters(ctypes.Structure):
    """gguf_init_params."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


@functools.cache
def _library() -> Any:
    engine.library()
    gguf = engine._ggml()
    pointer, number, text = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "gguf_init_from_file": (pointer, [text, _InitParameters]),
        "gguf_free": (None, [pointer]),
        "gguf_get_data_offset": (ctypes.c_size_t, [pointer]),
        "gguf_get_n_kv": (number, [pointer]),
        "gguf_get_key": (text, [pointer, number]),
        "gguf_get_kv_type": (ctypes.c_int, [pointer, number]),
        "gguf_get_arr_type": (ctypes.c_int, [pointer, number]),
        "gguf_get_val_str": (text, [pointer, number]),
        "gguf_get_val_data": (pointer, [pointer, number]),
        "gguf_get_arr_n": (ctypes.c_size_t, [pointer, number]),
        "gguf_get_arr_data": (pointer, [pointer, number]),
        "gguf_get_arr_str": (text, [pointer, number, ctypes.c_size_t]),
        "gguf_get_n_tensors": (number, [pointer]),
        "gguf_get_tensor_offset": (ctypes.c_size_t, [pointer, number]),
        "gguf_get_tensor_name": (text, [pointer, number]),
        "gguf_get_tensor_ne": (ctypes.POINTER(number), [pointer, number]),
        "gguf_get_tensor_type": (ctypes.c_int, [pointer, number]),
        "gguf_get_tensor_size": (ctypes.c_size_t, [pointer, number]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(gguf, name)
        function.restype, function.argtypes = result, arguments
    return gguf


if __name__ == "__main__":
    shown = read_gguf(sys.argv[1])
    print(f"{shown.name}: {shown.architecture}, {shown.file_type}, {shown.parameters} parameters")
    print(f"{shown.bytes / 1e9:.3f} GB, {shown.bits_per_weight:.2f} bits a weight")
