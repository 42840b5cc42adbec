"""Exponential families over finitely many (z, y) pairs: log-partitions, their derivatives and divergences, in float64.

For a prompt x and a pair w = (z, y), numbered s = 0..S-1,

    f_θ(x, w) = base(x, w) + ⟨θ, φ(x, w)⟩,    P_θ(w|x) = exp(f_θ − a_x(θ)),    r(x, w) = P(o = 1|x, z, y) on the selected set,
    A(θ) = E_μ log Σ_w exp f_θ + ridge/2·‖θ‖²,    B(θ) = E_μ log Σ_w r·exp f_θ,    J = B − A,    Q_θ(w|x) ∝ r·exp f_θ,

with μ the distribution of the prompts. P is the reasoner, Q its posterior given that the pair is selected, and
J = E_μ log P(selected|x, θ) − ridge/2·‖θ‖² (BRiTE eq. 3.2 and Assumption 3.2). The divergences are those of A and B:

    D_A(u, v) = E_μ KL(P_v ‖ P_u) + ridge/2·‖u − v‖²,    D_B(u, v) = E_μ KL(Q_v ‖ Q_u).
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from brite_lib.errors import InputError

Array = NDArray[np.float64]

BLOCK = 1 << 14  # rows per block of a covariance: no second copy of the features, whatever their number


@dataclass(frozen=True, eq=False)
class Model:
    """The features, evidence and weights of one problem, checked once.

    Args:
        features: (X, S, d) φ, finite.
        evidence: (X, S) r in [0, 1], no row zero everywhere; None: everything is selected.
        weights: (X,) μ, a distribution.
        ridge: λ ≥ 0 of the penalty λ/2·‖θ‖².
        base: (X, S) finite log-weights that θ does not change; None: zero.

    Raises:
        InputError: one sentence naming the argument and the place.
    """

    features: Array
    evidence: Array | None
    weights: Array
    ridge: float = 0.0
    base: Array | None = None

    def __post_init__(self) -> None:
        put = object.__setattr__  # the fields are frozen for everyone else
        features = finite("features", self.features, 3, "(X, S, d)")
        if 0 in features.shape:
            raise InputError(f"features must hold at least one prompt, one pair and one column, found shape {features.shape}")
        put(self, "features", np.ascontiguousarray(features))
        put(self, "weights", check_distribution("weights", self.weights, features.shape[:1]))
        if self.evidence is not None:
            put(self, "evidence", check_evidence(self.evidence, features.shape[:2]))
        if self.base is not None:
            put(self, "base", finite("base", self.base, 2, "(X, S)", features.shape[:2]))
        put(self, "ridge", check_ridge(self.ridge))

    @property
    def rows(self) -> Array:
        """(X·S, d) features, one row per pair; a view."""
        return self.features.reshape(-1, self.features.shape[2])

    @cached_property
    def log_evidence(self) -> Array | None:
        """(X, S) log r, −inf where a pair is not selected; None if everything is selected."""
        if self.evidence is None:
            return None
        with np.errstate(divide="ignore"):
            return np.log(self.evidence)

    def theta(self, theta: ArrayLike, name: str = "theta") -> Array:
        """A parameter vector, checked: (d,) and finite."""
        return finite(name, theta, 1, "(d,)", self.features.shape[2:])

    def logits(self, theta: Array) -> Array:
        """(X, S) f_θ."""
        values = (self.rows @ theta).reshape(self.features.shape[:2])
        return values if self.base is None else values + self.base

    def mean_features(self, probabilities: Array) -> Array:
        """(d,) E_μ E_p φ for probabilities (X, S)."""
        return (self.weights[:, None] * probabilities).ravel() @ self.rows

    def covariance(self, probabilities: Array) -> Array:
        """(d, d) E_μ Cov_p(φ): the Hessian of A without its ridge (p = P) and of B (p = Q); needs O(d²) memory beyond a block."""
        rows, pairs = self.rows, self.features.shape[1]
        # Centred before it is squared: a nearly certain pair would otherwise drown the small variances it leaves.
        means = np.matmul(probabilities[:, None, :], self.features)[:, 0]
        mass = (self.weights[:, None] * probabilities).ravel()
        prompt = np.arange(rows.shape[0]) // pairs
        total = np.zeros((rows.shape[1], rows.shape[1]))
        for start in range(0, rows.shape[0], BLOCK):
            block = slice(start, start + BLOCK)
            centred = rows[block] - means[prompt[block]]
            total += (centred * mass[block, None]).T @ centred
        return (total + total.T) / 2


def finite(name: str, values: ArrayLike, ndim: int, shape_name: str, shape: tuple[int, ...] | None = None) -> Array:
    """A float64 array of the wanted shape without NaN or infinity; else an :class:`InputError` of one sentence."""
    try:
        if np.iscomplexobj(values):
            raise TypeError("its imaginary part would be lost")
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} must be an array of real numbers of shape {shape_name}") from None
    if array.ndim != ndim or (shape is not None and array.shape != shape):
        wanted = shape_name if shape is None else f"{shape_name} = {shape}"
        raise InputError(f"{name} must have shape {wanted}, found {array.shape}")
    if not np.isfinite(array).all():
        place = np.argwhere(~np.isfinite(array))[0].tolist()
        raise InputError(f"{name} must be finite, found {array[tuple(place)]} at index {place}")
    return array


def check_evidence(evidence: ArrayLike, shape: tuple[int, int]) -> Array:
    """(X, S) probabilities P(o = 1|x, z, y), none of the rows zero everywhere."""
    evidence = finite("evidence", evidence, 2, "(X, S)", shape)
    for wrong, word in ((evidence < 0, "negative"), (evidence > 1, "larger than 1")):
        if wrong.any():
            place = np.argwhere(wrong)[0].tolist()
            raise InputError(f"evidence is a probability, but at index {place} it is {word} ({evidence[tuple(place)]:g})")
    if (empty := ~evidence.any(axis=1)).any():
        raise InputError(f"evidence of prompt {int(np.argmax(empty))} is zero for every pair, so nothing is selected: drop that prompt")
    return evidence


def check_distribution(name: str, values: ArrayLike, shape: tuple[int, ...]) -> Array:
    """Non-negative numbers that sum to 1 over their last axis (to 1e-8)."""
    values = finite(name, values, len(shape), "(X,)" if len(shape) == 1 else "(X, S)", shape)
    if (values < 0).any() or (np.abs(values.sum(-1) - 1) > 1e-8).any():
        sums = values.sum(-1)
        raise InputError(f"{name} must be non-negative and sum to 1, found entries from {values.min():g} and sums up to {sums.max():g}")
    return values


def check_ridge(ridge: float) -> float:
    """A finite number that is not negative."""
    if not isinstance(ridge, (int, float, np.number)) or not np.isfinite(ridge) or ridge < 0:
        raise InputError(f"ridge must be a finite number of at least 0, found {ridge!r}")
    return float(ridge)


def check_positive(name: str, value: float) -> float:
    """A finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not 0 < value < np.inf:
        raise InputError(f"{name} must be a positive number, found {value!r}")
    return float(value)


