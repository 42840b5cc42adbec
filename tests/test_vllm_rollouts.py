"""Rollouts that another engine drew: what they count, how far the engine is off, and the canary; vLLM itself: tests/with_vllm."""

import copy
import math
from contextlib import contextmanager

import enumerable
import pytest
import torch

from brite_lib import vllm_rollouts
from brite_lib.advantages import importance_weights, mismatch_kl
from brite_lib.errors import InputError
from brite_lib.models import load_policy
from brite_lib.params import PsiParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.rollouts import sample
from brite_lib.vllm_engine import Drawn
from brite_lib.vllm_rollouts import canary_difference

UNFINISHED, PROBLEM = -6.0, enumerable.problems()[2]
LIVE = {"scorer": "live", "answer_nll_weight": 1.0}
CASES = [{"advantage": "rloo"}, {"advantage": "gae", "gae_lambda": 1}, {"advantage": "rloo", **LIVE}]


def token_log_probs(network, prompt, sequences):
    """log-probabilities of the tokens of each sequence behind the prompt, by a plain softmax."""
    found = []
    for ids in sequences:
        logits = network(input_ids=torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
        found.append(logits[range(len(prompt) - 1, len(prompt) + len(ids) - 1), ids])
    return found


def moved(network, seed, scale):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return network


@pytest.fixture
def short(monkeypatch):
    """Pairs of rationales are enumerated here, so there must not be too many."""
    monkeypatch.setattr(enumerable, "MAX_RATIONALE", 2)


class Mismatched:
    """A policy Q away from θ, an engine q away from Q, and everything that they can say."""

    def __init__(self, **settings):
        self.theta = enumerable.model(0).double()
        common = {"max_rationale_tokens": enumerable.MAX_RATIONALE, "max_answer_tokens": 2, "rationales_per_prompt": 2}
        config = PsiParams.parse({"unfinished_reward": UNFINISHED, "prompts_per_step": 1, "importance_cap": 1e9} | common | settings)
        self.trainer = PosteriorPPOTrainer(copy.deepcopy(self.theta), enumerable.template(), enumerable.problems(), config)
        if self.trainer.agent.value_head is not None:
            torch.nn.init.normal_(self.trainer.agent.value_head[-1].weight)
        self.policy = moved(self.trainer.model, 1, 0.05)
        self.engine = moved(copy.deepcopy(self.policy), 2, 0.1)
        self.prompt = self.trainer.template.prompt_ids(PROBLEM["question"])
        self.sequences = enumerable.completions(self.trainer.template)
        with torch.no_grad():
            self.engine_log_probs = [values.tolist() for values in token_log_probs(self.engine, self.prompt, self.sequences)]

    def objective_gradient(self):
        """∇ E_Q[log P(y*|x,z) − log Q(z)/P_θ(z)], a plain sum over all z."""
        log_q = torch.stack([values.sum() for values in token_log_probs(self.policy, self.prompt, self.sequences)])
        log_p = torch.stack([values.sum() for values in token_log_probs(self.theta, self.prompt, self.sequences)]).detach()
        scorer = self.policy if self.trainer.config.scorer == "live" else self.theta
        gold = self.trainer.template.answer_ids(PROBLEM["answer"])
        answered = token_log_probs(scorer, self.prompt, [[*ids, *gold] for ids in self.sequences])
        finished = torch.tensor([self.trainer.template.split(ids).finished for ids in self.sequences])
        reward = torch.where(finished, torch.stack([values[-len(gold) :].sum() for values in answered]), UNFINISHED)
        total = (log_q.exp() * (reward - (log_q - log_p))).sum()
        return torch.autograd.grad(-total, list(self.policy.parameters()))

    def expected_gradient(self, weighted):
        """The expectation over pairs of siblings that the engine draws, of the trainer's gradient for the first of them."""
        n = len(self.sequences)
        law = torch.tensor([math.exp(sum(values)) for values in self.engine_log_probs], dtype=torch.float64)
        assert law.sum().item() == pytest.approx(1, abs=1e-6)
        index = [k for i in range(n) for j in range(n) for k in (i, j)]
        log_probs = [self.engine_log_probs[k] for k in index] if weighted else None
        experience = self.trainer.experience([PROBLEM] * len(index), [self.sequences[k] for k in index], log_probs)
        losses = self.trainer.loss_per_completion(experience, list(range(0, len(index), 2)))
        total = (losses * torch.outer(law, law).flatten()).sum()
        return torch.autograd.grad(total, list(self.policy.parameters()))


def largest_difference(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("settings", CASES)
def test_weighted_samples_of_another_engine_give_the_exact_gradient_and_unweighted_ones_do_not(settings, short):
    case = Mismatched(**settings)
    wanted = case.objective_gradient()
    assert largest_difference(case.expected_gradient(weighted=True), wanted) < 1e-5
    assert largest_difference(case.expected_gradient(weighted=False), wanted) > 0.01


def test_a_cap_that_is_reached_costs_a_bias_and_bounds_the_weights(short):
    case = Mismatched(advantage="rloo", importance_cap=1.1)
    experience = case.trainer.experience([PROBLEM] * len(case.sequences), case.sequences, case.engine_log_probs)
    policy = [values.sum().item() for values in token_log_probs(case.policy, case.prompt, case.sequences)]
    ratios = [math.exp(own - sum(values)) for own, values in zip(policy, case.engine_log_probs, strict=True)]
    assert max(ratios) > 1.2
    assert experience.importance.tolist() == pytest.approx([min(ratio, 1.1) for ratio in ratios], rel=1e-5)
    wider, none = (Mismatched(advantage="rloo", importance_cap=cap) for cap in (1.4, 1e9))
    biases = [largest_difference(one.expected_gradient(weighted=True), one.objective_gradient()) for one in (case, wider, none)]
    assert min(biases[:2]) > 0.01
    assert biases[2] < 1e-5


def test_ratios_of_single_tokens_would_leave_a_bias():
    """Two tokens, each 0 or 1, by hand: why the whole completion's ratio is taken."""
    q, engine = {(0, 0): 0.1, (0, 1): 0.3, (1, 0): 0.4, (1, 1): 0.2}, {(0, 0): 0.25, (0, 1): 0.25, (1, 0): 0.25, (1, 1): 0.25}
    first = {0: 0.4, 1: 0.6}
    of_second_token = {z: q[z] / first[z[0]] / 0.5 for z in q}  # its ratio alone
    assert sum(engine[z] * of_second_token[z] * (z == (0, 1)) for z in q) == pytest.approx(0.375)  # and not Q's 0.3
    log_prob, sampler = torch.tensor([[0.4, 0.75]]).log(), torch.tensor([[0.5, 0.5]]).log()
    weight = importance_weights(log_prob, sampler, torch.ones(1, 2, dtype=torch.bool)).item()
    assert engine[0, 1] * weight == pytest.approx(q[0, 1])


def test_weights_and_mismatch_by_hand():
    mask = torch.tensor([[True, True], [True, False]])
    log_prob, sampler = torch.tensor([[-1.0, -2.0], [-1.0, 0.0]]), torch.tensor([[-1.5, -2.0], [-0.5, 9.0]])
    assert importance_weights(log_prob, sampler, mask).tolist() == pytest.approx([math.exp(0.5), math.exp(-0.5)])
    assert importance_weights(log_prob, sampler, mask, 1.2).tolist() == pytest.approx([1.2, math.exp(-0.5)])
    assert mismatch_kl(log_prob, sampler, mask) == pytest.approx((math.exp(0.5) - 1.5 + math.exp(-0.5) - 0.5) / 3)
    assert mismatch_kl(log_prob, log_prob, mask) == 0.0
    q, engine = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.3, 0.3, 0.4])
    terms = [mismatch_kl(q[None, i : i + 1].log(), engine[None, i : i + 1].log(), torch.ones(1, 1, dtype=torch.bool)) for i in range(3)]
    exact = (engine * (engine / q).log()).sum().item()
    assert sum(e * t for e, t in zip(engine.tolist(), terms, strict=True)) == pytest.approx(exact, rel=1e-5)


