"""A GGUF model in memory and its contexts: tokens in, logits out, several sequences at once.

    from llm_recipes.gguf.file import read_gguf
    from llm_recipes.gguf.model import ContextSettings, GgufModel
    with GgufModel.load(read_gguf("model.gguf")) as model:
        with model.context(ContextSettings(tokens=512)) as context:
            logits = context.decode([1, 15043], [0, 1], [0, 0], [False, True])

llama-cpp-python's high-level class runs one sequence at a time and costs more than a small model;
its C functions are used here.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np

from llm_recipes.errors import LLMError
from llm_recipes.gguf import engine
from llm_recipes.gguf.file import GgufFile
from llm_recipes.gguf.tokenizer import HUGGING_FACE_KEY, GgufTokenizer

Split = Literal["none", "layer", "row", "tensor"]
SPLITS = {"none": 0, "layer": 1, "row": 2, "tensor": 3}  # llama_split_mode
LOAD_MODES = {"auto": -1, "read": 0, "mmap": 1, "lock": 3, "direct": 4}  # llama_load_mode
FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}  # llama_flash_attn_type
LAYER_LINE = re.compile(r"layer +(\d+) assigned to device ([^,]+),")
BUFFER_LINE = re.compile(r": +(\S.*?) +(model|KV|compute|output|RS) buffer size = +([\d.]+) MiB")
MIB = 2**20
CELLS = 256  # llama.cpp rounds a sequence's room up to this
SMALLER = "use a smaller or more quantized model, more memory, or other hosts too (--hosts)"

Integers: TypeAlias = "Sequence[int] | np.ndarray[Any, np.dtype[Any]]"
Logits: TypeAlias = "np.ndarray[Any, np.dtype[np.float32]]"


@dataclass(frozen=True)
class Placement:
    """Where the layers live.

    gpu_layers: how many go to GPUs or other hosts, the last ones; -1 is all. split: how several
    share them. shares: in which proportion; empty: by their free memory. devices: their names, in
    the order of layers and shares; None: all there are.
    """

    gpu_layers: int = 0
    split: Split = "layer"
    shares: tuple[float, ...] = ()
    devices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ContextSettings:
    """What a context has room for, and what computes it.

    tokens: of each sequence. batch: tokens a call at most. micro_batch: tokens computed at once.
    threads: for steps of a single token; prompt_threads: for all others. key_type, value_type: of
    the cache. flash_attention: auto, on or off.
    """

    tokens: int
    sequences: int = 1
    batch: int = 2048
    micro_batch: int = 512
    threads: int = 1
    prompt_threads: int = 1
    key_type: str = "f16"
    value_type: str = "f16"
    flash_attention: str = "auto"


class GgufModel:
    """A loaded model; a context manager that frees it.

    layer_devices: name of the device of each layer, the output layer last. buffers: bytes of
    weights by the buffer's name. load_s: seconds.
    """

    def __init__(self, file: GgufFile, handle: Any, log: Sequence[str], load_s: float) -> None:
        llama = engine.library()
        self.file = file
        self.load_s = load_s
        self.layer_devices = layer_devices(log)
        self.buffers = buffers(log)
        self._handle = handle
        self._vocabulary = llama.llama_model_get_vocab(handle)
        self.layers = int(llama.llama_model_n_layer(handle))
        self.vocabulary = int(llama.llama_vocab_n_tokens(self._vocabulary))
        self.context_length = int(llama.llama_model_n_ctx_train(handle))
        self.parameters = int(llama.llama_model_n_params(handle))

    @classmethod
    def load(
        cls,
        file: GgufFile,
        placement: Placement | None = None,
        load_mode: str = "auto",
        progress: bool = False,
        vocabulary_only: bool = False,
    ) -> GgufModel:
        """Load a model; Ctrl-C ends the loading.

        Args:
            file: Its header.
            placement: Where the layers go; None: all stay on the CPU.
            load_mode: auto, read, mmap, lock (mmap, never swapped out) or direct.
            progress: Show how far it is, on a terminal.
            vocabulary_only: Read no weights: enough for the tokenizer.

        Raises:
            LLMError: If llama.cpp can't load it, with its reason.
        """
        llama = engine.library()
        parameters = llama.llama_model_default_params()
        kept = _place(parameters, placement or Placement())
        parameters.load_mode = LOAD_MODES[load_mode]
        parameters.vocab_only = vocabulary_only
        stopped: list[BaseException] = []
        parameters.progress_callback = _progress(stopped, progress)
        engine.forget_errors()
        start = time.perf_counter()
        with engine.captured_log() as log:
            handle = llama.llama_model_load_from_file(os.fsencode(file.path), parameters)
        load_s = time.perf_counter() - start
        if progress and sys.stderr.isatty():
            print("\r\033[K", end="", file=sys.stderr)
        try:
            if stopped:
                raise stopped[0]
            engine.raise_caught()
        except BaseException:
            if handle:
                llama.llama_model_free(handle)
            raise
        del kept  # arrays that the call has read
        if not handle:
            why = engine.last_error() or "llama.cpp gives no reason"
            raise LLMError(f"cannot load {file.path}", why, _load_fix(why))
        return cls(file, handle, log, load_s)

    @functools.cached_property
    def tokenizer(self) -> GgufTokenizer:
        """The model's own."""
        template = engine.library().llama_model_chat_template(self._handle, None)
        original = self.file.metadata.get(HUGGING_FACE_KEY)
        return GgufTokenizer(
            self._vocabulary, template.decode("utf-8") if template else None, original
        )

    @functools.cached_property
    def own_tokenizer(self) -> GgufTokenizer:
        """llama.cpp's own, which its programs use, whatever tokenizer the file carries."""
        return GgufTokenizer(self._vocabulary, None)

    def context(self, settings: ContextSettings) -> GgufContext:
        """Room for sequences.

        Raises:
            LLMError: If there is no memory for it, or the cache types don't go together.
        """
        return GgufContext(self, settings)

    def close(self) -> None:
        """Free the memory."""
        if self._handle:
            engine.library().llama_model_free(self._handle)
            self._handle = None

    def __enter__(self) -> GgufModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class GgufContext:
    """Sequences of a model and their keys and values; a context manager that frees them.

    tokens: room of each sequence, what llama.cpp made of the settings. batch: tokens of a call at
    most, never more than all sequences have room for. buffers: bytes of cache and
    scratch memory by the buffer's name.
    """

    def __init__(self, model: GgufModel, settings: ContextSettings) -> None:
        llama = engine.library()
        self.model = model
        self.settings = settings
        self._handle: Any = None
        engine.forget_errors()
        with engine.captured_log() as log:
            handle = llama.llama_init_from_model(model._handle, _context_parameters(settings))
        try:
            engine.raise_caught()
        except BaseException:
            if handle:
                llama.llama_free(handle)
            raise
        if not handle:
            why = engine.last_error() or "llama.cpp gives no reason"
            size = f"{settings.sequences} x {settings.tokens} tokens"
            fix = "lower --context or --parallel, or use a smaller --kv-type such as q8_0"
            raise LLMError(f"cannot make a context of {size}", why, fix)
        self._handle = handle
        self.buffers = buffers(log)
        self.tokens = int(llama.llama_n_ctx_seq(handle))
        self._memory = llama.llama_get_memory(handle)
        self.batch = int(llama.llama_n_batch(handle))
        self._arrays = _Batch(self.batch)

    def decode(
        self, token_ids: Integers, positions: Integers, sequences: Integers, wanted: Integers
    ) -> Logits:
        """Compute tokens, each after those before it in its sequence.

        Args:
            token_ids: At most `batch`.
            positions: Of each token within its sequence, from 0.
            sequences: Number of each token's sequence; tokens of a sequence in order.
            wanted: Whether the logits of what follows the token are asked for.

        Returns:
            Logits [number wanted, vocabulary], in the order of the tokens; the next call overwrites
            them.

        Raises:
            LLMError: If a sequence has no room left, or the computation fails.
        """
        if len(token_ids) > self.batch:  # llama.cpp would end the process
            raise ValueError(f"{len(token_ids)} tokens are more than a batch of {self.batch}")
        llama = engine.library()
        count = self._arrays.fill(token_ids, positions, sequences, wanted)
        status = llama.llama_decode(self._handle, self._arrays.struct)
        engine.raise_caught()
        if status != 0:
            raise _decode_fault(status)
        if not count:
            return np.empty((0, self.model.vocabulary), np.float32)
        address = ctypes.cast(llama.llama_get_logits(self._handle), ctypes.c_void_p).value
        flat = (ctypes.c_float * (count * self.model.vocabulary)).from_address(address or 0)
        return np.frombuffer(flat, np.float32).reshape(count, self.model.vocabulary)

    def forget(self, sequence: int, start: int = 0) -> bool:
        """Remove a sequence's tokens from a position on; -1 is every sequence.

        Returns False, and changes nothing, if a recurrent model can't go back to that position.
        """
        llama = engine.library()
        return bool(llama.llama_memory_seq_rm(self._memory, sequence, start, -1))

    def copy(self, source: int, target: int) -> None:
        """Make `target`, emptied before, begin with all tokens of `source`."""
        llama = engine.library()
        llama.llama_memory_seq_rm(self._memory, target, 0, -1)
        llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)

    def close(self) -> None:
        """Free the memory."""
        if self._handle:
            engine.library().llama_free(self._handle)
            self._handle = None

    def __enter__(self) -> GgufContext:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Batch:
    """A llama_batch over arrays of numpy, made once and filled for each call."""

    def __init__(self, size: int) -> None:
        self._tokens = np.zeros(size, np.int32)
        self._positions = np.zeros(size, np.int32)
        self._counts = np.ones(size, np.int32)
        self._sequences = np.zeros(size, np.int32)
        self._wanted = np.zeros(size, np.int8)
        # Each token may be in several sequences; here it is in one, the element of an array.
        step = self._sequences.itemsize
        self._pointers = self._sequences.ctypes.data + step * np.arange(size, dtype=np.uint64)
        self.struct = engine.library().llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._pointers),
            ("logits", self._wanted),
        ):
            kind = dict(self.struct._fields_)[name]
            setattr(self.struct, name, ctypes.cast(array.ctypes.data, kind))

    def fill(
        self, token_ids: Integers, positions: Integers, sequences: Integers, wanted: Integers
    ) -> int:
        """Take a call's tokens; returns how many logits are wanted."""
        length = len(token_ids)
        self._tokens[:length] = token_ids
        self._positions[:length] = positions
        self._sequences[:length] = sequences
        self._wanted[:length] = wanted
        self.struct.n_tokens = length
        return int(np.count_nonzero(self._wanted[:length]))


