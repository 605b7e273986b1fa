"""Locked Debian packages: from the archive, else from mirrors; all that are gone are named."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import HANGS, FileServer, serving

from _llm import debian, fetch
from _llm.debian import Package, mirrors_of
from _llm.errors import LLMError
from _llm.images import store
from _llm.images.debian_files import Locked, Source, collect

DAY = "2026-11-30"
BIN = Path(__file__).resolve().parents[3] / "bin"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(debian, "_own_mirrors", list)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        yield running


def locked(name: str, archive: str = "main") -> Locked:
    data = name.encode()
    return Locked(Package(name, "1:2+b~3", "amd64", hashlib.sha256(data).hexdigest(), len(data),
                          f"pool/{name}_2+b~3_amd64.deb", archive), DAY)


def source(*mirrors: str) -> Source:
    return Source(" ".join(mirrors), {}, fetch.Access())


def test_each_archive_has_its_mirror_and_files_are_kept(
    server: FileServer, tmp_path: Path,
) -> None:
    server.files = {"/main/pool/a_2+b~3_amd64.deb": b"a", "/security/pool/b_2+b~3_amd64.deb": b"b"}
    packages = store.Store(tmp_path)
    wanted = [locked("a"), locked("b", "security")]
    pair = source(f"{server.address}/main", f"{server.address}/security/")
    found = collect(wanted, packages, pair, "base")
    assert [(p.name, f.name, f.read_bytes()) for p, f in found] == [
        ("a", "a_2+b~3_amd64.deb", b"a"), ("b", "b_2+b~3_amd64.deb", b"b")]
    server.files = {}
    assert collect(wanted, packages, source(), "base") == found


def test_all_that_are_gone_are_named_with_every_cure(server: FileServer, tmp_path: Path) -> None:
    server.files = {"/pool/b_2+b~3_amd64.deb": b"b", "/pool/d_2+b~3_amd64.deb": b"D"}
    with pytest.raises(LLMError, match="cannot fetch 3 of 4 files") as raised:
        collect([locked(name) for name in "abcd"], store.Store(tmp_path), source(server.address),
                "base")
    assert all(f"Debian package {n} 1:2+b~3" in raised.value.why for n in "acd")
    assert "404" in raised.value.why and "SHA-256" in raised.value.why
    assert "package b" not in raised.value.why
    for cure in ("make lock IMAGE=base", "LLM_DEBIAN_MIRROR", "{date}", "LLM_ARCHIVE_DIR"):
        assert cure in raised.value.fix
    assert [path.name for _, path in store.everything(tmp_path)] == ["b_2+b~3_amd64.deb"]


def test_a_mirror_that_cannot_be_reached_ends_it_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(debian, "_own_mirrors", list)
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: pytest.fail("tried again"))
    with serving() as gone:
        address = gone.address
    with pytest.raises(LLMError, match="cannot fetch 26 of 26 files") as raised:
        collect([locked(name) for name in "abcdefghijklmnopqrstuvwxyz"], store.Store(tmp_path),
                source(address), "base")
    lines = raised.value.why.split("\n       ")
    assert lines[0] == f"{address[7:]}: Connection refused:" and lines[-1] == "and 21 more"
    assert len(lines) == 7 and "LLM_DEBIAN_MIRROR" in raised.value.fix


def test_a_snapshot_is_asked_after_todays_mirror(server: FileServer, tmp_path: Path) -> None:
    server.files = {"/now/pool/a_2+b~3_amd64.deb": b"a",
                    "/20261130T000000Z/pool/b_2+b~3_amd64.deb": b"b",
                    "/20261201T000000Z/pool/c_2+b~3_amd64.deb": b"c"}
    mirrors = source(*[f"{server.address}/{{date}}T000000Z/"] * 2, *[f"{server.address}/now"] * 2)
    found = collect([locked(name) for name in "abc"], store.Store(tmp_path), mirrors, "base")
    assert [file.read_bytes() for _, file in found] == [b"a", b"b", b"c"]
    asked = [path.split("/")[1] for path, _ in server.asked if "/c_" in path]
    assert asked == ["now", "20261130T000000Z", "20261201T000000Z"]


def test_a_mirror_that_does_not_answer_is_passed_over(server: FileServer, tmp_path: Path) -> None:
    server.files = {"/broken/pool/a_2+b~3_amd64.deb": None, "/good/pool/a_2+b~3_amd64.deb": b"a"}
    both = source(*[f"{server.address}/broken"] * 2, *[f"{server.address}/good"] * 2)
    assert collect([locked("a")], store.Store(tmp_path), both, "base")[0][1].read_bytes() == b"a"
    with pytest.raises(LLMError, match="cannot fetch Debian package a") as raised:
        collect([locked("a")], store.Store(tmp_path / "x"), source(f"{server.address}/broken"), "b")
    assert "network" in raised.value.fix


def test_no_mirror_is_an_error_only_where_something_is_missing(
    server: FileServer, tmp_path: Path,
) -> None:
    assert collect([], store.Store(tmp_path), source(), "base") == []
    with pytest.raises(LLMError, match="cannot fetch") as raised:
        collect([locked("a")], store.Store(tmp_path), source(), "base")
    assert "no Debian mirror is known" in raised.value.why


def test_mirrors_and_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "_own_mirrors", lambda: [("own/", "own-security/")])
    snapshots = "s/{date}/ t/{date}/"
    assert mirrors_of({}, snapshots, DAY) == [
        {"main": "own/", "security": "own-security/"},
        {"main": "s/20261130/", "security": "t/20261130/"},
        {"main": "s/20261201/", "security": "t/20261201/"}]
    assert mirrors_of({}, f"{snapshots} a b", "unknown") == [{"main": "a/", "security": "b/"}]
    assert mirrors_of({"LLM_DEBIAN_MIRROR": "x"}, "a b", DAY) == [{"main": "x/", "security": "x/"}]
    with pytest.raises(LLMError, match="3 Debian mirrors are no pairs"):
        mirrors_of({}, "a b c", DAY)


COLLECT = """\
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from _llm import fetch
from _llm.debian import Package
from _llm.images import store
from _llm.images.debian_files import Locked, Source, collect
names = ("a", "b")
wanted = [Locked(Package(n, "1", "amd64", "0" * 64, 1, f"pool/{n}.deb", "main"), "") for n in names]
collect(wanted, store.Store(Path(sys.argv[2])), Source(sys.argv[3], {}, fetch.Access()), "base")
"""


def test_ctrl_c_ends_a_download_at_once(server: FileServer, tmp_path: Path) -> None:
    server.files = {"/pool/a.deb": HANGS, "/pool/b.deb": HANGS}
    process = subprocess.Popen([sys.executable, "-c", COLLECT, str(BIN), str(tmp_path),
                                server.address], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 30
    while len(server.asked) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate(timeout=30)[1]
    assert process.returncode == -signal.SIGINT
    assert store.everything(tmp_path) == []
