"""llama.cpp in this process: loaded once, its log kept instead of shown, its devices listed.

    llm-run python -c "from llm_recipes.gguf.engine import *; print(*devices(), sep='\\n')"

llama.cpp writes what it does into a log and nowhere else: where layers and buffers lie, and why
loading failed. So every line is seen here, the last errors are kept for messages to users, and
`captured_log` collects what a call says.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError

# ggml_log_level, ggml.h
DEBUG, WARN, ERROR, CONTINUED = 1, 3, 4, 5
KINDS = {0: "cpu", 1: "gpu", 2: "igpu", 3: "accel", 4: "meta"}  # ggml_backend_dev_type
KEPT_ERRORS = 20
KERNELS, CPU_LIBRARY = "LLM_CPU_KERNELS", "libggml-cpu-"


@dataclass
class _Log:
    """What llama.cpp says; one for the process, as its callback is."""

    errors: deque[str] = field(default_factory=lambda: deque(maxlen=KEPT_ERRORS))
    listeners: list[list[str]] = field(default_factory=list)
    level: int = 0
    partial: str = ""
    callback: Any = None  # kept alive: C holds it
    raised: list[BaseException] = field(default_factory=list)

    def take(self, level: int, text: bytes | None, _data: object) -> None:
        """llama.cpp's callback: a piece of text, mostly a line."""
        try:
            self._take(level, text)
        except (
            BaseException
        ) as error:  # a signal's handler; C can't pass it on, Python would drop it
            self.raised.append(error)

    def _take(self, level: int, text: bytes | None) -> None:
        if level != CONTINUED:
            self.level = level
        self.partial += (text or b"").decode("utf-8", "replace")
        while "\n" in self.partial:
            line, _, self.partial = self.partial.partition("\n")
            for lines in self.listeners:
                lines.append(line)
            if self.level >= ERROR and line.strip():
                self.errors.append(line.strip())
            if os.environ.get("LLM_LLAMA_LOG"):
                print(line, file=sys.stderr)


_log = _Log()


@dataclass(frozen=True)
class Device:
    """A device that llama.cpp computes on.

    name: `CPU`, `CUDA0`, `RPC0`. kind: cpu, gpu, igpu or accel; one of another host is a gpu.
    handle: llama.cpp's own, for calls.
    """

    name: str
    description: str
    kind: str
    total_bytes: int
    free_bytes: int
    handle: int


@functools.cache
def library() -> Any:
    """The module `llama_cpp`, with the best kernels of this CPU and a GPU's, where there is one.

    Set LLM_LLAMA_LOG=1 to see llama.cpp's own log, and LLM_CPU_KERNELS to one of its variants, such
    as haswell or x64 (for every CPU), to find out whether it is the kernels that differ or fail.

    Raises:
        LLMError: If this environment has no llama.cpp, or not these kernels.
    """
    try:
        import llama_cpp
    except (ImportError, OSError, RuntimeError) as error:
        raise LLMError(
            "llama.cpp can't be loaded",
            str(error),
            "use the image llm: llm-run python ...; pip install llama-cpp-python elsewhere",
        ) from None
    _log.callback = llama_cpp.llama_log_callback(_log.take)
    llama_cpp.llama_log_set(_log.callback, ctypes.c_void_p(0))
    if os.environ.get(KERNELS):
        _load_kernels(os.environ[KERNELS])
    llama_cpp.llama_backend_init()  # loads what suits this machine, if nothing is loaded yet
    if not _ggml().ggml_backend_dev_count():  # asking for memory would open a GPU
        fix = "use the image llm: llm-run python ..."
        raise LLMError("llama.cpp finds no backend", "not even one for CPUs", fix)
    return llama_cpp


def devices() -> list[Device]:
    """All devices of this process, those of connected hosts included."""
    library()
    return _all_devices()


def gpu_devices() -> list[Device]:
    """Devices that layers can be given to: GPUs, and what other hosts offer."""
    return [device for device in devices() if device.kind in ("gpu", "igpu")]


def kernel_library() -> str:
    """File name of the CPU kernels that were chosen, such as `libggml-cpu-haswell.so`."""
    library()
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as maps:
        found = {line.rsplit("/", 1)[-1].strip() for line in maps if "libggml-cpu" in line}
    return ", ".join(sorted(found)) or "unknown"


def connect_rpc(endpoint: str) -> list[Device]:
    """Connect a `ggml-rpc-server`, so that its devices are ours; returns them.

    Args:
        endpoint: ADDRESS:PORT. Nothing is encrypted on the way.

    Raises:
        LLMError: If this build has no RPC. A server that can't be reached ends the process: that
            is how ggml's client is, so look first whether it listens.
    """
    library()
    known = {device.name for device in _all_devices()}
    ggml = _ggml()
    registry = ggml.ggml_backend_reg_by_name(b"RPC")
    address = registry and ggml.ggml_backend_reg_get_proc_address(
        registry, b"ggml_backend_rpc_add_server"
    )
    if not address:
        raise LLMError("this llama.cpp has no RPC", fix="use the image llm")
    add_server = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)
    server = add_server(endpoint.encode())
    if not server:
        raise LLMError(f"the RPC server {endpoint} offers no devices", last_error())
    ggml.ggml_backend_register(server)
    return [device for device in _all_devices() if device.name not in known]


