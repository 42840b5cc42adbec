"""EM whose steps are only approximate: an E-step that is learned, an M-step that is not finished.

Notation of :mod:`brite_lib.theory.model`; everything is exact arithmetic on (X, S) tables except the one E-step that
samples. With Q̂ the E-step's output and ξ_t = (E_Q̂ φ − E_Q φ) + (the M-step's gradient residual),

    ∇A(θ_{t+1}) = ∇B(θ_t) + ξ_t,
    J(u) − J(θ_{t+1}) = D_B(u, θ_t) − D_B(θ_{t+1}, θ_t) − D_A(u, θ_{t+1}) − ⟨ξ_t, u − θ_{t+1}⟩    for every u,

which is the exact identity (F) at ξ = 0. KL(Q̂‖Q) is the gap of the ELBO, the quantity that ψ-PPO lowers; it bounds
|ξ_t| (:func:`xi_bound`), and near a maximum the loss it causes is ½·ξᵀ(−∇²J)⁻¹ξ (:func:`bias_floor`,
:func:`sampling_floor`).

The E-step works on a tabular softmax policy and maximises the ELBO E_q[log r + log P_θ − log q], with exact gradients:

    policy_gradient   logits += lr·∇ELBO
    natural_gradient  log q += lr·(log r + log P_θ − log q): after K steps from P_θ, q ∝ P_θ·r^{1 − (1 − lr)^K}
    ppo               K batches of ``epochs`` ascents of the clipped objective with the batch's advantages
    samples           n draws from the exact posterior
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from brite_lib.errors import InputError
from brite_lib.theory.em import solve_m_step, visible_directions
from brite_lib.theory.model import (
    Array,
    Model,
    check_counts,
    divergence_a,
    divergence_b,
    information,
    kl_rows,
    log_softmax,
    objective,
    posterior_of,
    reasoner,
    selected,
)

METHODS = ("exact", "policy_gradient", "natural_gradient", "ppo", "samples")


@dataclass(frozen=True)
class EStep:
    """How Q̂ is found. Fields that a method does not use are ignored."""

    method: Literal["exact", "policy_gradient", "natural_gradient", "ppo", "samples"] = "exact"
    """See the module."""
    steps: int = 8
    """K: gradient steps, or batches of PPO."""
    learning_rate: float = 1.0
    """Step size on the logits (policy_gradient, ppo), or η in (0, 1] (natural_gradient)."""
    clip: float = 0.2
    """ε of PPO's probability ratio."""
    epochs: int = 4
    """Ascents per batch of PPO."""
    samples: int = 32
    """n draws per prompt."""
    warm_start: bool = False
    """Start from the last Q̂ instead of P_θ."""
    reward_floor: float = -20.0
    """Gradient methods cannot use log 0: a log-evidence below this counts as this, which leaves about e^floor off the selected set."""

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise InputError(f"method must be one of {', '.join(METHODS)}, found {self.method!r}")
        check_counts(1, steps=self.steps, epochs=self.epochs, samples=self.samples)
        if not 0 < self.learning_rate < np.inf or (self.method == "natural_gradient" and self.learning_rate > 1):
            raise InputError(f"learning_rate must be positive, and at most 1 for natural_gradient, found {self.learning_rate}")
        if not self.clip > 0 or not -np.inf < self.reward_floor < 0:
            raise InputError(f"clip must be positive and reward_floor finite and negative, found {self.clip} and {self.reward_floor}")


@dataclass(frozen=True, eq=False)
class InexactTrace:
    """A run of T iterations; entry t of a (T,) array belongs to the step from θ_t to θ_{t+1}.

    Attributes:
        theta: (T + 1, d) parameters, the start first.
        log_marginal: (T + 1,) J(θ_t) in nats.
        xi: (T, d) ξ_t.
        kl_posterior: (T,) E_μ KL(Q̂_t ‖ Q_t), the ELBO's gap after the E-step; inf if Q̂ leaves the selected set.
        elbo_e: (T,) ELBO(Q̂_t, θ_t) − ridge/2·‖θ_t‖² after the E-step, J(θ_t) − kl_posterior.
        elbo_m: (T,) ELBO(Q̂_t, θ_{t+1}) − ridge/2·‖θ_{t+1}‖² after the M-step.
        residual: (T,) gradient norm of the M-step's objective at its end.
    """

    theta: Array
    log_marginal: Array
    xi: Array
    kl_posterior: Array
    elbo_e: Array
    elbo_m: Array
    residual: Array


