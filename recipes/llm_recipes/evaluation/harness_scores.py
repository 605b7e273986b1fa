"""What lm-eval found, as an evaluation of ours: every item's scores, and what was answered.

    tasks = scored_tasks(results, leaf_tasks(loaded), conditions)

Values and standard errors are lm-eval's. Of a perplexity only bits per byte have a number an item
that can be compared (nats and bytes of each text); the others are kept as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llm_recipes.evaluation.intervals import with_interval
from llm_recipes.evaluation.run import Item, Kind, Metric, Score, Shown, Task, digest
from llm_recipes.say import say

# Which metric decides, if the task has it: the first of these.
MAIN = ("acc", "exact_match", "em", "f1", "bits_per_byte")
NO_FILTER = "none"
PER_BYTE = "bits_per_byte"
CLUSTER, GROUPS = "cluster", "groups"  # in a task's metadata: fields of its documents
SHOWN_CHARACTERS = 2000  # of a question, from its end


def scored_tasks(
    results: Mapping[str, Any],
    tasks: Sequence[Any],
    conditions: Callable[[Any], Mapping[str, str]],
) -> list[Task]:
    """All tasks of an evaluation.

    Args:
        results: What lm-eval's `simple_evaluate` returned, with samples.
        tasks: lm-eval's tasks.
        conditions: Under which a task was run.
    """
    found = [_task(results, task, conditions(task)) for task in tasks]
    for task in found:
        if not task.metrics:
            say(f"warning: {task.name} has no result that is a number: it is left out of scores/")
    return [task for task in found if task.metrics]


def _task(results: Mapping[str, Any], task: Any, conditions: Mapping[str, str]) -> Task:
    name = task.task_name
    samples = sorted(results["samples"][name], key=lambda sample: int(sample["doc_id"]))
    scores = _scores(samples)
    kinds = _kinds(results["results"][name], scores)
    items = tuple(_items(task, samples, scores, kinds))
    metrics: dict[str, Metric] = {}
    for key, kind in kinds.items():
        metric = _metric(results, name, key, kind)
        metrics[key] = with_interval(key, metric, items)
    known = (main for main in MAIN if main in metrics)
    filtered = (key for main in MAIN for key in metrics if key.startswith(f"{main},"))
    return Task(
        name=name,
        version=str(results["versions"].get(name)),
        fewshot=int(results["n-shot"].get(name) or 0),
        conditions=conditions,
        main=next(known, None) or next(filtered, None) or next(iter(metrics), ""),
        metrics=metrics,
        items=items,
    )


def metric_name(metric: str, filtering: str) -> str:
    """Our name: lm-eval's metric, and its filter if it has one."""
    return metric if filtering == NO_FILTER else f"{metric},{filtering}"


