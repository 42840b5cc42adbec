"""Exact EM against hand-worked numbers, torch.func, scipy and its own stationarity (issue check 1; bad input: check 6)."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from brite_lib.errors import InputError
from brite_lib.theory import EMTrace, Model, log_marginal, m_step, m_step_attained, posterior, random_instance, run_em
from brite_lib.theory import model as exact
from brite_lib.theory.em import solve_m_step, visible_directions

SETTINGS = {
    "seed": st.integers(0, 10_000),
    "prompts": st.integers(1, 4),
    "rationales": st.integers(1, 5),
    "answers": st.integers(2, 4),
    "kernel": st.sampled_from(["rbf", "linear", "tabular"]),
    "rank": st.sampled_from([1, 2]),
    "length_scale": st.sampled_from([0.3, 1.0, 3.0]),
    "verifier": st.sampled_from(["answer", "pair", "noisy", "soft"]),
    "one_answer": st.booleans(),
    "ridge": st.sampled_from([0.0, 1e-3, 1e-1, 1.0]),
    "start": st.sampled_from([0.0, 1.0, 3.0]),
}

# Two prompts, two pairs, one feature: everything below follows from σ(θ).
FEATURES = np.array([[[0.0], [1.0]], [[0.0], [2.0]]])
EVIDENCE = np.array([[0.0, 1.0], [0.5, 0.25]])
WEIGHTS = np.array([0.25, 0.75])


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def test_log_marginal_and_posterior_by_hand():
    theta = math.log(2)  # odds 2 : 1 in the first prompt, 4 : 1 in the second
    expected = 0.25 * math.log(2 / 3) + 0.75 * math.log(0.5 / 5 + 0.25 * 4 / 5)
    assert log_marginal([theta], FEATURES, EVIDENCE, WEIGHTS) == pytest.approx(expected, abs=1e-15)
    assert log_marginal([theta], FEATURES, EVIDENCE, WEIGHTS, ridge=0.5) == pytest.approx(expected - 0.25 * theta**2, abs=1e-15)
    assert posterior([theta], FEATURES, EVIDENCE) == pytest.approx(np.array([[0, 1], [1 / 3, 2 / 3]]), abs=1e-15)
    base = np.log([[1.0, 3.0], [2.0, 1.0]])  # odds 6 : 1 and 2 : 1
    assert posterior([theta], FEATURES, EVIDENCE, base=base)[1] == pytest.approx([0.5, 0.5], abs=1e-15)


def test_m_step_by_hand():
    one = FEATURES[:1]
    assert m_step([[0.2, 0.8]], one, [1.0], [5.0]) == pytest.approx([math.log(4)], abs=1e-14)
    theta = m_step([[0.2, 0.8]], one, [1.0], [-3.0], ridge=0.1)  # σ(θ) + 0.1·θ = 0.8
    assert sigmoid(theta[0]) + 0.1 * theta[0] == pytest.approx(0.8, abs=1e-14) and 0 < theta[0] < math.log(4)


def test_em_with_a_soft_verifier_is_power_iteration():
    trace = run_em(FEATURES[:1], [[0.5, 0.25]], [1.0], [1.0], steps=5)
    assert trace.theta[:, 0] == pytest.approx(1 - np.arange(6) * math.log(2), abs=1e-13)  # odds halve
    odds = np.exp(trace.theta[:, 0])
    assert trace.log_marginal == pytest.approx(np.log((0.5 + 0.25 * odds) / (1 + odds)), abs=1e-13)
    p, q = sigmoid(trace.theta[1, 0]), sigmoid(trace.theta[0, 0])
    assert trace.kl_step[0] == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), abs=1e-14)
    p, q = sigmoid(1 - math.log(2)), sigmoid(1 - 2 * math.log(2))  # Q_t of the first step, Q_{t+1}
    assert trace.kl_posterior[0] == pytest.approx(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)), abs=1e-14)


def drawn_run(chosen, steps=6):
    """The instance of some drawn SETTINGS, a run, and the scale of its rounding: |θ|/10 where θ goes further out than that.

    Without a ridge a maximiser may lie so far out that float64 cannot resolve it (2 of 10,647 draws); with one, never.
    """
    instance = random_instance(**(chosen | {"rank": None if chosen["kernel"] == "tabular" else chosen["rank"]}))
    try:
        trace = instance.run(steps)
    except InputError:
        assume(chosen["ridge"] > 0)  # else: the next draw
        raise
    return instance, trace, max(1.0, np.abs(trace.theta).max() / 10)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(chosen=st.fixed_dictionaries(SETTINGS))
def test_every_run_is_stationary_and_monotone(chosen):
    instance, trace, scale = drawn_run(chosen)
    features, evidence, weights, ridge = instance.features, instance.evidence, instance.weights, instance.ridge
    assert trace.theta.shape == (7, features.shape[2]) and trace.log_marginal.shape == (7,)
    for before, after, residual in zip(trace.theta, trace.theta[1:], trace.residual, strict=False):
        q = posterior(before, features, evidence)
        assert q.sum(1) == pytest.approx(1) and (q[evidence == 0] == 0).all()

        def slope(theta, q=q):
            logits = features @ theta
            p = np.exp(logits - logits.max(1, keepdims=True))
            p /= p.sum(1, keepdims=True)
            return np.einsum("x,xs,xsd->d", weights, p - q, features) + ridge * theta

        assert np.linalg.norm(slope(after)) <= 1e-10 * max(1, np.linalg.norm(slope(before)))
        assert residual <= 1e-10 * max(1, np.linalg.norm(slope(before)))
    gain = np.diff(trace.log_marginal)
    assert gain.min() >= -1e-12 * scale
    assert (gain - trace.kl_step - trace.kl_posterior).min() >= -1e-10 * scale  # BRiTE Theorem D.3 per step, sharpened by (P)


@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")  # torch's own, on the first use of torch.func
@pytest.mark.parametrize("ridge", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
def test_derivatives_against_autograd(seed, ridge):
    """∇J, ∇²J and the two informations against torch.func in float64; measured at most 4e-16."""
    plain = random_instance(seed, kernel=("rbf", "tabular")[seed % 2], rank=(5, None)[seed % 2], verifier=("pair", "soft")[seed // 2])
    base = np.random.default_rng(seed).normal(size=plain.evidence.shape)
    model = Model(plain.features, plain.evidence, plain.weights, ridge, base)
    phi, evidence, weights, offset = (torch.from_numpy(a) for a in (plain.features, plain.evidence, plain.weights, base))

    def partition_a(theta):
        return weights @ torch.logsumexp(phi @ theta + offset, 1) + ridge / 2 * theta @ theta

    def partition_b(theta):
        return weights @ torch.logsumexp(phi @ theta + offset + torch.log(evidence), 1)

    def value(theta):
        return partition_b(theta) - partition_a(theta)

    theta = torch.from_numpy(plain.theta0)
    assert exact.objective(model, plain.theta0) == pytest.approx(value(theta).item(), abs=1e-13)
    assert np.abs(exact.gradient(model, plain.theta0) - torch.func.grad(value)(theta).numpy()).max() <= 1e-12
    assert np.abs(exact.hessian(model, plain.theta0) - torch.func.hessian(value)(theta).numpy()).max() <= 1e-12
    for ours, partition in zip(exact.information(model, plain.theta0), (partition_a, partition_b), strict=True):
        assert np.abs(ours - torch.func.hessian(partition)(theta).numpy()).max() <= 1e-12


@pytest.mark.parametrize("seed", range(5))
def test_divergences_are_the_bregman_divergences_of_the_partitions(seed):
    model = random_instance(seed, verifier="pair", ridge=0.2).model
    u, v = np.random.default_rng(seed).normal(size=(2, model.features.shape[2]))
    q_mean = model.mean_features(exact.posterior_of(model, v))
    p_mean = model.mean_features(exact.reasoner(model, v)) + 0.2 * v
    bregman_a = exact.partition_a(model, u) - exact.partition_a(model, v) - p_mean @ (u - v)
    bregman_b = exact.partition_b(model, u) - exact.partition_b(model, v) - q_mean @ (u - v)
    assert exact.divergence_a(model, u, v) == pytest.approx(bregman_a, abs=1e-14)
    assert exact.divergence_b(model, u, v) == pytest.approx(bregman_b, abs=1e-14)
    assert abs(exact.divergence_a(model, v, u) - bregman_a) > 1e-4  # the order matters


def test_tiny_divergences_keep_their_digits():
    model = random_instance(0).model
    theta, step = np.zeros(8), np.random.default_rng(0).normal(size=8)
    quadratic = step @ exact.information(model, theta)[0] @ step / 2
    for size in (1e-4, 1e-6):  # D_A(θ + s, θ) = ½·sᵀI_A·s + O(s³): about 1e-9 and 1e-13, far below the rounding of A itself
        assert exact.divergence_a(model, theta + size * step, theta) == pytest.approx(size**2 * quadratic, rel=10 * size)


@pytest.mark.parametrize("ridge", [0.0, 0.05])
def test_m_step_against_scipy(ridge):
    """A general-purpose minimiser stops at about 1e-8; ours must agree and be more stationary."""
    instance = random_instance(3, verifier="noisy", ridge=ridge)
    model, q = instance.model, posterior(instance.theta0, instance.features, instance.evidence)
    target = model.mean_features(q)
    theta = m_step(q, instance.features, instance.weights, instance.theta0, ridge)
    other = scipy.optimize.minimize(
        lambda t: exact.partition_a(model, t) - t @ target,
        instance.theta0,
        jac=lambda t: model.mean_features(exact.reasoner(model, t)) + ridge * t - target,
        method="BFGS",
        options={"gtol": 1e-9, "maxiter": 5000},
    )
    assert exact.reasoner(model, theta) == pytest.approx(exact.reasoner(model, other.x), abs=1e-5)
    assert np.linalg.norm(model.mean_features(exact.reasoner(model, theta)) + ridge * theta - target) <= 1e-14


def test_directions_without_effect_are_left_alone():
    """A column repeated, a column constant within a prompt: θ keeps its start there, and the rest is solved as without them."""
    plain = random_instance(1, prompts=2, rank=3, verifier="soft", ridge=0.0)
    constant = np.broadcast_to(np.array([1.0, -2.0])[:, None, None], (*plain.features.shape[:2], 1))
    features = np.concatenate([plain.features, plain.features[..., :1], constant], axis=2)
    start = np.concatenate([plain.theta0, [0.5, 7.0]])
    assert visible_directions(Model(features, plain.evidence, plain.weights)).shape == (5, 3)
    trace = run_em(features, plain.evidence, plain.weights, start, 4)
    assert trace.theta[:, 4] == pytest.approx(7.0, abs=1e-12)
    assert trace.theta[:, 0] - trace.theta[:, 3] == pytest.approx(start[0] - start[3], abs=1e-9)  # both move alike
    twin = run_em(plain.features, plain.evidence, plain.weights, plain.theta0 + np.array([0.5, 0, 0]), 4)
    assert trace.log_marginal == pytest.approx(twin.log_marginal, abs=1e-12)


def test_many_rows_are_taken_in_blocks(monkeypatch):
    instance = random_instance(2, prompts=5, verifier="noisy")
    whole = instance.model.covariance(exact.reasoner(instance.model, instance.theta0))
    trace = instance.run(3)
    monkeypatch.setattr(exact, "BLOCK", 7)  # 120 rows: blocks that start and end inside a prompt
    monkeypatch.setattr("brite_lib.theory.em.BLOCK", 7)
    assert instance.model.covariance(exact.reasoner(instance.model, instance.theta0)) == pytest.approx(whole, abs=1e-16)
    assert instance.run(3).theta == pytest.approx(trace.theta, abs=1e-10)
    singular = Model(instance.features[..., [0, 1, 1]], instance.evidence, instance.weights)
    assert visible_directions(singular).shape == (3, 2)


def test_attainment_by_hand():
    """A distribution on the edge of the line has no M-step; inside, or with a ridge, it has."""
    line = np.array([[[-1.0], [0.0], [1.0]]])
    edge, inside = [[0.0, 0.0, 1.0]], [[0.0, 1.0, 0.0]]
    assert not m_step_attained(edge, line, [1.0]) and m_step_attained(inside, line, [1.0])
    assert m_step_attained(edge, line, [1.0], ridge=1e-6)
    assert m_step([*inside], line, [1.0], [2.0]) == pytest.approx([0.0], abs=1e-14)
    far = m_step(edge, line, [1.0], [0.0])  # still a point whose residual counts as solved
    assert 20 < far[0] < 1000
    two = np.concatenate([line, -line])  # each prompt on its edge, but pulling in opposite directions
    assert m_step_attained(edge * 2, two, [0.5, 0.5])


def test_an_m_step_that_float64_cannot_resolve_is_an_error():
    model = Model(np.array([[[0.0], [1.0]]]), None, [1.0])
    for mean in (1.5, 1 + 1e-8):  # no distribution has this mean
        with pytest.raises(InputError, match="gradient norm"):
            solve_m_step(model, np.array([mean]), np.zeros(1), None)


GOOD = {"features": FEATURES, "evidence": EVIDENCE, "weights": WEIGHTS, "theta0": [0.0], "steps": 2, "ridge": 0.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.where(FEATURES == 2, np.nan, FEATURES)}, r"features must be finite, found nan at index \[1, 1, 0\]"),
        ({"features": FEATURES[0]}, r"features must have shape \(X, S, d\), found \(2, 1\)"),
        ({"features": np.zeros((2, 0, 1))}, "features must hold at least one"),
        ({"features": "many"}, "features must be an array of real numbers"),
        ({"features": FEATURES + 1j}, "features must be an array of real numbers"),
        ({"weights": [10**400, 0]}, "weights must be an array of real numbers"),
        ({"evidence": [[0.0, 0.0], [0.5, 0.5]]}, "evidence of prompt 0 is zero for every pair"),
        ({"evidence": [[0.0, 1.5], [0.5, 0.5]]}, r"evidence is a probability, but at index \[0, 1\] it is larger than 1"),
        ({"evidence": [[0.5, 0.5], [-0.5, 0.5]]}, r"evidence is a probability, but at index \[1, 0\] it is negative"),
        ({"evidence": [[math.nan, 0.5], [0.5, 0.5]]}, "evidence must be finite"),
        ({"evidence": [[0.5, 0.5]]}, r"evidence must have shape \(X, S\) = \(2, 2\), found \(1, 2\)"),
        ({"weights": [0.5, 0.6]}, "weights must be non-negative and sum to 1"),
        ({"weights": [1.5, -0.5]}, "weights must be non-negative and sum to 1"),
        ({"weights": [1.0]}, r"weights must have shape \(X,\) = \(2,\)"),
        ({"theta0": [0.0, 0.0]}, r"theta0 must have shape \(d,\) = \(1,\)"),
        ({"theta0": [math.inf]}, "theta0 must be finite"),
        ({"ridge": -0.1}, "ridge must be a finite number of at least 0, found -0.1"),
        ({"ridge": math.nan}, "ridge must be a finite number"),
        ({"steps": -1}, "steps must be a whole number"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"base": [[0.0, -math.inf], [0.0, 0.0]]}, "base must be finite"),
    ],
)
def test_bad_input_is_one_sentence(change, message):
    assert isinstance(run_em(**GOOD), EMTrace)
    with pytest.raises(InputError, match=message) as caught:
        run_em(**(GOOD | change))
    assert "\n" not in str(caught.value)


def test_bad_arguments_of_the_posterior_are_one_sentence():
    for features in ("many", FEATURES[0], np.zeros((0, 2, 1))):
        with pytest.raises(InputError, match="features must"):
            posterior([0.0], features, EVIDENCE)


def test_bad_q_is_one_sentence():
    for q, message in (([[0.5, 0.6], [0.5, 0.5]], "q must be non-negative and sum to 1"), ([[0.5, 0.5]], r"q must have shape \(X, S\)")):
        with pytest.raises(InputError, match=message):
            m_step(q, FEATURES, WEIGHTS, [0.0])