def check_counts(least: int, **counts: int) -> None:
    """Whole numbers of at least ``least``, by their names."""
    for name, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, found {value!r}")


def log_sum_exp(values: Array) -> Array:
    """log Σ exp over the last axis; three lines, because scipy's costs twenty times as much on small arrays."""
    top = values.max(-1, keepdims=True)
    return np.log(np.exp(values - top).sum(-1)) + top[..., 0]


def log_softmax(values: Array) -> Array:
    """Log-probabilities over the last axis; −inf stays −inf."""
    return values - log_sum_exp(values)[..., None]


def softmax(values: Array) -> Array:
    """exp(values) normalised over the last axis."""
    weights = np.exp(values - values.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def selected(model: Model, logits: Array) -> Array:
    """(X, S) log of r·exp f_θ."""
    return logits if model.log_evidence is None else logits + model.log_evidence


def partition_a(model: Model, theta: Array) -> float:
    """A(θ) = E_μ a_x(θ) + ridge/2·‖θ‖²."""
    return float(model.weights @ log_sum_exp(model.logits(theta)) + model.ridge / 2 * theta @ theta)


def partition_b(model: Model, theta: Array) -> float:
    """B(θ) = E_μ b_x(θ), the log-partition of the selected pairs."""
    return float(model.weights @ log_sum_exp(selected(model, model.logits(theta))))


def objective(model: Model, theta: Array) -> float:
    """J(θ) = B(θ) − A(θ)."""
    logits = model.logits(theta)
    log_p = log_sum_exp(selected(model, logits)) - log_sum_exp(logits)
    return float(model.weights @ log_p - model.ridge / 2 * theta @ theta)


def reasoner(model: Model, theta: Array) -> Array:
    """(X, S) P_θ(z, y|x)."""
    return softmax(model.logits(theta))


def posterior_of(model: Model, theta: Array) -> Array:
    """(X, S) Q_θ(z, y|x) ∝ r·P_θ: the exact E-step (BRiTE eq. 3.4)."""
    return softmax(selected(model, model.logits(theta)))


def gradient(model: Model, theta: Array) -> Array:
    """(d,) ∇J = E_Q φ − E_P φ − ridge·θ."""
    return model.mean_features(posterior_of(model, theta) - reasoner(model, theta)) - model.ridge * theta


def information(model: Model, theta: Array) -> tuple[Array, Array]:
    """(I_A, I_B), each (d, d): the Hessians E_μ Cov_P(φ) + ridge·1 of A and E_μ Cov_Q(φ) of B."""
    complete = model.covariance(reasoner(model, theta)) + model.ridge * np.eye(theta.size)
    return complete, model.covariance(posterior_of(model, theta))


def hessian(model: Model, theta: Array) -> Array:
    """(d, d) ∇²J = I_B − I_A."""
    complete, missing = information(model, theta)
    return missing - complete


def kl_rows(log_p: Array, log_q: Array) -> Array:
    """KL(p ‖ q) over the last axis, for log-probabilities; inf where q is 0 and p is not.

    Each pair adds p·(ratio − 1 − log ratio) ≥ 0, so a divergence of 1e-20 has correct digits where Σ p·log(p/q) would
    leave 1e-16 of rounding.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        difference = log_q - log_p
        p = np.exp(log_p)
        near = p * (np.expm1(difference) - difference)
        far = np.exp(log_q) - p - p * difference
    terms = np.where(np.abs(difference) < 1, near, far)
    return np.where(np.isneginf(log_p), np.exp(log_q), terms).sum(-1)


def kl_reasoners(model: Model, p: Array, q: Array) -> float:
    """E_μ KL(P_p ‖ P_q) between the reasoners of two parameters."""
    return float(model.weights @ _kl(model.logits(p), model.logits(q)))


def kl_posteriors(model: Model, p: Array, q: Array) -> float:
    """E_μ KL(Q_p ‖ Q_q) between the posteriors of two parameters."""
    return float(model.weights @ _kl(selected(model, model.logits(p)), selected(model, model.logits(q))))


def _kl(logits_p: Array, logits_q: Array) -> Array:
    return kl_rows(log_softmax(logits_p), log_softmax(logits_q))


def divergence_a(model: Model, u: Array, v: Array) -> float:
    """D_A(u, v) = A(u) − A(v) − ⟨∇A(v), u − v⟩ = E_μ KL(P_v ‖ P_u) + ridge/2·‖u − v‖²: mind the order."""
    return kl_reasoners(model, v, u) + model.ridge / 2 * float((u - v) @ (u - v))


def divergence_b(model: Model, u: Array, v: Array) -> float:
    """D_B(u, v) = B(u) − B(v) − ⟨∇B(v), u − v⟩ = E_μ KL(Q_v ‖ Q_u)."""
    return kl_posteriors(model, v, u)
