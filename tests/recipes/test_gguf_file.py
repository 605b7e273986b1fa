"""Headers of GGUF files: what they say, and every way in which a file is not one."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

pytest.importorskip("llama_cpp")
gguf = pytest.importorskip("gguf")

from llm_recipes.errors import LLMError  # noqa: E402
from llm_recipes.gguf.file import gguf_digest, read_gguf  # noqa: E402


def test_a_header(tiny_gguf: Path) -> None:
    file = read_gguf(tiny_gguf)
    assert (file.architecture, file.file_type, file.layers) == ("llama", "F32", 2)
    assert (file.context_length, file.vocabulary) == (256, 512)
    assert file.bytes == tiny_gguf.stat().st_size > file.tensor_bytes
    assert file.bits_per_weight == 32
    assert file.value("attention.head_count_kv") == 2
    assert file.value("nothing", 7) == 7
    reader = gguf.GGUFReader(tiny_gguf)
    assert [(t.name, list(t.shape), t.bytes) for t in file.tensors] == [
        (t.name, list(map(int, t.shape)), t.n_bytes) for t in reader.tensors
    ]
    assert file.parameters == sum(int(t.n_elements) for t in reader.tensors)


def test_a_long_list_is_counted_and_short_ones_are_read(tmp_path: Path) -> None:
    path = tmp_path / "lists.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list([str(number) for number in range(5000)])
    writer.add_array("tags", ["a", "ü"])
    writer.add_array("sizes", [1, 2, 3])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    file = read_gguf(path)
    assert file.vocabulary == 5000
    assert "tokenizer.ggml.tokens" not in file.metadata
    assert (file.metadata["tags"], file.metadata["sizes"]) == (["a", "ü"], [1, 2, 3])
    assert file.file_type == "Q4_K_M"
    assert (file.tensors, file.parameters, file.bits_per_weight) == ((), 0, 0)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"GG", "begins with"),
        (b"PK\x03\x04 a zip file", "begins with"),
        (b"GGUF\x00\x00\x00\x03" + b"\0" * 16, "big-endian"),
        (b"GGUF\x03\x00\x00\x00", "is damaged"),
        (b"GGUF\x03\x00\x00\x00" + b"\xff" * 16, "is damaged"),
        (b"GGUF\x63\x00\x00\x00" + b"\0" * 16, "is damaged"),
        (b"GGUF\x03\x00\x00\x00" + b"\x01" + b"\0" * 7 + b"\x01" + b"\0" * 7, "is damaged"),
    ],
)
def test_what_is_no_model(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a b's; ü.gguf"
    path.write_bytes(content)
    with pytest.raises(LLMError) as end:
        read_gguf(path)
    assert said in str(end.value)
    assert str(path) in end.value.what


def test_truncated_at_any_place(tiny_gguf: Path, tmp_path: Path) -> None:
    whole = tiny_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    for length in (30, 1000, 9000, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(LLMError, match=r"is damaged|is cut off"):
            read_gguf(path)


def test_missing_files_and_folders(tmp_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(LLMError, match="cannot read the model"):
        read_gguf(tmp_path / "none.gguf")
    with pytest.raises(LLMError) as end:
        read_gguf(tiny_gguf.parent)
    assert tiny_gguf.name in end.value.fix


def test_shards_are_one_model(tiny_gguf: Path, tmp_path: Path) -> None:
    split = shutil.which("llama-gguf-split")
    if split is None:
        pytest.skip("llama-gguf-split is not here")
    stem = tmp_path / "a part's"
    status = os.spawnv(
        os.P_WAIT, split, [split, "--split-max-tensors", "8", str(tiny_gguf), str(stem)]
    )
    assert status == 0
    shards = sorted(tmp_path.glob("*.gguf"))
    assert len(shards) > 2
    whole = read_gguf(tiny_gguf)
    for shard in (shards[0], shards[-1]):
        file = read_gguf(shard)
        assert file.shards == tuple(shards)
        assert file.parameters == whole.parameters
        assert file.layers == whole.layers
    before = gguf_digest(read_gguf(shards[0]))
    shards[1].unlink()
    with pytest.raises(LLMError, match=r"shards of .* are missing") as end:
        read_gguf(shards[0])
    assert shards[1].name in end.value.why
    assert before != gguf_digest(whole)


def test_the_digest_is_of_the_content(tiny_gguf: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copyfile(tiny_gguf, copy)
    assert gguf_digest(read_gguf(copy)) == gguf_digest(read_gguf(tiny_gguf))
    reader = gguf.GGUFReader(tiny_gguf)
    for number, tensor in enumerate((reader.tensors[0], reader.tensors[5], reader.tensors[-1])):
        shutil.copyfile(tiny_gguf, copy)
        with open(copy, "r+b") as file:
            file.seek(int(tensor.data_offset))
            file.write(b"other")
        os.utime(copy, (number, number))  # file systems' clocks go in steps
        assert gguf_digest(read_gguf(copy)) != gguf_digest(read_gguf(tiny_gguf))
