"""What a token costs a GGUF model: operations, bytes read; for MBU and MFU.

from llm_recipes.gguf.size import model_size
"""

from __future__ import annotations

from collections.abc import Callable

from llm_recipes.gguf.file import GgufFile
from llm_recipes.gguf.model import ContextSettings, GgufModel
from llm_recipes.gguf.placement import cache_bytes_per_token
from llm_recipes.models import ModelSize


def model_size(model: GgufModel, context: ContextSettings) -> ModelSize:
    """Sizes by the file's own tensors; of a mixture of experts those used by a token."""
    file = model.file
    head = next((t for t in file.tensors if t.name == "output.weight"), None)
    embedding = next((t for t in file.tensors if t.name == "token_embd.weight"), None)
    head = head or embedding  # tied
    matrices = [t for t in file.tensors if len(t.shape) > 1 and t is not embedding]
    used = _used_share(file)
    multiplied = sum(int(t.elements * used(t.name)) for t in matrices)
    read = sum(int(t.bytes * used(t.name)) for t in file.tensors if t is not embedding)
    if head is embedding and embedding is not None:
        multiplied += embedding.elements
        read += embedding.bytes
    heads = file.value("attention.head_count", 0)
    count = max(heads) if isinstance(heads, list) else int(heads)
    width = int(file.value("embedding_length", 0))
    head_size = int(file.value("attention.key_length", width // count if count else 0))
    return ModelSize(
        parameters=model.parameters,
        matmul_parameters=multiplied,
        head_parameters=head.elements if head else 0,
        weight_bytes=read,
        kv_bytes_per_token=sum(cache_bytes_per_token(file, context)),
        attention_width=file.layers * count * head_size,
        vocabulary=model.vocabulary,
        hidden_size=width,
    )


def _used_share(file: GgufFile) -> Callable[[str], float]:
    """Which share of a tensor a token uses, by the tensor's name."""
    experts = int(file.value("expert_count", 0) or 0)
    chosen = int(file.value("expert_used_count", 0) or 0)
    share = chosen / experts if experts and chosen else 1.0
    return lambda name: share if "_exps." in name else 1.0