def test_the_canary_compares_log_probabilities_and_the_best_token():
    policy, prompts = enumerable.model(0), [[0], [1, 1]]
    ids = []
    for prompt in prompts:
        drawn = policy.generate(input_ids=torch.tensor([prompt]), do_sample=False, max_new_tokens=4, eos_token_id=99)
        ids.append(drawn[0, len(prompt) :].tolist())
    with torch.no_grad():
        log_probs = [token_log_probs(policy, prompt, [row])[0].tolist() for prompt, row in zip(prompts, ids, strict=True)]
        assert canary_difference(policy, prompts, ids, log_probs) < 1e-6
        raised = [[value + 0.1 for value in row] for row in log_probs]
        assert canary_difference(policy, prompts, ids, raised) == pytest.approx(0.1, abs=1e-5)
        other = [[(token + 1) % 6 for token in row] for row in ids]
        true = [token_log_probs(policy, prompt, [row])[0].tolist() for prompt, row in zip(prompts, other, strict=True)]
    assert canary_difference(policy, prompts, other, true) > 0.1  # right log-probabilities, of tokens that are not the best
    assert canary_difference(enumerable.model(1), prompts, ids, log_probs) > 0.1
    assert math.isnan(canary_difference(policy, prompts, ids, [[math.nan] * 4, log_probs[1]]))  # which is not within a tolerance


