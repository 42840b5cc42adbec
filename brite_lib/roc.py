"""How good the judgement of attempts is: AUROC with an interval, error rates, the threshold, calibration.

Notation: labels (n,) say whether an attempt is right, scores (n,) are P(right) as judged; an attempt is accepted from the
threshold on. Attempts at one problem are not independent, so intervals resample problems.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray


def auroc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Probability that a right attempt has a higher score than a wrong one, ties counting half (Mann-Whitney U / n₁n₀).

    Args:
        labels: (n,) bools.
        scores: (n,) numbers.

    Returns:
        a value in [0, 1]; nan if there is one class only.
    """
    labels, ranks = np.asarray(labels, dtype=bool), scipy.stats.rankdata(scores)
    right, wrong = int(labels.sum()), int((~labels).sum())
    if not right or not wrong:
        return math.nan
    return float((ranks[labels].sum() - right * (right + 1) / 2) / (right * wrong))


def auroc_interval(
    labels: ArrayLike, scores: ArrayLike, problems: Sequence[str], resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """AUROC with a 95 % percentile bootstrap interval over problems.

    Args:
        labels: (n,) bools.
        scores: (n,) numbers.
        problems: (n,) problem of each attempt; all attempts at a drawn problem are drawn together.
        resamples: number of resampled problem sets; those of one class only are left out.
        seed: of the resampling.

    Returns:
        (AUROC, low, high); nan for one class only.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    _, group = np.unique(np.asarray(problems), return_inverse=True)
    rows = np.split(np.argsort(group, kind="stable"), np.cumsum(np.bincount(group))[:-1])
    rng, values = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = np.concatenate([rows[i] for i in rng.integers(len(rows), size=len(rows))])
        values.append(auroc(labels[drawn], scores[drawn]))
    known = [value for value in values if not math.isnan(value)]
    low, high = np.quantile(known, [0.025, 0.975]) if known else (math.nan, math.nan)
    return auroc(labels, scores), float(low), float(high)


def error_rates(labels: ArrayLike, accepted: ArrayLike) -> dict[str, float]:
    """``false_accept`` = P(accepted | wrong) and ``false_reject`` = P(rejected | right); nan where there is no such attempt.

    Args:
        labels: (n,) bools.
        accepted: (n,) bools.
    """
    labels, accepted = np.asarray(labels, dtype=bool), np.asarray(accepted, dtype=bool)
    return {
        "false_accept": float(accepted[~labels].mean()) if (~labels).any() else math.nan,
        "false_reject": float((~accepted)[labels].mean()) if labels.any() else math.nan,
    }


def best_threshold(labels: ArrayLike, scores: ArrayLike, false_accept_weight: float = 1.0) -> float:
    """The threshold with the lowest ``false_accept_weight`` · false_accept + false_reject; the highest one of several.

    Candidates lie half-way between neighbouring scores, so that what is as likely as one seen is decided alike. With weight 1
    this is Youden's J.

    Args:
        labels: (n,) bools of both classes.
        scores: (n,) numbers in [0, 1].
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    known = np.unique(scores)
    candidates = np.concatenate([[0.0], (known[1:] + known[:-1]) / 2, [1.0]])
    right, wrong = np.sort(scores[labels]), np.sort(scores[~labels])
    false_reject = np.searchsorted(right, candidates, side="left") / len(right)
    false_accept = 1 - np.searchsorted(wrong, candidates, side="left") / len(wrong)
    cost = false_accept_weight * false_accept + false_reject
    return float(candidates[np.flatnonzero(cost <= cost.min() + 1e-12)[-1]])


def reliability(labels: ArrayLike, scores: ArrayLike, bins: int = 10) -> list[dict[str, float]]:
    """One row per bin of equal width that has attempts: ``low``, ``high``, ``count``, ``score`` (mean), ``right`` (share).

    Args:
        labels: (n,) bools.
        scores: (n,) numbers in [0, 1].
        bins: number of bins.
    """
    labels, scores = np.asarray(labels, dtype=bool), np.asarray(scores, dtype=np.float64)
    of: NDArray[np.int64] = np.minimum((scores * bins).astype(np.int64), bins - 1)
    return [
        {"low": b / bins, "high": (b + 1) / bins, "count": int((of == b).sum())}
        | {"score": float(scores[of == b].mean()), "right": float(labels[of == b].mean())}
        for b in np.unique(of).tolist()
    ]


def calibration_error(table: Sequence[dict[str, float]]) -> float:
    """Expected calibration error of a :func:`reliability` table: mean of |score − share right|, weighted by the bins' counts."""
    total = sum(row["count"] for row in table)
    return sum(row["count"] * abs(row["score"] - row["right"]) for row in table) / total


def summary(rows: Sequence[dict[str, Any]], bins: int = 10, resamples: int = 2000, seed: int = 0) -> dict[str, float]:
    """``auroc`` with its interval over problems, ``ece``, ``false_accept`` and ``false_reject`` of judged attempts.

    Args:
        rows: with ``id``, ``correct``, ``score`` and ``accepted``.
        bins: of the calibration error.
        resamples: of the problems.
        seed: of the resampling.
    """
    right, scores = [row["correct"] is True for row in rows], [row["score"] for row in rows]
    area = auroc_interval(right, scores, [row["id"] for row in rows], resamples=resamples, seed=seed)
    return {
        **dict(zip(("auroc", "auroc/low", "auroc/high"), area, strict=True)),
        "ece": calibration_error(reliability(right, scores, bins)),
        **error_rates(right, [row["accepted"] for row in rows]),
    }
