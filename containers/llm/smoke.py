"""Smoke test of the image `llm`: every package imports with its locked version and does one thing.

Run by `apptainer test`. No GPU is needed; on a node that has one it is used.
"""

import importlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

# Distribution -> module, of everything that design and README promise.
PACKAGES = {
    "torch": "torch", "transformers": "transformers", "accelerate": "accelerate", "peft": "peft",
    "trl": "trl", "datasets": "datasets", "fairscale": "fairscale.nn.model_parallel",
    "deepspeed": "deepspeed", "lm-eval": "lm_eval", "llama-cpp-python": "llama_cpp",
    "jsonargparse": "jsonargparse", "dask": "dask", "distributed": "distributed", "rich": "rich",
    "matplotlib": "matplotlib", "tensorboard": "tensorboard", "bitsandbytes": "bitsandbytes",
    "tiktoken": "tiktoken",
    "sentencepiece": "sentencepiece", "gguf": "gguf",
}
GPU_PACKAGES = {"liger-kernel": "liger_kernel", "nvidia-ml-py": "pynvml"}
NO_VERSION = {"gguf"}  # from llama.cpp's source tree, not installed
PROGRAMS = {
    "llama-bench": "--help", "llama-quantize": "--help", "llama-perplexity": "--version",
    "llama-imatrix": "--version", "llama-server": "--version", "llama-cli": "--version",
    "llama-completion": "--version", "llama-gguf-split": "--help", "llama-tokenize": "--help",
    "llama-batched-bench": "--version", "ggml-rpc-server": "--help", "convert_hf_to_gguf": "--help",
    "convert_lora_to_gguf": "--help", "torchrun": "--help", "accelerate": "--help",
    "lm_eval": "--help", "gcc": "--version", "g++": "--version", "pip": "--version",
}


def locked_versions() -> dict[str, str]:
    """Package -> version, as the image's lock has them."""
    text = Path("/opt/llm/lock.txt").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE))


def check_imports(gpu: bool) -> None:
    """Import everything; installed versions are the locked ones."""
    locked = locked_versions()
    for name, module in {**PACKAGES, **(GPU_PACKAGES if gpu else {})}.items():
        importlib.import_module(module)
        if name in NO_VERSION:
            continue
        version = importlib.metadata.version(name)
        assert version == locked.get(name, version), f"{name} {version}, locked {locked[name]}"
        print(f"llm: {name} {version}")


def check_torch(gpu: bool) -> None:
    """A matrix product, and whether torch's build is the variant's."""
    import torch

    product = torch.full((64, 64), 2.0) @ torch.full((64, 64), 3.0)
    assert product.unique().tolist() == [384.0], product
    assert (torch.version.cuda is not None) == gpu, torch.version.cuda
    if torch.cuda.is_available():
        assert (product.cuda() @ product.cuda()).isfinite().all()
        print(f"llm: a product on {torch.cuda.get_device_name()}")
    elif gpu:
        print("llm: no GPU here; torch's CUDA build imports, its kernels were not run")


def check_import_structure() -> None:
    """What the build noted of transformers' models is what transformers reads from its sources."""
    from transformers.utils import import_utils

    models = Path(import_utils.__file__).parents[1] / "models"
    noted = import_utils.create_import_structure_from_path(models)
    # A second copy of the module, which the hook doesn't know, reads the sources.
    name = "transformers.utils.import_utils_as_written"
    spec = importlib.util.spec_from_file_location(name, import_utils.__file__)
    assert spec and spec.loader
    written = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(written)
    assert noted == written.create_import_structure_from_path(str(models)) and noted["llama"]
    assert import_utils.create_import_structure_from_path.__module__ == "llm_import_structure"
    assert written.create_import_structure_from_path.__module__ == name
    print(f"llm: {len(noted)} models are known without reading their sources")


def check_bytecode() -> None:
    """The bundle holds what is in the modules' own files, and imports come from it."""
    import llm_bytecode
    import torch.nn

    bundle = llm_bytecode.read()
    for stem in bundle.modules:
        source = llm_bytecode.source_of(bundle, stem)
        own = Path(importlib.util.cache_from_source(source)).read_bytes()
        assert own[llm_bytecode.PYC_HEADER:] == bundle.code(stem), stem
    assert type(torch.nn.__loader__).__module__ == "llm_bytecode"
    replaced = sorted(name for name in bundle.records if bundle.was_replaced(name))
    assert not replaced, f"newer than the bundle: {replaced}"
    print(f"llm: the bytecode of {len(bundle.modules)} modules is in one file")


def check_tokenizer() -> None:
    """Train a tokenizer and get the text back."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    text = "My favourite condiment is mustard — naïve café, 北京"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tokenizer.train_from_iterator([text], trainer)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def check_llama_cpp(gpu: bool) -> None:
    """A plain `import llama_cpp` makes one token of a GGUF, and the programs find kernels too."""
    sys.path.insert(0, "/opt/llm/smoke/lib")
    from llama_cpp import Llama
    from smoke_gguf import write_tiny_gguf

    if gpu:
        import ctypes

        import nvidia

        # What the driver would provide is missing here; everything else of the backend must be.
        assert list(nvidia.__path__)
        backend = "/opt/llama.cpp/lib/libggml-cuda.so"
        ctypes.CDLL(backend, mode=os.RTLD_LAZY)
        print("llm: llama.cpp's CUDA backend loads")
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "tiny.gguf"
        write_tiny_gguf(model)
        llama = Llama(str(model), n_ctx=32, n_threads=1, verbose=False)
        token = next(iter(llama.generate([1, 4, 5], temp=0.0)))
        assert 0 <= token < 259, token
        done = subprocess.run(
            ["llama-bench", "-m", model, "-p", "4", "-n", "1", "-r", "1", "-t", "1", "-o", "csv"],
            capture_output=True, text=True, check=False, cwd=folder)
        assert done.returncode == 0 and "llama" in done.stdout, done.stderr[-2000:]
        print(f"llm: llama.cpp made token {token}")


def check_programs() -> None:
    """Every program that the image lists starts."""
    failed = []
    for program, option in PROGRAMS.items():
        done = subprocess.run([program, option], capture_output=True, text=True, check=False,
                              stdin=subprocess.DEVNULL)
        # llama.cpp's older programs print their help and exit with 1.
        if not (done.stdout + done.stderr).strip() or done.returncode not in (0, 1):
            failed.append(f"{program} {option}: {done.returncode} {done.stderr[-300:]}")
    assert not failed, "\n".join(failed)
    print(f"llm: {len(PROGRAMS)} programs start")


def main() -> None:
    """Run every check; the first that fails is an exception."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    # Caches of compilers and plots go where anybody may write.
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(MPLCONFIGDIR=cache, TRITON_CACHE_DIR=cache, XDG_CACHE_HOME=cache,
                          HF_HOME=cache)
        gpu = "+cpu" not in locked_versions().get("torch", "")
        check_imports(gpu)
        check_torch(gpu)
        check_import_structure()
        check_bytecode()
        check_tokenizer()
        check_llama_cpp(gpu)
        check_programs()


if __name__ == "__main__":
    main()
