"""Problems to try the theorem on: random ones, families where it must hold, where it fails, and where 1/T is tight.

The named families follow theory.md sections 1 and 2: V1 ``saddle_escape``, V2 ``two_basins`` and V3 ``plateau`` violate the
bound; S ``tight_once``, P ``tight_slope`` and G ``linear_rate`` satisfy its hypotheses and show how fast EM can be.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.spatial.distance
from numpy.typing import ArrayLike

from brite_lib.errors import InputError
from brite_lib.theory.em import EMTrace, run_em_on
from brite_lib.theory.features import Kernel, kernel_features
from brite_lib.theory.model import Array, Model, check_evidence, check_positive, check_ridge, finite

VERIFIERS = ("answer", "pair", "noisy", "soft")


@dataclass(frozen=True, eq=False)
class Instance:
    """A problem with a start, in the contract's arrays.

    Attributes:
        features: (X, S, d) φ; S numbers the pairs (z, y), y fastest.
        evidence: (X, S) P(o = 1|x, z, y) on the selected set.
        weights: (X,) distribution of the prompts.
        theta0: (d,) start.
        ridge: λ ≥ 0.
        base: (X, S) log-weights of the pairs, or None for zero.
    """

    features: Array
    evidence: Array
    weights: Array
    theta0: Array
    ridge: float = 0.0
    base: Array | None = None

    @cached_property
    def model(self) -> Model:
        """The checked :class:`~brite_lib.theory.model.Model`."""
        return Model(self.features, self.evidence, self.weights, self.ridge, self.base)

    def run(self, steps: int) -> EMTrace:
        """``steps`` iterations of exact EM from ``theta0``."""
        return run_em_on(self.model, self.model.theta(self.theta0, "theta0"), steps)


def verifier_evidence(correct: ArrayLike) -> Array:
    """(X, S) of 0 and 1 for a hard verifier's verdicts."""
    correct = np.asarray(correct)
    return check_evidence(correct.astype(np.float64), correct.shape)


def noisy_evidence(correct: ArrayLike, error: float = 0.05) -> Array:
    """(X, S) for a 0/1 verifier that is wrong with probability ``error``, in [0, 1]."""
    if not 0 <= error <= 1:
        raise InputError(f"error is a probability, found {error}")
    correct = np.asarray(correct, dtype=bool)
    return check_evidence(np.where(correct, 1 - error, error), correct.shape)


def soft_evidence(reward: ArrayLike, beta: float = 1.0) -> Array:
    """exp(R/β), (X, S), for rewards R ≤ 0 (BRiTE section 4.1, reward ii); a larger R would not be a probability."""
    reward = finite("reward", reward, 2, "(X, S)")
    beta = check_positive("beta", beta)
    if reward.max() > 0:
        raise InputError(f"rewards must be at most 0 so that exp(R/beta) is a probability, found {reward.max():g}: subtract the largest")
    return check_evidence(np.exp(reward / beta), reward.shape)


def sufficient_ridge(features: ArrayLike, evidence: ArrayLike) -> float:
    """diam²/4, the ridge from which J is concave: diam is the largest distance between selected φ of one prompt (Popoviciu)."""
    features, evidence = np.asarray(features, dtype=np.float64), np.asarray(evidence)
    chosen = (rows[kept > 0] for rows, kept in zip(features, evidence, strict=True))
    return max(float(scipy.spatial.distance.pdist(rows, "sqeuclidean").max(initial=0.0)) for rows in chosen) / 4


