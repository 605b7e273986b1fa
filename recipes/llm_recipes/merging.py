"""Merge a PEFT adapter into its base model, and compare what both answer.

    from llm_recipes.merging import check_adapter, compare, load_both, merge_layers, write_merged

Every layer is merged in fp32 and then rounded once: PEFT alone rounds the adapter's part to the
base's type first, and the sum again.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from llm_recipes.adapters import ADAPTER_CONFIG, recorded_base
from llm_recipes.architecture import (
    Shape,
    expected_adapter,
    expected_model,
    name_faults,
    quiet,
    read_adapter_config,
    read_json,
)
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.model_folder import ADAPTER_WEIGHTS, ModelFolder, first_line, folder_digest
from llm_recipes.model_settings import copy_tokenizer, has_tokenizer, write_config
from llm_recipes.stored_weights import safetensors_file, torch_weights

PREFIX = "base_model.model."
CHECK_TEXT = (
    "The mean of two, four and nine is five. Question: which river flows through Paris? Answer:"
)
CHECK_TOKENS = 64
WEIGHT_SUFFIXES = frozenset(
    {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz"}
)
# A weight's rounding is up to half an eps, independent of the next one's: what reaches the logits
# grows with depth, and is a few eps for models of 2 to 80 layers. Sums in another order cost
# fp32 more than its rounding.
EPS_ALLOWED, FP32_ALLOWED = 8, 1e-4


@dataclass(frozen=True)
class Comparison:
    """Logits of a text, of the merged model and of base and adapter; all computed in fp32.

    difference: root mean square of the difference, as a share of that of the logits, which are
    centred for each token. largest: absolute difference. adapter_effect: as difference, between
    the base with and without the adapter. same_top: share of tokens with the same likeliest next.
    allowed: most difference that the weights' rounding explains.
    """

    difference: float
    largest: float
    adapter_effect: float
    same_top: float
    tokens: int
    allowed: float

    def as_record(self) -> dict[str, float | int]:
        """The figures, for the run record."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


def check_adapter(adapter: Path, base: Path) -> int | None:
    """See that the adapter is one of this base; reads no weights.

    Returns:
        Rows of the adapter's embedding if it has more or fewer than the base's; None: the same.

    Raises:
        LLMError, ExceptionGroup: What does not fit.
    """
    config = read_adapter_config(adapter)
    if config.is_prompt_learning:
        kind = getattr(config.peft_type, "value", config.peft_type)
        what = f"{adapter} cannot be merged"
        why = f"{kind} puts tokens before the prompt and changes no weights"
        raise LLMError(what, why, "generate.py --adapter uses it as it is")
    _check_digest(adapter, base)
    if "quantization_config" in read_json(base / "config.json"):
        what, why = f"the base {base} is quantized", "merged weights would be quantized again"
        raise LLMError(what, why, "--base MODEL: the same model in 16 or 32 bits")
    found = _adapter_shapes(adapter)
    whole = expected_model(base)
    rows = _embedding_rows(found, whole.shapes)
    expected = expected_adapter(adapter, base, rows)
    # PEFT also saves embeddings that were resized, as a whole and once for each wrapper.
    names = {*whole.shapes, *whole.tied}
    adapters = {
        name: shape
        for name, shape in found.items()
        if name in expected or _base_name(name) not in names
    }
    fix = "--base MODEL: the model that the adapter was trained on"
    raise_all(name_faults(adapters, expected, f"{adapter} is no adapter of {base}", fix))
    return rows


def load_both(base: ModelFolder, adapter: Path, rows: int | None, dtype: torch.dtype) -> Any:
    """The base in its own type on the CPU with the adapter, in fp32, beside its weights.

    Raises:
        LLMError: If a library refuses the files.
    """
    with quiet():
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        try:
            model = AutoModelForCausalLM.from_pretrained(
                base.path, dtype=dtype, weights_only=True, trust_remote_code=False
            )
        except Exception as error:  # safetensors and transformers raise what they like
            what = f"cannot load the model in {base.path}"
            raise LLMError(what, first_line(error), "see that its files belong together") from error
        try:
            if rows is not None:
                model.resize_token_embeddings(rows, mean_resizing=False)
            return PeftModel.from_pretrained(model, str(adapter), torch_device="cpu").eval()
        except Exception as error:  # PEFT too
            raise LLMError(f"cannot load the adapter in {adapter}", first_line(error)) from error


