"""The θ* that the theorem compares with, in three definitions, and whether it exists at all.

The theorem speaks of argmax J. J is a difference of convex functions, so that can be the limit of the run itself
(:func:`own_limit`), a better maximum elsewhere (:func:`best_of_starts`), or nothing: with ridge 0 the supremum is often
at infinity, where the bound says nothing and any finite point can stand in (:func:`comparator`).
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import scipy.linalg
import scipy.optimize
from numpy.typing import ArrayLike

from brite_lib.theory.em import LARGEST_MOVE, EMTrace, em_step, visible_directions
from brite_lib.theory.model import Array, Model, check_distribution, gradient, hessian, information, objective

STATIONARY = 1e-11  # gradient norm of a maximum, relative to the features' size
CURVED = 1e-8  # smallest eigenvalue of −∇²J at a maximum, relative to the features' variance
NEAR = 1.0  # logits: a Newton step this small is tried, and kept if J is concave all the way


@dataclass(frozen=True, eq=False)
class Optimum:
    """A comparison point of the theorem.

    Attributes:
        theta: (d,).
        value: J(θ) in nats.
        gradient_norm: ‖∇J(θ)‖ over the directions that change some probability.
        curvature: smallest eigenvalue of −∇²J over those directions.
        attained: the gradient vanishes and the curvature does not: a non-degenerate local maximum. A gradient alone
            proves nothing, it decays like exp(−logit) on the way to a supremum at infinity.
        source: "limit", "best" or "comparator".
    """

    theta: Array
    value: float
    gradient_norm: float
    curvature: float
    attained: bool
    source: Literal["limit", "best", "comparator"]


def comparator(model: Model, u: ArrayLike) -> Optimum:
    """Any finite point (d,) in the place of θ*: identity (F) and the budget hold for it as well."""
    return _described(model, model.theta(u, "u"), visible_directions(model), "comparator")


def own_limit(model: Model, start: EMTrace | ArrayLike, max_steps: int = 20_000) -> Optimum:
    """The limit of the EM run from ``start`` (d,), or of a run made so far, polished by Newton.

    EM goes on until a maximum lies within about a logit and J is strictly concave along the way there: the run is then in
    its basin and Newton finishes. Small increments alone do not end it, a plateau near a saddle has those too. When J is
    flat, or ``max_steps`` are spent, the last point is returned with ``attained`` False.
    """
    theta = start.theta[-1] if isinstance(start, EMTrace) else model.theta(start, "start")
    basis = visible_directions(model)
    check = 1
    for step in range(max_steps + 1):
        if step == check or step == 0:
            check = step + max(1, min(50, step // 4))
            if (found := _polished(model, theta, basis)) is not None:
                return found
            here = _described(model, theta, basis, "limit")
            if here.gradient_norm <= STATIONARY * _size(model) and abs(here.curvature) <= CURVED * _spread(model):
                break
        theta = em_step(model, theta, basis).theta
    return _described(model, theta, basis, "limit")


def best_of_starts(model: Model, starts: int = 24, seed: int = 0, also: Optimum | None = None) -> Optimum:
    """The highest of ``starts`` Newton ascents of J: a lower bound on the global maximum.

    Args:
        model: the problem.
        starts: random starts, N(0, 1) directions that give the logits a standard deviation of 3.
        seed: of the starts.
        also: another candidate, usually the run's own limit; it is kept unless something is higher by 1e-10.
    """
    rng = np.random.default_rng(seed)
    basis = visible_directions(model)
    found = also
    for _ in range(starts):
        direction = rng.normal(size=model.features.shape[2])
        theta = 3 * direction / max(float(np.std(model.rows @ direction)), 1e-300)
        candidate = _described(model, ascend(model, theta, basis), basis, "best")
        if found is None or candidate.value > found.value + 1e-10:
            found = candidate
    return replace(found, source="best")


def missing_information(model: Model, theta: ArrayLike) -> float:
    """ρ = λ_max(I_A⁻¹ I_B): the largest share of the information that conditioning on "selected" leaves missing.

    Near a maximum θ* each EM iteration multiplies the gap by ρ², and ρ < 1 there.
    """
    complete, missing = information(model, model.theta(theta))
    basis = visible_directions(model)
    if basis is not None:
        complete, missing = basis.T @ complete @ basis, basis.T @ missing @ basis
    return float(scipy.linalg.eigh(missing, complete, eigvals_only=True)[-1]) if missing.size else 0.0


def m_step_attained(q: ArrayLike, features: ArrayLike, weights: ArrayLike, ridge: float = 0.0) -> bool:
    """Whether the M-step for q (X, S) has a maximiser, by a linear programme.

    It has none exactly if some direction u lets every pair that q uses, in every prompt, have the largest ⟨u, φ⟩ of
    that prompt without ⟨u, φ⟩ being constant: the likelihood then grows along u for ever. A ridge prevents it.
    """
    model = Model(features, None, weights, ridge)
    used = check_distribution("q", q, model.features.shape[:2]) > 0
    if model.ridge > 0 or used[model.weights > 0].all():
        return True
    basis = visible_directions(model)
    features = model.features[model.weights > 0] if basis is None else model.features[model.weights > 0] @ basis
    used = used[model.weights > 0]
    prompts, pairs, size = features.shape
    if size == 0:
        return True
    # Orthonormal columns: a direction that the features hardly show would otherwise hide below the solver's tolerance.
    features = features - features.mean(1, keepdims=True)
    features = (np.linalg.qr(features.reshape(-1, size))[0] * np.sqrt(prompts * pairs)).reshape(features.shape)
    # Unknowns: u, then the top c_x of each prompt. Used pairs: ⟨u, φ⟩ = c_x; the others: ⟨u, φ⟩ ≤ c_x.
    rows = np.concatenate([features.reshape(-1, size), -np.repeat(np.eye(prompts), pairs, axis=0)], axis=1)
    used = used.ravel()
    bounds = [(-1, 1)] * size + [(None, None)] * prompts
    answer = scipy.optimize.linprog(
        rows.sum(0),  # minus the total by which the pairs stay below their prompt's top
        A_ub=rows[~used], b_ub=np.zeros((~used).sum()), A_eq=rows[used], b_eq=np.zeros(used.sum()), bounds=bounds, method="highs",
    )  # fmt: skip
    return bool(answer.fun > -1e-5)


def ascend(model: Model, theta: Array, basis: Array | None, max_steps: int = 300) -> Array:
    """Newton ascent of J, which need not be concave; (d,) → (d,).

    Eigenvalues of the Hessian count by their size, so that a saddle repels; a step changes no logit by more than 30.
    """
    best, best_norm, stalled = theta, np.inf, 0
    for _ in range(max_steps):
        gain, bend = _visible(model, theta, basis)
        norm = float(np.linalg.norm(gain))
        stalled = 0 if norm < best_norm / 2 else stalled + 1
        if norm < best_norm:
            best, best_norm = theta, norm
        if best_norm <= 1e-15 or (best_norm <= STATIONARY * _size(model) and stalled >= 3):
            break
        values, vectors = np.linalg.eigh(bend)
        direction = vectors @ ((vectors.T @ gain) / np.maximum(np.abs(values), 1e-14 * max(np.abs(values).max(), 1e-300)))
        promised = float(gain @ direction)
        direction = direction if basis is None else basis @ direction
        size = min(1.0, LARGEST_MOVE / max(float(np.abs(model.rows @ direction).max()), 1e-300))
        here = objective(model, theta)
        noise = 1e-14 * (1 + abs(here))
        while objective(model, theta + size * direction) < here + 1e-4 * size * promised - noise and size > 1e-14:
            size /= 2
        theta = theta + size * direction
    return best


def _polished(model: Model, theta: Array, basis: Array | None) -> Optimum | None:
    """The maximum that Newton reaches from a point in its basin; None if that is not certain enough."""
    slope, bend = _visible(model, theta, basis)
    if _smallest(bend) <= CURVED * _spread(model):
        return None
    step = np.linalg.solve(bend, slope)
    if _move(model, step if basis is None else basis @ step) > NEAR:
        return None
    end = ascend(model, theta, basis, 50)
    found = _described(model, end, basis, "limit")
    if not found.attained or _move(model, end - theta) > 3 * NEAR:
        return None
    between = [_visible(model, theta + share * (end - theta), basis)[1] for share in (0.25, 0.5, 0.75)]
    return found if all(_smallest(bend) > 0 for bend in between) else None


def _visible(model: Model, theta: Array, basis: Array | None) -> tuple[Array, Array]:
    """∇J and −∇²J over the directions that change some probability."""
    slope, bend = gradient(model, theta), -hessian(model, theta)
    return (slope, bend) if basis is None else (basis.T @ slope, basis.T @ bend @ basis)


def _described(model: Model, theta: Array, basis: Array | None, source: Literal["limit", "best", "comparator"]) -> Optimum:
    slope, bend = _visible(model, theta, basis)
    norm, curvature = float(np.linalg.norm(slope)), _smallest(bend)
    attained = norm <= STATIONARY * _size(model) and curvature > CURVED * _spread(model)
    return Optimum(theta, objective(model, theta), norm, curvature, attained, source)


def _smallest(matrix: Array) -> float:
    """Smallest eigenvalue; 0 if no direction is visible."""
    return float(np.linalg.eigvalsh(matrix)[0]) if matrix.size else 0.0


def _move(model: Model, step: Array) -> float:
    """Largest change of a logit difference within a prompt."""
    return float(np.ptp((model.rows @ step).reshape(model.features.shape[:2]), axis=1).max())


def _size(model: Model) -> float:
    return max(1.0, float(np.abs(model.features).max()))


def _spread(model: Model) -> float:
    """Mean variance of a feature over the pairs of a prompt: what a curvature is small against."""
    return float(model.features.var(1).mean())