def random_instance(
    seed: int,
    prompts: int = 4,
    rationales: int = 6,
    answers: int = 4,
    kernel: str | Kernel = "rbf",
    rank: int | None = 8,
    length_scale: float = 1.0,
    verifier: Literal["answer", "pair", "noisy", "soft"] = "answer",
    beta: float = 1.0,
    one_answer: bool = False,
    ridge: float = 1e-2,
    start: float = 1.0,
    dimensions: int = 2,
) -> Instance:
    """A random problem: every (x, z, y) is a standard normal point, the kernel says how much its logits share.

    Args:
        seed: everything derives from it.
        prompts: |X|; their weights are drawn from a flat Dirichlet distribution.
        rationales: |Z|.
        answers: |Y|, at least 2.
        kernel: as in :func:`kernel_features`, with ``rank`` and ``length_scale``.
        rank: None for all columns.
        length_scale: of the RBF kernel.
        verifier: "answer" 0/1 on y (one right answer per prompt), "pair" 0/1 on (z, y) (each right with probability 0.3,
            one at least), "noisy" 0/1 on y with 5 % error, "soft" exp(R/beta) with R = −|N(0, 1)|.
        beta: of the soft verifier.
        one_answer: select only y* as well (the paper's Y_s); else every answer that the verifier passes.
        ridge: λ.
        start: standard deviation of the logits at the start; 0 starts at θ = 0.
        dimensions: of the points.
    """
    if min(prompts, rationales, dimensions) < 1 or answers < 2:
        raise InputError("random_instance needs at least one prompt, one rationale, one dimension and two answers")
    if verifier not in VERIFIERS:
        raise InputError(f"verifier must be one of {', '.join(VERIFIERS)}, found {verifier!r}")
    rng = np.random.default_rng(seed)
    pairs = rationales * answers
    points = rng.normal(size=(prompts * pairs, dimensions))
    features = kernel_features(points, kernel, rank, length_scale).reshape(prompts, pairs, -1)
    gold = rng.integers(answers, size=prompts)
    right = np.tile(np.arange(answers), rationales) == gold[:, None]
    if verifier == "pair":
        passed = rng.random((prompts, pairs)) < 0.3
        passed[np.arange(prompts), rng.integers(rationales, size=prompts) * answers + gold] = True
        evidence = verifier_evidence(passed)
    elif verifier == "soft":
        evidence = soft_evidence(-np.abs(rng.normal(size=(prompts, pairs))), beta)
    else:
        evidence = noisy_evidence(right, 0.05 if verifier == "noisy" else 0.0)
    evidence = np.where(right, evidence, 0.0) if one_answer else evidence
    direction = rng.normal(size=features.shape[2])
    spread = float(np.std(features @ direction))
    theta0 = start * direction / (spread if spread > 1e-6 * np.abs(features).max() else 1.0)  # features may be constant
    return Instance(features, evidence, rng.dirichlet(np.ones(prompts)), theta0, ridge)


def concave(seed: int, prompts: int = 3, size: int = 6, start: float = 3.0) -> Instance:
    """L is concave: a verified box on a grid of (z, y) with log-concave weights, each prompt with its own linear map of the grid.

    Cutting a log-concave law to an interval shrinks its variance, so Cov_Q ≤ Cov_P for every θ. The box leaves out the
    grid's edges, so θ* exists.
    """
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size), indexing="ij"), -1).reshape(-1, 2)
    features, evidence, base = [], [], []
    for _ in range(prompts):
        features.append(grid @ rng.normal(size=(2, 2)) / np.sqrt(2))
        low = rng.integers(1, size - 1, size=2)
        high = rng.integers(low, size - 1)
        evidence.append(((grid >= low) & (grid <= high)).all(1))
        steps = np.sort(rng.normal(size=(2, size - 1)))[:, ::-1]  # falling increments: a log-concave weight on each axis
        axis = np.concatenate([np.zeros((2, 1)), steps.cumsum(1)], axis=1)
        base.append(axis[0, grid[:, 0]] + axis[1, grid[:, 1]])
    theta0 = start * rng.normal(size=2)
    return Instance(np.array(features), verifier_evidence(evidence), rng.dirichlet(np.ones(prompts)), theta0, 0.0, np.array(base))


def ridge(seed: int, fraction: float = 1.0, **settings: Any) -> Instance:
    """A random instance whose ridge is ``fraction`` of diam²/4; from 1 on J is concave and the bound holds for every start."""
    plain = random_instance(seed, ridge=0.0, **settings)
    level = check_ridge(fraction) * sufficient_ridge(plain.features, plain.evidence)
    return Instance(plain.features, plain.evidence, plain.weights, plain.theta0, level, plain.base)


