"""What a checkpoint in Meta's format needs to answer prompts: from options to a session.

    Job("inference/sharded", settings, made_with(plan), "CPU", partial(session, plan, leader))

plan: from `llm_recipes.meta.run_plan`; leader: from `llm_recipes.meta.lockstep`; all on rank 0.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from llm_recipes.answering import Session, make_requests
from llm_recipes.answers import TOO_LONG
from llm_recipes.batching import complete_all
from llm_recipes.decoding import Completion, Decoder, DecodeSettings, Request
from llm_recipes.device import (
    Peak,
    dtype_name,
    known_peak,
    peak_memory_bytes,
)
from llm_recipes.errors import LLMError
from llm_recipes.meta.decoder_model import DecoderModel
from llm_recipes.meta.lockstep import Leader
from llm_recipes.meta.releases import context_of
from llm_recipes.meta.run_plan import Plan
from llm_recipes.meta.sizes import (
    CONTEXT_UNKNOWN,
    Shape,
    fitting_rows,
    kv_bytes,
    parameters,
    read_bytes,
    row_bytes,
)
from llm_recipes.meta.tokenizer import load_tokenizer, stop_ids
from llm_recipes.models import ModelSize
from llm_recipes.sampling import Sampling
from llm_recipes.say import say
from llm_recipes.summary import Loading, describe, generation_metrics

if TYPE_CHECKING:
    from llm_recipes.answers import Key
    from llm_recipes.prompts import Prompt

ARCHITECTURE = "Llama (Meta's format)"
MOST_SHOWN = 10  # prompts that are too long
CHAT_TOKENS = 4096  # of a conversation, if --max-seq-len says nothing


@contextlib.contextmanager
def session(
    plan: Plan, leader: Leader, asked: Sequence[Prompt], missing: Sequence[Key]
) -> Iterator[Session]:
    """The loaded model with the requests for the missing answers, on rank 0."""
    o, shard = plan.settings, plan.shard
    tokenizer = make_tokenizer(plan)
    style, system = o["prompt_style"], o["system"]
    everything = make_requests(asked, missing, tokenizer, style, system, None)
    limit = longest_row(plan)
    requests = [request for request in everything if len(request.token_ids) < limit]
    too_long = [request for request in everything if len(request.token_ids) >= limit]
    report_too_long(asked, too_long, limit, o["output"] is None and len(asked) == 1)
    size = model_size(shard.shape)
    files = sum(path.stat().st_size for path in shard.checkpoint.shards)
    loading, rows = Loading(0.0, 0), 1
    decoder = make_decoder(plan, leader, tokenizer, limit)
    if requests:
        load_s, free = load(plan, leader)
        loading = Loading(load_s, files)
        lengths = [len(request.token_ids) for request in requests]
        rows = allocate(plan, leader, lengths, limit, free)
    peak = peak_of_all(plan)

    def completions() -> Iterator[Completion]:
        for request in too_long:
            yield Completion(request, (), "", TOO_LONG)
        yield from complete_all(decoder, requests, size, rows)

    def metrics() -> dict[str, Any]:
        return generation_metrics(loading, size, decoder.work, peak, peaks(leader))

    yield Session(
        requests if o["stream"] else everything,
        decoder,
        completions,
        metrics,
        lambda: describe_model(plan, size),
        describe,
    )


def peak_of_all(plan: Plan) -> Peak:
    """What the devices of all processes can do together, from their data sheet."""
    count, peak = plan.ranks.count, known_peak(plan.shard.device)
    if peak.bytes_per_s is None or peak.flops_per_s is None:
        return Peak(None, None, "unknown")
    source = peak.source if count == 1 else f"{count} x {peak.source}"
    return Peak(peak.bytes_per_s * count, peak.flops_per_s * count, source)


def make_tokenizer(plan: Plan) -> Any:
    """The checkpoint's tokenizer, with a chat template if one is asked for.

    Raises:
        LLMError: If it is damaged, or knows tokens that the model doesn't.
    """
    o, checkpoint = plan.settings, plan.shard.checkpoint
    chat = o["chat"] or o["prompt_style"] == "chat"
    tokenizer = load_tokenizer(checkpoint.tokenizer, checkpoint.sidecar, chat)
    if len(tokenizer) > checkpoint.params.vocabulary:
        raise LLMError(
            f"the tokenizer does not belong to {checkpoint.folder}",
            f"it has {len(tokenizer)} tokens, and the model {checkpoint.params.vocabulary}",
            "name the model's own: --tokenizer FILE",
        )
    return tokenizer


def longest_row(plan: Plan) -> int:
    """The most tokens of a prompt and its completion: --max-seq-len, or the model's context."""
    wanted: int | None = plan.settings["max_seq_len"]
    checkpoint = plan.shard.checkpoint
    known = checkpoint.context
    of_release, note = context_of(checkpoint.params)
    if wanted is None and note and known == of_release:
        say(f"note: {note}; the smallest is taken; --max-seq-len says another number")
    if wanted is None and known is None:
        say(
            f"the model's context is not known: {CONTEXT_UNKNOWN} tokens are taken for it;"
            " --max-seq-len says another number"
        )
    if wanted is not None and known is not None and wanted > known:
        say(f"note: the model was trained for {known} tokens, fewer than --max-seq-len {wanted}")
    return wanted or known or CONTEXT_UNKNOWN