class Engine:
    """Does what vLLM does, by generate on the weights that it was handed in files, and keeps a list of what it was asked."""

    def __init__(self, policy):
        self.policy, self.calls = copy.deepcopy(policy), []

    def sample(self, prompts, seeds, stop_ids, temperature, max_new_tokens, desc):
        self.calls.append("rollout" if temperature else "canary")
        rules = enumerable.template()
        ids = sample(self.policy, rules, prompts, seeds, temperature, max_new_tokens, rules.boundary_ids[0] in stop_ids)
        with torch.no_grad():
            pairs = zip(prompts, ids, strict=True)
            return Drawn(ids, [token_log_probs(self.policy, prompt, [row])[0].tolist() for prompt, row in pairs])

    def load(self, directory):
        self.calls.append("load")
        self.policy = load_policy(directory)

    def sleep(self):
        self.calls.append("sleep")


@pytest.fixture
def engines(monkeypatch):
    """Engines that were opened, with the options they were opened with; none is vLLM's."""
    opened = []

    @contextmanager
    def open_one(policy, kind, **options):
        opened.append((Engine(policy), options))
        yield opened[-1][0]
        opened[-1][0].calls.append("end")

    monkeypatch.setattr(vllm_rollouts, "open_sampler", open_one)
    monkeypatch.setattr(vllm_rollouts, "check_engine", lambda *names: None)
    return opened


def three_steps(directory, lines):
    settings = {"max_rationale_tokens": 3, "steps": 3, "prompts_per_step": 3, "learning_rate": 1e-2, "unfinished_reward": UNFINISHED}
    config = PsiParams.parse({"rollout_engine": "vllm", **settings})
    log = lambda step, **metrics: lines.append(metrics)  # noqa: E731
    return PosteriorPPOTrainer(enumerable.model(0), enumerable.template(), enumerable.problems(), config, None, directory / "x/s.pt", log)


@pytest.mark.parametrize("shares_gpu", [False, True])
def test_weights_go_over_before_every_draw_and_a_gpu_that_is_shared_is_free_after(shares_gpu, engines, tmp_path, monkeypatch):
    lines: list[dict[str, float]] = []
    trainer = three_steps(tmp_path, lines)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    trainer.vllm._shares_gpu = shares_gpu
    trainer.train()
    ((engine, options),) = engines
    draw = ["canary", "rollout", *(["sleep"] if shares_gpu else [])]
    assert engine.calls == [*draw, "load", *draw, "load", *draw, "end"]
    expected = {"device": "cpu", "dtype": "float32", "directory": tmp_path / "x", "memory": 0.3 if shares_gpu else None}
    assert options == expected | {"sleeps": shares_gpu}
    assert max(line["mismatch_kl"] for line in lines) < 1e-6
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["s.pt"]


def test_an_engine_that_keeps_old_weights_is_found_out_at_the_next_step(engines, tmp_path, monkeypatch):
    monkeypatch.setattr(Engine, "load", lambda self, directory: None)
    lines: list[dict[str, float]] = []
    with pytest.raises(RuntimeError, match="does not sample from the policy: .* 0.001 is allowed; set rollout_engine: hf"):
        three_steps(tmp_path, lines).train()
    assert len(lines) == 1


def test_a_gpu_that_is_not_there_is_named(engines):
    config = PsiParams(rollout_engine="vllm", rollout_device=f"cuda:{torch.cuda.device_count()}")
    with pytest.raises(InputError, match=r"rollout_device: there is no cuda:\d+ here, only \d+ GPUs"):
        PosteriorPPOTrainer(enumerable.model(0), enumerable.template(), enumerable.problems(), config)