def run_inexact_em(
    model: Model, theta0: ArrayLike, steps: int, e_step: EStep | None = None, m_steps: int | None = None, seed: int = 0
) -> InexactTrace:
    """``steps`` iterations of EM with these steps.

    Args:
        theta0: (d,) start.
        e_step: how Q̂ is found; None: exactly.
        m_steps: gradient steps of the M-step at step size 1/smoothness; None: solved by Newton.
        seed: of the draws of ``method="samples"``.

    Raises:
        InputError: for bad input, or if an M-step does not reach its residual.
    """
    check_counts(0, steps=steps)
    check_counts(1, m_steps=1 if m_steps is None else m_steps)
    e_step, rng = e_step or EStep(), np.random.default_rng(seed)
    basis, rate = visible_directions(model), 1 / smoothness(model)
    theta, log_q, rows = [model.theta(theta0, "theta0")], None, []
    for _ in range(steps):
        log_q = approximate_posterior(model, theta[-1], e_step, log_q, rng)
        target = model.mean_features(np.exp(log_q))
        if m_steps is None:
            theta.append(solve_m_step(model, target, theta[-1], basis).theta)
        else:
            theta.append(_gradient_m_step(model, target, theta[-1], m_steps, rate))
        rows.append(_record(model, theta[-2], theta[-1], log_q, target))
    xi, kl, elbo_e, elbo_m, residual = zip(*rows, strict=True) if rows else ([], [], [], [], [])
    return InexactTrace(
        theta=np.array(theta),
        log_marginal=np.array([objective(model, point) for point in theta]),
        xi=np.reshape(xi, (steps, theta[0].size)),
        kl_posterior=np.array(kl, dtype=np.float64),
        elbo_e=np.array(elbo_e, dtype=np.float64),
        elbo_m=np.array(elbo_m, dtype=np.float64),
        residual=np.array(residual, dtype=np.float64),
    )


def approximate_posterior(
    model: Model, theta: Array, e_step: EStep, start: Array | None = None, rng: np.random.Generator | None = None
) -> Array:
    """(X, S) log Q̂ of one E-step at θ, from the log-policy ``start`` if ``e_step.warm_start``, else from log P_θ.

    Only ``method="samples"`` needs ``rng``.
    """
    log_p = log_softmax(model.logits(theta))
    if e_step.method == "exact":
        return log_softmax(selected(model, log_p))
    if e_step.method == "samples":
        q = posterior_of(model, theta)
        counts = rng.multinomial(e_step.samples, q / q.sum(1, keepdims=True))
        with np.errstate(divide="ignore"):
            return np.log(counts / e_step.samples)
    log_q = start if e_step.warm_start and start is not None else log_p
    if e_step.method == "natural_gradient":
        return _natural_gradient(selected(model, log_p), log_q, e_step)
    reward = 0.0 if model.log_evidence is None else np.maximum(model.log_evidence, e_step.reward_floor)
    for _ in range(e_step.steps):
        log_q = (_policy_gradient if e_step.method == "policy_gradient" else _ppo)(log_p + reward, log_q, e_step)
    return log_q


def _natural_gradient(log_joint: Array, log_q: Array, e_step: EStep) -> Array:
    eta = e_step.learning_rate
    for _ in range(e_step.steps):
        kept = (1 - eta) * log_q if eta < 1 else np.zeros_like(log_q)  # 0·(−inf) is not a number
        log_q = log_softmax(kept + eta * log_joint)
    return log_q


def _policy_gradient(log_joint: Array, log_q: Array, e_step: EStep) -> Array:
    """One ascent on the logits; ∂ELBO/∂logit = q·(advantage), the advantage being centred under q."""
    q, advantage = np.exp(log_q), _advantage(log_joint, log_q)
    return log_softmax(log_q + e_step.learning_rate * q * advantage)


def _ppo(log_joint: Array, log_q: Array, e_step: EStep) -> Array:
    """One batch: advantages of the policy that would have sampled it, then some ascents of the clipped objective."""
    old, advantage = log_q, _advantage(log_joint, log_q)
    for _ in range(e_step.epochs):
        q, ratio = np.exp(log_q), np.exp(log_q - old)
        clipped = ((advantage > 0) & (ratio > 1 + e_step.clip)) | ((advantage < 0) & (ratio < 1 - e_step.clip))
        push = q * np.where(clipped, 0.0, advantage)
        log_q = log_softmax(log_q + e_step.learning_rate * (push - q * push.sum(1, keepdims=True)))
    return log_q


