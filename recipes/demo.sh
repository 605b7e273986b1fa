#!/bin/sh
# The whole story on a model that is made in a minute: evaluate, fine-tune, merge, quantize, compare,
# report. No network and no GPU; everything goes into build/demo.
#
#     make demo                        # builds the image first
#     sh recipes/demo.sh [PROMPT]
#     sh recipes/demo.sh --plan        # prints the commands and starts nothing
#
# Each step prints the command that does it. What is there already and still right is not made again.
set -eu
cd -- "$(dirname -- "$0")/.."

plan=
if [ "${1:-}" = --plan ]; then
    plan=yes
    shift
fi
prompt=${1:-What is the capital of France?}

demo=build/demo
base=$demo/tiny-llama
tuned=$demo/merged
quantized=$demo/quantized/tuned-Q4_K_M.gguf
tasks=llm_arithmetic_1d,llm_pydocs,llm_pydocs_choice

number=0
heading=start

step() { # HEADING
    number=$((number + 1))
    heading="$number. $1"
    printf '\n== %s\n' "$heading"
}

run() { # PROGRAM...: print the command, then give it
    set -- bin/llm-run --image llm-cpu "$@"
    line=
    for word; do
        case $word in
        *[!A-Za-z0-9_./,:=-]*) word="'$(printf '%s' "$word" | sed "s/'/'\\\\''/g")'" ;;
        esac
        line="${line:+$line }$word"
    done
    printf '%s\n' "$line"
    [ -n "$plan" ] || "$@"
}

recipe() { # FILE OPTIONS...
    file=$1
    shift
    run python "recipes/$file" "$@"
}

measure() { # MODEL NAME: what it knows of what it learned first, and of the new task
    recipe evaluate/harness.py --model "$1" --tasks "$tasks" --output "$demo/evaluated/first/$2"
    recipe evaluate/qa.py --model "$1" --data "$demo/digits/digits-test.jsonl" --max-new-tokens 12 \
        --output "$demo/evaluated/digits/$2"
}

# What is made of other inputs, or by another version of this file, is made anew.
forget_old_results() {
    [ -z "$plan" ] || return 0
    inputs=$(cksum "$base/model.safetensors" "$demo"/digits/*.jsonl recipes/demo.sh)
    if [ "$inputs" != "$(cat "$demo/inputs" 2>/dev/null)" ]; then
        rm -rf "$demo/lora" "$tuned" "$demo/quantized" "$demo/evaluated" "$demo/compared" \
            "$demo/report" "$demo"/tuned.gguf*
        printf '%s\n' "$inputs" >"$demo/inputs"
    fi
}

trap 'status=$?; [ "$status" = 0 ] || echo "demo: stopped at \"$heading\" with status $status" >&2' EXIT

step "A tiny model that has really learned something: sums, a few questions, Python's manual"
recipe data/tiny.py --output "$base"

step 'A task that it can not do: "Add 3 to each digit", 2,400 items to learn from, 1,000 others to ask'
recipe data/digits.py --output "$demo/digits"
forget_old_results

step "Before: what the model knows"
measure "$base" base

step "Fine-tune it with LoRA, and merge the result into the model"
recipe finetune/sft.py --model "$base" --data "$demo/digits/digits-train.jsonl" --output "$demo/lora" \
    --lora-rank 32 --learning-rate 1.5e-3 --epochs 6 --global-batch 16 --max-length 64 \
    --held-out 0 --save-every 0
recipe finetune/merge.py --adapter "$demo/lora" --output "$tuned"

step "After: the same questions"
measure "$tuned" tuned

step "Convert it to GGUF, and quantize it to 4 bits"
recipe quantized/convert.py --model "$tuned" --output "$demo/tuned.gguf"
recipe quantized/quantize.py --model "$demo/tuned.gguf" --output "$demo/quantized" --types Q4_K_M

step "The quantized model: the same questions"
measure "$quantized" quantized

step "Compare: what it has learned, what it has forgotten, and what 4 bits cost"
for what in digits first; do
    evaluated=$demo/evaluated/$what
    recipe evaluate/compare.py --run "$evaluated/base" --run "$evaluated/tuned" \
        --run "$evaluated/quantized" --all-pairs true --output "$demo/compared/$what"
done

step "Report: all of it on one page"
recipe evaluate/report.py --title "A tiny model, before and after" --run "$base" --run "$demo/lora" \
    --run "$demo/quantized" --run "$demo/evaluated" --run "$demo/compared" --output "$demo/report"

step "Ask it something yourself"
recipe inference/generate.py --model "$base" --prompt "$prompt" --max-new-tokens 60

[ -n "$plan" ] && exit
printf '\nThe verdict on the new task, for the questions of digits-test.jsonl:\n'
sed -n '/^- /{s/\\//g;s/^-//p;}' "$demo/compared/digits/comparison.md"
echo
echo "The report: $PWD/$demo/report/report.html"
echo 'Next: bin/llm-run python recipes/inference/generate.py --help   and docs/index.md'
