"""Convert a Hugging Face folder to GGUF with llama.cpp's converter: the header first.

    from llm_recipes.gguf.conversion import draft_gguf, header_tokenizer
    with draft_gguf(Source(Path("models/tiny"), "f16"), Path("tiny.gguf.partial")) as draft:
        with header_tokenizer(draft.path) as tokenizer: ...
        draft.write_weights()

A draft has the file's size, all metadata and places for all tensors, and no weights yet. llama.cpp
loads it without memory for weights, so what it does not take shows before they are read.
The converter's own classes are called, as its program does; its weights are read one at a time.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import importlib
import logging
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_recipes.architecture import quiet
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.files import write_fault
from llm_recipes.gguf import engine
from llm_recipes.gguf.converter_repairs import (
    is_unknown_pre_tokenizer,
    repair,
    repaired_settings,
)
from llm_recipes.gguf.file import GgufFile, read_gguf
from llm_recipes.gguf.model import LOAD_MODES
from llm_recipes.gguf.programs import converter_folder
from llm_recipes.gguf.tokenizer import HUGGING_FACE_KEY, GgufTokenizer
from llm_recipes.model_folder import first_line
from llm_recipes.progress import Progress

# gguf.LlamaFileType, by the names that the converter's --outtype has
TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
LOGGERS = ("hf-to-gguf", "gguf")
# Warnings that mean nothing: transformers 5 writes a RoPE type for models without scaling, and
# pairs of texts are no matter of language models.
NOISE = re.compile(
    r"\*\*|Unknown RoPE type: default$|.*TemplateProcessing<pair>|.*<single>.*<pair>"
)


@dataclass(frozen=True)
class Source:
    """What is converted, and how.

    type: f32, f16, bf16 or q8_0. name: general.name in the file; None: the folder's. pre_tokenizer:
    llama.cpp's name of how a BPE tokenizer splits text; None: the converter recognizes it.
    tokenizer: Hugging Face's own as JSON, for the file to carry; None: it has none of that kind.
    """

    folder: Path
    type: str
    name: str | None = None
    pre_tokenizer: str | None = None
    tokenizer: str | None = None


class Draft:
    """A GGUF that is being made, a context manager that closes it.

    path: where it is written. file: its header. remarks: the converter's warnings.
    """

    def __init__(self, writer: Any, path: Path, remarks: list[str]) -> None:
        self.path = path
        self.remarks = remarks
        self._writer = writer
        self.file: GgufFile = self._write_header()

    def write_weights(self) -> None:
        """Convert all weights into the file, and see that they are on the disk.

        Raises:
            LLMError: If there is no room for them.
        """
        writer, [file] = self._writer, self._writer.fout
        tensors = writer.tensors[0]
        with _write_errors(self.path), Progress("convert", len(tensors), "tensors") as progress:
            for tensor in tensors.values():
                with torch.inference_mode():
                    tensor.tensor.tofile(file)
                writer.write_padding(file, tensor.nbytes)
                tensor.tensor = None  # its memory is needed for the next ones
                progress.advance()
            file.flush()
            if file.tell() != self.file.bytes:  # the hole under it would hide that
                raise OSError(errno.EIO, "other than the announced number of bytes was written")
            os.fsync(file.fileno())
            writer.close()

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, whole or not."""
        with contextlib.suppress(OSError):  # a full disk: what is in the buffer can't be written
            self._writer.close()

    def _write_header(self) -> GgufFile:
        writer = self._writer
        with _write_errors(self.path):
            writer.write_header_to_file(path=self.path)
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            [file] = writer.fout
            writer.write_padding(file, file.tell())
            file.flush()
            sizes = (tensor.nbytes for tensor in writer.tensors[0].values())
            padded = sum(writer.ggml_pad(size, writer.data_alignment) for size in sizes)
            os.truncate(self.path, file.tell() + padded)  # a hole: it takes no room yet
        return read_gguf(self.path)


def draft_gguf(source: Source, path: Path) -> Draft:
    """Begin a GGUF: everything but the weights.

    Raises:
        LLMError, ExceptionGroup: What of the model the converter can't convert.
    """
    with _heard() as said:
        model = _converter_model(source)
        faults = []
        for step in (model.prepare_tensors, lambda: model.prepare_metadata(vocab_only=False)):
            try:
                with torch.inference_mode(), quiet():
                    step()
            except Exception as error:  # whatever the converter and the libraries raise
                faults.append(converter_fault(source.folder, error))
        raise_all(faults)
    if source.tokenizer is not None:
        model.gguf_writer.add_string(HUGGING_FACE_KEY, source.tokenizer)
    return Draft(model.gguf_writer, path, said)


def write_vocabulary(source: Source, path: Path) -> None:
    """Write a GGUF that holds nothing but metadata and the tokenizer.

    Raises:
        LLMError: If the tokenizer can't be converted.
    """
    with _heard(), _write_errors(path):
        model = _converter_model(source)
        try:
            with torch.inference_mode(), quiet():
                model.prepare_metadata(vocab_only=True)
        except Exception as error:
            raise converter_fault(source.folder, error) from error
        model.gguf_writer.write_header_to_file(path=path)
        model.gguf_writer.write_kv_data_to_file()
        model.gguf_writer.close()


