"""Content of models and data: all bytes count, each file is read once, and nothing waits for it."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from llm_recipes import content_digest as digests
from llm_recipes.content_digest import Reading, cached_sha256, content_digest, files_of

WEIGHTS = bytes(range(256)) * 9000  # more than one piece


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, and files that count as settled at once."""
    monkeypatch.setenv("LLM_CACHE_DIR", str(tmp_path / "ca'che ü"))
    monkeypatch.setattr(digests, "FRESH_NS", -1)
    yield tmp_path / "ca'che ü" / "digests"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model's folder with things that are no part of it."""
    folder = tmp_path / "mod;el"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    found: list[str] = []
    read = digests.file_sha256

    def counted(path: Path | str) -> str:
        found.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(digests, "file_sha256", counted)
    return found


def rewrite(file: Path, content: bytes) -> None:
    """Other content, which the file's times tell: file systems' clocks go in steps."""
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:
        file.write_bytes(content)


def test_a_file_is_its_sha256(tmp_path: Path) -> None:
    file = tmp_path / "a b\n'ü.jsonl"
    file.write_bytes(WEIGHTS)
    assert content_digest(file) == "sha256:" + hashlib.sha256(WEIGHTS).hexdigest()


def test_a_folder_is_what_sha256sum_says(model: Path) -> None:
    script = "LC_ALL=C sha256sum -z -- * | sha256sum | cut -d' ' -f1"
    told = subprocess.run(["sh", "-c", script], cwd=model, capture_output=True, check=True)
    assert content_digest(model) == f"sha256:{told.stdout.decode().strip()}"


def test_what_is_part_of_a_model(model: Path, tmp_path: Path) -> None:
    before = content_digest(model)
    for name in ("run.json", "a.run.json", ".hidden.json", "loss.png", "metrics.jsonl"):
        (model / name).write_text("x")
    (model / "original").mkdir()
    (model / "original" / "consolidated.00.pth").write_bytes(b"x")
    os.mkfifo(model / "pipe.json")
    (model / "nowhere.json").symlink_to("gone")
    assert content_digest(model) == before
    (model / "tokenizer.json").write_text("x")
    assert content_digest(model) != before


