"""The run record: what ran, on what, with which result; `run.json`, schema version 1.

from llm_recipes.record import start_record, write_record
"""

from __future__ import annotations

import datetime
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_recipes.files import write_text

SCHEMA = 1
GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # NVIDIA, AMD, WSL
SECRET_WORDS = ("token", "secret", "password", "passwd", "api_key", "apikey")
SECRET_PREFIXES = ("hf_", "sk-", "ghp_", "github_pat_")


def start_record(recipe: str, config: Mapping[str, Any], device_name: str) -> dict[str, Any]:
    """A record of a run that begins now, with what the environment says about image, site and job.

    Args:
        recipe: The recipe's name, such as `inference/generate`.
        config: All its settings as they hold, in types that JSON knows.
        device_name: The GPU's or CPU's name.
    """
    env = os.environ
    return {
        "schema": SCHEMA,
        "recipe": recipe,
        "started": _now(),
        "finished": None,
        "status": "running",
        "argv": [without_secret(argument) for argument in sys.argv],
        "config": {name: _plain(value) for name, value in config.items()},
        "code": {"commit": env.get("LLM_CODE_COMMIT"), "dirty": _flag(env.get("LLM_CODE_DIRTY"))},
        "image": {
            "name": env.get("LLM_IMAGE_NAME"),
            "variant": env.get("LLM_IMAGE_VARIANT"),
            "digest": env.get("LLM_IMAGE_DIGEST"),
        },
        "host": {
            "site": env.get("LLM_SITE"),
            "nodes": [os.uname().nodename],
            "cpus": len(os.sched_getaffinity(0)),
            "gpus": _gpu_names(),
            "device": device_name,
            "driver": env.get("LLM_HOST_DRIVER"),
        },
        "slurm": {
            "job": env.get("SLURM_JOB_ID"),
            "step": env.get("SLURM_STEP_ID"),
            "partition": env.get("SLURM_JOB_PARTITION"),
            "nodes": env.get("SLURM_JOB_NODELIST"),
            "restarts": env.get("SLURM_RESTART_COUNT"),
        },
        "model": {},
        "data": {},
        "metrics": {},
    }


def write_record(path: Path, record: dict[str, Any], status: str) -> None:
    """Write the record with its end: status is complete, interrupted or failed.

    The record has its end only once it is written.
    """
    end = {"status": status, "finished": _now()}
    text = json.dumps({**record, **end}, indent=2, ensure_ascii=False) + "\n"
    # Names of files may hold bytes that are not UTF-8: as \udcXX, which JSON knows.
    write_text(path, text.encode("utf-8", "backslashreplace").decode())
    record.update(end)


def read_record(path: Path) -> dict[str, Any] | None:
    """A record that an earlier run left; None if there is none that can be read."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def record_path(output: Path) -> Path:
    """Where the record of an output file goes: `answers.jsonl` has `answers.run.json` beside it.

    Other endings stay: `a.txt` and `a.1` beside it have records of their own, `a.txt.run.json` and
    `a.1.run.json`.
    """
    return output.parent / f"{output.name.removesuffix('.jsonl')}.run.json"  # "." has no name


def is_recorded(path: Path, record: Mapping[str, Any]) -> bool:
    """Whether an earlier run has left the record of the very same output."""
    earlier = read_record(path) or {}
    return earlier.get("status") == "complete" and all(
        earlier.get(key) == record.get(key) for key in ("made_with", "output_digest")
    )


def without_secret(argument: str) -> str:
    """The argument, or a stand-in if it is or names a secret."""
    name, equals, value = argument.partition("=")
    if equals and any(word == part for word in SECRET_WORDS for part in _words(name)):
        return f"{name}=***"
    return "***" if (value or argument).startswith(SECRET_PREFIXES) else argument


def _words(name: str) -> list[str]:
    spelled = name.lower().lstrip("-").replace("-", "_")
    return [spelled, *spelled.split("_")]


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _flag(text: str | None) -> bool | None:
    return None if text is None else text.lower() in ("1", "true", "yes")


def _gpu_names() -> list[str]:
    # Recipes that compute nothing need not wait seconds for torch where no driver is.
    if "torch" not in sys.modules and not any(map(os.path.exists, GPU_DRIVERS)):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
