"""What autograd keeps of a forward pass: bytes of a layer's activations, family by family.

    from llm_recipes.activation_memory import saved_bytes
    saved_bytes(ModelShape.from_config(config), TrainingSetup(batch_tokens=4096, longest=1024))

Standard library only and Python 3.9, as the memory model. The idea is Korthikanti et al. 2022
(arXiv:2205.05198, section 4.1): add up the inputs that each operation needs for its gradient. What
differs here: SwiGLU, grouped keys and values, norms in fp32, attention kernels that keep no scores,
and LoRA, where a frozen matrix keeps no input. Compared with counted storages of transformers'
models (tests/recipes/test_training_memory.py), every family with and without LoRA and checkpointing
is within 5 %.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llm_recipes.memory import LLAMA_LIKE, Matrix, ModelShape

if TYPE_CHECKING:
    from llm_recipes.training_memory import TrainingSetup

FP32 = 4
ATTENTION_OUTPUTS = ("o_proj", "dense")
MLP_OUTPUTS = ("down_proj", "dense_4h_to_h")


def saved_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes that a forward pass leaves for the backward pass, without logits.

    With checkpointing: each layer's input, and everything of the one layer that is recomputed.
    """
    tokens, hidden = setup.batch_tokens, shape.hidden_size
    stream = stream_bytes(setup)
    layer = layer_bytes(shape, setup)
    last = tokens * hidden * (FP32 + setup.compute_bytes)  # the last norm's and the head's inputs
    if setup.method == "full" and shape.family in LLAMA_LIKE:
        last += tokens * hidden * stream
    if setup.checkpointing:
        return shape.layers * tokens * hidden * stream + layer + last
    return shape.layers * layer + last


def stream_bytes(setup: TrainingSetup) -> int:
    """Bytes of a value between layers: autocast leaves sums with fp32 weights in fp32."""
    whole_fp32 = setup.method == "full" and setup.strategy in ("single", "ddp")
    return FP32 if whole_fp32 and not setup.pure_16bit else setup.compute_bytes


def layer_bytes(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes of one layer's activations for a micro batch."""
    values = _norms(shape, setup) + _mlp(shape, setup)
    values += _norm_outputs(shape, setup) + _attention_output(shape, setup)
    values += sum(setup.lora_rank * setup.compute_bytes for m in shape.matrices if setup.adapts(m))
    return setup.batch_tokens * values + _attention(shape, setup)


def _keeps_input(matrix: Matrix, setup: TrainingSetup) -> bool:
    return setup.method == "full" or setup.adapts(matrix)


def _copies_inputs(setup: TrainingSetup) -> bool:
    """Whether each matrix has a cast copy of its input: autocast's, or the one PEFT makes."""
    if setup.compute_bytes == FP32:
        return False
    return setup.method != "full" or stream_bytes(setup) == FP32


def _norms(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes a token: inputs in fp32, and for RMS norms the normalized values if trained."""
    hidden, stream = shape.hidden_size, stream_bytes(setup)
    if shape.family in LLAMA_LIKE:
        return shape.norms * hidden * (FP32 + (stream if setup.method == "full" else 0))
    # Norms side by side share their input, unless each casts it to fp32 first.
    return hidden * FP32 * (1 if stream == FP32 else shape.norms)


def _norm_outputs(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes a token of the inputs of the matrices behind norms, shared where nothing is cast."""
    behind = [m for m in shape.matrices if m.name not in (*ATTENTION_OUTPUTS, *MLP_OUTPUTS)]
    kept = [m for m in behind if _keeps_input(m, setup)]
    if _copies_inputs(setup):
        inputs = len(kept)
    elif shape.norms == 1:
        inputs = min(1, len(kept))
    else:
        mlp = ("gate_proj", "up_proj", "dense_h_to_4h")
        inputs = len({m.name in mlp for m in kept})
    return inputs * shape.hidden_size * setup.compute_bytes


def _mlp(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes a token: SwiGLU keeps gate, its activation and up; GELU its input; and the output's."""
    last = next(m for m in shape.matrices if m.name in MLP_OUTPUTS)
    kept = 3 if shape.family in LLAMA_LIKE else 1
    return (kept + _keeps_input(last, setup)) * last.inputs * setup.compute_bytes


def _attention_output(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes a token of the output matrix's input, unless the attention kernel keeps it anyway."""
    last = next(m for m in shape.matrices if m.name in ATTENTION_OUTPUTS)
    if not _keeps_input(last, setup):
        return 0
    casts_again = setup.method != "full" and setup.compute_bytes != FP32
    kept_anyway = shape.family in LLAMA_LIKE and setup.attention != "eager" and not casts_again
    return 0 if kept_anyway else last.inputs * setup.compute_bytes


def keeps_scores(shape: ModelShape, setup: TrainingSetup) -> bool:
    """Whether every head's scores of all pairs of tokens stay in memory.

    Falcon hands one key head to all query heads, which torch's fused kernels refuse: SDPA falls
    back to plain products (`check_batch_size_and_num_heads_dense` in torch's sdp_utils).
    """
    if setup.attention == "eager" or shape.alibi:
        return True
    broadcast = shape.family == "falcon" and shape.kv_heads != shape.heads
    return broadcast and setup.attention == "sdpa"


def _attention(shape: ModelShape, setup: TrainingSetup) -> int:
    """Bytes of queries, keys, values, output, and of scores where they are kept."""
    tokens, size = setup.batch_tokens, setup.compute_bytes
    queries = shape.heads * shape.head_size
    pairs = tokens * setup.longest
    if keeps_scores(shape, setup):
        scores = shape.heads * pairs
        if setup.attention == "eager":  # softmax in fp32, then a copy for the product
            copies = FP32 + (size if size != FP32 else 0)
            return 3 * tokens * queries * size + scores * copies
        return 3 * tokens * queries * FP32 + scores * FP32
    # SDPA with a mask gets keys and values once for each query head, and the mask as numbers.
    masked = setup.attention == "sdpa"
    keys = queries if masked else shape.kv_heads * shape.head_size
    kept = 2 * queries + 2 * keys
    if shape.family == "gpt_neox":  # values are a view: the whole fused product stays
        kept += 2 * queries
    return tokens * (kept * size + shape.heads * FP32) + (pairs * size if masked else 0)
