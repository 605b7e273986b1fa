"""The runs of a sweep: every combination of the settings it varies, each with a name of its own.

    from llm_recipes.sweep_points import Point, combinations, fixed_settings
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from llm_recipes.arguments import config_faults, read_command_line, value_faults
from llm_recipes.errors import LLMError, raise_all

# What a sweep varies, and the short names for people.
AXES = {
    "method": "method",
    "strategy": "strategy",
    "dtype": "dtype",
    "checkpointing": "checkpointing",
    "lora_rank": "rank",
    "max_length": "length",
    "batch_size": "batch",
}
# What it decides itself: short runs that leave nothing but numbers.
OWN: dict[str, Any] = {
    "plan": False,
    "overwrite": True,
    "measure_only": True,
    "epochs": 1.0,
    "save_every": 0,
    "keep": 1,
    "evaluate_every": 0,
    "patience": 0,
    "held_out": 0.0,
}
DECIDED = ("model", "data", "output", "max_steps", *OWN)
ORDER = (False, "fp32", "lora", "single", "ddp", "auto", True, "qlora", "full")
Axes = dict[str, Any]


@dataclass(frozen=True)
class Point:
    """A run. axes: what the sweep varies, all of it. settings: all options of sft.py."""

    name: str
    axes: Axes
    settings: dict[str, Any]


def fixed_settings(
    finetune: Callable[..., Any], options: Path | None, sets: Sequence[str]
) -> tuple[dict[str, Any], set[str]]:
    """sft.py's options as they hold for every run, and the names of those that were given.

    Args:
        finetune: The recipe's function.
        options: A YAML file of its options, such as a preset; the sweep's own ones in it give way.
        sets: `key=value`, which goes before the file.

    Raises:
        LLMError, ExceptionGroup: Unknown keys and bad values, all together.
    """
    faults: list[LLMError] = []
    arguments, texts = [], {}
    for text in sets:
        key, equals, value = text.partition("=")
        name = key.strip().lstrip("-").replace("-", "_")
        if not equals or not name:
            why = "expected key=value"
            faults.append(LLMError(f"--set {text} says nothing", why, "--set packing=true"))
        elif name in AXES:
            what, why = f"--set {name} is no setting of all runs", "a sweep varies it"
            faults.append(LLMError(what, why, f"--{name.replace('_', '-')} {value}"))
        elif name in DECIDED:
            why = "the sweep decides it: short runs that keep only their numbers"
            faults.append(LLMError(f"--set {name} can't be set", why, "leave it out"))
        else:
            arguments.append(f"--{name}={value}")
            texts[name] = value
    given = ["--model=-", "--data=-", "--output=-"]  # each run gets its own
    config = [f"--config={options}"] if options else []
    line = read_command_line(finetune, [*config, *given, *arguments])
    faults += [LLMError(f"--set: {f.what}", f.why, f.fix) for f in line.faults]
    faults += config_faults(finetune, line)
    faults += value_faults(finetune, {k: [texts[k]] for k in texts if k in line.values}, "--set ")
    raise_all(faults)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_function_arguments(finetune)
    found = parser.parse_args(line.arguments).as_dict()
    found.pop("config")
    in_file = yaml.safe_load(options.read_text(encoding="utf-8")) if options else {}
    return found, {*map(str, in_file or {}), *texts}


def combinations(
    base: Mapping[str, Any],
    lists: Mapping[str, Sequence[Any] | None],
    defaults: Mapping[str, Any],
    processes: int,
    has_global_batch: bool,
) -> list[Point]:
    """Every combination of the lists; what has none keeps its value of `base`.

    Args:
        base: sft.py's options.
        lists: Values to try by the axis's name.
        defaults: sft.py's own values, which names of runs leave out.
        processes: Of each run.
        has_global_batch: It was given; else a step is one batch of every process.
    """
    values = []
    for axis in AXES:
        given = lists.get(axis) or [base[axis]]
        if axis == "batch_size" and given == ["auto"]:
            given = [1]
        values.append(sorted(dict.fromkeys(given), key=place))
    points: dict[str, Point] = {}
    for chosen in itertools.product(*values):
        axes = dict(zip(AXES, chosen, strict=True))
        settings = {**base, **axes}
        if axes["method"] == "full":
            axes["lora_rank"] = None  # it has none: other ranks would be the same run again
            settings["lora_rank"] = defaults["lora_rank"]
        if not has_global_batch:
            settings["global_batch"] = axes["batch_size"] * processes
        name = point_name(axes, defaults)
        points.setdefault(name, Point(name, axes, settings))
    return list(points.values())


def point_name(axes: Axes, defaults: Mapping[str, Any]) -> str:
    """A file name: what differs from sft.py's own values, and the batch."""
    parts = []
    for axis, short in AXES.items():
        value = axes[axis]
        if value is None or (axis != "batch_size" and value == defaults[axis]):
            continue
        plain = axis in ("method", "strategy", "dtype")
        parts.append(str(value) if plain else f"{short}-{shown(value)}")
    return "-".join(parts)


def describe(axes: Axes, names: Sequence[str]) -> str:
    """Some settings of a run in words: `lora, rank 8, batch 4`."""
    parts = []
    for axis in names:
        if axes[axis] is not None:
            plain = axis in ("method", "strategy", "dtype") and axes[axis] != "auto"
            value = shown(axes[axis])
            parts.append(value if plain else f"{AXES[axis]} {value}")
    return ", ".join(parts)


def varying(points: Sequence[Axes]) -> list[str]:
    """Axes that have more than one value."""
    return [axis for axis in AXES if len({repr(axes[axis]) for axes in points}) > 1]


def place(value: Any) -> tuple[float, str]:
    """To sort an axis's values: the plainer or smaller before those that are compared with it."""
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, "")
    found = [n for n, known in enumerate(ORDER) if known is value or known == str(value)]
    return (found[0] if found else len(ORDER), str(value))


def shown(value: Any) -> str:
    """A value as YAML and command lines spell it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
