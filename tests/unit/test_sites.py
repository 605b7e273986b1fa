"""Which profile is chosen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from _llm.errors import LLMError
from _llm.settings import load_settings
from _llm.sites import matches

REPOSITORY = Path(__file__).resolve().parents[2]
PROFILES = sorted((REPOSITORY / "sites").glob("*.ini"))


def write_hosts(home: Path, name: str, hosts: str) -> None:
    (home / "sites" / f"{name}.ini").write_text(f"[network]\nhosts = {hosts}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("pattern", "name", "expected"),
    [
        ("onode*", "onode10", True),
        ("ONODE*", "onode10", True),
        ("*.example.org", "a.example.org", True),
        ("a*b*c", "axbyc", True),
        ("a*b*c", "acb", False),
        ("a*a", "a", False),
        ("n*-gpu*", "n1-gpu2", True),
        ("a", "a", True),
        ("a", "ab", False),
        ("*", "anything", True),
    ],
)
def test_patterns(pattern: str, name: str, expected: bool) -> None:
    assert matches(pattern, name) is expected


def test_chosen_by_the_name_of_the_host(home: Path, env: dict[str, str]) -> None:
    write_hosts(home, "elsewhere", "no-such-host-*")
    assert load_settings(env, str(home)).site == "default"
    write_hosts(home, "mine", f"login* {os.uname().nodename[:3]}*")
    assert load_settings(env, str(home)).site == "mine"


def test_chosen_by_the_name_of_the_slurm_cluster(home: Path, env: dict[str, str]) -> None:
    write_hosts(home, "cluster", "bwuni")
    env["SLURM_CLUSTER_NAME"] = "bwuni"
    assert load_settings(env, str(home)).site == "cluster"


def test_option_beats_variable_beats_host(home: Path, env: dict[str, str]) -> None:
    for name in ("host", "variable", "option"):
        write_hosts(home, name, "*" if name == "host" else "")
    assert load_settings(env, str(home)).site == "host"
    env["LLM_SITE"] = "variable"
    assert load_settings(env, str(home)).site == "variable"
    assert load_settings(env, str(home), site="option").site == "option"


def test_a_profile_outside_the_checkout(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "my site.ini"
    path.write_text("[paths]\ndata = /d\n", encoding="utf-8")
    settings = load_settings(env, str(home), site=str(path))
    assert (settings.site, settings.get("paths", "data")) == ("my site", "/d")


def test_the_sites_own_profiles_come_before_the_shipped_ones(
    home: Path, env: dict[str, str],
) -> None:
    (home / "sites/both.ini").write_text("[gpus]\nmodel = shipped\n")
    own = home / "own"
    own.mkdir()
    (home / "sites/local").symlink_to("../own")
    host = os.uname().nodename
    (own / "both.ini").write_text(f"[gpus]\nmodel = own\n[network]\nhosts = {host}\n")
    (own / "default.ini").write_text("[gpus]\nper_node = 4\n")
    chosen = load_settings(env, str(home))
    assert (chosen.site, chosen.get("gpus", "model")) == ("both", "own")
    base = load_settings(env, str(home), "default")
    assert base.get("gpus", "per_node") == "4" and base.get("container", "image") == "llm"
    with pytest.raises(LLMError) as raised:
        load_settings(env, str(home), "nothing-like-it")
    assert str(own) not in raised.value.why and f"{home}/sites/local/" in raised.value.why


def test_two_profiles_for_one_host_are_refused(home: Path, env: dict[str, str]) -> None:
    write_hosts(home, "a", "*")
    write_hosts(home, "b", "*")
    with pytest.raises(LLMError, match="2 site profiles match this host: a, b"):
        load_settings(env, str(home))


def test_an_unknown_profile_names_the_nearest(home: Path, env: dict[str, str]) -> None:
    write_hosts(home, "octopus", "")
    with pytest.raises(LLMError) as caught:
        load_settings(env, str(home), site="octopuss")
    assert "there is no site profile 'octopuss' (--site)" in str(caught.value)
    assert "did you mean octopus?" in str(caught.value)


def test_another_sites_broken_profile_is_ignored(home: Path, env: dict[str, str]) -> None:
    (home / "sites" / "broken.ini").write_bytes(b"\xff[[")
    assert load_settings(env, str(home)).site == "default"


@pytest.mark.parametrize("profile", PROFILES, ids=lambda path: path.stem)
def test_every_shipped_profile_is_valid(env: dict[str, str], profile: Path) -> None:
    settings = load_settings({**env, "USER": "me"}, str(REPOSITORY), profile.stem)
    assert settings.site == profile.stem


def test_the_partition_of_jobs_with_gpus_by_site(env: dict[str, str]) -> None:
    expected = {"v100": "gpu", "rtx2080ti": "research", "bwunicluster": "gpu_4", "box": ""}
    for site, partition in expected.items():
        settings = load_settings({**env, "USER": "me"}, str(REPOSITORY), site)
        assert settings.get("slurm", "gpu_partition") == partition
