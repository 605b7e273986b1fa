"""The statistics of comparisons against scipy, published examples, and simulation.

Simulations have fixed seeds; their thresholds are 3.3 standard errors of a binomial share away from
what is promised, so that a right method fails with one seed in a thousand.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from scipy import optimize, stats

from llm_recipes.evaluation import intervals, resampling
from llm_recipes.evaluation.correction import holm
from llm_recipes.evaluation.intervals import ratio_interval, share_interval, wilson, with_interval
from llm_recipes.evaluation.paired import (
    Pair,
    aggregate_test,
    difference,
    difference_interval,
    difference_test,
    effect_size,
    odds_ratio,
    spread_of,
    tango,
)
from llm_recipes.evaluation.power import detectable, detectable_from_errors, detectable_share
from llm_recipes.evaluation.resampling import Numbers, bootstrap_sums, sign_flip_test
from llm_recipes.evaluation.run import Item, Kind, Metric
from llm_recipes.evaluation.units import Scale, Scores

LEVEL = 0.05
Z = 1.959963984540054


def errors(share: float, count: int) -> float:
    """3.3 standard errors of a share."""
    return 3.3 * math.sqrt(share * (1 - share) / count)


def scores(parts: Numbers, wholes: Numbers | None = None, size: int = 1) -> Scores:
    """Items in clusters of a size."""
    count = len(parts)
    return Scores(
        np.asarray(parts, dtype=float),
        np.ones(count) if wholes is None else wholes,
        np.arange(count) // size,
    )


def pair(
    first: Numbers, other: Numbers, kind: Kind = "mean", size: int = 1, scale: Scale = "as is"
) -> Pair:
    return Pair(kind, scale, scores(first, size=size), scores(other, size=size))


def discordant(gained: int, lost: int, items: int) -> Pair:
    """0/1 answers of which so many differ."""
    first, other = np.zeros(items), np.zeros(items)
    other[:gained] = 1
    first[gained : gained + lost] = 1
    return pair(first, other, "right")


# -- against scipy and published examples ---------------------------------------------------------


def test_bootstrap_draws_what_scipy_draws() -> None:
    rng = np.random.default_rng(1)
    parts, wholes = rng.exponential(size=40), rng.uniform(1, 2, 40)
    drawn, drawn_wholes = bootstrap_sums([parts, wholes])
    ours = np.quantile(drawn / drawn_wholes, [0.025, 0.975])

    def ratio(a: Numbers, b: Numbers, axis: int = -1) -> Numbers:
        return a.sum(axis=axis) / b.sum(axis=axis)

    theirs = stats.bootstrap(
        (parts, wholes), ratio, paired=True, method="percentile", n_resamples=20000, random_state=1
    ).confidence_interval
    assert ours == pytest.approx([theirs.low, theirs.high], rel=0.02)


def test_bootstrap_is_the_same_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [np.random.default_rng(2).normal(size=17)]
    whole = bootstrap_sums(columns, 1000)
    monkeypatch.setattr(resampling, "BLOCK", 100)
    assert np.array_equal(bootstrap_sums(columns, 1000)[0], whole[0])
    assert not np.array_equal(bootstrap_sums(columns, 1000, seed=1)[0], whole[0])


@pytest.mark.parametrize("gained", [0, 1, 3, 7, 50])
@pytest.mark.parametrize("lost", [0, 1, 8, 49])
def test_mcnemar_is_a_binomial_test(gained: int, lost: int) -> None:
    expected = stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert difference_test(discordant(gained, lost, 200)).p == pytest.approx(expected, rel=1e-9)
    # flipping the signs of single 0/1 answers is the same test
    signs = np.repeat([1.0, -1.0, 0.0], [gained, lost, 5])
    assert sign_flip_test(signs).p == pytest.approx(expected, rel=1e-9)


def test_published_example() -> None:
    """Airway responsiveness of 21 children before and after transplantation.

    Fagerland, Lydersen and Laake 2013 (BMC Medical Research Methodology 13:91): 7 and 1 discordant
    ones, exact p 0.070; 2014 (Statistics in Medicine 33): Tango's interval 0.026 to 0.517.
    """
    found = discordant(7, 1, 21)
    assert round(difference_test(found).p, 3) == 0.070
    interval = difference_interval(found, 0.95)
    assert interval is not None
    assert [round(end, 3) for end in interval] == [0.026, 0.517]


@pytest.mark.parametrize("counts", [(7, 1, 21), (0, 0, 30), (12, 0, 40), (3, 9, 15), (40, 60, 900)])
def test_tango_ends_where_the_score_test_rejects(counts: tuple[int, int, int]) -> None:
    """The score of the restricted likelihood, maximised by scipy, is z at both ends."""
    gained, lost, items = counts
    low, high = tango(gained, lost, items, Z)
    for end in (low, high):
        if abs(end) > 1 - 1e-9:
            continue
        same = items - gained - lost

        def unlikely(down: float, end: float = end, same: int = same) -> float:
            up, stays = down + end, 1 - 2 * down - end
            if min(up, down, stays) <= 0:
                return math.inf
            return -(gained * math.log(up) + lost * math.log(down) + same * math.log(stays))

        limits = (max(0.0, -end) + 1e-13, (1 - end) / 2 - 1e-13)
        down = optimize.minimize_scalar(
            unlikely, bounds=limits, method="bounded", options={"xatol": 1e-13}
        ).x
        variance = items * (2 * down + end - end**2)
        assert abs(gained - lost - items * end) / math.sqrt(variance) == pytest.approx(Z, rel=1e-3)


def test_no_discordant_answers_leave_a_width() -> None:
    none = difference_interval(discordant(0, 0, 100), 0.95)
    assert none == pytest.approx((-(Z**2) / (100 + Z**2), Z**2 / (100 + Z**2)))
    # 100 answers in 20 clusters are worth 20
    empty = np.zeros(100)
    clustered = difference_interval(pair(empty, empty, "right", size=5), 0.95)
    t = stats.t.ppf(0.975, 19)
    assert clustered == pytest.approx((-(t**2) / (20 + t**2), t**2 / (20 + t**2)))
    means = difference_interval(pair(np.tile([0.0, 1.0], 50), np.tile([0.0, 1.0], 50)), 0.95)
    assert means is not None
    assert means[0] == pytest.approx(-means[1])
    assert means[1] > 0.02


def test_sign_flips_against_scipy() -> None:
    rng = np.random.default_rng(3)

    def mean(values: Numbers, axis: int = -1) -> Numbers:
        return values.mean(axis=axis)

    few = rng.normal(0.4, 1, 11)
    assert sign_flip_test(few).p == pytest.approx(_all_patterns(few))
    whole = rng.integers(-6, 7, 13).astype(float)
    assert sign_flip_test(whole).p == pytest.approx(_all_patterns(whole))
    many = rng.standard_t(3, 80) + 0.3
    tested = sign_flip_test(many)
    assert "10,000 draws" in tested.how
    paired = stats.permutation_test(
        (many, np.zeros(80)),
        lambda a, b, axis=-1: mean(a - b, axis),
        permutation_type="samples",
        n_resamples=20000,
        random_state=4,
        vectorized=True,
    )
    assert tested.p == pytest.approx(float(paired.pvalue), abs=0.008)


def _all_patterns(values: Numbers) -> float:
    """By hand: every pattern of signs."""
    count = len(values)
    signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    return float(np.mean(np.abs(signs @ values) >= abs(values.sum()) - 1e-9))


def test_normal_law_is_what_drawing_says() -> None:
    values = np.random.default_rng(5).normal(0.009, 1, 40000)
    tested = sign_flip_test(values)
    assert "normal law" in tested.how
    drawn = resampling._drawn(values, 0).p
    assert tested.p == pytest.approx(drawn, abs=errors(drawn, 10000))


def test_small_chances_are_drawn_more_often() -> None:
    """Correction for a hundred tests needs p below 1/10001."""
    whole = np.random.default_rng(14).integers(-3, 6, 75).astype(float)
    exact, drawn = sign_flip_test(whole), sign_flip_test(whole / 3)
    assert (exact.how, drawn.how) == ("sign-flip test, exact", "sign-flip test, 1,000,000 draws")
    assert 1e-5 < exact.p < 1e-4
    assert drawn.p == pytest.approx(exact.p, abs=errors(exact.p, 10**6))


def test_whole_numbers_that_are_too_many_are_drawn() -> None:
    sizes = np.random.default_rng(6).integers(-9999, 9999, 3000).astype(float)
    tested = sign_flip_test(sizes)
    assert "exact" not in tested.how
    assert 0 < tested.p <= 1


@pytest.mark.parametrize(("hits", "count"), [(0, 5), (3, 10), (99, 100), (1200, 1668)])
def test_wilson(hits: int, count: int) -> None:
    theirs = stats.binomtest(hits, count).proportion_ci(method="wilson")
    assert wilson(hits / count, count, Z) == pytest.approx((theirs.low, theirs.high))
    answers = np.repeat([1.0, 0.0], [hits, count - hits])
    assert share_interval(answers, np.ones(count), False) == pytest.approx(tuple(theirs))


def test_odds_ratio_is_exact() -> None:
    found = odds_ratio(discordant(10, 4, 50), 0.95)
    share = stats.binomtest(10, 14).proportion_ci(method="exact")
    assert found is not None
    assert (found.ratio, found.low) == pytest.approx((2.5, share.low / (1 - share.low)))
    assert found.high == pytest.approx(share.high / (1 - share.high))
    never = odds_ratio(discordant(5, 0, 50), 0.95)
    assert never is not None
    assert never.ratio is None
    assert never.high is None
    assert odds_ratio(discordant(0, 0, 50), 0.95) is None


def test_holm() -> None:
    # Holm by hand: 4 * 0.005, 3 * 0.01, 2 * 0.03, and never below an earlier one
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_aggregate_is_a_z_test() -> None:
    tested = aggregate_test(20.0, 22.0, (0.6, 0.8))
    assert tested.p == pytest.approx(2 * stats.norm.sf(2.0))
    assert detectable_from_errors((0.6, 0.8), LEVEL) == pytest.approx(Z + stats.norm.ppf(0.8))


def test_effect_sizes_by_hand() -> None:
    first, other = np.array([1.0, 2.0, 3.0, 4.0]), np.array([2.0, 2.0, 5.0, 5.0])
    more = other - first
    found = pair(first, other)
    assert difference(found) == pytest.approx(1.0)
    assert effect_size(found) == pytest.approx(more.mean() / more.std(ddof=1))


def test_ratio_and_exponential_of_it() -> None:
    rng = np.random.default_rng(7)
    wholes = rng.uniform(50, 500, 200)
    first = wholes * (1 + 0.2 * rng.normal(size=200))
    other = first + wholes * 0.1 * rng.normal(0.1, 1, 200)
    plain = Pair("ratio", "as is", scores(first, wholes), scores(other, wholes))
    assert difference(plain) == pytest.approx((other.sum() - first.sum()) / wholes.sum())
    low, high = difference_interval(plain, 0.95) or (0.0, 0.0)
    power = Pair("ratio", "exp", scores(first, wholes), scores(other, wholes))
    slope = math.exp(first.sum() / wholes.sum())
    expected = math.exp(other.sum() / wholes.sum()) - slope
    assert difference(power) == pytest.approx(expected)
    # for small differences an exponential stretches the interval by its slope
    assert difference_interval(power, 0.95) == pytest.approx((low * slope, high * slope), rel=0.1)
    assert difference_test(power).p == pytest.approx(difference_test(plain).p)


def test_swapping_the_models_of_a_ratio_turns_all() -> None:
    rng = np.random.default_rng(8)
    one, two = rng.uniform(1, 2, 50), rng.uniform(1, 2.2, 50)
    longer, shorter = rng.uniform(3, 4, 50), rng.uniform(2, 3, 50)  # other wholes: other tokens
    forth = Pair("ratio", "as is", scores(one, longer), scores(two, shorter))
    back = Pair("ratio", "as is", scores(two, shorter), scores(one, longer))
    assert difference(forth) == pytest.approx(-difference(back))
    assert difference_test(forth).p == pytest.approx(difference_test(back).p)


def test_single_result_in_time() -> None:
    import time

    rng = np.random.default_rng(9)
    items = [
        Item(
            str(n), "d", "t", "p", {"em": float(rng.random() < 0.4), "f1": float(rng.random())},
            cluster=str(n // 6),
        )
        for n in range(1668)
    ]  # fmt: skip
    started = time.process_time()
    for name, kind in (("em", "right"), ("f1", "mean")):
        mean = float(np.mean([item.scores[name] for item in items]))
        found = with_interval(name, Metric(mean, True, kind), items)  # type: ignore[arg-type]
        assert found.low is not None and found.high is not None
        assert 0 <= found.low < mean < found.high <= 1
        assert found.items == 1668
    assert time.process_time() - started < 2  # 0.1 s of a CPU, whatever else runs beside


def test_single_results_without_an_interval() -> None:
    item = Item("1", "d", "t", "p", {"f1": 0.5, "nan": math.nan})
    one = with_interval("f1", Metric(0.5, True, "mean"), [item])
    assert (one.low, one.high, one.items) == (None, None, 1)
    assert with_interval("nan", Metric(math.nan, True, "mean"), [item]).low is None
    bleu = with_interval("bleu", Metric(20.0, True, "aggregate", stderr=0.5), [item])
    assert (bleu.low, bleu.high) == pytest.approx((20 - Z / 2, 20 + Z / 2))


# -- against simulation ---------------------------------------------------------------------------

TRIALS = 1000


def correlated(
    rng: np.random.Generator, clusters: int, size: int, share: float, alike: float
) -> Numbers:
    """0/1 of clusters whose own shares are beta distributed: `alike` is their correlation."""
    scale = (1 - alike) / alike
    shares = rng.beta(share * scale, (1 - share) * scale, clusters)
    return (rng.random((clusters, size)) < shares[:, None]).astype(float).ravel()


def alike_pair(
    rng: np.random.Generator, clusters: int, size: int, changed: float, up: float, alike: float
) -> tuple[Numbers, Numbers]:
    """0/1 answers of two models that differ in clusters: where, and which of them is right."""
    differ = correlated(rng, clusters, size, changed, alike)
    better = correlated(rng, clusters, size, up, alike)
    common = (rng.random(clusters * size) < 0.5).astype(float)
    first = np.where(differ > 0, 1 - better, common)
    return first, np.where(differ > 0, better, common)


def rate(trial: Callable[[np.random.Generator], bool], trials: int = TRIALS) -> float:
    rng = np.random.default_rng(11)
    return sum(trial(rng) for _ in range(trials)) / trials


@pytest.mark.parametrize(("items", "changed"), [(30, 0.3), (400, 0.05), (1668, 0.2)])
def test_mcnemar_keeps_its_level(items: int, changed: float) -> None:
    @cache
    def p(gained: int, lost: int) -> float:
        return difference_test(discordant(gained, lost, items)).p

    def trial(rng: np.random.Generator) -> bool:
        differing = rng.binomial(items, changed)
        gained = rng.binomial(differing, 0.5)
        return p(int(gained), int(differing - gained)) <= LEVEL

    assert rate(trial, 4000) <= LEVEL + errors(LEVEL, 4000)


@pytest.mark.parametrize("items", [10, 60])
def test_sign_flips_keep_their_level(items: int) -> None:
    def trial(rng: np.random.Generator) -> bool:
        return sign_flip_test(rng.standard_t(3, items)).p <= LEVEL

    assert rate(trial) == pytest.approx(LEVEL, abs=errors(LEVEL, TRIALS))


def test_only_clusters_keep_the_level_of_answers_that_are_alike() -> None:
    def reject(rng: np.random.Generator, size: int) -> bool:
        first, other = alike_pair(rng, 60, 6, 0.3, 0.5, 0.6)
        return difference_test(pair(first, other, "right", size)).p <= LEVEL

    assert rate(lambda rng: reject(rng, 1)) > 0.15
    assert rate(lambda rng: reject(rng, 6)) <= LEVEL + errors(LEVEL, TRIALS)


def test_only_correction_keeps_the_level_of_a_family() -> None:
    def smallest(rng: np.random.Generator, correct: bool) -> bool:
        base = rng.normal(size=40)  # the same reference in all: the tests are dependent
        found = [sign_flip_test(rng.normal(size=40) - base).p for _ in range(5)]
        return min(holm(found) if correct else found) <= LEVEL

    assert rate(lambda rng: smallest(rng, False), 400) > LEVEL + errors(LEVEL, 400)
    assert rate(lambda rng: smallest(rng, True), 400) <= LEVEL + errors(LEVEL, 400)


def covers(found: intervals.Interval | None, truth: float) -> bool:
    return found is not None and found[0] <= truth <= found[1]


@pytest.mark.parametrize(("items", "share"), [(10, 0.3), (50, 0.05), (1000, 0.9)])
def test_coverage_of_shares(items: int, share: float) -> None:
    def trial(rng: np.random.Generator) -> bool:
        answers = (rng.random(items) < share).astype(float)
        return covers(share_interval(answers, np.ones(items), False), share)

    assert rate(trial) >= 0.94 - errors(0.95, TRIALS)  # Wilson's is right on average over shares


def test_coverage_of_skewed_means() -> None:
    """Of 20 numbers of a chi-square law the percentile bootstrap covers 89 %."""

    def ours(rng: np.random.Generator) -> bool:
        values = rng.chisquare(1, 20)
        found = ratio_interval(values, np.ones(20), (values.min(), values.max()), resamples=1000)
        return covers(found, 1.0)

    def percentile(rng: np.random.Generator) -> bool:
        (drawn,) = bootstrap_sums([rng.chisquare(1, 20)], 1000)
        low, high = np.quantile(drawn / 20, [0.025, 0.975])
        return covers((low, high), 1.0)

    assert rate(percentile) < 0.91
    assert rate(ours) >= 0.94 - errors(0.95, TRIALS)


def test_coverage_of_means_with_long_tails() -> None:
    """Differences of two models are often so: the studentised bootstrap alone covers 92 %."""

    def both(rng: np.random.Generator) -> tuple[bool, bool]:
        values, ones = rng.standard_t(3, 30), np.ones(30)
        low, high = intervals._studentised(values, ones, 0.95, 1000, 0)
        error = intervals.unit_error(values, ones)
        alone = (values.mean() - high * error, values.mean() - low * error)
        ours = ratio_interval(values, ones, (-9.0, 9.0), resamples=1000)
        return covers(alone, 0.0), covers(ours, 0.0)

    assert rate(lambda rng: both(rng)[0]) < 0.94
    assert rate(lambda rng: both(rng)[1]) >= 0.95 - errors(0.95, TRIALS)


def test_coverage_of_ratios() -> None:
    """Sums over sums with skewed wholes, as nats over bytes."""

    def trial(rng: np.random.Generator) -> bool:
        wholes = rng.lognormal(5, 0.7, 40)
        parts = wholes * rng.gamma(4, 0.25, 40)
        return covers(ratio_interval(parts, wholes, (0.0, 5.0), resamples=1000), 1.0)

    assert rate(trial) >= 0.94 - errors(0.95, TRIALS)


@pytest.mark.parametrize("clusters", [20, 278])
def test_only_clusters_cover_answers_that_are_alike(clusters: int) -> None:
    def both(rng: np.random.Generator) -> tuple[bool, bool]:
        answers = correlated(rng, clusters, 6, 0.4, 0.5).reshape(clusters, 6)
        by_cluster = share_interval(answers.sum(axis=1), np.full(clusters, 6.0), True)
        by_item = share_interval(answers.ravel(), np.ones(answers.size), False)
        return covers(by_item, 0.4), covers(by_cluster, 0.4)

    assert rate(lambda rng: both(rng)[0]) < 0.85
    assert rate(lambda rng: both(rng)[1]) >= 0.95 - errors(0.95, TRIALS)


def test_only_clusters_cover_means_that_are_alike() -> None:
    def trial(rng: np.random.Generator, size: int) -> bool:
        values = (rng.exponential(size=(50, 1)) + 0.5 * rng.exponential(size=(50, 6))).ravel()
        found = scores(values, size=size)
        parts, wholes = found.sums(found.parts), found.sums(found.wholes)
        return covers(ratio_interval(parts, wholes, (0.0, 9.0), resamples=1000), 1.5)

    assert rate(lambda rng: trial(rng, 1), 400) < 0.8
    assert rate(lambda rng: trial(rng, 6), 400) >= 0.94 - errors(0.95, 400)


@pytest.mark.parametrize(
    ("clusters", "size", "changed", "up"),
    [(20, 1, 0.3, 0.7), (400, 1, 0.02, 0.8), (278, 6, 0.2, 0.6), (50, 6, 0.1, 0.8)],
)
def test_coverage_of_paired_shares(clusters: int, size: int, changed: float, up: float) -> None:
    truth = changed * (2 * up - 1)

    def trial(rng: np.random.Generator) -> bool:
        alike = 0.5 if size > 1 else 1e-9
        first, other = alike_pair(rng, clusters, size, changed, up, alike)
        return covers(difference_interval(pair(first, other, "right", size), 0.95), truth)

    assert rate(trial) >= 0.94 - errors(0.95, TRIALS)


def test_coverage_where_hardly_an_answer_differs() -> None:
    """Percentile bootstraps say [0, 0] when no answer differs, which here is often."""

    def trial(rng: np.random.Generator, size: int) -> bool:
        first, other = alike_pair(rng, 60, 6, 0.004, 1 - 1e-9, 0.3)
        return covers(difference_interval(pair(first, other, "right", size), 0.95), 0.004)

    assert rate(lambda rng: trial(rng, 6)) >= 0.95 - errors(0.95, TRIALS)


@pytest.mark.parametrize(("items", "changed"), [(60, 0.3), (400, 0.0), (1668, 0.05), (50000, 0.1)])
def test_what_could_be_detected_is_found_in_80_percent(items: int, changed: float) -> None:
    least = detectable_share(changed, items, LEVEL)
    assert least is not None
    rng = np.random.default_rng(12)
    discordance = max(changed + least**2, least)
    differing = rng.binomial(items, discordance, 4000)
    gained = rng.binomial(differing, (discordance + least) / (2 * discordance))
    chances = 2 * stats.binom.cdf(np.minimum(gained, differing - gained), differing, 0.5)
    assert np.mean(chances <= LEVEL) == pytest.approx(0.8, abs=errors(0.8, 4000))


def test_so_few_items_show_nothing() -> None:
    assert detectable_share(0.5, 5, LEVEL) is None  # 2 / 2^5 is above 0.05
    assert detectable_share(0.5, 6, LEVEL) is not None
    assert detectable(spread_of(pair(np.zeros(5), np.arange(5.0))), LEVEL) is None
    assert detectable(spread_of(discordant(0, 0, 1)), LEVEL) is None


def test_detectable_knows_nothing_of_the_observed_difference() -> None:
    """As much variance, another difference: the same could have been detected."""
    none, large = discordant(20, 20, 400), discordant(42, 2, 400)
    assert difference(large) == 0.1
    assert difference_test(none).p > 0.9 > 0.001 > difference_test(large).p
    assert detectable(spread_of(none), LEVEL) == pytest.approx(
        detectable(spread_of(large), LEVEL), rel=1e-6
    )
    # and where one model has all right and the other none, nothing varies but by chance
    assert (detectable(spread_of(discordant(96, 0, 100)), LEVEL) or 1) < 0.12


def test_detectable_means_and_clusters_are_found_in_80_percent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resampling, "MOST", 0)  # whether p is 1e-4 or 1e-6 is of no matter here

    def means(rng: np.random.Generator, gain: float) -> Pair:
        base = rng.exponential(size=80)
        return pair(base, base + gain + rng.normal(0, 0.5, 80))

    def clusters(rng: np.random.Generator, gain: float) -> Pair:
        up = (0.2 + gain) / 0.4
        return pair(*alike_pair(rng, 278, 6, 0.2, up, 0.3), "right", 6)

    rng = np.random.default_rng(13)
    for make in (means, clusters):
        typical = [detectable(spread_of(make(rng, 0.0)), LEVEL) or 9.0 for _ in range(8)]
        gain = float(np.mean(typical))
        found = rate(lambda g, m=make, d=gain: difference_test(m(g, d)).p <= LEVEL, 500)
        assert found == pytest.approx(0.8, abs=0.03 + errors(0.8, 500))
