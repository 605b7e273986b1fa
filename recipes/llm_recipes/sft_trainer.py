"""TRL's SFTTrainer as our recipes need it: steps that don't depend on the number of processes, a
loss computed where something is learned, whole checkpoints, numbers for each step, a stop together.

    from llm_recipes.sft_trainer import FineTuner, RunState

What it takes over from its parents and why stands at each method.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainerCallback
from trl import SFTTrainer

from llm_recipes.architecture import disk_names
from llm_recipes.device import peak_memory_bytes
from llm_recipes.errors import LLMError
from llm_recipes.folders import write_errors
from llm_recipes.ranks import Ranks
from llm_recipes.run_checkpoints import checkpoint_folder, prune_checkpoints, seal_checkpoint
from llm_recipes.stop_together import REASONS, StopWatch
from llm_recipes.training_batches import COUNTS, NOT_LEARNED, Batches, Counts
from llm_recipes.training_numbers import LossGuard, ModelWork, step_row
from llm_recipes.training_order import TrainingOrder

SEEN_SECONDS = 60.0  # for folders of a network file system to show all files


@dataclass
class RunState:
    """What a run knows besides the Trainer's state; it is sealed into every checkpoint.

    best_step: of the best held-out loss so far. waited: evaluations since then.
    """

    best_step: int | None = None
    best_loss: float | None = None
    waited: int = 0
    facts: dict[str, Any] = field(default_factory=dict)

    def sealed(self) -> dict[str, Any]:
        """For a checkpoint's seal."""
        best = {"step": self.best_step, "loss": self.best_loss, "waited": self.waited}
        return {**self.facts, "best": best}

    def resume(self, seal: Mapping[str, Any]) -> None:
        """Go on from a checkpoint's seal."""
        best = seal.get("best") or {}
        self.best_step, self.best_loss = best.get("step"), best.get("loss")
        self.waited = int(best.get("waited") or 0)


@dataclass(frozen=True)
class Habits:
    """How a run saves, evaluates and counts.

    save: write checkpoints. keep: those that stay; 0: all. patience: evaluations without a better
    loss until it stops; 0: never. peak_flops: of one device; None: unknown. write: takes each row
    of numbers, on rank 0. say: tells the user something, on rank 0.
    """

    save: bool
    keep: int
    patience: int
    peak_flops: float | None
    write: Callable[[dict[str, Any]], None]
    say: Callable[[str], None]


