"""Which variant `make image` builds, and where it stops to ask."""

from __future__ import annotations

import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from _llm import image
from _llm.errors import LLMError
from _llm.gpus import Gpus
from _llm.settings import Settings, load_settings

NO_GPU = Gpus()
H200 = Gpus("nvidia", "580.65.06", ("NVIDIA H200",))
CONTAINERS = Path(__file__).resolve().parents[2] / "containers"


def variants(monkeypatch: pytest.MonkeyPatch, settings: Settings, gpus: Gpus, asked: str = "",
             name: str = "llm") -> list[str]:
    monkeypatch.setattr(image, "find_gpus", lambda env: gpus)
    return image.wanted_variants(CONTAINERS, name, asked, settings)


def settings_of(home: Path, env: dict[str, str], profile: str) -> Settings:
    (home / "sites/mine.ini").write_text(profile)
    return load_settings(env, str(home), site="mine")


@pytest.mark.parametrize("gpus, expected", [
    (NO_GPU, "cpu"), (Gpus("amd"), "cpu"), (Gpus("nvidia", "470.82.01", ("Tesla T4",)), "cpu"),
    (Gpus("nvidia", "525.60.13", ("NVIDIA H100",)), "cuda12"), (H200, "cuda13"),
    (Gpus("nvidia", "580.65.06", ("Tesla V100-SXM2-32GB",)), "cuda12"),
    (Gpus("nvidia", "580.65.06", ("NVIDIA H200",), hidden=True), "cpu"),
])
def test_the_gpu_decides_as_it_does_for_llm_run(
    monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str], gpus: Gpus, expected: str,
) -> None:
    settings = load_settings(env, str(home))
    assert variants(monkeypatch, settings, gpus) == [expected]


def test_asked_for_then_the_profile(
    monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str],
) -> None:
    settings = settings_of(home, env, "[container]\nvariants = cpu cuda13\n")
    assert variants(monkeypatch, settings, NO_GPU) == ["cpu", "cuda13"]
    assert variants(monkeypatch, settings, NO_GPU, asked="cuda12,cpu") == ["cuda12", "cpu"]
    assert variants(monkeypatch, settings, NO_GPU, name="base") == [""]


def test_a_login_node_of_a_site_with_gpus_asks(
    monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str],
) -> None:
    settings = settings_of(home, env, "[gpus]\nmodel = H200\nper_node = 4\n")
    with pytest.raises(LLMError, match="which variant") as raised:
        variants(monkeypatch, settings, NO_GPU)
    assert "H200" in raised.value.why and "VARIANT=cuda13" in raised.value.fix
    assert variants(monkeypatch, settings, H200) == ["cuda13"]
    no_gpus = settings_of(home, env, "[gpus]\nper_node = 0\n")
    assert variants(monkeypatch, no_gpus, NO_GPU) == ["cpu"]


def test_the_profile_may_name_the_mirror(
    monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str],
) -> None:
    monkeypatch.setattr(image.setup, "ensure_apptainer", lambda: {})
    monkeypatch.setattr(image.setup, "ensure_fakeroot", lambda: None)
    profile = "[container]\ndebian_mirror = https://m/debian https://m/debian-security\n"
    request = image.make_request(settings_of(home, env, profile), "", "", False)
    assert request.mirror == "https://m/debian https://m/debian-security"
    env["LLM_DEBIAN_MIRROR"] = "https://other/debian"
    request = image.make_request(settings_of(home, env, profile), "", "", False)
    assert request.mirror == "https://other/debian"


def test_the_profile_may_name_archives(
    monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str], tmp_path: Path,
) -> None:
    monkeypatch.setattr(image.setup, "ensure_apptainer", lambda: {})
    monkeypatch.setattr(image.setup, "ensure_fakeroot", lambda: None)
    profile = f"[container]\narchive = {tmp_path}/a b\n    {tmp_path}/c\n"
    request = image.make_request(settings_of(home, env, profile), "", "", False)
    assert request.archives == (f"{tmp_path}/a b", f"{tmp_path}/c")
    env["LLM_ARCHIVE_DIR"] = str(tmp_path)
    assert image.make_request(settings_of(home, env, profile), "", "", False).archives == (
        str(tmp_path),)


def test_fakeroot_is_needed_only_for_an_image_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:
    def missing() -> str:
        raise LLMError("fakeroot is missing")

    def build(wanted: object, request: image.builder.Request) -> str:
        return f"built with {request.fakeroot}"

    target = tmp_path / "x.sif"
    monkeypatch.setattr(image, "end_like_ctrl_c", lambda: None)
    monkeypatch.setattr(image.setup, "ensure_apptainer", lambda: "/apptainer")
    monkeypatch.setattr(image.setup, "find_fakeroot", lambda: "")
    monkeypatch.setattr(image.setup, "ensure_fakeroot", missing)
    monkeypatch.setattr(image.builder, "target_of", lambda wanted, request: target)
    monkeypatch.setattr(image.builder, "build", build)
    arguments = ["build", "--image", "llm", "--variant", "cpu"]
    with pytest.raises(LLMError, match="fakeroot is missing"):
        image.main(arguments)
    monkeypatch.setattr(image.setup, "ensure_fakeroot", lambda: "/fakeroot/bin")
    assert image.main(arguments) == 0
    assert capsys.readouterr().out == "built with /fakeroot/bin\n"
    monkeypatch.setattr(image.setup, "ensure_fakeroot", missing)
    target.touch()
    assert image.main(arguments) == 0


@pytest.fixture
def signals() -> Any:
    """Put the handlers back."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGTERM, signal.SIGHUP)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_a_lost_terminal_ends_a_build_except_under_nohup() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    image.end_like_ctrl_c()
    for number in (signal.SIGHUP, signal.SIGTERM):
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    image.end_like_ctrl_c()
    os.kill(os.getpid(), signal.SIGHUP)


def test_the_digest_of_a_file_from_elsewhere_and_in_an_installation(
    home: Path, tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("images", "unpacked/.singularity.d"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "images/mine.sif").write_bytes(b"hsqs, a bare squashfs")
    digest = "sha256:" + hashlib.sha256(b"hsqs, a bare squashfs").hexdigest()
    for name, value in {**env, "LLM_IMAGE_DIR": str(tmp_path / "images")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(image, "end_like_ctrl_c", lambda: None)
    for wanted in (str(tmp_path / "images/mine.sif"), "mine"):
        assert image.main(["digest", "--image", wanted]) == 0
        assert capsys.readouterr().out == digest + "\n"
    with pytest.raises(LLMError, match="unpacked folder"):
        image.main(["digest", "--image", str(tmp_path / "unpacked")])
    with pytest.raises(LLMError, match="there is no image 'mime'") as raised:
        image.main(["digest", "--image", "mime"])
    assert raised.value.fix == "did you mean mine?"
    monkeypatch.setattr(image, "HOME", home)
    with pytest.raises(LLMError, match="is no checkout"):
        image.main(["build", "--image", "mine"])
    assert image.main(["digest", "--image", "mine"]) == 0
