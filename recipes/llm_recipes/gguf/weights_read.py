"""Which weights generating a token reads.

from llm_recipes.gguf.weights_read import bytes_read
"""

from __future__ import annotations

from llm_recipes.gguf.file import GgufFile, GgufTensor


def used_share(file: GgufFile, tensor: GgufTensor) -> float:
    """Which share of a tensor a token uses: of experts those that are chosen for it."""
    chosen, experts = file.value("expert_used_count"), file.value("expert_count")
    return chosen / experts if chosen and experts and "_exps" in tensor.name else 1.0


def bytes_read(file: GgufFile) -> int:
    """Bytes of weights that generating a token reads.

    Of the embeddings one row (unless they are the output as well), of experts those that are used.
    """
    has_output = any(tensor.name == "output.weight" for tensor in file.tensors)
    read = [t for t in file.tensors if t.name != "token_embd.weight" or not has_output]
    return round(sum(used_share(file, tensor) * tensor.bytes for tensor in read))
