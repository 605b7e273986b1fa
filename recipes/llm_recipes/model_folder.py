"""Find a model's folder, by path or hub name, and say what is missing or damaged in it.

from llm_recipes.model_folder import find_model
folder = find_model("/models/Mistral-7B-v0.1")
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from shlex import quote
from typing import BinaryIO

from llm_recipes.errors import LLMError, raise_all

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "tokenizer.tiktoken",
    "spiece.model",
)
WEIGHT_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
LFS_POINTER = b"version https://git-lfs"
WEIGHT_SUFFIXES = (".safetensors", ".bin")
SETTING_SUFFIXES = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".py")  # .py: its own code
LARGEST_SETTINGS = 1 << 26  # bytes; a vocabulary of 256,000 has half of it
DIGEST_PIECES, DIGEST_PIECE_BYTES = 16, 65536
TENSOR_PIECE_BYTES = 4096  # of each tensor's beginning and middle


@dataclass(frozen=True)
class ModelFolder:
    """A complete model on disk: its folder and the files of weights."""

    path: Path
    weights: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Bytes of weights on disk."""
        return sum(file.stat().st_size for file in self.weights)


def find_model(name: str) -> ModelFolder:
    """The folder of a model given by path or hub name, checked for completeness.

    Raises:
        LLMError, ExceptionGroup: Everything that is missing or damaged, with what to do.
    """
    folder = Path(name).expanduser()
    with readable(folder):
        if not folder.is_dir():
            folder = _hub_folder(name)
        faults, weights = _check_folder(folder)
    raise_all(faults)
    return ModelFolder(folder, tuple(weights))


def find_adapter(name: str) -> Path:
    """The folder of a PEFT adapter given by path or hub name.

    Raises:
        LLMError: What is missing or damaged.
    """
    folder = Path(name).expanduser()
    with readable(folder):
        if not folder.is_dir():
            folder = _hub_folder(name)
        missing = [] if (folder / "adapter_config.json").is_file() else ["adapter_config.json"]
        weights = [folder / file for file in ADAPTER_WEIGHTS if (folder / file).is_file()]
        if not weights:
            missing.append(ADAPTER_WEIGHTS[0])
        if missing:
            whole = (folder / "config.json").is_file()
            fix = "it is a whole model, and needs no other: --model takes it" if whole else ""
            raise LLMError(f"{folder} is no PEFT adapter", f"missing: {', '.join(missing)}", fix)
        damage = _damage(weights[0])  # the one that PEFT loads
    raise_all([] if damage is None else [damage])
    return folder


def folder_digest(folder: Path) -> str:
    """SHA-256 over names, sizes, settings, tokenizer, and pieces of the weights and of each tensor.

    Whole files of many GB would take longer to read than the model to run; pieces of each tensor
    tell two fine-tuned copies of a model apart, even if a single layer was trained.

    Raises:
        LLMError: If a file cannot be read.
    """
    found = sha256()
    with readable(folder):
        for file in sorted(folder.iterdir()):
            is_record = file.name == "run.json" or file.name.endswith(".run.json")
            known = file.suffix in WEIGHT_SUFFIXES + SETTING_SUFFIXES and not is_record
            if known and not file.is_dir():
                for piece in _pieces(file):
                    found.update(piece)
    return found.hexdigest()


