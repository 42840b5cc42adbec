"""LaTRO, GRPO, RLOO and VeriFree as settings of one trainer: expected gradients against enumerated objectives (issue check 1).

Elsewhere: c → the tempered posterior and PPO with exp(R/β) (test_ppo_exact.py, trained), c = 1 (there too, by gradient).
"""

import copy

import enumerable
import pytest
import torch

from brite_lib.errors import InputError
from brite_lib.params import SPECIAL_CASES, LatroParams, LoraParams, PsiParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.selection import BestOnValidation, training_and_validation

UNFINISHED, BETA = -6.0, 0.25
LIVE = {"scorer": "live", "answer_nll_weight": 1.0}
PROBLEM = enumerable.problems()[2]


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Rationales of at most 2 tokens: 26 completions, so that all pairs of siblings can be enumerated."""
    monkeypatch.setattr(enumerable, "MAX_RATIONALE", 2)


def make_trainer(seed=0, cls=PsiParams, **settings):
    """A trainer in double precision whose policy has moved away from θ, and θ."""
    common = {"max_rationale_tokens": enumerable.MAX_RATIONALE, "max_answer_tokens": 2, "rationales_per_prompt": 2, "prompts_per_step": 1}
    theta = enumerable.model(seed).double()
    config = cls.parse({"unfinished_reward": UNFINISHED, **common, **settings})
    trainer = PosteriorPPOTrainer(copy.deepcopy(theta), enumerable.template(), enumerable.problems(), config)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        if trainer.agent.value_head is not None:
            torch.nn.init.normal_(trainer.agent.value_head[-1].weight)  # any baseline leaves the expectation alone
    return trainer, theta


def log_prob(network, prompt, sequences):
    """log-probability of each sequence behind the prompt, (n,), by a plain softmax."""
    totals = []
    for ids in sequences:
        logits = network(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        totals.append(logits[range(len(prompt) - 1, len(prompt) + len(ids) - 1), ids].sum())
    return torch.stack(totals)


def expected_gradient(trainer, sequences):
    """Σ over all draws of their probability times the gradient of the loss, through the trainer's own methods."""
    weights = log_prob(trainer.model, trainer.template.prompt_ids(PROBLEM["question"]), sequences).detach().exp()
    assert weights.sum().item() == pytest.approx(1, abs=1e-6)
    if trainer.config.advantage == "gae":
        rows, probabilities = list(range(len(sequences))), weights
        experience = trainer.experience([PROBLEM] * len(sequences), sequences)
    else:  # a pair of siblings, only the first of which is differentiated
        pairs = [ids for first in sequences for second in sequences for ids in (first, second)]
        rows, probabilities = list(range(0, len(pairs), 2)), torch.outer(weights, weights).flatten()
        experience = trainer.experience([PROBLEM] * len(pairs), pairs)
    return torch.autograd.grad((trainer.loss_per_completion(experience, rows) * probabilities).sum(), list(trainer.model.parameters()))


def assert_ascends(trainer, sequences, objective, factor=1.0):
    wanted = torch.autograd.grad(-factor * objective, list(trainer.model.parameters()))
    assert max(gradient.abs().max() for gradient in wanted) > 1e-3
    names = [name for name, _ in trainer.model.named_parameters()]
    for name, got, want in zip(names, expected_gradient(trainer, sequences), wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-5), f"{name}: {(got - want).abs().max():.2e}"


def enumerate_all(trainer, theta):
    """All rationales with log π(z|x), log π₀(z|x), log π(y*|x,z), and which are finished."""
    rules = trainer.template
    prompt, answer, sequences = rules.prompt_ids(PROBLEM["question"]), rules.answer_ids(PROBLEM["answer"]), enumerable.completions(rules)
    log_pi, log_pi0 = log_prob(trainer.model, prompt, sequences), log_prob(theta, prompt, sequences).detach()
    log_y = log_prob(trainer.model, prompt, [ids + answer for ids in sequences]) - log_pi
    return sequences, log_pi, log_pi0, log_y, torch.tensor([ids[-1] == rules.boundary_ids[0] for ids in sequences])


@pytest.mark.parametrize("weight", [1.0, 0.0])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("advantage", ["rloo", "gae"])
def test_latro(advantage, seed, weight):
    """J = E_π[log π(y|x,z)] − β·KL(π(z|x)‖π₀(z|x)): both terms, and the first alone when the second has no weight."""
    settings = {"scorer": "live", "answer_nll_weight": weight, "kl_coef": BETA, "gae_lambda": 1.0}
    trainer, theta = make_trainer(seed, advantage=advantage, **settings)
    sequences, log_pi, log_pi0, log_y, finished = enumerate_all(trainer, theta)
    signal = torch.where(finished, log_y if weight else log_y.detach(), torch.tensor(UNFINISHED, dtype=torch.float64))
    assert_ascends(trainer, sequences, (log_pi.exp() * (signal - BETA * (log_pi - log_pi0))).sum())


