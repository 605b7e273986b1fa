"""Which threads win: on machines that are noisy, that slow down, where the default hurts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_system import add_cpus, add_files

from llm_recipes.gguf.sweep import (
    Found,
    Measure,
    Plan,
    Setting,
    Tried,
    Work,
    plan_for,
    sweep,
    together,
)
from llm_recipes.gguf.threads import granted_cores

Speed = Callable[[Setting], float]


def plan_of(
    system: Path, cpus: set[int], cores: int, threads: int = 1, work: Work = "generate"
) -> Plan:
    """A plan for CPUs of a node that has so many cores."""
    add_cpus(system, [[n + cores * t for t in range(threads)] for n in range(cores)])
    return plan_for(granted_cores(system, {}, cpus), work)


def measuring(speed: Speed, noise: float = 0, drift: float = 0) -> Measure:
    """Measurements with this relative noise, each slower by `drift` than the one before."""
    state = {"scale": 1.0}
    chance = random.Random(7)

    def rate(setting: Setting, tokens: int) -> float:
        state["scale"] *= 1 - drift
        return speed(setting) * state["scale"] * (1 + noise * chance.uniform(-1, 1))

    return rate


def run(plan: Plan, speed: Speed, noise: float = 0, drift: float = 0, repeats: int = 3) -> Found:
    return sweep(plan, measuring(speed, noise, drift), tokens=32, repeats=repeats)


def test_what_is_tried(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set(range(16)), cores=8, threads=2)
    assert plan.first == (Setting(8),)  # the default and what was granted are the same
    assert [setting.threads for setting in plan.fewer] == [6, 4, 3, 2, 1]
    assert [setting.threads for setting in plan.more] == [16]


def test_what_is_tried_of_a_part_of_a_node(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {0, 1, 8, 9}, cores=8, threads=2)
    assert plan.first == (Setting(8), Setting(2, pinned=True))
    assert plan.fewer == (Setting(1, pinned=True),)
    assert plan.more == (Setting(4),)


@pytest.mark.parametrize(
    ("quota", "work", "granted", "fewer", "more"),
    [
        (1.25, "generate", 1, [], [2]),
        (1.25, "prompt", 2, [1], []),
        (2.5, "generate", 3, [2, 1], []),
        (2.5, "prompt", 3, [2, 1], []),
        (0.3, "prompt", 1, [], []),
    ],
)
def test_what_is_tried_under_a_quota(
    quota: float, work: Work, granted: int, fewer: list[int], more: list[int], tmp_path: Path
) -> None:
    maximum = f"{round(quota * 100_000)} 100000"
    add_files(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": maximum})
    plan = plan_of(tmp_path, set(range(8)), cores=8, work=work)
    assert plan.first == (Setting(8), Setting(granted))
    assert [setting.threads for setting in plan.fewer] == fewer
    assert [setting.threads for setting in plan.more] == more


def test_fast_cores_alone_are_tried(tmp_path: Path) -> None:
    slow = dict.fromkeys(range(3, 8), 400)
    add_cpus(tmp_path, [(n,) for n in range(8)], speeds=slow)
    plan = plan_for(granted_cores(tmp_path, {}, range(8)), "prompt")
    assert plan.granted.threads == 8
    assert Setting(3) in plan.fewer


def test_numa_strategies_are_compared(tmp_path: Path) -> None:
    add_cpus(tmp_path, [(n,) for n in range(4)], nodes=["0-1", "2-3"])
    cores = granted_cores(tmp_path, {}, range(4))
    spread = Setting(4, numa="distribute")
    assert plan_for(cores, "generate").first == (Setting(4), spread)
    assert plan_for(cores, "prompt", "distribute").first == (Setting(4), spread)
    assert plan_for(cores, "prompt", "none").first == (Setting(4),)
    plan = plan_for(cores, "generate")
    found = run(plan, lambda s: s.threads * (1.5 if s.numa == "distribute" else 1))
    assert found.best == spread


def test_fewer_threads_win_where_memory_is_the_limit(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set(range(16)), cores=16)
    found = run(plan, lambda s: min(s.threads, 6) - 0.05 * s.threads, noise=0.02)
    assert found.best.threads == 6
    assert "times llama.cpp's default" in found.why


def test_it_stops_when_it_gets_worse(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set(range(64)), cores=64)
    found = run(plan, lambda s: s.threads)
    assert [one.setting.threads for one in found.tried] == [64, 48]
    assert (found.best, found.why) == (
        Setting(64),
        "llama.cpp's default: nothing else came close",
    )


@pytest.mark.parametrize("drift", [0.0, 0.03])
@pytest.mark.parametrize("seed", range(5))
def test_the_default_wins_ties(seed: int, drift: float, tmp_path: Path) -> None:
    plan = plan_of(tmp_path, set(range(8)), cores=8)
    chance = random.Random(seed)
    found = run(plan, lambda s: 10 + chance.uniform(-0.1, 0.1), drift=drift)
    assert found.best == plan.default
    assert len(found.tried) > 2


def test_a_gain_must_be_there_in_every_round(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {0, 1}, cores=2)
    rates = iter([10, 9.9, 10, 12, 12, 10, 10, 9.5])  # a look each, then three rounds
    found = sweep(plan, lambda setting, tokens: next(rates), 32, 3)
    assert [one.rates for one in found.tried] == [[10, 10, 10], [12, 12, 9.5]]
    assert found.best == plan.default


def test_a_gain_must_be_more_than_noise(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {0, 1}, cores=2)
    noisy = iter([10, 9.9, 10, 10.6, 14, 13, 13, 13.9])  # the default: 10, 13, 13
    assert sweep(plan, lambda setting, tokens: next(noisy), 32, 3).best == plan.default
    calm = iter([10, 9.9, 10, 10.6, 10.8, 10.1, 10.1, 10.7])
    assert sweep(plan, lambda setting, tokens: next(calm), 32, 3).best == Setting(1)


def test_without_a_winner_it_is_the_granted_cores_unless_they_are_slower(tmp_path: Path) -> None:
    """As before tuning: under a quota the default wastes what it was granted."""
    add_files(tmp_path, {"proc/self/cgroup": "0::/", "sys/fs/cgroup/cpu.max": "100000 100000"})
    plan = plan_of(tmp_path, {0, 1}, cores=2)
    assert (plan.default, plan.granted) == (Setting(2), Setting(1))
    faster = iter([10, 10, 10, 13, 12, 12.9, 10, 13])  # not in the second round
    chosen = sweep(plan, lambda setting, tokens: next(faster), 32, 3)
    assert chosen.best == plan.granted and "1.30 times the default" in chosen.why
    slower = iter([10, 10, 10, 9, 12, 10, 10, 9.5])
    assert sweep(plan, lambda setting, tokens: next(slower), 32, 3).best == plan.default


def test_rounds_go_back_and_forth(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {0, 1}, cores=2)
    asked: list[tuple[int, int]] = []

    def rate(setting: Setting, tokens: int) -> float:
        asked.append((setting.threads, tokens))
        return 1.0

    sweep(plan, rate, 32, 3)
    assert asked == [(2, 8), (1, 8), (2, 32), (1, 32), (1, 32), (2, 32), (2, 32), (1, 32)]


def test_a_hopeless_default_is_looked_at_once(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {0, 1, 2, 3}, cores=8)
    found = run(plan, lambda s: 0.27 if s.threads == 8 else 3.0 * s.threads)
    assert found.best.threads == 4
    assert found.why == "llama.cpp's default is less than half as fast"
    assert {one.setting.threads: len(one.rates) for one in found.tried}[8] == 0


def test_a_single_cpu(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, {0}, cores=1)
    assert plan.first == (Setting(1),)
    found = run(plan, lambda s: 5)
    assert (found.best, len(found.tried[0].rates)) == (Setting(1), 3)


def found(rates: dict[Setting, float], best: Setting) -> Found:
    """What a sweep has found without noise; a rate of less than 2 was only looked at."""
    tried = [Tried(s, rate, [rate] * 3 if rate >= 2 else []) for s, rate in rates.items()]
    return Found(tuple(tried), best, "")


DEFAULT, FEW, MANY = Setting(8), Setting(3, pinned=True), Setting(6)


@pytest.mark.parametrize(
    ("generate", "prompt", "expected"),
    [
        # The same mask: each has its best.
        ({DEFAULT: 9, FEW: 20}, {DEFAULT: 9, FEW: 20}, (FEW, FEW)),
        # Generation gains more by its mask than prompts by more threads.
        ({DEFAULT: 9, FEW: 20}, {DEFAULT: 9, FEW: 11, MANY: 12}, (FEW, FEW)),
        # Prompts would be slower than the default with that mask: generation gives it up.
        ({DEFAULT: 9, FEW: 20}, {DEFAULT: 9, FEW: 8, MANY: 12}, (DEFAULT, MANY)),
        # A hopeless default was only looked at, as what is far from the best.
        ({DEFAULT: 0.1, FEW: 20}, {DEFAULT: 0.1, FEW: 1.5, MANY: 3}, (FEW, FEW)),
    ],
)
def test_one_process_has_one_mask(
    generate: dict[Setting, float], prompt: dict[Setting, float], expected: tuple[Setting, Setting]
) -> None:
    bests = [max(rates, key=lambda setting: rates[setting]) for rates in (generate, prompt)]
    pair = together(found(generate, bests[0]), found(prompt, bests[1]), DEFAULT)
    assert tuple(one.best for one in pair) == expected


def test_nodes_are_distributed_for_both_or_for_neither() -> None:
    spread = Setting(6, numa="distribute")
    pair = together(found({DEFAULT: 9, spread: 10}, spread), found({DEFAULT: 9}, DEFAULT), DEFAULT)
    assert [one.best for one in pair] == [DEFAULT, DEFAULT]
