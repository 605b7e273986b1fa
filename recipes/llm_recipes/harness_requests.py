"""What a task of lm-evaluation-harness asks: continuations to score, and how to generate.

from llm_recipes.harness_requests import read_generation, window
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval.models.utils import normalize_gen_kwargs

from llm_recipes.errors import LLMError, raise_all
from llm_recipes.sampling import Sampling

LENGTHS = frozenset({"max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"})
NUMBERS: Mapping[str, float] = {
    "temperature": 0.0,
    "top_p": 1.0,
    "top_k": 0,
    "repetition_penalty": 1.0,
}
KNOWN = LENGTHS | {"until", "do_sample", "num_beams", "seed", *NUMBERS}
SHOWN = 40  # characters of a text in messages
# A request's texts (None for a window of a longer text), tokens of its context and continuation.
Encoded = tuple[tuple[str, str] | None, list[int], list[int]]


@dataclass(frozen=True)
class Generation:
    """What ends an answer and how its tokens are chosen.

    new_tokens: at most. until: texts that end it and are cut off.
    """

    new_tokens: int
    until: tuple[str, ...]
    sampling: Sampling


def window(request: Encoded, length: int, prefix: int) -> tuple[list[int], int]:
    """The tokens of a request that the model sees, and where its continuation begins.

    A context that is too long loses its beginning, as in lm-eval's own models.

    Args:
        request: Its tokens.
        length: Tokens that the model sees at once; the last one of a request is only predicted.
        prefix: Token that stands for an empty context.

    Raises:
        LLMError: If the continuation is empty, or longer than the model sees.
    """
    texts, before, after = request
    if not after:
        raise nothing_to_score(texts[0] if texts else "")
    if len(after) > length:
        what = f"the continuation {_shown(texts[1] if texts else '')} is too long to score"
        why = f"it has {len(after)} tokens and the model sees {length}"
        raise LLMError(what, why, "raise --context as far as the model allows")
    ids = [*(before or [prefix]), *after][-length - 1 :]
    return ids, len(ids) - len(after)


def nothing_to_score(context: str) -> LLMError:
    """The fault of a continuation without tokens."""
    why = f"the continuation after {_shown(context)} has no tokens" if context else "it is empty"
    return LLMError("a task asks for the likelihood of nothing", why, "correct the task's choices")


def no_room(new_tokens: int, length: int) -> LLMError:
    """The fault of answers that leave no room for a prompt.

    Args:
        new_tokens: That an answer may have.
        length: Tokens that the model sees at once.
    """
    what = f"a task asks for answers of {new_tokens} tokens (max_gen_toks)"
    why = f"the model sees {length} tokens with the prompt"
    return LLMError(what, why, "raise --context, or lower the task's max_gen_toks")


def read_generation(options: Mapping[str, Any], new_tokens: int, seed: int = 0) -> Generation:
    """A task's `generation_kwargs`; what isn't given is off, and without do_sample it is greedy.

    Args:
        options: As the task has them.
        new_tokens: Of an answer at most, if the task doesn't say.
        seed: Of sampled answers, if the task doesn't say.

    Raises:
        LLMError, ExceptionGroup: Every option that isn't known here or whose value can't be meant.
    """
    faults = [_unknown(name) for name in sorted(options) if name not in KNOWN]
    if options.get("num_beams", 1) != 1:
        what = f"the task wants beam search (num_beams: {options['num_beams']})"
        faults.append(LLMError(what, "only single sequences are generated here", "num_beams: 1"))
    until = options.get("until") or []
    until = [until] if isinstance(until, str) else until
    if not isinstance(until, list) or any(not isinstance(text, str) for text in until):
        faults.append(_bad("until", until, "a text, or a list of texts"))
    for name in (*NUMBERS, "seed", *LENGTHS):
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            faults.append(_bad(name, value, "a number"))
    raise_all(faults)
    # Its own defaults: the first of several names of a length, no temperature without do_sample.
    found = normalize_gen_kwargs(dict(options), new_tokens)
    sampled = found["do_sample"]
    numbers = {
        name: default if options.get(name) is None else options[name]
        for name, default in NUMBERS.items()
    }
    if found["max_gen_toks"] < 1:
        raise _bad("max_gen_toks", found["max_gen_toks"], "at least 1")
    return Generation(
        new_tokens=found["max_gen_toks"],
        until=tuple(text for text in until if text),
        sampling=Sampling(
            temperature=float(found.get("temperature", 0.0)) if sampled else 0.0,
            top_p=float(numbers["top_p"]),
            top_k=int(numbers["top_k"]),
            repetition_penalty=float(numbers["repetition_penalty"]),
            seed=int(seed if options.get("seed") is None else options["seed"]),
        ),
    )


def _unknown(name: str) -> LLMError:
    near = difflib.get_close_matches(name, KNOWN, n=1)
    fix = f"did you mean {near[0]}?" if near else f"known are {', '.join(sorted(KNOWN))}"
    return LLMError(f"the task's generation_kwargs have an unknown option {name}", fix=fix)


def _bad(name: str, value: object, expected: str) -> LLMError:
    return LLMError(f"the task's {name} {value!r} cannot be meant", fix=f"expected {expected}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN // 2]}…{text[-SHOWN // 2 :]}")
