"""Kernel features, evidence and the instances themselves: reproducible, and with the properties they are named for."""

import inspect

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from test_theory_theorem import concavity

from brite_lib import theory
from brite_lib.errors import InputError
from brite_lib.theory import instances as families
from brite_lib.theory import kernel_features, noisy_evidence, random_instance, soft_evidence, sufficient_ridge, verifier_evidence
from brite_lib.theory.model import hessian

POINTS = np.random.default_rng(0).normal(size=(40, 2))
GRAMS = {
    "rbf": np.exp(-cdist(POINTS, POINTS, "sqeuclidean") / (2 * 0.7**2)),
    "linear": POINTS @ POINTS.T,
    "tabular": np.eye(40),
}


@pytest.mark.parametrize("method", ["exact", "nystrom"])
@pytest.mark.parametrize("kernel", GRAMS)
def test_full_features_reproduce_the_kernel(kernel, method):
    features = kernel_features(POINTS, kernel, length_scale=0.7, method=method)
    assert features.dtype == np.float64 and features.shape == (40, {"rbf": features.shape[1], "linear": 2, "tabular": 40}[kernel])
    assert np.abs(features @ features.T - GRAMS[kernel]).max() <= 1e-12
    own = kernel_features(POINTS, lambda a, b: GRAMS[kernel][: len(a), : len(b)] if len(a) > 1 else None, method="exact")
    assert np.abs(own @ own.T - GRAMS[kernel]).max() <= 1e-12


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 1000), n=st.integers(2, 30), rank=st.integers(1, 30), length_scale=st.floats(0.1, 3))
def test_low_rank_features(seed, n, rank, length_scale):
    """Exact is the best approximation of its rank; Nyström is exact on its landmarks, never above the kernel, and no better."""
    points, rank = np.random.default_rng(seed).normal(size=(n, 2)), min(rank, n)
    gram = np.exp(-cdist(points, points, "sqeuclidean") / (2 * length_scale**2))
    values = np.sort(np.linalg.eigvalsh(gram))[::-1]
    best = kernel_features(points, "rbf", rank, length_scale)
    assert best.shape[0] == n and best.shape[1] <= rank
    assert np.trace(gram - best @ best.T) == pytest.approx(values[rank:].sum(), abs=1e-10)
    near = kernel_features(points, "rbf", rank, length_scale, method="nystrom")
    left = gram - near @ near.T
    assert np.linalg.eigvalsh(left)[0] >= -1e-10 and np.trace(left) >= values[rank:].sum() - 1e-10
    assert (np.diag(left) < 1e-10).sum() >= near.shape[1]


def test_repeated_points_share_their_tabular_feature():
    features = kernel_features([[1.0], [2.0], [1.0]], "tabular")
    assert features @ features.T == pytest.approx(np.array([[1, 0, 1], [0, 1, 0], [1, 0, 1]]), abs=1e-15) and features.shape == (3, 2)
    assert kernel_features([[1.0], [2.0], [3.0]], "tabular") == pytest.approx(np.eye(3))


@pytest.mark.parametrize("method", ["exact", "nystrom"])
@pytest.mark.parametrize(
    ("points", "kernel"),
    [
        (POINTS, lambda a, b: -cdist(a, b, "sqeuclidean")),
        (POINTS, lambda a, b: np.tanh(a @ b.T - 1)),
        ([[0.0, 1.0], [1.0, 0.0]], "precomputed"),
        ([[1.0, 2.0], [2.0, 1.0]], "precomputed"),
        ([[1.0, 0.0], [0.0, -1.0]], "precomputed"),
    ],
)
def test_a_kernel_that_is_not_positive_semi_definite_is_one_sentence(points, kernel, method):
    with pytest.raises(InputError, match="not positive semi-definite") as caught:
        kernel_features(points, kernel, method=method)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"points": [[0.0], [np.nan]]}, r"points must be finite, found nan at index \[1, 0\]"),
        ({"points": [1.0, 2.0]}, r"points must have shape \(n, p\)"),
        ({"points": np.zeros((0, 2))}, "points must hold at least one"),
        ({"kernel": "cubic"}, "kernel must be one of rbf, linear, tabular"),
        ({"rank": 0}, "rank must be a whole number from 1"),
        ({"rank": 41}, "rank must be a whole number from 1"),
        ({"length_scale": 0.0}, "length_scale must be a positive number"),
        ({"method": "fourier"}, "method must be"),
        ({"kernel": "precomputed"}, "square Gram matrix"),
        ({"points": [[1.0, 0.5], [0.0, 1.0]], "kernel": "precomputed"}, "not symmetric"),
        ({"kernel": lambda a, b: a @ a.T * np.nan}, "kernel must be finite"),
    ],
)
def test_bad_settings_are_one_sentence(arguments, message):
    with pytest.raises(InputError, match=message):
        kernel_features(**({"points": POINTS} | arguments))


