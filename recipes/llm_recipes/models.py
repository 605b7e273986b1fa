"""Find, check and load a model: a folder or a hub's name, an adapter, its tokenizer.

from llm_recipes.models import find_model, load_model
"""

from __future__ import annotations

import contextlib
import mmap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_recipes.device import is_out_of_memory
from llm_recipes.errors import LLMError
from llm_recipes.kv_cache import cache_bytes
from llm_recipes.model_folder import ModelFolder, first_line


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to run. load_s: seconds; weights read from disk included."""

    model: Any
    tokenizer: Any
    folder: ModelFolder
    load_s: float


@dataclass(frozen=True)
class ModelSize:
    """What a model costs, taken from the loaded model itself, so for every architecture.

    parameters: all. matmul_parameters: those every token is multiplied with, the output head
    included, input embeddings not. head_parameters: the output head. weight_bytes: read a step.
    kv_bytes_per_token: cache. attention_width: layers x heads x head size.
    """

    parameters: int
    matmul_parameters: int
    head_parameters: int
    weight_bytes: int
    kv_bytes_per_token: int
    attention_width: int
    vocabulary: int
    hidden_size: int

    def flops(self, tokens: int, attended: int) -> float:
        """2 a matmul parameter and token, 4 a unit of attention width and attended token."""
        return 2.0 * self.matmul_parameters * tokens + 4.0 * self.attention_width * attended


def load_model(
    folder: ModelFolder,
    adapter: Path | None,
    device: torch.device,
    dtype: torch.dtype,
    trust_remote_code: bool,
    shard: bool = False,
    merge: bool = True,
) -> LoadedModel:
    """Load model and tokenizer; an adapter is merged into the weights, so it costs nothing a token.

    Args:
        folder: The model's.
        adapter: The adapter's folder, if there is one.
        device: Where it goes.
        dtype: Of the weights.
        trust_remote_code: Run Python code that the model brings along.
        shard: Spread it over all GPUs that this process sees, layer by layer, in place of `device`.
        merge: Merge the adapter; else it stays beside the weights, as it was trained.

    Raises:
        LLMError: If the files do not make a model this library knows.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    with loading(folder.path):
        import_architecture(folder.path, trust_remote_code)
        start = time.perf_counter()
        tokenizer = AutoTokenizer.from_pretrained(folder.path, trust_remote_code=trust_remote_code)
        model = AutoModelForCausalLM.from_pretrained(
            folder.path,
            dtype=dtype,
            device_map="auto" if shard else {"": device},
            trust_remote_code=trust_remote_code,
            weights_only=True,
        )
    if adapter is not None:
        with loading(adapter):
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(adapter))
            model = model.merge_and_unload() if merge else model
    model.requires_grad_(False)
    read_mapped_weights(model)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return LoadedModel(model, tokenizer, folder, time.perf_counter() - start)


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Say which folder could not be loaded, and why."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        fix = "use a larger GPU, a quantized model, or --device cpu"
        raise LLMError("the model does not fit into the GPU's memory", str(error), fix) from None
    except Exception as error:
        if is_out_of_memory(error):  # whoever loads says what takes less
            raise
        # Only libraries run in here, and for files that do not fit they raise what they like:
        # safetensors, tokenizers and transformers' checks of a configuration plain Exceptions.
        raise _load_fault(folder, error) from error


def read_mapped_weights(model: torch.nn.Module) -> None:
    """Read a byte of each memory page of the weights on the CPU.

    Weights that need no conversion are only mapped from the file by loading, and the first step
    would wait for the disk: time of loading that the summary would count as something else. A
    byte brings the whole page, so this costs little where the pages are in memory already.
    """
    for weight in model.parameters():
        # Subclasses, such as quantized tensors, may know no view of their bytes.
        if weight.device.type == "cpu" and type(weight.data) is torch.Tensor:
            weight.data.flatten().view(torch.uint8)[:: mmap.PAGESIZE].sum()


def import_architecture(folder: Path, trust_remote_code: bool) -> None:
    """Import a model's code now: transformers does it late, seconds that are not loading."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
        MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def measure_size(model: Any) -> ModelSize:
    """Sizes from the loaded parameters and from the cache of one token."""
    head = model.get_output_embeddings()
    head_weight = None if head is None else head.weight
    embeddings = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, torch.nn.Embedding) and module.weight is not head_weight
    }
    everything = list(model.parameters())
    read = [weight for weight in everything if id(weight) not in embeddings]
    config = model.config.get_text_config()
    with torch.inference_mode():
        token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        cache = model(input_ids=token, use_cache=True).past_key_values
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return ModelSize(
        parameters=sum(weight.numel() for weight in everything),
        matmul_parameters=sum(weight.numel() for weight in read if weight.dim() > 1),
        head_parameters=0 if head_weight is None else head_weight.numel(),
        weight_bytes=sum(weight.numel() * weight.element_size() for weight in read),
        kv_bytes_per_token=cache_bytes(cache),
        attention_width=config.num_hidden_layers * heads * head_size,
        vocabulary=config.vocab_size,
        hidden_size=config.hidden_size,
    )


def describe_loaded(
    loaded: LoadedModel, size: ModelSize, adapter: Path | None, dtype: str, digest: str
) -> dict[str, Any]:
    """The run record's part about the model. adapter: on it or merged into it; digest: the base's.

    An adapter that is not merged wraps the model, whose architecture is meant.
    """
    inner = getattr(loaded.model, "get_base_model", None)
    return {
        "path": str(loaded.folder.path),
        "adapter": None if adapter is None else str(adapter),
        "architecture": type(loaded.model if inner is None else inner()).__name__,
        "parameters": size.parameters,
        "dtype": dtype,
        "digest": digest,
    }


def stop_token_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a text: the generation settings' (an end of turn too) and the tokenizer's."""
    ids: set[int] = set()
    for known in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        ids |= set(known) if isinstance(known, Sequence) else {known}
    return frozenset(i for i in ids if isinstance(i, int))


def context_length(model: Any) -> int | None:
    """Tokens that the model can see, None if its configuration names no limit."""
    config = model.config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return None


def _load_fault(folder: Path, error: Exception) -> LLMError:
    reason = first_line(error)
    if "trust_remote_code" in str(error):
        why = "it brings Python code of its own, which would run with your rights"
        fix = "read that code; if you trust it: --trust-remote-code true"
        return LLMError(f"{folder} is no model that transformers knows by itself", why, fix)
    return LLMError(
        f"cannot load the model in {folder}", reason, "see that all its files belong together"
    )
