"""Checkpoints in Meta's format as they are found: whole, broken, mixed and mistaken for others."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from meta_checkpoints import (
    GENERATIONS,
    LLAMA_1,
    LLAMA_2,
    LLAMA_3,
    LLAMA_3_1,
    LLAMA_3_2,
    Generation,
    hf_model,
    hf_weights,
    make_checkpoint,
    pieces_file,
    shard,
    weights,
)
from sentencepiece import sentencepiece_model_pb2

from llm_recipes.errors import LLMError, faults_of
from llm_recipes.meta.checkpoint import (
    check_same_model,
    find_checkpoint,
    is_meta_folder,
    is_tied,
    read_shard,
    shard_digest,
    shard_identity,
)
from llm_recipes.stored_weights import OpenFiles

HOSTILE = "it's; $(x) ü"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Llama 3.1 in 4 shards; tests copy it."""
    folder = tmp_path_factory.mktemp("meta") / HOSTILE
    yield make_checkpoint(folder, LLAMA_3_1, 4)


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / HOSTILE / "model"))


def faults(work: Callable[[], object]) -> str:
    found = faults_of(work)
    assert found, "nothing was raised"
    return "\n".join(map(str, found))


def find(folder: Path, factor: float | None = 8.0, tokenizer: Path | None = None) -> str:
    return faults(lambda: find_checkpoint(folder, tokenizer, factor))


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def name(index: int) -> str:
    return f"consolidated.{index:02d}.pth"


@pytest.mark.parametrize("degree", [1, 2, 4, 8])
@pytest.mark.parametrize("generation", GENERATIONS, ids=lambda g: g.name)
def test_each_generation(generation: Generation, degree: int, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / HOSTILE, generation, degree)
    found = find_checkpoint(folder, rope_factor=generation.rope_factor)
    assert is_meta_folder(folder) and found.folder == folder and found.degree == degree
    assert found.embeddings == ("rows" if generation.rows else "columns")
    assert found.tokenizer == folder / "tokenizer.model" and found.sidecar is None
    assert found.context is None and found.raw == generation.params
    raw = generation.params
    assert asdict(found.params) == {
        "dim": raw["dim"],
        "layers": raw["n_layers"],
        "heads": raw["n_heads"],
        "kv_heads": generation.kv_heads,
        "ffn": generation.ffn,
        "vocabulary": generation.vocabulary,
        "norm_eps": raw["norm_eps"],
        "rope_theta": raw.get("rope_theta", 10000.0),
        "rope_factor": generation.rope_factor,
    }
    tensors = [read_shard(found, index) for index in range(degree)]
    expected = shard(generation, weights(generation), degree - 1, degree)
    assert expected.keys() - tensors[-1].keys() == {"rope.freqs"}
    last = tensors[-1]["layers.1.attention.wk.weight"]
    with OpenFiles() as files:
        read = torch.cat(list(files.blocks(last))).view(last.shape)
    assert torch.equal(read, expected["layers.1.attention.wk.weight"])
    assert all(is_tied(part) == generation.tied for part in tensors)
    check_same_model(found, [shard_identity(part) for part in tensors])


@pytest.mark.parametrize("generation", [LLAMA_2, LLAMA_3], ids=lambda g: g.name)
def test_a_single_shard_without_a_tokenizer(generation: Generation, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", generation)
    (folder / "tokenizer.model").rename(tmp_path / "tokenizer.model")  # LLaMA 1's layout
    above = find_checkpoint(folder)
    assert above.tokenizer == tmp_path / "tokenizer.model"
    assert above.embeddings == ("rows" if generation.rows else "columns")
    (tmp_path / "tokenizer.model").rename(tmp_path / "other.model")
    none = find_checkpoint(folder)
    assert none.tokenizer is None and none.embeddings == "columns"  # few tokens: 1 or 2
    assert find_checkpoint(folder, tmp_path / "other.model") == above.__class__(
        **{**above.__dict__, "tokenizer": tmp_path / "other.model"}
    )


def test_tied_without_output(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, LLAMA_3_2, 2)
    for index in range(2):
        part = shard(LLAMA_3_2, weights(LLAMA_3_2), index, 2)
        del part["output.weight"]
        part["rope.freqs"] = torch.zeros(4, dtype=torch.complex64)  # of whatever type: not used
        torch.save(part, folder / name(index))
    found = find_checkpoint(folder, rope_factor=32.0)
    assert found.params.vocabulary == LLAMA_3_2.vocabulary and is_tied(read_shard(found, 1))
    without = shard_identity(read_shard(found, 1))
    assert without == shard_identity(read_shard(found, 0))
    torch.save(shard(LLAMA_3_2, weights(LLAMA_3_2), 1, 2), folder / name(1))
    assert without != shard_identity(read_shard(found, 1))  # one has it, the other does not
    part = shard(LLAMA_2, weights(LLAMA_2), 0, 2)
    folder = make_checkpoint(tmp_path / "columns", LLAMA_2, 2)
    del part["output.weight"]
    torch.save(part, folder / name(0))
    assert "missing: output.weight" in find(folder, None)


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([0, 1, 3], "has 3 of 4 shards\n  why: consolidated.02.pth is missing"),
        ([1, 2, 3], "has 3 of 4 shards\n  why: consolidated.00.pth is missing"),
        ([0], "has 1 of 4 shards\n  why: consolidated.01.pth, consolidated.02.pth, consolidated.0"),
        (
            [0, 1, 2, 3, 4],
            "has 5 shards, and its tensors are split over 4\n  why: too many: consol",
        ),
        ([0, 1, 2, 7], "too many: consolidated.07.pth\n       missing: consolidated.03.pth"),
        ([], "holds no shards"),
    ],
)
def test_shards_missing_or_too_many(present: list[int], expected: str, folder: Path) -> None:
    data = {index: (folder / name(index % 4)).read_bytes() for index in present}
    for index in range(4):
        (folder / name(index)).unlink()
    for index, contents in data.items():
        (folder / name(index)).write_bytes(contents)
    said = find(folder)
    assert f"{folder} {expected}" in said or expected in said


