"""A model's responses to a task of lm-eval, kept so that a run that was stopped goes on.

    kept = KeptResponses(user_cache("evaluations"), {"model": digest, "dtype": "fp32", ...})
    found = kept.read("arc_easy", "loglikelihood", requests)

One file a task and kind of request. All that an answer depends on is in its key: the model above
all (a cache without it gives the base's answers for the tuned model's,
https://github.com/EleutherAI/lm-evaluation-harness/issues/2715), and every text that is asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

from llm_recipes.errors import LLMError
from llm_recipes.files import write_fault, write_text

NAME_LENGTH = 80  # of a task, in a file's name


class KeptResponses:
    """Responses in a folder, under what they depend on.

    folder: where; None keeps nothing. key: what all tasks' responses depend on.
    """

    def __init__(self, folder: Path | None, key: Mapping[str, Any]) -> None:
        self.folder = folder
        self.key = dict(key)
        self.tasks = 0  # whose responses are here now

    def read(self, task: str, kind: str, requests: Sequence[Any]) -> list[Any] | None:
        """What was kept for these requests; None if nothing that can be used is there.

        Args:
            task: Its name.
            kind: loglikelihood, loglikelihood_rolling or generate_until.
            requests: lm-eval's, in their order.
        """
        if self.folder is None:
            return None
        try:
            lines = self._path(task, kind, requests).read_text("utf-8").splitlines()
            if len(lines) != 2 or sha256(lines[1].encode()).hexdigest() != lines[0]:
                return None
            found = json.loads(lines[1])
        except (OSError, ValueError):
            return None
        if not isinstance(found, list) or len(found) != len(requests):
            return None
        self.tasks += 1
        return [tuple(item) if isinstance(item, list) else item for item in found]

    def write(self, task: str, kind: str, requests: Sequence[Any], found: Sequence[Any]) -> None:
        """Keep responses, in the order of their requests.

        Raises:
            LLMError: If the folder can't be written or is full.
        """
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            fault = write_fault(self.folder, error)
            raise LLMError(fault.what, fault.why, "choose another --cache") from error
        text = json.dumps(list(found))
        write_text(
            self._path(task, kind, requests), f"{sha256(text.encode()).hexdigest()}\n{text}\n"
        )
        self.tasks += 1

    def _path(self, task: str, kind: str, requests: Sequence[Any]) -> Path:
        assert self.folder is not None
        name = quote(task, safe=" ")[:NAME_LENGTH]
        return self.folder / f"{name}-{kind}-{self._digest(task, kind, requests)}.json"

    def _digest(self, task: str, kind: str, requests: Sequence[Any]) -> str:
        found = sha256(json.dumps([self.key, task, kind], sort_keys=True, default=str).encode())
        for request in requests:
            found.update(json.dumps(list(request.args), sort_keys=True, default=str).encode())
            found.update(b"\n")
        return found.hexdigest()[:32]
