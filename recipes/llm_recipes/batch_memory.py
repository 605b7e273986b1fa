"""How many rows of a batch are worth having, and what each takes besides keys and values.

from llm_recipes.batch_memory import LOGIT_COPIES, MOST_ROWS, SHARE_OF_FREE, STATES_A_TOKEN
"""

from __future__ import annotations

SHARE_OF_FREE = 0.8  # of the memory: what a row takes is a rough estimate
MOST_ROWS = {"cpu": 64, "cuda": 256}  # more rows gain little speed and delay the first answers
LOGIT_COPIES = 6  # float32 logits, probabilities, noise and what sampling makes of them
STATES_A_TOKEN = 16  # hidden-sized tensors that live at once in a prefill, the MLP's included
