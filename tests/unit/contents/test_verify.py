"""make verify-image: what the two builds are given, what is said of them, what is left."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _llm.contents import verify
from _llm.errors import LLMError

# In place of `image build`: says what it was given, and makes an image that holds it.
BUILDER = """\
mkdir -p "$LLM_IMAGE_DIR"
printf '%s\\n' "$@" > "$LLM_IMAGE_DIR/arguments"
printf '%s %s %s' "$(umask)" "$TZ" "$(nproc)" > "$LLM_IMAGE_DIR/conditions"
echo "{content}" > "$LLM_IMAGE_DIR/{name}-0123456789ab.sif"
ln -s "{name}-0123456789ab.sif" "$LLM_IMAGE_DIR/{name}.sif"
exit {status}
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout whose image `tiny` is built by a script."""
    (tmp_path / "home/containers/tiny").mkdir(parents=True)
    (tmp_path / "home/containers/tiny/image.def").write_text("%post\n")
    (tmp_path / "home/bin/_llm").mkdir(parents=True)
    (tmp_path / "home/sites").symlink_to(verify.HOME / "sites")
    (tmp_path / "work").mkdir()
    for name, value in (("LLM_BUILD_DIR", "work"), ("LLM_CACHE_DIR", "cache"),
                        ("LLM_IMAGE_DIR", "images")):
        monkeypatch.setenv(name, str(tmp_path / value))
    monkeypatch.setenv("LLM_SITE", "default")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)  # nproc heeds it
    monkeypatch.setattr(verify, "HOME", tmp_path / "home")
    monkeypatch.setattr(verify, "end_like_ctrl_c", lambda: None)
    monkeypatch.setitem(verify.NEED_GIB, "", 0)
    monkeypatch.setattr(verify, "COMPILING_GIB", 0)
    return tmp_path / "home"


def builder(home: Path, content: str, status: int = 0, name: str = "tiny") -> None:
    text = BUILDER.format(content=content, status=status, name=name)
    (home / "bin/_llm/tool.sh").write_text(text)


def test_the_same_bytes_and_nothing_is_left(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder(home, "always the same")
    seen = []
    compare = verify.compare

    def look(first: verify.Build, second: verify.Build) -> bool:
        for build in (first, second):
            seen.append([(build.folder / "images" / name).read_text()
                         for name in ("arguments", "conditions")])
        return compare(first, second)

    monkeypatch.setattr(verify, "compare", look)
    assert verify.main(["--image", "tiny", "--base", "docker://it's"]) == 0
    assert "tiny-0123456789ab.sif: the same 16 bytes twice" in capsys.readouterr().out
    (arguments, usual), (again, other) = seen
    assert arguments == again and "--base\ndocker://it's\n" in arguments
    assert other == "0077 Pacific/Kiritimati 1" and usual.split()[0] == f"{current_umask():04o}"
    assert list((tmp_path / "work").iterdir()) == []
    assert not (tmp_path / "images").exists()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_difference_is_explained_and_both_images_are_kept(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    builder(home, "umask $(umask)")
    monkeypatch.setattr(verify, "differences", lambda one, other: ["/x: content"] * 25)
    monkeypatch.setattr(verify, "object_differences", lambda one, other: [])
    assert verify.main(["--image", "tiny"]) == 1
    said = capsys.readouterr().out
    assert "tiny-0123456789ab.sif: the two builds DIFFER" in said
    assert said.count("/x: content") == 20 and "… and 5 more files" in said
    kept, = (tmp_path / "images").glob("differing-*")
    assert str(kept) in said
    assert [(kept / side / "tiny-0123456789ab.sif").read_text() for side in "ab"] == [
        f"umask {current_umask():04o}\n", "umask 0077\n"]
    assert list((tmp_path / "work").iterdir()) == []


def test_other_inputs_in_the_second_build_are_said(
    home: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    builder(home, "x", name="tiny-$(umask)")
    assert verify.main(["--image", "tiny"]) == 1
    assert "don't even have the same inputs" in capsys.readouterr().out


def test_a_build_that_fails_is_an_error(home: Path, tmp_path: Path) -> None:
    builder(home, "x", status=7)
    with pytest.raises(LLMError, match="the first build failed"):
        verify.main(["--image", "tiny"])
    assert list((tmp_path / "work").iterdir()) == []
