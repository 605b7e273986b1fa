"""Whether a GGUF is the model it was made of: the same tokens, and the same answers.

    from llm_recipes.gguf.agreement import compare_scores, tokenizer_differences
    tokenizer_differences(hugging_face_tokenizer, gguf_tokenizer)

Answers are compared by teacher forcing: both models get the same text and say, token by token,
what they think comes next.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llm_recipes.architecture import quiet, read_json
from llm_recipes.errors import LLMError
from llm_recipes.gguf.file import GgufFile, read_gguf
from llm_recipes.gguf.model import ContextSettings, GgufModel
from llm_recipes.gguf.scoring import Numbers, Scores, score
from llm_recipes.host_memory import free_host_bytes
from llm_recipes.merging import logits_in_fp32
from llm_recipes.models import loading

WINDOW = 512  # tokens that are seen at once, at most: more need memory and tell nothing new
FEWEST_TOKENS = 16
ROWS = 64  # of logits that are worked on at once
# Tokens that are nearly as likely as the likeliest: rounding decides which of them is first, often
# in a model that has learned nothing. 0.05 nats are 5 % of a probability.
NEAR_TIE, TIES = 0.05, 8
# The share of tokens for which both models must find the same one likeliest, but for near ties.
# With weights of 16 bits llama.cpp also rounds what they are multiplied with to their type; Q8_0
# rounds every weight to 1/127 of its block's largest.
LIMITS = {"f32": 0.99, "f16": 0.99, "bf16": 0.99, "q8_0": 0.95}

# What every text is made of: a tokenizer that differs here is another one.
PLAIN_TEXTS = {
    "prose": (
        "The mean of two, four and nine is five. I've been 'told he's there, 'RE you sure? We'll "
        "see: it isn't JOHN'S, and THEY'VE said so. Question: which river flows through Paris?"
    ),
    "code": (
        "def mean(values):\n    total = 0.0\n    for value in values:\n        total += value\n"
        "    return total / len(values)  # a comment\n\n\nif (a != b && c[3] == '\\n') {\n"
        '\tprintf("%5.2f\\n", x->y);\n}\n\n<div class="x">&amp;</div> $PATH ~/x_1/yZ2.txt \\\\'
    ),
    "numbers": "3 33 333 3333 33333 333333 3333333 3.14 3..3 1,234,567.89 -5e-3 0x1F 50% (2+3)*7",
    "languages": (
        "Grüße aus Köln, à bientôt, año, Ångström; нещо на Български; Ελληνικά; "
        "我想在apple工作1314151天~; こんにちは世界; 안녕하세요; مرحبا; שלום; नमस्ते; កាន់តែពិសេស"
    ),
    "signs": (
        "🚀 (normal) 😶\u200d🌫️ ✅ 🦙🦙 é ½ ² ™ … — “quoted” ------======= "
        "''''''```````\"\"\"\"......!!!!!!??????"
    ),
}
# Where tokenizers of the same vocabulary are known to differ. The last one: llama.cpp leaves out
# what some tokenizers do first, such as NFC.
EDGE_TEXTS = {
    "spaces": "  two before,   three between, one\u00a0hard, two after  ",
    "a space before": " one",
    "newlines": "\n\none\n \n\n\n two\r\n\tthree\t\t\n   \n",
    "look-alikes of special tokens": (
        "<s> </s><unk> <pad> <|im_start|>user <|im_end|> <|endoftext|> [INST] <<SYS>> <0x0A> ▁ x"
    ),
    "characters that can be written in two ways": "e\u0301 A\u030a \ufb01 \u212b \uff21",
}


@dataclass(frozen=True)
class Difference:
    """A text of which two tokenizers make different tokens. kind: what the text is."""

    kind: str
    text: str
    wanted: tuple[int, ...]
    found: tuple[int, ...]

    def __str__(self) -> str:
        pairs = list(zip_longest(self.wanted, self.found))
        place = next(i for i, (one, other) in enumerate(pairs) if one != other)
        here, there = (list(ids[place : place + 4]) for ids in (self.wanted, self.found))
        text = self.text if len(self.text) <= 40 else f"{self.text[:40]}…"
        return f"{self.kind}: {text!r} is {here} from token {place} on, and {there} in the GGUF"


@dataclass(frozen=True, eq=False)
class Reference:
    """What transformers says of a text's tokens from the second on.

    logprobs: natural logarithm of each token's probability [n]. ties: the likeliest token at each
    of these places and those nearly as likely, filled up with the first [n, TIES].
    """

    logprobs: Numbers
    ties: Numbers


@dataclass(frozen=True)
class Agreement:
    """How a GGUF's answers compare with those of transformers in fp32.

    tokens: compared. same_top: share with the same likeliest token. same_but_ties: share for which
    the GGUF's likeliest is transformers' or nearly as likely. logprob_difference: mean absolute
    difference of the text's tokens' log-probabilities, in nats. perplexity,
    transformers_perplexity: of the text. limit: the smallest same_but_ties that is taken.
    """

    tokens: int
    same_top: float
    same_but_ties: float
    logprob_difference: float
    perplexity: float
    transformers_perplexity: float
    limit: float

    @property
    def holds(self) -> bool:
        """Whether they agree; not if one of them computes no numbers."""
        return self.same_but_ties >= self.limit and math.isfinite(self.logprob_difference)

    def as_record(self) -> dict[str, float | int | None]:
        """The figures, for the run record; JSON has no NaN."""
        figures = {name: float(f"{value:.4g}") for name, value in asdict(self).items()}
        figures["tokens"] = self.tokens
        return {name: v if math.isfinite(v) else None for name, v in figures.items()}

    def __str__(self) -> str:
        return (
            f"the likeliest token is the same for {self.same_top:.2%} of {self.tokens} tokens "
            f"({self.same_but_ties:.2%} but for near ties), log-probabilities differ by "
            f"{self.logprob_difference:.2g} on average, perplexity "
            f"{self.perplexity:.4g} (transformers in fp32: {self.transformers_perplexity:.4g})"
        )


def tokenizer_differences(wanted: Any, found: Any, texts: dict[str, str]) -> list[Difference]:
    """Texts of which a GGUF's tokenizer makes other tokens than transformers' own.

    Args:
        wanted: Transformers' tokenizer.
        found: The GGUF's.
        texts: By what they are.
    """
    differences = []
    for kind, text in texts.items():
        ids = [tuple(t(text, add_special_tokens=False)["input_ids"]) for t in (wanted, found)]
        if ids[0] != ids[1]:
            differences.append(Difference(kind, text, ids[0], ids[1]))
    return differences


def special_token_differences(wanted: Any, found: Any) -> list[str]:
    """What of a tokenizer's special tokens and its chat template the GGUF has otherwise.

    Args:
        wanted: Transformers' tokenizer.
        found: The GGUF's.
    """
    differences = []
    for name in ("bos_token_id", "eos_token_id"):
        one, other = getattr(wanted, name), getattr(found, name)
        if one is not None and one != other:
            differences.append(f"{name} is {one}, and {other} in the GGUF")
    ids = [list(tokenizer("a")["input_ids"]) for tokenizer in (wanted, found)]
    bare = [list(t("a", add_special_tokens=False)["input_ids"]) for t in (wanted, found)]
    if bare[0] == bare[1] and ids[0] != ids[1]:
        differences.append(f"a text becomes {ids[0]}, and {ids[1]} in the GGUF")
    added = {text: text for text in sorted(wanted.get_added_vocab())}
    differences += map(str, tokenizer_differences(wanted, found, added))
    template = wanted.chat_template
    if template and not found.chat_template:
        differences.append("the chat template is not in the GGUF")
    elif isinstance(template, str) and template.strip() != found.chat_template.strip():
        differences.append("the chat template is another one in the GGUF")
    return differences


def end_token_remarks(folder: Path, found: Any) -> list[str]:
    """Which tokens end a text in transformers and not in the GGUF.

    Args:
        folder: The model's, with its generation_config.json.
        found: The GGUF's tokenizer.
    """
    path = folder / "generation_config.json"
    ends = read_json(path).get("eos_token_id") if path.is_file() else None
    missing = {*(ends if isinstance(ends, list) else [ends])} - {None, *found.end_ids}
    names = ", ".join(repr(found.decode([token])) for token in sorted(missing))
    return [f"{path} ends texts at {names} too, the GGUF does not"] if missing else []


def windows_of(text: str, tokenizer: Any, count: int, length: int) -> list[list[int]]:
    """A text's token ids, cut into texts that each begin as the model's texts do.

    Args:
        text: A whole text.
        tokenizer: Transformers'.
        count: Tokens that are to be compared in all, at most.
        length: Tokens that the model can see.

    Raises:
        LLMError: If it is too short.
    """
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    bos = tokenizer.bos_token_id
    begin = [bos] if tokenizer("a")["input_ids"][:1] == [bos] else []
    step = max(1, min(WINDOW, length) - len(begin))
    # Of a text that begins with nothing, the first token can't be foretold.
    used = ids[: count if begin else count + -(-count // step)]
    windows = [[*begin, *used[start : start + step]] for start in range(0, len(used), step)]
    windows = [window for window in windows if len(window) > 1]
    if sum(len(window) - 1 for window in windows) < min(count, FEWEST_TOKENS):
        why = f"it has {len(ids)} tokens"
        raise LLMError("the text to check with is too short", why, "--check-text with a longer one")
    return windows


def default_text(characters: int) -> str:
    """Text that every Python carries: its manual, with its code.

    Args:
        characters: How much of it, about.

    Raises:
        LLMError: If this Python has no manual.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        why = "its text is what models are compared with"
        fix = "--check-text FILE, or a full Python 3.11 or newer (the image has one)"
        raise LLMError("this Python has no pydoc_data", why, fix) from error
    return "\n\n".join(topics[name] for name in sorted(topics))[:characters]


