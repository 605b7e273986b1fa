"""The working directory, the folders llm-run makes, and what a program gets to see."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _llm import visible
from _llm.binds import Bind, Binds
from _llm.errors import LLMError
from _llm.settings import load_settings


def test_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path / "real")
    assert visible.working_directory({}, []) == str(tmp_path / "real")
    by_link = {"PWD": str(tmp_path / "link")}
    assert visible.working_directory(by_link, []) == str(tmp_path / "link")
    assert visible.working_directory({"PWD": "/stale"}, []) == str(tmp_path / "real")


def test_working_directory_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    with pytest.raises(LLMError, match="does not exist any more"):
        visible.working_directory({}, [])


def test_working_directory_of_the_image_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/etc")
    with pytest.raises(LLMError, match="cannot be shown"):
        visible.working_directory({}, [])
    assert visible.working_directory({}, [Bind("/etc", "/etc")]) == "/etc"


def test_cache_folder_that_cannot_be_made(home: Path, env: dict[str, str]) -> None:
    Path(env["HOME"], "file").touch()
    env["LLM_CACHE_DIR"] = env["HOME"] + "/file/cache"
    with pytest.raises(LLMError) as caught:
        visible.cache_folder(load_settings(env, str(home)), env["HOME"])
    assert "environment variable LLM_CACHE_DIR" in caught.value.why
    assert "export LLM_CACHE_DIR" in caught.value.fix


def test_a_missing_home_is_not_made(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    env["HOME"] = str(tmp_path / "missing")
    settings = load_settings(env, str(home))
    with pytest.raises(LLMError, match="does not exist on this node"):
        visible.cache_folder(settings, env["HOME"])
    assert not (tmp_path / "missing").exists()
    with pytest.raises(LLMError, match="cannot be shown"):
        visible.home_folder({"HOME": "/a:b"})


@pytest.mark.parametrize("folder", ["/opt", "/usr/sbin", "/opt/llama.cpp", "/bin"])
def test_a_home_that_the_image_has_itself(folder: str) -> None:
    with pytest.raises(LLMError, match="cannot be shown"):
        visible.home_folder({"HOME": folder})
    assert visible.home_folder({"HOME": "/opt/me"}) == "/opt/me"
    assert visible.home_folder({"HOME": "/"}) == "/"


# Not /opt/llama.cpp, which may be a link to elsewhere on this machine.
@pytest.mark.parametrize("folder", ["/opt", "/usr/sbin", "/bin"])
def test_a_home_that_leads_to_the_images_own(tmp_path: Path, folder: str) -> None:
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(LLMError, match="cannot be shown"):
        visible.home_folder({"HOME": str(tmp_path / "link")})


def test_local_folder_is_the_users_alone(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    env["LLM_LOCAL_DIR"] = str(tmp_path)
    settings = load_settings(env, str(home))
    folder = Path(visible.local_folder(settings))
    assert folder.parent == tmp_path
    assert folder.stat().st_mode & 0o777 == 0o700
    assert visible.local_folder(settings) == str(folder)
    folder.chmod(0o770)
    with pytest.raises(LLMError, match="cannot be trusted"):
        visible.local_folder(settings)
    folder.rmdir()
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LLMError, match="cannot be trusted"):
        visible.local_folder(settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_local_folder_of_somebody_else(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    env["LLM_LOCAL_DIR"] = str(tmp_path)
    folder = tmp_path / "llm-0"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, 12345)
    with pytest.raises(LLMError, match="cannot be trusted"):
        visible.local_folder(load_settings(env, str(home)))


def shown(home: Path, env: dict[str, str], cwd: Path) -> list[list[str]]:
    settings = load_settings(env, str(home))
    binds = visible.show_folders(
        settings, env, str(home), env["HOME"], str(cwd), env["HOME"] + "/.cache/llm", "/tmp/llm-0"
    )
    return [bind.arguments() for bind in binds.binds]


def test_folders_of_the_site(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    for name in ("data", "models", "scratch", "work"):
        (tmp_path / name).mkdir()
    env["LLM_DATA_DIR"] = str(tmp_path / "data")
    env["LLM_MODELS_DIR"] = f"{tmp_path}/models:{tmp_path}/no models"
    env["SCRATCH"] = str(tmp_path / "scratch")
    env["LLM_RAMDISK_DIR"] = "/no/such/ramdisk"
    env["LLM_BINDS"] = f"/no/such/folder,{tmp_path}/data:/mnt/data:ro"
    arguments = shown(home, env, tmp_path / "work")
    for name in ("data", "scratch", "work"):
        assert ["--bind", f"{tmp_path}/{name}"] in arguments
    assert ["--bind", f"{tmp_path}/models:{tmp_path}/models:ro"] in arguments
    assert arguments[-1] == ["--bind", f"{tmp_path}/data:/mnt/data:ro"]
    assert ["--bind", str(home)] in arguments
    assert not [argument for argument in arguments if "no/such" in argument[1]]


def test_shared_models_hide_nothing_and_stay_read_only(
    home: Path, env: dict[str, str], tmp_path: Path
) -> None:
    work = tmp_path / "data" / "models" / "work"
    work.mkdir(parents=True)
    env["LLM_DATA_DIR"] = str(tmp_path / "data")
    env["LLM_MODELS_DIR"] = models = str(tmp_path / "data" / "models")
    env["HF_HOME"] = f"{models}/hf"
    arguments = [argument for _, argument in shown(home, env, work)]
    order = [f"{tmp_path}/data", f"{models}:{models}:ro", str(work), f"{models}/hf"]
    assert [argument for argument in arguments if f"{tmp_path}/data" in argument] == order


def test_caches_of_the_user_are_made(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    env["HF_HOME"] = str(tmp_path / "new" / "hf")
    env["HF_TOKEN_PATH"] = str(tmp_path / "token")
    env["TORCH_HOME"] = env["HOME"] + "/torch"
    env["MPLCONFIGDIR"] = "relative"
    assert ["--bind", f"{tmp_path}/new/hf"] in shown(home, env, tmp_path / "elsewhere")
    assert not (tmp_path / "token").exists() and not Path(env["TORCH_HOME"]).exists()
    (tmp_path / "file").touch()
    env["TORCH_HOME"] = str(tmp_path / "file" / "torch")
    with pytest.raises(LLMError, match="file/torch cannot be made") as caught:
        shown(home, env, tmp_path)
    assert "TORCH_HOME" in caught.value.why and "export TORCH_HOME=" in caught.value.fix


def test_an_installation_in_a_folder_of_the_image_shows_its_recipes_only(
    env: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (home / "recipes").mkdir()
    monkeypatch.setattr(visible, "belongs_to_image", lambda path: path == str(home))
    assert ["--bind", str(home)] not in shown(home, env, tmp_path)
    assert ["--bind", f"{home}/recipes"] in shown(home, env, Path(env["HOME"]))


def test_an_installed_version_is_shown_by_all_its_names(
    home: Path, env: dict[str, str], tmp_path: Path,
) -> None:
    build = tmp_path / "llm/.versions/0.1.0-abcdefgh"
    build.mkdir(parents=True)
    (tmp_path / "llm/0.1.0").symlink_to(".versions/0.1.0-abcdefgh")
    (tmp_path / "apps").symlink_to("llm")
    names = [str(build), f"{tmp_path}/apps/0.1.0", f"{tmp_path}/llm/0.1.0"]
    env = {**env, "LLM_HOME": names[1]}
    assert visible.names_of_home(str(build), env) == names
    (tmp_path / "llm/0.1.0").unlink()  # another build has taken its name
    (tmp_path / "llm/0.1.0").symlink_to(".versions/0.1.0-ijklmnop")
    assert visible.names_of_home(str(build), env) == names[:1]
    assert visible.names_of_home(str(home), {}) == [str(home)]


def test_certificates_are_shown_or_dropped(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.touch()
    env = {
        "SSL_CERT_FILE": str(bundle),
        "PIP_CERT": str(bundle),
        "CURL_CA_BUNDLE": "/missing.pem",
        "SSL_CERT_DIR": "/etc",
        "TMPDIR": "/missing",
    }
    binds = Binds()
    assert set(visible.show_files(binds, env)) == {"CURL_CA_BUNDLE", "SSL_CERT_DIR", "TMPDIR"}
    targets = [bind.target for bind in binds.binds if bind.target != visible.PIP_CONFIGURATION]
    assert targets == [str(bundle)]
    assert all(bind.read_only for bind in binds.binds)


def test_recipes_below_a_path_with_a_colon(tmp_path: Path) -> None:
    home = tmp_path / "a:b"
    (home / "recipes").mkdir(parents=True)
    binds = Binds()
    assert visible.recipes_path(binds, str(home)) == visible.RECIPES_IN_IMAGE
    assert [bind.source for bind in binds.binds] == [str(home / "recipes")]
