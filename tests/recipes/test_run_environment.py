"""What around a run goes into its record, and what must not."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import RECIPES, recipe_environment

from llm_recipes import run_environment as around
from llm_recipes.record import start_record
from llm_recipes.run_secrets import (
    hidden_options,
    is_secret_name,
    plain,
    without_passwords,
    without_secrets,
)

SECRETS = {
    "HF_TOKEN": "hf_AAAA",
    "HF_HUB_TOKEN": "abc1",
    "LLAMA_API_KEY": "abc2",
    "TRANSFORMERS_AUTH_TOKEN": "abc3",
    "HF_ENDPOINT": "https://me:abc4@hub.example.org/models",
    "CUDA_PROXY": "http://user:ab/c5@proxy.example.org:3128",
    "TORCH_URL": "https://example.org/w.pth?token=abc6&x=1",
    "NCCL_SOMETHING": "ghp_abc7",
    "WANDB_API_KEY": "abc8",
    "https_proxy": "http://user:abc9@proxy.example.org:3128",
    "MY_HF_AUTH": "abc10",
    "HF_AUTH": "abc11",
    "HF_MYTOKEN": "abc12",
    "NCCL_KEY": "abc13",
    "HF_NOTE": "it is hf_" + 10 * "abc1",
}


def test_variables_that_change_a_run_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"NCCL_DEBUG": "INFO", "OMP_NUM_THREADS": "3", "TZ": "UTC", "LC_ALL": "C.UTF-8",
            "TOKENIZERS_PARALLELISM": "false", "HF_TOKEN_PATH": "/home/me/token",
            "PYTHONHASHSEED": "0", "GGML_RPC": "1"}  # fmt: skip
    for name, value in {**kept, **SECRETS, "EDITOR": "vi", "MYOMP_X": "1"}.items():
        monkeypatch.setenv(name, value)
    found = around.environment()
    assert list(found) == sorted(found)
    assert kept.items() <= found.items()
    assert not {"HF_TOKEN", "WANDB_API_KEY", "EDITOR", "MYOMP_X", "https_proxy"} & set(found)
    assert found["HF_ENDPOINT"] == "https://***@hub.example.org/models"
    assert found["CUDA_PROXY"] == "http://***@proxy.example.org:3128"
    assert found["TORCH_URL"] == "https://example.org/w.pth?token=***&x=1"
    assert "abc" not in json.dumps(found)


def test_no_secret_enters_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {"image": "llm-cpu", "env": {"WANDB_API_KEY": "abc", "A": "http://u:abc@h/"}}
    monkeypatch.setenv("LLM_LAUNCH", json.dumps(told))
    line = ["x.py", "--hub-token", "abc", "--api-key=abc", "--data", "https://u:abc@h/f?sig=abc"]
    monkeypatch.setattr(sys, "argv", line)
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    config = {"data": "https://u:abc@h/f", "hub_token": "abc", "more": ["ftp://abc:abc@h"]}
    text = json.dumps(start_record("a/b", config, "cpu"))
    assert "abc" not in text
    assert "ab/c5" not in text
    assert "hf_AAAA" not in text
    assert '"launch": {"image": "llm-cpu"' in text


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hfToken", "abc"),
        ("my_auth", "abc"),
        ("password", 123),
        ("credentials", {"user": ["abc"]}),
        ("nested", {"api-key": "abc"}),
        ("data", Path("https://me:abc@host/f")),
        ("data", "s3://b/f#access_token=abc"),
        ("prompt", ["say hf_" + 12 * "abc"]),
        ("header", "Authorization: Bearer abc12345abc67890abc"),
    ],
)
def test_options_that_hide_a_secret_are_named(name: str, value: object) -> None:
    record = start_record("a/b", {name: value, "seed": 1}, "cpu")
    assert record["config_hidden"] == [name]
    text = json.dumps(record["config"])
    assert "***" in text
    assert "abc" not in text
    assert "123" not in text


def test_names_that_only_sound_like_secrets_are_in_the_record() -> None:
    config = {"output": "hf_out", "model": "sk-learn-pipeline-of-all", "api_key": True,
              "stop": ["***"], "max_new_tokens": 5, "tokenizer": "a/b", "author": "x",
              "api_key_file": "f"}  # fmt: skip
    assert hidden_options(config) == []
    assert plain(config) == config


def test_options_within_options() -> None:
    assert without_secrets(["--env=HF_TOKEN=abc", "--set=a=b=c", "HF_TOKEN=abc"]) == [
        "--env=HF_TOKEN=***",
        "--set=a=b=c",
        "HF_TOKEN=***",
    ]


def test_only_secrets_are_hidden() -> None:
    line = ["--max-new-tokens", "5", "--api-key", "--model", "a", "--token-file", "f", "x@y"]
    assert without_secrets(line) == line
    assert without_passwords("mail me@example.org or see http://example.org/@me") == (
        "mail me@example.org or see http://example.org/@me"
    )
    assert not is_secret_name("tokenizer")
    assert not is_secret_name("api_key_file")
    assert is_secret_name("--hub-token")


def test_values_become_those_of_json() -> None:
    config = {"a": Path("x"), "b": [Path("y"), None], "c": {"d": (1, 2.5)}, "api_key": True}
    assert plain(config) == {"a": "x", "b": ["y", None], "c": {"d": [1, 2.5]}, "api_key": True}


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000])
def test_a_launch_that_is_none(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("LLM_LAUNCH", text)
    assert around.launch() is None


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert around.working_directory() is None


def test_image_and_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "LLM_IMAGE")):
            monkeypatch.delenv(name)
    assert set(around.slurm().values()) == {None}
    assert set(around.image().values()) == {None}
    monkeypatch.setenv("LLM_IMAGE_INPUTS", "3f9c2a000000")
    assert around.image()["inputs"] == "3f9c2a000000"
    job = {"SLURM_JOB_ID": "7", "SLURM_CLUSTER_NAME": "c", "SLURM_NTASKS": "4",
           "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "2", "SLURM_ARRAY_TASK_ID": "3",
           "SLURM_JOB_ACCOUNT": "secret-project", "SLURM_JOB_USER": "me"}  # fmt: skip
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    found = around.slurm()
    assert (found["job"], found["cluster"], found["array_task"]) == ("7", "c", "3")
    assert not {"secret-project", "me"} & set(found.values())


def test_hardware() -> None:
    found = around.host("a CPU")
    assert found["kernel"] == os.uname().release
    assert found["memory_bytes"] > 2**20
    assert len(found["gpu_memory_bytes"]) == len(found["gpus"])


def test_the_recipes_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LLM_HOME", raising=False)
    own = RECIPES / "inference" / "generate.py"
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    assert around.code("inference/generate")["recipe"] == {"path": str(own), "sha256": digest}
    (tmp_path / "link").symlink_to(RECIPES.parent)
    monkeypatch.setenv("LLM_HOME", str(tmp_path / "link"))
    path = around.code("inference/generate")["recipe"]["path"]
    assert path == "recipes/inference/generate.py"
    assert around.code("nobody/knows")["recipe"] == {"path": None, "sha256": None}


def test_a_users_own_recipe(tmp_path: Path) -> None:
    script = tmp_path / "my récipe.py"
    script.write_text(
        "import json; from llm_recipes.record import start_record\n"
        "print(json.dumps(start_record('inference/generate', {}, 'cpu')['code']['recipe']))"
    )
    done = subprocess.run(
        [sys.executable, str(script)], env=recipe_environment(), capture_output=True, check=True
    )
    digest = hashlib.sha256(script.read_bytes()).hexdigest()
    assert json.loads(done.stdout) == {"path": str(script), "sha256": digest}


def test_code_has_a_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean one too: new and staged files leave a tree clean as far as LLM_CODE_DIRTY knows."""
    monkeypatch.setenv("LLM_CODE_COMMIT", "c0ffee")
    for word, dirty in (("0", False), ("", None), ("1", True)):
        monkeypatch.setenv("LLM_CODE_DIRTY", word)
        found = around.code("a/b")
        assert (found["commit"], found["dirty"]) == ("c0ffee", dirty)
        assert found["files_sha256"] == around.files_sha256()
    monkeypatch.setenv("RANK", "3")  # of torchrun: its record is never written
    assert around.code("a/b")["files_sha256"] is None
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LLM_CODE_DIRTY", "")
    monkeypatch.setenv("LLM_CODE_COMMIT", "")
    assert around.code("a/b") == {
        "commit": None,
        "dirty": None,
        "recipe": {"path": None, "sha256": None},
        "files_sha256": around.files_sha256(),
    }


def test_the_hash_is_what_sha256sum_says(tmp_path: Path) -> None:
    for name in ("inference/a b.py", "inference/presets/ü.yaml", "llm_recipes/x.css"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    script = "find . -type f -printf '%P\\0' | LC_ALL=C sort -z | xargs -0 sha256sum -z | sha256sum"
    told = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, check=True)
    found = around.files_sha256(tmp_path)
    assert told.stdout.decode().split()[0] == found
    (tmp_path / "inference" / "__pycache__").mkdir()
    (tmp_path / "inference" / "__pycache__" / "a.py").write_text("x")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "a.py").write_text("x")
    (tmp_path / "README.md").write_text("x")
    assert around.files_sha256(tmp_path) == found
    (tmp_path / "llm_recipes" / "x.css").write_text("y")
    assert around.files_sha256(tmp_path) != found