def report_too_long(
    asked: Sequence[Prompt], too_long: Sequence[Request], limit: int, alone: bool
) -> None:
    """Say which prompts leave no room for an answer; their answers are empty.

    Args:
        asked: All prompts.
        too_long: The requests of those.
        limit: Tokens of a prompt and its completion.
        alone: There is but one, and no file for the answer.

    Raises:
        LLMError: If the only prompt is too long.
    """
    lengths = {request.prompt_id: len(request.token_ids) for request in too_long}
    prompts = [prompt for prompt in asked if prompt.key in lengths]
    for prompt in prompts[:MOST_SHOWN]:
        where = f" ({prompt.where})" if prompt.where else ""
        fault = LLMError(
            f"prompt {prompt.id!r}{where} is too long",
            f"it has {lengths[prompt.key]} tokens, and {limit} are all with the answer",
            "shorten it, or --max-seq-len NUMBER as far as the model can see",
        )
        if alone:
            raise fault
        say(f"{fault.what}: {fault.why}")
    if len(prompts) > MOST_SHOWN:
        say(f"and {len(prompts) - MOST_SHOWN} more prompts are too long")
    if prompts:
        say(f"{len(prompts)} prompts get an empty answer, with finish_reason {TOO_LONG}")


def make_decoder(plan: Plan, leader: Leader, tokenizer: Any, limit: int) -> Decoder:
    """What completes batches; limit: tokens of a prompt and its completion."""
    o, shard = plan.settings, plan.shard
    ends = stop_ids(tokenizer, shard.checkpoint.sidecar)
    settings = DecodeSettings(
        max_new_tokens=o["max_new_tokens"],
        sampling=Sampling(
            o["temperature"], o["top_p"], o["top_k"], o["repetition_penalty"], o["seed"]
        ),
        stop=tuple(o["stop"] or ()),
        stop_token_ids=frozenset() if o["ignore_eos"] else ends,
        context=limit,
    )
    params = shard.checkpoint.params
    return Decoder(DecoderModel(leader, params, shard.device, shard.precision), tokenizer, settings)


def load(plan: Plan, leader: Leader) -> tuple[float, float]:
    """Load every rank's weights; seconds of the slowest, free bytes where they are fewest."""
    shard, count = plan.shard, plan.ranks.count
    files = sum(path.stat().st_size for path in shard.checkpoint.shards)
    processes = f" in {count} processes" if count > 1 else ""
    say(f"loading {shard.checkpoint.folder} ({files / 1e9:.3g} GB) on {shard.device}{processes}")
    facts = leader.load()
    return max(f["load_s"] for f in facts), min(f["free"] for f in facts)


def allocate(plan: Plan, leader: Leader, lengths: Sequence[int], limit: int, free: float) -> int:
    """Make room for keys and values, once for all batches; the most rows of one.

    Args:
        plan: The command line.
        leader: The loaded model.
        lengths: Tokens of each prompt.
        limit: Tokens of a prompt and its completion.
        free: Bytes in each process.
    """
    longest = max(lengths)
    most_new = max(min(plan.settings["max_new_tokens"], limit - length) for length in lengths)
    # All rows of a batch end in one column, where the longest prompt ends.
    tokens = longest + most_new
    wanted = plan.settings["max_batch_size"]
    rows = min(plan.most_rows, len(lengths))
    if wanted == "auto":
        a_row = row_bytes(plan.shard.shape, tokens, longest)
        rows = fitting_rows(free, a_row, plan.shard.device.type, rows)
    leader.allocate(rows, tokens)
    return rows


def peaks(leader: Leader) -> dict[str, Any]:
    """The memory's peaks of rank 0, and the host's of each rank as far as they can be asked."""
    try:
        found = leader.measure()
    except RuntimeError:  # another rank has ended
        found = []
    of_first = found[0] if found else peak_memory_bytes(torch.device("cpu"))
    return {**of_first, "rank_peak_host_bytes": [rank["peak_host_bytes"] for rank in found]}


def model_size(shape: Shape) -> ModelSize:
    """Sizes for the run's numbers; bytes are those of all processes together."""
    params = shape.params
    head = params.vocabulary * params.dim
    return ModelSize(
        parameters=parameters(shape),
        matmul_parameters=parameters(shape, matrices_only=True),
        head_parameters=head,
        weight_bytes=read_bytes(shape),
        kv_bytes_per_token=kv_bytes(shape, 1) * shape.degree,
        attention_width=params.layers * params.heads * params.head_size,
        vocabulary=params.vocabulary,
        hidden_size=params.dim,
    )


def describe_model(plan: Plan, size: ModelSize) -> dict[str, Any]:
    """The run record's part about the model."""
    return {
        "path": str(plan.shard.checkpoint.folder),
        "adapter": None,
        "architecture": ARCHITECTURE,
        "parameters": size.parameters,
        "dtype": dtype_name(plan.shard.precision),
        "digest": plan.digest,
        "model_parallel": plan.ranks.count,
    }


def hold_chat(plan: Plan, leader: Leader) -> int:
    """A conversation at the terminal, held by rank 0."""
    from llm_recipes.chat import converse

    o = plan.settings
    tokenizer = make_tokenizer(plan)
    limit = longest_row(plan)
    if o["max_seq_len"] is None:
        limit = min(limit, CHAT_TOKENS)
    _, free = load(plan, leader)
    allocate(plan, leader, [limit - 1], limit, free)
    decoder = make_decoder(plan, leader, tokenizer, limit)
    if plan.ranks.count > 1:
        say("note: in several processes Ctrl-C ends the conversation, as torchrun ends them all")
    return converse(decoder, tokenizer, o["prompt_style"], o["system"])
