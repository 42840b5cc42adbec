"""Exact EM in a finite exponential family: E-step in closed form, M-step by damped Newton (BRiTE eqs. 3.4 and 3.5).

One EM iteration is one step of mirror ascent on J with mirror map A and step size 1, ∇A(θ_{t+1}) = ∇B(θ_t). What
follows from that is checked in :mod:`brite_lib.theory.theorem`. An iteration costs O(X·S·d²) per Newton step and holds
no array larger than the features.
"""

import itertools
from dataclasses import dataclass

import numpy as np
import scipy.linalg
from numpy.typing import ArrayLike

from brite_lib.errors import InputError
from brite_lib.theory.model import (
    BLOCK,
    Array,
    Model,
    check_counts,
    check_distribution,
    finite,
    kl_posteriors,
    kl_reasoners,
    log_sum_exp,
    objective,
    posterior_of,
    softmax,
)

TOLERANCE = 1e-10  # accepted gradient norm of an M-step, relative to max(1, norm at its start)
NEWTON_STEPS = 500
LARGEST_MOVE = 30.0  # logits change by at most this much in the first Newton step; more once whole steps succeed


@dataclass(frozen=True, eq=False)
class EMTrace:
    """A run of T iterations of EM; entry t of a (T,) array belongs to the step from θ_t to θ_{t+1}.

    Attributes:
        theta: (T + 1, d) parameters, the start first.
        log_marginal: (T + 1,) J(θ_t) in nats.
        kl_step: (T,) E_μ KL(P_{t+1} ‖ P_t) of the reasoners.
        kl_posterior: (T,) E_μ KL(Q_t ‖ Q_{t+1}) of the posteriors.
        residual: (T,) gradient norm of the M-step's objective at its end.
    """

    theta: Array
    log_marginal: Array
    kl_step: Array
    kl_posterior: Array
    residual: Array


@dataclass(frozen=True, eq=False)
class MStep:
    """An M-step's ``theta`` (d,), its ``residual`` (gradient norm) and its Newton ``steps``."""

    theta: Array
    residual: float
    steps: int


def log_marginal(
    theta: ArrayLike, features: ArrayLike, evidence: ArrayLike, weights: ArrayLike, ridge: float = 0.0, base: ArrayLike | None = None
) -> float:
    """J(θ) = E_μ log P(selected|x, θ) − ridge/2·‖θ‖² in nats; shapes and errors as in :class:`~brite_lib.theory.model.Model`."""
    model = Model(features, evidence, weights, ridge, base)
    return objective(model, model.theta(theta))


def posterior(theta: ArrayLike, features: ArrayLike, evidence: ArrayLike, base: ArrayLike | None = None) -> Array:
    """(X, S) Q(z, y|x) ∝ evidence·P_θ(z, y|x), the E-step (BRiTE eq. 3.4); shapes and errors as in ``Model``."""
    count = len(finite("features", features, 3, "(X, S, d)"))
    model = Model(features, evidence, np.full(count, 1 / max(count, 1)), 0.0, base)  # the weights play no part
    return posterior_of(model, model.theta(theta))


def m_step(
    q: ArrayLike, features: ArrayLike, weights: ArrayLike, theta0: ArrayLike, ridge: float = 0.0, base: ArrayLike | None = None
) -> Array:
    """argmax_θ E_μ E_q log P_θ(z, y|x) − ridge/2·‖θ‖² (BRiTE eq. 3.5), started at ``theta0``.

    Directions that change no probability keep their value in ``theta0`` when ridge = 0. If q's mean features lie on the
    boundary of what the family can reach, the supremum is at infinity and the result is a point far out whose residual is
    below the tolerance; :func:`brite_lib.theory.m_step_attained` tells the two apart.

    Args:
        q: (X, S) distributions over the pairs, one row per prompt.
        features: (X, S, d).
        weights: (X,) distribution of the prompts.
        theta0: (d,) start.
        ridge: λ ≥ 0.
        base: (X, S) log-weights; None: zero.

    Returns:
        (d,) θ with a gradient norm of at most 1e-10 × max(1, gradient norm at ``theta0``).

    Raises:
        InputError: for bad input, or if the residual is not reached.
    """
    model = Model(features, None, weights, ridge, base)
    q = check_distribution("q", q, model.features.shape[:2])
    return solve_m_step(model, model.mean_features(q), model.theta(theta0, "theta0"), visible_directions(model)).theta