@pytest.mark.parametrize("kl_coef", [1.0, 0.5])
@pytest.mark.parametrize(("reward", "advantage"), [("answer_likelihood", "rloo"), ("answer_likelihood", "gae"), ("verifier", "gae")])
def test_brevity(reward, advantage, kl_coef):
    """c·KL(Q‖Q*) with the stated optimum Q* ∝ P_θ·exp((reward − cost·|z|)/c); |z| has the boundary, and unfinished z pay too."""
    cost = 0.7
    settings = {"reward": reward, "advantage": advantage, "kl_coef": kl_coef, "brevity_cost": cost, "gae_lambda": 1.0}
    trainer, theta = make_trainer(**settings, unfinished_reward=UNFINISHED if reward == "answer_likelihood" else None)
    if reward == "verifier":
        sequences, log_pi, log_pi0, terminal = enumerate_answers(trainer, theta)
    else:
        sequences, log_pi, log_pi0, _, finished = enumerate_all(trainer, theta)
        log_y = log_prob(theta, [5, 0, 1, 0], [[*ids, 0, 3] for ids in sequences]).detach() - log_pi0
        terminal = torch.where(finished, log_y, torch.tensor(UNFINISHED, dtype=torch.float64))
    boundary = trainer.template.boundary_ids[0]
    lengths = torch.tensor([ids.index(boundary) + 1 if boundary in ids else len(ids) for ids in sequences])
    optimum = (log_pi0 + (terminal - cost * lengths) / kl_coef).log_softmax(0)
    assert_ascends(trainer, sequences, -kl_coef * (log_pi.exp() * (log_pi - optimum)).sum())


