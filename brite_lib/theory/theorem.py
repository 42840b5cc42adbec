"""Theorem 3.3 as identities and inequalities that a run can be held against (BRiTE section 3.2, appendix D).

θ_1 is the start, θ_{t+1} the point after t EM iterations; u is any comparison point, usually θ*. Exact for every family,
with no convexity (the divergences are those of :mod:`brite_lib.theory.model`):

    (F)  J(u) − J(θ_{t+1}) = D_B(u, θ_t) − D_B(θ_{t+1}, θ_t) − D_A(u, θ_{t+1})
    (P)  J(θ_{t+1}) − J(θ_t) = D_A(θ_t, θ_{t+1}) + D_B(θ_{t+1}, θ_t)
    (R)  J(θ*) − J(θ_t) = D_A(θ_t, θ*) − D_B(θ_t, θ*)                 where ∇J(θ*) = 0
    (*)  Σ_{t≤T} gap_{t+1} + Σ_{t≤T} slack_t + Σ_{t≤T} D_B(θ_{t+1}, θ_t) + D_A(u, θ_{T+1}) = D_A(u, θ_1),

with slack_t = D_A(u, θ_t) − D_B(u, θ_t). Condition (C), slack_t ≥ 0 for all t ≤ T, gives the theorem:
J(u) − J(θ_{T+1}) ≤ D_A(u, θ_1)/T. (C) holds when J is concave, and from a ridge of diam²/4 on. It can fail otherwise,
and then the bound can. The paper indexes the gap by θ_T; that reading is off by one.
"""

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from brite_lib.errors import InputError
from brite_lib.theory.em import EMTrace
from brite_lib.theory.model import (
    Array,
    Model,
    divergence_a,
    divergence_b,
    gradient,
    kl_reasoners,
    kl_rows,
    log_softmax,
    objective,
)

ROUNDING = 1e-9  # what rounding may add to a ratio or take from a slack, relative to the divergence at the start


@dataclass(frozen=True, eq=False)
class TheoremCheck:
    """The theorem against one run; entry T − 1 of a (steps,) array belongs to the bound for T.

    Attributes:
        gap: (steps,) J(θ*) − J(θ_{T+1}), or J(θ*) − J(θ_T) for the literal index.
        bound: (steps,) D_A(θ*, θ_1)/T.
        ratio: (steps,) gap/bound = T·gap/D_A(θ*, θ_1); above 1 the bound fails.
        slack: (steps,) D_A(θ*, θ_t) − D_B(θ*, θ_t): condition (C) asks for ≥ 0.
        divergence: D_A(θ*, θ_1) = KL(P_{θ_1} ‖ P_{θ*}) + ridge/2·‖θ* − θ_1‖².
        kl: KL(P_{θ_1} ‖ P_{θ*}) alone, as the paper prints it.
        stationary: ‖∇J(θ*)‖ ≤ 1e-9 × max(1, largest feature).
        highest: no point of the run is above θ*.
        condition: (C) holds at every θ_t of the run.
        weak_condition: (steps,) Σ slack + Σ D_B + D_A(θ*, θ_{T+1}) ≥ 0, all that the proof for this T needs.
        holds: the bound holds for every T of the run.
        index: "corrected" or "literal".
    """

    gap: Array
    bound: Array
    ratio: Array
    slack: Array
    divergence: float
    kl: float
    stationary: bool
    highest: bool
    condition: bool
    weak_condition: np.ndarray
    holds: bool
    index: Literal["corrected", "literal"]


@dataclass(frozen=True, eq=False)
class Budget:
    """The terms of (*) after T = 1..steps iterations, each (steps,); ``error`` is what is missing to equality."""

    gap: Array
    slack: Array
    posterior: Array
    remaining: Array
    start: float
    error: Array


@dataclass(frozen=True, eq=False)
class Identities:
    """Absolute errors of (F) and (P), each (steps,), and of (R), (steps + 1,); (R) is only zero where u is stationary."""

    first: Array
    progress: Array
    reverse: Array


