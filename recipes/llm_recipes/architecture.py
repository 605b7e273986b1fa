"""Which tensors a model or an adapter has to consist of, by the configuration alone.

    from llm_recipes.architecture import expected_adapter, expected_model, name_faults
    expected = expected_model(Path("models/Llama-2-7b"))

The model is built without memory for its weights, so this takes seconds for any size.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.model_folder import first_line

Shape = tuple[int, ...]
SHOWN = 12


@dataclass(frozen=True)
class Expected:
    """Names and shapes. tied: names that are another's weights, by name, and whose they are.

    computed: buffers that are not saved. names_on_disk: what transformers calls weights in files,
    where that is not the module's name. renamed_on_disk: it also splits or merges some there.
    """

    shapes: Mapping[str, Shape]
    tied: Mapping[str, str]
    computed: frozenset[str]
    names_on_disk: Mapping[str, str]
    renamed_on_disk: bool


def expected_model(folder: Path) -> Expected:
    """What the weights of the model that config.json describes are called and shaped.

    Raises:
        LLMError: If transformers knows no such causal language model by itself.
    """
    model = _empty_model(folder)
    state = model.state_dict()
    renamed, whole = disk_names(model, state)
    tied = {name: of for name, of in model.all_tied_weights_keys.items() if name in state}
    return Expected(
        {name: tuple(value.shape) for name, value in state.items() if name not in tied},
        tied,
        frozenset(name for name, _ in model.named_buffers() if name not in state),
        renamed,
        not whole,
    )


def disk_names(model: Any, state: Mapping[str, Any]) -> tuple[dict[str, str], bool]:
    """What transformers calls weights in files, where that is not the name in the state dict.

    Args:
        model: A model of transformers.
        state: Its state dict.

    Returns:
        Names in files by name, and whether that is all: others may be split or merged there.
    """
    from transformers.core_model_loading import revert_weight_conversion

    # The same tensor under another name; those that are split or merged are no longer the same.
    files = {id(value): n for n, value in revert_weight_conversion(model, dict(state)).items()}
    known = {name: files[id(value)] for name, value in state.items() if id(value) in files}
    return {n: other for n, other in known.items() if n != other}, len(known) == len(state)


def expected_adapter(adapter: Path, base: Path, rows: int | None = None) -> Mapping[str, Shape]:
    """What the weights of an adapter of a model are called and shaped in its file.

    Args:
        adapter: Folder with adapter_config.json.
        base: Folder with the base model's config.json.
        rows: Of the embeddings, if they were resized; None: as in the base.

    Raises:
        LLMError: If the adapter cannot be one of this model, or a file cannot be understood.
    """
    import torch

    model = _empty_model(base)
    with quiet():
        from peft import get_peft_model, get_peft_model_state_dict

        config = read_adapter_config(adapter)
        config.inference_mode = False
        config.base_model_name_or_path = None  # PEFT would look for it
        try:
            if rows is not None:
                model.resize_token_embeddings(rows, mean_resizing=False)
            with torch.device("meta"):
                tuned = get_peft_model(model, config)
            state = get_peft_model_state_dict(tuned, save_embedding_layers=False)
        except Exception as error:  # PEFT raises what it likes for modules that are not there
            what = f"{adapter} is no adapter of {base}"
            raise LLMError(what, first_line(error), "give its own base with --base") from error
    return {name: tuple(value.shape) for name, value in state.items()}


def read_adapter_config(adapter: Path) -> Any:
    """PEFT's configuration of an adapter.

    Raises:
        LLMError: If there is none, or it is damaged.
    """
    path = adapter / "adapter_config.json"
    settings = read_json(path)
    from peft import PeftConfig

    try:
        return PeftConfig.from_pretrained(str(adapter))
    except Exception as error:  # whatever PEFT makes of wrong types and names
        kind = settings.get("peft_type")
        raise LLMError(f"PEFT does not understand {path} ({kind})", first_line(error)) from error


def read_json(path: Path) -> dict[str, Any]:
    """A file of settings.

    Raises:
        LLMError: If it cannot be read or is no JSON object.
    """
    try:
        contents = json.loads(path.read_bytes())
    except OSError as error:
        raise LLMError(f"cannot read {path}", error.strerror or str(error)) from error
    except (ValueError, RecursionError) as error:
        raise LLMError(f"{path} is not JSON", str(error), "copy it again") from error
    if not isinstance(contents, dict):
        raise LLMError(f"{path} is not as it should be", "it holds no JSON object", "copy it again")
    return contents


def name_faults(
    found: Mapping[str, Shape], expected: Mapping[str, Shape], what: str, fix: str
) -> list[LLMError]:
    """All differences between the tensors that are there and those that should be, as one fault."""
    missing = [f"missing: {name}" for name in expected if name not in found]
    foreign = [f"unknown: {name}" for name in found if name not in expected]
    other = [
        f"other shape: {name} is {list(shape)}, not {list(expected[name])}"
        for name, shape in found.items()
        if name in expected and shape != expected[name]
    ]
    if not missing + foreign + other:
        return []
    lines = missing[:SHOWN] + foreign[:SHOWN] + other[:SHOWN]
    left = len(missing + foreign + other) - len(lines)
    return [LLMError(what, "\n".join(lines + ([f"and {left} more"] if left else [])), fix)]


def _empty_model(folder: Path) -> Any:
    read_json(folder / "config.json")
    import torch

    with quiet():
        from transformers import AutoConfig, AutoModelForCausalLM

        try:
            # Said, or transformers asks at a terminal whether to run code that a model brings.
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if hasattr(config, "quantization_config"):
                del config.quantization_config  # names and shapes are those of the plain model
            with torch.device("meta"):
                return AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
        except Exception as error:  # transformers raises what it likes for values that do not fit
            what = f"transformers cannot build the model of {folder / 'config.json'}"
            raise LLMError(what, first_line(error), "look at that file") from error


class quiet(warnings.catch_warnings):
    """Libraries' warnings and progress bars in the block are kept from the user."""

    def __enter__(self) -> Any:
        from transformers.utils import logging

        entered = super().__enter__()
        warnings.simplefilter("ignore")
        self._verbosity = logging.get_verbosity()  # type: ignore[no-untyped-call]
        logging.set_verbosity_error()  # type: ignore[no-untyped-call]
        logging.disable_progress_bar()  # type: ignore[no-untyped-call]
        return entered

    def __exit__(self, *error: Any) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self._verbosity)  # type: ignore[no-untyped-call]
        super().__exit__(*error)
