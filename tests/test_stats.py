import itertools
import math

import numpy as np
import pytest
import scipy.stats

from brite_lib.stats import (
    bootstrap_ci,
    majority_at_k,
    mcnemar,
    minimum_detectable_difference,
    paired_difference,
    pass_at_k,
    t_interval,
    wilson_interval,
)


@pytest.mark.parametrize(("n", "c", "k"), [(n, c, k) for n in range(1, 7) for c in range(n + 1) for k in range(1, n + 1)])
def test_pass_at_k_by_enumeration(n, c, k):
    samples = [True] * c + [False] * (n - c)
    draws = [any(draw) for draw in itertools.combinations(samples, k)]
    assert pass_at_k(n, c, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_pass_at_k_by_hand():
    # 4 samples, 1 right: two of them hold it in 3 of 6 draws; 2 right: miss only in 1 of 6; 3 right: never missed.
    assert pass_at_k(4, [0, 1, 2, 3, 4], 2) == pytest.approx([0, 1 / 2, 5 / 6, 1, 1])
    assert pass_at_k([10, 20], [3, 3], 1) == pytest.approx([0.3, 0.15])
    assert pass_at_k(100_000, 1, 50_000) == pytest.approx(0.5)
    assert isinstance(pass_at_k(10, 3, 1), float)
    for n, c, k, words in (
        (4, 5, 1, "c = 5"),
        (4, -1, 1, "c = -1"),
        ([9, 4], 2, 5, "pass@5 .* n = 4"),
        (4, 2, 0, "pass@0"),
        (4, 2, 1.5, "whole"),
        (math.nan, 2, 1, "whole"),
        ([], [], 1, "none"),
    ):
        with pytest.raises(ValueError, match=words):
            pass_at_k(n, c, k)


def test_majority_by_hand():
    predictions = [["7", "7", "3"], ["7", "3", "3"], ["7", "3", "5"], [None, None, "7"], [None, None, None], ["7", "3", None]]
    correct = [[text == "7" for text in row] for row in predictions]
    assert majority_at_k(predictions, correct).tolist() == pytest.approx([1, 0, 1 / 3, 1, 0, 1 / 2])
    assert majority_at_k(predictions[:2], correct[:2], k=1).tolist() == [1, 1]
    assert majority_at_k([["7", "7"]], [[None, None]]).tolist() == [0]
    for predictions, correct, k, words in (
        ([["7"]], [[True]], 2, "k = 2 predictions"),
        ([["7"]], [[True]], 0, "at least 1"),
        ([], [], 2, "none"),
    ):
        with pytest.raises(ValueError, match=words):
            majority_at_k(predictions, correct, k)


def test_bootstrap():
    mean, low, high = bootstrap_ci([0, 1] * 200, seed=3)
    assert mean == 0.5
    assert (low, high) == pytest.approx((0.5 - 1.96 * 0.025, 0.5 + 1.96 * 0.025), abs=0.006)  # sd of the mean: 0.5 / sqrt(400)
    assert bootstrap_ci([0, 1] * 200, seed=3) == (mean, low, high)
    assert bootstrap_ci([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)
    single = bootstrap_ci([0.5])
    assert single[0] == 0.5 and math.isnan(single[1]) and math.isnan(single[2])
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            bootstrap_ci(bad)
    for settings in ({"level": 1.5}, {"resamples": 0}):
        with pytest.raises(ValueError, match="level between"):
            bootstrap_ci([0, 1], **settings)


def exact_coverage(n, accuracy):
    """Of bootstrap_ci on n one-sample verdicts: no simulation, its interval for every number of right ones that may come up."""
    share = scipy.stats.binom.pmf(np.arange(n + 1), n, accuracy)
    intervals = {right: bootstrap_ci([1] * right + [0] * (n - right)) for right in np.flatnonzero(share > 1e-5)}
    return sum(share[right] for right, (_, low, high) in intervals.items() if low <= accuracy <= high)


@pytest.mark.parametrize("accuracy", [0.1, 0.5, 0.8])
def test_the_bootstrap_covers_from_200_problems_on(accuracy):
    assert exact_coverage(200, accuracy) == pytest.approx(0.95, abs=0.015)


def test_the_bootstrap_is_too_narrow_for_a_small_benchmark_near_its_end():
    """A limit that docs/results/coverage.md states: 30 problems, as AIME has, at 95 %."""
    assert exact_coverage(30, 0.95) < 0.8


def test_t_interval_by_hand():
    # mean 3, s = sqrt(2.5), t(0.975, 4) = 2.776445; half width 2.776445 * sqrt(2.5 / 5) = 1.963243
    assert t_interval([1, 2, 3, 4, 5]) == pytest.approx((3, 3 - 1.963243, 3 + 1.963243), abs=1e-6)


def test_paired_difference_by_hand():
    # differences 0.1, 0.2, 0.3: mean 0.2, s = 0.1, t(0.975, 2) = 4.302653; half width 4.302653 * 0.1 / sqrt(3) = 0.248414
    result = paired_difference([0.5, 0.7, 0.9], [0.4, 0.5, 0.6])
    assert (result.mean, result.low, result.high) == pytest.approx((0.2, 0.2 - 0.248414, 0.2 + 0.248414), abs=1e-6)
    assert result.values == pytest.approx((0.1, 0.2, 0.3)) and result.n == 3
    one = paired_difference([0.5], [0.25])
    assert one.mean == 0.25 and math.isnan(one.low) and math.isnan(one.high)
    with pytest.raises(ValueError, match="same seeds"):
        paired_difference([1, 2], [1])
    with pytest.raises(ValueError, match="finite"):
        paired_difference([1, math.nan], [1, 1])


@pytest.mark.parametrize("seeds", [3, 5])
@pytest.mark.parametrize("effect", [0.005, 0.05])
def test_the_paired_interval_covers_with_few_seeds(seeds, effect):
    """4,000 experiments: seeds move both methods alike (0.03) and each on its own (effect); 1,000 test problems add their noise."""
    rng = np.random.default_rng(seeds)
    common = rng.normal(0, 0.03, (4000, seeds))
    a, b = (rng.binomial(1000, np.clip(mean + common + rng.normal(0, effect, common.shape), 0, 1)) / 1000 for mean in (0.62, 0.58))
    found = [paired_difference(x, y) for x, y in zip(a, b, strict=True)]
    assert np.mean([result.low <= 0.04 <= result.high for result in found]) == pytest.approx(0.95, abs=0.015)


def test_mcnemar_by_hand():
    # 5 problems only a gets right, 1 only b: P(at most 1 or at least 5 of 6 throws) = 2 * (1 + 6) / 64
    a = [1, 1, 1, 1, 1, 0, 1, 0]
    b = [0, 0, 0, 0, 0, 1, 1, 0]
    result = mcnemar(a, b)
    assert (result.only_a, result.only_b, result.p_value) == (5, 1, pytest.approx(14 / 64))
    assert mcnemar([True, False], [True, False]).p_value == 1
    for bad in (([1, 0], [1]), ([], []), ([1, 0.5], [1, 0]), ([1, math.nan], [1, 0])):
        with pytest.raises(ValueError, match="one verdict, true or false"):
            mcnemar(*bad)


def test_minimum_detectable_difference():
    # n = 1000, d = 0.2: 1000·0.0395737² = 1.566078, and (1.959964·√0.2 + 0.841621·√(0.2 − 0.0395737²))² = (0.876523 + 0.374907)²
    assert minimum_detectable_difference(1000, 0.2) == pytest.approx(0.0395737, abs=1e-7)
    small, large = (minimum_detectable_difference(30, share) for share in (0.05, 0.2))  # both raised to the difference itself
    assert small == pytest.approx(large, abs=1e-6) and small > 0.2
    assert minimum_detectable_difference(1) == 1
    for bad in ({"problems": 0}, {"problems": 10, "discordant": 0}, {"problems": 10, "power": 1}):
        with pytest.raises(ValueError, match="minimum_detectable_difference needs"):
            minimum_detectable_difference(**bad)


def test_the_difference_is_found_with_its_power():
    """4,000 benchmarks of 500 problems, 20 % discordant; the exact test is a little weaker than its approximation."""
    difference = minimum_detectable_difference(500, 0.2)
    counts = np.random.default_rng(0).multinomial(500, [(0.2 + difference) / 2, (0.2 - difference) / 2, 0.8], size=4000)
    p_values = {pair: scipy.stats.binomtest(pair[0], sum(pair)).pvalue for pair in {(int(a), int(b)) for a, b, _ in counts}}
    assert np.mean([p_values[int(a), int(b)] < 0.05 for a, b, _ in counts]) == pytest.approx(0.78, abs=0.03)


def test_wilson_by_hand():
    mean, low, high = wilson_interval([1, 1, 1, 0])  # z = 1.959964: (p + z²/2n ± z·√(p(1−p)/n + z²/4n²)) / (1 + z²/n)
    assert (mean, low, high) == pytest.approx((0.75, 0.3006418, 0.9544127), abs=1e-6)
    assert wilson_interval([1] * 500)[1:] == pytest.approx((500 / (500 + 1.959964**2), 1.0), abs=1e-7)
    for bad in ([], [0.5], [[1]]):
        with pytest.raises(ValueError, match="list of 0 and 1"):
            wilson_interval(bad)