def check_theorem(
    trace: EMTrace,
    theta_star: ArrayLike,
    features: ArrayLike,
    evidence: ArrayLike,
    weights: ArrayLike,
    ridge: float = 0.0,
    index: Literal["corrected", "literal"] = "corrected",
    base: ArrayLike | None = None,
) -> TheoremCheck:
    """Hold the bound, and the conditions that it needs, against a run.

    Args:
        trace: of :func:`run_em` on the same arrays, with at least one step.
        theta_star: (d,) the comparison point.
        features: (X, S, d).
        evidence: (X, S).
        weights: (X,).
        ridge: λ ≥ 0.
        index: "corrected" compares the gap after T steps with D/T; "literal" that of θ_T, the start being θ_1.
        base: (X, S) log-weights; None: zero.

    Raises:
        InputError: for bad input.
    """
    if index not in ("corrected", "literal"):
        raise InputError(f"index must be 'corrected' or 'literal', found {index!r}")
    model = Model(features, evidence, weights, ridge, base)
    u = model.theta(theta_star, "theta_star")
    terms = budget(trace, model, u)
    top, steps = objective(model, u), np.arange(1, terms.gap.size + 1)
    gap = top - (trace.log_marginal[1:] if index == "corrected" else trace.log_marginal[:-1])
    room = ROUNDING * max(terms.start, 1e-3)
    slack = np.diff(terms.slack, prepend=0.0)
    # From a start at θ* itself the bound is 0 and so is every gap.
    ratio = steps * gap / terms.start if terms.start > 0 else np.where(np.abs(gap) <= 1e-12, 0.0, np.inf)
    return TheoremCheck(
        gap=gap,
        bound=terms.start / steps,
        ratio=ratio,
        slack=slack,
        divergence=terms.start,
        kl=kl_reasoners(model, trace.theta[0], u),
        stationary=bool(np.linalg.norm(gradient(model, u)) <= 1e-9 * max(1.0, float(np.abs(model.features).max()))),
        highest=bool(top >= trace.log_marginal.max() - 1e-12 * max(1.0, abs(top))),
        condition=bool((slack >= -room).all()),
        weak_condition=terms.slack + terms.posterior + terms.remaining >= -room,
        holds=bool((steps * gap <= terms.start + steps * room).all()),
        index=index,
    )


def budget(trace: EMTrace, model: Model, u: Array) -> Budget:
    """The terms of (*) for a comparison point u (d,).

    Raises:
        InputError: for a run without steps, or of another size than the model.
    """
    if trace.theta.ndim != 2 or trace.theta.shape[1] != model.features.shape[2] or trace.theta.shape[0] < 2:
        raise InputError(f"the trace must hold at least one step in {model.features.shape[2]} dimensions, found {trace.theta.shape}")
    top = objective(model, u)
    to_a = np.array([divergence_a(model, u, theta) for theta in trace.theta])
    to_b = np.array([divergence_b(model, u, theta) for theta in trace.theta[:-1]])
    gap, slack = (top - trace.log_marginal[1:]).cumsum(), (to_a[:-1] - to_b).cumsum()
    posterior = trace.kl_posterior.cumsum()
    return Budget(gap, slack, posterior, to_a[1:], float(to_a[0]), gap + slack + posterior + to_a[1:] - to_a[0])


def identities(trace: EMTrace, model: Model, u: Array) -> Identities:
    """Errors of (F), (P) and (R) along a run, for a comparison point u (d,)."""
    top, value = objective(model, u), trace.log_marginal
    pairs = list(itertools.pairwise(trace.theta))
    steps = np.array([divergence_b(model, new, old) for old, new in pairs])
    first = [divergence_b(model, u, old) - divergence_a(model, u, new) for old, new in pairs]
    progress = [divergence_a(model, old, new) for old, new in pairs]
    reverse = [divergence_a(model, theta, u) - divergence_b(model, theta, u) for theta in trace.theta]
    return Identities(
        first=np.abs(top - value[1:] - (np.array(first) - steps)),
        progress=np.abs(np.diff(value) - (np.array(progress) + steps)),
        reverse=np.abs(top - value - np.array(reverse)),
    )


def unconditional_bound(trace: EMTrace, ridge: float = 0.0, supremum: float = 0.0) -> tuple[Array, Array]:
    """What holds for every family: the smallest step so far, and (sup J − J(θ_1))/T, each (steps,).

    A step is KL(P_{t+1} ‖ P_t) + KL(Q_t ‖ Q_{t+1}) + ridge/2·‖θ_{t+1} − θ_t‖², which (P) telescopes (BRiTE Theorem D.3,
    sharper). ``supremum`` is any upper bound of J; 0 always is one.
    """
    step = trace.kl_step + trace.kl_posterior + ridge / 2 * (np.diff(trace.theta, axis=0) ** 2).sum(1)
    return np.minimum.accumulate(step), (supremum - trace.log_marginal[0]) / np.arange(1, step.size + 1)


def reverse_telescoping(trace: EMTrace, model: Model) -> tuple[Array, Array]:
    """Tabular families without a ridge: Σ_{t≤T} gap_t and KL(P_* ‖ P_1) − KL(P_* ‖ P_{T+1}), equal for every T; each (steps,).

    There P_{t+1} ∝ r·P_t, so with P_* = P_1 restricted to the largest evidence of each prompt and gap_t counted from
    E_μ log max r, the sum telescopes in the other KL. The maximiser of J is at infinity, the paper's bound is empty.
    """
    evidence = np.ones(model.features.shape[:2]) if model.evidence is None else model.evidence
    top = evidence.max(1)
    gap = model.weights @ np.log(top) - trace.log_marginal[:-1]
    logs = [log_softmax(model.logits(theta)) for theta in trace.theta]
    best = np.where(evidence == top[:, None], logs[0], -np.inf)
    best = best - np.logaddexp.reduce(best, axis=1, keepdims=True)
    divergence = np.array([float(model.weights @ kl_rows(best, log)) for log in logs])
    return gap.cumsum(), divergence[0] - divergence[1:]
