"""Commands from rank 0 to the others, with a part of a model that only notes what it is told."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fairscale")

import torch
from forked_ranks import Ended, run_ranks
from torch import Tensor

from llm_recipes.cli import Terminated
from llm_recipes.errors import LLMError
from llm_recipes.meta import leaving
from llm_recipes.meta.lockstep import Channel, Leader, follow, leading
from llm_recipes.ranks import Ranks, start_ranks


class Notes:
    """A part of a model that tells what was done; each call is a collective, as in a model."""

    def __init__(self, ranks: Ranks, fails: str = "") -> None:
        self.ranks = ranks
        self.done: list[Any] = []
        self.fails = fails

    def note(self, what: str, *facts: Any) -> None:
        self.done.append([what, *[f.tolist() if isinstance(f, Tensor) else f for f in facts]])
        if what == self.fails:
            raise LLMError(f"{what} failed on rank {self.ranks.index}")
        if self.ranks.count > 1:
            torch.distributed.all_reduce(torch.zeros(1))

    def load(self) -> list[dict[str, Any]]:
        self.note("load")
        return self.ranks.of_all({"rank": self.ranks.index})

    def allocate(self, rows: int, tokens: int) -> None:
        self.note("allocate", rows, tokens)

    def prefill(self, ids: Tensor, lengths: Tensor) -> Tensor:
        self.note("prefill", ids, lengths)
        return torch.zeros(len(ids), 4)

    def step(self, tokens: Tensor) -> Tensor:
        self.note("step", tokens)
        return torch.zeros(len(tokens), 4)

    def keep(self, indices: Tensor) -> None:
        self.note("keep", indices)

    def measure(self) -> list[dict[str, int]]:
        self.note("measure")
        return self.ranks.of_all({"rank": self.ranks.index})


def run(
    folder: Path, lead: Callable[[Leader], None], count: int = 2, fails: str = "", at: int = 1
) -> list[Ended]:
    """Lead and follow in processes; each prints what its part has done."""

    def work(ranks: Ranks) -> int:
        part = Notes(ranks, fails if ranks.index == at else "")
        try:
            if not ranks.is_first:
                return follow(ranks, part, most_rows=4)
            with leading(ranks, part, 4, shielded=False) as leader:
                lead(leader)
            return 0
        finally:
            print(json.dumps(part.done), flush=True)

    def recipe() -> int:
        return leaving.among_ranks(work, use_gpus=False)

    return run_ranks(recipe, [], count, folder)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_recipes.ranks.SECONDS_TO_SPEAK", 0.3)


def a_batch(leader: Leader) -> None:
    assert [facts["rank"] for facts in leader.load()] == [0, 1, 2]
    leader.allocate(4, 100)
    assert leader.prefill(torch.tensor([[0, 5], [6, 7]]), torch.tensor([1, 2])).shape == (2, 4)
    assert leader.step(torch.tensor([8, 9])).shape == (2, 4)
    leader.keep(torch.tensor([1]))
    leader.step(torch.tensor([10]))
    leader.prefill(torch.tensor([[3]] * 4), torch.tensor([1] * 4))
    assert len(leader.measure()) == 3


def test_the_others_do_what_the_first_does(tmp_path: Path) -> None:
    ends = run(tmp_path, a_batch, count=3)
    assert [end.status for end in ends] == [0, 0, 0], ends
    done = [json.loads(end.out) for end in ends]
    assert done[1] == done[2] == done[0]
    assert done[0][:4] == [
        ["load"],
        ["allocate", 4, 100],
        ["prefill", [[0, 5], [6, 7]], [1, 2]],
        ["step", [8, 9]],
    ]
    assert done[0][4:6] == [["keep", [1]], ["step", [10]]]


def test_one_process_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a single process needs no collective")

    monkeypatch.setattr(torch.distributed, "broadcast", refuse)
    part = Notes(Ranks())
    with leading(Ranks(), part, 4, shielded=True) as leader:
        leader.load()
        leader.prefill(torch.tensor([[5]]), torch.tensor([1]))
        leader.step(torch.tensor([6]))
    assert [what for what, *_ in part.done] == ["load", "prefill", "step"]


def test_a_mistake_of_the_first_ends_all_with_its_message(tmp_path: Path) -> None:
    def lead(leader: Leader) -> None:
        leader.load()
        raise LLMError("the output cannot be written")

    first, second = run(tmp_path, lead)
    assert (first.status, second.status) == (2, 2)
    assert "the output cannot be written" in first.err and second.err == ""


def test_an_interruption_ends_all(tmp_path: Path) -> None:
    def lead(leader: Leader) -> None:
        leader.load()
        try:
            signal.raise_signal(signal.SIGINT)
        finally:  # torchrun hands on what the terminal has sent already
            signal.raise_signal(signal.SIGINT)
            leader.load()

    first, second = run(tmp_path, lead)
    assert (first.status, second.status) == (130, 130)
    assert json.loads(first.out) == [["load"], ["load"]], "what is saved at the end is saved"
    assert "interrupted" in first.err and second.err == ""


def test_an_interruption_in_the_middle_of_a_call_does_too(tmp_path: Path) -> None:
    def interrupted(tokens: Tensor) -> Tensor:
        raise KeyboardInterrupt

    def lead(leader: Leader) -> None:
        leader._part.step = interrupted  # type: ignore[method-assign]
        leader.step(torch.tensor([1]))

    started = time.monotonic()
    first, second = run(tmp_path, lead)
    assert (first.status, second.status) == (130, 2)
    assert "Traceback" not in first.err and second.err == ""
    assert time.monotonic() - started < 20


def test_a_follower_that_fails_says_why(tmp_path: Path) -> None:
    first, second = run(tmp_path, lambda leader: leader.load() and None, fails="load")
    assert (first.status, second.status) == (2, 2)
    assert "load failed on rank 1" in second.err
    assert "another process of this model has ended" in first.err
    assert "Traceback" not in first.err + second.err


def test_a_process_that_failed_on_a_gpu_does_not_wait_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never() -> None:
        time.sleep(60)  # NCCL's groups, whose work is never done

    monkeypatch.setattr(leaving, "_computed_on_gpus", lambda: True)
    monkeypatch.setattr(leaving, "end_ranks", never)
    started = time.monotonic()
    first, second = run(tmp_path, lambda leader: leader.load() and None, fails="load")
    assert (first.status, second.status) == (2, 2)
    assert "load failed on rank 1" in second.err
    assert time.monotonic() - started < 20


def test_of_two_that_fail_alike_the_first_speaks(tmp_path: Path) -> None:
    first, second = run(tmp_path, lambda leader: leader.load() and None, fails="load", at=0)
    assert (first.status, second.status) == (2, 2)
    assert "load failed on rank 0" in first.err and second.err == ""


def test_signals_wait_for_the_end_of_a_call_on_a_gpu() -> None:
    came: list[str] = []

    def step(tokens: Tensor) -> Tensor:
        signal.raise_signal(signal.SIGTERM)
        came.append("the call ended")
        return tokens

    def terminate(*_: Any) -> None:
        raise Terminated

    part = Notes(Ranks())
    part.step = step  # type: ignore[method-assign]
    channel = Channel(Ranks(), 4)
    channel.alone = False
    channel.send = lambda *_, **__: None  # type: ignore[method-assign]
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(Terminated):
            Leader(channel, part, shielded=True).step(torch.tensor([1]))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == ["the call ended"]


def test_a_follower_leaves_after_sigterm_though_it_waits(tmp_path: Path) -> None:
    def lead(leader: Leader) -> None:
        time.sleep(5)

    def recipe() -> int:
        ranks = start_ranks(use_gpus=False)
        leaving.leave_signals_to_first(ranks)
        if ranks.is_first:
            with leading(ranks, Notes(ranks), 4, shielded=False) as leader:
                lead(leader)
            return 0
        leaving.SECONDS_TO_LEAVE = 0.2
        signal.raise_signal(signal.SIGTERM)
        return follow(ranks, Notes(ranks), 4)

    started = time.monotonic()
    first, second = run_ranks(recipe, [], 2, tmp_path)
    assert second.status == 143 and second.err == ""
    assert first.status == 0 and "Traceback" not in first.err, first.err
    assert time.monotonic() - started < 20
