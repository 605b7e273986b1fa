"""Names for runs: those of their folders, longer where two have the same.

runs = label_runs([Path("a/base"), Path("b/base")], None, faults)   # {"a/base": ..., "b/base": ...}
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.run import EvaluatedRun, read_run


def label_runs(
    paths: Sequence[Path], names: Sequence[str] | None, faults: list[LLMError]
) -> dict[str, EvaluatedRun]:
    """Read runs and name each; what is wrong is added to the faults.

    Args:
        paths: Folders of evaluations.
        names: Theirs; None: those of their folders.
        faults: What was found before.
    """
    folders = [_folder(path) for path in paths]
    twice = [path for place, path in enumerate(folders) if path in folders[:place]]
    for path in dict.fromkeys(twice):
        faults.append(LLMError(f"the run {path} is given twice", "it can't differ from itself"))
    if len(set(folders)) < 2:
        fix = "--run runs/base --run runs/lora"
        faults.append(LLMError("a comparison needs two runs or more", f"{len(paths)} given", fix))
    if names is not None and (len(names) != len(paths) or len(set(names)) < len(names)):
        why = f"{len(paths)} runs, {len(set(names))} different names"
        faults.append(LLMError("--names does not fit", why, "a name for each --run, in its order"))
    if names is not None and any(not name.strip() for name in names):
        faults.append(LLMError("--names has an empty name", fix="leave it out for folders' names"))
    runs: list[EvaluatedRun] = []
    for path in paths:
        try:
            runs.append(read_run(path))
        except LLMError as fault:
            faults.append(fault)
    faults += [_unfinished(run) for run in runs if run.record.get("status") != "complete"]
    if len(runs) < len(paths):
        return {}
    shown = names or short_names([folder.parts for folder in folders])
    return dict(zip(shown, runs, strict=False))


def short_names(parts: Sequence[tuple[str, ...]]) -> list[str]:
    """Names of paths, of their last parts: as many as make each different from all others.

    Args:
        parts: Of each path.
    """
    taken = [1] * len(parts)
    while True:
        names = ["/".join(path[-count:]) for path, count in zip(parts, taken, strict=True)]
        often = Counter(names)
        longer = [
            count + (often[name] > 1 and count < len(path))
            for name, path, count in zip(names, parts, taken, strict=True)
        ]
        if longer == taken:
            return names
        taken = longer


def reference_of(
    runs: Mapping[str, EvaluatedRun], against: str | None, faults: list[LLMError]
) -> str:
    """Label of the run that others are compared with; "" and a fault if there is none."""
    if not runs:
        return ""
    if against is None:
        return next(iter(runs))
    wanted = _folder(Path(against))
    for label, run in runs.items():
        if against == label or wanted == run.folder.resolve():
            return label
    near = difflib.get_close_matches(against, list(runs), 1)
    fix = f"did you mean {near[0]}?" if near else f"one of: {', '.join(runs)}"
    faults.append(LLMError(f"--against {against} is none of the runs", fix=fix))
    return ""


def _folder(path: Path) -> Path:
    path = path.expanduser()
    return (path if path.is_dir() else path.parent if path.is_file() else path).resolve()


def _unfinished(run: EvaluatedRun) -> LLMError:
    fix = "give its command again: it goes on"
    told = f"it is {run.record.get('status', 'without a status')}"
    return LLMError(f"the evaluation {run.folder} is not complete", told, fix)
