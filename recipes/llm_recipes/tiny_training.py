"""Train and measure a tiny model on the CPU; the same settings give the same weights.

    from llm_recipes.tiny_training import make_repeatable, perplexity, train

`recipes/data/tiny.py` tells the whole story.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from llm_recipes.progress import Progress
from llm_recipes.tiny_corpus import ALPACA_SHORT, FACTS, Document, sum_text

BLOCK_TOKENS = 128  # longer blocks learn no more in so short a training and cost more
BATCH_BLOCKS = 8
LEARNING_RATE = 2.5e-3
WARM_UP_STEPS = 10
HELD_OUT_BLOCKS = 64


def make_repeatable(seed: int, threads: int) -> None:
    """Fix what changes bits from run to run: seeds, the number of threads, the kernels.

    Args:
        seed: Of the weights and of the order of the text.
        threads: CPU threads; sums are split by them, so another number rounds differently.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(seed)


def encode(document: Document, tokenizer: Any) -> list[int]:
    """Return a document's token ids, BOS and EOS included."""
    if not document.turns:
        ids: list[int] = [*tokenizer(document.text)["input_ids"], tokenizer.eos_token_id]
        return ids
    messages = []
    for turn in document.turns:
        messages += [
            {"role": "user", "content": turn.instruction},
            {"role": "assistant", "content": turn.response},
        ]
    text = tokenizer.apply_chat_template(messages, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def blocks(documents: Iterable[Document], tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    """Yield blocks of `BLOCK_TOKENS` token ids, documents one after the other, and their positions.

    Positions begin anew with each document: transformers reads that as packed texts, which then
    don't see each other (Falcon's do: it learns a little less).
    """
    ids: list[int] = []
    positions: list[int] = []
    for document in documents:
        encoded = encode(document, tokenizer)
        ids += encoded
        positions += range(len(encoded))
        while len(ids) >= BLOCK_TOKENS:
            yield ids[:BLOCK_TOKENS], positions[:BLOCK_TOKENS]
            del ids[:BLOCK_TOKENS], positions[:BLOCK_TOKENS]


def _loss(model: Any, batch: Sequence[tuple[list[int], list[int]]]) -> Any:
    """Return the mean loss a token (nats) of a batch of blocks."""
    ids, positions = (torch.tensor(rows) for rows in zip(*batch, strict=True))
    loss: Any = model(input_ids=ids, labels=ids, position_ids=positions, use_cache=False).loss
    return loss


def train(
    model: Any, documents: Iterable[Document], tokenizer: Any, steps: int
) -> list[dict[str, float]]:
    """Train by AdamW, the learning rate rising and then falling to 0 in straight lines.

    Args:
        model: A causal language model of transformers, fp32, on the CPU; changed in place.
        documents: Enough of them; `training_documents` never ends.
        tokenizer: The model's.
        steps: Of `BATCH_BLOCKS` blocks each.

    Returns:
        A row a step: step, loss (nats a token), learning_rate.
    """
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0
    )
    source = blocks(documents, tokenizer)
    rows = []
    model.train()
    with Progress("train", total=steps, unit="steps") as progress:
        for step in range(steps):
            rate = LEARNING_RATE * min((step + 1) / WARM_UP_STEPS, (steps - step) / steps)
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = _loss(model, list(islice(source, BATCH_BLOCKS)))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            rows.append({"step": step + 1, "loss": round(loss.item(), 6), "learning_rate": rate})
            progress.advance(f"loss {loss.item():.2f}")
    model.eval()
    return rows


@torch.inference_mode()
def perplexity(model: Any, texts: Sequence[str], tokenizer: Any) -> float:
    """Return exp of the mean loss a token over the first `HELD_OUT_BLOCKS` blocks of the texts."""
    model.eval()
    source = islice(blocks((Document(text) for text in texts), tokenizer), HELD_OUT_BLOCKS)
    losses = []
    while batch := list(islice(source, BATCH_BLOCKS)):
        loss = _loss(model, batch).item()
        losses += [loss] * len(batch)  # each block predicts equally many tokens
    return math.exp(sum(losses) / len(losses))


def sums_right(model: Any, tokenizer: Any) -> float:
    """Return the share of the hundred sums such as "2 + 3 =" that are answered right, greedily.

    All of them were in the training text: this shows what was learned, not what was understood.
    """
    texts = [sum_text(left, right) for left in range(10) for right in range(10)]
    prompts = [text.rpartition(" ")[0] for text in texts]
    return _share_right(model, tokenizer, prompts, [text.rpartition(" ")[2] for text in texts])


def questions_right(model: Any, tokenizer: Any) -> float:
    """Return the share of the questions of the training text that are answered word by word."""
    prompts = [ALPACA_SHORT.format(instruction=fact.instruction) for fact in FACTS]
    return _share_right(model, tokenizer, prompts, [fact.response for fact in FACTS])


def complete(model: Any, tokenizer: Any, prompts: Sequence[str], new_tokens: int) -> list[str]:
    """Continue each prompt greedily until its end or for so many tokens."""
    inputs = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    inputs.pop("token_type_ids", None)
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    start = inputs["input_ids"].shape[1]
    texts: list[str] = tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
    return texts


def _share_right(
    model: Any, tokenizer: Any, prompts: Sequence[str], wanted: Sequence[str]
) -> float:
    given = complete(model, tokenizer, prompts, new_tokens=16)
    return sum(g.strip() == w for g, w in zip(given, wanted, strict=True)) / len(wanted)
