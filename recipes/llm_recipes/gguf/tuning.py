"""The best number of threads for a model, measured once by llama-bench and remembered.

    from llm_recipes.gguf.tuning import threads_for
    use(threads_for(read_gguf(Path("model.gguf")), "auto", "auto"))

recipes/quantized/tune.py measures; every recipe with `--threads auto` uses what it found. A result
belongs to the CPU's model, what was granted of it, the model's shape and quantization type, and the
version of llama.cpp: another of these, and the granted cores are taken until somebody tunes again.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from llm_recipes.cpu_topology import cpu_model
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.files import write_text
from llm_recipes.folders import user_cache
from llm_recipes.gguf.file import GgufFile
from llm_recipes.gguf.programs import readable_path, run_program
from llm_recipes.gguf.sweep import Setting, Work
from llm_recipes.gguf.threads import (
    MOST_THREADS,
    Cores,
    Numa,
    Threads,
    granted_cores,
    pinned_to,
    reason,
)
from llm_recipes.granted_cpus import SYSTEM

SCHEMA = 1


@dataclass(frozen=True)
class Tuned:
    """What a sweep has found: threads for steps of one token and of several.

    pinned: to the first hyper-thread of as many cores. measured: when, ISO 8601.
    """

    generate: int
    prompt: int
    pinned: bool
    numa: Numa
    measured: str


def threads_for(
    file: GgufFile,
    threads: str | int = "auto",
    prompt_threads: str | int = "auto",
    cores: Cores | None = None,
) -> Threads:
    """Threads for a model: what the user says, else what tune.py has found, else granted cores.

    Args:
        file: The model.
        threads: For steps of one token; auto or a number.
        prompt_threads: For prompts and several sequences at once; auto: as many as the user said
            for steps of one token, else as for them.
        cores: What was granted; None: asked here.

    Raises:
        LLMError, ExceptionGroup: A number of threads that is none.
    """
    faults: list[LLMError] = []
    generate = _number(threads, "--threads", faults)
    prompt = _number(prompt_threads, "--prompt-threads", faults) or generate
    raise_all(faults)
    cores = cores or granted_cores()
    if generate is not None and prompt is not None:
        return _as_told(generate, prompt, cores)
    tuned = recall(key_of(file, cores))
    if tuned is None:
        tuned = Tuned(cores.generate, cores.prompt, cores.pinned, cores.numa, "")
        why = reason(cores)
    else:
        why = f"tuned on {tuned.measured[:10]}: {tuned.generate} for generation, "
        why += f"{tuned.prompt} for prompts; {cores.granted.reason}"
    if prompt is not None:
        why += f"; --prompt-threads {prompt}"
    most = max(tuned.generate, prompt or tuned.prompt)
    return Threads(
        tuned.generate,
        prompt or tuned.prompt,
        cores.places(most if tuned.pinned else len(cores.cpus)),
        why,
        tuned.numa,
    )


def key_of(file: GgufFile, cores: Cores, system: Path = SYSTEM) -> dict[str, Any]:
    """All that a result depends on; which CPUs it were does not count, only how many."""
    return {
        "cpu": cpu_model(system),
        "cpus": len(cores.granted.cpus),
        "granted": round(cores.granted.limit, 2),
        "cores": [cores.generate, cores.prompt],
        "pinned": cores.pinned,
        "numa": cores.numa,
        "default": cores.default,
        "architecture": file.architecture,
        "parameters": file.parameters,
        "layers": file.layers,
        "type": file.file_type,
        "llama.cpp": llama_version(),
    }


def llama_version() -> str:
    """The version of llama-cpp-python, whose llama.cpp all programs of the image are."""
    try:
        return importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def result_path(key: Mapping[str, Any]) -> Path:
    """The file of a result: one for each key, so that processes don't wait for each other."""
    text = json.dumps(key, sort_keys=True, ensure_ascii=False)
    return user_cache("threads") / f"{sha256(text.encode()).hexdigest()[:20]}.json"


