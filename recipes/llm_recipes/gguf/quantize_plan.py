"""What quantize.py is going to do: options, model and texts checked, files and sizes predicted.

    from llm_recipes.gguf.quantize_plan import make_plan, check_plan

Everything that can be known before a file is written is known here, and every fault is said at
once.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_recipes.errors import LLMError, faults_of, raise_all
from llm_recipes.gguf.evaluation_text import (
    PYTHON,
    Text,
    count_tokens,
    length_faults,
    make_text,
    read_text,
)
from llm_recipes.gguf.file import GgufFile, gguf_digest, read_gguf
from llm_recipes.gguf.importance import (
    Engine,
    Matrix,
    given_matrix,
    is_there,
    matrix_bytes,
    planned_matrix,
)
from llm_recipes.gguf.options import placement_faults
from llm_recipes.gguf.placement import plan_placement
from llm_recipes.gguf.quality import Evaluation, piece_size
from llm_recipes.gguf.quality_run import (
    LESS_SCRATCH,
    QualityPlan,
    measuring_context,
    plan_quality,
)
from llm_recipes.gguf.quant_prediction import (
    Prediction,
    QuantSettings,
    predict,
    quantized_types,
)
from llm_recipes.gguf.quant_types import QuantType, resolve_types, tensor_type_faults
from llm_recipes.gguf.quantizing import (
    THERE,
    Target,
    base_name,
    check_space,
    settings_record,
    state_of,
)
from llm_recipes.gguf.threads import granted_threads
from llm_recipes.made_folder import existing_parent
from llm_recipes.say import say

DEFAULT_TYPES = "Q8_0,Q6_K,Q5_K_M,Q4_K_M"


@dataclass(frozen=True)
class Texts:
    """What the model reads: for the importance matrix and for measuring. tokens: of the first."""

    importance: Text | None
    evaluation: Text | None
    importance_tokens: int = 0
    chunks: int = 0


@dataclass(frozen=True)
class Plan:
    """What is to be done. states: of each target, whether it is there, missing or damaged."""

    settings: dict[str, Any]
    source: GgufFile
    output: Path
    scratch: Path
    quant: QuantSettings
    engine: Engine
    context: int
    texts: Texts
    matrix: Matrix | None
    targets: Sequence[Target]
    states: Mapping[Path, str]

    @property
    def unmade(self) -> list[Target]:
        """Files that are missing or damaged."""
        return [target for target in self.targets if self.states[target.path] != THERE]


def make_plan(settings: dict[str, Any]) -> Plan:
    """Check the options and the model; every fault at once.

    Raises:
        LLMError, ExceptionGroup: What can't be meant, or can't be done.
    """
    o = settings
    kinds, faults = resolve_types(o["types"] or [DEFAULT_TYPES])
    found: dict[str, Any] = {}

    def look(name: str, work: Callable[[], object]) -> None:
        faults.extend(faults_of(lambda: found.update({name: work()})))

    faults += option_faults(o)
    look("source", lambda: read_gguf(o["model"]))
    for name, path in texts_of(o).items():
        if path != PYTHON:
            look(name, partial(read_text, path, name == "evaluation"))
    raise_all(faults)
    source: GgufFile = found["source"]
    output = Path(o["output"]).expanduser().absolute()
    raise_all(source_faults(source, o["allow_requantize"]))
    for name, path in texts_of(o).items():
        if path == PYTHON:  # nothing is wrong with it, and collecting it takes seconds
            found[name] = read_text(path, name == "evaluation")
    context = piece_size(source)
    look("texts", lambda: count_texts(found, source, context, o["chunks"]))
    look("engine", lambda: choose_engine(o, source, context))
    raise_all(faults)
    matrix = planned(o, source, output, found["texts"], context)
    embeddings, head = (o[n] and o[n].upper() for n in ("embedding_type", "output_type"))
    quant = QuantSettings(embeddings, head, o["pure"], bool(quantized_types(source)))
    targets = make_targets(kinds, source, output, quant, matrix)
    return Plan(
        o,
        source,
        output,
        Path(o["scratch"] or tempfile.gettempdir()).expanduser().absolute(),
        quant,
        found["engine"],
        context,
        found["texts"],
        matrix,
        targets,
        states_of(targets, source, o["overwrite"]),
    )


def texts_of(o: Mapping[str, Any]) -> dict[str, str]:
    """What the texts are called that are to be read."""
    named = {"importance": o["importance_text"]}
    named["evaluation"] = o["evaluate_text"] if o["quality"] else None
    return {name: path for name, path in named.items() if path is not None}


def option_faults(o: Mapping[str, Any]) -> list[LLMError]:
    """Every option whose value can't be meant."""
    faults = placement_faults({**o, "shares": None, "split": "layer"})
    for name, least in (("chunks", 0), ("importance_chunks", 0), ("jobs", 1)):
        if o[name] < least:
            option = name.replace("_", "-")
            faults.append(LLMError(f"--{option} {o[name]} is not possible", f"at least {least}"))
    if o["importance_text"] is not None and o["importance_matrix"] is not None:
        what = "--importance-text and --importance-matrix exclude each other"
        faults.append(LLMError(what, fix="leave one of them out"))
    if o["scratch"] is not None and not Path(o["scratch"]).expanduser().is_dir():
        faults.append(LLMError(f"--scratch {o['scratch']} is no folder", fix="make it first"))
    faults += tensor_type_faults("--embedding-type", o["embedding_type"])
    return faults + tensor_type_faults("--output-type", o["output_type"])


