"""Model FLOPs against torch's own counter, and where they are counted."""

import json

import enumerable
import pytest
import torch
from real_model import build_qwen2
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from brite_lib import costs
from brite_lib.agent import PolicyWithCritic
from brite_lib.costs import ModelCost
from brite_lib.likelihood import score
from brite_lib.models import attach_lora, load_template
from brite_lib.params import LoraParams
from brite_lib.ppo import PosteriorPPOConfig, PosteriorPPOTrainer
from brite_lib.rollouts import sample

TINY = "assets/tiny-base"
PROMPT, SAMPLED = 12, 8
LENGTH = PROMPT + SAMPLED


@pytest.fixture
def tiny(monkeypatch):
    """The embedded model with eager attention, whose products torch's counter sees (on the CPU it misses the fused kernel's)."""
    from brite_lib.params import PROJECT_ROOT

    monkeypatch.setattr(costs, "_spent", 0)
    return AutoModelForCausalLM.from_pretrained(PROJECT_ROOT / TINY, attn_implementation="eager", dtype=torch.float32)


def counted(run, model: torch.nn.Module, passes: int = 1, tokens: int = LENGTH) -> int:
    """Multiply-add FLOPs that torch counts, without those of the rotary angles: a product of 1 × (head size / 2) per token."""
    with FlopCounterMode(display=False) as counter:
        run()
    size = model.config.hidden_size // model.config.num_attention_heads
    return counter.get_total_flops() - passes * size * tokens


def future_keys(cost: ModelCost, tokens: int) -> int:
    """What eager attention computes beyond the t keys that the t-th token has."""
    return 2 * cost.attention * (tokens * tokens - tokens)


def test_sizes_of_the_embedded_model(tiny):
    # 3 layers of 4 attention matrices 96 × 96 and 3 of 96 × 192; 53 tokens; 4 heads of 24
    whole = 3 * (4 * 96 * 96 + 3 * 96 * 192)
    assert ModelCost.of(tiny) == ModelCost(whole, whole, 53 * 96, 53 * 96, attention=3 * 4 * 24)
    adapted = ModelCost.of(attach_lora(tiny, LoraParams(r=4, alpha=8)))
    adapters = 3 * 4 * (4 * (96 + 96) + 3 * (96 + 192))
    assert adapted == ModelCost(whole + adapters, adapters, 53 * 96, 0, attention=3 * 4 * 24)


def test_a_model_on_the_meta_device_has_the_same_sizes(tiny):
    with torch.device("meta"):
        ghost = AutoModelForCausalLM.from_config(tiny.config)
    assert ModelCost.of(ghost) == ModelCost.of(tiny)


def test_forward_training_and_sampling_equal_torchs_counter(tiny):
    cost, ids = ModelCost.of(tiny), torch.arange(LENGTH)[None]
    assert cost.forward([LENGTH], LENGTH) == counted(lambda: tiny(ids), tiny) - future_keys(cost, LENGTH)
    training = counted(lambda: tiny(ids).logits.sum().backward(), tiny)
    assert cost.training([LENGTH], LENGTH) == training - 3 * future_keys(cost, LENGTH)
    options = {"max_new_tokens": SAMPLED, "min_new_tokens": SAMPLED, "do_sample": False, "use_cache": True}
    decoding = counted(lambda: tiny.generate(ids[:, :PROMPT], **options), tiny, tokens=LENGTH - 1)
    assert cost.sampling([PROMPT], [SAMPLED]) == decoding - future_keys(cost, PROMPT)  # only the prompt is read at once


def test_lora_training_is_short_of_the_formula_by_what_nothing_below_needs(tiny):
    model, ids = attach_lora(tiny, LoraParams(r=4, alpha=8)), torch.arange(LENGTH)[None]
    cost = ModelCost.of(model)
    training = counted(lambda: model(ids).logits.sum().backward(), tiny)
    first_inputs = 2 * 3 * (96 * 96 + 4 * 96) * LENGTH  # of q, k and v in the first layer: no gradient goes to the embeddings
    assert cost.training([LENGTH], LENGTH) - first_inputs == training - 3 * future_keys(cost, LENGTH)
    assert 2 < cost.training([LENGTH], LENGTH) / cost.forward([LENGTH], LENGTH) < 2.2


def test_grouped_queries_and_tied_embeddings(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(build_qwen2(tmp_path / "model", ["1 + 1 = 2"] * 50), attn_implementation="eager")
    cost, ids = ModelCost.of(model), torch.arange(LENGTH)[None]
    assert cost.forward([LENGTH], LENGTH) == counted(lambda: model(ids), model) - future_keys(cost, LENGTH)


def test_scoring_sampling_and_updates_report_what_they_compute(tiny):
    template = load_template(TINY)
    cost, prompts = ModelCost.of(tiny), [[1, 5, 6], [1, 5]]
    score(tiny, prompts, [[7], [7, 8]], [[9, 2], [2]])
    assert costs.spent() == cost.forward([6, 5], 6)

    before = costs.spent()
    sampled = sample(tiny, template, prompts, [0, 1], 1.0, 5)
    assert costs.spent() - before == cost.sampling([3, 2], list(map(len, sampled)))

    agent = PolicyWithCritic(tiny, use_critic=True)
    cost = ModelCost.of(tiny, agent.value_head)
    assert cost.head == 53 * 96 + 96 * 96 + 96
    before = costs.spent()
    agent(prompts, [[7], [8, 9]])
    with torch.no_grad():
        agent(prompts, [[7], [8, 9]])
    assert costs.spent() - before == cost.training([4, 4], 3) + cost.forward([4, 4], 3)

    before = costs.spent()
    with costs.not_counted():
        score(tiny, prompts, [[7], [8]], [[2], [2]])
    assert costs.spent() == before


def test_an_interrupted_psi_update_ends_with_the_flops_of_one_that_was_not(tmp_path):
    settings = {"steps": 3, "prompts_per_step": 2, "rationales_per_prompt": 2, "max_rationale_tokens": 3, "epochs": 2, "save_steps": 2}
    config = PosteriorPPOConfig(**settings, device="cpu", advantage="gae")

    def train(name: str, log=None) -> int:
        model, problems = enumerable.model(), enumerable.problems()
        trainer = PosteriorPPOTrainer(model, enumerable.template(), problems, config, checkpoint=tmp_path / name, log=log)
        trainer.train()
        return trainer.flops

    def die_at_three(step: int, **metrics: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train("killed", die_at_three)
    costs.add(10**6)  # whatever a process does before it goes on
    assert train("killed") == train("undisturbed") > 0


def test_a_stage_records_what_its_process_spent_and_what_an_interrupted_one_did(tmp_path):
    from brite_lib.params import ThetaParams
    from brite_lib.records import Stage

    stage = Stage.start("theta_sft", ThetaParams(output_dir=str(tmp_path)))
    costs.add(300)
    stage.count(flops=20.0)
    stage.finish([], {})
    assert json.loads((tmp_path / "stage.json").read_text())["flops"] == 320.0