def test_shards_of_another_degree(folder: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "two", LLAMA_3_1, 2)
    shutil.copy(other / name(0), folder / name(0))
    assert "has 4 shards, and its tensors are split over 2" in find(folder)


def test_copies_beside_the_shards(folder: Path) -> None:
    shutil.copy(folder / name(1), folder / "consolidated.01 (1).pth")
    (folder / "optimizer.pth").write_bytes(b"of someone else's")
    said = find(folder)
    assert "too many: consolidated.01 (1).pth\n" in said and "optimizer" not in said


def test_the_release_is_named(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llm_recipes.meta import releases

    sizes = asdict(find_checkpoint(made, None, 8.0).params)
    like = releases.Release(
        name="Llama 2 13B",
        degree=2,
        context=4096,
        tied=False,
        multiple_of=64,
        multiplier=1.3,
        **sizes,
    )
    monkeypatch.setattr(releases, "RELEASES", (like,))
    assert find_checkpoint(made, None, 8.0).context == 4096
    other = make_checkpoint(tmp_path / "x", LLAMA_3_1, 2)
    (other / name(1)).unlink()
    assert "its sizes are those of Llama 2 13B (2 shards)" in find(other)


def test_params_contradict_the_tensors(folder: Path) -> None:
    path = folder / "params.json"
    change(path, dim=128, n_layers=3, vocab_size=1000, multiple_of=256)
    said = find(folder)
    assert said.startswith(f"{path} contradicts consolidated.00.pth")
    assert "dim is 128, and the tensors have 64" in said
    assert "n_layers is 3, and the tensors have 2" in said
    assert "make a feed-forward of 512, and the tensors have 256" in said
    assert "vocab_size is 1000, and the tensors have 768" in said
    change(path, dim=64, n_layers=2, vocab_size=-1, multiple_of=64, n_heads=16, n_kv_heads=16)
    said = find(folder)
    assert "n_heads 16 makes heads of 4, and the rotary frequencies are for 8" in said
    assert "make 16 rows of keys a shard" in said
    change(path, n_heads=8, n_kv_heads=4)
    assert find_checkpoint(folder, None, 8.0).params.vocabulary == 768


def test_all_faults_at_once(folder: Path) -> None:
    (folder / "params.json").write_text("{")
    (folder / name(0)).write_bytes(b"")
    (folder / name(2)).unlink()
    (folder / "tokenizer.model").write_bytes(b"\0\1\2")
    said = find(folder)
    for words in ("is not JSON", "it is empty", "has 3 of 4 shards", "is no tokenizer of Meta's"):
        assert words in said, words


class Evil:
    """Would make a file, if a pickle that names it were loaded."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (os.mkdir, ("evil was run",))


def save_old(path: Path) -> None:
    torch.save(torch.load(path), path, _use_new_zipfile_serialization=False)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = torch.load(path)
    change(found)
    torch.save(found, path)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda p: p.write_bytes(p.read_bytes()[:-500]), "ends before its table of contents"),
    "cut short": (lambda p: p.write_bytes(p.read_bytes()[:5000]), "it has 5000 bytes"),
    "without a middle": (
        lambda p: p.write_bytes(p.read_bytes()[:2000] + p.read_bytes()[9000:]),
        "is cut off or damaged",
    ),
    "empty": (lambda p: p.write_bytes(b""), "it is empty"),
    "text": (lambda p: p.write_bytes(b"<html>404</html>"), "is cut off or damaged"),
    "git-lfs": (lambda p: p.write_bytes(b"version https://git-lfs.github.com"), "git lfs pull"),
    "folder": (lambda p: (p.unlink(), p.mkdir()), "it is no file"),
    "dangling": (lambda p: (p.unlink(), p.symlink_to("nowhere")), "No such file"),
    "code": (lambda p: torch.save({"a": Evil()}, p), "wants to run code"),
    "plain code": (lambda p: p.write_bytes(pickle.dumps(Evil())), "is cut off or damaged"),
    "before 1.6": (save_old, "it is in torch's format from before 1.6"),
    "nested": (lambda p: torch.save({"model": torch.load(p)}, p), "holds no weights"),
    "list": (lambda p: torch.save([1, 2], p), "holds no weights"),
    "sparse": (lambda p: torch.save({"a": torch.eye(3).to_sparse()}, p), "is cut off or damaged"),
    "quantized": (
        lambda p: edit(p, lambda w: w.update(x=torch.ones(3).to(torch.float8_e4m3fn))),
        "holds quantized weights\n  why: tensors of type float8_e4m3fn",
    ),
    "renamed": (
        lambda p: torch.save(hf_weights(LLAMA_3_1, weights(LLAMA_3_1)), p),
        "its names are Hugging Face's",
    ),
    "incomplete": (lambda p: edit(p, lambda w: w.pop("norm.weight")), "missing: norm.weight"),
    "other parts": (
        lambda p: edit(
            p,
            lambda w: w.update(
                {"bias": torch.ones(2), "layers.1.attention.wo.weight": torch.ones(64, 64)}
            ),
        ),
        "unknown: bias\n       other shape: layers.1.attention.wo.weight is [64, 64], not [64, 16]",
    ),
    "flat": (
        lambda p: edit(p, lambda w: w.update({"tok_embeddings.weight": torch.ones(7)})),
        "other shape: tok_embeddings.weight is [7]",
    ),
    "odd share": (
        lambda p: edit(p, lambda w: w.update({"layers.0.attention.wq.weight": torch.ones(7, 64)})),
        "is [7, 64], no even share of 64 rows",
    ),
}


@pytest.mark.parametrize("index", [0, 3])
@pytest.mark.parametrize("case", BROKEN)
def test_broken_shards(
    case: str,
    index: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    damage, expected = BROKEN[case]
    damage(folder / name(index))
    recwarn.clear()
    if index == 0:
        said = find(folder)
    else:
        found = find_checkpoint(folder, None, 8.0)  # reads the first shard alone
        said = faults(lambda: read_shard(found, index))
    if index == 0 or case not in ("renamed", "flat", "odd share"):
        assert expected in said
    assert str(folder / name(index)) in said
    assert not Path("evil was run").exists() and not recwarn.list


def test_shards_of_two_models(made: Path, folder: Path, tmp_path: Path) -> None:
    other = make_checkpoint(tmp_path / "other", LLAMA_3_1, 4, seed=1)
    shutil.copy(other / name(2), folder / name(2))
    found = find_checkpoint(folder, None, 8.0)
    identities = [shard_identity(read_shard(found, index)) for index in range(4)]
    said = faults(lambda: check_same_model(found, identities))
    assert f"{folder} mixes shards of different models" in said
    assert "consolidated.02.pth: other norms or types than the other 3" in said
    said = faults(lambda: check_same_model(found, ["a", "b", "a", "b"]))
    assert "one model: consolidated.00.pth, consolidated.02.pth\n" in said
    half = make_checkpoint(tmp_path / "half", LLAMA_3_1, 4, torch.bfloat16)
    shutil.copy(half / name(2), folder / name(2))
    assert shard_identity(read_shard(found, 2)) not in identities


def test_digest_of_a_shard(folder: Path) -> None:
    found = find_checkpoint(folder, None, 8.0)
    path = folder / name(1)

    def digest() -> str:
        return shard_digest(read_shard(found, 1), path)

    before = digest()
    assert digest() == before != shard_digest(read_shard(found, 0), found.shards[0])
    inner = "layers.1.feed_forward.w2.weight"  # [64, 64]: more than is read of its beginning
    for place in (0, 32):
        kept = path.read_bytes()
        edit(path, lambda w: w[inner][place].add_(1))  # noqa: B023
        assert digest() != before, place
        path.write_bytes(kept)
    assert digest() == before


def test_sidecar(folder: Path) -> None:
    sidecar = folder / "huggingface"
    sidecar.mkdir()
    assert find_checkpoint(folder, None, 8.0).context is None
    hf_model(LLAMA_3_1).config.save_pretrained(sidecar)
    found = find_checkpoint(folder)
    assert found.sidecar == sidecar and found.context == 131072
    assert found.params.rope_factor == 8.0
    assert find_checkpoint(folder, rope_factor=8.0) == found
    said = find(folder, 32.0)
    assert "rope_factor: 32.0 and 8.0" in said and "leave out --rope-factor" in said
    config = sidecar / "config.json"
    kept = config.read_text()
    change(config, rms_norm_eps=1e-6, vocab_size=700)
    said = find(folder, None)
    assert f"{folder / 'params.json'} and {config} differ" in said
    assert "vocabulary: 768 and 700\n       norm_eps: 1e-05 and 1e-06" in said
    config.write_text(kept)
    change(config, rope_parameters={"rope_theta": 500000.0, "rope_type": "default"})
    assert "does not say by how much" in find(folder, None)
    assert "rope_factor: 8.0 and None" in find(folder, 8.0)
    config.write_text(kept)
    change(folder / "params.json", use_scaled_rope=False)
    assert "rope_factor: None and 8.0" in find(folder, None)
    config.write_text("[")
    assert "is not JSON" in find(folder, None)


def test_the_layout_of_hub_pages(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = folder.parent
    folder.rename(hub / "original")
    assert is_meta_folder(hub)
    hf_model(LLAMA_3_1).config.save_pretrained(hub)
    found = find_checkpoint(hub)
    assert found.folder == hub / "original" and found.sidecar == hub
    assert find_checkpoint(hub / "original") == found
    (hub / "original" / "tokenizer.model").rename(hub / "tokenizer.model")
    (hub.parent / "link").symlink_to(hub / "original")
    for place in (hub / "original", hub.parent / "link"):  # `.` and links hide what is above
        monkeypatch.chdir(place)
        for path in (Path("."), place):
            above = find_checkpoint(path)
            assert above.sidecar is not None and above.sidecar.samefile(hub)
            assert above.tokenizer is not None and above.tokenizer.parent.samefile(hub)
    assert not is_meta_folder(hub)  # whoever wants Hugging Face's weights has them there
    for index in range(4):
        (hub / "original" / name(index)).unlink()
    said = find(hub, None)
    assert "it is a Hugging Face folder" in said and "reshard.py --model" in said


def test_folders_that_are_no_checkpoint(made: Path, tmp_path: Path) -> None:
    assert f"did you mean {made}?" in find(made.parent / (HOSTILE + "x"))
    nothing = find(tmp_path / "zzz")
    assert "does not exist" in nothing and "consolidated.00.pth" in nothing
    assert "is a file and no folder\n  fix: give the folder it is in" in find(made / name(0))
    assert f"one of these? {made}" in find(made.parent)
    assert "it has no consolidated.00.pth" in find(tmp_path)
    assert not is_meta_folder(tmp_path)
    with pytest.raises(LLMError, match="does not exist"):
        is_meta_folder(tmp_path / "zzz")
    (tmp_path / "params.json").write_text("{}")
    assert is_meta_folder(tmp_path) and "holds no shards" in find(tmp_path)
    (tmp_path / "params.json").unlink()
    shutil.copy(made / name(0), tmp_path)
    assert is_meta_folder(tmp_path) and f"cannot read {tmp_path / 'params.json'}" in find(tmp_path)


def test_closed_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As root every folder is open; Path's methods raise what the system says to others.
    for method in ("stat", "iterdir"):

        def refuse(path: Path, **options: bool) -> None:
            raise PermissionError(13, "Permission denied", str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, method, refuse)
            for said in (find(folder), faults(lambda: is_meta_folder(folder))):
                assert said.startswith(f"cannot read {folder}\n  why: Permission denied")


def test_tokenizers_of_other_models(folder: Path, tmp_path: Path) -> None:
    said = find(folder, 8.0, tmp_path / "none.model")
    assert f"there is no tokenizer {tmp_path / 'none.model'}" in said
    assert find_checkpoint(folder, folder, 8.0).tokenizer == folder / "tokenizer.model"
    other = make_checkpoint(tmp_path / "one", LLAMA_1)
    (other / "tokenizer.model").write_bytes((folder / "tokenizer.model").read_bytes())
    said = find(other, None)
    assert "is of another model" in said and "768 tokens, and the embeddings have 512" in said
    (folder / "tokenizer.model").write_bytes(pieces_file())  # fewer, as if padded
    assert find_checkpoint(folder, None, 8.0).embeddings == "rows"
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(pieces_file())
    del model.pieces[300:]  # less than half, as Llama 2's beside Llama 3's weights
    (folder / "tokenizer.model").write_bytes(model.SerializeToString())
    assert "300 tokens, and the embeddings have 768" in find(folder)
