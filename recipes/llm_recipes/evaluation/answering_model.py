"""A model that answers questions, of either engine: its plan, its tokenizer, what it can see.

model = open_model(settings)
with model.reading() as (tokenizer, context): ...
Job(RECIPE, settings, model.made_with(), model.device, model.session)
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.harness_options import foreign_options, is_gguf

if TYPE_CHECKING:
    from llm_recipes.answering import Session
    from llm_recipes.answers import Key
    from llm_recipes.prompts import Prompt, Style

# Options of qa.py that only one engine has, with the value that is none.
TRANSFORMERS_ONLY: Mapping[str, Any] = {
    "adapter": None,
    "device": "auto",
    "dtype": "auto",
    "compile": "auto",
    "trust_remote_code": False,
}
GGUF_ONLY: Mapping[str, Any] = {"gpu_layers": "auto", "threads": "auto"}
# What the sessions know and qa.py leaves as it is.
FIXED: Mapping[str, Any] = {
    "prompt": None,
    "chat": False,
    "stream": False,
    "samples": 1,
    "top_k": 0,
    "repetition_penalty": 1.0,
    "ignore_eos": False,
    "measure_peak": False,
}
FIXED_GGUF: Mapping[str, Any] = {
    "split": "layer",
    "shares": None,
    "kv_type": "f16",
    "flash_attention": "auto",
    "context": "auto",
    "prompt_threads": "auto",
    "load_mode": "auto",
    "hosts": False,
}
# Options that qa.py has and no answer depends on: they say what is asked and what is scored.
ABOUT_QUESTIONS = frozenset(
    {"data", "predictions", "sid", "beside", "format", "prompt_column", "response_column"}
    | {"input_column", "context_column", "golds_column", "group_by", "skip_bad"}
)


@dataclass(frozen=True)
class AnsweringModel:
    """A model that was found and is not loaded. name: for tables. engine: its session's module."""

    name: str
    plan: Any
    device: str
    engine: ModuleType

    def made_with(self) -> dict[str, Any]:
        """All that an answer depends on, besides the prompts."""
        found: dict[str, Any] = self.engine.made_with(self.plan)
        return found

    def inputs(self) -> dict[str, Any]:
        """What is read, by the run record's part."""
        found: dict[str, Any] = self.engine.inputs_of(self.plan)
        return found

    def is_repeatable(self) -> bool:
        """Whether the same questions get the same answers, byte for byte."""
        return bool(self.engine.is_repeatable(self.plan))

    def with_style(self, style: Style) -> AnsweringModel:
        """The same with a style of prompts that auto has turned out to mean."""
        settings = {**self.plan.settings, "prompt_style": style}
        return replace(self, plan=replace(self.plan, settings=settings))

    def session(
        self, asked: Sequence[Prompt], missing: Sequence[Key]
    ) -> AbstractContextManager[Session]:
        """The loaded model with the requests for the missing answers."""
        found: AbstractContextManager[Session] = self.engine.session(self.plan, asked, missing)
        return found

    @contextlib.contextmanager
    def reading(self) -> Iterator[tuple[Any, int | None]]:
        """The tokenizer, and how many tokens the model sees at most, without its weights."""
        read = _read_gguf if _is_gguf(self.plan.settings) else _read_folder
        with read(self.plan) as found:
            yield found


def engine_faults(settings: Mapping[str, Any]) -> list[LLMError]:
    """Options that this kind of model doesn't have."""
    gguf = _is_gguf(settings)
    named = {**settings, "model": settings["model"] or settings["adapter"]}
    return list(foreign_options(named, TRANSFORMERS_ONLY if gguf else GGUF_ONLY, gguf))


def _is_gguf(settings: Mapping[str, Any]) -> bool:
    return is_gguf(settings["model"] or "")  # an adapter alone has no name of a model


def open_model(settings: Mapping[str, Any]) -> AnsweringModel:
    """Find the model that the options of qa.py name.

    Raises:
        LLMError, ExceptionGroup: If it is not there, not whole, or has no place to run.
    """
    # The answers' record is of all options; what no answer depends on must not keep it from
    # being continued.
    own = {name: value for name, value in settings.items() if name not in ABOUT_QUESTIONS}
    own |= {**FIXED, "prompts": settings["data"]}
    return _open_gguf(own) if _is_gguf(settings) else _open_folder(own)


def _open_gguf(own: dict[str, Any]) -> AnsweringModel:
    from llm_recipes.gguf import session
    from llm_recipes.gguf.file import read_gguf

    kept = {name: value for name, value in own.items() if name not in TRANSFORMERS_ONLY}
    batch = kept.pop("batch_size")
    path = Path(own["model"]).expanduser()
    plan = session.Plan({**kept, **FIXED_GGUF, "parallel": batch}, read_gguf(path))
    return AnsweringModel(path.stem, plan, session.device_names(own["gpu_layers"]), session)


def _open_folder(own: dict[str, Any]) -> AnsweringModel:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from llm_recipes import device as devices
    from llm_recipes import transformers_session as session
    from llm_recipes.adapters import find_base
    from llm_recipes.model_folder import find_adapter, find_model

    adapter = find_adapter(own["adapter"]) if own["adapter"] else None
    if own["model"] is not None:
        folder = find_model(own["model"])
    else:
        assert adapter is not None
        folder = find_base(adapter, None)
    where = devices.choose_device(own["device"])
    precision = devices.choose_dtype(own["dtype"], where)
    devices.use_granted_cpus()
    kept = {name: value for name, value in own.items() if name not in GGUF_ONLY}
    plan = session.Plan(kept, folder, adapter, where, precision)
    name = (folder.path if adapter is None else adapter).resolve().name
    return AnsweringModel(name, plan, devices.device_name(where), session)


@contextlib.contextmanager
def _read_folder(plan: Any) -> Iterator[tuple[Any, int | None]]:
    from transformers import AutoConfig

    from llm_recipes.models import context_length, loading
    from llm_recipes.tokenizer_folder import load_tokenizer

    trust = plan.settings["trust_remote_code"]
    tokenizer = load_tokenizer(str(plan.folder.path), trust)[1]
    with loading(plan.folder.path):
        config = AutoConfig.from_pretrained(plan.folder.path, trust_remote_code=trust)
    yield tokenizer, context_length(SimpleNamespace(config=config))


@contextlib.contextmanager
def _read_gguf(plan: Any) -> Iterator[tuple[Any, int | None]]:
    from llm_recipes.gguf.model import GgufModel
    from llm_recipes.gguf.session import sequence_limit

    with GgufModel.load(plan.file, vocabulary_only=True) as words:
        yield words.tokenizer, sequence_limit(plan)
