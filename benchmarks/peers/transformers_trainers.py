"""Train with transformers' Trainer, TRL's SFTTrainer or a bare loop.

    python benchmarks/peers/transformers_trainers.py CASE.json

The case's `contestant` says which:
- `trainer`: rows side by side, padded to the longest; packed rows have position_ids, of which
  transformers makes its own mask. Faster on a CPU than one long row.
- `trl`: as TRL packs: all of a batch in one row without padding (its `bfd` packing).
- `loop`: forward, backward and step with our batches and attention, and nothing else; what sft.py
  takes longer than this is its own.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from stopwatch import Stopwatch

HOME = Path(__file__).resolve().parents[2]
NOT_LEARNED = -100
Row = dict[str, list[int]]


def load(case: dict[str, Any], attention: str) -> Any:
    """The model, with its adapter for LoRA; the same random numbers for everybody."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(case["seed"])
    model = AutoModelForCausalLM.from_pretrained(
        case["model"], dtype=torch.float32, attn_implementation=attention
    )
    model.config.use_cache = False
    return model


def adapter(case: dict[str, Any]) -> Any:
    """PEFT's settings; None for full tuning."""
    from peft import LoraConfig

    if case["method"] == "full":
        return None
    return LoraConfig(
        r=case["lora_rank"], lora_alpha=2 * case["lora_rank"], target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def side_by_side(rows: list[Row]) -> dict[str, Any]:
    """Rows padded to the longest; attention_mask where each is one sequence, else position_ids."""
    import torch

    width = max(len(row["input_ids"]) for row in rows)
    packed = any(len(row["seq_lengths"]) > 1 for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), NOT_LEARNED)
    places = torch.zeros(len(rows), width, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        length, start = len(row["input_ids"]), 0
        ids[number, :length] = torch.tensor(row["input_ids"])
        labels[number, :length] = torch.tensor(row["labels"])
        mask[number, :length] = 1
        for part in row["seq_lengths"]:
            labels[number, start] = NOT_LEARNED  # predicted by nothing
            places[number, start : start + part] = torch.arange(part)
            start += part
    batch = {"input_ids": ids, "labels": labels}
    return {**batch, "position_ids": places} if packed else {**batch, "attention_mask": mask}


def arguments(case: dict[str, Any]) -> dict[str, Any]:
    """Of TrainingArguments, for speed: nothing is evaluated or saved, logged once at the end."""
    folder = Path(case["folder"]) / case["contestant"]
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "output_dir": str(folder), "per_device_train_batch_size": case["global_batch"],
        "max_steps": case["steps"], "learning_rate": case["learning_rate"],
        "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0,
        "max_grad_norm": 1.0, "optim": "adamw_torch_fused", "bf16": False, "use_cpu": True,
        "gradient_checkpointing": False, "logging_steps": case["steps"], "disable_tqdm": True,
        "report_to": "none", "save_strategy": "no", "remove_unused_columns": False,
        "train_sampling_strategy": "sequential", "dataloader_pin_memory": False,
        "seed": case["seed"],
    }


def keeping_losses(parent: Any) -> tuple[Any, list[Any]]:
    """A trainer that keeps the loss of each step, and where it keeps them."""
    losses: list[Any] = []

    class Keeping(parent):  # type: ignore[misc,valid-type]
        def training_step(self, *positional: Any, **named: Any) -> Any:
            loss = super().training_step(*positional, **named)
            losses.append(loss.detach())
            return loss

    return Keeping, losses


def by_trainer(case: dict[str, Any], batches: list[list[Row]]) -> list[Any]:
    """transformers' own."""
    from peft import get_peft_model
    from transformers import Trainer, TrainingArguments

    model, settings = load(case, "sdpa"), adapter(case)
    kind, losses = keeping_losses(Trainer)
    kind(
        model=model if settings is None else get_peft_model(model, settings),
        args=TrainingArguments(**arguments(case)), data_collator=side_by_side,
        train_dataset=[row for rows in batches for row in rows],
    ).train()
    return losses


def by_trl(case: dict[str, Any], batches: list[list[Row]]) -> list[Any]:
    """TRL's; the rows are what its packing makes, in our order."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    kind, losses = keeping_losses(SFTTrainer)
    kind(
        model=load(case, "sdpa"), peft_config=adapter(case),
        processing_class=AutoTokenizer.from_pretrained(case["model"]),
        args=SFTConfig(
            **arguments(case), max_length=None, packing=False, padding_free=True,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list([row for rows in batches for row in rows]),
    ).train()
    return losses


def by_loop(case: dict[str, Any], batches: list[list[Row]]) -> list[Any]:
    """What sft.py computes, and nothing else."""
    import torch
    from peft import get_peft_model
    from torch.nn.functional import cross_entropy, pad

    sys.path.insert(0, str(HOME / "recipes"))
    from llm_recipes.attention import VARLEN, register_varlen
    from llm_recipes.training_batches import COUNTS, Batches

    register_varlen()
    model, settings = load(case, VARLEN), adapter(case)
    if settings is not None:
        model = get_peft_model(model, settings)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=case["learning_rate"], weight_decay=0.0, fused=True
    )
    made = [Batches(True, 0)(rows) for rows in batches]
    model.train()
    losses = []
    for batch in made:
        tokens, labels = batch.pop(COUNTS).loss_tokens, batch.pop("labels")
        learned = labels[:, 1:] != NOT_LEARNED
        logits = model(**batch, use_cache=False, logits_to_keep=pad(learned, (0, 1))).logits
        loss = cross_entropy(logits, labels[:, 1:][learned], reduction="sum") / tokens
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return losses


def main() -> None:
    """One run."""
    import transformers

    watch = Stopwatch()
    transformers.utils.logging.set_verbosity_error()
    train = {"trainer": by_trainer, "trl": by_trl, "loop": by_loop}[watch.case["contestant"]]
    losses = train(watch.case, watch.batches())
    watch.write([float(loss) for loss in losses])


if __name__ == "__main__":
    main()
