"""Batches of prompts of similar length, as large as the memory allows.

for completion in complete_all(decoder, requests, size, batch_size=None): ...
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence

import torch

from llm_recipes.decoding import Completion, Decoder, Request
from llm_recipes.device import free_memory_bytes, is_out_of_memory
from llm_recipes.errors import LLMError
from llm_recipes.models import ModelSize

SHARE_OF_FREE = 0.8  # the estimate below is rough; backing off costs a batch's work
MOST_ROWS = {"cpu": 64, "cuda": 256}  # more rows gain little speed and delay the first answers
LOGIT_COPIES = 6  # float32 logits, probabilities, noise and what sampling makes of them
STATES_A_TOKEN = 16  # hidden-sized tensors that live at once in a prefill, the MLP's included


def fitting_batch_size(
    size: ModelSize, device: torch.device, element_bytes: int, prompt_tokens: int, new_tokens: int
) -> int:
    """Rows of this length that fit into the device's free memory, at least 1.

    Args:
        size: The model's.
        device: Where it is loaded already.
        element_bytes: Of an activation.
        prompt_tokens: The longest prompt's.
        new_tokens: At most so many are generated.
    """
    a_row = (
        size.kv_bytes_per_token * (prompt_tokens + new_tokens)
        + size.vocabulary * 4 * LOGIT_COPIES
        + size.hidden_size * element_bytes * STATES_A_TOKEN * prompt_tokens
    )
    fitting = int(SHARE_OF_FREE * free_memory_bytes(device) / a_row)
    return max(1, min(fitting, MOST_ROWS[device.type]))


def complete_all(
    decoder: Decoder, requests: Sequence[Request], size: ModelSize, batch_size: int | None
) -> Iterator[Completion]:
    """Complete every request, the longest prompts first, and yield each when it has ended.

    A batch for which memory runs out is halved and goes on with what it had not finished.

    Args:
        decoder: The model.
        requests: In any order.
        size: The model's, for the estimate.
        batch_size: Rows a batch; None finds it.

    Raises:
        LLMError: If a single row does not fit.
    """
    waiting = sorted(requests, key=lambda request: -len(request.token_ids))
    limit = batch_size or max(MOST_ROWS.values())
    while waiting:
        longest = len(waiting[0].token_ids)
        fitting = limit
        if batch_size is None:
            element_bytes = decoder.model.dtype.itemsize
            new_tokens = decoder.settings.max_new_tokens
            fits = fitting_batch_size(size, decoder.device, element_bytes, longest, new_tokens)
            fitting = min(limit, fits)
        batch, rest = waiting[:fitting], waiting[fitting:]
        ended: set[Request] = set()
        try:
            for completion in decoder.complete(batch):
                ended.add(completion.request)
                yield completion
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            limit = _smaller(len(batch), longest, error)
        waiting = [request for request in batch if request not in ended] + rest
        if limit < fitting:
            decoder.forget_cache()
            _free_memory(decoder.device)


def _smaller(rows: int, longest: int, error: BaseException) -> int:
    if rows == 1:
        raise LLMError(
            f"memory ran out with a single prompt of {longest} tokens",
            str(error).splitlines()[0] if str(error) else type(error).__name__,
            "shorten it, lower --max-new-tokens, or use a device with more memory",
        ) from None
    print(f"out of memory with {rows} rows a batch: going on with {rows // 2}", file=sys.stderr)
    return rows // 2


def _free_memory(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
