"""How many rows a batch gets: what fits, compiled shapes, and what is done when it did not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from llm_recipes import batching  # noqa: E402
from llm_recipes.batch_memory import SHARE_OF_FREE  # noqa: E402
from llm_recipes.batching import (  # noqa: E402
    complete_all,
    complete_one,
    fitting_batch_size,
    worth_compiling,
)
from llm_recipes.decoding import Completion, Decoder, Request  # noqa: E402
from llm_recipes.errors import LLMError  # noqa: E402
from llm_recipes.models import ModelSize  # noqa: E402
from llm_recipes.running_batch import static_shape  # noqa: E402

KV_BYTES = 1000
SIZE = ModelSize(0, 0, 0, 0, KV_BYTES, 0, vocabulary=0, hidden_size=0)  # only the cache counts
NEW = 10


class Fake:
    """A decoder with memory for so many cached tokens; notes the rows of each attempt."""

    def __init__(self, most_tokens: float = float("inf"), compiled: bool = False) -> None:
        self.device = torch.device("cpu")
        self.model = SimpleNamespace(dtype=torch.float32)
        self.settings = SimpleNamespace(max_new_tokens=NEW)
        self.most_tokens = most_tokens
        self.compiled = compiled
        self.kept = 0
        self.attempts: list[tuple[int, int]] = []

    def compiles(self, longest: int) -> bool:
        return self.compiled

    def kept_bytes(self) -> int:
        return self.kept

    def forget_cache(self) -> None:
        self.kept = 0

    def complete(
        self, requests: Sequence[Request], on_text: Callable[[str], None] | None = None
    ) -> Iterator[Completion]:
        shape = len(requests), max(len(request.token_ids) for request in requests) + NEW
        self.attempts.append((len(requests), shape[1] - NEW))
        rows, length = static_shape(*shape) if self.compiled else shape
        self.kept = rows * length * KV_BYTES if self.compiled else 0
        if rows * length > self.most_tokens:
            raise MemoryError
        for request in requests:
            yield Completion(request, (), "", "length")


def decoder(fake: Fake) -> Decoder:
    return cast(Decoder, fake)


def requests(*lengths: int) -> list[Request]:
    return [Request(str(number), 0, (5,) * length) for number, length in enumerate(lengths)]


def rows_of(fake: Fake, asked: Sequence[Request], batch_size: int | None) -> list[tuple[int, int]]:
    """(rows, longest prompt) of each attempt; every request must be completed once."""
    made = [c.request.prompt_id for c in complete_all(decoder(fake), asked, SIZE, batch_size)]
    assert sorted(made) == sorted(request.prompt_id for request in asked)
    return fake.attempts


def with_free_memory(monkeypatch: pytest.MonkeyPatch, tokens: int, fake: Fake) -> None:
    """Free memory for so many cached tokens; what the decoder keeps is not free."""
    whole = int(tokens * KV_BYTES / SHARE_OF_FREE) + 1
    monkeypatch.setattr(batching, "free_memory_bytes", lambda device: whole - fake.kept)


def test_rows_that_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()
    with_free_memory(monkeypatch, 1000, fake)
    assert fitting_batch_size(decoder(fake), SIZE, prompt_tokens=90) == 10
    assert fitting_batch_size(decoder(fake), SIZE, prompt_tokens=2000) == 1
    assert fitting_batch_size(decoder(fake), SIZE, prompt_tokens=1) == 64  # no more on a CPU


def test_compiled_rows_count_as_the_static_cache_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(compiled=True)
    with_free_memory(monkeypatch, 7 * 512, fake)
    # 300 + 10 tokens take 512, so 7 rows fit; 7 would be filled up to 8.
    assert fitting_batch_size(decoder(fake), SIZE, prompt_tokens=300) == 4


def test_the_kept_static_cache_is_no_used_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(most_tokens=4 * 512, compiled=True)
    with_free_memory(monkeypatch, 4 * 512, fake)
    assert rows_of(fake, requests(*[300] * 12), None) == [(4, 300)] * 3


def test_halved_when_memory_runs_out(capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake(most_tokens=250)
    assert rows_of(fake, requests(*[90] * 8), 8) == [(8, 90), (4, 90)] + [(2, 90)] * 4
    error = capsys.readouterr().err
    assert "out of memory with 8 rows a batch: going on with 4" in error
    assert "out of memory with 4 rows a batch: going on with 2" in error


def test_shorter_prompts_are_more_rows_again() -> None:
    fake = Fake(most_tokens=450)
    asked = requests(*[90] * 4, *[15] * 8)
    assert rows_of(fake, asked, 8) == [(8, 90), (4, 90), (8, 15)]


def test_a_compiled_batch_is_halved_as_it_was_filled_up() -> None:
    fake = Fake(most_tokens=4 * 256, compiled=True)
    assert rows_of(fake, requests(*[90] * 5), 5) == [(5, 90), (4, 90), (1, 90)]


def test_a_single_row_that_does_not_fit() -> None:
    fake = Fake(most_tokens=50)
    with pytest.raises(LLMError, match="memory ran out with a single prompt of 90 tokens"):
        rows_of(fake, requests(90, 90), None)
    assert fake.attempts == [(2, 90), (1, 90)]


def test_other_errors_are_no_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("shapes do not match")

    fake = Fake()
    monkeypatch.setattr(fake, "complete", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        rows_of(fake, requests(5), 1)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        complete_one(decoder(fake), requests(5)[0], print)


def test_a_single_request() -> None:
    fake = Fake(most_tokens=256, compiled=True)
    assert complete_one(decoder(fake), requests(5)[0], print).request == requests(5)[0]
    with pytest.raises(LLMError, match="memory ran out with a single prompt of 300 tokens") as end:
        complete_one(decoder(fake), requests(300)[0], print)
    assert fake.kept == 0
    assert end.value.__context__ is None  # it would hold on to the step's tensors


@pytest.mark.parametrize(
    ("lengths", "new_tokens", "batch_size", "expected"),
    [
        ([], 10**6, None, False),
        ([100] * 64, 1999, None, False),
        ([100] * 64, 2000, None, True),
        ([100] * 640, 200, None, True),
        ([100] * 640, 200, 320, False),
        ([100] * 320 + [1000] * 320, 200, None, False),  # two shapes
        ([100] * 640 + [1000] * 640, 200, None, True),
        ([100] * 130, 700, None, False),  # three batches, the last of another shape
    ],
)
def test_worth_compiling(
    lengths: list[int], new_tokens: int, batch_size: int | None, expected: bool
) -> None:
    assert worth_compiling(lengths, new_tokens, batch_size) == expected
