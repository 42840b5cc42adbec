"""Statistics of evaluation: unbiased pass@k, majority vote, intervals that say what they vary over, and McNemar's test.

Two sources of chance must not be mixed up: the problems of the test set (:func:`bootstrap_ci`, and :func:`wilson_interval`
where every problem has one answer) and the training seeds (:func:`t_interval`, :func:`paired_difference`). A bootstrap over
3-5 seeds covers far less than it claims, so seeds get a t-interval. docs/results/coverage.md has the measured coverage
of all, and where it fails.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
import scipy.stats
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class PairedDifference:
    """Mean of the per-seed differences a − b with its t-interval; ``values`` are the differences, ``n`` their number."""

    mean: float
    low: float
    high: float
    values: tuple[float, ...]
    n: int


@dataclass(frozen=True)
class McNemar:
    """How many problems only one of two models gets right, and the exact two-sided p-value of their being equally good."""

    only_a: int
    only_b: int
    p_value: float


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> NDArray[np.float64] | np.float64:
    """Unbiased probability that at least one of k samples is right, 1 − C(n−c, k) / C(n, k) (Chen et al. 2021, eq. 1).

    Args:
        n: samples per problem; broadcast against ``c``.
        c: right ones among them.
        k: samples that count.

    Returns:
        One value per problem, of the broadcast shape; a number for two numbers.

    Raises:
        ValueError: without a problem, or unless 0 ≤ c ≤ n and 1 ≤ k ≤ n are whole numbers for each.
    """
    n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if n.size == 0:
        raise ValueError(f"pass@{k} needs predictions, there are none")
    whole = (n == np.floor(n)) & (c == np.floor(c)) & (k == math.floor(k))
    if not (good := whole & (c >= 0) & (c <= n) & (k >= 1) & (k <= n)).all():
        found = f"n = {n[~good][0]}, c = {c[~good][0]}"
        raise ValueError(f"pass@{k} needs 1 <= k <= n samples and 0 <= c <= n right ones, whole numbers, found {found}")
    wrong = n - c
    few = wrong < k  # any k samples then hold a right one
    log_factorial = scipy.special.gammaln
    # log C(n-c, k) - log C(n, k); the clipped places are not used.
    top = log_factorial(wrong + 1.0) - log_factorial(np.where(few, 0, wrong - k) + 1.0)
    bottom = log_factorial(n + 1.0) - log_factorial(n - k + 1.0)
    return np.where(few, 1.0, 0.0 - np.expm1(top - bottom))[()]


def majority_at_k(
    predictions: Sequence[Sequence[str | None]], correct: Sequence[Sequence[bool | None]], k: int | None = None
) -> NDArray[np.float64]:
    """Accuracy of the most frequent prediction among the first k samples, per problem (self-consistency).

    Equal texts are one candidate. Among tied candidates one is drawn at random: the value is the expected accuracy,
    1/2 for a right and a wrong candidate with equally many votes. None has no vote; with no votes at all it is 0.

    Args:
        predictions: extracted answers, one list of samples per problem.
        correct: verdicts of the same shape; not judged (None) counts as wrong.
        k: samples per problem that vote; None: all.

    Returns:
        (problems,) values in [0, 1].

    Raises:
        ValueError: without a problem, if k < 1 or a problem has fewer than k samples, or the shapes differ.
    """
    if len(predictions) == 0:
        raise ValueError("maj@k needs predictions, there are none")
    if k is not None and k < 1:
        raise ValueError(f"maj@k: k must be at least 1, found {k}")
    values = []
    for texts, verdicts in zip(predictions, correct, strict=True):
        if len(texts) != len(verdicts) or len(texts) < (k or 1):
            raise ValueError(f"maj@k: needs k = {k or 'all'} predictions with verdicts per problem, found {len(texts)} and {len(verdicts)}")
        votes = [(text, bool(verdict)) for text, verdict in zip(texts[:k], verdicts[:k], strict=True) if text is not None]
        counts = Counter(text for text, _ in votes)
        winners = {text for text, count in counts.items() if count == max(counts.values())}
        verdict_of = dict(votes)
        values.append(sum(verdict_of[text] for text in winners) / len(winners) if winners else 0.0)
    return np.array(values, dtype=np.float64)


def bootstrap_ci(per_problem_values: ArrayLike, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """Mean over problems with a percentile bootstrap interval: how much the choice of problems matters.

    Args:
        per_problem_values: (problems,) finite values.
        level: coverage.
        resamples: number of resampled problem sets.
        seed: of the resampling; the same seed gives the same interval.

    Returns:
        (mean, low, high); the interval is nan for fewer than two problems.

    Raises:
        ValueError: for no values, values that are not finite, a level outside (0, 1), or no resamples.
    """
    values = np.asarray(per_problem_values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError("bootstrap_ci needs a non-empty list of finite values, one per problem")
    if not 0 < level < 1 or resamples < 1:
        raise ValueError(f"bootstrap_ci needs a level between 0 and 1 and resamples >= 1, found {level} and {resamples}")
    mean = float(values.mean())
    if values.size < 2:
        return mean, math.nan, math.nan
    interval = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=resamples, confidence_level=level, method="percentile", batch=100, rng=np.random.default_rng(seed)
    ).confidence_interval
    return mean, float(interval.low), float(interval.high)


def wilson_interval(right: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Share of right answers, one answer per problem, with Wilson's score interval: it holds also where hardly any is right, or wrong.

    Args:
        right: (problems,) of 0 and 1.
        level: coverage (docs/results/coverage.md has the measured one, beside the bootstrap's).

    Returns:
        (mean, low, high).

    Raises:
        ValueError: for no values, or others than 0 and 1.
    """
    right = np.asarray(right, dtype=np.float64)
    if right.ndim != 1 or right.size == 0 or not np.isin(right, (0.0, 1.0)).all():
        raise ValueError("wilson_interval needs a non-empty list of 0 and 1, one per problem")
    found = scipy.stats.binomtest(int(right.sum()), right.size).proportion_ci(level, method="wilson")
    return float(right.mean()), float(found.low), float(found.high)


