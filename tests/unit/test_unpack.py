"""When an image has to be unpacked, and that two starts at once unpack it once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from _llm import unpack
from _llm.apptainer import Apptainer
from _llm.errors import LLMError
from _llm.lookup import Image

REPOSITORY = Path(__file__).resolve().parents[2]
# `apptainer -q build --userns --sandbox FOLDER IMAGE`: counts how often it is started.
BUILDER = """#!/bin/sh
for last; do folder=$before; before=$last; done
echo x >> "$(dirname "$0")/started"
mkdir "$folder" && sleep 0.3 && touch "$folder/complete"
"""
TWO_STARTS = """
import sys
sys.path.insert(0, sys.argv[1])
from _llm import unpack
from _llm.apptainer import Apptainer
from _llm.lookup import Image
unpack.FUSE_DEVICE = "/no/fuse"
image, apptainer = Image(sys.argv[2]), Apptainer(sys.argv[3], ("--userns",))
print(unpack.runnable_path(image, apptainer, sys.argv[4], []))
"""


@pytest.fixture
def builder(tmp_path: Path) -> Apptainer:
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "apptainer"
    program.write_text(BUILDER, encoding="utf-8")
    program.chmod(0o755)
    return Apptainer(str(program), ("--userns",))


def test_mountable_by_fuse_or_by_privilege(
    builder: Apptainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FUSE_DEVICE", "/dev/null")
    assert unpack.can_use_fuse()
    monkeypatch.setattr(unpack, "FUSE_DEVICE", "/no/fuse")
    assert not unpack.can_use_fuse()
    assert not unpack.is_privileged(builder)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert unpack.is_privileged(Apptainer(builder.path, ()))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make such an installation")
def test_a_setuid_installation(builder: Apptainer, tmp_path: Path) -> None:
    starter = tmp_path / "libexec/apptainer/bin/starter-suid"
    starter.parent.mkdir(parents=True)
    starter.touch(mode=0o755)
    assert not unpack.is_setuid(builder.path)
    starter.chmod(0o4755)
    assert unpack.is_setuid(builder.path)


def test_starts_at_the_same_time_share_one_copy(
    builder: Apptainer, images: Path, tmp_path: Path
) -> None:
    image = str(images / "llm-cpu-0123456789ab.sif")
    script = [sys.executable, "-I", "-c", TWO_STARTS, str(REPOSITORY / "bin")]
    command = [*script, image, builder.path, str(tmp_path / "local")]
    starts = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    paths = {start.communicate()[0].strip() for start in starts}
    assert len(paths) == 1
    assert Path(paths.pop(), "complete").exists()
    assert (tmp_path / "bin" / "started").read_text() == "x\n"


def test_an_interrupted_unpacking_is_done_again(
    builder: Apptainer, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FUSE_DEVICE", "/no/fuse")
    image = Image(str(images / "llm-cpu-0123456789ab.sif"))
    notices: list[str] = []
    copy = Path(unpack.runnable_path(image, builder, str(tmp_path), notices))
    assert "was unpacked once for this node" in notices[0]
    copy.rename(f"{copy}.unpacking")  # as a killed one leaves it
    assert unpack.runnable_path(image, builder, str(tmp_path), notices) == str(copy)
    assert (copy / "complete").exists()


def test_another_file_is_unpacked_anew(
    builder: Apptainer, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FUSE_DEVICE", "/no/fuse")
    path = images / ("x\u20ac" * 60 + ".sif")
    path.write_bytes(b"good")
    times = os.stat(path).st_atime_ns, os.stat(path).st_mtime_ns
    copy = unpack.runnable_path(Image(str(path)), builder, str(tmp_path), [])
    (tmp_path / "other").write_bytes(b"evil")
    os.utime(tmp_path / "other", ns=times)  # of the same size and time
    (tmp_path / "other").replace(path)
    assert unpack.runnable_path(Image(str(path)), builder, str(tmp_path), []) != copy


def test_an_image_that_is_replaced_while_it_is_unpacked(
    builder: Apptainer, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FUSE_DEVICE", "/no/fuse")
    program = Path(builder.path)
    program.write_text(BUILDER + 'cp "$last" "$last.new" && mv "$last.new" "$last"\n')
    image = Image(str(images / "llm-cpu-0123456789ab.sif"))
    with pytest.raises(LLMError, match="was replaced or changed while it was unpacked"):
        unpack.runnable_path(image, builder, str(tmp_path), [])
    assert [path.suffix for path in (tmp_path / "images").glob("*.sif-*")] == [".lock"]


def test_refused_without_room(
    builder: Apptainer, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unpack, "FUSE_DEVICE", "/no/fuse")
    monkeypatch.setattr(unpack, "SIZE_FACTOR", 2**60)
    image = Image(str(images / "llm-cpu-0123456789ab.sif"))
    with pytest.raises(LLMError) as caught:
        unpack.runnable_path(image, builder, str(tmp_path), [])
    assert "GiB are free" in caught.value.why
    assert "an administrator" in caught.value.fix
    assert not (tmp_path / "bin" / "started").exists()
