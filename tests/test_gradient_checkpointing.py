"""gradient_checkpointing changes memory and time, not what is learned."""

import enumerable
import pytest
import torch
from two_ranks import dpo_pairs, sft_rows

from brite_lib.dpo import rationale_dpo
from brite_lib.params import DpoParams, PsiParams, ThetaParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.rewards import AnswerLikelihood
from brite_lib.sft import rationale_sft

LIMITS = {"max_rationale_tokens": enumerable.MAX_RATIONALE, "max_answer_tokens": 2}
PPO = {"steps": 3, "prompts_per_step": 3, "rationales_per_prompt": 8, "minibatches": 2, "learning_rate": 4e-3, "unfinished_reward": -10.0}
LORA = {"r": 2, "alpha": 4}


def psi(model, log, tmp_path, **settings):
    params = PsiParams(device="cpu", **LIMITS, **PPO, **settings)
    reward = AnswerLikelihood()
    return PosteriorPPOTrainer(model, enumerable.template(), enumerable.problems(), params, reward, log=log).train()


def sft(model, log, tmp_path, **settings):
    params = ThetaParams(device="cpu", train_batch_size=8, learning_rate=1e-3, **settings)
    return rationale_sft(model, sft_rows(20, weighted=False), enumerable.template(), params, tmp_path, log)[0]


def dpo(model, log, tmp_path, **settings):
    params = DpoParams(device="cpu", train_batch_size=4, learning_rate=1e-3, **settings)
    return rationale_dpo(model, dpo_pairs(12), enumerable.template(), params, tmp_path, log)[0]


@pytest.mark.parametrize("lora", [None, LORA], ids=["weights", "lora"])
@pytest.mark.parametrize("learn", [psi, sft, dpo])
def test_the_same_steps_with_each_layer_computed_twice(learn, lora, tmp_path):
    logged, weights, passes = {}, {}, {}
    for recompute in (False, True):
        model, steps, calls = enumerable.model(), [], []
        model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(torch.is_grad_enabled()))
        settings = {"gradient_checkpointing": recompute, "lora": lora}
        trained = learn(model, lambda step, steps=steps, **metrics: steps.append(metrics), tmp_path / str(recompute), **settings)
        logged[recompute], weights[recompute], passes[recompute] = steps, dict(trained.named_parameters()), sum(calls)
    assert passes[True] >= 1.4 * passes[False] > 0  # DPO's frozen model has some of these passes, and is not trained
    for plain, again in zip(logged[False], logged[True], strict=True):
        assert again == pytest.approx(plain, abs=1e-5)
    for name, weight in weights[False].items():
        torch.testing.assert_close(weights[True][name], weight, atol=1e-5, rtol=0)
