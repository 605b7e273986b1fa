"""A record as the recipes write them, and a checkout whose llm-run writes one."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from git_folders import git

from _llm.record.content import content_digest, file_sha256
from _llm.sif import payload_digest

REPOSITORY = Path(__file__).resolve().parents[3]
RECIPE = "def generate(model: str, output=None, temperature: float = 0.0, seed: int = 0): ...\n" \
    "run_recipe(generate)\n"
# Stands for llm-run: answers, and a record with what it was given.
LLM_RUN = r"""#!/usr/bin/python3
import hashlib, json, os, sys
config = json.load(open(sys.argv[sys.argv.index("--config") + 1]))
extra = sys.argv[sys.argv.index("--config") + 2:]
if os.environ.get("FAIL"):
    sys.exit(3)
answers = open(config["prompts"]).read().upper() + " ".join(extra)
os.path.exists(config["output"]) and sys.exit("there already")
open(config["output"], "w").write(answers)
record = json.loads(os.environ["RECORD_TEMPLATE"])
record["results"] = {"answers.jsonl": hashlib.sha256(answers.encode()).hexdigest()}
record["argv"], record["config"] = sys.argv, config
record["environment"] = {k: v for k, v in os.environ.items() if k.startswith("OMP_")}
record["metrics"]["load_s"] = 9.5
json.dump(record, open(config["output"].replace(".jsonl", ".run.json"), "w"))
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with git, a recipe and a stand-in for llm-run."""
    folder = tmp_path / "the; checkout's"
    for name, text in (("recipes/inference/generate.py", RECIPE), ("bin/llm-run", LLM_RUN)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "bin/llm-run").chmod(0o755)
    (folder / "sites").mkdir()
    shutil.copy(REPOSITORY / "sites/default.ini", folder / "sites")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    return folder


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Where the recorded run was: prompts and answers."""
    folder = tmp_path / "rüns; 'x'"
    folder.mkdir()
    (folder / "prompts.txt").write_text("a\nb\n")
    (folder / "answers.jsonl").write_text("A\nB\n")
    return folder


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """An image in a folder of images."""
    path = tmp_path / "images" / "llm-cpu-0123456789ab.sif"
    path.parent.mkdir()
    path.write_bytes(b"hsqs" + bytes(60))
    path.with_name("llm-cpu.sif").symlink_to(path.name)
    return path


@pytest.fixture
def data(checkout: Path, run_folder: Path, image: Path, tmp_path: Path) -> dict[str, Any]:
    """The record of the run."""
    prompts = run_folder / "prompts.txt"
    return {
        "schema": 1, "recipe": "inference/generate", "status": "complete",
        "started": "2026-01-02T03:04:05+00:00", "finished": "2026-01-02T03:14:05+00:00",
        "argv": ["generate.py"], "cwd": str(run_folder),
        "launch": {"image": "llm-cpu", "gpu": None, "torchrun": False, "nproc_per_node": None,
                   "nodes": 1, "tasks_per_node": None, "env": {}},
        "config": {"model": "owner/name", "prompts": "prompts.txt", "output": "answers.jsonl",
                   "temperature": 1e-05, "seed": 0},
        "code": {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False,
                 "recipe": {"path": "recipes/inference/generate.py",
                            "sha256": file_sha256(str(checkout / "recipes/inference/generate.py"))},
                 "files_sha256": None},
        "image": {"name": "llm", "variant": "cpu", "digest": payload_digest(str(image)),
                  "inputs": "0123456789ab"},
        "environment": {"OMP_NUM_THREADS": "3"},
        "host": {"site": "default", "nodes": ["n1"], "cpus": 4, "gpus": [], "device": "CPU"},
        "slurm": {"job": None},
        "model": {}, "adapter": {},
        "data": {"path": "prompts.txt", "resolved": str(prompts), "rows": 2,
                 "content": content_digest(str(prompts), str(tmp_path / "cache"))},
        "outputs": ["output"],
        "results": {"answers.jsonl": hashlib.sha256(b"A\nB\n").hexdigest()},
        "deterministic": True,
        "metrics": {"load_s": 1.5, "answers": 2, "peak_gpu_bytes": None, "tokens_per_s": 10.0},
    }


@pytest.fixture
def record_file(data: dict[str, Any], run_folder: Path) -> Path:
    """The record in its file."""
    path = run_folder / "answers.run.json"
    path.write_text(json.dumps(data))
    return path