def transformers_scores(
    folder: Path, dtype: torch.dtype, windows: Iterable[Sequence[int]]
) -> list[Reference]:
    """What transformers says of each text's tokens from the second on, computed in fp32 on the CPU.

    The weights stay in their own type; those of a module at a time are in fp32.

    Args:
        folder: The model.
        dtype: That its weights have: then they are not copied.
        windows: Token ids of each text.

    Raises:
        LLMError: If transformers can't load the model.
    """
    from transformers import AutoModelForCausalLM

    with loading(folder), quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, weights_only=True, trust_remote_code=False
        ).eval()
    try:
        texts = [torch.tensor(list(ids)) for ids in windows]
        return [_reference(logits_in_fp32(model, text[None]), text) for text in texts]
    finally:
        del model
        gc.collect()  # the GGUF may need the memory


def gguf_scores(path: Path, windows: Sequence[Sequence[int]], threads: int) -> list[Scores]:
    """What a GGUF says of each text's tokens from the second on: on the CPU, its cache in fp32."""
    longest = max(len(ids) for ids in windows)
    settings = ContextSettings(
        tokens=longest,
        batch=min(WINDOW, 128),  # between two calls Ctrl-C is noticed
        micro_batch=128,
        threads=threads,
        prompt_threads=threads,
        key_type="f32",
        value_type="f32",
        flash_attention="off",
    )
    with GgufModel.load(read_gguf(path)) as model, model.context(settings) as context:
        return [score(context, ids) for ids in windows]


