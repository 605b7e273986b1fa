"""What a fine-tuning's run.json says, and what decides whether a run may be continued.

    from llm_recipes.sft_records import begin_record, made_with
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from llm_recipes.errors import LLMError
from llm_recipes.metrics_log import read_rows
from llm_recipes.model_folder import folder_digest
from llm_recipes.record import write_record
from llm_recipes.sft_settings import FREE_TO_CHANGE
from llm_recipes.training_numbers import run_metrics

if TYPE_CHECKING:
    from llm_recipes.prepared_data import PreparedData
    from llm_recipes.ranks import Ranks
    from llm_recipes.run_folder import RunFolder
    from llm_recipes.sft_arguments import StepPlan
    from llm_recipes.sft_job import Job
    from llm_recipes.sft_trainer import FineTuner
    from llm_recipes.strategy import Choice


def made_with(job: Job, prepared: PreparedData) -> dict[str, Any]:
    """All that the result depends on: a run is continued only under the same."""
    chosen = {k: v for k, v in job.settings.items() if k not in FREE_TO_CHANGE}
    return {
        **chosen,
        "dtype": job.compute_dtype,
        "target_modules": list(job.targets),
        "model": folder_digest(job.folder.path),
        "data": prepared.folder.name,
    }


def describe_data(job: Job, prepared: PreparedData, rows: int) -> dict[str, Any]:
    """The record's part about the data. rows: that are trained on, after packing."""
    return {
        "path": str(job.settings["data"]),
        "digest": prepared.folder.name,
        "rows": rows,
        **prepared.facts,
    }


def describe_sharing(choice: Choice, ranks: Ranks, plan: StepPlan) -> dict[str, Any]:
    """The record's part about how the work is shared, with the predicted memory."""
    return {
        "strategy": choice.strategy,
        "processes": ranks.count,
        "nodes": ranks.nodes,
        "checkpointing": choice.checkpointing,
        "predicted_bytes": choice.prediction.total if choice.prediction else None,
        "reasons": list(choice.reasons),
        **asdict(plan),
    }


def describe_model(job: Job, tuner: FineTuner) -> dict[str, Any]:
    """The record's part about the model."""
    work = tuner.work
    return {
        "path": str(job.folder.path),
        "architecture": str((job.config.get("architectures") or [None])[0]),
        "matmul_parameters": work.trained + work.frozen,
        "trained_matmul_parameters": work.trained,
        "dtype": job.compute_dtype,
        "attention": job.attention.name,
        "digest": folder_digest(job.folder.path),
    }


def begin_record(folder: RunFolder, record: dict[str, Any]) -> None:
    """Write the record of a run that goes on from here: it says what the checkpoints are of."""
    write_record(folder.record, record, "running")


def end_record(folder: RunFolder, record: dict[str, Any], status: str) -> str:
    """Write the record with the numbers of all steps; a fault in that hides nothing else."""
    record["metrics"] = {**run_metrics(read_rows(folder.path / "metrics.jsonl")), **saving(folder)}
    try:
        write_record(folder.record, record, status)
    except LLMError as fault:
        return str(fault)
    return ""


def saving(folder: RunFolder) -> Mapping[str, Any]:
    """What saving cost in this run."""
    times = [row["save_s"] for row in read_rows(folder.path / "metrics.jsonl") if "save_s" in row]
    return {"saves": len(times), "longest_save_s": max(times, default=None)}