def merge_layers(tuned: Any, dtype: torch.dtype) -> Any:
    """Merge the adapter into the model, layer by layer in fp32; the result has the given type.

    Raises:
        LLMError: If the adapter's kind has no merge, or its weights are broken.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    with quiet():
        try:
            for module in list(tuned.modules()):
                if isinstance(module, BaseTunerLayer):
                    layer = module.get_base_layer()
                    # New parameters: a weight that another layer shares stays as it is there.
                    _convert(layer, torch.float32, shared=False)
                    module.merge(safe_merge=True)
                    _convert(layer, dtype, shared=True)
            model = tuned.merge_and_unload()
        except (ValueError, NotImplementedError, AttributeError, RuntimeError) as error:
            fix = "generate.py --adapter uses it as it is"
            raise LLMError("the adapter cannot be merged", first_line(error), fix) from error
    return model.to(dtype)


def write_merged(
    model: Any, base: Path, adapter: Path, output: Path, dtype: torch.dtype, resized: bool
) -> None:
    """Save the weights, and all else that the base and the adapter's tokenizer consist of."""
    untied = not model.config.tie_word_embeddings and _is_tied(base)
    with quiet():
        model.save_pretrained(output, max_shard_size="5GB")
    for file in sorted(base.iterdir()):
        if _belongs(file) and file.name != "config.json":
            shutil.copyfile(file, output / file.name)
    if (base / "chat_templates").is_dir():
        shutil.copytree(base / "chat_templates", output / "chat_templates")
    if not (resized or untied):
        write_config(base / "config.json", output, dtype)
    if has_tokenizer(adapter):
        settings = adapter / "tokenizer_config.json"
        if settings.is_file() and "chat_template" in read_json(settings):
            # A template in a file of its own, from the base, would go before the adapter's.
            (output / "chat_template.jinja").unlink(missing_ok=True)
        copy_tokenizer([adapter], output)


def check_tokens(folder: Path, vocabulary: int) -> torch.Tensor:
    """Token ids of a short text, with the folder's own tokenizer: [1, tokens]."""
    with quiet():
        from transformers import AutoTokenizer

        try:
            ids = AutoTokenizer.from_pretrained(folder)(CHECK_TEXT)["input_ids"]
        except Exception as error:  # tokenizers raise what they like
            raise LLMError(f"cannot load the tokenizer in {folder}", first_line(error)) from error
    return torch.tensor([[i for i in ids if i < vocabulary][:CHECK_TOKENS]])


