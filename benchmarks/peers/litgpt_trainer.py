"""Train with LitGPT's own finetuning on the case's sequences: litgpt_trainer.py CASE.json

Its functions behind `litgpt finetune_lora` and `litgpt finetune_full`, with a data module that
gives our token ids; LitGPT pads them to the longest. It clips no gradients.
"""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

from stopwatch import Stopwatch

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json",
                   "generation_config.json")


def convert(model: Path, folder: Path) -> None:
    """LitGPT's checkpoint of a Hugging Face Llama."""
    import torch
    from litgpt.config import Config
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_hf_llama
    from litgpt.utils import save_config
    from safetensors.torch import load_file

    c = json.loads((model / "config.json").read_text())
    config = Config(
        name="tiny-llama", block_size=c["max_position_embeddings"], vocab_size=c["vocab_size"],
        padded_vocab_size=c["vocab_size"], n_layer=c["num_hidden_layers"],
        n_head=c["num_attention_heads"], n_query_groups=c["num_key_value_heads"],
        n_embd=c["hidden_size"], head_size=c["head_dim"], rotary_percentage=1.0,
        parallel_residual=False, bias=False, norm_class_name="RMSNorm",
        norm_eps=c["rms_norm_eps"], mlp_class_name="LLaMAMLP",
        intermediate_size=c["intermediate_size"],
        rope_base=int(c.get("rope_parameters", c)["rope_theta"]),
    )
    weights: dict[str, Any] = {}
    copy_weights_hf_llama(config, {}, weights, load_file(model / "model.safetensors"))
    folder.mkdir(parents=True)
    torch.save(weights, folder / "lit_model.pth")
    save_config(config, folder)
    for name in TOKENIZER_FILES:
        if (model / name).exists():
            shutil.copy(model / name, folder / name)


def data_module(batches: list[list[dict[str, list[int]]]], size: int) -> Any:
    """The sequences in their order; LitGPT's own way of making batches of them."""
    import torch
    from litgpt.data import DataModule
    from litgpt.data.base import get_sft_collate_fn
    from litgpt.prompts import PromptStyle
    from torch.utils.data import DataLoader

    rows = [
        {
            "input_ids": torch.tensor(row["input_ids"]), "labels": torch.tensor(row["labels"]),
            "token_counts": {"raw": len(row["input_ids"]),
                             "raw_plus_prompt_template": len(row["input_ids"])},
        }
        for batch in batches
        for row in batch
    ]

    class Rows(DataModule):  # type: ignore[misc]
        prompt_style = PromptStyle.from_name("alpaca")

        def connect(self, *unused: Any, **also_unused: Any) -> None:
            pass

        def train_dataloader(self) -> Any:
            return DataLoader(rows, batch_size=size, collate_fn=get_sft_collate_fn())

        def val_dataloader(self) -> Any:
            return DataLoader(rows[:size], batch_size=size, collate_fn=get_sft_collate_fn())

    return Rows()


def main() -> None:
    """One run."""
    watch = Stopwatch()
    case = watch.case
    import torch
    from litgpt.args import EvalArgs, TrainArgs

    folder = Path(case["folder"]) / "litgpt"
    shutil.rmtree(folder, ignore_errors=True)
    convert(Path(case["model"]), folder / "base")
    module = importlib.import_module(
        "litgpt.finetune.lora" if case["method"] == "lora" else "litgpt.finetune.full"
    )
    losses: list[Any] = []
    cross_entropy = module.chunked_cross_entropy

    def keeping(*positional: Any, **named: Any) -> Any:
        loss = cross_entropy(*positional, **named)
        if torch.is_grad_enabled():  # of training, not of validation
            losses.append(loss.detach())
        return loss

    module.chunked_cross_entropy = keeping
    # After the training; they take the command line for LitGPT's.
    module.save_hyperparameters = module.merge_lora = lambda *unused, **also_unused: None
    adapter: dict[str, Any] = {}
    if case["method"] == "lora":
        adapter = {
            "lora_r": case["lora_rank"], "lora_alpha": 2 * case["lora_rank"], "lora_dropout": 0.0,
            **{f"lora_{part}": True for part in ("query", "key", "value", "projection", "mlp")},
        }
    size = case["global_batch"]
    module.setup(
        checkpoint_dir=folder / "base", out_dir=folder / "out", precision="32-true", devices=1,
        data=data_module(watch.batches(), size), seed=case["seed"],
        train=TrainArgs(
            save_interval=None, log_interval=case["steps"], global_batch_size=size,
            micro_batch_size=size, lr_warmup_steps=1, epochs=1, max_steps=case["steps"],
        ),
        eval=EvalArgs(
            interval=10**9, max_iters=1, max_new_tokens=1, initial_validation=False,
            final_validation=False,
        ),
        optimizer={
            "class_path": "torch.optim.AdamW",
            "init_args": {"lr": case["learning_rate"], "weight_decay": 0.0, "fused": True},
        },
        **adapter,
    )
    watch.write([float(loss) for loss in losses])


if __name__ == "__main__":
    main()