def _scores(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Any]]:
    """By metric the values of all documents, as lm-eval has them."""
    found: dict[str, dict[int, Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            key = metric_name(metric, sample["filter"])
            found.setdefault(key, {})[int(sample["doc_id"])] = sample[metric]
    return found


def _kinds(row: Mapping[str, Any], scores: Mapping[str, Mapping[int, Any]]) -> dict[str, Kind]:
    """What a metric's values are: a mean that is lm-eval's value, or nothing that adds up."""
    kinds: dict[str, Kind] = {}
    for key, by_document in scores.items():
        value = _value(row, key)
        if value is None:
            continue
        values = list(by_document.values())
        kinds[key] = "aggregate"
        if key == PER_BYTE and all(_is_pair(pair) for pair in values):
            kinds[key] = "ratio"
        elif all(_is_number(number) for number in values):
            mean = math.fsum(float(number) for number in values) / len(values)
            if math.isclose(mean, value, rel_tol=1e-9, abs_tol=1e-12):
                whole = all(float(number) in (0.0, 1.0) for number in values)
                kinds[key] = "right" if whole else "mean"
    return kinds


def _metric(results: Mapping[str, Any], task: str, key: str, kind: Kind) -> Metric:
    row = results["results"][task]
    name, _, filtering = key.partition(",")
    stderr = row.get(f"{name}_stderr,{filtering or NO_FILTER}")
    better = results["higher_is_better"].get(task, {}).get(name)
    value = _value(row, key)
    assert value is not None
    return Metric(value, better is not False, kind, _number(stderr))


def _value(row: Mapping[str, Any], key: str) -> float | None:
    name, _, filtering = key.partition(",")
    return _number(row.get(f"{name},{filtering or NO_FILTER}"))


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None


def _items(
    task: Any,
    samples: Sequence[Mapping[str, Any]],
    scores: Mapping[str, Mapping[int, Any]],
    kinds: Mapping[str, Kind],
) -> list[Item]:
    first: dict[int, Mapping[str, Any]] = {}
    for sample in samples:  # a document comes once for every filter
        first.setdefault(int(sample["doc_id"]), sample)
    metadata = task.config.metadata if isinstance(task.config.metadata, Mapping) else {}
    cluster, groups = metadata.get(CLUSTER), metadata.get(GROUPS) or ()
    items = []
    for number, sample in first.items():
        doc = sample["doc"] if isinstance(sample["doc"], Mapping) else {}
        items.append(
            Item(
                id=str(number),
                doc=str(sample["doc_hash"])[:16],
                target=str(sample["target_hash"])[:16],
                prompt=digest([_plain(arguments) for arguments in sample["arguments"]]),
                scores={
                    key: _score(scores[key][number], kind)
                    for key, kind in kinds.items()
                    if kind != "aggregate" and number in scores[key]
                },
                cluster=digest(str(doc[cluster])) if cluster in doc else None,
                groups={name: str(doc[name]) for name in groups if name in doc},
                shown=_for_people(task, sample),
            )
        )
    return items


def _score(value: Any, kind: Kind) -> Score:
    if kind == "ratio":  # lm-eval's log-likelihood in nats, and bytes: bits and bytes
        return (-float(value[0]) / math.log(2), float(value[1]))
    return float(value)


def _for_people(task: Any, sample: Mapping[str, Any]) -> Shown | None:
    """What `_shown` finds, if the task has the form that it expects: the results don't need it."""
    try:
        return _shown(task, sample)
    except (LookupError, TypeError, ValueError):
        return None


def _shown(task: Any, sample: Mapping[str, Any]) -> Shown | None:
    """Question, what is right, and the answer; whole texts, of which there is no answer, are not.

    Of several choices the likeliest is the answer.
    """
    kind = task.OUTPUT_TYPE
    arguments = sample["arguments"]
    if kind == "generate_until":
        answer, gold = sample["filtered_resps"][0], sample["target"]
        question = _question(task, sample["doc"], arguments[0][0])
        return Shown(question, _listed(gold), _listed(answer))
    if kind == "multiple_choice":
        choices = _choices(arguments)
        likely = [float(response[0]) for response in sample["filtered_resps"]][: len(choices)]
        answer = choices[likely.index(max(likely))]
        gold = sample["target"]
        right = choices[gold] if isinstance(gold, int) and 0 <= gold < len(choices) else gold
        return Shown(_question(task, sample["doc"], arguments[0][0]), _listed(right), answer)
    if kind == "loglikelihood":
        gold = str(arguments[0][1]).strip()
        is_greedy = bool(sample["filtered_resps"][0][1])
        question = _question(task, sample["doc"], arguments[0][0])
        return Shown(question, gold, gold if is_greedy else "(something else)")
    return None


def _choices(arguments: Sequence[Sequence[Any]]) -> list[str]:
    """The choices of a question: its endings, or beginnings where all have one ending.

    Behind them may be the same endings without a context, of which no answer is chosen.
    """
    context = arguments[0][0]
    endings = [str(pair[1]).strip() for pair in arguments if pair[0] == context]
    return endings if len(endings) > 1 else [str(pair[0]).strip() for pair in arguments]


def _question(task: Any, doc: Any, context: str) -> str:
    """The question without the solved examples in front of it, if the task can say it."""
    try:
        text = task.doc_to_text(doc)
    except Exception:  # a task's own Python, of which only the results are needed
        text = None
    found = text if isinstance(text, str) else str(context)
    return found[-SHOWN_CHARACTERS:].strip()


def _listed(value: Any) -> str:
    return "; ".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(arguments: Sequence[Any]) -> list[Any]:
    return [part if isinstance(part, (str, dict)) else str(part) for part in arguments]


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_number(part) for part in value)


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, (str, bytes, list, tuple)) and math.isfinite(float(value))
    except (TypeError, ValueError, OverflowError):
        return False
