"""An evaluation on disk: its record names the tasks, and one file a task holds every item's scores.

    write_tasks(folder, tasks, record)       # scores/NAME.jsonl; record["evaluation"]
    run = read_run(Path("runs/base"))        # what compare.py and report.py work on

    FOLDER/run.json            the record; its "evaluation" has version, conditions and metrics
    FOLDER/scores/NAME.jsonl   one line an item: id, cluster, digests, scores, and what was answered

Two runs can be compared item by item where doc, target and prompt have the same digests.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.parse import quote

from llm_recipes.errors import LLMError
from llm_recipes.files import write_fault, write_text
from llm_recipes.record import read_record

RECORD = "run.json"
SCORES = "scores"
HUGE = 1e300  # no result is: sums of such numbers overflow
# What reading a file raises that holds something else.
DAMAGED = (
    ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError
)  # fmt: skip
# right: 1 or 0 an item. mean: a number an item. ratio: sum of first numbers / sum of second ones
# (nats and bytes). aggregate: no number an item, such as BLEU: only value and stderr are known.
Kind = Literal["right", "mean", "ratio", "aggregate"]
Score = float | tuple[float, float]


@dataclass(frozen=True)
class Metric:
    """A number of a task.

    value: In its own unit; shares are fractions. stderr: as lm-eval defines it, None if unknown.
    low, high: the interval of 95 % confidence, None if unknown. items: that count.
    """

    value: float
    higher_is_better: bool
    kind: Kind
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    items: int = 0


@dataclass(frozen=True)
class Shown:
    """An item for people. context: table, passage; gold: what is right; answer: the model's."""

    question: str
    gold: str
    answer: str
    context: str = ""


@dataclass(frozen=True)
class Item:
    """One item of a task.

    id: unique in the task. cluster: items of one cluster share something (a table) and are not
    independent; None: it stands alone. doc, target, prompt: digests of the item, of what is right,
    and of all that the model saw. scores: by the metric's name; of a ratio both numbers.
    groups: by which results are broken down, such as {"answer_type": "span"}.
    """

    id: str
    doc: str
    target: str
    prompt: str
    scores: Mapping[str, Score]
    cluster: str | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    shown: Shown | None = None


@dataclass(frozen=True)
class Task:
    """A task as it was run.

    version: of the task. fewshot: solved examples in front of each question. conditions: all else
    under which two runs are the same measurement: prompt_style, chat_template (a digest, "" for
    none), system (a digest), scorer ("lm-eval 0.4.13") ... main: the metric that decides.
    """

    name: str
    version: str
    fewshot: int
    conditions: Mapping[str, str]
    main: str
    metrics: Mapping[str, Metric]
    items: tuple[Item, ...] = ()


@dataclass(frozen=True)
class EvaluatedRun:
    """A run that was read. name: of its folder, for tables."""

    name: str
    folder: Path
    record: dict[str, Any]
    tasks: Mapping[str, Task]


def digest(value: object) -> str:
    """A short SHA-256 of a text, or of anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True)
    return sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_tasks(folder: Path, tasks: Sequence[Task], record: dict[str, Any]) -> None:
    """Write every task's scores and name them in the record, which the caller writes afterwards.

    Raises:
        LLMError: If the folder can't be written or is full.
    """
    try:
        (folder / SCORES).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_fault(folder, error) from error
    described = {}
    for task in tasks:
        name = scores_name(task.name)
        text = "".join(_line(item) for item in task.items)
        write_text(folder / name, text)
        described[task.name] = {
            "version": task.version,
            "fewshot": task.fewshot,
            "conditions": dict(task.conditions),
            "main": task.main,
            "metrics": {key: asdict(metric) for key, metric in task.metrics.items()},
            "items": len(task.items),
            "clusters": len({cluster_of(item) for item in task.items}),
            "scores": name,
            "scores_digest": sha256(text.encode()).hexdigest(),
        }
    record["evaluation"] = {"tasks": described}


def scores_name(task: str) -> str:
    """The file of a task's scores below the run's folder."""
    return f"{SCORES}/{quote(task, safe=' ')}.jsonl"


def cluster_of(item: Item) -> str:
    """The item's cluster; one that stands alone is its own."""
    return f"item {item.id}" if item.cluster is None else f"cluster {item.cluster}"