def recall(key: Mapping[str, Any]) -> Tuned | None:
    """What a sweep has found for this key; None if there was none, or its file is damaged."""
    try:
        kept = json.loads(result_path(key).read_bytes())
        if kept["schema"] != SCHEMA or kept["key"] != dict(key):
            return None
        found = Tuned(**kept["tuned"])
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    counts = (found.generate, found.prompt)
    whole = all(type(count) is int and 0 < count <= MOST_THREADS for count in counts)
    known = isinstance(found.measured, str) and found.numa in ("none", "distribute")
    return found if whole and known and isinstance(found.pinned, bool) else None


def remember(key: Mapping[str, Any], tuned: Tuned, rows: list[dict[str, Any]]) -> Path:
    """Keep what a sweep has found, with what it measured; an older result is replaced.

    Raises:
        LLMError: If the cache cannot be written.
    """
    path = result_path(key)
    kept = {"schema": SCHEMA, "key": dict(key), "tuned": asdict(tuned), "measured": rows}
    with cache_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(kept, indent=2, ensure_ascii=False) + "\n")
    return path


def check_cache(key: Mapping[str, Any]) -> None:
    """Find out before minutes of measuring whether the result can be kept.

    Raises:
        LLMError: If the cache cannot be written.
    """
    folder = result_path(key).parent
    with cache_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)


def forget(key: Mapping[str, Any]) -> Path | None:
    """Remove a result; returns the file that was removed.

    Raises:
        LLMError: If it cannot be removed.
    """
    path = result_path(key)
    with cache_errors(path.parent):
        if not path.exists():
            return None
        path.unlink()
    return path


@contextlib.contextmanager
def cache_errors(folder: Path) -> Iterator[None]:
    """Say where results are kept, if that is not possible there.

    Raises:
        LLMError: For the operating system's errors.
    """
    fix = "set LLM_CACHE_DIR to a folder with space that you can write"
    what = f"cannot keep what was measured in {folder}"
    try:
        yield
    except LLMError as fault:
        raise LLMError(what, fault.why, fix) from None
    except OSError as error:
        raise LLMError(what, error.strerror or str(error), fix) from None


def bench_rate(file: GgufFile, work: Work, setting: Setting, tokens: int, cores: Cores) -> float:
    """Tokens a second of one measurement by llama-bench, on CPUs alone.

    Args:
        work: `generate`, a token a step, or `prompt`, all tokens in one.
        tokens: How many.

    Raises:
        LLMError: If it could not run, with its own words.
    """
    counts = (0, tokens) if work == "generate" else (tokens, 0)
    options = ["-o", "jsonl", "-r", "1", "-ngl", "0", "-dev", "none"]
    options += ["-p", str(counts[0]), "-n", str(counts[1]), "-t", str(setting.threads)]
    options += [] if setting.numa == "none" else ["--numa", setting.numa]
    places = cores.places(setting.threads) if setting.pinned else cores.granted.cpus
    with readable_path(file) as path, pinned_to(places):
        output = run_program(["llama-bench", "-m", str(path), *options])
    try:
        (row,) = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
        return float(row["avg_ts"])
    except (ValueError, KeyError, TypeError) as error:
        said = " ".join(output.split())[:200]
        raise LLMError("llama-bench gave no figures", said or "it said nothing") from error


def _number(text: str | int, option: str, faults: list[LLMError]) -> int | None:
    """Threads that an option asks for; None for auto."""
    if str(text).strip().lower() == "auto":
        return None
    if re.fullmatch(r"\d{1,6}", str(text), re.ASCII) and 0 < int(text) <= MOST_THREADS:
        return int(text)
    why = f"expected auto, or a number from 1 to {MOST_THREADS}"
    faults.append(LLMError(f"{option} {text} is no number of threads", why))
    return None


def _as_told(generate: int, prompt: int, cores: Cores) -> Threads:
    told, granted = max(generate, prompt), math.ceil(cores.granted.limit)
    why = f"{generate} for generation, {prompt} for prompts, as told; {cores.granted.reason}"
    if told > granted:
        why += f": {told} threads on {granted} wait for each other"
    return Threads(generate, prompt, cores.places(told), why, cores.numa)