@contextlib.contextmanager
def header_tokenizer(path: Path) -> Iterator[GgufTokenizer]:
    """llama.cpp's own tokenizer of a draft, which it loads without memory for the weights.

    Raises:
        LLMError: If llama.cpp can't load a model with this metadata and these tensors.
    """
    llama = engine.library()
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.load_mode = LOAD_MODES["read"]  # it would assert otherwise
    parameters.no_alloc = True
    engine.forget_errors()
    handle = llama.llama_model_load_from_file(os.fsencode(path), parameters)
    if not handle:
        why = engine.last_error() or "llama.cpp gives no reason"
        fix = "this converter and this llama.cpp do not support this variant of the architecture"
        raise LLMError("llama.cpp could not load the GGUF of this model", why, fix)
    try:
        template = llama.llama_model_chat_template(handle, None)
        vocabulary = llama.llama_model_get_vocab(handle)
        yield GgufTokenizer(vocabulary, template.decode("utf-8") if template else None)
    finally:
        llama.llama_model_free(handle)


@functools.cache
def converter() -> Any:
    """The converter's package, `conversion`.

    Raises:
        LLMError: If it is not here, or does not go with the libraries that are.
    """
    folder = str(converter_folder())
    sys.path.insert(0, folder)
    try:
        return importlib.import_module("conversion")
    except Exception as error:
        fix = "use the image llm: llm-run python ..."
        raise LLMError("llama.cpp's converter can't be loaded", first_line(error), fix) from error
    finally:
        sys.path.remove(folder)


def architecture_of(folder: Path) -> str:
    """The name of the model's class, by which the converter goes.

    Raises:
        LLMError: If config.json names none.
    """
    with _heard():
        return _settings_of(folder)[1]


def unknown_tokenizer(folder: Path) -> str:
    """What is said of a BPE tokenizer that is in no list."""
    return f"llama.cpp does not recognize the tokenizer of {folder}"


def converter_fault(folder: Path, error: Exception) -> LLMError:
    """What it means for a user that the converter failed."""
    said = first_line(error)
    if is_unknown_pre_tokenizer(error):
        return LLMError(
            unknown_tokenizer(folder),
            "llama.cpp recognizes how published BPE tokenizers split text by the tokens of a test\n"
            "text, and has no such tokenizer in its list",
            "--pre-tokenizer NAME of a model whose tokenizer splits text alike, such as qwen2;\n"
            "a SentencePiece tokenizer (tokenizer.model) needs no name",
        )
    if isinstance(error, OSError) and error.errno is not None:
        return LLMError(f"cannot read {error.filename or folder}", error.strerror or said)
    unmapped = re.search(r"Can not map tensor '?([^']+)'?", said)
    if unmapped:
        fix = "see that the weights are of the architecture that config.json names"
        what = f"llama.cpp has no place for the tensor {unmapped[1]} of {folder}"
        return LLMError(what, "it is none of this architecture's", fix)
    if isinstance(error, KeyError):
        return LLMError(f"{folder / 'config.json'} lacks {said}", "the converter needs it")
    why = f"{type(error).__name__}: {said}" if str(error) else type(error).__name__
    fix = "see that the files of the model belong together and are whole"
    return LLMError(f"llama.cpp's converter can't convert {folder}", why, fix)


def _settings_of(folder: Path) -> tuple[dict[str, Any], str]:
    """The model's settings as the converter knows them, and the name of the architecture."""
    package = converter()
    try:
        with quiet():
            settings = repaired_settings(package.ModelBase.load_hparams(folder, False))
            return settings, package.get_model_architecture(settings, package.ModelType.TEXT)
    except Exception as error:
        raise converter_fault(folder, error) from error


def _converter_model(source: Source) -> Any:
    """The converter's object of the model; its weights are looked up and not read."""
    package = converter()
    settings, architecture = _settings_of(source.folder)
    gguf = importlib.import_module("gguf")
    file_type = getattr(gguf.LlamaFileType, TYPES[source.type])
    name = source.name or source.folder.resolve().name
    try:
        with torch.inference_mode(), quiet():
            kind = package.get_model_class(architecture)
            # The file's name is a template to the converter: braces in a path would be filled in.
            target = Path(os.devnull)
            model = kind(source.folder, file_type, target, model_name=name, hparams=settings)
    except Exception as error:
        raise converter_fault(source.folder, error) from error
    if source.pre_tokenizer is not None:
        model.get_vocab_base_pre = lambda tokenizer: source.pre_tokenizer
    repair(model, source.folder)
    return model


@contextlib.contextmanager
def _heard() -> Iterator[list[str]]:
    """The converter's warnings in the block; they are shown nowhere else."""
    lines: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split())
            if text and not NOISE.match(text):
                lines.append(text)

    listener = Listener(logging.WARNING)
    loggers = [logging.getLogger(name) for name in LOGGERS]
    for logger in loggers:
        logger.addHandler(listener)
        logger.propagate = False
    try:
        yield lines
    finally:
        for logger in loggers:
            logger.removeHandler(listener)
            logger.propagate = True


@contextlib.contextmanager
def _write_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno is None:  # numpy's, when fewer bytes were written than there are
            error = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        raise write_fault(path, error) from error
