"""What a model's folder lacks, what tells two of them apart, and folders that cannot be read."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_recipes.errors import LLMError
from llm_recipes.model_folder import LFS_POINTER, find_adapter, find_model, folder_digest

SETTINGS = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "added_tokens.json"),
    *("special_tokens_map.json", "chat_template.jinja", "merges.txt", "tokenizer.model"),
    *("adapter_config.json", "tokenizer.json", "vocab.json", "tokenizer.tiktoken"),
    "modeling_mine.py",
)


def safetensors(size: int = 64) -> bytes:
    header = json.dumps({"a": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize("name", SETTINGS)
def test_digest_sees_every_setting(name: str, tmp_path: Path) -> None:
    # The middle of a large file lies between the pieces that are read of weights.
    digests = {folder_digest(tmp_path)}
    for middle in (b"a", b"b"):
        (tmp_path / name).write_bytes(bytes(1_700_000) + middle + bytes(1_700_000))
        digests.add(folder_digest(tmp_path))
    assert len(digests) == 3


def test_digest_leaves_out_what_decides_nothing(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = folder_digest(tmp_path)
    for name in ("run.json", "answers.run.json", "answers.jsonl", "README.md"):
        (tmp_path / name).write_text("x")
    (tmp_path / "folder.json").mkdir()
    assert folder_digest(tmp_path) == before


@pytest.mark.parametrize("place", [0, 4095, 500_000])  # in the tensor: beginning and middle
def test_digest_sees_a_single_tensor(place: int, tmp_path: Path) -> None:
    # A model of which one layer was trained: the evenly spaced pieces of the file miss it.
    sizes = {"before": 3_000_000, "trained": 1_000_000, "after": 9_000_000}
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, size in sizes.items():
        offsets = [begin, begin + size]
        header[name] = {"dtype": "U8", "shape": [size], "data_offsets": offsets}
        begin += size
    text = json.dumps(header).encode()
    data = bytearray(len(text).to_bytes(8, "little") + text + bytes(begin))
    digests = set()
    for value in (0, 1):
        data[8 + len(text) + sizes["before"] + place] = value
        (tmp_path / "model.safetensors").write_bytes(data)
        digests.add(folder_digest(tmp_path))
    assert len(digests) == 2


def test_digest_of_a_header_that_makes_no_sense(tmp_path: Path) -> None:
    for offsets in ([-90, 9], [9, 3], [0, 1e400], ["a", 1], [1, 10**30]):
        text = json.dumps({"a": {"data_offsets": offsets}}).encode()
        (tmp_path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
        assert folder_digest(tmp_path)


def test_digest_of_a_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").symlink_to(tmp_path / "nowhere")
    with pytest.raises(LLMError, match=r"cannot read .*other\.safetensors"):
        folder_digest(tmp_path)


@pytest.mark.parametrize(
    ("find", "closed"),
    [
        (find_model, ""),
        (find_model, "config.json"),
        (find_adapter, ""),
        (find_adapter, "adapter_config.json"),
    ],
)
def test_closed_folders_are_said_to_be(
    find: Callable[[str], object], closed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As root every folder is open; Path's methods raise what the system says to others.
    original = Path.stat

    def refuse(path: Path, **options: bool) -> object:
        if path == tmp_path / closed:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, **options)

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(LLMError, match="cannot read") as caught:
        find(str(tmp_path))
    assert caught.value.why == "Permission denied"


@pytest.mark.parametrize("inner", ["", "original"])
def test_a_checkpoint_of_metas_is_said_to_be(inner: str, tmp_path: Path) -> None:
    folder = tmp_path / "it's; ü"
    (folder / inner).mkdir(parents=True)
    (folder / inner / "params.json").write_text("{}")
    with pytest.raises(LLMError, match=r"it has no config\.json") as caught:
        find_model(str(folder))
    assert "in Meta's own format" in caught.value.why
    model = f"--model {shlex.quote(str(folder))}"
    assert f"sharded.py {model} runs it" in caught.value.fix
    assert f"reshard.py {model} --to hf --output FOLDER converts it" in caught.value.fix


def test_digest_of_a_closed_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(LLMError, match="cannot read"):
        folder_digest(tmp_path)
    # Only the proposals of other names come from the folder above.
    with pytest.raises(LLMError, match="does not exist"):
        find_model(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (LFS_POINTER + b".github.com/spec/v1\nsize 1\n", "holds no weights"),
        (safetensors()[:-1], "is cut off or damaged"),
        (b"", "is cut off or damaged"),
        ((2).to_bytes(8, "little") + b"[]", "is cut off or damaged"),
    ],
)
def test_damaged_adapter(data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(data)
    with pytest.raises(LLMError, match=message):
        find_adapter(str(tmp_path))


def test_whole_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(safetensors())
    assert find_adapter(str(tmp_path)) == tmp_path
