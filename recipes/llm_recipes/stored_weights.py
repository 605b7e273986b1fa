"""Weights where they lie: name, shape and place of every tensor of a file, without reading one.

    from llm_recipes.stored_weights import OpenFiles, safetensors_file, torch_file
    tensors = safetensors_file(Path("model.safetensors"))
    with OpenFiles() as files:
        for block in files.blocks(tensors["lm_head.weight"]): ...

Files are read by position and block by block, so memory is bounded by a block whatever the model.
Pickles are read with torch's weights_only, and what is no plain data is refused: opening a
checkpoint never runs code that came with it.
"""

from __future__ import annotations

import errno
import json
import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from llm_recipes.errors import LLMError
from llm_recipes.model_folder import first_line

BLOCK_BYTES = 1 << 23
OPEN_FILES = 128  # the usual limit is 1024, and a checkpoint may have more shards than that
LONGEST_HEADER = 100_000_000  # bytes; the safetensors library's own limit
# https://huggingface.co/docs/safetensors: the names of types in headers.
SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


@dataclass(frozen=True)
class Extent:
    """A run of a tensor's elements in a file. offset: bytes into the file; count: elements."""

    file: Path
    offset: int
    count: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor on disk. extents: its elements in order, so that they make up the whole."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    extents: tuple[Extent, ...]

    @property
    def count(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes on disk."""
        return self.count * self.dtype.itemsize

    def blocks(self, files: OpenFiles) -> Iterator[torch.Tensor]:
        """Its elements in order; see `OpenFiles.blocks`."""
        return files.blocks(self)


# Python 3.11.0 to 3.11.3 write an enum's member as getattr(class, name); the class is inert too.
ENUM_MEMBERS = ("getattr", "builtins.getattr")


class Inert:
    """Stands for a class that a pickle names: it keeps what it is given and does nothing."""

    def __init__(self, *contents: Any) -> None:
        self.contents: Any = contents

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"contents": state})


class OpenFiles:
    """Reads stored tensors; files stay open between tensors, as opening is slow on a cluster."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, IO[bytes]] = OrderedDict()

    def __enter__(self) -> OpenFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files.values():
            file.close()

    def blocks(self, tensor: StoredTensor) -> Iterator[torch.Tensor]:
        """The tensor's elements in order, as flat tensors of BLOCK_BYTES at most.

        Raises:
            LLMError: If a file is gone or shorter than it was.
        """
        size = tensor.dtype.itemsize
        block = BLOCK_BYTES // size
        for extent in tensor.extents:
            for start in range(0, extent.count, block):
                count = min(block, extent.count - start)
                data = self._read(extent.file, extent.offset + start * size, count * size)
                yield torch.frombuffer(data, dtype=tensor.dtype)

    def _read(self, path: Path, offset: int, length: int) -> bytearray:
        data = bytearray(length)
        view, filled = memoryview(data), 0
        try:
            file = self._open(path)
            while filled < length:
                got = os.preadv(file.fileno(), [view[filled:]], offset + filled)
                if not got:
                    raise cut_off(path, f"it ends before byte {offset + length}")
                filled += got
        except OSError as error:
            raise unreadable(path, error) from error
        return data

    def _open(self, path: Path) -> IO[bytes]:
        if path in self._files:
            self._files.move_to_end(path)
        else:
            if len(self._files) >= OPEN_FILES:
                self._files.popitem(last=False)[1].close()
            self._files[path] = open(path, "rb", buffering=0)  # noqa: SIM115  # __exit__ closes it
        return self._files[path]


def part(pieces: Sequence[StoredTensor], start: int, count: int) -> tuple[Extent, ...]:
    """The place of elements start to start+count of tensors that are laid end to end.

    Raises:
        IndexError: If there are not that many elements.
    """
    extents: list[Extent] = []
    wanted, position = count, 0
    for piece in pieces:
        size = piece.dtype.itemsize
        for extent in piece.extents:
            skip = max(0, start - position)
            if wanted and skip < extent.count:
                taken = min(wanted, extent.count - skip)
                extents.append(Extent(extent.file, extent.offset + skip * size, taken))
                wanted -= taken
            position += extent.count
    if wanted:
        raise IndexError(f"{count} elements from {start} of {position}")
    return tuple(extents)


def safetensors_file(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a safetensors file by name.

    Raises:
        LLMError: If the file is damaged.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length)) if 0 < length < min(size, LONGEST_HEADER) else {}
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise cut_off(path, f"its header is no JSON: {error}") from error
    tensors = {}
    try:
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            shape, dtype = tuple(map(int, entry["shape"])), SAFETENSORS_DTYPES[entry["dtype"]]
            count = math.prod(shape)
            if end - start != count * dtype.itemsize or start < 0:
                raise cut_off(path, f"{name} has {end - start} bytes for the shape {shape}")
            if 8 + length + end > size:
                raise cut_off(path, f"it has {size} bytes of {8 + length + end} and more")
            extent = Extent(path, 8 + length + start, count)
            tensors[name] = StoredTensor(shape, dtype, (extent,))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise cut_off(path, f"its header is not as it should be: {error!r}") from error
    if not tensors:
        raise cut_off(path, "it holds no tensors")
    return tensors