def test_evidence_by_hand():
    assert verifier_evidence([[True, False], [True, True]]).tolist() == [[1, 0], [1, 1]]
    assert noisy_evidence([[True, False]], 0.1) == pytest.approx(np.array([[0.9, 0.1]]))
    assert soft_evidence([[0.0, -2.0]], beta=2.0) == pytest.approx(np.exp([[0.0, -1.0]]))
    for bad, message in (
        (lambda: verifier_evidence([[True, False], [False, False]]), "evidence of prompt 1 is zero"),
        (lambda: noisy_evidence([[True, False]], 1.5), "error is a probability"),
        (lambda: soft_evidence([[0.5, -1.0]]), "rewards must be at most 0"),
        (lambda: soft_evidence([[0.0, -1.0]], beta=0.0), "beta must be a positive number"),
        (lambda: soft_evidence([[-1e6, -1e6]]), "evidence of prompt 0 is zero"),
    ):
        with pytest.raises(InputError, match=message):
            bad()


def test_sufficient_ridge_by_hand():
    features = np.array([[[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]], [[1.0, 0.0], [1.0, 2.0], [0.0, 0.0]]])
    assert sufficient_ridge(features, [[1, 0.5, 0], [1, 1, 0]]) == pytest.approx(25 / 4)
    assert sufficient_ridge(features, [[1, 0, 0], [1, 1, 0]]) == pytest.approx(4 / 4)
    assert sufficient_ridge(features[:1], [[0, 0, 1]]) == 0


def test_random_instances_are_reproducible_and_differ():
    first, again, other = random_instance(7), random_instance(7), random_instance(8)
    for name in ("features", "evidence", "weights", "theta0"):
        assert np.array_equal(getattr(first, name), getattr(again, name))
    assert not np.array_equal(first.features, other.features)
    assert first.features.shape == (4, 24, 8) and first.evidence.sum(1).tolist() == [6] * 4  # one right answer in every rationale
    assert np.std(first.features @ first.theta0) == pytest.approx(1.0)
    assert random_instance(7, start=0.0).theta0.tolist() == [0.0] * 8


def test_random_instance_verifiers():
    assert set(np.unique(random_instance(0, verifier="noisy").evidence)) == {0.05, 0.95}
    soft = random_instance(0, verifier="soft", beta=0.5).evidence
    assert soft.max() <= 1 and np.unique(soft).size == soft.size
    assert soft == pytest.approx(random_instance(0, verifier="soft", beta=1.0).evidence ** 2)
    right = random_instance(0).evidence
    single = random_instance(0, verifier="pair", one_answer=True).evidence
    assert (single <= right).all() and (single.sum(1) >= 1).all() and single.sum() < right.sum()
    with pytest.raises(InputError, match="verifier must be one of"):
        random_instance(0, verifier="oracle")
    with pytest.raises(InputError, match="two answers"):
        random_instance(0, answers=1)


@pytest.mark.parametrize("seed", range(20))
def test_concave_family_is_concave_everywhere(seed):
    instance = families.concave(seed)
    rng = np.random.default_rng(seed)
    assert max(concavity(instance.model, 5 * rng.normal(size=2)) for _ in range(10)) <= 1e-12


def test_ridge_family_is_concave_from_one_on_only():
    """Popoviciu's ridge suffices everywhere; a hundredth of it does not."""
    thetas = 5 * np.random.default_rng(0).normal(size=(40, 8))
    curved = {fraction: max(concavity(families.ridge(0, fraction).model, theta) for theta in thetas) for fraction in (1.0, 0.01)}
    assert curved[1.0] < 0 < curved[0.01]


def test_counterexamples_are_not_concave():
    for instance in (families.saddle_escape(), families.two_basins(), families.plateau()):
        directions = np.linspace(-1, 1, 21)
        assert max(np.linalg.eigvalsh(hessian(instance.model, s * np.ones(instance.theta0.size)))[-1] for s in directions) > 1e-3


def test_contract():
    """The names and parameters of design.md section 8."""
    contract = {
        "kernel_features": ["points", "kernel", "rank", "length_scale", "method"],
        "log_marginal": ["theta", "features", "evidence", "weights", "ridge"],
        "posterior": ["theta", "features", "evidence"],
        "m_step": ["q", "features", "weights", "theta0", "ridge"],
        "run_em": ["features", "evidence", "weights", "theta0", "steps", "ridge"],
        "check_theorem": ["trace", "theta_star", "features", "evidence", "weights", "ridge", "index"],
        "soft_policy": ["log_prior", "log_evidence", "c"],
    }
    for name, parameters in contract.items():
        assert list(inspect.signature(getattr(theory, name)).parameters)[: len(parameters)] == parameters
    assert {"theta", "log_marginal", "kl_step"} <= set(theory.EMTrace.__dataclass_fields__)
    assert set(theory.__all__) <= set(vars(theory))
