"""The digest of an image that is kept in the user's cache."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from file_times import move_time

from _llm import image_digest, sif
from _llm.errors import LLMError
from _llm.image_digest import cached_digest

BIN = Path(__file__).resolve().parents[2] / "bin"


@pytest.fixture
def image(images: Path) -> Path:
    return images / "other.sif"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were read whole."""
    seen: list[str] = []
    real = sif.payload_digest

    def counted(path: str) -> str:
        seen.append(path)
        return real(path)

    monkeypatch.setattr(sif, "payload_digest", counted)
    return seen


def test_an_image_is_read_once(image: Path, tmp_path: Path, reads: list[str]) -> None:
    cache = str(tmp_path / "a cache; 'x'")
    digest = cached_digest(str(image), cache, str(tmp_path))
    assert digest == sif.payload_digest(str(image))
    reads.clear()
    link = tmp_path / "link\nto it.sif"
    link.symlink_to(image)
    assert cached_digest(str(link), cache) == digest
    assert reads == []


def test_warm_it_imports_nothing_slow(image: Path, tmp_path: Path) -> None:
    cached_digest(str(image), str(tmp_path))
    code = "import sys; sys.path.insert(0, sys.argv[1])\n"
    code += "from _llm.image_digest import cached_digest\n"
    code += "assert cached_digest(*sys.argv[2:])\n"
    code += "print(sorted({'hashlib', '_hashlib', 'json', '_llm.sif'} & set(sys.modules)))"
    command = [sys.executable, "-S", "-I", "-c", code, str(BIN), str(image), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("change", ["content", "time", "other file"])
def test_another_file_is_read_again(
    image: Path, tmp_path: Path, reads: list[str], change: str
) -> None:
    before = cached_digest(str(image), str(tmp_path))
    data = bytearray(image.read_bytes())
    data[-1] ^= 1
    was = os.stat(image)
    times = was.st_atime_ns, was.st_mtime_ns
    if change == "time":
        os.utime(image, ns=(times[0], times[1] + 1))
    elif change == "other file":
        other = tmp_path / "other"
        other.write_bytes(data)
        other.replace(image)
    else:
        image.write_bytes(data)
        os.utime(image, ns=times)  # whose status still has another time of change
    move_time(image, was.st_ctime_ns)
    after = cached_digest(str(image), str(tmp_path))
    assert len(reads) == 2
    assert (after == before) is (change == "time")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize(("mode", "again"), [(0o775, 1), (0o757, 1), (0o755, 0)])
def test_what_others_put_into_a_shared_cache(
    image: Path, tmp_path: Path, reads: list[str], mode: int, again: int
) -> None:
    digest = cached_digest(str(image), str(tmp_path))
    folder = tmp_path / "image-digests"
    [kept] = folder.iterdir()
    kept.write_text(kept.read_text().replace(digest, "sha256:" + "0" * 64))
    os.chown(kept, 4711, -1)
    folder.chmod(mode)
    reads.clear()
    assert (cached_digest(str(image), str(tmp_path)) == digest) is bool(again)
    assert len(reads) == again


def test_without_a_lock_each_reads_for_itself(image: Path, tmp_path: Path) -> None:
    assert cached_digest(str(image), str(tmp_path), str(tmp_path / "nosuch"))


def test_on_another_node_the_device_has_another_number(
    image: Path, tmp_path: Path, reads: list[str]
) -> None:
    digest = cached_digest(str(image), str(tmp_path))
    [kept] = (tmp_path / "image-digests").iterdir()
    _, owner = kept.read_text().splitlines()
    path = owner.partition(" ")[2]
    for text, again in (
        (f"{digest}\nffff {path}\n", 0),
        (f"{digest}\nffff /elsewhere\n", 1),
        (f"{digest[:50]}\n{owner}\n", 1),
        ("", 1),
        ("sha256:\n", 1),
    ):
        reads.clear()
        kept.write_text(text)
        assert cached_digest(str(image), str(tmp_path)) == digest
        assert len(reads) == again
    kept.write_bytes(b"\xff\0")
    assert cached_digest(str(image), str(tmp_path)) == digest


def test_one_of_many_tasks_reads(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: list[str]
) -> None:
    results: list[str] = []
    ready, go = threading.Event(), threading.Event()
    read = sif.payload_digest

    def slow(path: str) -> str:
        ready.set()
        go.wait(30)
        return read(path)

    monkeypatch.setattr(sif, "payload_digest", slow)

    def ask() -> None:
        results.append(cached_digest(str(image), str(tmp_path / "cache"), str(tmp_path)))

    tasks = [threading.Thread(target=ask) for _ in range(4)]
    for task in tasks:
        task.start()
    assert ready.wait(30)
    with open(tmp_path / "image-digests.lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    go.set()
    for task in tasks:
        task.join(30)
    assert len(set(results)) == 1 and len(results) == 4
    assert len(reads) == 1


def test_an_unpacked_folder_has_no_digest(tmp_path: Path) -> None:
    assert cached_digest(str(tmp_path), str(tmp_path)) == ""
    assert not (tmp_path / "image-digests").exists()


def test_a_large_image_is_announced(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cached_digest(str(image), str(tmp_path))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setattr(image_digest, "LARGE_BYTES", 10)
    cached_digest(str(image), str(tmp_path / "another"))
    said = f"llm-run: note: reading {image} once for its digest\n"
    assert capfd.readouterr() == ("", said)
    cached_digest(str(image), str(tmp_path / "another"))
    assert capfd.readouterr() == ("", "")


def test_a_file_that_changes_while_it_is_read(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sif.payload_digest
    times = [1, 2]

    def changing(path: str) -> str:
        digest = real(path)
        if times:
            image.write_bytes(image.read_bytes() + b"x" * times.pop())
        return digest

    monkeypatch.setattr(sif, "payload_digest", changing)
    with pytest.raises(LLMError, match="changes while it is read"):
        cached_digest(str(image), str(tmp_path))
    assert not (tmp_path / "image-digests").exists()
    times.append(1)  # another link was made, say: the second time is the last
    assert cached_digest(str(image), str(tmp_path)) == real(str(image))


@pytest.mark.parametrize(
    ("content", "words"),
    [(60, "header is cut off"), (700, "list of parts is cut off"), (720, "bytes of 721")],
)
def test_a_damaged_image(image: Path, tmp_path: Path, content: int, words: str) -> None:
    image.write_bytes(image.read_bytes()[:content])
    with pytest.raises(LLMError, match="cut off or damaged") as caught:
        cached_digest(str(image), str(tmp_path))
    assert words in caught.value.why


def test_what_cannot_be_read_or_written(image: Path, tmp_path: Path) -> None:
    with pytest.raises(LLMError, match=r"nosuch\.sif cannot be read"):
        cached_digest(str(tmp_path / "nosuch.sif"), str(tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(LLMError, match=r"the cache folder .*file cannot be written"):
        cached_digest(str(image), str(tmp_path / "file"))
