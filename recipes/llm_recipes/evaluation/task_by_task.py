"""A model for lm-eval that answers task after task, keeps the answers, and shares them out.

    lm = TaskByTask(HFLM(...), answer, kept, ranks, versions)
    results = lm_eval.simple_evaluate(model=lm, tasks=...)

lm-eval asks for all tasks at once. Here each is computed as a whole, by itself: so what a stopped
run has kept is what an uninterrupted one finds. Of several processes each answers its share of
every task, all get all answers, and lm-eval computes what it would of a single process's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llm_recipes.cli import Terminated
from llm_recipes.errors import LLMError
from llm_recipes.evaluation.kept_responses import KeptResponses
from llm_recipes.ranks import Ranks
from llm_recipes.say import say
from llm_recipes.stop_signals import stop_requested

# What a model answers to requests of a kind.
Answer = Callable[[str, list[Instance]], list[Any]]
UNITS = {"generate_until": "answers", "loglikelihood_rolling": "texts"}


class TaskByTask(LM):
    """An lm-eval model around another one.

    inner: it. kept: responses of earlier runs. requests: how many were answered in this one.
    """

    def __init__(
        self,
        inner: Any,
        answer: Answer,
        kept: KeptResponses,
        ranks: Ranks,
        versions: Mapping[str, Any],
    ) -> None:
        """Wrap a model.

        Args:
            inner: lm-eval's or ours, for a single process.
            answer: Its answers.
            kept: Where responses are kept.
            ranks: The processes that share the requests.
            versions: Of each task.
        """
        super().__init__()
        self.inner = inner
        self.kept = kept
        self.requests = 0
        self._answer = answer
        self._ranks = ranks
        self._versions = versions
        self._is_told = False

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """As the inner model's."""
        return self._by_task("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """As the inner model's."""
        return self._by_task("loglikelihood_rolling", requests)

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """As the inner model's."""
        return self._by_task("generate_until", requests)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """As the inner model's."""
        return self.inner.apply_chat_template(chat_history, add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """As the inner model's."""
        return self.inner.chat_template(chat_template)

    def get_model_info(self) -> dict[str, Any]:
        """As the inner model's."""
        return self.inner.get_model_info()

    @property
    def tokenizer_name(self) -> str:
        """As the inner model's."""
        return self.inner.tokenizer_name

    def __getattr__(self, name: str) -> Any:
        # tokenizer, max_length, eot_token_id: what lm-eval writes into its results.
        if name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    def _by_task(self, kind: str, requests: list[Instance]) -> list[Any]:
        places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(str(request.task_name), []).append(place)
        found: list[Any] = [None] * len(requests)
        for task, indices in places.items():
            answers = self._responses(task, kind, [requests[place] for place in indices])
            for place, answer in zip(indices, answers, strict=True):
                found[place] = answer
        return found

    def _responses(self, task: str, kind: str, asked: list[Instance]) -> list[Any]:
        """A task's, from an earlier run or from all processes."""
        ranks = self._ranks
        named = f"{task} version {self._versions.get(task)}"
        kept = self.kept.read(named, kind, asked) if ranks.is_first else None
        known: list[Any] | None = ranks.from_first(kept)
        count = f"{len(asked)} {UNITS.get(kind, 'log-likelihoods')}"
        if known is not None:
            ranks.say(f"{task}: {count}, kept of an earlier run")
            return known
        if ranks.first_decides(stop_requested):  # the job's time is nearly over
            raise Terminated
        ranks.say(f"{task}: {count}")
        self.requests += len(asked)
        mine = deal(asked, ranks.count)[ranks.index]
        part = ranks.together(lambda: self._answered(task, kind, [asked[n] for n in mine]))
        found: list[Any] = [None] * len(asked)
        for places, answers in ranks.of_all((mine, part)):
            for place, answer in zip(places, answers, strict=True):
                found[place] = answer
        if ranks.is_first:
            self._keep(named, kind, asked, found)
        return found

    def _answered(self, task: str, kind: str, asked: list[Instance]) -> list[Any]:
        answers = self._answer(kind, asked)
        for answer in answers:
            number = answer[0] if isinstance(answer, tuple) else answer
            if isinstance(number, float) and math.isnan(number):
                what = f"the model's log-likelihoods in {task} are no numbers (NaN)"
                why = "its weights are damaged, its training has diverged, or the precision is low"
                raise LLMError(what, why, "--dtype fp32; or look at the loss of its training")
        return answers

    def _keep(self, named: str, kind: str, asked: Sequence[Instance], found: list[Any]) -> None:
        try:
            self.kept.write(named, kind, asked, found)
        except LLMError as fault:  # the results don't need it
            if not self._is_told:
                say(f"answers are not kept: {fault}")
            self._is_told = True


def deal(requests: Sequence[Instance], hands: int) -> list[list[int]]:
    """Shares of about the same length; all requests of a document are in one.

    Args:
        requests: Of a task.
        hands: Processes.

    Returns:
        The places of each share's requests, in their order.
    """
    documents: dict[int | None, list[int]] = {}
    for place, request in enumerate(requests):
        documents.setdefault(request.doc_id, []).append(place)
    length = {d: sum(text_length(requests[p]) for p in ps) for d, ps in documents.items()}
    shares: list[list[int]] = [[] for _ in range(hands)]
    read = [0] * hands
    for document in sorted(documents, key=lambda document: -length[document]):
        least = read.index(min(read))
        shares[least] += documents[document]
        read[least] += length[document]
    return [sorted(share) for share in shares]


def text_length(request: Instance) -> int:
    """Characters that the model reads for a request."""
    return sum(len(text) for text in request.args if isinstance(text, str))
