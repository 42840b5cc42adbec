"""The EM monitor against enumerated ELBOs and likelihoods."""

import math

import enumerable
import numpy as np
import pytest
import torch

from brite_lib import em
from brite_lib.errors import InputError
from brite_lib.likelihood import score
from brite_lib.params import PsiParams, ThetaParams

RULES = enumerable.template()
SEQUENCES = enumerable.completions(RULES)
FINISHED = np.array([ids[-1] == RULES.boundary_ids[0] for ids in SEQUENCES])


def near(theta, amount):
    """A Q that is θ moved at random; far enough and importance sampling fails."""
    torch.manual_seed(7)
    q = enumerable.model(0)
    q.load_state_dict(theta.state_dict())
    with torch.no_grad():
        for parameter in q.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return q


def enumerated(theta, q, question):
    """log joint (-inf if unfinished) and log Q of every completion."""
    prompt = RULES.prompt_ids(question)
    gold = [RULES.answer_ids("a") if done else [] for done in FINISHED]
    scores = score(theta, [prompt] * len(SEQUENCES), SEQUENCES, gold)
    joint = np.array([z.sum().item() + y.sum().item() for z, y in zip(scores.rationale, scores.answer, strict=True)])
    return np.where(FINISHED, joint, -np.inf), enumerable.law(q, prompt, SEQUENCES).double().numpy()


def exact_elbo(log_joint, log_q):
    """E[log P(z, y*) − log Q̃(z)] with Q̃ = Q given that it finishes."""
    log_q = log_q[FINISHED] - np.log(np.exp(log_q[FINISHED]).sum())
    return (np.exp(log_q) * (log_joint[FINISHED] - log_q)).sum()


def copies(question, n):
    return [{"id": f"{question}/{i}", "question": question, "answer": "a"} for i in range(n)]


def estimates(theta, q, question, n, samples, seed=0):
    draws = em.draw(q, copies(question, n), RULES, samples, seed, enumerable.MAX_RATIONALE, batch_size=4096)
    prior, answer = em.score_joint(theta, draws, 4096)
    log_joint = np.where(draws.finished, prior + answer, -np.inf)
    return em.elbo(log_joint, draws.log_q), *em.marginal_log_likelihood(log_joint, draws.log_q)


@pytest.mark.parametrize("question", enumerable.QUESTIONS)
def test_the_elbo_is_the_enumerated_one(question):
    theta = enumerable.model(0)
    q = near(theta, 0.2)
    log_joint, log_q = enumerated(theta, q, question)
    wanted = exact_elbo(log_joint, log_q)
    bound, _, _ = estimates(theta, q, question, 40, 256)
    scores = (bound.value - wanted) / bound.se
    assert abs(bound.value.mean() - wanted) <= 3 * np.sqrt((bound.se**2).sum()) / 40
    assert 0.7 < np.sqrt((scores**2).mean()) < 1.4, "the standard errors are those of the estimates"
    assert abs(wanted - np.logaddexp.reduce(log_joint)) > 20 * bound.se.mean() / 40**0.5, "the bound is not tight here"


@pytest.mark.parametrize("question", enumerable.QUESTIONS)
def test_the_likelihood_is_the_enumerated_one_where_the_effective_sample_size_is_good(question):
    theta = enumerable.model(0)
    q = near(theta, 0.02)
    wanted = np.logaddexp.reduce(enumerated(theta, q, question)[0])
    _, likelihood, ess = estimates(theta, q, question, 40, 256)
    assert ess.min() >= 0.2 * 256
    scores = (likelihood.value - wanted) / likelihood.se
    assert abs(likelihood.value.mean() - wanted) <= 3 * np.sqrt((likelihood.se**2).sum()) / 40
    assert abs(scores).max() < 4 and 0.7 < np.sqrt((scores**2).mean()) < 1.4


