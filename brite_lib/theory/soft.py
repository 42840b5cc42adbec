"""Proposition 3.7 on a token tree: the optimal policy of the entropy-regularised token MDP is the posterior.

Notation: V tokens, sequences of exactly H tokens (an end token is one more branch of the tree). A table of depth h
has shape ``(V,)*(h+1)``: one entry per prefix of h tokens and next token. All values are natural logarithms or
rewards in nats, float64. Backward in h, with β the weight of the entropy (BRiTE eq. 2.1-2.4, β printed where it belongs):

    V_h(s) = β·log Σ_a exp((r_h(s, a) + V_{h+1}(s·a))/β),    π_h(a|s) = exp((r_h(s, a) + V_{h+1}(s·a) − V_h(s))/β),

so π(sequence) ∝ exp(Σ_h r_h/β). Where the rewards go along a sequence is immaterial: :func:`token_level`,
:func:`last_token` and any :func:`shaped` version of them have one and the same optimum. Transitions are deterministic
here, and must be: :func:`lottery`.

A reward of −inf is allowed. A prefix that no allowed sequence continues is dead: its value is −inf, the live part of
the policy never enters it, and its own conditional is arbitrary but normalised.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import kl_div, logsumexp

from brite_lib.errors import InputError
from brite_lib.theory.model import check_positive

Array = NDArray[np.float64]
NORMALISED = 1e-6  # conditionals that come from float32 are off by about 1e-7


@dataclass(frozen=True)
class SoftSolution:
    """Optimum of :func:`soft_value_iteration`.

    ``values``: H+1 arrays, the h-th of shape (V,)*h, in nats; ``log_policy``: H arrays, the h-th of shape (V,)*(h+1).
    """

    values: list[Array]
    log_policy: list[Array]


def soft_policy(log_prior: Sequence[ArrayLike], log_evidence: ArrayLike, c: float = 1.0) -> list[Array]:
    """Conditional log-policy that maximises E_π[log evidence] − c·KL(π‖prior); its sequence law is the posterior at c = 1.

    For any c the law is ∝ prior·evidence^{1/c}: c → 0 leaves the sequences of largest evidence, c → ∞ the prior.

    Args:
        log_prior: H arrays, the h-th (from 0) of shape (V,)*(h+1): log P(token h | tokens before it), −inf allowed.
        log_evidence: (V,)*H, log P(o = 1|sequence); −inf for a sequence that is not selected.
        c: weight of the KL, the paper's β.

    Returns:
        H arrays of the same shapes. In a dead prefix the policy is the prior.

    Raises:
        InputError: for shapes that do not fit, NaN or +inf, a prior whose rows do not sum to 1, c ≤ 0, or evidence
            that is zero wherever the prior is positive.
    """
    prior, evidence, c = _checked(log_prior, log_evidence, c)
    solution = soft_value_iteration(token_level([c * table for table in prior], evidence), beta=c)
    if np.isneginf(solution.values[0]):
        raise InputError("log_evidence must be above −inf for a sequence of positive prior probability, found none: there is no posterior")
    pairs = zip(solution.values[:-1], solution.log_policy, prior, strict=True)
    return [np.where(np.isneginf(value)[..., None], table, policy) for value, policy, table in pairs]


def soft_value_iteration(rewards: Sequence[ArrayLike], beta: float = 1.0) -> SoftSolution:
    """Soft value iteration with any token rewards (the module's two formulas).

    Args:
        rewards: H arrays, the h-th of shape (V,)*(h+1), in nats; −inf forbids a token.
        beta: weight of the entropy.

    Returns:
        Values and policy. In a dead prefix the policy is uniform.

    Raises:
        InputError: for shapes that do not fit, NaN, +inf, or beta ≤ 0.
    """
    tables, beta = _tables(rewards, "rewards"), check_positive("beta", beta)
    value = np.zeros(tables[0].shape * len(tables))
    values, log_policy = [value], []
    for reward in reversed(tables):
        action_value = (reward + value) / beta  # Q*(s, a)/β; two −inf add to −inf
        top = logsumexp(action_value, axis=-1)
        dead = np.isneginf(top)
        policy = np.where(dead[..., None], -math.log(len(tables[0])), action_value - np.where(dead, 0.0, top)[..., None])
        value = beta * top
        values.insert(0, value)
        log_policy.insert(0, policy)
    return SoftSolution(values, log_policy)


def sequence_law(log_policy: Sequence[ArrayLike]) -> Array:
    """Probability of every sequence under conditional log-policies, (V,)*H; sums to 1."""
    return np.exp(_sequence_sum(_tables(log_policy, "log_policy")))


def tree_posterior(log_prior: Sequence[ArrayLike], log_evidence: ArrayLike, c: float = 1.0) -> tuple[Array, float]:
    """The posterior by enumeration, P·evidence^{1/c} over its sum, and that sum's logarithm.

    Returns:
        (V,)*H probabilities, and log Σ P·evidence^{1/c} in nats: log P(sel|x) at c = 1, and V_0(s_0) = c times it.

    Raises:
        InputError: as :func:`soft_policy`.
    """
    prior, evidence, c = _checked(log_prior, log_evidence, c)
    joint = _sequence_sum(prior) + evidence / c
    log_mass = float(logsumexp(joint))
    if log_mass == -math.inf:
        raise InputError("log_evidence must be above −inf for a sequence of positive prior probability, found none: there is no posterior")
    return np.exp(joint - log_mass), log_mass


def token_level(token_rewards: Sequence[ArrayLike], terminal: ArrayLike) -> list[Array]:
    """Rewards r_h on every token, and ``terminal`` (V,)*H added on the last one (what ψ-PPO is trained with)."""
    tables = _tables(token_rewards, "token_rewards")
    return [*tables[:-1], tables[-1] + _terminal(terminal, tables, "terminal")]


def last_token(token_rewards: Sequence[ArrayLike], terminal: ArrayLike) -> list[Array]:
    """The same total reward, all of it on the last token."""
    tables = _tables(token_rewards, "token_rewards")
    total = _sequence_sum(tables) + _terminal(terminal, tables, "terminal")
    return [*(np.zeros_like(table) for table in tables[:-1]), total]


def shaped(rewards: Sequence[ArrayLike], potential: Sequence[ArrayLike]) -> list[Array]:
    """Potential-based shaping r_h(s, a) + Φ(s·a) − Φ(s); Φ is 0 after the last token, so only V changes: V − Φ.

    Args:
        rewards: H arrays, the h-th of shape (V,)*(h+1).
        potential: H arrays, the h-th of shape (V,)*h: Φ of every prefix, finite.
    """
    tables = _tables(rewards, "rewards")
    phi = [np.asarray(table, dtype=np.float64) for table in potential]
    if [table.shape for table in phi] != [table.shape[:-1] for table in tables] or not all(np.isfinite(table).all() for table in phi):
        raise InputError(f"potential must be {len(tables)} finite arrays of shapes (V,)*h, found {[table.shape for table in phi]}")
    phi.append(np.zeros_like(tables[-1]))
    return [table + after - before[..., None] for table, before, after in zip(tables, phi[:-1], phi[1:], strict=True)]


def total_variation(p: ArrayLike, q: ArrayLike) -> float:
    """Half the L1 distance of two laws of the same shape, in [0, 1]."""
    p, q = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    if p.shape != q.shape:
        raise InputError(f"two laws must have one shape, found {p.shape} and {q.shape}")
    return 0.5 * float(np.abs(p - q).sum())


def temperature_curve(log_prior: Sequence[ArrayLike], log_evidence: ArrayLike, temperatures: ArrayLike) -> tuple[Array, Array]:
    """How far the optimum for each c is from the posterior: the price of a KL coefficient other than 1.

    Returns:
        Total variation to the posterior and KL(Q_c‖posterior) in nats, both of the shape of ``temperatures``. The KL is
        the gap that the ELBO keeps when the E-step uses c. Both are 0 at c = 1, and for every c if the evidence is 0 or 1.
    """
    exact, _ = tree_posterior(log_prior, log_evidence)
    temperatures = np.atleast_1d(np.asarray(temperatures, dtype=np.float64))
    laws = [sequence_law(soft_policy(log_prior, log_evidence, float(c))) for c in temperatures]
    return np.array([total_variation(law, exact) for law in laws]), np.array([kl_div(law, exact).sum() for law in laws])


def lottery(log_evidence: tuple[float, float] = (0.0, -10.0)) -> tuple[float, float]:
    """Why Proposition 3.7 needs deterministic transitions: the probability of drawing a lottery ticket, both ways.

    Action 0 leads to one of two ends with probability 1/2 each and these log-evidences; action 1 surely to one of −1.
    The prior over actions is uniform. Soft value iteration averages the lottery's *log*-evidence, the posterior its evidence.

    Returns:
        Probability of action 0 under the soft optimal policy, and under the posterior.
    """
    ends = np.asarray(log_evidence, dtype=np.float64)
    values = [float(ends.mean()), float(logsumexp(ends - math.log(2)))]
    soft, posterior = (1 / (1 + math.exp(-1 - value)) for value in values)
    return soft, posterior


def _sequence_sum(tables: list[Array]) -> Array:
    """Σ_h r_h along every sequence, (V,)*H."""
    total = tables[0]
    for table in tables[1:]:
        total = total[..., None] + table
    return total


def _tables(tables: Sequence[ArrayLike], name: str) -> list[Array]:
    try:
        arrays = [np.asarray(table, dtype=np.float64) for table in tables]
    except (TypeError, ValueError):
        raise InputError(f"{name} must be H arrays of numbers of shapes (V,), (V, V), …") from None
    size = arrays[0].shape[0] if arrays and arrays[0].ndim == 1 else 0
    if not size or any(array.shape != (size,) * (h + 1) for h, array in enumerate(arrays)):
        raise InputError(f"{name} must be H arrays of shapes (V,), (V, V), …, found {[array.shape for array in arrays]}")
    return [_below_infinity(array, f"{name}[{h}]") for h, array in enumerate(arrays)]


def _terminal(terminal: ArrayLike, tables: list[Array], name: str) -> Array:
    array = np.asarray(terminal, dtype=np.float64)
    if array.shape != tables[-1].shape:
        raise InputError(f"{name} must have one entry per sequence, shape {tables[-1].shape}, found {array.shape}")
    return _below_infinity(array, name)


def _below_infinity(array: Array, name: str) -> Array:
    if np.isnan(array).any() or np.isposinf(array).any():
        raise InputError(f"{name} must hold finite numbers or −inf, found NaN or +inf")
    return array


def _checked(log_prior: Sequence[ArrayLike], log_evidence: ArrayLike, c: float) -> tuple[list[Array], Array, float]:
    prior = _tables(log_prior, "log_prior")
    for h, table in enumerate(prior):
        worst = float(np.abs(logsumexp(table, axis=-1)).max())
        if worst > NORMALISED:
            raise InputError(f"log_prior[{h}] must be conditional log-probabilities, but a row's log-sum-exp is {worst:.3g} away from 0")
    return prior, _terminal(log_evidence, prior, "log_evidence"), check_positive("c", c)
