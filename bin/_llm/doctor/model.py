"""Whether a model can be loaded without a network, from what inside.py has seen in the image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from _llm.doctor.finding import FAIL, OK, SKIP, WARN, Finding
from _llm.doctor.machine import gib


def findings(answers: Mapping[str, list[dict[str, Any]]], names: Sequence[str]) -> list[Finding]:
    """One line for each fault of a model, or one that says that it is complete."""
    if not names:
        return []
    if "models" not in answers:
        text = f"{', '.join(names)}: not looked at, because the image gave no answer"
        return [Finding("model", SKIP, text)]
    answer = answers["models"][0]
    if answer.get("missing"):
        text = f"can't be checked in this image: {answer['missing']}"
        return [Finding("model", WARN, text, "use the image llm, which has what models need")]
    return [finding for model in answer["models"] for finding in _of_one(model)]


def _of_one(model: Mapping[str, Any]) -> list[Finding]:
    name = model["name"]
    if model["faults"]:
        return [_fault(name, fault) for fault in model["faults"]]
    data = {"name": name, "path": model["path"], "bytes": model["bytes"]}
    count = len(model["weights"])
    text = f"{name} can be loaded offline from {model['path']}: {count} files, "
    found = [Finding("model", OK, text + gib(model["bytes"]) + " of weights", data=data)]
    pickles = [
        os.path.basename(file) for file in model["weights"] if not file.endswith(".safetensors")
    ]
    if pickles:
        text = f"{name} has its weights as pickles, which can hold programs: {', '.join(pickles)}"
        fix = "take the model's safetensors files, or load it with torch's weights_only=True alone"
        found.append(Finding("model", WARN, text, fix))
    return found


def _fault(name: str, fault: Mapping[str, str]) -> Finding:
    text, fix = f"{fault['what']}: {fault['why']}" if fault["why"] else fault["what"], fault["fix"]
    if os.path.isdir(name) and "does not exist" in text:
        text = f"{name} is there, but a program in the image does not see it"
        fix = f"llm-run --bind '{os.path.abspath(name)}' COMMAND, or [paths] models of the profile"
    return Finding("model", FAIL, text, fix)
