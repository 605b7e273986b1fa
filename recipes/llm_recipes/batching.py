"""Batches of prompts of similar length, as large as the memory allows.

for completion in complete_all(decoder, requests, size, batch_size=None): ...
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Sequence

import torch

from llm_recipes.batch_memory import LOGIT_COPIES, MOST_ROWS, SHARE_OF_FREE, STATES_A_TOKEN
from llm_recipes.decoding import Completion, Decoder, Request, StreamingDecoder
from llm_recipes.device import free_memory_bytes, is_out_of_memory
from llm_recipes.errors import LLMError
from llm_recipes.model_folder import first_line
from llm_recipes.models import ModelSize
from llm_recipes.running_batch import static_shape

STEPS_WORTH_COMPILING = 2000  # compiling an 8B model takes about as long as it saves by then
LIKELY_ROWS = 64  # of a batch, as long as the memory has not been looked at


def worth_compiling(lengths: Sequence[int], new_tokens: int, batch_size: int | None) -> bool:
    """Whether the steps of a run pay for compiling every shape of its batches.

    Args:
        lengths: Tokens of each prompt.
        new_tokens: At most so many are generated.
        batch_size: Rows a batch; None if it is still to be found.
    """
    rows = batch_size or LIKELY_ROWS
    ordered = sorted(lengths, reverse=True)
    batches = [ordered[start : start + rows] for start in range(0, len(ordered), rows)]
    shapes = {static_shape(len(batch), batch[0] + new_tokens) for batch in batches}
    return len(batches) * new_tokens >= STEPS_WORTH_COMPILING * max(1, len(shapes))


def fitting_batch_size(decoder: Decoder, size: ModelSize, prompt_tokens: int) -> int:
    """Rows of this length that fit into the free memory of the decoder's device, at least 1.

    Args:
        decoder: The model, loaded already.
        size: The model's.
        prompt_tokens: The longest prompt's.
    """
    cached = _cached_tokens(decoder, prompt_tokens)
    a_row = (
        size.kv_bytes_per_token * cached
        + size.vocabulary * 4 * LOGIT_COPIES
        + size.hidden_size * decoder.model.dtype.itemsize * STATES_A_TOKEN * prompt_tokens
    )
    # The static cache of the batch before is reused, or let go first.
    free = free_memory_bytes(decoder.device) + decoder.kept_bytes()
    fitting = max(1, min(int(SHARE_OF_FREE * free / a_row), MOST_ROWS[decoder.device.type]))
    return _allowed_rows(decoder, fitting, prompt_tokens)


def complete_all(
    decoder: Decoder, requests: Sequence[Request], size: ModelSize, batch_size: int | None
) -> Iterator[Completion]:
    """Complete every request, the longest prompts first, and yield each when it has ended.

    A batch for which memory runs out is halved and goes on with what it had not finished. Later
    ones hold no more tokens than that, so shorter prompts are more rows again.

    Args:
        decoder: The model.
        requests: In any order.
        size: The model's, for the estimate.
        batch_size: Rows a batch; None finds it.

    Raises:
        LLMError: If a single row does not fit.
    """
    waiting = sorted(requests, key=lambda request: -len(request.token_ids))
    most_tokens: int | None = None  # of a batch, once memory ran out
    while waiting:
        longest = len(waiting[0].token_ids)
        rows = batch_size or fitting_batch_size(decoder, size, longest)
        if most_tokens is not None:
            fitting = max(1, most_tokens // _cached_tokens(decoder, longest))
            rows = min(rows, _allowed_rows(decoder, fitting, longest))
        batch, rest = waiting[:rows], waiting[rows:]
        ended: set[Request] = set()
        ran_out = False
        try:
            for completion in decoder.complete(batch):
                ended.add(completion.request)
                yield completion
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            ran_out = True
            smaller = _smaller(decoder, len(batch), longest, error)
            most_tokens = smaller * _cached_tokens(decoder, longest)
        waiting = [request for request in batch if request not in ended] + rest
        if ran_out:
            _free_memory(decoder)


def complete_one(
    decoder: StreamingDecoder, request: Request, on_text: Callable[[str], None]
) -> Completion:
    """Complete a single request; its text is handed over as it comes.

    Raises:
        LLMError: If it does not fit into memory.
    """
    try:
        [completion] = decoder.complete([request], on_text=on_text)
        return completion
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        fault = _too_long_for_memory(len(request.token_ids), error)
    # Outside of `except`: the error's traceback holds on to the tensors.
    _free_memory(decoder)
    raise fault


def _cached_tokens(decoder: Decoder, prompt_tokens: int) -> int:
    """Tokens of a row that the cache has room for when the longest prompt has so many."""
    longest = prompt_tokens + decoder.settings.max_new_tokens
    return static_shape(1, longest)[1] if decoder.compiles(longest) else longest


def _allowed_rows(decoder: Decoder, fitting: int, prompt_tokens: int) -> int:
    """Rows of a batch when so many fit: a compiled one is filled up to a power of two."""
    if decoder.compiles(prompt_tokens + decoder.settings.max_new_tokens):
        return 1 << (fitting.bit_length() - 1)
    return fitting


def _smaller(decoder: Decoder, rows: int, longest: int, error: Exception) -> int:
    if rows == 1:
        raise _too_long_for_memory(longest, error) from None
    fewer = rows // 2
    if decoder.compiles(longest + decoder.settings.max_new_tokens):
        fewer = static_shape(rows, longest)[0] // 2
    print(f"out of memory with {rows} rows a batch: going on with {fewer}", file=sys.stderr)
    return fewer


def _too_long_for_memory(prompt_tokens: int, error: Exception) -> LLMError:
    return LLMError(
        f"memory ran out with a single prompt of {prompt_tokens} tokens",
        first_line(error),
        "shorten it, lower --max-new-tokens, or use a device with more memory",
    )


def _free_memory(decoder: StreamingDecoder) -> None:
    decoder.forget_cache()
    gc.collect()
    torch.cuda.empty_cache()  # nothing where no GPU is in use