def t_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Mean of a few independent runs with Student's t-interval, n − 1 degrees of freedom.

    Returns:
        (mean, low, high); the interval is nan for a single run.

    Raises:
        ValueError: for no values.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError("t_interval needs a non-empty list of values, one per run")
    mean = float(values.mean())
    if values.size == 1:
        return mean, math.nan, math.nan
    half = scipy.stats.t.ppf((1 + level) / 2, values.size - 1) * values.std(ddof=1) / math.sqrt(values.size)
    return mean, mean - float(half), mean + float(half)


def paired_difference(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> PairedDifference:
    """How much better a is than b, from runs that share their seeds.

    Args:
        a: (seeds,) one value per seed.
        b: (seeds,) the other method's values, same seeds in the same order.
        level: coverage of the t-interval (n − 1 degrees of freedom; nan for one seed).

    Raises:
        ValueError: if the lengths differ, there are no values, or one is not finite.
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape:
        raise ValueError(f"paired values must have the same seeds, found {a.size} and {b.size} values")
    if not np.isfinite([a, b]).all():
        raise ValueError("paired values must be finite, found one that is not")
    difference = a - b
    mean, low, high = t_interval(difference, level)
    return PairedDifference(mean, low, high, tuple(difference.tolist()), difference.size)


def mcnemar(a: ArrayLike, b: ArrayLike) -> McNemar:
    """Whether two models with one answer per problem differ: McNemar's test in its exact, binomial form.

    Args:
        a: (problems,) verdicts of one model, true or false.
        b: (problems,) the other model's, same problems in the same order.

    Raises:
        ValueError: if the lengths differ, there are no problems, or a value is neither true (1) nor false (0).
    """
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0 or not np.isin([a, b], (0, 1)).all():
        raise ValueError(f"mcnemar needs one verdict, true or false, per problem and model, found shapes {a.shape} and {b.shape}")
    only_a, only_b = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    p_value = scipy.stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return McNemar(only_a, only_b, float(p_value))


def minimum_detectable_difference(problems: int, discordant: float = 0.2, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest true difference of two one-sample accuracies that McNemar's test finds with this power.

    The normal approximation (Connor 1987): n·δ² = (z₁·√d + z₂·√(d − δ²))². Models that were trained from the same base
    agree on most problems; 0.2 is a guess on the large side. More samples per problem find smaller differences.

    Args:
        problems: n, size of the benchmark.
        discordant: d, share of the problems that only one of the two gets right; at least δ, and raised to it.
        power: chance to find the difference.
        level: 1 − the chance to find one where none is.

    Returns:
        δ, as a share of the problems; 1 at the most.

    Raises:
        ValueError: unless n ≥ 1, and d, power and level lie in (0, 1).
    """
    if problems < 1 or not all(0 < share < 1 for share in (discordant, power, level)):
        raise ValueError("minimum_detectable_difference needs problems >= 1, and discordant, power and level between 0 and 1")
    z1, z2 = scipy.stats.norm.ppf([(1 + level) / 2, power])
    difference, previous = 0.0, -1.0
    while difference > previous + 1e-9:  # grows, and ends at once unless it exceeds the discordant share
        share, previous = max(discordant, difference), difference
        root = math.sqrt(max(0.0, z1**2 * problems * share - (problems + z2**2) * (z1**2 - z2**2) * share))
        difference = min(1.0, (z1 * math.sqrt(problems * share) + root) / (problems + z2**2))
    return float(difference)
