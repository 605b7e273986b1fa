"""Which matrices LoRA adapts: by default every linear layer but the output head.

    from llm_recipes.lora_targets import all_linear
    LoraConfig(target_modules=all_linear(model))

All linear layers, as in QLoRA (Dettmers et al. 2023, arXiv:2305.14314, section 4): adapters on the
attention alone don't reach full fine-tuning there. PEFT's own default for Llama is queries and
values only.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from llm_recipes.errors import LLMError, raise_all

if TYPE_CHECKING:
    from torch import nn


def all_linear(model: nn.Module) -> list[str]:
    """Names of the linear modules without the output head, as short as they are unambiguous.

    Names are the modules' own (`q_proj`), without the path to their layer: PEFT takes every module
    whose path ends in one. Quantized layers (bitsandbytes) count.
    """
    head = _head(model)
    paths = [path for path, module in _linear(model) if module is not head]
    names = sorted({_last(path) for path in paths})
    # A head that shares its name with a layer's matrix would be adapted too: give whole paths.
    clash = {_last(path) for path, module in model.named_modules() if module is head}
    return [name for name in names if name not in clash] + sorted(
        path for path in paths if _last(path) in clash
    )


def check_targets(model: nn.Module, names: Sequence[str]) -> None:
    """Stop at names that end no path of a linear module.

    Raises:
        LLMError: With the nearest name for each that is unknown, or several at once.
    """
    paths = [path for path, _ in _linear(model)]
    known = sorted({_last(path) for path in paths})
    if not names:
        raise LLMError("--target-modules names nothing", fix=_choices(known))
    unknown = [name for name in names if not any(_ends(path, name) for path in paths)]
    raise_all([_unknown(name, known) for name in unknown])


def _unknown(name: str, known: Sequence[str]) -> LLMError:
    near = difflib.get_close_matches(_last(name), known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}? " if near else ""
    return LLMError(
        f"--target-modules {name!r} is no linear layer of this model",
        fix=hint + _choices(known),
    )


def _choices(known: Sequence[str]) -> str:
    return f"its linear layers: {', '.join(known)}"


def _linear(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Linear modules by path; bitsandbytes' Linear4bit and Linear8bitLt are kinds of nn.Linear."""
    from torch import nn

    return [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Linear)]


def _head(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = find() if find else None
    return head


def _last(path: str) -> str:
    return path.rsplit(".", 1)[-1]


def _ends(path: str, name: str) -> bool:
    return path == name or path.endswith(f".{name}")