def torch_file(
    path: Path, inert: Sequence[str] = (), offset: int = 0, length: int | None = None
) -> Any:
    """What torch.save wrote, with tensors on the meta device that `stored` can find in the file.

    Args:
        path: The file.
        inert: Full names of classes that are replaced by one that does nothing; any other that
            torch does not know as harmless is refused.
        offset: Where it begins in the file, in bytes.
        length: Its bytes; None: it is the whole file.

    Raises:
        LLMError: If the file is damaged, or wants to run code.
    """
    names = [*inert, *ENUM_MEMBERS]
    stand_ins: list[Any] = [(type("Inert", (Inert,), {}), name) for name in names]
    try:
        with open(path, "rb") as file, torch.serialization.safe_globals(stand_ins):
            source: Any = file
            if length is not None:
                source = _Window(file, offset, length)
            return torch.load(source, map_location="meta", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except OSError as error:
        if error.errno == errno.EINVAL:  # torch's reader looks for a place before the beginning
            raise cut_off(path, "it is no whole file of torch.save") from error
        raise unreadable(path, error) from error
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise cut_off(path, first_line(error)) from error


def stored(tensor: torch.Tensor, path: Path, offset: int = 0) -> StoredTensor:
    """Where a tensor that `torch_file` returned lies.

    Raises:
        LLMError: If it lies there in another order than its elements have.
    """
    # torch sets this since 2.7 for loads to the meta device, where a file is a zip archive.
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None or not tensor.is_contiguous():
        why = "its tensors cannot be found by position: it is in torch's format from before 1.6"
        if start is not None:
            why = f"a tensor of shape {tuple(tensor.shape)} is not contiguous"
        fix = "save it again, with a newer torch or as safetensors"
        raise LLMError(f"{path} cannot be read tensor by tensor", why, fix)
    place = offset + start + tensor.storage_offset() * tensor.dtype.itemsize
    extent = Extent(path, place, tensor.numel())
    if place + tensor.numel() * tensor.dtype.itemsize > path.stat().st_size:
        raise cut_off(path, "it is shorter than its table of contents says")
    return StoredTensor(tuple(tensor.shape), tensor.dtype, (extent,))


def torch_weights(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a state dict that torch.save wrote, such as pytorch_model.bin.

    Raises:
        LLMError: If the file is damaged, holds something else, or wants to run code.
    """
    contents = torch_file(path)
    if not isinstance(contents, Mapping) or not all(isinstance(k, str) for k in contents):
        raise LLMError(f"{path} holds no weights", f"it holds a {type(contents).__name__}")
    return {
        name: stored(value, path)
        for name, value in contents.items()
        if isinstance(value, torch.Tensor)
    }


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """All tensors of a file of weights, by its ending: safetensors, or torch's.

    Raises:
        LLMError: As `safetensors_file` and `torch_weights`.
    """
    return safetensors_file(path) if path.suffix == ".safetensors" else torch_weights(path)


def cut_off(path: Path, why: str) -> LLMError:
    """What a damaged file means for a user."""
    fix = "copy it again, or take an earlier checkpoint"
    return LLMError(f"{path} is cut off or damaged", why, fix)


def unreadable(path: Path, error: OSError) -> LLMError:
    """What a file that cannot be opened or read means for a user."""
    why = error.strerror or str(error)
    return LLMError(f"cannot read {path}", why, "see whether it is there and may be read: ls -l")


def _refusal(path: Path, error: pickle.UnpicklingError) -> LLMError:
    named = re.search(r"GLOBAL ([\w.]+)", str(error))
    if named is None:
        return cut_off(path, "it is no file of torch.save, or holds more than tensors and numbers")
    what = f"{path} is refused: it wants to run code"
    why = f"its pickle names {named[1]}, which is no plain data"
    return LLMError(what, why, "take the checkpoint from a source you trust")


class _Window:
    """Part of a file, as a file: what torch.load wants to read."""

    def __init__(self, file: IO[bytes], offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._position = file, offset, length, 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._length - self._position)
        self._file.seek(self._offset + self._position)
        data = self._file.read(left if size < 0 else min(size, left))
        self._position += len(data)
        return data

    def readinto(self, buffer: Any) -> int:
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readline(self, size: int = -1) -> bytes:
        start = self._position
        line = self.read().split(b"\n", 1)[0] + b"\n"
        self._position = start + len(line)
        return line

    def seek(self, position: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = start + position
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True
