"""Precedence, origins, and that a wrong profile or environment is refused as a whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.ini import read_profile
from _llm.settings import KEYS, load_settings

REPOSITORY = Path(__file__).resolve().parents[2]


def write_site(home: Path, text: str, name: str = "here") -> None:
    (home / "sites" / f"{name}.ini").write_text(text, encoding="utf-8")


def test_option_beats_environment_beats_profile_beats_default(
    home: Path, env: dict[str, str]
) -> None:
    write_site(home, "[container]\nimage = from-profile\n[slurm]\npartition = gpu\n")
    env["LLM_SITE"] = "here"

    def image(overrides: dict[str, str] | None = None) -> tuple[str, str]:
        settings = load_settings(env, str(home), overrides=overrides)
        return settings.get("container", "image"), settings.origin("container", "image")

    assert image() == ("from-profile", f"profile {home}/sites/here.ini, line 2")
    env["LLM_IMAGE"] = "from-environment"
    assert image() == ("from-environment", "environment variable LLM_IMAGE")
    assert image({"container.image": "from-option"}) == ("from-option", "option")
    del env["LLM_IMAGE"], env["LLM_SITE"]
    assert image()[0] == "llm"
    assert image()[1].startswith("default")


def test_default_profile_sets_every_key_that_exists() -> None:
    profile = read_profile(str(REPOSITORY / "sites" / "default.ini"))
    assert [f"{e.section}.{e.key}" for e in profile.entries] == list(KEYS)


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("sites/*.ini")), ids=lambda p: p.name)
def test_every_profile_of_the_repository_loads(path: Path, env: dict[str, str]) -> None:
    assert load_settings(env, str(REPOSITORY), site=path.stem).site == path.stem


def test_defaults_follow_the_cache_folder(home: Path, env: dict[str, str]) -> None:
    assert load_settings(env, str(home)).get("paths", "cache") == env["HOME"] + "/.cache/llm"
    env["XDG_CACHE_HOME"] = "/x"
    assert load_settings(env, str(home)).get("container", "image_dir") == "/x/llm/images"
    env["LLM_CACHE_DIR"] = "/scratch/me"
    assert load_settings(env, str(home)).get("container", "image_dir") == "/scratch/me/images"
    env["LLM_IMAGE_DIR"] = "/images"
    assert load_settings(env, str(home)).get("container", "image_dir") == "/images"


def test_lists(home: Path, env: dict[str, str]) -> None:
    write_site(
        home,
        "[paths]\nmodels =\n  /models/a b\n  ~/models\n[container]\nvariants = cpu, cuda13\n",
    )
    settings = load_settings(env, str(home), site="here")
    assert settings.items("paths", "models") == ["/models/a b", env["HOME"] + "/models"]
    assert settings.items("container", "variants") == ["cpu", "cuda13"]
    assert settings.items("paths", "binds") == []
    env["LLM_MODELS_DIR"] = "/one:/two"
    assert load_settings(env, str(home)).items("paths", "models") == ["/one", "/two"]


def test_all_faults_at_once_with_file_line_and_nearest_name(
    home: Path, env: dict[str, str]
) -> None:
    write_site(
        home,
        "[paths]\ncach = /x\ndata = relative\n[slurmm]\nx = 1\n[gpus]\nper_node = many\n"
        "partition = a\n[container]\nvariants = cuda14\n",
    )
    env["LLM_DATA_DIR"] = ""
    env["LLM_VARIANTS"] = "gpu"
    with pytest.raises(LLMError) as caught:
        load_settings(env, str(home), site="here")
    text = str(caught.value)
    file = f"{home}/sites/here.ini"
    assert "6 faults in the settings" in text
    assert f"{file}, line 2: unknown key 'cach' in [paths]; did you mean 'cache'?" in text
    assert f"{file}, line 3: paths.data: 'relative' is no absolute path" in text
    assert f"{file}, line 4: unknown section [slurmm]; did you mean [slurm]?" in text
    assert f"{file}, line 7: gpus.per_node: 'many' is no number" in text
    assert f"{file}, line 8: unknown key 'partition' in [gpus]; it belongs to [slurm]" in text
    assert "environment variable LLM_VARIANTS: container.variants: unknown variant 'gpu'" in text


def test_settings_are_read_only(home: Path, env: dict[str, str]) -> None:
    settings = load_settings(env, str(home))
    with pytest.raises(AttributeError):
        settings.site = "other"
    with pytest.raises(KeyError):
        settings.get("paths", "no such key")


def test_a_profile_that_is_not_text_is_refused(home: Path, env: dict[str, str]) -> None:
    (home / "sites" / "here.ini").write_bytes(b"[paths]\ndata = /\xff\n")
    with pytest.raises(LLMError, match="not UTF-8"):
        load_settings(env, str(home), site="here")
