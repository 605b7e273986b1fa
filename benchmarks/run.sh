#!/bin/sh
# Run every benchmark that this machine can run and put the figures into docs/performance.md: run.sh
#
# Each writes JSON to build/benchmarks/; a figure in the manual is never typed by hand.
set -eu
home=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd -P)
cd "$home"
results=build/benchmarks
mkdir -p "$results"
passed=0
python3 benchmarks/launch.py --json "$results/launch.json" || passed=$?
# Status 2: this machine lacks what they need, and they have said so.
python3 benchmarks/modules.py --json "$results/modules.json" || [ $? = 2 ]
[ "$(id -u)" != 0 ] || python3 benchmarks/cluster.py --json "$results/cluster.json" || [ $? = 2 ]
python3 benchmarks/imports.py --json "$results/imports.json"
python3 benchmarks/images.py --clean true --json "$results/images.json"
python3 benchmarks/squashfs.py --json "$results/squashfs.json"
python3 benchmarks/packing.py --json "$results/packing.json"
python3 benchmarks/demo.py --json "$results/demo.json"
bin/llm-run --image llm-cpu python recipes/data/tiny.py --output build/demo/tiny-llama
bin/llm-run --image llm-cpu python benchmarks/generate_against_loop.py \
    --model build/demo/tiny-llama --output "$results/generate_against_loop.json"
bin/llm-run --image llm-cpu python benchmarks/meta_inference.py \
    --output "$results/meta_inference.json" || passed=$?
bin/llm-run --image llm-cpu python benchmarks/qa_batching.py \
    --model build/demo/tiny-llama --output "$results/qa_batching.json"
bin/llm-run --image llm-cpu python benchmarks/harness_against_lm_eval.py \
    --model build/demo/tiny-llama --output "$results/harness_against_lm_eval.json" || passed=$?
bin/llm-run --image llm-cpu python benchmarks/report_build.py --output "$results/report_build.json"
# LitGPT and llama-recipes take part where they are installed: the benchmark says how.
set --
if bin/llm-run --image llama-recipes true >/dev/null 2>&1; then
    set -- "$@" --llama-recipes-python "bin/llm-run --image llama-recipes python"
fi
if [ -x build/litgpt/bin/python ]; then
    set -- "$@" --litgpt-python build/litgpt/bin/python
fi
python3 benchmarks/finetune_against_peers.py --model build/demo/tiny-llama "$@" \
    --json "$results/finetune_against_peers.json" || passed=$?
bin/llm-run --image llm-cpu python benchmarks/finetune_memory.py \
    --output "$results/finetune_memory.json"
bin/llm-run --image llm-cpu python benchmarks/meta_reshard.py \
    --output "$results/meta_reshard.json" || passed=$?
bin/llm-run --image llm-cpu python benchmarks/gguf_generate.py \
    --output "$results/gguf_generate.json" || passed=$?
bin/llm-run --image llm-cpu python benchmarks/gguf_load.py --output "$results/gguf_load.json"
bin/llm-run --image llm-cpu python benchmarks/gguf_scoring.py --output "$results/gguf_scoring.json"
bin/llm-run --image llm-cpu python benchmarks/gguf_models.py --folder build/benchmarks/gguf
bin/llm-run --image llm-cpu python benchmarks/llama_threads.py \
    --model build/benchmarks/gguf/random-0.5b-Q4_K_M.gguf --output "$results/llama_threads.json"
python3 benchmarks/llama_native.py --json "$results/llama_native.json" || passed=$?
if nvidia-smi -L >/dev/null 2>&1; then
    bin/llm-run --gpu python benchmarks/gpu_inference.py --output "$results/gpu_inference.json"
    bin/llm-run --gpu python benchmarks/gpu_finetune.py --output "$results/gpu_finetune.json"
fi
python3 benchmarks/render.py "$results" docs/performance.md
exit "$passed"