class FineTuner(SFTTrainer):
    """See the module. The dataset is prepared already: input_ids, labels, maybe seq_lengths."""

    def __init__(
        self,
        *,
        batches: Batches,
        ranks: Ranks,
        watch: StopWatch,
        habits: Habits,
        run: RunState,
        order_seed: int,
        **arguments: Any,
    ) -> None:
        super().__init__(
            data_collator=batches, callbacks=[_StopAfterStep(self)], **arguments
        )
        self.ranks, self.watch, self.habits, self.run = ranks, watch, habits, run
        self.order_seed = order_seed
        self.stopped: str | None = None  # why, if before the end
        self.work = ModelWork(0, 0, 0)
        self.loss_is_scaled_for_ga = True  # compute_loss divides by the tokens of the whole step
        self._guard = LossGuard()
        self._sums: dict[str, float] = {}
        self._began = 0.0
        self._fused = self.args.device.type == "cuda"
        if self._fused:
            _only_log_probs(self.model)

    def create_accelerator_and_postprocess(self) -> None:
        """The parent's; FSDP2 on CPUs too, where accelerate would silently do DDP instead, and
        gradients that are summed over the ranks in fp32, not in 16 bits.
        """
        super().create_accelerator_and_postprocess()
        if self.args.fsdp_plugin_args is None:
            return
        from accelerate import DistributedType
        from accelerate.utils import FullyShardedDataParallelPlugin

        state = self.accelerator.state
        if getattr(state, "fsdp_plugin", None) is None:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            if state.mixed_precision != "no":
                state.fsdp_plugin.set_mixed_precision(state.mixed_precision)
            self.is_fsdp_enabled = True
        policy = state.fsdp_plugin.mixed_precision_policy
        if policy is not None:
            state.fsdp_plugin.mixed_precision_policy = replace(policy, reduce_dtype=torch.float32)

    # Steps

    def _get_train_sampler(self, train_dataset: Any = None) -> TrainingOrder:
        """One sequence of examples for the whole run, whatever the number of processes."""
        total = self.args.max_steps * self.get_total_train_batch_size(self.args)
        return TrainingOrder(len(self.train_dataset), total, self.order_seed)

    def get_batch_samples(
        self, epoch_iterator: Any, num_batches: int, device: torch.device
    ) -> tuple[list[Any], float]:
        """The batches of a step, and its tokens with loss on all ranks.

        The one sum over all ranks of a step also carries the other counts and each rank's wish to
        stop; it is a sum of whole numbers on the CPU, so no GPU waits for it.
        """
        self._began = time.monotonic()
        batches = [batch for _, batch in zip(range(num_batches), epoch_iterator, strict=False)]
        counts: list[Counts] = [batch.pop(COUNTS) for batch in batches]
        own = [
            float(sum(count.loss_tokens for count in counts)),
            float(sum(count.tokens for count in counts)),
            float(sum(count.squares for count in counts)),
            *self.watch.wishes(),
        ]
        loss_tokens, tokens, squares, *wishes = self.ranks.add_up(own)
        self._sums = {"loss_tokens": loss_tokens, "tokens": tokens, "squares": squares}
        reasons = [words for words, wish in zip(REASONS, wishes, strict=True) if wish]
        if reasons and self.stopped is None:
            self.stopped = reasons[0]
        return batches, max(loss_tokens, 1.0)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: float | None = None,
    ) -> Any:
        """Mean loss a learned token of the whole step; logits only where something is learned.

        TRL's also computes entropy and accuracy, gathers them in every micro step, and on CPUs
        computes logits for all tokens. On GPUs its chunked head is used, which never holds them.
        """
        loss = self._summed_loss(model, inputs)
        if num_items_in_batch is None:
            raise ValueError("the tokens of the step are not known")
        # The ranks' gradients are averaged, and each has only its part of the sum.
        return loss * (self.ranks.count / num_items_in_batch)

    def _summed_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
        inputs = dict(inputs)
        labels = inputs.pop("labels")
        if self._fused:
            outputs = model(**inputs, labels=labels, fused_lm_head=True)
            # FSDP2 hands out 16 bits, in which a sum is rough or, in fp16, infinite.
            return -outputs.log_probs.float().sum()
        learned = labels[:, 1:] != NOT_LEARNED
        keep = torch.nn.functional.pad(learned, (0, 1))
        logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits
        return cross_entropy(logits.float(), labels[:, 1:][learned], reduction="sum")

    def floating_point_ops(self, inputs: Any) -> int:
        """Nothing: work_of() counts once; the parent goes through all parameters in each step."""
        return 0

    def store_flos(self) -> None:
        """Nothing: the parent sums over all ranks in each step what is not counted."""

    def _track_num_input_tokens(self, inputs: Any) -> None:
        pass

    # Numbers

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """A row of numbers for a step; stops a run whose loss is lost.

        The parent keeps all rows in the Trainer's state, which each checkpoint writes again.
        """
        if "loss" not in logs:  # the parent's summary
            return
        self.control.should_log = False
        seconds = max(time.monotonic() - self._began, 1e-9)
        self.watch.longest_step_s = max(self.watch.longest_step_s, seconds)
        loss, norm = float(logs["loss"]), logs.get("grad_norm")
        norm = None if norm is None else float(norm)
        skipped = bool(self.accelerator.optimizer_step_was_skipped)
        step = self.state.global_step
        if self.ranks.is_first:
            row = {
                "step": step,
                "epoch": round(step / self.args.max_steps * self.run.facts.get("epochs", 1.0), 4),
                "loss": loss,
                "learning_rate": logs.get("learning_rate"),
                "grad_norm": norm,
                **step_row(
                    self._sums, seconds, self.work, self.ranks.count, self.habits.peak_flops
                ),
                **peak_memory_bytes(self.args.device),
                "seconds_left": round((self.args.max_steps - step) * seconds, 1),
            }
            self.habits.write(row)
        fault = self._guard.fault(loss, norm, skipped)
        if fault:
            raise LLMError(
                f"training has failed at step {step}: {fault}",
                "a learning rate that is too high, fp16, or bad data are the usual causes",
                "the last checkpoint before is kept; the same command goes on from it, but would "
                "come here again:\nstart anew with --overwrite and a lower --learning-rate",
            )
        if self._guard.high_steps:
            self.control.should_save = False  # not of a model that may be lost

    # Evaluation

    def evaluate(self, *unused: Any, **also_unused: Any) -> dict[str, float]:
        """Mean loss a learned token of the held-out examples; the parent's is a mean of batches."""
        self.control.should_evaluate = False  # or it is done again at the end of the epoch
        loss = self.held_out_loss()
        if self.ranks.is_first:
            self.habits.write({"step": self.state.global_step, "held_out_loss": loss})
        best = self.run.best_loss
        if best is None or loss < best:
            self.run.best_loss, self.run.best_step = loss, self.state.global_step
            self.run.waited = 0
            self.control.should_save = self.control.should_save or self.habits.patience > 0
        else:
            self.run.waited += 1
            if 0 < self.habits.patience <= self.run.waited:
                self.control.should_training_stop = True
                self.control.should_save = True
        return {"eval_loss": loss}

    def held_out_loss(self) -> float:
        """Mean loss a learned token over all held-out examples."""
        with torch.no_grad(), self.watch.saving():
            return self._held_out_loss()

    def _held_out_loss(self) -> float:
        """Every rank takes each n-th batch; all do equally many, as sharded models demand."""
        data, size = self.eval_dataset, self.args.per_device_eval_batch_size
        starts = range(0, len(data), size)
        rounds = -(-len(starts) // self.ranks.count)
        total = tokens = 0.0
        self.model.eval()
        for number in range(rounds):
            index = number * self.ranks.count + self.ranks.index
            counts = index < len(starts)
            start = starts[index] if counts else 0
            rows = [data[i] for i in range(start, min(start + size, len(data)))]
            batch = self.data_collator(rows)
            count: Counts = batch.pop(COUNTS)
            with self.compute_loss_context_manager():
                loss = self._summed_loss(self.model_wrapped, self._prepare_inputs(batch))
            if counts:
                total += float(loss)
                tokens += count.loss_tokens
        self.model.train()
        total, tokens = self.ranks.add_up([total, tokens])
        return total / max(tokens, 1.0)

    # Checkpoints

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The parent's, and when it is on the disk, its seal; what is too old goes then."""
        if not self.habits.save:
            return
        with self.watch.saving(), write_errors(Path(self.args.output_dir)):
            self._save_whole(model, trial)

    def _save_whole(self, model: Any, trial: Any) -> None:
        began = time.monotonic()
        folder = checkpoint_folder(Path(self.args.output_dir), self.state.global_step)
        Trainer._save_checkpoint(self, model, trial)  # TRL adds a model card to each
        self._wait_for_files(folder)
        if self.ranks.is_first:
            seal_checkpoint(folder, {"step": self.state.global_step, **self.run.sealed()})
            best = [] if self.run.best_step is None or not self.habits.patience else [
                self.run.best_step
            ]
            prune_checkpoints(folder.parent, self.habits.keep, best)
        self.ranks.wait()
        seconds = time.monotonic() - began
        warning = self.watch.saved(seconds)
        if self.ranks.is_first:
            self.habits.write({"step": self.state.global_step, "save_s": round(seconds, 3)})
            if warning:
                self.habits.say(warning)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The parent's, which leaves out without a word what is called otherwise in files, such as
        the head of GPT-NeoX: that would go on from the weights before the training.
        """
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled or hasattr(self.model, "peft_config"):
            return
        state = self.model.state_dict()
        renamed, whole = disk_names(self.model, state)
        stored: dict[str, Path] = {}
        for path in Path(resume_from_checkpoint).glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                stored |= dict.fromkeys(file.keys(), path)
        missing = [name for name in renamed.values() if name not in stored]
        if not whole or missing:
            raise LLMError(
                f"{resume_from_checkpoint} can't be continued",
                f"files of {type(self.model).__name__} hold weights in another form",
                "--method lora, or --strategy fsdp: their checkpoints keep the model's own names",
            )
        for name, other in renamed.items():
            with safe_open(stored[other], "pt") as file:
                state[name].copy_(file.get_tensor(other))

    def _wait_for_files(self, folder: Path) -> None:
        """Wait until rank 0 sees what any other rank does: on NFS that may take some seconds."""
        deadline = time.monotonic() + SEEN_SECONDS
        while True:
            counts = [0.0] * self.ranks.count
            counts[self.ranks.index] = float(sum(1 for path in folder.rglob("*")))
            counts = self.ranks.add_up(counts)
            late = self.ranks.add_up([float(time.monotonic() > deadline)])[0] > 0
            if counts[0] >= max(counts) or late:
                return
            time.sleep(1.0)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Sharded models leave their configuration here; their shards are written with the
        optimizer's, and consolidate.py puts them together.
        """
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            super().save_model(output_dir, _internal_call)
            return
        if not self.args.should_save:
            return
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        for adapter in getattr(model, "peft_config", {}).values():
            adapter.save_pretrained(str(folder))
        base = model.get_base_model() if hasattr(model, "peft_config") else model
        base.config.save_pretrained(str(folder))
        if base.generation_config is not None:
            base.generation_config.save_pretrained(str(folder))
        self.processing_class.save_pretrained(str(folder))


class _StopAfterStep(TrainerCallback):
    """Ends the run after the step in which a rank wished to, with a checkpoint."""

    def __init__(self, tuner: FineTuner) -> None:
        self.tuner = tuner

    def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> Any:
        """Called by the Trainer before it logs, evaluates and saves."""
        if self.tuner.stopped is not None:
            control.should_save = True
            control.should_training_stop = True
            control.should_evaluate = False
        return control


def _only_log_probs(model: Any) -> None:
    """Leave entropy and accuracy out of TRL's chunked head: nobody reads them here."""
    from trl.trainer.utils import add_fused_lm_head

    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    add_fused_lm_head(base, outputs=("log_probs",))