def test_two_samples_have_the_enumerated_expectation_which_is_a_bound():
    theta = enumerable.model(0)
    q = near(theta, 0.05)
    log_joint, log_q = enumerated(theta, q, "aba")
    log_w = np.where(FINISHED, log_joint - log_q, -np.inf)
    pair_value = np.logaddexp(log_w[:, None], log_w[None, :]) - math.log(2)
    pair_law = np.exp(log_q[:, None] + log_q[None, :]) * np.isfinite(pair_value)  # given that one of the two finishes
    wanted = (pair_law * np.where(np.isfinite(pair_value), pair_value, 0)).sum() / pair_law.sum()
    _, likelihood, _ = estimates(theta, q, "aba", 4000, 2)
    value = likelihood.value[np.isfinite(likelihood.value)]
    se = value.std(ddof=1) / math.sqrt(len(value))
    assert abs(value.mean() - wanted) <= 3 * se
    assert np.isnan(likelihood.value).mean() == pytest.approx(np.exp(log_q[~FINISHED]).sum() ** 2, abs=0.04)


def test_at_the_exact_posterior_the_gap_is_zero():
    theta = enumerable.model(0)
    rows, wanted = [], []
    for question in enumerable.QUESTIONS:
        log_joint, _ = enumerated(theta, theta, question)
        wanted.append(np.logaddexp.reduce(log_joint))
        posterior = np.exp(log_joint - wanted[-1])
        drawn = np.random.default_rng(0).choice(len(SEQUENCES), 64, p=posterior / posterior.sum())
        rows += [(RULES.prompt_ids(question), SEQUENCES[i], np.log(posterior[i])) for i in drawn]
    prompts, rationales, log_q = zip(*rows, strict=True)
    answers = [RULES.answer_ids("a")] * len(rows)
    draws = em.Draws(list(prompts), list(rationales), answers, np.array(log_q).reshape(3, 64), np.ones((3, 64), dtype=bool))
    metrics = em.monitor(theta, draws)
    assert metrics["gap"] == pytest.approx(0, abs=1e-5) and metrics["ess"] == pytest.approx(64, abs=1e-3)
    assert metrics["elbo"] == pytest.approx(np.mean(wanted), abs=1e-5) == metrics["log_marginal"]
    assert metrics["log_marginal_sampling_se"] < 1e-4 and metrics["low_ess"] == 0
    assert metrics["log_marginal_se"] == pytest.approx(np.std(wanted, ddof=1) / math.sqrt(3), abs=1e-4)  # problems still differ


def test_theta_as_its_own_proposal_has_no_divergence(capsys):
    theta = enumerable.model(0)
    draws = em.draw(theta, enumerable.problems(), RULES, 512, 0, enumerable.MAX_RATIONALE)
    metrics = em.monitor(theta, draws)
    assert metrics["kl"] == pytest.approx(0, abs=1e-6)
    assert metrics["gap"] > 0 and metrics["unresolved"] == 0 and (metrics["problems"], metrics["samples"]) == (3, 512)
    assert metrics["finished"] == pytest.approx(np.mean([ids[-1] == RULES.boundary_ids[0] for ids in draws.rationales]))
    assert metrics["tokens"] == sum(map(len, draws.rationales))
    assert "warning" not in capsys.readouterr().out
    assert metrics == em.monitor(theta, em.draw(theta, enumerable.problems(), RULES, 512, 0, enumerable.MAX_RATIONALE))
    assert metrics != em.monitor(theta, em.draw(theta, enumerable.problems(), RULES, 512, 1, enumerable.MAX_RATIONALE))


def test_the_divergence_from_theta_is_the_enumerated_one():
    theta = enumerable.model(0)
    q = near(theta, 0.05)
    _, log_q = enumerated(theta, q, "bb")
    wanted = (np.exp(log_q) * (log_q - enumerable.law(theta, RULES.prompt_ids("bb"), SEQUENCES).double().numpy())).sum()
    metrics = em.monitor(theta, em.draw(q, copies("bb", 40), RULES, 256, 0, enumerable.MAX_RATIONALE))
    assert wanted > 0.05 and metrics["kl"] == pytest.approx(wanted, rel=0.1)


