"""PEFT adapters on disk: their base, and the names of their weights.

from llm_recipes.adapters import adapter_name, base_of_adapter
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_recipes.architecture import read_json
from llm_recipes.errors import LLMError
from llm_recipes.model_folder import ModelFolder, find_model
from llm_recipes.record import read_record

ADAPTER_CONFIG = "adapter_config.json"


def base_of_adapter(adapter: Path) -> Path | None:
    """The folder of the base that adapter_config.json names, if it is here.

    Raises:
        LLMError: If adapter_config.json is damaged.
    """
    named = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        return None
    if (Path(named).expanduser() / "config.json").is_file():
        return Path(named).expanduser()
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(named, "config.json")
    except ValueError:  # a path that is not here is no hub's name
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def find_base(adapter: Path, base: str | None) -> ModelFolder:
    """The base's folder: the one given, or the one the adapter names.

    Raises:
        LLMError, ExceptionGroup: If it is not here, or not whole.
    """
    if base is not None:
        read_json(adapter / ADAPTER_CONFIG)
        return find_model(base)
    named = read_json(adapter / ADAPTER_CONFIG).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise LLMError(f"{adapter / ADAPTER_CONFIG} names no base", fix="--base MODEL names it")
    try:
        return find_model(named)
    except LLMError as error:
        what = f"the base of {adapter} is not usable: {named}"
        raise LLMError(what, error.what, "--base MODEL: where the base is now") from error


def recorded_base(record_file: Path) -> tuple[str, str] | None:
    """Path and digest of the base, as the record of a training run or of a consolidation has it."""
    model: Any = (read_record(record_file) or {}).get("model")
    if not isinstance(model, dict):
        return None
    path, digest = (
        (model.get("base"), model["base_digest"])
        if "base_digest" in model
        else (model.get("path"), model.get("digest"))
    )
    return (str(path), digest) if isinstance(digest, str) else None


def adapter_name(name: str, names: Mapping[str, Any]) -> str | None:
    """The name under which PEFT saves an adapter's weight; None for the frozen model's.

    PEFT leaves out the adapter's own name, `default`, and where a module was trained as a whole
    (modules_to_save), the wrapper around it.

    Args:
        name: In the training's model, or in a file of PEFT's already.
        names: All that there are, which tells the two apart.
    """
    if not any(re.search(r"\.lora_[A-Za-z_]+\.default(\.|$)", other) for other in names):
        return name
    if ".modules_to_save." in name:
        return re.sub(r"\.modules_to_save\.default\.", ".", name)
    if ".lora_magnitude_vector." in name:
        return name.removesuffix(".weight").removesuffix(".default")
    if ".lora_" in name:
        return re.sub(r"(\.lora_[A-Za-z_]+)\.default(?=\.|$)", r"\1", name)
    return None
