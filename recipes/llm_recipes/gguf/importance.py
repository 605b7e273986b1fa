"""An importance matrix: which inputs of each weight matrix matter, measured on a text.

    from llm_recipes.gguf.importance import matrix_key, make_matrix

llama-imatrix runs the model over a text and sums the squares of what enters each matrix;
llama-quantize then rounds so that the frequent and large ones keep more. A matrix is kept under a
name that its inputs decide, so that it is made once; one that was interrupted is continued.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.files import write_fault
from llm_recipes.gguf.evaluation_text import Text
from llm_recipes.gguf.file import GgufFile, read_gguf
from llm_recipes.gguf.quant_prediction import Importance
from llm_recipes.gguf.watched_programs import Command, run_watched
from llm_recipes.progress import Progress

CONTEXT = 512  # tokens of a piece
BATCH = 2048  # tokens computed at once, in several pieces
PART = 32  # pieces of a process: what an interruption loses at most, or two more
NEVER = 10**9  # pieces until llama-imatrix saves by itself: it does that in the middle of some
TEXTS, CHUNKS = "imatrix.datasets", "imatrix.chunk_count"
PIECE_DONE = re.compile(r"\[(\d+)\]")
FIX = "make one with --importance-text FILE"


@dataclass(frozen=True)
class Engine:
    """How llama.cpp's programs compute. threads: for prompts too. gpu_layers: on GPUs."""

    threads: int
    gpu_layers: int

    @property
    def arguments(self) -> list[str]:
        """Their options."""
        count = str(self.threads)
        # -fit would change what was asked for to what it thinks fits; without -dev none a GPU
        # takes part in computing prompts although it has no layers.
        devices = [] if self.gpu_layers else ["-dev", "none"]
        return ["-t", count, "-tb", count, "-ngl", str(self.gpu_layers), "-fit", "off", *devices]


@dataclass(frozen=True)
class Matrix:
    """An importance matrix that is there or is to be made.

    path: its file. digest: identity of what it is made of, or of its content. text: name of its
    text. chunks: pieces of text at most; 0: all.
    """

    path: Path
    digest: str
    text: str | None
    chunks: int = 0

    @property
    def named(self) -> Importance:
        """As it is named in the files that are made with it."""
        return Importance(self.path.name, self.text)


def planned_matrix(folder: Path, source_digest: str, text: Text, chunks: int, size: int) -> Matrix:
    """The matrix that a source, a text, a number of pieces and their tokens make."""
    parts = f"{source_digest} {text.digest} {chunks} {size}"
    digest = sha256(parts.encode()).hexdigest()
    return Matrix(folder / f"importance-{digest[:12]}.gguf", digest, text.name, chunks)


def given_matrix(folder: Path, path: Path, source: GgufFile) -> Matrix:
    """A matrix that was made elsewhere, as it will be named in the folder.

    Raises:
        LLMError: If it is no matrix, or of another model.
    """
    found = read_gguf(path)
    if found.metadata.get("general.type") != "imatrix":
        why = f"it is a GGUF file of the type {found.metadata.get('general.type', 'model')}"
        raise LLMError(f"{path} is no importance matrix", why, FIX)
    names = {tensor.name for tensor in source.tensors}
    rows = {tensor.name: tensor.shape[0] for tensor in source.tensors}
    for tensor in found.tensors:
        name = tensor.name.removesuffix(".in_sum2")
        if name == tensor.name:
            continue
        if name not in names or tensor.shape[0] != rows[name]:
            what = f"{path} is the importance matrix of another model"
            has = f"rows of {rows[name]}" if name in names else "no such tensor"
            why = f"{name} has rows of {tensor.shape[0]}, and {source.path.name} has {has}"
            raise LLMError(what, why, FIX)
    texts = found.metadata.get(TEXTS) or []
    digest = sha256(path.read_bytes()).hexdigest()
    text = str(texts[0]) if texts else None
    return Matrix(folder / f"importance-{digest[:12]}.gguf", digest, text)


def is_there(matrix: Matrix) -> bool:
    """Whether the matrix is made, and whole."""
    try:
        return bool(read_gguf(matrix.path).tensors)
    except (LLMError, ExceptionGroup):
        return False


