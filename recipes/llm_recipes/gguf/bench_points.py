"""What llama-bench can be started with: models, settings, tests, and every combination of them.

from llm_recipes.gguf.bench_points import Axes, combinations, read_models
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.gguf.engine import Device
from llm_recipes.gguf.file import SHARD, GgufFile, gguf_digest, read_gguf
from llm_recipes.gguf.model import ContextSettings, Placement, Split
from llm_recipes.gguf.placement import GpuLayers, plan_placement, shares_of
from llm_recipes.gguf.remote_hosts import RemoteHost, place_on_hosts
from llm_recipes.gguf.weights_read import bytes_read

# What becomes of a point.
DONE, NO_MEMORY, TOO_LARGE, IMPOSSIBLE, FAILED = (
    "done",
    "out of memory",
    "does not fit",
    "impossible",
    "failed",
)
UNQUANTIZED = ("f16", "bf16")


@dataclass(frozen=True)
class Model:
    """A model that is measured. digest: identity of its content."""

    file: GgufFile
    digest: str

    @property
    def title(self) -> str:
        """Its file's name, which tells models of a folder apart."""
        named = SHARD.match(self.file.path.name)
        return named["stem"] if named else self.file.path.stem

    def described(self) -> dict[str, Any]:
        """What results say about it."""
        return {
            "title": self.title,
            "name": self.file.name,
            "type": self.file.file_type,
            "digest": self.digest,
            "parameters": self.file.parameters,
            "bytes": self.file.tensor_bytes,
            "bits_per_weight": round(self.file.bits_per_weight, 3),
            "layers": self.file.layers,
            "bytes_read": bytes_read(self.file),
        }


@dataclass(frozen=True)
class Setting:
    """How llama-bench is started.

    gpu_layers: the output counts as one, so all of them are one more than the model's layers.
    shares: of each GPU, such as `3/1`, "" by their memory. depth: tokens in the cache before the
    measurement. hosts: RPC workers of other hosts.
    """

    threads: int
    batch: int = 2048
    micro_batch: int = 512
    gpu_layers: int = 0
    split: str = "layer"
    shares: str = ""
    kv_type: str = "f16"
    flash_attention: str = "auto"
    depth: int = 0
    hosts: int = 0


@dataclass(frozen=True)
class Measurement:
    """A test: processing a prompt of so many tokens, or generating so many."""

    prompt: int = 0
    new: int = 0

    @property
    def title(self) -> str:
        """llama-bench's own name for it."""
        return f"pp{self.prompt}" if self.prompt else f"tg{self.new}"

    @property
    def tokens(self) -> int:
        """Tokens that are counted."""
        return self.prompt or self.new


@dataclass(frozen=True)
class Point:
    """A start of llama-bench: a model under a setting, with its tests.

    status, note: what is known of it before it starts, "" if it may run.
    """

    model: Model
    setting: Setting
    tests: tuple[Measurement, ...]
    status: str = ""
    note: str = ""

    def key(self, test: Measurement, version: str) -> str:
        """Identity of a measurement: equal ones are repeats of each other."""
        parts = [self.model.digest, asdict(self.setting), asdict(test), version]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Axes:
    """Values to try of each setting."""

    threads: tuple[int, ...]
    batch: tuple[int, ...] = (2048,)
    micro_batch: tuple[int, ...] = (512,)
    gpu_layers: tuple[GpuLayers, ...] = ("auto",)
    split: tuple[Split, ...] = ("layer",)
    kv_type: tuple[str, ...] = ("f16",)
    flash_attention: tuple[str, ...] = ("auto",)
    depth: tuple[int, ...] = (0,)
    prompt: tuple[int, ...] = (512,)
    new: tuple[int, ...] = (128,)

    def tests(self) -> tuple[Measurement, ...]:
        """What is measured under each setting; 0 tokens are no test."""
        prompts = [Measurement(prompt=count) for count in self.prompt if count]
        news = [Measurement(new=count) for count in self.new if count]
        return tuple(dict.fromkeys([*prompts, *news]))


@dataclass(frozen=True)
class Machine:
    """What llama-bench computes on here.

    gpus: the devices of RPC workers, then those of this host. shares: of them, such as `3,1`; "" by
    their free memory. workers: how many there are. hosts: those of them that `--hosts` started.
    """

    gpus: tuple[Device, ...] = ()
    shares: str = ""
    workers: int = 0
    hosts: tuple[RemoteHost, ...] = ()


