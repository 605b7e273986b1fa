"""Answer a list of prompts: resumable, recorded, streamed; the same for every engine.

    answer_prompts(Job("inference/generate", settings, made_with, "CPU", start), prompts)

The engine (transformers, llama.cpp) is a function that makes a `Session` for the answers that are
still missing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llm_recipes.cli import Terminated
from llm_recipes.errors import LLMError, raise_all
from llm_recipes.say import say

if TYPE_CHECKING:
    from llm_recipes.answers import Answers, Key, PrintedAnswers
    from llm_recipes.decoding import Completion, Request, StreamingDecoder
    from llm_recipes.prompts import Prompt


@dataclass(frozen=True)
class Session:
    """A loaded model and what is asked of it.

    requests: the missing answers. decoder: for streams. completions: runs the requests. metrics,
    model: the run record's parts, as far as they are known. describe: the metrics for people.
    """

    requests: Sequence[Request]
    decoder: StreamingDecoder
    completions: Callable[[], Iterator[Completion]]
    metrics: Callable[[], dict[str, Any]]
    model: Callable[[], dict[str, Any]]
    describe: Callable[[Mapping[str, Any]], str]


@dataclass(frozen=True)
class Job:
    """A checked command line.

    recipe: its name in the record. settings: the options by name. made_with: all that an answer
    depends on, without the prompts. device: name for the record. start: the session for the
    missing answers. inputs: what is read, by the record's part, besides the prompts. repeatable:
    the same command gives the same bytes. config: for the record, if it is another recipe's whole.
    """

    recipe: str
    settings: Mapping[str, Any]
    made_with: Mapping[str, Any]
    device: str
    start: Callable[[Sequence[Prompt], Sequence[Key]], AbstractContextManager[Session]]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    repeatable: bool = False
    config: Mapping[str, Any] | None = None


def answer_prompts(job: Job, asked: Sequence[Prompt]) -> int:
    """Answer every prompt that has no answer yet; leaves a run record beside the output.

    Raises:
        LLMError: If the output can't be continued or written, or the engine fails.
    """
    from llm_recipes.answers import PrintedAnswers, open_answers
    from llm_recipes.prompts import digest
    from llm_recipes.record import add_input, read_record, record_path, start_record

    settings = job.settings
    output: Path | None = settings["output"]
    order = [(p.key, sample) for p in asked for sample in range(settings["samples"])]
    config = settings if job.config is None else job.config
    record = start_record(job.recipe, config, job.device, deterministic=job.repeatable)
    record["data"] = {"path": settings["prompts"], "digest": digest(asked), "rows": len(asked)}
    record["made_with"] = {**job.made_with, "prompts": record["data"]["digest"]}
    if output is None:
        printed = PrintedAnswers(order)
        return _fill(job, asked, order, printed, record, None)
    output = output.expanduser()
    for part, found in {**job.inputs, "data": settings["prompts"]}.items():
        add_input(record, part, found)
    earlier = read_record(record_path(output))
    contents = {p.key: p.content for p in asked}
    with open_answers(
        output, record["made_with"], contents, earlier, settings["overwrite"]
    ) as answers:
        if answers.finished and all(key in answers.done for key in order):
            say(f"nothing to do: {output} has all {len(order)} answers")
            return 0
        return _fill(job, asked, order, answers, record, output)


def make_requests(
    asked: Sequence[Prompt],
    missing: Sequence[Key],
    tokenizer: Any,
    style: Any,
    system: str | None,
    context: int | None,
) -> list[Request]:
    """Token ids of each missing answer's prompt; all prompts that are too long at once.

    Args:
        asked: The prompts.
        missing: Key and sample of each answer to make.
        tokenizer: The model's.
        style: The form of prompts.
        system: System message for chats that have none.
        context: Tokens that the model can see with the answer; None is unlimited.
    """
    from llm_recipes.decoding import Request
    from llm_recipes.prompts import render

    wanted = {key for key, _ in missing}
    ids = {p.key: tuple(render(p, tokenizer, style, system)) for p in asked if p.key in wanted}
    faults = [
        LLMError(
            f"prompt {p.id!r}{f' ({p.where})' if p.where else ''} is too long",
            f"it has {len(ids[p.key])} tokens, and the model can see {context} with the answer",
            "shorten it",
        )
        for p in asked
        if p.key in wanted and context is not None and len(ids[p.key]) >= context
    ]
    raise_all(faults)
    return [Request(key, sample, ids[key]) for key, sample in missing]


def _fill(
    job: Job,
    asked: Sequence[Prompt],
    order: Sequence[Key],
    answers: Answers | PrintedAnswers,
    record: dict[str, Any],
    output: Path | None,
) -> int:
    """Make the missing answers; whatever ends this, what was reached is kept and recorded."""
    missing = [key for key in order if key not in answers.done]
    status = "failed"
    try:
        if not missing:  # a run was stopped between its last answer and the final file
            _finish(answers, order, record, output)
            return 0
        with job.start(asked, missing) as session:
            try:
                _complete(job, asked, session, answers)
            finally:
                record["metrics"] = session.metrics()
                record["model"] = session.model()
        _finish(answers, order, record, output)
        say(session.describe(record["metrics"]))
    except (KeyboardInterrupt, Terminated):
        status = "interrupted"
        if output is not None:
            say(f"{len(answers.done)} of {len(order)} answers are kept: the same command goes on")
        raise
    finally:
        record["metrics"] |= _count(answers.done)
        if output is not None and record["status"] != "complete":
            _record_unfinished(output, record, status)
    return 0


def _finish(
    answers: Answers | PrintedAnswers,
    order: Sequence[Key],
    record: dict[str, Any],
    output: Path | None,
) -> None:
    """Give the answers their final name, and the record just before: no file is without one."""
    from llm_recipes.record import is_recorded, record_path, write_record

    def keep(output_digest: str) -> None:
        assert output is not None
        record["metrics"] |= _count(answers.done)
        record["output_digest"] = output_digest
        record["results"] = {output.name: output_digest}
        # Nothing was generated: a run was stopped after its record, which has the measurements.
        if not record["model"] and is_recorded(record_path(output), record):
            record["status"] = "complete"
        else:
            write_record(record_path(output), record, "complete")

    answers.finish(order, keep)


def _count(done: Mapping[Key, Mapping[str, Any]]) -> dict[str, int]:
    """What the file holds, whichever of the runs that continue each other has made it."""
    from llm_recipes.answers import TOO_LONG

    too_long = {key for (key, _), row in done.items() if row.get("finish_reason") == TOO_LONG}
    return {"answers": len(done), "prompts_too_long": len(too_long)}


def _record_unfinished(output: Path, record: dict[str, Any], status: str) -> None:
    """Write the record of a run that did not get to its end."""
    from llm_recipes.record import is_recorded, record_path, write_record

    # With --overwrite the old file stays, and the record that is its own. And a run that is
    # stopped after it has written its record has only to rename the file.
    if os.path.exists(output) or is_recorded(record_path(output), record):
        return
    try:
        write_record(record_path(output), record, status)
    except LLMError as fault:  # it must not hide what ended the run
        say(str(fault))


def _complete(
    job: Job, asked: Sequence[Prompt], session: Session, answers: Answers | PrintedAnswers
) -> None:
    """Run the requests and hand over each answer as it ends; a single prompt may be streamed."""
    from llm_recipes.progress import Progress

    stream = job.settings["stream"]
    requests = session.requests
    if stream is None:
        stream = job.settings["output"] is None and sys.stdout.isatty() and len(requests) == 1
    if stream:
        _stream_texts(session)
        return
    prompts = {p.key: p for p in asked}
    done = len(answers.done)
    with Progress("generate", done + len(requests), "answers", done) as progress:
        for completion in session.completions():
            answers.append(_as_answer(prompts[completion.request.prompt_id], completion))
            progress.advance()


def _stream_texts(session: Session) -> None:
    """Show completions while they are generated, one after the other."""
    from llm_recipes.batching import complete_one

    for request in session.requests:
        try:
            complete_one(session.decoder, request, lambda text: print(text, end="", flush=True))
        except LLMError:  # its message begins a line
            print(flush=True)
            raise
        print(flush=True)


def _as_answer(prompt: Prompt, completion: Completion) -> dict[str, Any]:
    """The line of JSON for a completion."""
    return {
        "id": prompt.id,
        "sample": completion.request.sample,
        "prompt": prompt.content,
        "completion": completion.text,
        "prompt_tokens": len(completion.request.token_ids),
        "completion_tokens": len(completion.token_ids),
        "finish_reason": completion.finish_reason,
    }
