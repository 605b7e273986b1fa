"""make archive: everything in one folder, checked, with an index; nothing half done."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from file_server import FileServer, serving

from _llm import debian, fetch
from _llm.errors import LLMError
from _llm.images import archive, needs, store
from _llm.images.catalog import load_image


def deb(name: str) -> bytes:
    """A Debian package with nothing but a control file."""
    control = f"Package: {name}\nVersion: 1\nArchitecture: amd64\n".encode()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("./control")
        info.size = len(control)
        tar.addfile(info, io.BytesIO(control))
    data = buffer.getvalue()
    return (b"!<arch>\n" + f"{'control.tar':<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n"
            .encode() + data)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setattr(fetch.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(debian, "_own_mirrors", list)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "PIP_FIND_LINKS",
                 "LLM_DEBIAN_MIRROR"):
        monkeypatch.delenv(name, raising=False)
    with serving() as running:
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
        monkeypatch.setenv("PIP_INDEX_URL", f"{running.address}/simple")
        yield running


@pytest.fixture
def containers(server: FileServer, tmp_path: Path) -> Path:
    """Two images, `root` of Debian packages and `child` on it with a wheel and a compiled part."""
    folder = tmp_path / "containers"
    for name in ("root", "child/llama.cpp", "child/extra"):
        (folder / name).mkdir(parents=True)
    (folder / "root/image.def").write_text("%post\n")
    (folder / "child/image.def").write_text("%arguments\n    PARENT=root\n")
    (folder / "child/requirements-cpu.in").write_text("")
    for lock, name in (("root/apt.lock", "bash"), ("child/apt-cpu.lock", "gcc")):
        data = deb(name)
        server.files[f"/pool/{name}.deb"] = data
        digest = hashlib.sha256(data).hexdigest()
        (folder / lock).write_text(f"# locked: 2026-01-01\n{name} 1 amd64 {digest} {len(data)} "
                                   f"pool/{name}.deb main\n")
    for lock, name in (("child/requirements-cpu.lock", "numpy"), ("build.lock", "uv"),
                       ("child/llama.cpp/source.lock", "source"), ("child/extra/x.lock", "x")):
        data = name.encode()
        digest = hashlib.sha256(data).hexdigest()
        server.files[f"/files/{name}-1-py3-none-any.whl"] = data
        server.files[f"/simple/{name}/"] = (
            f'<a href="/files/{name}-1-py3-none-any.whl#sha256={digest}">x</a>').encode()
        (folder / lock).write_text(f"{name}==1 --hash=sha256:{digest}\n")
    return folder


def sandboxes(containers: Path) -> list[tuple[str, needs.Needs]]:
    return archive.sandboxes(load_image(containers, "child", "cpu"), containers)


def names(folder: Path) -> list[str]:
    return sorted(path.name for _, path in store.everything(folder))


EVERYTHING = ["bash.deb", "gcc.deb", "numpy-1-py3-none-any.whl", "source-1-py3-none-any.whl",
              "uv-1-py3-none-any.whl", "x-1-py3-none-any.whl"]


def test_every_input_of_an_image_and_its_parents(
    containers: Path, server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "inputs 'é'"
    archive.fill(store.Store(folder), sandboxes(containers), server.address)
    assert names(folder) == EVERYTHING
    subprocess.run(["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
    index = json.loads((folder / "index.json").read_text())
    purposes = {Path(entry["path"]).name: entry["for"] for entry in index["files"]}
    assert purposes["bash.deb"] == ["child-cpu", "child-cpu: llama.cpp (cpu)", "root"]
    assert purposes["numpy-1-py3-none-any.whl"] == ["child-cpu"]
    assert purposes["source-1-py3-none-any.whl"] == ["child-cpu: llama.cpp (cpu)"]
    assert archive.check(folder, sandboxes(containers)) == 0
    assert "0 damaged, 0 missing" in capsys.readouterr().out


def test_a_second_time_asks_nobody_and_keeps_what_others_need(
    containers: Path, server: FileServer, tmp_path: Path,
) -> None:
    wanted = sandboxes(containers)
    archive.fill(store.Store(tmp_path / "a"), wanted[:1], server.address)
    archive.fill(store.Store(tmp_path / "a"), wanted, server.address)
    server.files = {}
    before = (tmp_path / "a/index.json").read_bytes()
    archive.fill(store.Store(tmp_path / "a"), wanted[:1], "")
    assert (tmp_path / "a/index.json").read_bytes() == before
    # Another folder is filled from this one, without a network.
    archive.fill(store.Store(tmp_path / "b", (tmp_path / "a",)), wanted, "")
    assert names(tmp_path / "b") == EVERYTHING
    assert (tmp_path / "b/SHA256SUMS").read_bytes() == (tmp_path / "a/SHA256SUMS").read_bytes()


def test_a_check_names_what_is_damaged_and_what_is_missing(
    containers: Path, server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    archive.fill(store.Store(tmp_path / "a"), sandboxes(containers), server.address)
    files = {path.name: path for _, path in store.everything(tmp_path / "a")}
    for name in ("gcc.deb", "numpy-1-py3-none-any.whl"):
        files[name].unlink()
    files["bash.deb"].chmod(0o644)
    files["bash.deb"].write_bytes(b"flipped")
    capsys.readouterr()
    assert archive.check(tmp_path / "a", sandboxes(containers)) == 1
    said = capsys.readouterr().out
    assert f"damaged: {files['bash.deb']}" in said
    assert "missing: Debian package gcc 1 (for child-cpu: llama.cpp (cpu), child-cpu)" in said
    assert "missing: Python package numpy 1 (for child-cpu)" in said
    assert "1 damaged, 2 missing" in said
    assert files["bash.deb"].exists()  # a check changes nothing
    # The next fill repairs it.
    archive.fill(store.Store(tmp_path / "a"), sandboxes(containers), server.address)
    assert archive.check(tmp_path / "a", sandboxes(containers)) == 0
    with pytest.raises(LLMError, match="there is no archive"):
        archive.check(tmp_path / "none", [])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', '{"files": [{"sha256": 1}]}'])
def test_an_index_that_is_none_is_written_anew(
    containers: Path, server: FileServer, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    text: str,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a/index.json").write_text(text)
    archive.fill(store.Store(tmp_path / "a"), sandboxes(containers)[:1], server.address)
    assert "could not be read" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "a/index.json").read_text())["files"]) == 1


def test_an_image_that_is_not_locked(containers: Path) -> None:
    (containers / "child/apt-cpu.lock").unlink()
    with pytest.raises(LLMError, match="child-cpu can't be archived") as raised:
        sandboxes(containers)
    assert "make lock IMAGE=child VARIANT=cpu" in raised.value.fix