def test_a_far_q_is_warned_of(capsys):
    theta = enumerable.model(0)
    metrics = em.monitor(theta, em.draw(enumerable.model(1, scale=40.0), enumerable.problems(), RULES, 256, 0, enumerable.MAX_RATIONALE))
    assert metrics["low_ess"] > 0.1 and "effective sample size below 20%" in capsys.readouterr().out


def test_literals_worked_by_hand():
    # w = 1, 3 and an unfinished one: ELBO (log 1 + log 3)/2 + log(2/3), likelihood log(4/3), ESS 16/10.
    log_joint, log_q = np.log([[0.2, 0.3, 1.0]]), np.log([[0.2, 0.1, 0.7]])
    log_joint[0, 2] = -np.inf
    bound = em.elbo(log_joint, log_q)
    assert bound.value == pytest.approx([math.log(3) / 2 + math.log(2 / 3)])
    # two finished: (s² + 1/3)/2 with s² = log(3)²/2
    assert bound.se == pytest.approx([math.sqrt((math.log(3) ** 2 / 2 + 1 / 3) / 2)])
    likelihood, ess = em.marginal_log_likelihood(log_joint, log_q)
    assert likelihood.value == pytest.approx([math.log(4 / 3)]) and ess == pytest.approx([1.6])
    sd = np.std([1, 3, 0], ddof=1)
    assert likelihood.se == pytest.approx([sd / math.sqrt(3) / (4 / 3)])
    assert em.elbo(log_joint.tolist(), log_q.tolist()) == bound
    one, (only, _) = em.elbo([[-1.0]], [[-2.0]]), em.marginal_log_likelihood([[-1.0]], [[-2.0]])
    assert one.value == only.value == [1.0] and np.isnan([one.se, only.se]).all()


def test_wrong_shapes_and_a_broken_model_are_no_unfinished_rationales():
    for log_joint, log_q, words in (
        ([-1.0], [-1.0], r"shape \(n, K\)"),
        ([[-1.0]], [[-1.0, -2.0]], "shape"),
        ([[np.nan]], [[-1.0]], "nan"),
    ):
        for estimate in (em.elbo, em.marginal_log_likelihood):
            with pytest.raises(InputError, match=words):
                estimate(log_joint, log_q)


def test_problems_that_never_finish_are_counted_and_left_out():
    log_joint, log_q = np.array([[-np.inf, -np.inf], [-1.0, -2.0]]), np.log([[0.5, 0.5], [0.5, 0.5]])
    bound, (likelihood, ess) = em.elbo(log_joint, log_q), em.marginal_log_likelihood(log_joint, log_q)
    assert np.isnan(bound.value).tolist() == np.isnan(likelihood.value).tolist() == [True, False]
    assert np.isnan(bound.se).tolist() == np.isnan(likelihood.se).tolist() == [True, False]
    assert ess[0] == 0 < ess[1]


def test_one_draw_is_refused():
    with pytest.raises(InputError, match="monitor_samples: must be at least 2"):
        em.draw(enumerable.model(0), enumerable.problems(), RULES, samples=1)
    for params in (PsiParams, ThetaParams):
        with pytest.raises(InputError, match="monitor_samples"):
            params.parse({"monitor_samples": 1})


def test_held_out_problems(tmp_path, capsys):
    problems = em.held_out(ThetaParams.parse({"monitor_problems": 5}))
    assert len(problems) == 5 and all("validation" in problem["id"] for problem in problems)
    assert "5 validation problems" in capsys.readouterr().out
    path = tmp_path / "train.jsonl"
    path.write_text('{"question": "1+1", "answer": "2"}\n{"question": "1+2", "answer": "3"}\n')
    for data in (path, tmp_path):
        assert len(em.held_out(PsiParams.parse({"monitor_problems": 1, "data": str(data)}))) == 1
        assert f"1 train problems, as {data} has no validation split" in capsys.readouterr().out


def test_a_broken_validation_file_is_no_missing_one(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    (tmp_path / "validation.jsonl").write_text('{"question": "1+2"}\n')
    with pytest.raises(InputError, match=r"validation.jsonl: row 1: answer: is missing"):
        em.held_out(PsiParams.parse({"monitor_problems": 1, "data": str(tmp_path)}))
