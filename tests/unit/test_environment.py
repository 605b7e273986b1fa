"""What passes into the image and what does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from _llm import environment
from _llm.environment import (
    cache_variables,
    dropped_names,
    is_dropped,
    locale_variables,
    network_variables,
)
from _llm.lookup import Image
from _llm.options import parse
from _llm.settings import Settings, load_settings

DENIED = [
    *("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "PYTHONUSERBASE", "PYTHONNOUSERSITE"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "VIRTUAL_ENV", "CONDA_PREFIX", "CONDA_DEFAULT_ENV"),
    *("BASH_ENV", "BASH_FUNC_module%%", "APPTAINER_BIND", "APPTAINER_BINDPATH", "APPTAINER_NV"),
    *("APPTAINERENV_X", "SINGULARITY_BIND", "SINGULARITYENV_PATH", "RANK", "WORLD_SIZE"),
    *("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "PIP_TARGET"),
]
PASSING = [
    *("SLURM_JOB_ID", "SLURM_PROCID", "CUDA_VISIBLE_DEVICES", "NCCL_DEBUG", "OMP_NUM_THREADS"),
    *("HF_TOKEN", "HF_HUB_OFFLINE", "http_proxy", "HTTPS_PROXY", "no_proxy", "PIP_INDEX_URL"),
    *("LLM_DATA_DIR", "MY_OWN", "PYTHONUNBUFFERED", "PYTHONHASHSEED", "RANKING"),
    *("APPTAINER_CACHEDIR", "APPTAINER_TMPDIR"),
]


@pytest.mark.parametrize("name", DENIED)
def test_denied(name: str) -> None:
    assert is_dropped(name)


@pytest.mark.parametrize("name", PASSING)
def test_passing(name: str) -> None:
    assert not is_dropped(name)


def test_dropped_names_are_those_that_are_there() -> None:
    assert dropped_names({"RANK": "0", "PATH": "/bin"}) == ["RANK"]


def test_caches_are_ours_unless_the_user_has_chosen() -> None:
    ours = cache_variables({}, "/cache", "/local")
    assert ours["HF_HOME"] == "/cache/huggingface"
    assert ours["TRITON_CACHE_DIR"] == "/local/triton"
    chosen = cache_variables({"HF_HOME": "/mine", "TORCH_HOME": ""}, "/cache", "/local")
    assert "HF_HOME" not in chosen
    assert chosen["TORCH_HOME"] == "/cache/torch"


def test_a_login_to_the_model_hub_stays_valid(tmp_path: Path) -> None:
    token = tmp_path / ".cache" / "huggingface" / "token"
    assert "HF_TOKEN_PATH" not in cache_variables({}, "/cache", "/local", str(tmp_path))
    token.parent.mkdir(parents=True)
    token.touch()
    found = cache_variables({}, "/cache", "/local", str(tmp_path))
    assert found["HF_TOKEN_PATH"] == str(token)
    for name in ("HF_HOME", "HF_TOKEN", "HF_TOKEN_PATH"):
        chosen = cache_variables({name: "x"}, "/cache", "/local", str(tmp_path))
        assert "HF_TOKEN_PATH" not in chosen


def test_locales_that_images_do_not_have() -> None:
    assert locale_variables({"LANG": "C.UTF-8", "LC_ALL": "C"}) == {}
    assert locale_variables({"LANG": "de_DE.UTF-8", "LC_TIME": "C"}) == {
        "LANG": "C.UTF-8",
        "LC_TIME": "C.UTF-8",
    }


def test_torchrun_is_not_told_of_other_launchers() -> None:
    env = {"PMI_RANK": "1", "PMIX_RANK": "1", "OMPI_COMM_WORLD_RANK": "1", "SLURM_PROCID": "1"}
    assert dropped_names(env) == []
    assert set(dropped_names(env, torchrun=True)) == set(env) - {"SLURM_PROCID"}


def test_the_site_s_interface(home: Path, env: dict[str, str], tmp_path: Path) -> None:
    profile = tmp_path / "ours.ini"
    profile.write_text("[network]\ninterface = ib0\n")
    settings = load_settings(env, str(home), str(profile))
    notices: list[str] = []
    assert network_variables(settings, env, notices, str(tmp_path)) == {}
    assert "ib0 does not exist on this node" in notices[0]
    (tmp_path / "sys/class/net/ib0").mkdir(parents=True)
    env["NCCL_SOCKET_IFNAME"] = "eth1"
    found = network_variables(settings, env, notices, str(tmp_path))
    assert found == {"GLOO_SOCKET_IFNAME": "ib0", "LLM_NETWORK_INTERFACE": "ib0"}
    assert len(notices) == 1


def launched(
    settings: Settings, env: dict[str, str], image: Path, *words: str
) -> dict[str, object]:
    options = parse([*words, "x"])
    text = environment.launch_variable(options, settings, env, Image(str(image)))
    assert "\n" not in text and text.isascii()
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_how_a_program_was_started(home: Path, env: dict[str, str], images: Path) -> None:
    settings = load_settings(env, str(home))
    image = images / "llm-cpu-0123456789ab.sif"
    assert launched(settings, env, image, "--gpu", "--torchrun", "--nproc-per-node", "2") == {
        "image": "llm-cpu", "gpu": True, "torchrun": True, "nproc_per_node": 2, "nodes": 1,
        "tasks_per_node": None, "env": {},
    }  # fmt: skip
    env.update(SLURM_STEP_NUM_NODES="3", SLURM_STEP_TASKS_PER_NODE="2(x2),1")
    found = launched(settings, env, image)
    assert (found["nodes"], found["tasks_per_node"], found["gpu"]) == (3, 2, None)
    found = launched(settings, env, image, "--launch=local", "--no-gpu")
    assert (found["nodes"], found["tasks_per_node"], found["gpu"]) == (1, None, False)


def test_an_image_asked_for_by_its_path_is_named_by_it(
    home: Path, env: dict[str, str], images: Path
) -> None:
    path = str(images / "other.sif")
    settings = load_settings(env, str(home), None, {"container.image": path})
    assert launched(settings, env, images / "other.sif")["image"] == path


def test_values_of_env_are_written_as_json(home: Path, env: dict[str, str], images: Path) -> None:
    settings = load_settings(env, str(home))
    values = {
        "A": 'a "b"\\c\n\t\x01', "B": "ünï 日本 😀", "C": "\udcff", "D": "", "E": "a'b; $(x) /",
        "TOKENIZERS_PARALLELISM": "false",
    }  # fmt: skip
    secrets = {
        "HF_TOKEN": "x", "OPENAI_API_KEY": "x", "WANDB_APIKEY": "x", "MY_PASSWORD": "x",
        "OTHER": "hf_abc", "MY_HF_AUTH": "x", "HF_MYTOKEN": "x",
    }  # fmt: skip
    words = [w for n, v in {**values, **secrets}.items() for w in ("--env", f"{n}={v}")]
    assert launched(settings, env, images / "other.sif", *words)["env"] == values


def test_what_records_learn_of_the_image(home: Path, env: dict[str, str], images: Path) -> None:
    settings = load_settings(env, str(home))
    image = Image(str(images / "llm-cpu-0123456789ab.sif"))
    found = environment.record_variables(settings, str(home), image, "sha256:ab", "580.1")
    assert found["LLM_IMAGE_DIGEST"] == "sha256:ab"
    assert found["LLM_IMAGE_INPUTS"] == "0123456789ab"
    other = Image(str(images / "other.sif"))
    found = environment.record_variables(settings, str(home), other, "", "")
    assert (found["LLM_IMAGE_DIGEST"], found["LLM_IMAGE_INPUTS"]) == ("", "")