def layer_devices(log: Sequence[str]) -> dict[int, str]:
    """Which layer llama.cpp says it gave to which device."""
    found = (LAYER_LINE.search(line) for line in log)
    return {int(match[1]): match[2] for match in found if match}


def buffers(log: Sequence[str]) -> dict[str, int]:
    """Bytes that llama.cpp says it allocated, by the buffer's name, such as CPU_Mapped, CUDA0."""
    sizes: dict[str, int] = {}
    for match in (BUFFER_LINE.search(line) for line in log):
        if match:
            sizes[match[1]] = sizes.get(match[1], 0) + int(float(match[3]) * MIB)
    return sizes


def _place(parameters: Any, placement: Placement) -> list[Any]:
    """Set the placement in llama.cpp's parameters; returns arrays that must outlive the call."""
    kept: list[Any] = []
    parameters.n_gpu_layers = placement.gpu_layers
    parameters.split_mode = SPLITS[placement.split]
    known = engine.gpu_devices()
    chosen = known
    if placement.devices is not None:
        by_name = {device.name: device for device in known}
        chosen = [by_name[name] for name in placement.devices if name in by_name]
    if placement.gpu_layers == 0:
        chosen = []
    handles = (ctypes.c_void_p * (len(chosen) + 1))(*[device.handle for device in chosen], None)
    parameters.devices = ctypes.cast(handles, ctypes.c_void_p)
    kept.append(handles)
    if placement.shares:
        most = engine.library().llama_max_devices()
        given = placement.shares[:most]
        shares = (ctypes.c_float * most)(*given)
        parameters.tensor_split = shares
        kept.append(shares)
    return kept