def run_em(
    features: ArrayLike,
    evidence: ArrayLike,
    weights: ArrayLike,
    theta0: ArrayLike,
    steps: int,
    ridge: float = 0.0,
    base: ArrayLike | None = None,
) -> EMTrace:
    """``steps`` iterations of exact EM from ``theta0`` (d,); other shapes and errors as in ``Model``.

    Raises:
        InputError: for bad input, or if an M-step does not reach its residual.
    """
    model = Model(features, evidence, weights, ridge, base)
    return run_em_on(model, model.theta(theta0, "theta0"), steps)


def run_em_on(model: Model, theta0: Array, steps: int) -> EMTrace:
    """:func:`run_em` on a checked model."""
    check_counts(0, steps=steps)
    basis = visible_directions(model)
    theta, done = [theta0], []
    for _ in range(steps):
        done.append(em_step(model, theta[-1], basis))
        theta.append(done[-1].theta)
    pairs = list(itertools.pairwise(theta))
    return EMTrace(
        theta=np.array(theta),
        log_marginal=np.array([objective(model, point) for point in theta]),
        kl_step=np.array([kl_reasoners(model, new, old) for old, new in pairs]),
        kl_posterior=np.array([kl_posteriors(model, old, new) for old, new in pairs]),
        residual=np.array([step.residual for step in done]),
    )


def em_step(model: Model, theta: Array, basis: Array | None) -> MStep:
    """E-step and M-step from θ (d,)."""
    return solve_m_step(model, model.mean_features(posterior_of(model, theta)), theta, basis)


def visible_directions(model: Model) -> Array | None:
    """(d, r) orthonormal basis of the directions of θ that change some probability; None: all of them, or a ridge sees to it.

    It is the row space of the features centred over the pairs of each prompt, by a QR that takes a block at a time and
    so keeps full precision (a Gram matrix would halve the digits) without a copy of the features.
    """
    if model.ridge > 0:
        return None
    rows, (count, pairs, size) = model.rows, model.features.shape
    means = model.features.mean(1)
    prompt = np.arange(count * pairs) // pairs
    used = (model.weights > 0).astype(np.float64)
    triangle = np.zeros((0, size))
    for start in range(0, count * pairs, BLOCK):
        block = prompt[start : start + BLOCK]
        centred = (rows[start : start + BLOCK] - means[block]) * used[block, None]
        triangle = np.linalg.qr(np.vstack([triangle, centred]), mode="r")
    _, values, directions = np.linalg.svd(triangle, full_matrices=False)
    # A direction that shows less than this can't lift a gradient above the tolerance, but would send θ to 1e11 and beyond.
    kept = values > 1e-11 * max(values[0], np.abs(rows).max() * np.sqrt(count * pairs))
    return None if kept.sum() == size else directions[kept].T