def copy_matrix(matrix: Matrix, path: Path) -> None:
    """Put a matrix that was made elsewhere beside the files that are made with it."""
    if is_there(matrix):
        return
    temporary = _partial(matrix)
    try:
        shutil.copyfile(path, temporary)
        os.replace(temporary, matrix.path)
    except OSError as error:
        raise write_fault(matrix.path, error) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_matrix(
    matrix: Matrix, source: GgufFile, text: Text, tokens: int, context: int, engine: Engine
) -> None:
    """Make a matrix, or continue one that was interrupted; does nothing if it is there.

    Args:
        matrix: What to make.
        source: The model.
        text: What it reads.
        tokens: How many tokens the text has.
        context: Tokens of a piece.
        engine: Threads and GPU.

    Raises:
        LLMError: If the text is too short, memory runs out, or the folder can't be written.
    """
    if is_there(matrix):
        return
    partial = _partial(matrix)
    pieces = tokens // context
    wanted = min(pieces, matrix.chunks) if matrix.chunks else pieces
    done = _pieces_of(partial)
    # llama-imatrix wants two pieces more than it skips.
    if not 0 < done < wanted or (done + 2) * context >= tokens:
        partial.unlink(missing_ok=True)
        done = 0
    with (
        tempfile.TemporaryDirectory(prefix="llm-importance-") as folder,
        Progress("importance matrix", wanted, "pieces of text", done) as progress,
    ):
        (Path(folder) / text.name).write_text(text.content, encoding="utf-8", newline="\n")
        arguments = ["llama-imatrix", "-m", str(source.path.absolute())]
        # The text's name gets into the matrix, and into all that is made with it: no folders.
        # --no-escape: the two characters \n of LaTeX, JSON or C are no new line.
        arguments += ["-f", text.name, "--no-escape", *engine.arguments]
        arguments += ["-c", str(context), "-b", str(max(1, BATCH // context) * context)]
        while done < wanted:
            count = wanted - done if wanted - done < PART + 3 else PART
            _read_part(Command(arguments, Path(folder)), partial, done, count, progress)
            done += count
    try:
        os.replace(partial, matrix.path)
    except OSError as error:
        raise write_fault(matrix.path, error) from error


def matrix_bytes(source: GgufFile) -> int:
    """About the size of a source's matrix: a number for each column of each matrix in a layer."""
    wide = [t for t in source.tensors if len(t.shape) > 1 and t.name.startswith("blk.")]
    return sum(4 * (t.shape[0] + 40) * (t.shape[2] if len(t.shape) > 2 else 1) for t in wide)


def _partial(matrix: Matrix) -> Path:
    return matrix.path.with_name(f".{matrix.path.stem}.partial.gguf")


def _read_part(command: Command, partial: Path, done: int, count: int, progress: Progress) -> None:
    """Let llama-imatrix read some pieces more; the matrix is replaced when it has read them all."""
    following = partial.with_suffix(".next.gguf")
    arguments = [*command.arguments, "-ofreq", str(NEVER), "-o", str(following.absolute())]
    arguments += ["--chunks", str(count)]
    if done:
        arguments += ["--chunk", str(done), "--in-file", str(partial.absolute())]
    try:
        run_watched(Command(arguments, command.cwd), _advancing(progress))
        read = _pieces_of(following)
        if read != done + count:
            why = f"llama-imatrix has read {read} of {done + count} pieces of the text"
            raise LLMError(f"{partial} is not complete", why, "give the same command again")
        os.replace(following, partial)
    except OSError as error:
        raise write_fault(partial, error) from error
    finally:
        with contextlib.suppress(OSError):
            following.unlink(missing_ok=True)


def _pieces_of(path: Path) -> int:
    """How many pieces of text an unfinished matrix has seen; 0 if there is none, or half of one."""
    try:
        return int(read_gguf(path).metadata.get(CHUNKS, 0))
    except (LLMError, ExceptionGroup):
        return 0


def _advancing(progress: Progress) -> Callable[[str], None]:
    seen = 0

    def take(text: str) -> None:
        nonlocal seen
        for _ in PIECE_DONE.findall(text):
            seen += 1
            progress.advance()

    return take