def logits_in_fp32(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """What the model answers when every step is computed in fp32: [tokens, vocabulary].

    Weights are converted a module at a time, so no second copy of the model is held.
    """
    with torch.inference_mode(False), torch.no_grad(), _modules_in_fp32(model), quiet():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float()


def compare(
    merged: torch.Tensor, wanted: torch.Tensor, base: torch.Tensor, dtype: torch.dtype
) -> Comparison:
    """Compare logits [tokens, vocabulary] of the merged model with those wanted."""
    width = min(merged.shape[-1], wanted.shape[-1], base.shape[-1])
    centred = [x[:, :width] - x[:, :width].mean(-1, keepdim=True) for x in (merged, wanted, base)]
    size = centred[1].square().mean().sqrt()
    return Comparison(
        difference=float((centred[0] - centred[1]).square().mean().sqrt() / size),
        largest=float((merged[:, :width] - wanted[:, :width]).abs().max()),
        adapter_effect=float((centred[2] - centred[1]).square().mean().sqrt() / size),
        same_top=float((merged.argmax(-1) == wanted.argmax(-1)).float().mean()),
        tokens=len(merged),
        allowed=max(FP32_ALLOWED, EPS_ALLOWED * torch.finfo(dtype).eps),
    )


def load_merged(folder: Path, dtype: torch.dtype) -> Any:
    """The model that was written, from disk."""
    with quiet():
        from transformers import AutoModelForCausalLM

        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return model.eval()


def stored_dtype(base: ModelFolder) -> torch.dtype:
    """The type that most of the model's weights have in its files.

    Raises:
        LLMError: If a file is damaged.
    """
    sizes: dict[torch.dtype, int] = {}
    for path in base.weights:
        read = safetensors_file if path.suffix == ".safetensors" else torch_weights
        for tensor in read(path).values():
            if tensor.dtype.is_floating_point:
                sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.count
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def _check_digest(adapter: Path, base: Path) -> None:
    """Compare the base's digest with the one that the adapter's run recorded, if it did."""
    trained = recorded_base(adapter / "run.json")
    if trained is None:
        return
    path, wanted = trained
    there = folder_digest(base)
    if there != wanted:
        what = f"{adapter} was trained on another model than {base}"
        why = f"trained on {path} (digest {wanted[:12]}), and that of {base} is {there[:12]}"
        fix = "--base MODEL: the one it was trained on, unchanged"
        raise LLMError(what, why, fix)


def _adapter_shapes(adapter: Path) -> dict[str, Shape]:
    path = next(adapter / name for name in ADAPTER_WEIGHTS if (adapter / name).is_file())
    read = safetensors_file if path.suffix == ".safetensors" else torch_weights
    return {name: tensor.shape for name, tensor in read(path).items()}


def _embedding_rows(found: Mapping[str, Shape], whole: Mapping[str, Shape]) -> int | None:
    """Rows of an embedding that is in the adapter as a whole, if the base has another number."""
    for name, shape in found.items():
        there = whole.get(_base_name(name))
        if there and len(there) == 2 and there[1:] == shape[1:] and there[0] != shape[0]:
            return shape[0]
    return None


def _base_name(name: str) -> str:
    """The base's name of a weight that an adapter's file has as a whole."""
    name = name.removeprefix(PREFIX)
    return re.sub(r"\.(base_layer|modules_to_save|original_module)(?=\.)", "", name)


def _is_tied(base: Path) -> bool:
    return bool(expected_model(base).tied)


def _convert(layer: torch.nn.Module, dtype: torch.dtype, shared: bool) -> None:
    for name, weight in list(layer.named_parameters(recurse=False)):
        if weight.is_floating_point():
            if shared:
                weight.data = weight.data.to(dtype)
            else:
                copy = torch.nn.Parameter(weight.data.to(dtype, copy=True), requires_grad=False)
                layer.register_parameter(name, copy)


def _belongs(file: Path) -> bool:
    """Whether a base's file goes along: all but weights, their index, records and hidden files."""
    return (
        file.is_file()
        and not file.name.startswith(".")
        and not file.name.endswith((".index.json", "run.json"))
        and file.suffix not in WEIGHT_SUFFIXES
        and file.name != ADAPTER_CONFIG
    )


@contextmanager
def _modules_in_fp32(model: Any) -> Iterator[None]:
    kept: dict[int, list[tuple[torch.nn.Parameter, torch.Tensor]]] = {}

    def widen(module: torch.nn.Module, _: Any) -> None:
        narrow = [
            (weight, weight.data)
            for weight in module.parameters(recurse=False)
            if weight.is_floating_point() and weight.dtype != torch.float32
        ]
        kept[id(module)] = narrow
        for weight, data in narrow:
            weight.data = data.float()

    def restore(module: torch.nn.Module, _: Any, __: Any) -> None:
        for weight, data in kept.pop(id(module), []):
            weight.data = data

    handles = []
    for module in model.modules():
        handles.append(module.register_forward_pre_hook(widen))
        handles.append(module.register_forward_hook(restore, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