def test_every_byte_and_every_name_counts(model: Path) -> None:
    found = {content_digest(model)}
    changed = bytearray(WEIGHTS)
    changed[len(WEIGHTS) // 3] ^= 1
    rewrite(model / "model.safetensors", changed)
    found.add(content_digest(model))
    (model / "model.safetensors").rename(model / "other.safetensors")
    found.add(content_digest(model))
    assert len(found) == 3


def test_links_are_read_under_their_own_names(model: Path, tmp_path: Path) -> None:
    """A hub's snapshot is links to blobs that are named by hashes."""
    snapshot, blobs = tmp_path / "snapshot", tmp_path / "blobs"
    snapshot.mkdir()
    blobs.mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(Path("..", "blobs", str(number)))
    assert content_digest(snapshot) == content_digest(model)


def test_data_are_all_files_of_their_folder(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("b.jsonl", "a.parquet", "run.json"):
        (folder / name).write_text(name)
    assert sorted(file.name for file in files_of(folder)) == ["a.parquet", "b.jsonl"]


def test_a_file_is_read_once_until_it_changes(model: Path, cache: Path, reads: list[str]) -> None:
    first = content_digest(model)
    assert sorted(reads) == ["config.json", "model.safetensors"]
    assert content_digest(model) == first
    assert len(reads) == 2
    status = (model / "config.json").stat()
    rewrite(model / "config.json", b"[]")
    os.utime(model / "config.json", ns=(status.st_atime_ns, status.st_mtime_ns))  # ctime tells
    assert content_digest(model) != first
    assert reads[2:] == ["config.json"]
    assert len(list(cache.iterdir())) == 2


def test_what_was_written_a_moment_ago_is_not_remembered(
    model: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    monkeypatch.setattr(digests, "FRESH_NS", 10**12)
    assert content_digest(model) == content_digest(model)
    assert len(reads) == 4


@pytest.mark.parametrize("damage", [b"", b"x" * 99, b"1 2 3 " + b"g" * 64 + b"\n", b"\xff\x00"])
def test_a_damaged_cache_is_none(model: Path, cache: Path, reads: list[str], damage: bytes) -> None:
    first = content_digest(model)
    for file in cache.iterdir():
        file.write_bytes(damage)
    assert content_digest(model) == first
    assert len(reads) == 4
    assert content_digest(model) == first
    assert len(reads) == 4  # it was mended


def test_a_cache_that_cannot_be_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = content_digest(model)
    (tmp_path / "file").write_text("")
    for place in (str(tmp_path / "file"), "/proc/none", "/dev/full"):
        monkeypatch.setenv("LLM_CACHE_DIR", place)
        assert content_digest(model) == first


def test_a_cache_that_is_full(model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    assert content_digest(model).startswith("sha256:")
    assert not list(cache.iterdir())


def test_a_file_that_changes_while_it_is_read(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = digests.file_sha256

    def disturbed(path: Path | str) -> str:
        found = read(path)
        with open(path, "ab") as file:
            file.write(b"x")
        return found

    monkeypatch.setattr(digests, "file_sha256", disturbed)
    found, missing = Reading([model / "config.json"]).wait(30)
    assert found == [None]
    assert missing is not None
    assert "changes while it is read" in missing
    assert not cache.exists()


def test_a_file_that_changes_once_is_read_again(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, file = digests.file_sha256, model / "config.json"

    def disturbed(path: Path | str) -> str:
        found = read(path)
        if file.read_text() == "{}":
            file.write_text("[1]")
        return found

    monkeypatch.setattr(digests, "file_sha256", disturbed)
    assert cached_sha256(file) == hashlib.sha256(b"[1]").hexdigest()


def test_what_cannot_be_read_says_why(model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "gone", tmp_path / "pipe", Path("/dev/null")):
        found, missing = Reading([model, path]).wait(30)
        assert found[0] == content_digest(model)
        assert found[1] is None
        assert missing is not None
        assert str(path) in missing


def test_nothing_waits_for_what_takes_long(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    read = digests.file_sha256

    def slow(path: Path | str) -> str:
        if Path(path).name == "model.safetensors":
            go_on.wait(60)
        return read(path)

    monkeypatch.setattr(digests, "file_sha256", slow)
    reading = Reading([model / "config.json", model])
    deadline = time.monotonic() + 30
    while reading.wait(0)[0][0] is None and time.monotonic() < deadline:
        time.sleep(0.01)
    found, missing = reading.wait(0)
    assert found == [content_digest(model / "config.json"), None]
    assert missing == "it was not read to its end"
    go_on.set()
    assert reading.wait(60) == ([found[0], content_digest(model)], None)


def test_signals_go_to_the_run(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    masks = []
    monkeypatch.setattr(
        digests,
        "content_digest",
        lambda path: masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    Reading([model]).wait(30)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1} <= masks[0]
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


def test_a_program_ends_although_something_is_read(tmp_path: Path) -> None:
    """Nobody writes into the pipe that stands for a file of many gigabytes."""
    os.mkfifo(tmp_path / "pipe")
    code = (
        "import sys, pathlib; from llm_recipes import content_digest as c\n"
        "c.cached_sha256 = c.file_sha256\n"
        "reading = c.Reading([pathlib.Path(sys.argv[1])]); print(reading.wait(0.1))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "pipe")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "not read to its end" in done.stdout
    assert not done.stderr


def test_two_processes_at_once(model: Path, cache: Path) -> None:
    code = (
        "import sys, pathlib; from llm_recipes import content_digest as c; c.FRESH_NS = -1\n"
        "print(c.content_digest(pathlib.Path(sys.argv[1])))"
    )
    command = [sys.executable, "-c", code, str(model)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = {child.communicate(timeout=60)[0].strip() for child in both}
    assert told == {content_digest(model)}
    assert len(list(cache.iterdir())) == 2  # and nothing temporary


def test_large_sparse_files(tmp_path: Path) -> None:
    with open(tmp_path / "holes.bin", "wb") as file:
        file.truncate(5 * digests.PIECE_BYTES + 7)
    expected = hashlib.sha256(bytes(5 * digests.PIECE_BYTES + 7)).hexdigest()
    assert content_digest(tmp_path / "holes.bin") == f"sha256:{expected}"