def _pieces(file: Path) -> Iterator[bytes]:
    """Name, size, and what of a file goes into the digest."""
    size = file.stat().st_size
    yield os.fsencode(file.name) + f"\0{size}\0".encode()
    with open(file, "rb") as data:
        if file.suffix in SETTING_SUFFIXES and size <= LARGEST_SETTINGS:
            yield data.read()
            return
        for piece in range(DIGEST_PIECES):
            data.seek(max(0, (size - DIGEST_PIECE_BYTES) * piece // (DIGEST_PIECES - 1)))
            yield data.read(DIGEST_PIECE_BYTES)
        places = _tensor_places(data, size) if file.suffix == ".safetensors" else []
        for begin, end in sorted(place for place in places if 0 < place[0] <= place[1] <= size):
            for start in (begin, (begin + end) // 2):
                data.seek(start)
                yield data.read(min(TENSOR_PIECE_BYTES, end - start))


def _tensor_places(data: BinaryIO, size: int) -> list[tuple[int, int]]:
    """Where each tensor of a safetensors file begins and ends; none if it is no whole one.

    https://huggingface.co/docs/safetensors: 8 bytes header length, header, tensors.
    """
    data.seek(0)
    length = int.from_bytes(data.read(8), "little")
    try:
        header = json.loads(data.read(length)) if 0 < length <= size else {}
        offsets = [v["data_offsets"] for k, v in header.items() if k != "__metadata__"]
        return [(8 + length + int(begin), 8 + length + int(end)) for begin, end in offsets]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return []


@contextlib.contextmanager
def readable(folder: Path) -> Iterator[None]:
    """What the system refuses in the block becomes a fault of a user's.

    Raises:
        LLMError: If a file or a folder cannot be read.
    """
    # Closed folders: on Python 3.11 even Path.is_file and its like raise for them.
    try:
        yield
    except OSError as error:
        path = error.filename or folder
        fix = "look at the permissions, and whether it is a link to nothing: ls -l"
        raise LLMError(f"cannot read {path}", error.strerror or str(error), fix) from None


def _hub_folder(name: str) -> Path:
    """The folder of a hub model in the cache; downloaded if a network is there."""
    looks_like_path = name.startswith((".", "/", "~")) or name.count("/") != 1
    if looks_like_path:
        raise no_such_folder(name)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import constants, snapshot_download

    wanted = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken"]
    try:
        found = Path(snapshot_download(name, local_files_only=True, allow_patterns=wanted))
        if (found / "config.json").is_file() or (found / "adapter_config.json").is_file():
            return found
    except Exception:  # not in the cache: many exception types, one meaning
        pass
    reason = "it is no folder here, it is not in the cache, and HF_HUB_OFFLINE is set"
    if not constants.HF_HUB_OFFLINE:
        try:
            return Path(snapshot_download(name, allow_patterns=wanted, etag_timeout=10))
        except Exception as error:  # the hub's client raises its own, httpx's and OSError
            reason = f"it is no folder here and could not be downloaded: {first_line(error)}"
    fix = f"on a login node: llm-run hf download {name}\n(licensed: llm-run hf auth login first)"
    raise LLMError(f"cannot find the model {name}", reason, fix)


def no_such_folder(
    name: str,
    fix: str = "give a folder with config.json, or a hub's name such as mistralai/Mistral-7B-v0.1",
) -> LLMError:
    """What to say where a model's folder is a file or nothing.

    Args:
        name: The path that was given.
        fix: What to do if nothing there has a similar name.
    """
    path = Path(name).expanduser()
    if path.is_file():
        known = path.suffix in (*WEIGHT_SUFFIXES, ".pth", ".json")
        fix = "give the folder it is in" if known else ""
        return LLMError(f"the model {name} is a file and no folder", fix=fix)
    siblings: list[str] = []
    with contextlib.suppress(OSError):
        siblings = [p.name for p in path.parent.iterdir()]
    nearest = difflib.get_close_matches(path.name, siblings, n=3)
    if nearest:
        fix = f"did you mean {' or '.join(str(path.parent / n) for n in nearest)}?"
    return LLMError(f"the model folder {name} does not exist", fix=fix)


def _check_folder(folder: Path) -> tuple[list[LLMError], list[Path]]:
    if not (folder / "config.json").is_file():
        return [_not_a_model(folder)], []
    faults = []
    try:
        json.loads((folder / "config.json").read_bytes())
    except ValueError as error:
        faults.append(LLMError(f"{folder / 'config.json'} is not JSON", str(error), _again(folder)))
    weights, missing = _weight_files(folder)
    if missing:
        names = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        faults.append(
            LLMError(f"{folder} lacks {len(missing)} file(s) of weights", names, _again(folder))
        )
    faults += [fault for file in weights if (fault := _damage(file)) is not None]
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        why = f"none of {', '.join(TOKENIZER_FILES)}"
        faults.append(LLMError(f"{folder} lacks its tokenizer", why, _again(folder)))
    return faults, weights


def _not_a_model(folder: Path) -> LLMError:
    what = f"{folder} is no model folder: it has no config.json"
    if (folder / "adapter_config.json").is_file():
        base = "BASE_MODEL"
        try:
            settings = json.loads((folder / "adapter_config.json").read_bytes())
            base = settings.get("base_model_name_or_path") or base
        except (ValueError, AttributeError):
            pass
        return LLMError(what, "it is a PEFT adapter", f"--model {base} --adapter {folder}")
    if any(folder.glob("*.gguf")):
        return LLMError(what, "it holds GGUF files", "use llama.cpp's tools for these (llama-cli)")
    is_hub = (folder / "original" / "params.json").is_file()  # Meta's files on its hub pages
    if is_hub or (folder / "params.json").is_file():
        why = "it is a checkpoint in Meta's own format"
        model = quote(str(folder))
        fix = f"recipes/inference/sharded.py --model {model} runs it as it is;\n"
        fix += f"recipes/inference/reshard.py --model {model} --to hf --output FOLDER converts it"
        return LLMError(what, why, fix)
    return LLMError(what, fix="name the folder that holds config.json and the weights")


def _weight_files(folder: Path) -> tuple[list[Path], list[str]]:
    for name in WEIGHT_INDEXES:
        if (folder / name).is_file():
            try:
                index = json.loads((folder / name).read_bytes())
                shards = sorted(set(index["weight_map"].values()))
            except (ValueError, KeyError, AttributeError, TypeError):
                return [], [f"{name} (damaged)"]
            found = [folder / shard for shard in shards]
            return [f for f in found if f.is_file()], [f.name for f in found if not f.is_file()]
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            return [folder / name], []
    return [], [WEIGHT_FILES[0]]


def _damage(file: Path) -> LLMError | None:
    size = file.stat().st_size
    with open(file, "rb") as data:
        start = data.read(len(LFS_POINTER))
        if start == LFS_POINTER:
            return lfs_pointer(file)
        if file.suffix != ".safetensors":
            return None
        ends = [end for _, end in _tensor_places(data, size)]
    expected = max(ends, default=0)
    if not ends or expected > size:
        why = f"it has {size} bytes" + (f" of {expected}" if ends else " and no valid header")
        return LLMError(f"{file} is cut off or damaged", why, _again(file.parent))
    return None


def lfs_pointer(file: Path) -> LLMError:
    """What it means for a user that a file begins with LFS_POINTER."""
    why = "it is a pointer of git-lfs: the clone did not fetch the weights"
    fix = f"cd {quote(str(file.parent))} && git lfs pull"
    return LLMError(f"{file} holds no weights", why, fix)


def _again(folder: Path) -> str:
    return f"copy or download the model again into {folder}"


def first_line(error: Exception) -> str:
    """The first line of an error's message that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
