"""The theorem: identities that always hold, the bound where its hypotheses hold, and where it must fail (issue checks 1-3)."""

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st
from test_theory_em import SETTINGS, drawn_run

from brite_lib.errors import InputError
from brite_lib.theory import best_of_starts, budget, check_theorem, comparator, identities, m_step_attained, missing_information, own_limit
from brite_lib.theory import instances as families
from brite_lib.theory.em import run_em_on
from brite_lib.theory.model import divergence_a, gradient, information, objective, posterior_of, reasoner
from brite_lib.theory.theorem import reverse_telescoping, unconditional_bound


def checked(instance, trace, theta_star, index="corrected"):
    return check_theorem(
        trace, theta_star, instance.features, instance.evidence, instance.weights, instance.ridge, index=index, base=instance.base
    )


def concavity(model, theta):
    """Largest eigenvalue of ∇²J at θ, relative to that of I_A: ≤ 0 up to rounding wherever J is concave."""
    complete, missing = information(model, theta)
    return np.linalg.eigvalsh(missing - complete)[-1] / np.linalg.eigvalsh(complete)[-1]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(chosen=st.fixed_dictionaries(SETTINGS))
def test_identities_hold_for_every_family_and_comparison_point(chosen):
    """(F), (P) and the budget to 1e-10 for a random u, times |θ|/10 where θ goes further out than 10."""
    instance, trace, scale = drawn_run(chosen)
    u, tolerance = np.random.default_rng(chosen["seed"]).normal(size=instance.theta0.size), 1e-10 * scale
    errors = identities(trace, instance.model, u)
    assert errors.first.max() <= tolerance and errors.progress.max() <= tolerance
    assert np.abs(budget(trace, instance.model, u).error).max() <= tolerance
    smallest, bound = unconditional_bound(trace, instance.ridge)
    assert (smallest <= bound + tolerance).all()
    assert smallest == pytest.approx(np.minimum.accumulate(np.diff(trace.log_marginal)), abs=tolerance)  # (P), ridge included


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    chosen=st.fixed_dictionaries(
        SETTINGS
        | {"ridge": st.sampled_from([1e-2, 1e-1]), "rank": st.sampled_from([None, 2]), "kernel": st.just("rbf"), "start": st.just(1.0)}
    ),
    scale=st.sampled_from([0.1, 1.0]),
)
def test_reverse_identity_needs_a_stationary_point(chosen, scale):
    instance = families.random_instance(**chosen)
    trace = instance.run(5)
    limit = own_limit(instance.model, trace)
    assert limit.attained and np.linalg.norm(gradient(instance.model, limit.theta)) <= 1e-11
    assert identities(trace, instance.model, limit.theta).reverse.max() <= 1e-10
    off = limit.theta + scale * np.random.default_rng(0).normal(size=limit.theta.size)
    slope = gradient(instance.model, off)  # away from it, (R) misses exactly the first-order term
    missed = np.abs((trace.theta - off) @ slope)
    assert identities(trace, instance.model, off).reverse == pytest.approx(missed, abs=1e-10)


