"""Train with Meta's llama-recipes on the case's sequences: llama_recipes_trainer.py CASE.json

Its finetuning.main() with what keeps it from a comparison on a CPU taken away: weights are fp32
instead of bf16, and rows come in our order, padded to the longest.
"""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

from stopwatch import Stopwatch

HOME = Path(__file__).resolve().parents[2]
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def main() -> None:
    """One run."""
    watch = Stopwatch()
    case = watch.case
    import torch
    from llama_recipes import finetuning
    from transformers import DataCollatorForSeq2Seq, LlamaForCausalLM, LlamaTokenizer

    # What sends everything to the CPU.
    runpy.run_path(str(HOME / "containers/llama-recipes/finetuning.py"))["use_the_cpu"]()
    rows = [
        {"input_ids": row["input_ids"], "labels": row["labels"],
         "attention_mask": [1] * len(row["input_ids"])}
        for batch in watch.batches()
        for row in batch
    ]
    size = case["global_batch"]
    # A tokenizer.json of today's transformers is unreadable to that of its time.
    tokenizer = LlamaTokenizer(str(Path(case["model"]) / "tokenizer.model"), pad_token="</s>")

    class InFullPrecision:
        @staticmethod
        def from_pretrained(*names: Any, **options: Any) -> Any:
            options = {**options, "torch_dtype": torch.float32, "attn_implementation": "sdpa"}
            return LlamaForCausalLM.from_pretrained(*names, **options)

    class OurTokenizer:
        @staticmethod
        def from_pretrained(*unused: Any, **also_unused: Any) -> Any:
            return tokenizer

    finetuning.LlamaForCausalLM = InFullPrecision
    finetuning.AutoTokenizer = OurTokenizer
    finetuning.get_preprocessed_dataset = lambda *unused, **also_unused: rows
    finetuning.get_dataloader_kwargs = lambda *unused: {
        "batch_size": size, "collate_fn": DataCollatorForSeq2Seq(tokenizer),
    }
    output = Path(case["folder"]) / "llama-recipes"
    shutil.rmtree(output, ignore_errors=True)
    finetuning.main(
        model_name=case["model"], output_dir=str(output), num_epochs=1,
        batch_size_training=size, batching_strategy="padding", gradient_clipping=True,
        lr=case["learning_rate"], seed=case["seed"], num_workers_dataloader=0,
        run_validation=False, save_model=False, save_metrics=True, use_fast_kernels=True,
        dataset="alpaca_dataset", use_peft=case["method"] == "lora",
        **{
            "lora_config.r": case["lora_rank"], "lora_config.lora_alpha": 2 * case["lora_rank"],
            "lora_config.lora_dropout": 0.0, "lora_config.target_modules": TARGETS,
        },
    )
    (metrics,) = output.glob("metrics_data_*.json")
    watch.write(json.loads(metrics.read_text())["train_step_loss"])


if __name__ == "__main__":
    main()
