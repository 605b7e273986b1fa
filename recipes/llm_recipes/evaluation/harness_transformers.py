"""A transformers model for lm-eval: its own class, with batches as large as the memory allows.

    lm = open_transformers(folder, adapter, options)
    answers = answer_in_batches(lm, size, "auto", "loglikelihood", requests)

lm-eval's "auto" tries batches until one fails, on a CPU up to the death of the process; and it
computes everything of a batch that failed again. Here the first batch is reckoned, and halved
where that was too much.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence
from typing import Any, Literal

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import normalize_gen_kwargs

from llm_recipes.batch_memory import LOGIT_COPIES, SHARE_OF_FREE, STATES_A_TOKEN
from llm_recipes.device import free_memory_bytes, is_out_of_memory
from llm_recipes.errors import LLMError
from llm_recipes.evaluation.task_by_task import text_length
from llm_recipes.harness_requests import no_room
from llm_recipes.model_folder import first_line
from llm_recipes.models import LoadedModel, ModelSize
from llm_recipes.ranks import is_first_process
from llm_recipes.say import say

# Rows of a batch: more gain nothing. On CPUs a row keeps the cores busy by itself.
MOST_ROWS = {"cpu": 16, "cuda": 128}
LONGEST_LOOKED_AT = 4  # of all texts, those with the most characters are counted in tokens
BatchSize = int | Literal["auto"]


class HarnessLM(HFLM):
    """lm-eval's class, which draws its bars on terminals only.

    max_gen_toks: tokens of an answer, where the task doesn't say.
    """

    max_gen_toks = 256

    def _loglikelihood_tokens(self, requests: Any, **options: Any) -> list[tuple[float, bool]]:
        return super()._loglikelihood_tokens(requests, **{**options, "disable_tqdm": is_quiet()})


def harness_lm(
    loaded: LoadedModel, context: int | None, max_gen_toks: int, dtype: torch.dtype
) -> HarnessLM:
    """lm-eval's model of a loaded one.

    Args:
        loaded: It, and its tokenizer.
        context: Tokens that it sees at once; None: as many as lm-eval finds in its configuration.
        max_gen_toks: Tokens of an answer at most, where a task doesn't say.
        dtype: Its precision.
    """
    lm = HarnessLM(
        pretrained=loaded.model,
        tokenizer=loaded.tokenizer,
        max_length=context,
        dtype=dtype,
        batch_size=1,
    )
    lm.max_gen_toks = max_gen_toks
    return lm


def answer_in_batches(
    lm: HarnessLM, size: ModelSize, batch_size: BatchSize, kind: str, requests: list[Instance]
) -> list[Any]:
    """Responses to the requests of one task.

    Args:
        lm: The model.
        size: Its sizes.
        batch_size: Rows at once; auto: as many as fit.
        kind: loglikelihood, loglikelihood_rolling or generate_until.
        requests: The task's.

    Raises:
        LLMError: If a single row does not fit, or a continuation can't be scored.
    """
    if not requests:
        return []
    for request in requests:
        wanted = new_tokens(lm, request)
        if wanted and wanted >= lm.max_length:
            raise no_room(wanted, lm.max_length)
    longest = longest_tokens(lm, requests)
    if kind != "loglikelihood_rolling":
        say_cut(longest, lm.max_length + (kind == "loglikelihood"))  # its last one is predicted
    fitting = min(longest, lm.max_length)
    rows = fitting_rows(lm, size, fitting) if batch_size == "auto" else batch_size
    while True:
        lm.batch_size_per_gpu = rows
        try:
            return list(getattr(lm, kind)(requests, disable_tqdm=is_quiet()))
        except AssertionError as error:  # lm-eval's, of a continuation's tokens
            what = "the model can't score a continuation of a task"
            why = f"it has no tokens, or more than the {lm.max_length} that the model sees"
            fix = "raise --context as far as the model allows, or correct the task's choices"
            raise LLMError(what, why, fix) from error
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if rows == 1:
                what = "memory ran out with a single request"
                fix = "--context limits what the model sees; or take a device with more memory"
                raise LLMError(what, first_line(error), fix) from None
        # Outside of `except`: the error's traceback holds on to the tensors.
        gc.collect()
        torch.cuda.empty_cache()
        rows = max(1, rows // 2)
        say(f"out of memory with {rows * 2} rows a batch: going on with {rows}")


def is_quiet() -> bool:
    """Whether bars would only fill a job's log."""
    return not sys.stderr.isatty() or not is_first_process()


def say_cut(longest: int, room: int) -> None:
    """Tell that requests lose their beginnings, which lm-eval does without a word."""
    if longest > room and is_first_process():
        what = f"requests of up to {longest:,} tokens are longer than the {room:,}"
        say(f"warning: {what} that the model sees: their beginnings are left out")


def fitting_rows(lm: HarnessLM, size: ModelSize, tokens: int) -> int:
    """Rows of so many tokens that fit into free memory: a power of two."""
    width = lm.model.dtype.itemsize
    a_row = tokens * (
        size.kv_bytes_per_token + size.hidden_size * width * STATES_A_TOKEN
    ) + size.vocabulary * 4 * (LOGIT_COPIES + 3 * tokens)  # logits of all tokens, twice in passing
    free = SHARE_OF_FREE * free_memory_bytes(lm.device)
    fitting = max(1, min(int(free / a_row), MOST_ROWS[lm.device.type]))
    return 1 << (fitting.bit_length() - 1)


def longest_tokens(lm: HarnessLM, requests: Sequence[Instance]) -> int:
    """Tokens of the longest request with its answer, more than the model sees among them."""
    longest = sorted(requests, key=text_length)[-LONGEST_LOOKED_AT:]
    tokens = 1
    for request in longest:
        texts = [text for text in request.args if isinstance(text, str)]
        found = len(lm.tok_encode("".join(texts)))
        tokens = max(tokens, found + new_tokens(lm, request))
    return tokens


def new_tokens(lm: HarnessLM, request: Instance) -> int:
    """Tokens of a request's answer at most; 0 if it asks for none."""
    options = request.args[-1]
    if not isinstance(options, dict):
        return 0
    return int(normalize_gen_kwargs(options, lm.max_gen_toks)["max_gen_toks"])