def source_faults(source: GgufFile, allowed: bool) -> list[LLMError]:
    """Whether a model can be quantized, and should be."""
    kind = source.metadata.get("general.type", "model")
    if kind != "model" or not source.layers:
        fix = "recipes/quantized/convert.py makes a GGUF of a Hugging Face folder"
        return [LLMError(f"{source.path} holds no language model", f"its type is {kind}", fix)]
    lost = [name for name in quantized_types(source) if name != "Q8_0"]
    if not lost or allowed:
        return []
    why = f"its tensors are {', '.join(lost)}: what they have lost is lost, and more would be"
    fix = "quantize from F16, BF16, F32 or Q8_0 (convert.py), or --allow-requantize"
    return [LLMError(f"{source.path} is quantized already ({source.file_type})", why, fix)]


def count_texts(found: Mapping[str, Any], source: GgufFile, context: int, most: int) -> Texts:
    """The texts with their lengths.

    Raises:
        LLMError, ExceptionGroup: Those that are too short.
    """
    faults: list[LLMError] = []
    lengths = {"importance": 0, "evaluation": 0}
    for name in lengths:
        if name in found:
            lengths[name] = count_tokens(source, found[name])
            faults += length_faults(found[name], lengths[name], context)
    raise_all(faults)
    chunks = limited(lengths["evaluation"] // context, most)
    return Texts(found.get("importance"), found.get("evaluation"), lengths["importance"], chunks)


def planned(
    o: Mapping[str, Any], source: GgufFile, output: Path, texts: Texts, context: int
) -> Matrix | None:
    """The importance matrix that is asked for."""
    if o["importance_matrix"] is not None:
        return given_matrix(output, Path(o["importance_matrix"]).expanduser(), source)
    if texts.importance is None:
        return None
    chunks = limited(texts.importance_tokens // context, o["importance_chunks"])
    return planned_matrix(output, gguf_digest(source), texts.importance, chunks, context)


def choose_engine(o: Mapping[str, Any], source: GgufFile, context: int) -> Engine:
    """Threads and GPU layers of the programs that run the model.

    Raises:
        LLMError: If the model is to be run and does not fit into memory.
    """
    threads = granted_threads().generate if o["threads"] == "auto" else o["threads"]
    if not (o["quality"] or o["speed"] or o["importance_text"]) or o["plan"]:
        return Engine(threads, 0)
    room = measuring_context(context)
    return Engine(threads, plan_placement(source, o["gpu_layers"], "layer", (), room).gpu_layers)


def make_targets(
    kinds: Sequence[QuantType],
    source: GgufFile,
    output: Path,
    quant: QuantSettings,
    matrix: Matrix | None,
) -> list[Target]:
    """The files to make, predicted.

    Raises:
        LLMError, ExceptionGroup: Types that can't be made of this model, or need a matrix.
    """
    predictions: list[Prediction] = []

    def predict_one(kind: QuantType) -> None:
        named = matrix.named if matrix is not None and kind.uses_importance else None
        predictions.append(predict(source, kind, quant, named))

    faults = [fault for kind in kinds for fault in faults_of(partial(predict_one, kind))]
    needing = [p.kind.name for p in predictions if p.needs_importance]
    if needing:
        what = f"{', '.join(needing)} can't be made without an importance matrix"
        why = "with so few bits, only knowing which weights matter keeps the model usable"
        fix = "--importance-text FILE, such as the texts the model is for; or leave these types out"
        faults.append(LLMError(what, why, fix))
    raise_all(faults)
    targets = []
    for prediction in predictions:
        name = prediction.kind.name
        if all(prediction.tensors[t.name] == t.type for t in source.tensors):
            say(f"{name} is the model's own type already: nothing to make")
            continue
        made_with = {
            "source": gguf_digest(source),
            "type": name,
            "importance": matrix.digest if matrix and prediction.kind.uses_importance else None,
            **settings_record(quant),
        }
        path = output / f"{base_name(source)}-{name}.gguf"
        targets.append(Target(path, prediction, made_with))
    return targets


def states_of(targets: Sequence[Target], source: GgufFile, overwrite: bool) -> dict[Path, str]:
    """Whether each file is there, missing or damaged.

    Raises:
        LLMError, ExceptionGroup: Every place where something else is.
    """
    found: dict[Path, str] = {}

    def look(target: Target) -> None:
        if target.path.exists() and any(map(target.path.samefile, source.shards)):
            why = "the quantized one would get its name"
            raise LLMError(f"{target.path} is the model itself", why, "choose another --output")
        found[target.path] = state_of(target, overwrite)

    faults = [fault for target in targets for fault in faults_of(partial(look, target))]
    raise_all(faults)
    return found


def check_plan(plan: Plan) -> None:
    """See that all that is to be written finds its bytes.

    Raises:
        LLMError, ExceptionGroup: If a disk has less left.
    """
    sizes = {target.name: target.prediction.bytes for target in plan.unmade}
    if plan.matrix is not None and not is_there(plan.matrix) and plan.unmade:
        sizes["importance matrix"] = matrix_bytes(plan.source)
    held: dict[str, int] = {}
    there = [read_gguf(t.path) for t in plan.targets if plan.states[t.path] == THERE]
    if plan.texts.evaluation is not None and (plan.unmade or plan_of_quality(plan, there).missing):
        how = Evaluation(Path(), plan.context, plan.texts.chunks, plan.engine)
        held = {"the model's predictions": how.base_bytes(plan.source.vocabulary)}
    if _device(plan.output) == _device(plan.scratch):
        sizes, held = {**sizes, **held}, {}
    faults = faults_of(lambda: check_space(plan.output, sizes))
    raise_all(faults + faults_of(lambda: check_space(plan.scratch, held, LESS_SCRATCH)))


def plan_of_quality(plan: Plan, files: Sequence[GgufFile]) -> QualityPlan:
    """Which files have been measured."""
    text = plan.texts.evaluation or make_text("", "")
    return plan_quality(plan.source, files, text, plan.context, plan.texts.chunks, plan.output)


def limited(available: int, most: int) -> int:
    """So many of what there is; 0 is all."""
    return min(available, most) if most else available


def _device(folder: Path) -> int:
    """The file system that a folder is on, or will be."""
    return existing_parent(folder).stat().st_dev
