"""Figures of a benchmark: averages over rounds, how sure they are, the share of the bandwidth.

    from llm_recipes.gguf.bench_figures import Peak, gather
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llm_recipes.gguf.bench_points import DONE, Measurement
from llm_recipes.gguf.bench_results import Result

# 97.5 % quantiles of Student's t by degrees of freedom; above the last one 1.96 is near enough.
T_QUANTILES = [12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23]
T_QUANTILES += [2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09]


@dataclass(frozen=True)
class Peak:
    """Memory bandwidth in bytes/s, of the host and of a GPU; None is unknown. gpus: how many."""

    host: float | None = None
    gpu: float | None = None
    gpus: int = 1
    source: str = "unknown"

    def of(self, model: Mapping[str, Any], setting: Mapping[str, Any]) -> float | None:
        """What a setting can read at best; layers on both sides, or on other hosts: unknown."""
        if setting["hosts"]:
            return None
        if not setting["gpu_layers"]:
            return self.host
        if setting["gpu_layers"] <= model["layers"] or self.gpu is None:
            return None
        # Split by layers, GPUs take turns; by rows or tensors, they read at the same time.
        at_once = self.gpus if setting["split"] in ("row", "tensor") else 1
        return self.gpu * at_once


@dataclass(frozen=True)
class Figure:
    """All that is known of one test of a setting. samples: tokens/s, of each round those of its
    repeats.
    """

    key: str
    model: dict[str, Any]
    setting: dict[str, Any]
    test: Measurement
    samples: tuple[tuple[float, ...], ...]
    status: str
    note: str
    read_bytes: float
    build: dict[str, Any]

    @property
    def values(self) -> list[float]:
        """Independent figures: of each round its mean, of a single round its repeats."""
        if len(self.samples) > 1:
            return [statistics.fmean(samples) for samples in self.samples]
        return list(self.samples[0]) if self.samples else []

    @property
    def rate(self) -> float | None:
        """Tokens/s on average."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Standard deviation of the values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    @property
    def error(self) -> float | None:
        """Half of the 95 % interval of the average, by Student's t."""
        count, spread = len(self.values), self.spread
        return None if spread is None else t_quantile(count - 1) * spread / math.sqrt(count)

    def mbu(self, peak: Peak) -> float | None:
        """Share of the bandwidth that generating reached; None for prompts and where unknown."""
        bandwidth = peak.of(self.model, self.setting)
        if not self.rate or not bandwidth or not self.read_bytes:
            return None
        return self.rate * self.read_bytes / bandwidth


def t_quantile(freedom: float) -> float:
    """97.5 % quantile of Student's t; freedom: at least 1."""
    index = int(freedom) - 1
    return T_QUANTILES[index] if index < len(T_QUANTILES) else 1.96 + 2.4 / freedom


def gather(results: Sequence[Result]) -> list[Figure]:
    """One figure for each test of each setting; what worked once counts before what failed."""
    groups: dict[str, list[Result]] = {}
    for result in results:
        groups.setdefault(result.key, []).append(result)
    figures = []
    for key, group in groups.items():
        done = [result for result in group if result.status == DONE and result.seconds]
        rounds: dict[int, list[float]] = {}
        for result in done:
            rounds.setdefault(result.round, []).extend(result.rates)
        last = (done or group)[-1]
        figures.append(
            Figure(
                key,
                last.model,
                last.setting,
                last.measurement,
                tuple(tuple(rounds[number]) for number in sorted(rounds)),
                last.status,
                last.note,
                last.read_bytes,
                last.build,
            )
        )
    return figures
