"""Write sums and questions as an instruction file, and the batches that sft.py makes of it.

    python benchmarks/peers/prepare_batches.py CASE.json

Peers get the same sequences in the same order, so that times and losses can be compared.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(HOME / "recipes"))


def write_data(path: Path, examples: int) -> None:
    """Instructions of one to twelve questions with their answers: sequences of many lengths."""
    from llm_recipes.tiny_corpus import FACTS, random_sum

    rng = random.Random(0)
    rows = []
    for _ in range(examples):
        questions, answers = [], []
        for _ in range(rng.randint(1, 12)):
            if rng.random() < 0.5:
                question, _, answer = random_sum(rng).rpartition(" = ")
                questions.append(f"What is {question}?")
                answers.append(answer)
            else:
                fact = rng.choice(FACTS)
                questions.append(fact.instruction)
                answers.append(fact.response)
        rows.append({"instruction": " ".join(questions), "input": "", "output": " ".join(answers)})
    path.write_text(json.dumps(rows))


def batches(case: dict[str, Any]) -> list[list[dict[str, list[int]]]]:
    """The rows of each step, as sft.py orders and packs them."""
    from llm_recipes.examples import DataOptions
    from llm_recipes.prepared_data import cache_folder, prepare
    from llm_recipes.sft_model import load_tokenizer
    from llm_recipes.training_batches import pack_rows, segment_lengths
    from llm_recipes.training_order import TrainingOrder

    model = Path(case["model"])
    tokenizer = load_tokenizer(model, False)
    options = DataOptions(
        path=case["data"], format="alpaca", prompt_style="alpaca", max_length=case["max_length"],
        held_out=0.0, split_seed=case["seed"], learn_prompt=case["learn_prompt"],
    )
    rows = prepare(options, tokenizer, model, cache_folder(), lambda line: None).train
    if case["packing"]:
        rows = pack_rows(rows, case["max_length"])
    size, steps = case["global_batch"], case["steps"]
    order = list(TrainingOrder(len(rows), size * steps, case["seed"]))
    found = []
    for step in range(steps):
        batch = []
        for index in order[step * size : (step + 1) * size]:
            row = rows[index]
            batch.append({
                "input_ids": list(row["input_ids"]), "labels": list(row["labels"]),
                "seq_lengths": segment_lengths(row),
            })
        found.append(batch)
    return found


def main() -> None:
    """Prepare one case."""
    case = json.loads(Path(sys.argv[1]).read_text())
    data = Path(case["data"])
    if not data.exists():
        write_data(data, case["examples"])
    Path(case["batches"]).write_text("".join(json.dumps(batch) + "\n" for batch in batches(case)))


if __name__ == "__main__":
    main()