def read_run(path: Path) -> EvaluatedRun:
    """Read an evaluation: its folder, or its run.json.

    Raises:
        LLMError: If it is none, did not get to its end, or its scores are damaged or changed.
    """
    path = path.expanduser()
    file = path / RECORD if path.is_dir() else path
    record = read_record(file) if file.suffix == ".json" else None  # a model's file may be huge
    fix = "name the --output of harness.py or qa.py"
    if record is None:
        why = "there is none" if not file.exists() else "it can't be read"
        raise LLMError(f"{path} is no evaluation", f"it needs a {RECORD}: {why}", fix)
    described = record.get("evaluation")
    if not isinstance(described, dict) or not isinstance(described.get("tasks"), dict):
        status = record.get("status")
        if str(record.get("recipe", "")).startswith("evaluate/") and status != "complete":
            fix = "give its command again: it goes on"
            raise LLMError(f"the evaluation {path} has no results", f"it is {status}", fix)
        why = f"its record is of {record.get('recipe')}"
        raise LLMError(f"{path} is no evaluation", why, fix)
    tasks = {name: _task(name, told, file) for name, told in described["tasks"].items()}
    folder = file.parent
    return EvaluatedRun(folder.resolve().name, folder, record, tasks)


def _task(name: str, told: Mapping[str, Any], file: Path) -> Task:
    try:
        data = (file.parent / told["scores"]).read_bytes()
        if sha256(data).hexdigest() != told["scores_digest"]:
            raise ValueError("they are not those that were written")
        task = Task(
            name=name,
            version=str(told["version"]),
            fewshot=int(told["fewshot"]),
            conditions={str(k): str(v) for k, v in told["conditions"].items()},
            main=str(told["main"]),
            metrics={key: Metric(**values) for key, values in told["metrics"].items()},
            items=tuple(_items(data.decode().splitlines())),
        )
        _check(task)
        return task
    except OSError as error:
        why = error.strerror or str(error)
    except DAMAGED as error:
        why = str(error)
    what = f"the scores of {name} in {file.parent} can't be used"
    raise LLMError(what, why, "evaluate again, or copy the whole folder")


def _check(task: Task) -> None:
    """Raise a ValueError if values are not of their kind: what others have written may not be."""
    for name, metric in task.metrics.items():
        known = (metric.stderr, metric.low, metric.high, metric.items)
        if not (
            metric.kind in get_args(Kind)
            and isinstance(metric.higher_is_better, bool)
            and (_is_number(metric.value) or metric.value != metric.value)
            and all(value is None or _is_number(value) for value in known)
        ):
            raise ValueError(f"its metric {name} is {metric}")
    for item in task.items:
        texts = (item.id, item.doc, item.target, item.prompt, *item.groups, *item.groups.values())
        shown = vars(item.shown).values() if item.shown else ()
        if not (
            all(isinstance(text, str) for text in (*texts, *shown))
            and isinstance(item.cluster, str | None)
        ):
            raise ValueError(f"its item {item.id} has something else where texts are expected")


def _is_number(value: object) -> bool:
    is_one = isinstance(value, int | float) and not isinstance(value, bool)
    return is_one and abs(value) < HUGE  # type: ignore[arg-type]


def _line(item: Item) -> str:
    values = {key: value for key, value in asdict(item).items() if value not in (None, {})}
    return json.dumps(values, ensure_ascii=True) + "\n"


def _items(lines: Iterable[str]) -> Iterable[Item]:
    for line in lines:
        values = json.loads(line)
        shown = values.pop("shown", None)
        scores = {
            key: (score[0], score[1]) if isinstance(score, list) else score
            for key, score in values.pop("scores").items()
        }
        yield Item(**values, scores=scores, shown=None if shown is None else Shown(**shown))