def saddle_escape(epsilon: float = 1e-12) -> Instance:
    """V1: θ = 0 is a local minimum between two maxima at ±4.9516; the bound's ratio grows like log(1/epsilon)."""
    return _line([-2, -1, 0, 1, 2], [1e-3, 1, 20, 1, 1e-3], [0, 1, 0, 1, 0], epsilon)


def two_basins() -> Instance:
    """V2: the run from θ = 1 ends in the lower maximum, so its gap to the best one stays."""
    return _line([-2, -1, 0, 1, 2], [1e-3, 1, 20, 1, 5e-2], [0, 1, 0, 1, 0], 1.0)


def plateau() -> Instance:
    """V3: an ordinary RBF instance (two prompts, a 0/1 verifier, ridge 1e-3) that lingers near a saddle; about 1 seed in 100."""
    return random_instance(120, prompts=2, rationales=5, answers=4, rank=5, ridge=1e-3)


def tight_once(steps: int = 30, sharpness: float = 20.0, start: float = 4.0) -> Instance:
    """S: max_T T·gap/KL → 1 as ``sharpness`` C grows, attained near T = ``steps`` M (from θ = −start/M).

    An unverified latent z in {0, M} shares the parameter with y in {0, 1, 2}; each EM step moves its mean by less than 1.
    """
    z, y = [0, steps], np.arange(3)
    return _additive(z, [0, 0], y, -sharpness * y, y == 1, -start / steps)


def tight_slope(latents: int = 60) -> Instance:
    """P: gap ≈ 1/(4T) for 1 ≪ T ≪ N²: an unverified z in 0..N with the parameter of y; θ* = 0."""
    return _additive(np.arange(latents + 1), np.zeros(latents + 1), [-1, 0, 1], np.log([0.5, 1, 0.5]), [False, True, False], -1.0)


def linear_rate(spread: float = 1.0) -> Instance:
    """G: gap_{t+1}/gap_t → ρ² with ρ = (2s²/3)/(2s²/3 + 1/2) for z in {−s, 0, s}; θ* = 0."""
    return _additive([-spread, 0, spread], np.zeros(3), [-1, 0, 1], np.log([0.5, 1, 0.5]), [False, True, False], -1.0)


def at_infinity() -> Instance:
    """L = log σ(θ) is concave with supremum 0 at +∞: z in 0..5, y in {0, 1}, y = 1 selected."""
    return _additive(np.arange(6), np.zeros(6), [0, 1], [0, 0], [False, True], -1.0)


def tabular(seed: int, prompts: int = 2, pairs: int = 8, hard: bool = False) -> Instance:
    """Every (x, z, y) has a parameter of its own; evidence is soft, or 0/1 with one EM step to L = 0."""
    rng = np.random.default_rng(seed)
    points = np.arange(prompts * pairs, dtype=np.float64)[:, None]
    evidence = rng.uniform(0.05, 1.0, size=(prompts, pairs))
    evidence = verifier_evidence(evidence >= np.median(evidence, axis=1, keepdims=True)) if hard else evidence
    features = kernel_features(points, "tabular").reshape(prompts, pairs, -1)
    return Instance(features, evidence, rng.dirichlet(np.ones(prompts)), rng.normal(size=prompts * pairs))


def _line(features: Sequence[float], masses: Sequence[float], chosen: Sequence[float], start: float) -> Instance:
    """One prompt, one parameter."""
    features = np.array(features, dtype=np.float64)[None, :, None]
    return Instance(features, np.array([chosen], dtype=np.float64), np.ones(1), np.array([start]), 0.0, np.log([masses]))


def _additive(z: ArrayLike, log_z: ArrayLike, y: ArrayLike, log_y: ArrayLike, chosen: ArrayLike, start: float) -> Instance:
    """One prompt, φ(z, y) = φ_z + φ_y, only y is verified."""
    features = np.add.outer(np.asarray(z, dtype=np.float64), y).ravel()
    base = np.add.outer(np.asarray(log_z, dtype=np.float64), log_y).ravel()
    evidence = np.tile(np.asarray(chosen, dtype=np.float64), len(z))
    return Instance(features[None, :, None], evidence[None], np.ones(1), np.array([start]), 0.0, base[None])