def _advantage(log_joint: Array, log_q: Array) -> Array:
    value = log_joint - log_q
    return value - (np.exp(log_q) * value).sum(1, keepdims=True)


def _gradient_m_step(model: Model, target: Array, theta: Array, steps: int, rate: float) -> Array:
    for _ in range(steps):
        theta = theta - rate * _m_slope(model, target, theta)
    return theta


def _m_slope(model: Model, target: Array, theta: Array) -> Array:
    return model.mean_features(reasoner(model, theta)) + model.ridge * theta - target


def _record(model: Model, theta: Array, new: Array, log_q: Array, target: Array) -> tuple[Array, float, float, float, float]:
    slope = _m_slope(model, target, new)
    xi = target - model.mean_features(posterior_of(model, theta)) + slope
    gaps = [float(model.weights @ kl_rows(log_q, log_softmax(selected(model, model.logits(point))))) for point in (theta, new)]
    elbo_e, elbo_m = (objective(model, point) - gap for point, gap in zip((theta, new), gaps, strict=True))
    return xi, gaps[0], elbo_e, elbo_m, float(np.linalg.norm(slope))


def identity_error(model: Model, trace: InexactTrace, u: Array) -> Array:
    """(T,) how far the module's identity with ξ is from holding, for a comparison point u (d,): rounding only."""
    here = objective(model, u)
    errors = []
    for old, new, after, xi in zip(trace.theta[:-1], trace.theta[1:], trace.log_marginal[1:], trace.xi, strict=True):
        right = divergence_b(model, u, old) - divergence_b(model, new, old) - divergence_a(model, u, new) - xi @ (u - new)
        errors.append(here - after - right)
    return np.array(errors)


def xi_bound(model: Model, trace: InexactTrace) -> Array:
    """(T,) κ·√(2·KL(Q̂‖Q)) + residual ≥ |ξ_t| (Pinsker), κ the largest distance of a feature from its prompt's mean feature."""
    return _radius(model).max() * np.sqrt(2 * trace.kl_posterior) + trace.residual


def smoothness(model: Model) -> float:
    """An upper bound on every Hessian of A: E_μ max_w ‖φ − mean φ‖² + ridge."""
    return float(model.weights @ _radius(model) ** 2 + model.ridge) or 1.0  # features constant in w have no gradient at all


def _radius(model: Model) -> Array:
    """(X,) largest distance of a pair's features from the prompt's plain mean."""
    centred = model.features - model.features.mean(1, keepdims=True)
    return np.sqrt((centred**2).sum(2).max(1))


def bias_floor(model: Model, theta_star: Array, xi: Array) -> float:
    """½·ξᵀ(−∇²J(θ*))⁻¹ξ: where the gap ends up, to leading order, if every step has the same small ξ (d,)."""
    complete, missing = information(model, theta_star)
    return 0.5 * float(xi @ np.linalg.lstsq(complete - missing, xi, rcond=1e-12)[0])


def sampling_floor(model: Model, theta_star: Array, samples: int) -> float:
    """Expected gap of EM that draws n posterior samples per prompt, in its stationary state near θ*, to order 1/n.

    θ − θ* follows z' = I_A⁻¹(I_B·z + ξ) with Cov ξ = C/n, C = Σ_x μ_x² Cov_{Q_x}(φ). In the basis U with UᵀI_A U = 1
    and UᵀI_B U = diag(ρ) this gives Σ_i (UᵀCU)_ii/(1 + ρ_i)/(2n). For X equally weighted prompts C = I_B/X, and it is
    Σ_i ρ_i/(1 + ρ_i)/(2nX).
    """
    complete, missing = information(model, theta_star)
    basis = visible_directions(model)
    # weights² instead of weights: the draws of different prompts are independent
    squares = Model(model.features, model.evidence, model.weights**2 / (model.weights**2).sum(), model.ridge, model.base)
    noise = squares.covariance(posterior_of(model, theta_star)) * (model.weights**2).sum()
    if basis is not None:
        complete, missing, noise = (basis.T @ matrix @ basis for matrix in (complete, missing, noise))
    rho, directions = scipy.linalg.eigh(missing, complete)
    return float((np.diag(directions.T @ noise @ directions) / (1 + rho)).sum() / (2 * samples))