def test_what_is_logged_is_the_length_of_z_alone_and_the_whole_objective():
    trainer, _ = make_trainer(reward="verifier", beta=0.5, kl_coef=0.5, brevity_cost=0.7, unfinished_reward=None)
    experience = trainer.experience([PROBLEM] * 2, [[0, 2, 0, 3], [2, 1]])  # "a|a." and "|b"
    metrics = trainer.metrics(experience)
    assert metrics["rationale_length"] == 1.5 and abs(metrics["kl"]) > 1e-3
    assert metrics["elbo"] == pytest.approx(metrics["reward/terminal"] - 0.5 * metrics["kl"] - 0.7 * 1.5)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_verifree(seed):
    """E_π[π(y*|x,z)], where an unfinished z has no chance: its reward is 0."""
    trainer, theta = make_trainer(seed, **LIVE, answer_signal="prob", kl_coef=0.0, unfinished_reward=None)
    sequences, log_pi, _, log_y, finished = enumerate_all(trainer, theta)
    assert_ascends(trainer, sequences, ((log_pi + log_y).exp() * finished).sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_released_latro_teaches_no_stopping(seed):
    """Neither log π(z) nor its KL has the boundary, which is scored with y: the gradient of no objective."""
    trainer, theta = make_trainer(seed, scorer="live", kl_coef=BETA, boundary_is_action=False)
    sequences, log_pi, _, log_y, finished = enumerate_all(trainer, theta)
    bodies = [ids[:-1] if done else ids for ids, done in zip(sequences, finished, strict=True)]
    prompt = trainer.template.prompt_ids(PROBLEM["question"])
    log_body, log_body0 = log_prob(trainer.model, prompt, bodies), log_prob(theta, prompt, bodies)
    reward = torch.where(finished, log_pi - log_body + log_y, torch.tensor(UNFINISHED, dtype=torch.float64))
    returns, probability = (reward - BETA * (log_body - log_body0)).detach(), log_pi.detach().exp()
    surrogate = (probability * (returns - (probability * returns).sum()) * log_body).sum()
    stopping = (probability * returns * (log_pi - log_body)).sum()  # what the exact first term has on top
    assert max(g.abs().max() for g in torch.autograd.grad(stopping, list(trainer.model.parameters()), retain_graph=True)) > 1e-2
    assert_ascends(trainer, sequences, surrogate)


@pytest.mark.parametrize("advantage", ["rloo", "group", "gae"])
@pytest.mark.parametrize("seed", [0, 1])
def test_rlvr(advantage, seed, monkeypatch):
    """E_π[R]/β − c·KL(π(z,y|x)‖π₀); the group mean, which holds the sample itself, shrinks it by (K − 1)/K."""
    monkeypatch.setattr(enumerable, "MAX_RATIONALE", 1)
    settings = {"reward": "verifier", "beta": 0.5, "kl_coef": BETA, "unfinished_reward": None, "gae_lambda": 1.0}
    trainer, theta = make_trainer(seed, advantage=advantage, **settings)
    sequences, log_pi, log_pi0, correct = enumerate_answers(trainer, theta)
    objective = (log_pi.exp() * (correct / 0.5 - BETA * (log_pi - log_pi0))).sum()
    assert_ascends(trainer, sequences, objective, factor=0.5 if advantage == "group" else 1.0)


def test_grpo_divides_by_the_group_s_spread(monkeypatch):
    monkeypatch.setattr(enumerable, "MAX_RATIONALE", 1)
    settings = SPECIAL_CASES["GRPO / RLVR"].settings
    trainer, theta = make_trainer(0, **settings, unfinished_reward=None)
    sequences, log_pi, log_pi0, correct = enumerate_answers(trainer, theta)
    returns = (correct - settings["kl_coef"] * (log_pi - log_pi0)).detach()
    difference = returns[:, None] - returns[None, :]
    advantage = difference / 2 / (difference.abs() / 2**0.5 + 1e-4)  # two samples: half of it from the mean, |it|/√2 apart
    weights = torch.outer(log_pi, torch.ones_like(log_pi)).detach().exp() * log_pi.detach().exp()
    assert_ascends(trainer, sequences, (weights * advantage * log_pi[:, None]).sum())


def enumerate_answers(trainer, theta):
    """All (z, y) with log π, log π₀, and 1 for those that end in the right answer."""
    rules = trainer.template
    sequences, prompt = enumerable.completions(rules, with_answers=True, max_answer=2), rules.prompt_ids(PROBLEM["question"])
    right = [*rules.boundary_ids, *rules.answer_ids(PROBLEM["answer"])]
    correct = torch.tensor([float(ids[-len(right) :] == right) for ids in sequences], dtype=torch.float64)
    assert correct.sum() >= 1
    return sequences, log_prob(trainer.model, prompt, sequences), log_prob(theta, prompt, sequences).detach(), correct


def test_who_scores():
    """A frozen scorer's reward does not move with the policy, a live one's is the policy's own."""
    sequences, prompt, answer = [[0, 2], [2], [0, 1]], [5, 0, 1, 0], [0, 3]
    for scorer in ("frozen", "live"):
        trainer, theta = make_trainer(scorer=scorer)
        network = theta if scorer == "frozen" else trainer.model
        wanted = log_prob(network, prompt, [ids + answer for ids in sequences]) - log_prob(network, prompt, sequences)
        experience = trainer.experience([PROBLEM] * 4, [*sequences, [2]])
        assert experience.terminal[:2].tolist() == pytest.approx(wanted[:2].tolist(), abs=1e-5)
        assert experience.terminal[2].item() == UNFINISHED
        assert torch.allclose(experience.reference_log_prob.sum(1)[:3].double(), log_prob(theta, prompt, sequences), atol=1e-5)


def test_adapters_score_live_and_anchor_on_the_model_without_them():
    config = PsiParams.parse({**LIVE, "lora": LoraParams(r=4, alpha=8).model_dump(), "max_rationale_tokens": 2, "unfinished_reward": -6.0})
    theta = enumerable.model(0)
    trainer = PosteriorPPOTrainer(copy.deepcopy(theta), enumerable.template(), enumerable.problems(), config)
    with torch.no_grad():
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    experience = trainer.experience([PROBLEM] * 8, [[0, 2]] * 8)
    policy = trainer.model
    wanted = log_prob(policy, [5, 0, 1, 0], [[0, 2, 0, 3]]) - log_prob(policy, [5, 0, 1, 0], [[0, 2]])
    assert experience.terminal[0].item() == pytest.approx(wanted.item(), abs=1e-5)
    anchor = log_prob(theta, [5, 0, 1, 0], [[0, 2]])
    assert experience.reference_log_prob.sum(1)[0].item() == pytest.approx(anchor.item(), abs=1e-5)
    assert (anchor - log_prob(policy, [5, 0, 1, 0], [[0, 2]])).abs().item() > 1e-3


def test_unfinished_rationales_earn_twice_the_mean():
    trainer, _ = make_trainer(scorer="live", unfinished_rule="twice_mean", unfinished_reward=None)
    terminal = trainer.experience([PROBLEM] * 4, [[0, 2], [2], [0, 1], [0, 3]]).terminal
    assert terminal[2] == terminal[3] == pytest.approx((terminal[0] + terminal[1]).item(), rel=1e-6)
    assert trainer.experience([PROBLEM] * 2, [[0, 1], [0, 3]]).terminal.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("advantage", ["rloo", "gae"])
def test_a_batch_of_empty_rationales(advantage):
    """Without its boundary a z can be empty: nothing to learn, and nothing breaks."""
    trainer, _ = make_trainer(scorer="live", boundary_is_action=False, advantage=advantage)
    before = copy.deepcopy(trainer.model.state_dict())
    statistics = trainer.update(trainer.experience([PROBLEM] * 2, [[2], [2]]))
    assert statistics["approx_kl"] == 0
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_defaults_are_the_posterior_s():
    neutral = {
        "scorer": "frozen",
        "answer_signal": "log_prob",
        "answer_nll_weight": 0,
        "boundary_is_action": True,
        "unfinished_rule": "constant",
    }
    assert {name: getattr(PsiParams(), name) for name in neutral} == neutral
    assert all(PsiParams.parse(case.settings) for case in SPECIAL_CASES.values())
    paper = LatroParams()
    settings = SPECIAL_CASES["LaTRO, paper"].settings
    assert {name: getattr(paper, name) for name in settings} == settings
    assert paper.epochs == paper.minibatches == 1  # on policy, so the clipping never acts


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"advantage": "rloo", "rationales_per_prompt": 1}, "rationales_per_prompt must be at least 2"),
        ({"answer_nll_weight": 1}, "answer_nll_weight is the gradient through a live scorer"),
        ({"reward": "verifier", "scorer": "live"}, "scorer must be 'frozen' with reward: verifier"),
        ({"reward": "verifier", "answer_signal": "prob"}, "answer_signal must be 'log_prob' with reward: verifier"),
        ({"reward": "verifier", "boundary_is_action": False}, "boundary_is_action must be True with reward: verifier"),
        ({"reward": "verifier", "unfinished_rule": "twice_mean"}, "unfinished_rule must be 'constant' with reward: verifier"),
        ({"unfinished_rule": "twice_mean", "answer_signal": "prob"}, "twice_mean is for answer_signal: log_prob"),
        ({"unfinished_rule": "twice_mean", "unfinished_reward": -3}, "twice_mean is for answer_signal: log_prob without unfinished_reward"),
        ({"scorer": "alive"}, "scorer: Input should be 'frozen' or 'live'"),
        ({"answer_nll_weight": -1}, "answer_nll_weight: Input should be greater than or equal to 0"),
    ],
)
def test_bad_settings_are_one_sentence(settings, sentence):
    with pytest.raises(InputError) as error:
        PsiParams.parse(settings)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def run(directory, steps, stop_at=None):
    """Train LaTRO on the enumerable task with validation every 2 updates; may be interrupted before step ``stop_at`` is saved."""
    settings = {"max_rationale_tokens": 2, "max_answer_tokens": 2, "prompts_per_step": 3, "rationales_per_prompt": 8, "steps": steps}
    params = LatroParams.parse({**settings, "unfinished_reward": -6, "validation_steps": 2, "save_steps": 2, "learning_rate": 1e-2})
    scores = {}

    def keep(step):
        if measured := best.validate(step):
            scores[step] = measured["validation/pass@1"]

    def log(step, **metrics):
        if step == stop_at:
            raise KeyboardInterrupt
        keep(step)

    trainer = PosteriorPPOTrainer(enumerable.model(1), enumerable.template(), enumerable.problems(), params, None, directory / "s.pt", log)
    best = BestOnValidation(trainer, enumerable.problems(), params, directory / "best.pt")
    if trainer.resume() < 0:
        keep(0)
    trainer.train()
    return trainer, best.restore(), scores


