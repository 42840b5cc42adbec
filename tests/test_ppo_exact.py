"""PosteriorPPOTrainer against enumerated targets (issue checks 1 and 2)."""

import copy

import enumerable
import pytest
import torch
from peft import LoraConfig, get_peft_model

from brite_lib import ppo
from brite_lib.errors import InputError
from brite_lib.likelihood import score
from brite_lib.params import LoraParams
from brite_lib.ppo import PosteriorPPOConfig, PosteriorPPOTrainer
from brite_lib.rewards import VerifierReward

UNFINISHED = {"answer_likelihood": -6.0, "verifier": -2.0}  # nats; below most finished rewards
STEPS = {"answer_likelihood": 120, "verifier": 170}  # reward (ii) has more to learn: y is sampled too
COMMON = {
    "max_rationale_tokens": enumerable.MAX_RATIONALE,
    "max_answer_tokens": 2,
    "unfinished_reward": UNFINISHED["answer_likelihood"],
    "prompts_per_step": 3,
    "rationales_per_prompt": 256,
    "steps": 120,
    "epochs": 4,
    "minibatches": 4,
    "learning_rate": 4e-3,
    "value_learning_rate": 1e-2,
    "lr_schedule": "linear",
    "max_grad_norm": 10.0,
    "kl_coef": 1.0,
    "micro_batch_size": 1024,
    "batch_size": 1024,
    "gae_lambda": 1.0,
}


def exact_target(theta, rules, question, reward="answer_likelihood", beta=1.0, kl_coef=1.0):
    """Enumerated completions of a question and their optimal probabilities, unfinished ones included."""
    prompt, answer = rules.prompt_ids(question), rules.answer_ids("a")
    sequences = enumerable.completions(rules, reward == "verifier", max_answer=2)
    cut = [rules.split(ids, enumerable.MAX_RATIONALE) for ids in sequences]
    if reward == "verifier":
        terminal = [(c.answer == "a") / beta if c.ended else UNFINISHED["verifier"] for c in cut]
    else:
        forced = score(theta, [prompt] * len(cut), [c.rationale_ids for c in cut], [answer] * len(cut)).answer
        terminal = [values.sum().item() if c.finished else UNFINISHED["answer_likelihood"] for values, c in zip(forced, cut, strict=True)]
    prior = enumerable.law(theta, prompt, sequences)
    assert prior.exp().sum().item() == pytest.approx(1, abs=1e-4)
    return sequences, enumerable.target(prior, torch.tensor(terminal), kl_coef)


def distances(policy, theta, rules, **kwargs):
    result = []
    for question in enumerable.QUESTIONS:
        sequences, wanted = exact_target(theta, rules, question, **kwargs)
        result.append(enumerable.total_variation(enumerable.law(policy, rules.prompt_ids(question), sequences).exp(), wanted))
    return result


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("reward", ["answer_likelihood", "verifier"])
def test_learns_the_enumerated_target(advantage, seed, reward):
    rules, theta = enumerable.template(), enumerable.model(seed)
    config = PosteriorPPOConfig.parse(
        {
            **COMMON,
            "advantage": advantage,
            "seed": seed,
            "reward": reward,
            "beta": 0.5,
            "steps": STEPS[reward],
            "unfinished_reward": UNFINISHED[reward],
        }
    )
    before = distances(theta, theta, rules, reward=reward, beta=0.5)
    trainer = PosteriorPPOTrainer(copy.deepcopy(theta), rules, enumerable.problems(), config)
    policy = trainer.train()
    after = distances(policy, theta, rules, reward=reward, beta=0.5)
    assert min(before) > 0.1, "the task must be one where there is something to learn"
    assert max(after) <= 0.05, f"total variation {before} -> {after}"


def test_half_the_kl_is_not_the_posterior():
    rules, theta = enumerable.template(), enumerable.model(0)
    config = PosteriorPPOConfig.parse({**COMMON, "kl_coef": 0.5})
    policy = PosteriorPPOTrainer(copy.deepcopy(theta), rules, enumerable.problems(), config).train()
    assert max(distances(policy, theta, rules, kl_coef=0.5)) <= 0.05
    assert min(distances(policy, theta, rules, kl_coef=1.0)) > 0.05