def hypotheses_hold():
    """240 instances: 120 with concave L, 120 with a ridge of diam²/4 or twice that."""
    for seed in range(120):
        yield families.concave(seed, prompts=1 + seed % 4, size=4 + seed % 4, start=(0.5, 3.0)[seed % 2])
    for seed in range(120):
        yield families.ridge(seed, (1.0, 2.0)[seed % 2], verifier=families.VERIFIERS[seed % 4], start=(1.0, 6.0)[seed // 2 % 2])


def test_bound_holds_where_its_hypotheses_do_and_the_literal_index_does_not():
    ratios, literal = [], []
    for instance in hypotheses_hold():
        trace = instance.run(15)
        limit = own_limit(instance.model, trace)
        assert limit.attained
        result = checked(instance, trace, limit.theta)
        assert result.holds and result.condition and result.weak_condition.all() and result.stationary and result.highest
        assert result.slack.min() >= -1e-10 and result.ratio.max() <= 1 + 1e-8
        assert max(concavity(instance.model, theta) for theta in trace.theta[::5]) <= 1e-12
        ratios.append(result.ratio.max())
        literal.append(checked(instance, trace, limit.theta, "literal"))
    assert len(ratios) == 240 and 0.02 < max(ratios) < 0.5  # measured 0.086: far below 1, and not trivially 0
    failed = [not result.holds for result in literal]
    assert 20 <= sum(failed) < 240  # measured 75, all of them concave ones
    assert all(result.condition for result in literal)  # the index is wrong, not the hypotheses


def test_concave_instances_have_a_global_maximum():
    for seed in range(5):
        instance = families.concave(seed)
        limit = own_limit(instance.model, instance.theta0)
        best = best_of_starts(instance.model, 4, seed)
        assert best.attained and best.theta == pytest.approx(limit.theta, abs=1e-7)


@pytest.mark.parametrize(("epsilon", "ratio"), [(1e-1, 0.861), (1e-2, 1.643), (1e-4, 3.067), (1e-8, 7.077), (1e-12, 11.033)])
def test_saddle_escape_violates(epsilon, ratio):
    """V1, theory.md: 0.86, 1.64, 3.07, 7.08, 11.03 (at T = 11), D = 2.11; the saddle's I_B/I_A is 10.96."""
    instance = families.saddle_escape(epsilon)
    trace = instance.run(30)
    limit = own_limit(instance.model, trace)
    result = checked(instance, trace, limit.theta)
    assert limit.attained and abs(limit.theta[0]) == pytest.approx(4.9516, abs=1e-4)
    assert result.ratio.max() == pytest.approx(ratio, abs=5e-4)
    assert result.holds == (ratio < 1) and result.stationary and result.highest
    assert missing_information(instance.model, [0.0]) == pytest.approx(10.96, abs=0.01)
    explained_by_slack(instance, trace, limit.theta, result)
    if epsilon == 1e-12:
        assert result.ratio.argmax() + 1 == 11 and result.divergence == pytest.approx(2.1096, abs=1e-4)


def test_two_basins_violate():
    """V2: the run ends at 2.991, the best maximum is at −4.952; from T = 4 on the bound is violated for ever."""
    instance = families.two_basins()
    trace = instance.run(60)
    limit = own_limit(instance.model, trace)
    best = best_of_starts(instance.model, also=limit)
    assert limit.theta == pytest.approx([2.9907], abs=1e-4) and best.theta == pytest.approx([-4.9516], abs=1e-4)
    assert (limit.value, best.value) == pytest.approx((-1.0969, -0.2491), abs=1e-4) and limit.attained and best.attained
    assert checked(instance, trace, limit.theta).holds
    result = checked(instance, trace, best.theta)
    assert np.flatnonzero(result.ratio > 1).tolist() == list(range(3, 60)) and result.gap[-1] == pytest.approx(0.8479, abs=1e-4)
    assert result.divergence == pytest.approx(2.83, abs=5e-3)
    explained_by_slack(instance, trace, best.theta, result)


def test_plateau_violates():
    """V3: an ordinary RBF instance, measured ratio 3.98 at T = 53, against its own limit."""
    instance = families.plateau()
    trace = instance.run(80)
    limit = own_limit(instance.model, trace)
    result = checked(instance, trace, limit.theta)
    assert limit.attained and result.stationary and result.highest and result.ratio.max() > 2
    far = run_em_on(instance.model, trace.theta[-1], 1500)  # the limit is the run's own: plain EM arrives there too
    assert far.theta[-1] == pytest.approx(limit.theta, abs=1e-6)
    explained_by_slack(instance, trace, limit.theta, result)


def explained_by_slack(instance, trace, theta_star, result):
    """A violation at T needs a negative right side of the proof: Σ slack + Σ D_B + D_T < 0, by the budget (*)."""
    terms = budget(trace, instance.model, theta_star)
    assert np.abs(terms.error).max() <= 1e-10
    for T in np.flatnonzero(result.ratio > 1 + 1e-9):
        assert terms.slack[T] < 0 and terms.slack[T] + terms.posterior[T] + terms.remaining[T] < 0 and not result.weak_condition[T]
        assert not result.condition and not result.holds


def test_a_violation_always_comes_with_negative_slack():
    """60 seeds of the V3 kind: some violate, none without a negative slack (the contrapositive of the theorem)."""
    violations = 0
    for seed in [*range(50), 51, 120, 256, 302]:
        instance = families.random_instance(seed, prompts=2, rationales=5, answers=4, rank=5, ridge=1e-3)
        trace = instance.run(60)
        result = checked(instance, trace, own_limit(instance.model, trace).theta)
        violations += not result.holds
        assert result.holds or result.slack.min() < -0.1
        assert not result.condition or result.holds
    assert violations >= 3


def test_start_at_the_optimum_is_no_violation():
    instance = families.ridge(0)
    limit = own_limit(instance.model, instance.theta0)
    result = checked(instance, run_em_on(instance.model, limit.theta, 3), limit.theta)
    assert result.holds and result.ratio.max() <= 1 and result.divergence == 0


def test_bound_uses_the_papers_orientation_of_the_divergence():
    instance = families.ridge(1)
    trace = instance.run(3)
    u = own_limit(instance.model, trace).theta
    p, star = reasoner(instance.model, instance.theta0), reasoner(instance.model, u)
    forward = instance.weights @ (p * np.log(p / star)).sum(1)
    result = checked(instance, trace, u)
    assert result.kl == pytest.approx(forward, rel=1e-10)
    assert result.divergence == pytest.approx(forward + instance.ridge / 2 * ((u - instance.theta0) ** 2).sum(), rel=1e-10)
    assert result.bound == pytest.approx(result.divergence / np.array([1, 2, 3]))
    assert result.gap == pytest.approx(objective(instance.model, u) - trace.log_marginal[1:], abs=1e-15)
    assert checked(instance, trace, u, "literal").gap == pytest.approx(objective(instance.model, u) - trace.log_marginal[:-1], abs=1e-15)


@pytest.mark.parametrize(
    ("steps", "sharpness", "start", "ratio"),
    [(30, 5, 10, 0.743), (100, 5, 10, 0.770), (30, 20, 4, 0.922), (100, 20, 4, 0.940), (30, 80, 4, 0.969), (100, 80, 4, 0.983)],
)
def test_tight_once(steps, sharpness, start, ratio):
    """S: T·gap/KL close to 1 at T ≈ M inside the hypotheses (theory.md: .743 .770 .922 .940 .969; the last is new)."""
    instance = families.tight_once(steps, sharpness, start)
    trace = instance.run(2 * steps)
    limit = own_limit(instance.model, trace)
    result = checked(instance, trace, limit.theta)
    assert limit.theta == pytest.approx([sharpness], abs=1e-6) and limit.attained
    assert result.ratio.max() == pytest.approx(ratio, abs=1e-3) and abs(int(result.ratio.argmax()) + 1 - steps) <= 2
    assert result.holds and result.condition


def test_tight_slope():
    """P: T·gap ≈ 1/4 over decades below N² (theory.md: .248 at T = 30 with N = 60), geometric afterwards."""
    instance = families.tight_slope(60)
    trace = instance.run(300)
    limit = own_limit(instance.model, trace)
    result = checked(instance, trace, limit.theta)
    scaled = np.arange(1, 301) * result.gap
    assert limit.theta == pytest.approx([0.0], abs=1e-9) and result.holds and result.condition
    assert scaled[29] == pytest.approx(0.248, abs=0.002) and (np.abs(scaled[9:120] - 0.25) < 0.02).all()
    times = np.arange(10, 61)
    slope = np.polyfit(np.log(times), np.log(result.gap[times - 1]), 1)[0]
    assert slope == pytest.approx(-0.98, abs=0.03)
    assert missing_information(instance.model, limit.theta) == pytest.approx(0.99839, abs=1e-4)


@pytest.mark.parametrize(("spread", "rate", "at"), [(0.3, 0.0115, 3), (1.0, 0.3265, 12), (3.0, 0.8521, 60)])
def test_linear_rate(spread, rate, at):
    """G: gap_{t+1}/gap_t → ρ², within 1e-3 (theory.md section 5); ρ in closed form, from the informations and from the run."""
    instance = families.linear_rate(spread)
    trace = instance.run(at + 1)
    limit = own_limit(instance.model, trace)
    rho = missing_information(instance.model, limit.theta)
    missing = 2 * spread**2 / 3
    assert rho == pytest.approx(missing / (missing + 0.5), abs=1e-12) and rho**2 == pytest.approx(rate, abs=1e-4)
    result = checked(instance, trace, limit.theta)
    assert result.gap[at] / result.gap[at - 1] == pytest.approx(rho**2, abs=1e-3) and result.holds


@pytest.mark.parametrize("seed", range(6))
def test_tabular_reverse_telescoping(seed):
    """Σ gap = KL(P_*‖P_1) − KL(P_*‖P_{T+1}) ≤ 1e-12 for every T ≤ 40; and one EM step is Q itself."""
    instance = families.tabular(seed, prompts=1 + seed % 3, pairs=4 + seed)
    trace = instance.run(40)
    gaps, divergence = reverse_telescoping(trace, instance.model)
    assert np.abs(gaps - divergence).max() <= 1e-12 and gaps[0] > 0.1
    q = posterior_of(instance.model, instance.theta0)
    assert np.abs(reasoner(instance.model, trace.theta[1]) - q).max() <= 1e-14
    values = instance.features @ trace.theta[1]
    assert np.ptp(values - instance.features @ instance.theta0 - np.log(instance.evidence), axis=1).max() <= 1e-12


def test_tabular_with_a_hard_verifier_is_done_in_one_step():
    instance = families.tabular(0, hard=True)
    trace = instance.run(3)
    assert trace.log_marginal[0] < -0.5 and np.abs(trace.log_marginal[1:]).max() <= 1e-14
    assert not own_limit(instance.model, trace, 50).attained  # the maximiser is at infinity


def test_supremum_at_infinity_is_bounded_by_the_best_finite_comparator():
    """sup J − J(θ_{T+1}) ≤ min_u {sup J − J(u) + D_A(u, θ_1)/T} where J is concave, as (F) needs no optimality of u; here sup J = 0."""
    instance = families.at_infinity()
    trace = instance.run(40)
    assert not own_limit(instance.model, trace, 200).attained

    def cost(u, steps):
        point = comparator(instance.model, [u])
        return -point.value + divergence_a(instance.model, point.theta, instance.theta0) / steps

    bound = np.array([scipy.optimize.minimize_scalar(cost, (0, 5), args=(steps,)).fun for steps in range(1, 41)])
    assert (-trace.log_marginal[1:] <= bound).all() and (np.diff(bound) < 0).all()
    assert bound[9] == pytest.approx(0.7068, abs=1e-3) and bound[39] < 0.36


def test_unconditional_bound_is_sharp_when_one_step_finishes():
    trace = families.tabular(0, hard=True).run(1)
    smallest, bound = unconditional_bound(trace)
    assert smallest == pytest.approx(bound, abs=1e-12)


def test_best_of_starts_finds_what_the_run_misses():
    instance = families.random_instance(3)
    limit = own_limit(instance.model, instance.theta0)
    best = best_of_starts(instance.model, 12, also=limit)
    assert best.value > limit.value + 0.02 and best.attained and best.source == "best"
    assert not comparator(instance.model, instance.theta0).attained


def test_features_that_show_nothing_change_nothing():
    instance = families.Instance(np.ones((1, 3, 2)), np.array([[1.0, 0.5, 0.0]]), np.ones(1), np.array([2.0, -1.0]))
    trace = instance.run(2)
    assert trace.theta.tolist() == [[2.0, -1.0]] * 3 and trace.log_marginal == pytest.approx(np.log(0.5))
    assert not own_limit(instance.model, trace).attained and missing_information(instance.model, [2.0, -1.0]) == 0
    assert m_step_attained([[0.0, 0.0, 1.0]], instance.features, [1.0])
    assert checked(instance, trace, [0.0, 0.0]).holds


def test_bad_input_is_one_sentence():
    instance = families.ridge(0)
    trace = instance.run(2)
    with pytest.raises(InputError, match="index must be 'corrected' or 'literal'"):
        checked(instance, trace, instance.theta0, "shifted")
    with pytest.raises(InputError, match="theta_star must have shape"):
        checked(instance, trace, [0.0])
    with pytest.raises(InputError, match="at least one step"):
        checked(instance, instance.run(0), instance.theta0)
