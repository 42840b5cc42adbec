"""Judgement of attempts against literals worked by hand."""

import math

import numpy as np
import pytest

from brite_lib.roc import auroc, auroc_interval, best_threshold, calibration_error, error_rates, reliability, summary


def test_auroc_worked_by_hand():
    # pairs of a right and a wrong one: 0.9 > 0.8, 0.9 > 0.1, 0.8 = 0.8 (half), 0.8 > 0.1
    assert auroc([True, False, True, False], [0.9, 0.8, 0.8, 0.1]) == 3.5 / 4
    assert auroc([True, False], [0.1, 0.9]) == 0 and auroc([True, False], [0.5, 0.5]) == 0.5
    assert math.isnan(auroc([True, True], [0.1, 0.2]))


def test_the_interval_resamples_problems_not_attempts():
    rng = np.random.default_rng(0)
    labels = rng.random(80) < 0.5
    scores = np.clip(0.3 * labels + 0.7 * rng.random(80), 0, 1)
    names = [f"q{i}" for i in range(80)]
    area, low, high = auroc_interval(labels, scores, names, resamples=400)
    assert area == auroc(labels, scores) and low < area < high and 0.1 < high - low < 0.4
    again = auroc_interval(np.tile(labels, 9), np.tile(scores, 9), names * 9, resamples=400)  # nine equal attempts per problem say no more
    assert again == pytest.approx((area, low, high))
    assert auroc_interval(labels, scores, names, resamples=400, seed=1) != (area, low, high)
    assert all(math.isnan(value) for value in auroc_interval([True], [0.3], ["q"]))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng, covered = np.random.default_rng(1), 0
    truth = 1 - 0.5 * 0.6**2  # right ones uniform on [0.4, 1.4], wrong ones on [0, 1]
    for trial in range(60):
        labels = rng.random(120) < 0.5
        _, low, high = auroc_interval(labels, rng.random(120) + 0.4 * labels, [str(i) for i in range(120)], resamples=100, seed=trial)
        covered += low <= truth <= high
    assert covered >= 51  # 57 expected; 51 is 3.5 standard deviations less


def test_error_rates_worked_by_hand():
    labels, accepted = [True, True, True, False, False], [True, False, True, True, False]
    assert error_rates(labels, accepted) == {"false_accept": 1 / 2, "false_reject": pytest.approx(1 / 3)}
    assert math.isnan(error_rates([True], [True])["false_accept"])


def test_the_threshold_with_the_lowest_cost():
    labels, scores = [False, True, False, True, True], [0.1, 0.3, 0.5, 0.7, 0.9]
    # from 0.6 on: no false accept, 1 of 3 right ones rejected; from 0.2 on: 1 of 2 wrong ones accepted, none rejected
    assert best_threshold(labels, scores) == pytest.approx(0.6)
    assert best_threshold(labels, scores, false_accept_weight=0.5) == pytest.approx(0.2)
    assert best_threshold([True, False], [0.2, 0.2]) == 1.0  # scores say nothing: reject


def test_reliability_worked_by_hand():
    table = reliability([True, False, True, True], [0.12, 0.18, 0.9, 1.0], bins=10)
    assert [(row["low"], row["count"], row["right"]) for row in table] == [(0.1, 2, 0.5), (0.9, 2, 1.0)]
    assert [row["score"] for row in table] == pytest.approx([0.15, 0.95])
    assert calibration_error(table) == pytest.approx((2 * 0.35 + 2 * 0.05) / 4)


def test_a_summary_of_rows():
    rows = [{"id": str(i), "correct": i % 2 == 0, "score": (i % 4) / 4, "accepted": i % 4 == 3} for i in range(40)]
    found = summary(rows, resamples=100)
    assert found["auroc"] == 0.25 and found["false_accept"] == 0.5 and found["false_reject"] == 1
    assert found["auroc/low"] <= 0.25 <= found["auroc/high"] and 0 < found["ece"] < 1