def solve_m_step(model: Model, target: Array, theta: Array, basis: Array | None) -> MStep:
    """Minimise A(θ) − ⟨θ, target⟩ by damped Newton.

    The search goes on past the tolerance until the gradient stops shrinking: the identities of the theorem are as exact
    as the residual is small. Near the end only rounding decides whether the value fell, so steps are then judged by
    their gradient and the best one is kept.

    Args:
        target: (d,) mean features to reach, E_μ E_q φ.
        theta: (d,) start.
        basis: as :func:`visible_directions` returns it.

    Raises:
        InputError: if the gradient norm stays above 1e-10 × max(1, norm at the start).
    """
    null = None if basis is None else np.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :]
    best, best_norm, start_norm, stalled, reach, damping = theta, np.inf, 0.0, 0, LARGEST_MOVE, 0.0
    floor = 2e-16 * max(1.0, float(np.abs(model.features).max()), float(np.abs(target).max()))
    for step in range(NEWTON_STEPS + 1):
        logits = model.logits(theta)
        p = softmax(logits)
        slope = model.mean_features(p) + model.ridge * theta - target
        norm = float(np.linalg.norm(slope if basis is None else basis.T @ slope))
        start_norm = norm if step == 0 else start_norm
        tolerance = TOLERANCE * max(1.0, start_norm)
        stalled = 0 if norm < best_norm / 2 else stalled + 1
        if norm < best_norm:
            best, best_norm = theta, norm
        patience = 2 if best_norm <= 1e3 * floor else 20
        if best_norm <= floor or (best_norm <= tolerance and stalled >= patience) or step == NEWTON_STEPS:
            break
        direction = _newton_direction(model, p, slope, null, damping)
        move = (model.rows @ direction).reshape(logits.shape)
        scale = min(1.0, reach / max(float(np.ptp(move, axis=1).max()), 1e-300))
        size, fell = _step_size(model, theta, scale * direction, logits, scale * move, target, scale * float(slope @ direction))
        # Whole steps that do lower the value may grow: the way out of a flat stretch can be thousands of logits long.
        reach = 4 * reach if fell and size == 1 and scale < 1 else max(LARGEST_MOVE, size * reach)
        # A short step means that rounding in flat directions leads the way: damp them until whole steps succeed again.
        damping = max(1e-14, 100 * damping) if size < 0.1 else damping / 100
        theta = theta - size * scale * direction
    if best_norm > tolerance:
        raise InputError(
            f"the M-step stopped at a gradient norm of {best_norm:.1e}, above the {tolerance:.1e} that counts as solved: "
            "float64 cannot resolve its maximiser, so use a larger ridge or features on a smaller scale"
        )
    return MStep(best, best_norm, step)


def _newton_direction(model: Model, p: Array, slope: Array, null: Array | None, damping: float) -> Array:
    """(d,) H⁻¹·slope by Cholesky, orthogonal to the columns of ``null``.

    H is scaled to a unit diagonal first: its entries are as exact as the probabilities are, so rare pairs keep their
    digits (a family of indicator features is then perfectly conditioned). ``damping`` is added to that
    diagonal, or as much as Cholesky needs.
    """
    curvature = model.covariance(p) + model.ridge * np.eye(slope.size)
    diagonal = np.sqrt(np.diag(curvature))
    diagonal = np.where(diagonal > 0, diagonal, 1.0)
    scaled = curvature / np.outer(diagonal, diagonal)
    if null is not None:
        kernel = np.linalg.qr(diagonal[:, None] * null)[0]  # the null space of the scaled matrix; it gets eigenvalue 1
        scaled = scaled + kernel @ kernel.T
    while True:
        try:
            factor = scipy.linalg.cho_factor(scaled + damping * np.eye(slope.size), lower=True)
            direction = scipy.linalg.cho_solve(factor, slope / diagonal) / diagonal
            if np.isfinite(direction).all():
                return direction if null is None else direction - null @ (null.T @ direction)
        except np.linalg.LinAlgError:
            pass
        damping = max(10 * damping, 1e-15)


def _step_size(
    model: Model, theta: Array, direction: Array, logits: Array, move: Array, target: Array, descent: float
) -> tuple[float, bool]:
    """Largest 1, 1/2, 1/4, … that lowers the value by a hundredth of a percent of what the slope promises, up to rounding.

    Works on the logits, so that a trial costs O(X·S). Also returns whether the value fell by more than rounding.
    """

    def value(size: float) -> float:
        point = theta - size * direction
        return float(model.weights @ log_sum_exp(logits - size * move) + model.ridge / 2 * point @ point - point @ target)

    here = value(0.0)
    noise = 1e-15 * (1 + abs(here) + float(np.abs(logits).max()) + abs(float(theta @ target)))
    size, there = 1.0, value(1.0)
    while there > here - 1e-4 * size * descent + noise and size > 1e-12:
        size /= 2
        there = value(size)
    return size, there < here - noise
