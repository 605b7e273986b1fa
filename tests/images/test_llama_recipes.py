"""The image `llama-recipes`: commands of 2023 as they were typed, with a tiny model, without a GPU.

    make test-images ARGS="-k llama_recipes"
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

LLM_RUN = str(Path(__file__).resolve().parents[2] / "bin" / "llm-run")
RECIPES = Path(__file__).resolve().parents[2] / "recipes"
FINETUNING = "/opt/llama-recipes/finetuning.py"
# What the manual typed, up to where its result went.
TYPED = ("--use_peft", "--peft_method", "lora")
SHORT = ("--max_train_step", "2", "--num_epochs", "1", "--context_length", "64")


def start(image: Path, folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start llm-run in a folder, with a thread a process: two of them may run at once."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [LLM_RUN, "--launch=local", "--image", str(image), *words], cwd=folder, env=env, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def output_of(process: subprocess.Popen[str], status: int = 0) -> str:
    """Wait for a program's end, check its exit status and return what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def losses(output: str) -> list[float]:
    """The loss of each training step that was shown, NaN included."""
    return [float(loss) for loss in re.findall(r"completed \(loss: ([\d.naif]+)\)", output)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, cpu_image: Path) -> Path:
    """A working folder with models/7B, a tiny Llama with SentencePiece tokenizer, and sums.json."""
    folder = tmp_path_factory.mktemp("it's a manual; of 2023")
    output_of(start(cpu_image, folder, "python", str(RECIPES / "data/tiny.py"), "--output",
                    "models/7B", "--steps", "0", "--hidden_size", "64", "--intermediate_size",
                    "128", "--vocab_size", "1024"))
    rows = [{"instruction": f"What is {a} plus {b}?", "input": "", "output": f"It is {a + b}."}
            for a in range(10) for b in range(8)]
    (folder / "sums.json").write_text(json.dumps(rows))
    return folder


DATA = ("--model_name", "models/7B", "--dataset", "alpaca_dataset",
        "--alpaca_dataset.data_path", "sums.json")


@pytest.fixture(scope="module")
def trained(llama_recipes_image: Path, folder: Path) -> Iterator[dict[str, str]]:
    """What two runs printed, at the same time: the module as it is, and the quantized line."""
    image = llama_recipes_image
    module = start(image, folder, "python", "-m", "llama_recipes.finetuning", *TYPED, *DATA,
                   "--output_dir", "module", "--run_validation", "False", *SHORT)
    quantized = start(image, folder, "python", FINETUNING, *TYPED, "--quantization", *DATA,
                      "--output_dir", "quantized", *SHORT)
    yield {"module": output_of(module), "quantized": output_of(quantized)}


def test_the_module_trains(trained: dict[str, str], folder: Path) -> None:
    """As the manual typed it, but for the GPU: no quantization, no validation, so nothing saved."""
    assert losses(trained["module"])[-1] > 0
    assert "max training steps reached" in trained["module"]
    assert "no GPU here" not in trained["module"]
    assert not (folder / "module").exists()


def test_the_quantized_line_trains_and_saves(trained: dict[str, str], folder: Path) -> None:
    output = trained["quantized"]
    assert "no GPU here; what llama-recipes sends to GPUs goes to the CPU" in output
    assert losses(output)[-1] > 0
    assert "PEFT modules are saved in quantized directory" in output
    settings = json.loads((folder / "quantized/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "models/7B" and settings["r"] == 8


def test_the_line_of_four_nodes_trains_shards_together(
    llama_recipes_image: Path, folder: Path,
) -> None:
    """With the option that makes it one training, on two processes; the manual's had none."""
    words = ("--enable_fsdp", *TYPED, *DATA, "--output_dir", "sharded", *SHORT)
    output = output_of(start(llama_recipes_image, folder, "--torchrun", "--nproc-per-node=2",
                             FINETUNING, *words))
    assert losses(output)[-1] > 0
    assert output.count("max training steps reached") == 1  # said by rank 0 alone
    assert (folder / "sharded/adapter_model.safetensors").stat().st_size > 8000


@pytest.mark.parametrize("adapter", ["quantized", "sharded"])
def test_the_adapter_works_in_the_other_image(cpu_image: Path, folder: Path, adapter: str) -> None:
    """The way out of the museum: today's transformers and PEFT take what it has trained."""
    output = output_of(start(cpu_image, folder, "python", str(RECIPES / "inference/generate.py"),
                             "--model", "models/7B", "--adapter", adapter, "--prompt",
                             "What is 1 plus 2?", "--max_new_tokens", "4", "--output",
                             f"{adapter}.jsonl"))
    answer = json.loads((folder / f"{adapter}.jsonl").read_text())
    assert answer, output
