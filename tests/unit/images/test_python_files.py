"""Which file a lock's package is, and where it comes from: by hash, whatever servers say."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serving

from _llm import fetch
from _llm.errors import LLMError
from _llm.images import python_files, store
from _llm.images.pip_settings import PipSettings
from _llm.images.python_files import collect, rank_of, read_python_lock


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", "/dev/null")
    with serving() as running:
        yield running


def settings(index: str = "", *more: str, links: tuple[str, ...] = ()) -> PipSettings:
    return PipSettings(index, more, links, "", (), no_index=not index)


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def lock_of(folder: Path, **files: list[bytes]) -> Path:
    """A lock: package name -> contents of the files that it allows, all of version 1.0."""
    lines = [f"{name.replace('_', '-')}==1.0 \\\n    " + " \\\n    ".join(
        f"--hash=sha256:{sha(data)}" for data in contents) for name, contents in files.items()]
    path = folder / "requirements.lock"
    path.write_text("# locked: 2026-01-01\n# by: make lock\n" + "\n".join(lines) + "\n")
    return path


def offer(server: FileServer, index: str, name: str, files: dict[str, bytes],
          hashes: bool = True) -> None:
    """Put files of a package on an index."""
    page = ""
    for file, data in files.items():
        server.files[f"/files/{file}"] = data
        fragment = f"#sha256={sha(data)}" if hashes else ""
        page += f'<a href="../../files/{file.replace("+", "%2B")}{fragment}">x</a>\n'
    server.files[f"/{index}/{name}/"] = page.encode()


@pytest.mark.parametrize("better, worse", [
    ("a-1-cp311-cp311-manylinux_2_17_x86_64.whl", "a-1-cp311-abi3-manylinux_2_17_x86_64.whl"),
    ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", "a-1-cp311-cp311-manylinux_2_17_x86_64.whl"),
    ("a-1-cp311-cp311-manylinux2014_x86_64.whl", "a-1-cp311-cp311-linux_x86_64.whl"),
    ("a-1-cp39-abi3-manylinux_2_17_x86_64.whl", "a-1-cp38-abi3-manylinux_2_28_x86_64.whl"),
    ("a-1-py3-none-manylinux1_x86_64.whl", "a-1-py3-none-any.whl"),
    ("a-1-2build-py3-none-any.whl", "a-1-1-py3-none-any.whl"),
    ("a-1-py2.py3-none-any.whl", "a-1.tar.gz"),
])
def test_the_file_is_the_one_that_pip_takes(better: str, worse: str) -> None:
    first, second = rank_of(better), rank_of(worse)
    assert first is not None and second is not None and first < second


@pytest.mark.parametrize("name", [
    "a-1-cp312-cp312-manylinux_2_17_x86_64.whl", "a-1-cp311-cp311-manylinux_2_39_x86_64.whl",
    "a-1-cp311-cp311-manylinux_2_17_aarch64.whl", "a-1-cp311-cp311-musllinux_1_2_x86_64.whl",
    "a-1-cp311-cp311-win_amd64.whl", "a-1-cp312-abi3-manylinux_2_17_x86_64.whl",
    "a-1-py2-none-any.whl", "a.whl", "a-1.exe", "",
])
def test_files_for_other_machines_do_not_fit(name: str) -> None:
    assert rank_of(name) is None


@pytest.mark.parametrize("name, belongs", [
    ("Some.Package-2024.02.02+cpu.0-py3-none-any.whl", True),
    ("some_package-2024.2.2.tar.gz", False),
    ("some-package-2024.02.2+cpu.0.tar.gz", True), ("some_package-2024.2.20+cpu.0.zip", False),
    ("some_package_extra-2024.2.2+cpu.0-py3-none-any.whl", False), ("some_package.whl", False),
])
def test_a_files_name_tells_whose_it_is(name: str, belongs: bool) -> None:
    package = python_files.Locked("some-package", "2024.2.2+cpu.0", frozenset())
    assert python_files.belongs_to(name, package) == belongs


def test_the_best_file_is_fetched_once(server: FileServer, tmp_path: Path) -> None:
    wheel, source, other = b"wheel", b"source", b"for another Python"
    offer(server, "simple", "some-package", {
        "some_package-1.0-cp312-cp312-manylinux_2_17_x86_64.whl": other,
        "some_package-1.0.tar.gz": source, "some_package-1.0-py3-none-any.whl": wheel})
    lock = lock_of(tmp_path, Some_Package=[source, wheel, other])
    packages = store.Store(tmp_path / "archive é")
    for _ in range(2):
        found = collect([lock, lock], packages, settings(f"{server.address}/simple"))
        assert [file.name for file in found] == ["some_package-1.0-py3-none-any.whl"]
        assert found[0].read_bytes() == wheel
    assert [path for path, _ in server.asked] == [
        "/simple/some-package/", "/files/some_package-1.0-py3-none-any.whl"]
    assert list(store.incoming(packages).iterdir()) == []


def test_a_file_that_changed_on_the_server_is_not_taken(server: FileServer, tmp_path: Path) -> None:
    good = b"good"
    offer(server, "simple", "a", {"a-1.0-py3-none-any.whl": good})
    server.files["/files/a-1.0-py3-none-any.whl"] = b"evil"
    packages = store.Store(tmp_path / "archive")
    with pytest.raises(LLMError, match=r"Python package a 1\.0") as raised:
        collect([lock_of(tmp_path, a=[good])], packages, settings(f"{server.address}/simple"))
    assert "SHA-256" in raised.value.why
    assert store.everything(packages.own) == []
    assert list(store.incoming(packages).iterdir()) == []


def test_every_package_that_is_gone_is_named(server: FileServer, tmp_path: Path) -> None:
    offer(server, "simple", "b", {"b-1.0-py3-none-any.whl": b"today's build of b"})
    offer(server, "simple", "c", {"c-1.0-py3-none-any.whl": b"c"})
    lock = lock_of(tmp_path, a=[b"a"], b=[b"b"], c=[b"c"])
    with pytest.raises(LLMError, match="cannot fetch 2 of 3 files") as raised:
        collect([lock], store.Store(tmp_path / "archive"), settings(f"{server.address}/simple"))
    assert "a 1.0" in raised.value.why and "b 1.0" in raised.value.why
    assert "c 1.0" not in raised.value.why
    assert "make lock" in raised.value.fix and "LLM_ARCHIVE_DIR" in raised.value.fix


def test_folders_and_pages_without_hashes(server: FileServer, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels; it's"
    wheels.mkdir()
    (wheels / "torch-1.0+cpu-py3-none-any.whl").write_bytes(b"cpu")
    (wheels / "torch-1.0-py3-none-any.whl").write_bytes(b"another build")
    offer(server, "links", "page", {"b-1.0-py3-none-any.whl": b"b"}, hashes=False)
    lock = lock_of(tmp_path, torch=[b"cpu"], b=[b"b"])
    lock.write_text(lock.read_text().replace("torch==1.0", "torch[opt-einsum]==1.0+cpu"))
    found = collect([lock], store.Store(tmp_path / "archive"), settings(
        links=(str(wheels), f"{server.address}/links/page/")))
    assert [file.read_bytes() for file in found] == [b"cpu", b"b"]


def test_an_index_in_a_folder_and_one_that_does_not_answer(
    server: FileServer, tmp_path: Path,
) -> None:
    page = tmp_path / "mirror/simple/a/index.html"
    page.parent.mkdir(parents=True)
    (tmp_path / "mirror/files").mkdir()
    (tmp_path / "mirror/files/a-1.0-py3-none-any.whl").write_bytes(b"a")
    page.write_text(f'<a href="../../files/a-1.0-py3-none-any.whl#sha256={sha(b"a")}">a</a>')
    server.files["/simple/a/"] = server.files["/simple/b/"] = None
    packages, index = store.Store(tmp_path / "archive"), f"file://{tmp_path}/mirror/simple"
    found = collect([lock_of(tmp_path, a=[b"a"])], packages,
                    settings(f"{server.address}/simple", index))
    assert found[0].read_bytes() == b"a"
    with pytest.raises(LLMError, match="cannot read http") as raised:
        collect([lock_of(tmp_path, b=[b"b"])], packages,
                settings(f"{server.address.replace('//', '//me:secret@')}/simple", index))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize("page", [b"<![bogus]>", b"cut"])
def test_a_page_that_is_none_is_said(
    page: bytes, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.files["/simple/a/"] = page
    if page == b"cut":
        def cut(answer: object) -> bytes:
            raise http.client.IncompleteRead(b"c", 2)

        monkeypatch.setattr(http.client.HTTPResponse, "read", cut)
    with pytest.raises(LLMError, match=r"cannot read http://127.0.0.1:\d+/simple/a/"):
        collect([lock_of(tmp_path, a=[b"a"])], store.Store(tmp_path / "archive"),
                settings(f"{server.address}/simple"))


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(LLMError, match=f"cannot read {tmp_path}/none") as raised:
        collect([lock_of(tmp_path, a=[b"a"])], store.Store(tmp_path / "archive"),
                settings(links=(f"{tmp_path}/none",)))
    assert raised.value.why == "No such file or directory"


def test_an_account_goes_to_its_own_host_alone(server: FileServer, tmp_path: Path) -> None:
    with serving() as files:
        files.files["/a-1.0-py3-none-any.whl"] = b"a"
        server.files["/simple/a/"] = (
            f'<a href="{files.address}/a-1.0-py3-none-any.whl#sha256={sha(b"a")}">a</a>').encode()
        index = server.address.replace("//", "//me:s%40crets@") + "/simple"
        collect([lock_of(tmp_path, a=[b"a"])], store.Store(tmp_path / "archive"), settings(index))
        assert files.asked == [("/a-1.0-py3-none-any.whl", "")]
    assert server.asked == [("/simple/a/", "Basic bWU6c0BjcmV0cw==")]


@pytest.mark.parametrize("line", [
    "a==1.0", "a==1.0 --hash=md5:aa", "a>=1.0 --hash=sha256:" + "0" * 64, "a @ file:///x.whl",
    "a==1.0 --hash=sha256:" + "0" * 63, "-e .", "\0",
])
def test_a_lock_without_a_hash_is_refused_whole(tmp_path: Path, line: str) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"# locked\n{line}\nb==1 --hash=sha256:{'1' * 64}\nnonsense\n")
    with pytest.raises(LLMError, match="is not a lock of Python packages") as raised:
        read_python_lock(lock)
    assert "nonsense" in raised.value.why and "b==1" not in raised.value.why


def test_pip_itself_tells_its_own_index(monkeypatch: pytest.MonkeyPatch) -> None:
    class Done:
        stdout = ("  -i, --index-url <url>  Base URL of the Python Package Index (default\n"
                  "                         https://index.invalid/simple). This should\n")

    monkeypatch.setattr(python_files.subprocess, "run", lambda *a, **k: Done)
    found = python_files.with_default_index(PipSettings("", (), (), "", ()))
    assert found.index == "https://index.invalid/simple"
    Done.stdout = "pip: not found"
    monkeypatch.setattr(python_files.setup, "pip_wheel", lambda: Path("/nowhere"))
    with pytest.raises(LLMError, match="no index of Python packages is known"):
        python_files.with_default_index(PipSettings("", (), (), "", ()))