def test_the_best_weights_on_validation_are_kept_also_after_an_interruption(tmp_path):
    trainer, (step, score), scores = run(tmp_path / "whole", 5)
    assert list(scores) == [0, 2, 4, 5]
    assert score == max(scores.values()) and step == min(s for s in scores if scores[s] == score)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 5, stop_at=5)
    resumed, kept, rest = run(tmp_path / "cut", 5)
    assert kept == (step, score) and rest == {5: scores[5]}
    assert resumed.tokens_generated == trainer.tokens_generated
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, resumed.model.state_dict()[name])


def test_validation_problems_are_never_training_or_test_problems(tmp_path):
    training, validation = training_and_validation(LatroParams(limit=50, validation_limit=20))
    assert (len(training), len(validation)) == (50, 20) and not set(training["question"]) & set(validation["question"])
    training, held_out = training_and_validation(LatroParams(limit=50, validation_limit=20, validation_split=""))
    assert (len(training), len(held_out)) == (30, 20) and not set(training["question"]) & set(held_out["question"])
    with pytest.raises(InputError, match="leave none to train on"):
        training_and_validation(LatroParams(limit=20, validation_limit=20, validation_split=""))
    with pytest.raises(InputError, match="validation_split must not be the test split"):
        LatroParams.parse({"validation_split": "test"})
    file = tmp_path / "problems.jsonl"  # a file is every split
    file.write_text('{"question": "1 + 1", "answer": "2"}\n{"question": "1 + 2", "answer": "3"}\n')
    with pytest.raises(InputError, match="2 questions of validation are training questions too"):
        training_and_validation(LatroParams(data=str(file)))
