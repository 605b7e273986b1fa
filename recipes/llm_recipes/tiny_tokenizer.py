"""Tokenizers trained in a second: SentencePiece with byte fallback as Llama 2's, or as Qwen2's.

model = train_sentencepiece(["some text", "more text"], vocab_size=512)
tokenizer = llama_tokenizer(model)
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import sentencepiece
from transformers import LlamaTokenizer, Qwen2Tokenizer

from llm_recipes.errors import LLMError
from llm_recipes.tiny_models import BOS_ID, EOS_ID, PAD_ID, UNK_ID

# tokenizer.json says the same; transformers 4 stumbles over these.
WRITTEN_FOR_TRANSFORMERS_5 = ("backend", "extra_special_tokens", "is_local", "local_files_only")
# Turns as Alpaca's: a base prompt of that form and a chat look alike to the model. `generation`
# marks what a chat's training may learn: the answers, each with the token that ends it.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'system' -%}
{{- message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'user' -%}
{{- '### Instruction:\\n' + message['content'] + '\\n\\n' -}}
{%- elif message['role'] == 'assistant' -%}
{{- '### Response:\\n' -}}
{%- generation -%}{{- message['content'] + eos_token -}}{%- endgeneration -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '### Response:\\n' -}}{%- endif -%}
"""


def train_sentencepiece(texts: Iterable[str], vocab_size: int) -> bytes:
    """Train a BPE model with Llama 2's settings but two; returns the bytes of a tokenizer.model.

    No space is put in front of a text: transformers and llama.cpp do that differently before a text
    that begins with a space, and after special tokens; without it the ids are the same everywhere.
    Digits aren't split: " 12" is one piece, which so small a model learns to add in far fewer
    steps.

    Raises:
        LLMError: If the texts are too few for so many pieces, or the pieces too few for the texts.
    """
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            # Line by line: a line's end is then a byte of its own, as with Llama 2, and no part of
            # a piece that a prompt's last characters would have to begin.
            sentence_iterator=(line for text in texts for line in text.splitlines() if line),
            model_writer=written,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=True,
            add_dummy_prefix=False,
            character_coverage=0.9995,
            max_sentence_length=1_000_000,
            num_threads=1,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=PAD_ID,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = str(error).strip().rpartition("] ")[2]
        raise _no_tokenizer(vocab_size, reason) from error
    return written.getvalue()


def _no_tokenizer(vocab_size: int, reason: str) -> LLMError:
    what = f"no tokenizer of {vocab_size} pieces can be trained"
    return LLMError(what, reason, "try --vocab-size 4096")


def llama_tokenizer(model: bytes) -> LlamaTokenizer:
    """Make transformers' tokenizer, with a chat template, of a SentencePiece model.

    Needs the protobuf package.
    """
    with tempfile.TemporaryDirectory(prefix="llm-tokenizer-") as folder:
        (Path(folder) / "tokenizer.model").write_bytes(model)
        tokenizer: LlamaTokenizer = LlamaTokenizer.from_pretrained(
            folder, pad_token="<pad>", add_bos_token=True, add_prefix_space=False
        )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def qwen2_tokenizer(texts: Iterable[str], vocab_size: int) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer without BOS, with the chat template.

    transformers loads a qwen2 folder with this class, whatever its tokenizer_config.json names.
    """
    untrained: Any = Qwen2Tokenizer()
    tokenizer: Qwen2Tokenizer = untrained.train_new_from_iterator(
        texts, vocab_size, new_special_tokens=["<|im_end|>"], show_progress=False
    )
    if len(tokenizer) > vocab_size:  # the 256 bytes are always there
        raise _no_tokenizer(vocab_size, f"at least {len(tokenizer)} are needed")
    tokenizer.eos_token = "<|im_end|>"
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(
    tokenizer: LlamaTokenizer | Qwen2Tokenizer, model: bytes | None, folder: Path
) -> None:
    """Write tokenizer.json, its configuration, the chat template and tokenizer.model if given."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    for name in WRITTEN_FOR_TRANSFORMERS_5:
        settings.pop(name, None)
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    if model is not None:
        (folder / "tokenizer.model").write_bytes(model)
