"""Models of a few thousand random parameters, made once a session, without a network."""

from __future__ import annotations

import io
import os
import pydoc_data.topics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
sys.path.insert(0, str(RECIPES))
# Models this small gain nothing from more threads, and a forked process would wait for them;
# the first is torch's, the second llama.cpp's.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["SLURM_CPUS_PER_TASK"] = "1"

VOCABULARY = 512
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + m['role']) }}{% endif %}"
    "{{ '<' + m['role'] + '>' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def make_model(folder: Path, chat: bool = True, **changes: object) -> Path:
    """A random Llama with a SentencePiece tokenizer in a folder; the same weights each time."""
    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaTokenizer

    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "initializer_range": 0.2,
        **changes,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(folder)
    writer = io.BytesIO()
    text = "\n".join(list(pydoc_data.topics.topics.values())[:40])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text.splitlines()),
        model_writer=writer,
        vocab_size=VOCABULARY,
        model_type="bpe",
        byte_fallback=True,
        pad_id=-1,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(writer.getvalue())
    tokenizer = LlamaTokenizer.from_pretrained(folder, add_bos_token=True)
    if chat:
        tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete chat model; its path has what paths should not have."""
    return make_model(tmp_path_factory.mktemp("models") / "tiny's; model ü")


@pytest.fixture(scope="session")
def tiny_hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model whose rows are long enough for llama.cpp's K-quants."""
    sizes = {"hidden_size": 256, "intermediate_size": 512}
    return make_model(tmp_path_factory.mktemp("gguf") / "tiny hf; ü", **sizes)


@pytest.fixture(scope="session")
def tiny_gguf(tiny_hf: Path) -> Path:
    """The same model as a GGUF in fp32."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here")
    return convert(tiny_hf, tiny_hf.with_name("tiny's F32; ü.gguf"))


@pytest.fixture(scope="session")
def trained_gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF in fp16 of a model that has learned something: quantizing it costs quality."""
    pytest.importorskip("llama_cpp", reason="llama.cpp is not here")
    folder = tmp_path_factory.mktemp("trained") / "tiny"
    maker = [sys.executable, str(RECIPES / "data" / "tiny.py"), "--output", str(folder)]
    options = ["--steps", "120", "--vocab-size", "1024", "--threads", "1"]
    subprocess.run([*maker, *options], check=True, env=recipe_environment(), timeout=900)
    return convert(folder, folder.with_name("trained.gguf"), "f16")


def convert(folder: Path, gguf: Path, kind: str = "f32") -> Path:
    """A model folder as GGUF, by llama.cpp's own converter."""
    from llm_recipes.gguf.programs import converter_folder

    script = converter_folder() / "convert_hf_to_gguf.py"
    arguments = [str(folder), "--outfile", str(gguf), "--outtype", kind]
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=recipe_environment(),
    )
    assert done.returncode == 0, done.stderr
    return gguf


@pytest.fixture(scope="session")
def generate() -> Run:
    """Run generate.py as a user does: `generate(arguments, input="…")`."""

    def run(
        arguments: Sequence[object], timeout: float = 120, **options: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            generate_command(arguments),
            capture_output=True,
            text=True,
            timeout=timeout,
            env=recipe_environment(),
            **options,  # type: ignore[call-overload]
        )

    return run


def generate_command(arguments: Sequence[object]) -> list[str]:
    """The command line of generate.py."""
    script = RECIPES / "inference" / "generate.py"
    return [sys.executable, str(script), *map(str, arguments)]


def recipe_environment() -> dict[str, str]:
    """The environment that llm-run gives a recipe, and no network."""
    return {
        **os.environ,
        "PYTHONPATH": str(RECIPES),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "SLURM_CPUS_PER_TASK": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
