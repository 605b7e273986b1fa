"""What a token costs a GGUF model: operations, bytes read; for MBU and MFU.

from llm_recipes.gguf.size import model_size
"""

from __future__ import annotations

from llm_recipes.gguf.model import ContextSettings, GgufModel
from llm_recipes.gguf.placement import cache_bytes_per_token
from llm_recipes.gguf.weights_read import bytes_read, used_share
from llm_recipes.models import ModelSize


def model_size(model: GgufModel, context: ContextSettings) -> ModelSize:
    """Sizes by the file's own tensors; of a mixture of experts those used by a token."""
    file = model.file
    head = next((t for t in file.tensors if t.name == "output.weight"), None)
    embedding = next((t for t in file.tensors if t.name == "token_embd.weight"), None)
    head = head or embedding  # tied
    matrices = [t for t in file.tensors if len(t.shape) > 1 and t is not embedding]
    multiplied = sum(int(t.elements * used_share(file, t)) for t in matrices)
    if head is embedding and embedding is not None:
        multiplied += embedding.elements
    heads = file.value("attention.head_count", 0)
    count = max(heads) if isinstance(heads, list) else int(heads)
    width = int(file.value("embedding_length", 0))
    head_size = int(file.value("attention.key_length", width // count if count else 0))
    return ModelSize(
        parameters=model.parameters,
        matmul_parameters=multiplied,
        head_parameters=head.elements if head else 0,
        weight_bytes=bytes_read(file),
        kv_bytes_per_token=sum(cache_bytes_per_token(file, context)),
        attention_width=file.layers * count * head_size,
        vocabulary=model.vocabulary,
        hidden_size=width,
    )