def test_a_corrupt_checkpoint_is_named(tmp_path):
    config = PosteriorPPOConfig.parse({**COMMON, "steps": 1})
    arguments = (enumerable.template(), enumerable.problems(), config, None, tmp_path / "state.pt")
    PosteriorPPOTrainer(enumerable.model(0), *arguments).train()
    whole = (tmp_path / "state.pt").read_bytes()
    for part in (whole[: len(whole) // 2], whole[:10], b""):
        (tmp_path / "state.pt").write_bytes(part)
        with pytest.raises(InputError, match=r"state.pt: this checkpoint cannot be read .*; delete .*state.pt and the stage starts over"):
            PosteriorPPOTrainer(enumerable.model(0), *arguments).train()


def with_theta_adapter(seed):
    """A model that carries a trained θ adapter, as in EM round 2, and its plain base."""
    base = enumerable.model(seed, scale=10.0)  # adapters leave the output layer alone, so it must be able to say much
    torch.manual_seed(seed + 100)
    theta = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", init_lora_weights=False))
    return base, theta.eval()


def test_the_anchor_is_the_model_with_its_adapter():
    rules = enumerable.template()
    base, theta = with_theta_adapter(3)
    frozen = copy.deepcopy(theta)
    config = PosteriorPPOConfig.parse({**COMMON, "lora": LoraParams(r=8, alpha=16).model_dump(), "steps": 240, "seed": 3})
    policy = PosteriorPPOTrainer(theta, rules, enumerable.problems(), config).train()  # asserts log Q = log P_θ at step 0
    prompt = rules.prompt_ids("aba")
    sequences = enumerable.completions(rules)
    with policy.disable_adapter():
        off = enumerable.law(policy, prompt, sequences)
    assert torch.allclose(off, enumerable.law(frozen, prompt, sequences), atol=1e-4)
    assert (off - enumerable.law(base, prompt, sequences)).abs().max() > 0.1
    before, after = distances(frozen, frozen, rules), distances(policy, frozen, rules)
    assert max(after) <= 0.05 < min(before), f"total variation {before} -> {after}"  # it is that model's posterior that is reached


def test_the_policy_stays_on_its_device(monkeypatch):
    """accelerate's own choice is the first GPU, here another device than the model's."""
    monkeypatch.setattr(ppo.Accelerator, "device", torch.device("meta"))
    config = PosteriorPPOConfig.parse(COMMON)
    trainer = PosteriorPPOTrainer(enumerable.model(0), enumerable.template(), enumerable.problems(), config)
    assert {parameter.device.type for parameter in trainer.agent.parameters()} == {"cpu"}


def test_a_wrong_anchor_is_refused():
    rules = enumerable.template()
    trainer = PosteriorPPOTrainer(enumerable.model(0), rules, enumerable.problems(), PosteriorPPOConfig.parse({**COMMON, "steps": 1}))
    trainer.reference._copy = enumerable.model(1)
    with pytest.raises(RuntimeError, match="step 0"):
        trainer.train()


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_expected_gradient_is_that_of_the_kl_to_the_posterior(advantage, seed):
    """Σ_z Q(z)·∇loss(z) = ∇KL(Q‖posterior) at a point Q ≠ θ, by enumeration through the trainer's own methods."""
    rules, theta = enumerable.template(), enumerable.model(seed).double()
    settings = {**COMMON, "advantage": advantage, "rationales_per_prompt": 2, "prompts_per_step": 1, "minibatches": 1}
    trainer = PosteriorPPOTrainer(copy.deepcopy(theta), rules, enumerable.problems(), PosteriorPPOConfig.parse(settings))
    with torch.no_grad():
        torch.manual_seed(seed)
        for parameter in trainer.model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        if advantage == "gae":
            torch.nn.init.normal_(trainer.agent.value_head[-1].weight)  # any baseline leaves the expectation alone
    problem = enumerable.problems()[2]
    sequences, posterior = exact_target(theta, rules, problem["question"])
    parameters = list(trainer.model.parameters())
    weights = enumerable.law(trainer.model, rules.prompt_ids(problem["question"]), sequences).exp().double()

    if advantage == "gae":
        experience = trainer.experience([problem] * len(sequences), sequences)
        pairs = [(i, i, weights[i].item()) for i in range(len(sequences))]
    else:  # rloo: the expectation over a pair drawn from Q, only the first of which is differentiated
        index = [(i, j) for i in range(0, len(sequences)) for j in range(0, len(sequences))]
        experience = trainer.experience([problem] * (2 * len(index)), [sequences[k] for pair in index for k in pair])
        pairs = [(2 * n, i, (weights[i] * weights[j]).item()) for n, (i, j) in enumerate(index)]
    losses = trainer.loss_per_completion(experience, [row for row, _, _ in pairs])
    total = (losses * torch.tensor([weight for _, _, weight in pairs], dtype=losses.dtype)).sum()
    expected = torch.autograd.grad(total, parameters, allow_unused=True)

    log_q = differentiable_law(trainer, rules.prompt_ids(problem["question"]), sequences)
    kl = (log_q.exp() * (log_q - posterior.double().log())).sum()
    wanted = torch.autograd.grad(kl, parameters, allow_unused=True)
    for name, got, want in zip([n for n, _ in trainer.model.named_parameters()], expected, wanted, strict=True):
        assert (got is None) == (want is None), name
        if want is not None:
            assert torch.allclose(got, want, atol=1e-5), f"{name}: {(got - want).abs().max():.2e}"


def differentiable_law(trainer, prompt, sequences):
    log_prob = trainer.agent([prompt] * len(sequences), sequences)[0]
    return torch.stack([values.sum() for values in log_prob.split([len(ids) for ids in sequences])])


def test_reward_ii_forces_nothing_and_acts_on_the_answer():
    rules = enumerable.template()
    completion = rules.split([0, 2, 0, 3], enumerable.MAX_RATIONALE)
    reward = VerifierReward(beta=0.5)
    assert reward.actions(completion) == [0, 2, 0, 3]
    assert reward.forced({"answer": "a"}, completion, rules) == []
    assert reward.terminal([{"answer": "a"}, {"answer": "b"}], [completion] * 2, [0.0, 0.0]) == [2.0, 0.0]