def _context_parameters(settings: ContextSettings) -> Any:
    parameters = engine.library().llama_context_default_params()
    parameters.n_ctx = -(-settings.tokens // CELLS) * CELLS * settings.sequences
    parameters.n_batch = settings.batch
    parameters.n_ubatch = min(settings.micro_batch, settings.batch)
    parameters.n_seq_max = settings.sequences
    parameters.n_threads = settings.threads
    parameters.n_threads_batch = settings.prompt_threads
    parameters.type_k = engine.type_number(settings.key_type)
    parameters.type_v = engine.type_number(settings.value_type)
    parameters.flash_attn_type = FLASH_ATTENTION[settings.flash_attention]
    # Each sequence has cells of its own: attention does not look through those of the others.
    parameters.kv_unified = False
    parameters.no_perf = True
    return parameters


def _progress(stopped: list[BaseException], show: bool) -> Any:
    """llama.cpp's callback while it loads; the one place where Ctrl-C is noticed then."""
    terminal = show and sys.stderr.isatty()

    def advance(share: float, _data: object) -> bool:
        try:
            if terminal:
                print(f"\rloading {100 * share:3.0f} %", end="", file=sys.stderr, flush=True)
        except BaseException as error:  # raised by a signal's handler; C can't pass it on
            stopped.append(error)
        return not stopped

    return engine.library().llama_progress_callback(advance)


def _load_fix(why: str) -> str:
    if re.search(r"alloc|memory", why):
        return SMALLER
    if "unknown model architecture" in why:
        return "this llama.cpp is older than the model; convert it anew or use a newer image"
    return "convert it again, or look whether the file was copied whole"


def _decode_fault(status: int) -> LLMError:
    if status == 1:
        fix = "raise --context"
        return LLMError("no room left in the context", "a sequence is longer than it", fix)
    why = engine.last_error() or f"llama_decode returned {status}"
    return LLMError("llama.cpp failed to compute", why, SMALLER)
