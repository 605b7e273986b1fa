"""Files written tensor by tensor are those that torch, zip programs and our own reader read."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import recipe_environment

from llm_recipes.stored_weights import OpenFiles, torch_weights
from llm_recipes.torch_writer import Header, TorchFile

TENSORS = {
    "a": torch.rand(100, 7).bfloat16(),
    "b;'ü": torch.rand(33).half(),
    "empty": torch.empty(0, 3),
    "c": torch.rand(2, 3, 4),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
}


def write(path: Path, blocks: int = 3) -> Path:
    headers = {name: Header(tuple(t.shape), t.dtype) for name, t in TENSORS.items()}
    with TorchFile(path, headers, {"tied": "a"}) as file:
        for name, tensor in TENSORS.items():
            for block in tensor.reshape(-1).chunk(blocks):
                file.write(name, block)
    return path


def entries(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("mmap", [False, True])
def test_torch_reads_it(tmp_path: Path, mmap: bool) -> None:
    loaded = torch.load(write(tmp_path / "a b.pth"), weights_only=True, mmap=mmap)
    assert list(loaded) == [*TENSORS, "tied"]
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)
        assert loaded[name].is_contiguous() and loaded[name].data_ptr() % 64 == 0
    assert loaded["tied"].data_ptr() == loaded["a"].data_ptr()


def test_it_is_what_torch_writes(tmp_path: Path) -> None:
    torch.save({**TENSORS, "tied": TENSORS["a"]}, tmp_path / "torch.pth")
    write(tmp_path / "ours.pth")
    theirs, ours = entries(tmp_path / "torch.pth"), entries(tmp_path / "ours.pth")
    assert ours.keys() <= theirs.keys()
    assert {"data.pkl", "byteorder", "version", "data/0", "data/4"} <= ours.keys()
    assert ours == {name: theirs[name] for name in ours}


def test_our_reader_and_the_same_bytes_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth")
    stored = torch_weights(path)
    assert stored["tied"] == stored["a"]
    with OpenFiles() as files:
        for name, tensor in TENSORS.items():
            read = torch.cat([torch.empty(0, dtype=tensor.dtype), *files.blocks(stored[name])])
            assert torch.equal(read.reshape(tensor.shape), tensor)
            assert stored[name].extents[0].offset % 4096 == 0
    (tmp_path / "again").mkdir()
    assert write(tmp_path / "again" / "a.pth", blocks=2).read_bytes() == path.read_bytes()


def test_more_than_zip_once_could_hold(tmp_path: Path) -> None:
    """Beyond 4 GiB, in an entry and in all: the numbers are left out, so the disk holds little."""
    path, count = tmp_path / "large.pth", (1 << 32) + 128
    headers = {
        "small": Header((3,), torch.float32),
        "large": Header((count // 2,), torch.bfloat16),
        "last": Header((5,), torch.float32),
    }
    with TorchFile(path, headers) as file:
        file.write("small", torch.tensor([1.0, 2.0, 3.0]))
        file.write("large", torch.ones(64, dtype=torch.bfloat16))
        entry = file._entry
        assert entry is not None
        file._file.seek(count - 256, os.SEEK_CUR)  # a hole
        entry._file_size += count - 256  # type: ignore[attr-defined]
        file._left["large"] -= count - 256
        file.write("large", torch.full((64,), 2.0, dtype=torch.bfloat16))
        file.write("last", torch.arange(5.0))
    assert path.stat().st_size > 1 << 32 > path.stat().st_blocks * 512
    loaded = torch.load(path, weights_only=True, mmap=True)
    assert loaded["large"][0] == 1 and loaded["large"][-1] == 2 and loaded["large"][64] == 0
    assert torch.equal(loaded["last"], torch.arange(5.0))
    stored = torch_weights(path)
    assert stored["last"].extents[0].offset % 4096 == 0 and stored["large"].count == count // 2
    with zipfile.ZipFile(path) as archive:
        assert archive.getinfo("large/data/1").file_size == count
        assert len(archive.read("large/data/2")) == 20


@pytest.mark.parametrize(
    "counts, said",
    [
        ({"b": 2}, "b has no place here"),
        ({"a": 5}, "a has no place here for 20 bytes"),
        ({"a": 4, "b": 1}, "b is not whole"),
        ({"a": 4, "b": 2, "x": 2}, "x has no place here"),
    ],
)
def test_wrong_use_is_an_error(tmp_path: Path, counts: dict[str, int], said: str) -> None:
    headers = {"a": Header((4,), torch.float32), "b": Header((2,), torch.float32)}
    with (
        pytest.raises(ValueError, match=said),
        TorchFile(tmp_path / "a.pth", headers) as file,
    ):
        for name, count in counts.items():
            file.write(name, torch.zeros(count))


FILL = """
import sys, torch
from pathlib import Path
from llm_recipes.torch_writer import Header, TorchFile
headers = {"a": Header((50_000,), torch.float32)}
try:
    with TorchFile(Path(sys.argv[1]), headers) as file:
        file.write("a", torch.zeros(50_000))
except OSError as error:
    print(error.strerror)
"""


def test_full_disk_is_one_error(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (90_000, 90_000))

    done = subprocess.run(
        [sys.executable, "-c", FILL, str(tmp_path / "a.pth")],
        capture_output=True,
        text=True,
        env=recipe_environment(),
        preexec_fn=limit,
        timeout=60,
    )
    assert done.stdout == "File too large\n" and done.stderr == ""
