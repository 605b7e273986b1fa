"""What lies beside a model's weights: configuration, tokenizer, generation settings.

from llm_recipes.model_settings import copy_tokenizer, write_config
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from llm_recipes.architecture import read_json
from llm_recipes.files import write_text
from llm_recipes.model_folder import TOKENIZER_FILES

# What belongs to a tokenizer, in a folder that holds other things too.
TOKENIZER_COMPANIONS = (
    *TOKENIZER_FILES,
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)


def write_config(config: Path, output: Path, dtype: torch.dtype) -> None:
    """Copy config.json with the type that the weights have now."""
    settings = read_json(config)
    name = str(dtype).removeprefix("torch.")
    old = "torch_dtype" in settings and "dtype" not in settings
    settings["torch_dtype" if old else "dtype"] = name
    if "torch_dtype" in settings:
        settings["torch_dtype"] = name
    text = json.dumps(settings, indent=2, ensure_ascii=False) + "\n"
    write_text(output / "config.json", text)


def copy_tokenizer(folders: Sequence[Path], output: Path) -> bool:
    """Copy the tokenizer of the first folder that has one, with its chat templates.

    The files of a tokenizer belong together: none is taken from a second folder.
    """
    folder = next((f for f in folders if has_tokenizer(f)), None)
    if folder is None:
        return False
    for name in TOKENIZER_COMPANIONS:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, output / name)
    if (folder / "chat_templates").is_dir():
        shutil.copytree(folder / "chat_templates", output / "chat_templates", dirs_exist_ok=True)
    return True


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a tokenizer."""
    return any((folder / name).is_file() for name in TOKENIZER_FILES)


def copy_generation_settings(folders: Sequence[Path], output: Path) -> None:
    """Copy generation_config.json of the first folder that has one."""
    name = "generation_config.json"
    found = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if found is not None:
        shutil.copyfile(found, output / name)
