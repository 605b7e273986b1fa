"""Files of predictions, `{uid: [answer, scale]}`, as TAT-QA's own scoring takes them: in and out.

    write_predictions(Path("predictions.json"), {"uid": (["2019"], "")})
    read_predictions(Path("predictions.json"))

The answer is a text, a number, a list of them, or null; the scale "", thousand, million, billion,
percent or null. For other files an answer may stand alone, without a list and a scale.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError
from llm_recipes.evaluation.judging import Prediction
from llm_recipes.files import write_text
from llm_recipes.prompts import raise_some
from llm_recipes.tatqa import SCALES

FILE = "predictions.json"
EXPECTED = 'expected {"uid": [answer, scale]}, such as {"4960801d": [["$1,496.5"], "million"]}'


def read_predictions(path: Path) -> dict[str, Prediction]:
    """All predictions of a file, or of `predictions.json` in a folder.

    Raises:
        LLMError, ExceptionGroup: If it can't be read; every entry that can't be meant.
    """
    file = path / FILE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8-sig")
        pairs = json.loads(text, object_pairs_hook=_pairs)
    except OSError as error:
        fix = f"--predictions takes a JSON file, or a folder with {FILE}"
        what = f"cannot read the predictions {file}"
        raise LLMError(what, error.strerror or str(error), fix) from None
    except (ValueError, RecursionError) as error:
        raise LLMError(f"the predictions {file} are not JSON", f"{error}", EXPECTED) from None
    if not isinstance(pairs, _Object):
        raise LLMError(f"the predictions {file} are no JSON object", fix=EXPECTED)
    found: dict[str, Prediction] = {}
    faults = []
    for uid, value in pairs.items:
        try:
            if uid in found:
                raise ValueError("it is there twice")
            found[uid] = _prediction(value)
        except ValueError as error:
            faults.append(LLMError(f"the prediction {uid} can't be used", str(error)))
    raise_some(faults, EXPECTED)
    return found


def write_predictions(path: Path, predictions: Mapping[str, Prediction]) -> None:
    """Write them in their order.

    Raises:
        LLMError: If the file can't be written.
    """
    lines = [
        f"{json.dumps(uid)}: {json.dumps(list(one), ensure_ascii=True)}"
        for uid, one in predictions.items()
    ]
    write_text(path, "{\n" + ",\n".join(lines) + "\n}\n")


class _Object:
    """A JSON object with its keys as often as they stand there."""

    def __init__(self, items: list[tuple[str, Any]]) -> None:
        self.items = items


def _pairs(items: list[tuple[str, Any]]) -> _Object:
    return _Object(items)


def _prediction(value: Any) -> Prediction:
    if not isinstance(value, list):
        return _answer(value), ""
    if len(value) != 2:
        raise ValueError(f"it is a list of {len(value)}, not of an answer and a scale")
    answer, scale = value
    if scale is not None and scale != "" and scale not in SCALES:
        raise ValueError(f"its scale {json.dumps(scale, default=str)} is none of TAT-QA's")
    return _answer(answer), scale


def _answer(value: Any) -> Any:
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if isinstance(part, bool) or not isinstance(part, (str, int, float, type(None))):
            raise ValueError("its answer is no text, number or list of them")
    return value