def compare_scores(found: Sequence[Scores], wanted: Sequence[Reference], kind: str) -> Agreement:
    """Compare a GGUF's scores of texts with those of transformers.

    Args:
        found: The GGUF's.
        wanted: Of transformers, of the same texts.
        kind: The GGUF's type: f32, f16, bf16 or q8_0.
    """
    logprobs = [np.concatenate([part.logprobs for part in side]) for side in (found, wanted)]
    best = np.concatenate([scores.best for scores in found])
    ties = np.concatenate([reference.ties for reference in wanted])
    with np.errstate(all="ignore"):  # what is no number is said, not warned of
        return Agreement(
            tokens=len(best),
            same_top=float(np.mean(best == ties[:, 0])),
            same_but_ties=float(np.mean((best[:, None] == ties).any(axis=1))),
            logprob_difference=float(np.mean(np.abs(logprobs[0] - logprobs[1]))),
            perplexity=float(np.exp(-logprobs[0].mean())),
            transformers_perplexity=float(np.exp(-logprobs[1].mean())),
            limit=LIMITS[kind],
        )


def memory_lacking(weights: int, file: GgufFile) -> str:
    """Why the models can't be compared here; empty if they can. One is in memory after the other.

    Args:
        weights: Bytes of the weights that transformers loads.
        file: The GGUF.
    """
    widest = max(tensor.elements for tensor in file.tensors) * 4  # a module's weights in fp32
    logits = 3 * 4 * WINDOW * file.vocabulary
    needed = max(weights + widest, file.bytes) + logits
    free = free_host_bytes()
    if needed <= free:
        return ""
    return f"it takes {needed / 1e9:.3g} GB of memory, and {free / 1e9:.3g} GB are free"


def _reference(logits: torch.Tensor, ids: torch.Tensor) -> Reference:
    """Scores of `ids[1:]` by the logits [tokens, vocabulary] after each token of `ids`."""
    tokens = ids[1:]
    logprobs, ties = [], []
    for start in range(0, len(tokens), ROWS):
        rows = logits[start : min(start + ROWS, len(tokens))].double().log_softmax(-1)
        logprobs.append(rows.gather(1, tokens[start : start + ROWS, None])[:, 0])
        values, likeliest = rows.topk(min(TIES, rows.shape[1]))
        near = values >= values[:, :1] - NEAR_TIE
        ties.append(torch.where(near, likeliest, likeliest[:, :1]))
    return Reference(torch.cat(logprobs).numpy(), torch.cat(ties).to(torch.int32).numpy())
