"""pip's configuration reaches a build as pip and uv understand it."""

from __future__ import annotations

from pathlib import Path

from _llm.images.pip_settings import (
    as_shell,
    local_folders,
    package_environment,
    read_pip_settings,
)


def settings_of(home: Path, text: str, **env: str):  # type: ignore[no-untyped-def]
    folder = home / ".config/pip"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pip.conf").write_text(text)
    return read_pip_settings({"XDG_CONFIG_HOME": str(home / ".config"), **env}, home, ())


def test_reads_files_and_variables(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("x")
    found = settings_of(
        tmp_path, f"[global]\nindex-url = https://example.invalid/simple\ncert = {bundle}\n"
        "trusted-host = example.invalid\n", PIP_EXTRA_INDEX_URL="https://two.invalid/simple")
    assert found.index == "https://example.invalid/simple"
    assert found.extra_indexes == ("https://two.invalid/simple",)
    assert found.ca_bundle == str(bundle)
    variables = package_environment(found, "/mnt", {"https_proxy": "http://p.invalid:3128"})
    assert variables["UV_DEFAULT_INDEX"] == found.index
    assert variables["UV_INDEX"] == "https://two.invalid/simple"
    assert variables["SSL_CERT_FILE"] == "/mnt/ca.pem"
    assert variables["UV_INSECURE_HOST"] == "example.invalid"
    assert variables["https_proxy"] == "http://p.invalid:3128"


def test_folders_are_renamed_to_where_the_build_sees_them(tmp_path: Path) -> None:
    wheels, index = tmp_path / "wheels", tmp_path / "mirror" / "simple"
    wheels.mkdir()
    index.mkdir(parents=True)
    found = settings_of(tmp_path, f"[global]\nfind-links = {wheels}\n    /gone\n"
                        f"extra-index-url = file://{index} file:///gone/simple\n")
    assert local_folders(found) == [str(wheels), str(tmp_path / "mirror")]
    variables = package_environment(found, "/mnt", {})
    assert variables["UV_FIND_LINKS"] == "/mnt/wheels/0"
    assert variables["UV_INDEX"] == "file:///mnt/wheels/1/simple"
    assert package_environment(found, "", {})["PIP_FIND_LINKS"] == str(wheels)


def test_malformed_configuration_is_ignored_as_nothing(tmp_path: Path) -> None:
    found = settings_of(tmp_path, "no section\n\0")
    assert found.index == "" and found.find_links == ()
    assert package_environment(found, "/mnt", {}) == {}


def test_shell_text_survives_quotes() -> None:
    assert as_shell({"A": "it's $HOME; `x`"}) == "export A='it'\\''s $HOME; `x`'\n"


def test_a_mirror_in_a_folder_and_no_index(tmp_path: Path) -> None:
    index = tmp_path / "mirror" / "simple"
    index.mkdir(parents=True)
    found = settings_of(tmp_path, f"[global]\nindex-url = file://{index}\nno-index = true\n")
    assert local_folders(found) == [str(tmp_path / "mirror")]
    variables = package_environment(found, "/mnt", {})
    assert variables["UV_DEFAULT_INDEX"] == "file:///mnt/wheels/0/simple"
    assert found.no_index and variables["PIP_NO_INDEX"] == "1"
    without = settings_of(tmp_path, "[global]\n")
    assert not without.no_index and "PIP_NO_INDEX" not in package_environment(without, "", {})
