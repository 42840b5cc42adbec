"""Proposition 3.7 against the enumerated posterior, to 1e-12 (issue check 4)."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, logsumexp

from brite_lib.errors import InputError
from brite_lib.theory.soft import (
    last_token,
    lottery,
    sequence_law,
    shaped,
    soft_policy,
    soft_value_iteration,
    temperature_curve,
    token_level,
    total_variation,
    tree_posterior,
)

TREES = [(2, 3), (3, 4), (4, 5), (5, 4), (2, 10)]
CASES = [(*tree, verifier, seed) for tree in TREES for verifier in ("soft", "hard") for seed in range(3)]


def tree(vocabulary, horizon, verifier, seed, share=0.15):
    """A random prior and the log-evidence of a soft verifier, or of a 0/1 one that accepts a share of the sequences."""
    rng = np.random.default_rng([vocabulary, horizon, seed])
    prior = []
    for h in range(horizon):
        logits = rng.normal(0, 2, (vocabulary,) * (h + 1))
        prior.append(log_softmax(logits, axis=-1))
    if verifier == "soft":
        return prior, -rng.exponential(3, (vocabulary,) * horizon)
    accepted = rng.random((vocabulary,) * horizon) < share
    accepted[(0,) * horizon] = True
    return prior, np.where(accepted, 0.0, -np.inf)


def brute_posterior(prior, evidence, c=1.0):
    """Sequence by sequence, in plain Python, as an independent reference."""
    weights = np.empty(evidence.shape)
    for sequence in np.ndindex(*evidence.shape):
        log_weight = sum(float(table[sequence[: h + 1]]) for h, table in enumerate(prior)) + float(evidence[sequence]) / c
        weights[sequence] = math.exp(log_weight)
    return weights / weights.sum(), math.log(weights.sum())


@pytest.mark.parametrize(("vocabulary", "horizon", "verifier", "seed"), CASES)
def test_the_optimal_policy_is_the_posterior(vocabulary, horizon, verifier, seed):
    prior, evidence = tree(vocabulary, horizon, verifier, seed)
    reference, log_selected = brute_posterior(prior, evidence)
    policy = soft_policy(prior, evidence)
    assert [table.shape for table in policy] == [table.shape for table in prior]
    assert np.abs(sequence_law(policy) - reference).max() <= 1e-12
    assert all(np.abs(logsumexp(table, axis=-1)).max() <= 1e-12 for table in policy)  # dead prefixes too
    enumerated, log_mass = tree_posterior(prior, evidence)
    assert np.abs(enumerated - reference).max() <= 1e-12
    assert log_mass == pytest.approx(log_selected, abs=1e-12)
    value = soft_value_iteration(token_level(prior, evidence)).values[0]
    assert float(value) == pytest.approx(log_selected, abs=1e-12)  # V_0(s_0) = log P(sel|x)
    if verifier == "hard":
        assert sequence_law(policy)[np.isneginf(evidence)].max() == 0


@pytest.mark.parametrize(("vocabulary", "horizon", "verifier", "seed"), CASES)
def test_where_the_reward_goes_does_not_matter(vocabulary, horizon, verifier, seed):
    prior, evidence = tree(vocabulary, horizon, verifier, seed)
    reference, _ = brute_posterior(prior, evidence)
    rng = np.random.default_rng(seed)
    potential = [rng.normal(0, 5, (vocabulary,) * h) for h in range(horizon)]
    on_tokens = soft_value_iteration(token_level(prior, evidence))
    schemes = [
        last_token(prior, evidence),
        shaped(token_level(prior, evidence), potential),
        shaped(last_token(prior, evidence), potential),
    ]
    for rewards in schemes:
        other = soft_value_iteration(rewards)
        assert np.abs(sequence_law(other.log_policy) - reference).max() <= 1e-12
        for h in range(horizon):  # not only the law: the policy in every live prefix
            live = np.isfinite(on_tokens.values[h])
            assert np.array_equal(live, np.isfinite(other.values[h]))
            difference = np.exp(other.log_policy[h][live]) - np.exp(on_tokens.log_policy[h][live])
            assert np.abs(difference).max() <= 1e-12
    moved = soft_value_iteration(schemes[1]).values
    assert float(moved[0]) == pytest.approx(float(on_tokens.values[0] - potential[0]), abs=1e-12)  # V − Φ


def test_by_hand():
    # P(a) = 1/4, P(b) = 3/4, evidence 1/2 and 1/6: joint 1/8 and 1/8, so the posterior is even and P(sel) = 1/4.
    policy = soft_policy([np.log([0.25, 0.75])], np.log([1 / 2, 1 / 6]))
    assert np.exp(policy[0]).tolist() == pytest.approx([0.5, 0.5], abs=1e-15)
    # Two tokens, V = 2: prior 1/2 everywhere, only "ba" is selected: the first token is surely b.
    half = math.log(0.5)
    evidence = np.array([[-np.inf, -np.inf], [0.0, -np.inf]])
    first, second = (np.exp(table) for table in soft_policy([np.full(2, half), np.full((2, 2), half)], evidence))
    assert first.tolist() == [0, 1]
    assert second.tolist() == [[0.5, 0.5], [1, 0]]  # the dead prefix "a" keeps the prior
    solution = soft_value_iteration([np.full(2, half), np.full((2, 2), half) + evidence], beta=1.0)
    assert float(solution.values[0]) == pytest.approx(math.log(0.25), abs=1e-15)
    assert solution.values[1].tolist() == [-math.inf, pytest.approx(half)]
    # β weighs the entropy: V = β·log(e^{1/β} + e^{0}) at β = 1/2.
    assert float(soft_value_iteration([np.array([1.0, 0.0])], beta=0.5).values[0]) == pytest.approx(0.5 * math.log(math.exp(2) + 1))


@pytest.mark.parametrize("c", [0.05, 0.25, 0.3, 4.0, 50.0])
@pytest.mark.parametrize(("vocabulary", "horizon"), TREES)
def test_another_temperature_tempers_the_evidence(vocabulary, horizon, c):
    prior, evidence = tree(vocabulary, horizon, "soft", 1)
    reference, log_mass = brute_posterior(prior, evidence, c)
    assert np.abs(sequence_law(soft_policy(prior, evidence, c)) - reference).max() <= 1e-12
    enumerated, log_sum = tree_posterior(prior, evidence, c)
    assert np.abs(enumerated - reference).max() <= 1e-12
    value = soft_value_iteration(token_level([c * table for table in prior], evidence), beta=c).values[0]
    assert float(value) == pytest.approx(c * log_mass, abs=1e-11)
    assert c * log_sum == pytest.approx(c * log_mass, abs=1e-11)


def test_the_slider_goes_from_the_best_sequence_over_the_posterior_to_the_prior():
    prior, evidence = tree(3, 4, "soft", 0)
    distance, kl = temperature_curve(prior, evidence, [0.1, 0.5, 1.0, 2.0, 10.0])
    assert distance[2] <= 1e-14 and abs(kl[2]) <= 1e-14
    assert distance[0] > distance[1] > 0.05 and distance[4] > distance[3] > 0.05
    assert (kl[[0, 1, 3, 4]] > 0.01).all()
    assert sequence_law(soft_policy(prior, evidence, 1e-5)).max() >= 1 - 1e-12
    to_prior = total_variation(sequence_law(soft_policy(prior, evidence, 1e4)), sequence_law(prior))
    assert to_prior < 1e-3
    hard_distance, hard_kl = temperature_curve(*tree(3, 4, "hard", 0), [0.01, 0.25, 4.0, 100.0])
    assert hard_distance.max() <= 1e-14 and np.abs(hard_kl).max() <= 1e-13  # 0^{1/c} = 0 and 1^{1/c} = 1


def test_reward_in_the_exponent_is_not_a_hard_verifier():
    """R = 1[right] with KL coefficient β: P·exp(R/β) approaches the posterior only as β → 0."""
    prior, hard = tree(3, 4, "hard", 0)
    exact, _ = tree_posterior(prior, hard)
    right = np.isfinite(hard).astype(float)
    distances = [total_variation(sequence_law(soft_policy(prior, right / beta)), exact) for beta in (1.0, 0.3, 0.1, 0.05)]
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1 and distances[-1] < 1e-6
    # off the selected set: mass (1 − p)e^{-1/β} against p
    p = float(sequence_law(prior)[right == 1].sum())
    assert distances[1] == pytest.approx((1 - p) / (1 - p + p * math.exp(1 / 0.3)), abs=1e-12)


def test_the_posterior_is_the_best_policy():
    """E[log evidence] − KL at the optimum is log P(sel|x), and any other policy falls short by its KL to the posterior."""
    prior, evidence = tree(3, 3, "soft", 2)
    exact, log_mass = tree_posterior(prior, evidence)

    def objective(policy):
        law = sequence_law(policy)
        return float((law * (evidence - np.log(law) + np.log(sequence_law(prior)))).sum())

    assert objective(soft_policy(prior, evidence)) == pytest.approx(log_mass, abs=1e-12)
    other, _ = tree(3, 3, "soft", 3)
    law = sequence_law(other)
    assert log_mass - objective(other) == pytest.approx(float((law * np.log(law / exact)).sum()), abs=1e-12)


def test_stochastic_transitions_break_it():
    soft, posterior = lottery()
    # σ(−5 − (−1)) and ½(1 + e^{-10}) / (½(1 + e^{-10}) + e^{-1})
    assert soft == pytest.approx(1 / (1 + math.exp(4)), abs=1e-15)
    assert posterior == pytest.approx(0.5 * (1 + math.exp(-10)) / (0.5 * (1 + math.exp(-10)) + math.exp(-1)), abs=1e-15)
    assert (round(soft, 3), round(posterior, 3)) == (0.018, 0.576)
    assert lottery((-2.0, -2.0))[0] == pytest.approx(lottery((-2.0, -2.0))[1], abs=1e-15)  # no chance, no difference


@settings(max_examples=60, deadline=None)
@given(
    size=st.sampled_from([(1, 3), (2, 1), (2, 5), (3, 3), (6, 2), (40, 1)]),
    seed=st.integers(0, 10**6),
    spread=st.sampled_from([0.1, 3.0, 200.0]),
    share=st.sampled_from([0.0, 0.3, 1.0]),
    c=st.sampled_from([0.2, 1.0, 3.0]),
    forbid=st.booleans(),
)
def test_any_tree(size, seed, spread, share, c, forbid):
    vocabulary, horizon = size
    prior, evidence = tree(vocabulary, horizon, "hard", seed, share)
    rng = np.random.default_rng(seed)
    evidence = evidence - rng.exponential(spread, evidence.shape)
    if forbid and vocabulary > 1:  # tokens the model can never write; the first stays possible
        table = prior[-1].copy()
        table[..., 1:][rng.random(table[..., 1:].shape) < 0.3] = -np.inf
        prior[-1] = log_softmax(table, axis=-1)
    joint = sum(table.reshape(table.shape + (1,) * (horizon - table.ndim)) for table in prior) + evidence / c
    reference = np.exp(joint - joint.max())
    reference /= reference.sum()
    law = sequence_law(soft_policy(prior, evidence, c))
    assert np.abs(law - reference).max() <= 1e-12
    assert (law[np.isneginf(joint)] == 0).all()
    potential = [rng.normal(0, 5, (vocabulary,) * h) for h in range(horizon)]
    moved = soft_value_iteration(shaped(last_token([c * table for table in prior], evidence), potential), beta=c)
    assert np.abs(sequence_law(moved.log_policy) - reference).max() <= 1e-12


def test_bad_input_is_one_sentence():
    prior, evidence = tree(2, 2, "soft", 0)
    nan = evidence.copy()
    nan[0, 0] = np.nan
    bad = [
        ((prior, evidence[0]), "log_evidence must have one entry per sequence, shape \\(2, 2\\), found \\(2,\\)"),
        ((prior, nan), "log_evidence must hold finite numbers or −inf"),
        ((prior, evidence + np.inf), "log_evidence must hold finite numbers or −inf"),
        ((prior, np.full((2, 2), -np.inf)), "there is no posterior"),
        (([*prior[:1], prior[1] + 0.1], evidence), "log_prior\\[1\\] must be conditional log-probabilities"),
        (([prior[0], np.full((2, 2), -np.inf)], evidence), "log_prior\\[1\\] must be conditional log-probabilities"),
        (([*prior[:1], nan], evidence), "log_prior\\[1\\] must hold finite numbers"),
        (([prior[1], prior[0]], evidence), "log_prior must be H arrays of shapes"),
        (([prior[0], prior[0]], evidence), "log_prior must be H arrays of shapes"),
        (([[0.0], [[0.0, 1.0], [0.0]]], evidence), "log_prior must be H arrays of numbers"),
        ((None, evidence), "log_prior must be H arrays of numbers"),
        (([], evidence), "log_prior must be H arrays of shapes"),
        (([np.empty(0)], evidence), "log_prior must be H arrays of shapes"),
    ]
    for arguments, message in bad:
        for function in (soft_policy, tree_posterior):
            with pytest.raises(InputError, match=message):
                function(*arguments)
    for c in (0.0, -1.0, math.nan, math.inf, "1", True):
        with pytest.raises(InputError, match="c must be a positive number"):
            soft_policy(prior, evidence, c)
        with pytest.raises(InputError, match="beta must be a positive number"):
            soft_value_iteration(prior, c)
    with pytest.raises(InputError, match="potential must be 2 finite arrays"):
        shaped(prior, [np.zeros(()), np.full(2, np.inf)])
    with pytest.raises(InputError, match="one shape"):
        total_variation(np.ones(2) / 2, np.ones(3) / 3)
