"""EM with a learned E-step or an unfinished M-step: the identity with ξ, closed forms and floors (issue check 1)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brite_lib.errors import InputError
from brite_lib.theory.em import run_em_on
from brite_lib.theory.features import kernel_features
from brite_lib.theory.inexact import (
    EStep,
    approximate_posterior,
    bias_floor,
    identity_error,
    log_softmax,
    run_inexact_em,
    sampling_floor,
    smoothness,
    xi_bound,
)
from brite_lib.theory.model import Model, gradient, hessian, information, objective, posterior_of

METHODS = ("exact", "policy_gradient", "natural_gradient", "ppo", "samples")


def instance(seed=3, prompts=4, rationales=6, answers=4, rank=8, ridge=5e-3, noise=0.05, weights=None):
    """An RBF kernel on random points and a verifier that accepts one answer per prompt, wrong in a share of the cases."""
    rng = np.random.default_rng(seed)
    x, z, y = rng.normal(size=(prompts, 2)), rng.normal(size=(rationales, 2)), rng.normal(size=(answers, 2))
    pairs = np.concatenate([np.repeat(z, answers, 0), np.tile(y, (rationales, 1))], 1)
    points = np.concatenate([np.repeat(x, len(pairs), 0), np.tile(pairs, (prompts, 1))], 1) / 1.5
    features = kernel_features(points, "rbf", rank=rank).reshape(prompts, len(pairs), -1)
    right = np.tile(np.arange(answers), rationales) == rng.integers(answers, size=prompts)[:, None]
    weights = np.full(prompts, 1 / prompts) if weights is None else weights
    return Model(features, np.where(right, 1 - noise, noise), weights, ridge)


def start(model, seed=104):
    return np.random.default_rng(seed).normal(size=model.features.shape[2])


def maximiser(model, theta, steps=400):
    """Limit of exact EM, polished by Newton."""
    theta = run_em_on(model, theta, steps).theta[-1]
    for _ in range(5):
        theta = theta - np.linalg.solve(hessian(model, theta), gradient(model, theta))
    assert np.linalg.norm(gradient(model, theta)) < 1e-13 and np.linalg.eigvalsh(-hessian(model, theta))[0] > 1e-4
    return theta


@pytest.fixture(scope="module")
def case():
    model = instance()
    return model, start(model), maximiser(model, start(model))


def test_exact_steps_are_exact_em(case):
    model, theta, _ = case
    exact, trace = run_em_on(model, theta, 30), run_inexact_em(model, theta, 30)
    assert np.abs(trace.theta - exact.theta).max() <= 1e-11 and np.abs(trace.log_marginal - exact.log_marginal).max() <= 1e-13
    assert np.abs(trace.xi).max() <= 1e-13 and trace.kl_posterior.max() <= 1e-28
    assert np.abs(trace.elbo_e - trace.log_marginal[:-1]).max() <= 1e-14  # the ELBO touches J


@pytest.mark.parametrize("m_steps", [None, 3])
@pytest.mark.parametrize("method", METHODS)
def test_the_identity_holds_whatever_the_steps_do(case, method, m_steps):
    model, theta, star = case
    trace = run_inexact_em(model, theta, 40, EStep(method, steps=2, learning_rate=0.7), m_steps, seed=1)
    for u in (star, theta, np.ones_like(theta)):
        assert np.abs(identity_error(model, trace, u)).max() <= 1e-12
    assert (np.linalg.norm(trace.xi, axis=1) <= xi_bound(model, trace) + 1e-14).all()
    if method != "exact" or m_steps:
        wrong = type(trace)(**{**vars(trace), "xi": np.zeros_like(trace.xi)})
        assert np.abs(identity_error(model, wrong, star)).max() > 1e-4  # it is ξ that closes it
    # generalised EM: a step loses at most the ELBO's gap, and gains what the M-step gains
    gain = trace.elbo_m - trace.elbo_e
    assert (np.diff(trace.log_marginal) >= gain - trace.kl_posterior - 1e-12).all() and gain.min() >= -1e-12


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    method=st.sampled_from(METHODS),
    rank=st.sampled_from([1, 3, 8]),
    ridge=st.sampled_from([1e-2, 0.3]),
    noise=st.sampled_from([0.0, 0.05, 0.4]),
    m_steps=st.sampled_from([None, 1, 5]),
    warm=st.booleans(),
    rate=st.sampled_from([0.1, 1.0]),
)
def test_the_identity_on_any_instance(seed, method, rank, ridge, noise, m_steps, warm, rate):
    weights = np.random.default_rng(seed).dirichlet(np.ones(3))
    model = instance(seed, prompts=3, rationales=4, answers=3, rank=rank, ridge=ridge, noise=noise, weights=weights)
    theta, u = start(model, seed), start(model, seed + 1)
    trace = run_inexact_em(model, theta, 6, EStep(method, 3, rate, samples=5, warm_start=warm), m_steps, seed)
    assert np.abs(identity_error(model, trace, u)).max() <= 1e-10
    finite = np.isfinite(trace.kl_posterior)
    assert finite.all() or (noise == 0 and method in ("policy_gradient", "ppo"))
    assert (np.linalg.norm(trace.xi, axis=1) <= xi_bound(model, trace) + 1e-12).all()


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_natural_gradient_has_a_closed_form(case, eta, steps):
    """K steps from P_θ give P_θ·r^{1 − (1 − η)^K}: a verifier at another temperature."""
    model, theta, _ = case
    log_q = approximate_posterior(model, theta, EStep("natural_gradient", steps, eta))
    closed = log_softmax(model.logits(theta) + (1 - (1 - eta) ** steps) * model.log_evidence)
    assert np.abs(np.exp(log_q) - np.exp(closed)).max() <= 1e-12
    if eta == 1:
        assert np.abs(np.exp(log_q) - posterior_of(model, theta)).max() <= 1e-12


def test_natural_gradient_learns_a_hard_verifier_in_one_step():
    model = instance(noise=0.0)
    theta = start(model)
    log_q = approximate_posterior(model, theta, EStep("natural_gradient", 1, 0.3))
    assert np.abs(np.exp(log_q) - posterior_of(model, theta)).max() <= 1e-12
    # Gradients on the logits cannot: what stays outside the selected set is about e^floor, so the KL is infinite.
    long = EStep("policy_gradient", 3000, 1.0, reward_floor=-6.0)
    outside = np.exp(approximate_posterior(model, theta, long))[model.evidence == 0].sum() / len(model.weights)
    assert 1e-5 < outside < 1e-1
    assert run_inexact_em(model, theta, 1, long).kl_posterior[0] == math.inf


def test_policy_gradient_and_ppo_against_autograd(case):
    model, theta, _ = case
    log_p = log_softmax(model.logits(theta))
    joint = torch.tensor(log_p + model.log_evidence)

    def ascend(objective, logits, rate):
        logits = logits.clone().requires_grad_()
        objective(torch.log_softmax(logits, 1)).backward()
        return torch.log_softmax((logits + rate * logits.grad).detach(), 1)

    def elbo(log_q):
        return (log_q.exp() * (joint - log_q)).sum()

    old = torch.tensor(log_p)
    once = ascend(elbo, old, 0.7)
    ours = approximate_posterior(model, theta, EStep("policy_gradient", 1, 0.7))
    assert np.abs(ours - once.numpy()).max() <= 1e-12

    advantage = joint - old - (old.exp() * (joint - old)).sum(1, keepdim=True)

    def clipped(log_q):
        ratio = (log_q - old).exp()
        return (old.exp() * torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)).sum()

    reference = old
    for _ in range(4):
        reference = ascend(clipped, reference, 4.0)
    ours = approximate_posterior(model, theta, EStep("ppo", 1, 4.0, clip=0.2, epochs=4))
    assert np.abs(ours - reference.numpy()).max() <= 1e-12
    assert (np.abs(np.exp(ours - log_p) - 1) > 0.2).any()  # some ratios are beyond the clip: it was active


def test_samples_are_posterior_samples(case):
    model, theta, _ = case
    log_q = approximate_posterior(model, theta, EStep("samples", samples=200_000), rng=np.random.default_rng(3))
    assert np.abs(np.exp(log_q) - posterior_of(model, theta)).max() < 0.005  # five standard errors of a share of 1/2
    assert np.array_equal(log_q, approximate_posterior(model, theta, EStep("samples", samples=200_000), rng=np.random.default_rng(3)))
    assert not np.array_equal(log_q, approximate_posterior(model, theta, EStep("samples", samples=200_000), rng=np.random.default_rng(4)))


def test_the_floor_is_proportional_to_the_kl(case):
    """An E-step that always stops early leaves a gap of the order of its KL, and ½·ξᵀ(−∇²J)⁻¹ξ predicts it."""
    model, theta, star = case
    best, points = objective(model, star), []
    for steps in (1, 2, 3, 4, 6, 8):
        trace = run_inexact_em(model, theta, 200, EStep("natural_gradient", steps, 0.5))
        gap = best - trace.log_marginal[-1]
        points.append((trace.kl_posterior[-1], gap))
        assert gap == pytest.approx(bias_floor(model, star, trace.xi[-1]), rel=2.0**-steps)  # leading order in ξ, and ξ halves
        assert abs(trace.log_marginal[-1] - trace.log_marginal[-2]) < 1e-6 * gap  # it has settled there
    kl, gap = np.log(np.array(points)).T
    assert np.polyfit(kl, gap, 1)[0] == pytest.approx(1, abs=0.2)
    assert np.ptp(kl) > 9  # four decades


@pytest.mark.parametrize(("method", "steps", "rate"), [("natural_gradient", 1, 0.5), ("policy_gradient", 16, 1.0)])
def test_a_warm_start_removes_the_floor(case, method, steps, rate):
    model, theta, star = case
    cold = run_inexact_em(model, theta, 150, EStep(method, steps, rate))
    warm = run_inexact_em(model, theta, 150, EStep(method, steps, rate, warm_start=True))
    best = objective(model, star)
    assert best - warm.log_marginal[-1] < 0.01 * (best - cold.log_marginal[-1])
    elbo = np.stack([warm.elbo_e, warm.elbo_m], 1).ravel()  # E, M, E, M, …
    assert np.diff(elbo).min() >= -1e-12  # coordinate ascent on one function


def test_sampling_floor(case):
    """n draws per prompt: E gap = Σ ρ/(1 + ρ)/(2nX) for prompts of equal weight, reached by the runs."""
    model, _, star = case
    complete, missing = information(model, star)
    rho = np.linalg.eigvals(np.linalg.solve(complete, missing)).real
    squares = [model.weights[x] ** 2 * np.cov(model.features[x].T, aweights=posterior_of(model, star)[x], bias=True) for x in range(4)]
    basis = np.linalg.eig(np.linalg.solve(complete, missing))[1].real
    basis = basis / np.sqrt(np.diag(basis.T @ complete @ basis))
    by_hand = (np.diag(basis.T @ sum(squares) @ basis) / (1 + rho)).sum() / 2
    assert sampling_floor(model, star, 1) == pytest.approx(by_hand, rel=1e-8)
    assert sampling_floor(model, star, 1) == pytest.approx((rho / (1 + rho)).sum() / 8, rel=1e-8)  # equal prompts
    assert sampling_floor(model, star, 10) == pytest.approx(by_hand / 10, rel=1e-8)
    for n in (64, 512):
        runs = [run_inexact_em(model, star, 400, EStep("samples", samples=n), seed=seed) for seed in range(4)]
        gaps = objective(model, star) - np.array([run.log_marginal[50:] for run in runs])
        assert gaps.mean() == pytest.approx(sampling_floor(model, star, n), rel=0.1)


def test_an_unfinished_m_step_is_slow_but_has_no_floor(case):
    model, theta, star = case
    best, gaps = objective(model, star), []
    for m_steps in (1, 4, 16):
        trace = run_inexact_em(model, theta, 150, m_steps=m_steps)
        assert np.diff(trace.log_marginal).min() >= -1e-12
        gaps.append(best - trace.log_marginal[-1])
    assert gaps[0] > 50 * gaps[1] and gaps[1] > 50 * gaps[2] and gaps[2] < 1e-11
    top = max(np.linalg.eigvalsh(information(model, seed * theta)[0])[-1] for seed in range(4))
    assert smoothness(model) >= top  # the step size cannot overshoot


def test_bad_settings_are_one_sentence(case):
    model, theta, _ = case
    bad = [
        ({"method": "vi"}, "method must be one of exact"),
        ({"steps": 0}, "steps must be a whole number of at least 1, found 0"),
        ({"samples": 2.5}, "samples must be a whole number"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"method": "natural_gradient", "learning_rate": 1.5}, "at most 1 for natural_gradient"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"reward_floor": -math.inf}, "reward_floor finite"),
    ]
    for settings_, message in bad:
        with pytest.raises(InputError, match=message):
            EStep(**settings_)
    with pytest.raises(InputError, match="m_steps must be a whole number of at least 1"):
        run_inexact_em(model, theta, 2, m_steps=0)
    with pytest.raises(InputError, match="steps must be a whole number of at least 0"):
        run_inexact_em(model, theta, -1)
    assert run_inexact_em(model, theta, 0).xi.shape == (0, 8)
