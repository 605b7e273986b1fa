"""Whether runs are the same measurement of different models; if not, why not and what to do.

    faults = comparison_faults(runs, pairs, despite=["chat_template"])

Item by item the same text, the same right answer and the same prompt, asked and scored in the same
way: otherwise a difference may be that of the measurement.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.run import EvaluatedRun, Item, Task

SHOWN = 3  # ids, tasks
SAMPLES, PROMPTS = "samples", "prompts"
WHY = {
    "version": "another version of a task has other items or another scoring",
    "fewshot": "a model that sees other solved examples is asked something else",
    "prompt_style": "the same question put in another way has another answer",
    "chat_template": "the same question put in another way has another answer",
    "system": "a model that is told something else answers something else",
    "scorer": "the same answers may get other scores",
    "max_gen_toks": "a longer answer is another one",
    "window_tokens": "a text is easier to predict with more of it before each token",
    "fewshot_as_multiturn": "the same question put in another way has another answer",
    PROMPTS: "other few-shot examples, or another template, make other questions",
}
EXPLAIN_PROMPTS = {
    "version",
    "fewshot",
    "prompt_style",
    "chat_template",
    "system",
    "fewshot_as_multiturn",
}


@dataclass
class Differing:
    """What differs between two runs. tasks: where, with what the one and the other has."""

    tasks: dict[str, str] = field(default_factory=dict)


def common_tasks(runs: Sequence[EvaluatedRun]) -> list[str]:
    """Tasks that two of the runs or more have, in the order of the first that has them."""
    count: dict[str, int] = {}
    for run in runs:
        for name in run.tasks:
            count[name] = count.get(name, 0) + 1
    return [name for name, runs_with in count.items() if runs_with > 1]


def comparison_faults(
    runs: Mapping[str, EvaluatedRun],
    pairs: Sequence[tuple[str, str]],
    tasks: Sequence[str],
    despite: Sequence[str],
) -> list[LLMError]:
    """Why pairs of runs can't be compared, all at once.

    Args:
        runs: By their labels.
        pairs: Labels of those that are to be compared.
        tasks: Those that are looked at, where both have them.
        despite: Conditions that may differ.
    """
    faults = [*_unknown(runs, despite)]
    for first, other in pairs:
        both = [name for name in tasks if name in runs[first].tasks and name in runs[other].tasks]
        found: dict[str, Differing] = {}
        for name in both:
            one, two = runs[first].tasks[name], runs[other].tasks[name]
            for condition, told in task_differences(one, two, (first, other), despite):
                found.setdefault(condition, Differing()).tasks[name] = told
        faults += [_fault(first, other, condition, where) for condition, where in found.items()]
    return faults


def task_differences(
    first: Task, other: Task, names: tuple[str, str], despite: Sequence[str] = ()
) -> Iterator[tuple[str, str]]:
    """Conditions in which two runs of a task differ, each with what the one and the other has."""
    differing = [condition for condition, *_ in condition_differences(first, other)]
    for condition, one, two in condition_differences(first, other):
        if condition not in despite:
            yield condition, f"{one} in {names[0]}, {two} in {names[1]}"
    told = _samples(first, other, names)
    if told:
        yield SAMPLES, told
    elif not EXPLAIN_PROMPTS.intersection(differing) and PROMPTS not in despite:
        theirs = {item.id: item.prompt for item in other.items}
        changed = [item.id for item in first.items if theirs[item.id] != item.prompt]
        if changed:
            yield PROMPTS, f"{len(changed):,} of {len(first.items):,} items{_such_as(changed)}"


def condition_differences(first: Task, other: Task) -> Iterator[tuple[str, str, str]]:
    """Conditions that differ, with the one's and the other's, as words."""
    yield from _unequal("version", first.version, other.version)
    yield from _unequal("fewshot", str(first.fewshot), str(other.fewshot))
    for name in dict.fromkeys([*first.conditions, *other.conditions]):
        yield from _unequal(name, first.conditions.get(name, ""), other.conditions.get(name, ""))


def _unequal(name: str, one: str, two: str) -> Iterator[tuple[str, str, str]]:
    if one != two:
        yield name, one or "none", two or "none"


def _samples(first: Task, other: Task, names: tuple[str, str]) -> str:
    """How the items differ; "" if they are the same ones."""
    ours, theirs = _by_id(first), _by_id(other)
    told = []
    for name, only in (
        (names[0], [key for key in ours if key not in theirs]),
        (names[1], [key for key in theirs if key not in ours]),
    ):
        if only:
            told.append(f"{len(only):,} only in {name}{_such_as(only)}")
    both = [(item, theirs[key]) for key, item in ours.items() if key in theirs]
    for what, changed in (
        ("have another text", [a.id for a, b in both if a.doc != b.doc]),
        ("have another right answer", [a.id for a, b in both if a.target != b.target]),
        ("are in another cluster", [a.id for a, b in both if a.cluster != b.cluster]),
    ):
        if changed:
            told.append(f"{len(changed):,} {what}{_such_as(changed)}")
    return "; ".join(told)


def _by_id(task: Task) -> dict[str, Item]:
    found = {item.id: item for item in task.items}
    if len(found) < len(task.items):
        why = f"{len(task.items):,} items have {len(found):,} ids"
        raise LLMError(f"items of {task.name} can't be told apart", why, "evaluate again")
    return found


def _fault(first: str, other: str, condition: str, where: Differing) -> LLMError:
    names = list(where.tasks)
    more = f"; and {len(names) - SHOWN} more tasks" if len(names) > SHOWN else ""
    told = "; ".join(f"{name}: {where.tasks[name]}" for name in names[:SHOWN]) + more
    if condition == SAMPLES:
        what = f"{other} can't be compared with {first}: they have different samples"
        return LLMError(what, told, "evaluate both on the same data, as many and in the same way")
    what = f"{other} can't be compared with {first}: {condition} differs"
    reason = WHY.get(condition)
    fix = (
        f"evaluate one of them again, as the other; or --despite {condition}, if that is a part of"
        " what you compare"
    )
    return LLMError(what, f"{told}: {reason}" if reason else told, fix)


def _unknown(runs: Mapping[str, EvaluatedRun], despite: Sequence[str]) -> Iterator[LLMError]:
    tasks = [task for run in runs.values() for task in run.tasks.values()]
    conditions = [key for task in tasks for key in task.conditions]
    known = list(dict.fromkeys(["version", "fewshot", PROMPTS, *conditions]))
    for name in despite:
        if name in known:
            continue
        near = difflib.get_close_matches(name, known, 1)
        fix = f"did you mean {near[0]}?" if near else f"one of: {', '.join(known)}"
        if name == SAMPLES:
            fix = "evaluate both on the same samples: nothing can be said otherwise"
        yield LLMError(f"--despite {name} is no condition that may differ", fix=fix)


def _such_as(ids: Sequence[str]) -> str:
    return f" (such as {', '.join(ids[:SHOWN])})"


def used_despite(
    runs: Mapping[str, EvaluatedRun],
    pairs: Sequence[tuple[str, str]],
    tasks: Sequence[str],
    despite: Sequence[str],
) -> tuple[list[str], list[str]]:
    """Of the conditions that may differ: those that do, with where, and those that don't."""
    where: dict[str, dict[str, None]] = {name: {} for name in despite}
    for first, other in pairs:
        for name in tasks:
            if name not in runs[first].tasks or name not in runs[other].tasks:
                continue
            one, two = runs[first].tasks[name], runs[other].tasks[name]
            for condition, told in task_differences(one, two, (first, other)):
                if condition in where:
                    where[condition][told] = None
    used = [f"{name} ({'; '.join(list(told)[:SHOWN])})" for name, told in where.items() if told]
    return used, [name for name, told in where.items() if not told]
