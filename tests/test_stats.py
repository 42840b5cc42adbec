import itertools
import math

import numpy as np
import pytest

from brite_lib.stats import bootstrap_ci, majority_at_k, paired_difference, pass_at_k, t_interval


@pytest.mark.parametrize(("n", "c", "k"), [(n, c, k) for n in range(1, 7) for c in range(n + 1) for k in range(1, n + 1)])
def test_pass_at_k_by_enumeration(n, c, k):
    samples = [True] * c + [False] * (n - c)
    draws = [any(draw) for draw in itertools.combinations(samples, k)]
    assert pass_at_k(n, c, k) == pytest.approx(sum(draws) / len(draws), abs=1e-12)


def test_pass_at_k_by_hand():
    # 4 samples, 1 right: two of them hold it in 3 of 6 draws; 2 right: miss only in 1 of 6; 3 right: never missed.
    assert pass_at_k(4, [0, 1, 2, 3, 4], 2) == pytest.approx([0, 1 / 2, 5 / 6, 1, 1])
    assert pass_at_k([10, 20], [3, 3], 1) == pytest.approx([0.3, 0.15])
    assert float(pass_at_k(100_000, 1, 50_000)) == pytest.approx(0.5)
    for n, c, k in ((4, 5, 1), (4, -1, 1), (4, 2, 5), (4, 2, 0)):
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(n, c, k)


def test_majority_by_hand():
    predictions = [["7", "7", "3"], ["7", "3", "3"], ["7", "3", "5"], [None, None, "7"], [None, None, None], ["7", "3", None]]
    correct = [[text == "7" for text in row] for row in predictions]
    assert majority_at_k(predictions, correct).tolist() == pytest.approx([1, 0, 1 / 3, 1, 0, 1 / 2])
    assert majority_at_k(predictions[:2], correct[:2], k=1).tolist() == [1, 1]
    assert majority_at_k([["7", "7"]], [[None, None]]).tolist() == [0]
    with pytest.raises(ValueError, match="maj@k"):
        majority_at_k([["7"]], [[True]], k=2)


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


def test_bootstrap_covers():
    """Of 300 samples of 60 coin throws, about 95 % of the intervals hold the truth."""
    throws = np.random.default_rng(0).integers(0, 2, (300, 60))
    covered = [low <= 0.5 <= high for _, low, high in (bootstrap_ci(row, resamples=500) for row in throws)]
    assert 0.90 <= np.mean(covered) <= 0.98


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