def read_models(names: Sequence[str]) -> list[Model]:
    """The models of files and folders, each once, in their order.

    Raises:
        LLMError, ExceptionGroup: Every file that can't be read, and folders without any.
    """
    faults: list[LLMError] = []
    found: dict[str, Model] = {}

    def add(path: Path) -> None:
        file = read_gguf(path)
        kind = file.metadata.get("general.type", "model")
        if kind != "model" or not file.layers:
            what = f"{path} can't be measured"
            raise LLMError(what, f"it holds no language model, but: {kind}", "leave it out")
        model = Model(file, gguf_digest(file))
        found.setdefault(model.digest, model)

    for name in names:
        path = Path(name).expanduser().absolute()
        files = files_of(path) if path.is_dir() else [path]
        if not files:
            fix = "recipes/quantized/convert.py and quantize.py make them"
            faults.append(LLMError(f"{path} holds no .gguf file", fix=fix))
        for file in files:
            faults += faults_of(lambda file=file: add(file))  # type: ignore[misc]
    raise_all(faults)
    return list(found.values())


def files_of(folder: Path) -> list[Path]:
    """GGUF files of a folder, of those in shards the first, smaller ones first."""
    found = []
    for path in folder.glob("*.gguf"):
        named = SHARD.match(path.name)
        if path.is_file() and (named is None or int(named["number"]) == 1):
            found.append(path)
    return sorted(found, key=lambda path: (path.stat().st_size, path.name))


def combinations(models: Sequence[Model], axes: Axes, machine: Machine) -> list[Point]:
    """Every combination, each once: a micro batch is never larger than its batch, and so on."""
    found: dict[tuple[str, Setting], Point] = {}
    for model in models:
        for point in points_of(model, axes, machine):
            found.setdefault((model.digest, point.setting), point)
    return list(found.values())


def points_of(model: Model, axes: Axes, machine: Machine) -> Iterator[Point]:
    """Every combination for a model; some may be the same."""
    tests = axes.tests()
    for layers, split, batch, micro_batch, kv_type, depth in itertools.product(
        axes.gpu_layers, axes.split, axes.batch, axes.micro_batch, axes.kv_type, axes.depth
    ):
        context = ContextSettings(
            tokens=depth + max(test.tokens for test in tests),
            batch=batch,
            micro_batch=min(batch, micro_batch),
            key_type=kv_type,
            value_type=kv_type,
        )
        placement, note = place(model.file, layers, split, context, machine)
        for flash, threads in itertools.product(axes.flash_attention, axes.threads):
            setting = Setting(
                threads=threads,
                batch=batch,
                micro_batch=context.micro_batch,
                gpu_layers=placement.gpu_layers,
                split=split,
                shares="/".join(f"{share:g}" for share in placement.shares),
                kv_type=kv_type,
                flash_attention=flash,
                depth=depth,
                hosts=machine.workers,
            )
            if kv_type not in UNQUANTIZED and flash == "off":
                why = "a quantized K/V cache needs flash attention"
                yield Point(model, setting, tests, IMPOSSIBLE, why)
            else:
                yield Point(model, setting, tests, TOO_LARGE if note else "", note)


def place(
    file: GgufFile, wanted: GpuLayers, split: Split, context: ContextSettings, machine: Machine
) -> tuple[Placement, str]:
    """Where the layers go, and why they don't fit, "" if they do.

    llama.cpp would map a file that is larger than memory and read it from disk again for each
    token: that would measure the disk.
    """
    gpus, shares = machine.gpus, shares_of(machine.shares)
    try:
        if machine.hosts:
            return place_on_hosts(machine.hosts, file, context, wanted, shares), ""
        return plan_placement(file, wanted, split, shares, context, gpus), ""
    except LLMError as fault:
        most = file.layers + 1 if gpus else 0
        known = wanted if isinstance(wanted, int) else most if wanted == "all" else 0
        return Placement(min(known, most), split, shares), f"{fault.what}: {fault.why}"


def varying(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of settings that have more than one value."""
    names = settings[0] if settings else {}
    return [name for name in names if len({repr(values[name]) for values in settings}) > 1]
