"""Which variant `make image` builds, and where it stops to ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm import image
from _llm.errors import LLMError
from _llm.settings import Settings, load_settings

CONTAINERS = Path(__file__).resolve().parents[2] / "containers"


def variants(monkeypatch: pytest.MonkeyPatch, settings: Settings, driver: int, asked: str = "",
             name: str = "llm") -> list[str]:
    monkeypatch.setattr(image, "nvidia_driver", lambda: driver)
    return image.wanted_variants(CONTAINERS, name, asked, settings)


def settings_of(home: Path, env: dict[str, str], profile: str) -> Settings:
    (home / "sites/mine.ini").write_text(profile)
    return load_settings(env, str(home), site="mine")


@pytest.mark.parametrize("driver, expected", [(0, "cpu"), (470, "cpu"), (525, "cuda12"),
                                              (580, "cuda13"), (600, "cuda13")])
def test_the_driver_decides(
    monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str], driver: int, expected: str,
) -> None:
    settings = load_settings(env, str(home))
    assert variants(monkeypatch, settings, driver) == [expected]


def test_asked_for_then_the_profile(
    monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str],
) -> None:
    settings = settings_of(home, env, "[container]\nvariants = cpu cuda13\n")
    assert variants(monkeypatch, settings, 0) == ["cpu", "cuda13"]
    assert variants(monkeypatch, settings, 0, asked="cuda12,cpu") == ["cuda12", "cpu"]
    assert variants(monkeypatch, settings, 0, name="base") == [""]


def test_a_login_node_of_a_site_with_gpus_asks(
    monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str],
) -> None:
    settings = settings_of(home, env, "[gpus]\nmodel = H200\nper_node = 4\n")
    with pytest.raises(LLMError, match="which variant") as raised:
        variants(monkeypatch, settings, 0)
    assert "H200" in raised.value.why and "VARIANT=cuda13" in raised.value.fix
    assert variants(monkeypatch, settings, 580) == ["cuda13"]
    no_gpus = settings_of(home, env, "[gpus]\nper_node = 0\n")
    assert variants(monkeypatch, no_gpus, 0) == ["cpu"]


def test_the_profile_may_name_the_mirror(
    monkeypatch: pytest.MonkeyPatch, home: Path, env: dict[str, str],
) -> None:
    monkeypatch.setattr(image.setup, "ensure_apptainer", lambda: {})
    monkeypatch.setattr(image.setup, "ensure_fakeroot", lambda: None)
    profile = "[container]\ndebian_mirror = https://m/debian https://m/debian-security\n"
    request = image.make_request(settings_of(home, env, profile), "", "", "cpu")
    assert request.mirror == "https://m/debian https://m/debian-security"
    env["LLM_DEBIAN_MIRROR"] = "https://other/debian"
    request = image.make_request(settings_of(home, env, profile), "", "", "cpu")
    assert request.mirror == "https://other/debian"
