"""GGUF models of real shapes with random weights, in seconds and without a network or a converter.

    llm-run python benchmarks/gguf_models.py --folder build/benchmarks/gguf --type Q4_K_M

Speed and memory do not depend on what the weights are. Written as F16 with llama.cpp's own gguf
package, quantized with llama-quantize, kept in the folder for the next benchmark. The vocabulary
has a token for each byte and fillers: n - 1 ASCII characters are n tokens, the BOS included.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "recipes"))

from llm_recipes.cli import run_recipe

VOCABULARY = 32000
POOL = 1 << 22  # random numbers that all tensors are cut from; drawing each would take minutes


@dataclass(frozen=True)
class Shape:
    """A model of llama.cpp's architecture `llama`; every row is a multiple of 256 for K-quants."""

    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    context: int = 8192

    @property
    def parameters(self) -> int:
        """Numbers in all matrices."""
        kv = self.width * self.kv_heads // self.heads
        layer = 2 * self.width * (self.width + kv) + 3 * self.width * self.feed_forward
        return self.layers * layer + 2 * VOCABULARY * self.width


SHAPES = {
    "0.5b": Shape(24, 1024, 5632, 16, 4),
    "1.1b": Shape(22, 2048, 5632, 32, 4),  # TinyLlama
    "tiny": Shape(2, 256, 512, 4, 2),
}


def make_model(shape: str = "0.5b", type: str = "Q4_K_M", folder: Path = Path(".")) -> Path:
    """Make a model, unless it is there; prints and returns its path.

    Args:
        shape: 0.5b (0.54 B parameters), 1.1b, or tiny to try a benchmark.
        type: F32, F16, or what llama-quantize can make.
        folder: Where models are kept.
    """
    path = folder.expanduser().absolute() / f"random-{shape}-{type}.gguf"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        if type in ("F16", "F32"):
            write_model(SHAPES[shape], type, partial)
        else:
            source = make_model(shape, "F16", folder)
            command = ["llama-quantize", str(source), str(partial), type]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(done.stderr + done.stdout)
        partial.replace(path)
    return path


def write_model(shape: Shape, type: str, path: Path) -> None:
    """Write a model of random weights in F16 or F32."""
    import gguf
    import numpy as np

    bytes_as_tokens = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    tokens = [b"<unk>", b"<s>", b"</s>", *bytes_as_tokens]
    types = [gguf.TokenType.UNKNOWN] + 2 * [gguf.TokenType.CONTROL] + 256 * [gguf.TokenType.BYTE]
    fillers = VOCABULARY - len(tokens)
    tokens += [f"<filler {number}>".encode() for number in range(fillers)]
    types += fillers * [gguf.TokenType.NORMAL]
    writer = gguf.GGUFWriter(path, "llama", use_temp_file=False)
    writer.add_name("random weights")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if type == "F16" else 0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCABULARY)
    writer.add_token_types([int(kind) for kind in types])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(False)
    dtype = np.float16 if type == "F16" else np.float32
    random = np.random.default_rng(0)
    pool = (random.standard_normal(POOL, dtype=np.float32) / np.sqrt(shape.width)).astype(dtype)

    def matrix(name: str, rows: int, columns: int) -> None:
        # Another beginning each time: equal layers would be an easier model for nobody, but odd.
        start = int(random.integers(POOL))
        values = np.resize(np.roll(pool, start), (rows, columns))
        writer.add_tensor(f"{name}.weight", values)

    def ones(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(shape.width, dtype=np.float32))

    kv_width = shape.width * shape.kv_heads // shape.heads
    matrix("token_embd", VOCABULARY, shape.width)
    ones("output_norm")
    matrix("output", VOCABULARY, shape.width)
    for layer in range(shape.layers):
        for part, rows in (("q", shape.width), ("k", kv_width), ("v", kv_width)):
            matrix(f"blk.{layer}.attn_{part}", rows, shape.width)
        matrix(f"blk.{layer}.attn_output", shape.width, shape.width)
        ones(f"blk.{layer}.attn_norm")
        ones(f"blk.{layer}.ffn_norm")
        matrix(f"blk.{layer}.ffn_gate", shape.feed_forward, shape.width)
        matrix(f"blk.{layer}.ffn_up", shape.feed_forward, shape.width)
        matrix(f"blk.{layer}.ffn_down", shape.width, shape.feed_forward)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prompt_of(tokens: int, letter: str = "a") -> str:
    """A text that these models see as so many tokens, the BOS included."""
    return letter * (tokens - 1)


def print_path(shape: str = "0.5b", type: str = "Q4_K_M", folder: Path = Path(".")) -> None:
    """Make a GGUF model with random weights, unless it is there, and print its path.

    Args:
        shape: 0.5b (0.54 B parameters), 1.1b, or tiny to try a benchmark.
        type: F32, F16, or what llama-quantize can make.
        folder: Where models are kept.
    """
    print(make_model(shape, type, folder))


if __name__ == "__main__":
    run_recipe(print_path)
