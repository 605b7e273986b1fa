"""Write what torch.load reads, tensor by tensor: no file, not even a tensor is held in memory.

    from llm_recipes.torch_writer import TorchFile
    with TorchFile(path, {"a.weight": Header((4, 8), torch.bfloat16)}) as file:
        for block in blocks: file.write("a.weight", block)

torch.save's format since 1.6 is a zip archive without compression: NAME/data.pkl is the state
dict, whose tensors name their storages NAME/data/0, NAME/data/1 and so on; NAME/version and
NAME/byteorder say how to read them
(https://docs.pytorch.org/docs/stable/notes/serialization.html). Storages begin at memory pages:
rows of a matrix, which are often a page long, then don't lie across two, which costs a mapped
matrix up to a seventh of its speed. The same tensors give the same bytes.
"""

from __future__ import annotations

import io
import math
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

ALIGNMENT = 4096  # bytes; torch.save itself takes 64
VERSION = b"3\n"  # of the format, as torch writes it since 1.6
FIRST_DATE = (1980, 1, 1, 0, 0, 0)  # that zip knows; the time of writing is not part of the data
LOCAL_HEADER, ZIP64_FIELD, FIELD = 30, 20, 4  # bytes, without the names
ZIP64_FROM = 1 << 30  # bytes; from 2 GiB it must be, and zipfile itself begins somewhat earlier
PADDING = b"FB"  # id of the extra field that torch fills up to the alignment
# What the pickle calls a storage of each type.
STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
}


@dataclass(frozen=True)
class Header:
    """What a tensor is, before its numbers are there."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of its numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class TorchFile:
    """A file of weights that is written from its beginning to its end.

    Args:
        path: The file; one that is there is replaced.
        tensors: What each tensor is, in the order in which they are written.
        shared: Names that are another's tensor, and whose: both have one storage.

    Raises:
        OSError: If it cannot be written.
    """

    def __init__(
        self, path: Path, tensors: Mapping[str, Header], shared: Mapping[str, str] | None = None
    ) -> None:
        self._left = OrderedDict((name, header.bytes) for name, header in tensors.items())
        self._keys = {name: str(number) for number, name in enumerate(tensors)}
        self._folder = path.stem
        self._file = open(path, "wb")  # noqa: SIM115  # finish() or __exit__ closes it
        self._zip = zipfile.ZipFile(self._file, "w", zipfile.ZIP_STORED, allowZip64=True)
        self._entry: IO[bytes] | None = None
        self._add("data.pkl", _pickled(tensors, self._keys, shared or {}))
        self._add("byteorder", sys.byteorder.encode())

    def write(self, name: str, block: torch.Tensor) -> None:
        """Append numbers to a tensor; the one before it must be whole.

        Raises:
            ValueError: If it is not this tensor's turn, or it has no room for them.
            OSError: If the disk is full.
        """
        self._next_tensors(name)
        data = block.contiguous().reshape(-1).view(torch.uint8).numpy().data
        if not self._left or next(iter(self._left)) != name or len(data) > self._left[name]:
            raise ValueError(f"{name} has no place here for {len(data)} bytes")
        assert self._entry is not None
        self._entry.write(data)
        self._left[name] -= len(data)

    def finish(self) -> None:
        """Write the table of contents, when all tensors are there.

        Raises:
            ValueError: If a tensor is not whole.
            OSError: If the disk is full.
        """
        self._next_tensors(None)
        if self._left:
            raise ValueError(f"{next(iter(self._left))} is not whole")
        self._add("version", VERSION)
        self._zip.close()
        self._file.close()

    def __enter__(self) -> TorchFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.finish()
        finally:
            self._abandon()

    def _abandon(self) -> None:
        """Close the file as it is, without another attempt to write to a disk that may be full."""
        self._zip.fp = None  # or the archive would write its table of contents
        self._file.raw.close()

    def _next_tensors(self, wanted: str | None) -> None:
        """End tensors that are whole and begin those that follow, up to the wanted one."""
        while self._left:
            name, left = next(iter(self._left.items()))
            if self._entry is None:
                self._entry = self._open(f"data/{self._keys[name]}", left)
            if left or name == wanted:
                return
            self._entry.close()
            self._entry = None
            del self._left[name]

    def _add(self, name: str, contents: bytes) -> None:
        with self._open(name, len(contents)) as entry:
            entry.write(contents)

    def _open(self, name: str, size: int) -> IO[bytes]:
        info = zipfile.ZipInfo(f"{self._folder}/{name}", FIRST_DATE)
        info.file_size = size
        large = size > ZIP64_FROM
        head = self._file.tell() + LOCAL_HEADER + len(info.filename.encode()) + FIELD
        padding = -(head + (ZIP64_FIELD if large else 0)) % ALIGNMENT
        info.extra = PADDING + padding.to_bytes(2, "little") + b"Z" * padding
        return self._zip.open(info, "w", force_zip64=large)


@dataclass(frozen=True, eq=False)
class _Storage:
    """Stands for a storage: the pickle only says its type, key and number of elements."""

    dtype: torch.dtype
    key: str
    count: int


class _Tensor:
    """Stands for a tensor: pickled as torch pickles one that fills its storage."""

    def __init__(self, header: Header, key: str) -> None:
        self.header = header
        self.storage = _Storage(header.dtype, key, math.prod(header.shape))

    def __reduce__(self) -> tuple[Any, ...]:
        shape = self.header.shape
        strides = tuple(math.prod(shape[place + 1 :]) for place in range(len(shape)))
        hooks: OrderedDict[str, Any] = OrderedDict()
        return torch._utils._rebuild_tensor_v2, (self.storage, 0, shape, strides, False, hooks)


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        if isinstance(value, _Storage):
            return ("storage", STORAGES[value.dtype], value.key, "cpu", value.count)
        return None


def _pickled(
    tensors: Mapping[str, Header], keys: Mapping[str, str], shared: Mapping[str, str]
) -> bytes:
    contents = {name: _Tensor(header, keys[name]) for name, header in tensors.items()}
    contents |= {name: contents[of] for name, of in shared.items()}
    written = io.BytesIO()
    _Pickler(written, protocol=2).dump(contents)  # the protocol of torch.save
    return written.getvalue()