@contextlib.contextmanager
def captured_log() -> Iterator[list[str]]:
    """llama.cpp's log lines of all levels while the block runs."""
    lines: list[str] = []
    _log.listeners.append(lines)
    try:
        yield lines
    finally:
        # By identity: two lists that are equal are not the same listener.
        _log.listeners[:] = [other for other in _log.listeners if other is not lines]


def raise_caught() -> None:
    """Raise what a signal's handler raised while llama.cpp was writing its log.

    For the end of calls that take long: Ctrl-C would be lost otherwise.
    """
    if _log.raised:
        error = _log.raised[0]
        _log.raised.clear()
        raise error


def last_error() -> str:
    """What llama.cpp last said went wrong, the cause first; empty if nothing did."""
    found = list(_log.errors)[-3:]
    return "; ".join(found)


def forget_errors() -> None:
    """Begin anew: what is said from here on belongs to the next call."""
    _log.errors.clear()


def type_number(name: str) -> int | None:
    """ggml's number of a tensor type such as `q8_0` or `F16`; None if there is none."""
    wanted = name.lower()
    names = [known.lower() if known else "" for known in _type_names()]
    return names.index(wanted) if wanted in names else None


def type_name(number: int) -> str | None:
    """ggml's name of a tensor type, in capitals; None if there is none with this number."""
    names = _type_names()
    return names[number] if 0 <= number < len(names) else None


@functools.cache
def _type_names() -> tuple[str | None, ...]:
    ggml = _ggml()
    names: list[str | None] = []
    for number in range(library().GGML_TYPE_COUNT):
        raw = ggml.ggml_type_name(number)
        name = raw.decode() if raw else ""
        removed = not name or "removed" in name.lower() or ggml.ggml_type_size(number) == 0
        names.append(None if removed else name.upper())
    return tuple(names)


def _load_kernels(variant: str) -> None:
    folder = Path(_binding()._base_path).resolve()
    found = {path.stem.removeprefix(CPU_LIBRARY): path for path in folder.glob(f"{CPU_LIBRARY}*")}
    if variant not in found:
        fix = f"one of {', '.join(sorted(found)) or 'none'}, or leave {KERNELS} unset"
        raise LLMError(f"{KERNELS}={variant}: this llama.cpp has no such kernels", fix=fix)
    others = sorted(set(folder.glob("libggml-*.so")) - set(folder.glob("libggml-base.so")))
    for path in (found[variant], *(p for p in others if not p.name.startswith(CPU_LIBRARY))):
        _ggml().ggml_backend_load(os.fsencode(path))
    if not _ggml().ggml_backend_dev_count():
        why = "a CPU without the instructions that they need"
        raise LLMError(f"the kernels {variant} can't run here", why, f"leave {KERNELS} unset")


def _all_devices() -> list[Device]:
    ggml = _ggml()
    found = []
    for index in range(ggml.ggml_backend_dev_count()):
        handle = ggml.ggml_backend_dev_get(index)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        ggml.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
        found.append(
            Device(
                ggml.ggml_backend_dev_name(handle).decode(),
                ggml.ggml_backend_dev_description(handle).decode("utf-8", "replace"),
                KINDS.get(ggml.ggml_backend_dev_type(handle), "other"),
                total.value,
                free.value,
                handle,
            )
        )
    return found


@functools.cache
def _ggml() -> Any:
    """libggml as this process has it already: another name of the file loads a second one."""
    # dlopen's own scope of libllama sees libggml and libggml-base, which it is linked with.
    ggml = _binding()._lib
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ggml_backend_load": (ctypes.c_void_p, [ctypes.c_char_p]),
        "ggml_backend_dev_count": (ctypes.c_size_t, []),
        "ggml_backend_dev_get": (ctypes.c_void_p, [ctypes.c_size_t]),
        "ggml_backend_dev_name": (ctypes.c_char_p, [ctypes.c_void_p]),
        "ggml_backend_dev_description": (ctypes.c_char_p, [ctypes.c_void_p]),
        "ggml_backend_dev_type": (ctypes.c_int, [ctypes.c_void_p]),
        "ggml_backend_dev_memory": (None, [ctypes.c_void_p] + [ctypes.c_void_p] * 2),
        "ggml_backend_reg_by_name": (ctypes.c_void_p, [ctypes.c_char_p]),
        "ggml_backend_reg_get_proc_address": (ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]),
        "ggml_backend_register": (None, [ctypes.c_void_p]),
        "ggml_type_name": (ctypes.c_char_p, [ctypes.c_int]),
        "ggml_type_size": (ctypes.c_size_t, [ctypes.c_int]),
        "ggml_blck_size": (ctypes.c_int64, [ctypes.c_int]),
        "ggml_row_size": (ctypes.c_size_t, [ctypes.c_int, ctypes.c_int64]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(ggml, name)
        function.restype, function.argtypes = result, arguments
    return ggml


def _binding() -> Any:
    """llama-cpp-python's module of C functions."""
    import llama_cpp.llama_cpp as binding

    return binding


def row_bytes(type_name: str, elements: int) -> int:
    """Bytes of a row of so many elements in a tensor type."""
    number = type_number(type_name)
    if number is None:
        raise ValueError(f"unknown tensor type {type_name}")
    size: int = _ggml().ggml_row_size(number, elements)
    return size
