"""gradient_checkpointing changes memory and time, not what is learned."""

import enumerable
import pytest
import torch
from test_forecast import seven_billion  # noqa: F401
from two_ranks import dpo_pairs, sft_rows

from brite_lib.dpo import rationale_dpo
from brite_lib.errors import InputError
from brite_lib.memory import GIB, activation_bytes_per_token, check_fit, ghost, stage_memory
from brite_lib.params import DpoParams, LoraParams, PsiParams, ThetaParams
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


def test_the_plan_counts_the_layers_inputs_and_one_layer(seven_billion):  # noqa: F811
    model = ghost(seven_billion, LoraParams())
    params = {"micro_batch_size": 2, "batch_size": 8, "lora": LoraParams()}
    plain, again = (stage_memory(ThetaParams(**params, gradient_checkpointing=on), model, 8000, 0) for on in (False, True))
    assert again.training == round(2 * 8000 * (28 * 3584 * 2 + activation_bytes_per_token(model) / 28))
    assert again.standing == plain.standing and again.training < plain.training / 10
    longer = ThetaParams(**params | {"micro_batch_size": 1})
    need = stage_memory(longer, model, 8000, 0)
    with pytest.raises(InputError, match="set gradient_checkpointing: true$"):
        check_fit("seed0/brite", longer, need, 80 * GIB)
    check_fit("seed0/brite", longer, stage_memory(longer.model_copy(update={"gradient_checkpointing": True}), model, 8000, 0), 80 * GIB)
