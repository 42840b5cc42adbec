"""What the plan says of a GPU's memory, against what real tensors take, torch's own tracker, and arithmetic by hand."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import scaling_tables
import torch
from real_model import build_qwen2
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.fsdp import fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import AutoModelForCausalLM, DynamicCache, Qwen2Config

from brite_lib.agent import PolicyWithCritic
from brite_lib.costs import ModelCost
from brite_lib.errors import InputError
from brite_lib.memory import (
    ALONE,
    GIB,
    Memory,
    Sharing,
    activation_bytes_per_token,
    after_training,
    check_fit,
    ghost,
    stage_memory,
)
from brite_lib.models import attach_lora
from brite_lib.params import DpoParams, EvalParams, LoraParams, PsiParams, RejectionParams, ThetaParams
from brite_lib.sharding import shard


def real_and_ghost(tmp_path: Path, lora: LoraParams | None = None):
    directory = build_qwen2(tmp_path / "model", ["1 + 1 = 2"] * 50)
    real = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    return (attach_lora(real, lora) if lora else real), ghost(str(directory), lora, "float32")


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.mark.parametrize("lora", [None, LoraParams(r=4, alpha=8)], ids=["weights", "lora"])
def test_weights_gradients_moments_and_critic_take_the_bytes_foretold(tmp_path, lora):
    real, meta = real_and_ghost(tmp_path, lora)
    params = PsiParams(lora=lora, advantage="gae", device="cpu")
    found = stage_memory(params, meta, tokens=20, sampled_at_once=4)
    agent = PolicyWithCritic(real, use_critic=True)
    trained = [p for p in agent.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    agent([[1, 2]], [[3]])[2].sum().backward()
    agent([[1, 2]], [[3]])[0].sum().backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    critic = list(agent.value_head.parameters())
    learned = [p for p in trained if not any(p is other for other in critic)]
    assert found.weights + found.adapters == size(real.parameters())
    assert found.adapters == (size(learned) if lora else 0)
    assert found.frozen_copy == (0 if lora else found.weights)
    assert found.critic == 4 * size(critic)
    assert found.optimizer + found.critic == size(p.grad for p in trained) + size(moments) + size(critic)


def test_the_kv_cache_takes_the_bytes_foretold(tmp_path):
    real, meta = real_and_ghost(tmp_path)
    cache = DynamicCache(config=real.config)
    with torch.no_grad():
        real(torch.zeros((3, 20), dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(size([layer.keys, layer.values]) for layer in cache.layers)
    assert stage_memory(EvalParams(device="cpu"), meta, tokens=20, sampled_at_once=3).kv_cache == held > 0


@pytest.mark.parametrize("lora", [None, LoraParams(r=4, alpha=8)], ids=["weights", "lora"])
def test_activations_of_a_ghost_are_those_of_the_model_within_a_tenth(tmp_path, lora):
    real, meta = real_and_ghost(tmp_path, lora)
    assert activation_bytes_per_token(meta) == pytest.approx(activation_bytes_per_token(real), rel=0.1)


@pytest.fixture(scope="module")
def seven_billion(tmp_path_factory):
    """The configuration of Qwen2.5-7B, without any weight."""
    shape = {"vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    Qwen2Config(**shape, num_key_value_heads=4, tie_word_embeddings=False).save_pretrained(tmp_path_factory.getbasetemp() / "seven")
    return str(tmp_path_factory.getbasetemp() / "seven")


def test_seven_billion_parameters_by_hand(seven_billion):
    model = ghost(seven_billion)
    cost = ModelCost.of(model)
    attention, mlp = 2 * 3584 * 3584 + 2 * 3584 * 512, 3 * 3584 * 18944
    assert (cost.trunk, cost.head) == (28 * (attention + mlp), 152064 * 3584)
    found = stage_memory(ThetaParams(lora=None), model, tokens=512, sampled_at_once=0)
    assert found.weights == 2 * 7_615_616_512  # the published number of parameters, in bfloat16
    assert found.optimizer == 3 * found.weights and found.kv_cache == 0
    rejection = stage_memory(RejectionParams(batch_size=64), model, tokens=512, sampled_at_once=64)
    assert rejection.kv_cache == 64 * 512 * 28 * 2 * 4 * 128 * 2


def test_a_stage_that_cannot_fit_is_refused_with_a_setting_that_makes_it_fit(seven_billion):
    lora = LoraParams()
    whole, adapted = ghost(seven_billion), ghost(seven_billion, lora)
    gpu = 80 * GIB

    def need(params, model) -> Memory:
        return stage_memory(params, model, tokens=700, sampled_at_once=params.batch_size)

    full = ThetaParams(micro_batch_size=2, batch_size=8)
    with pytest.raises(InputError, match=r"^seed0/brite: needs about 6\d.\d GiB \(42.6 of optimizer and 14.2 of weights\).*; set lora: "):
        check_fit("seed0/brite", full, need(full, whole), 48 * GIB)
    wide = PsiParams(lora=lora, micro_batch_size=64, batch_size=8)
    with pytest.raises(
        InputError, match=r"more than the 73.6 GiB that can be used of a GPU with 80.0 GiB; set micro_batch_size to (\d+)"
    ) as error:
        check_fit("psi", wide, need(wide, adapted), gpu)
    fits = int(str(error.value).split("micro_batch_size to ")[1].split()[0])
    for micro, refused in ((fits, False), (fits + 1, True)):
        changed = wide.model_copy(update={"micro_batch_size": micro})
        assert (need(changed, adapted).total > 0.92 * gpu) is refused
    many = RejectionParams(batch_size=4096)
    with pytest.raises(InputError, match="set batch_size to "):
        check_fit("rs", many, need(many, whole), gpu)
    large = EvalParams(dtype="float32", batch_size=4)
    with pytest.raises(InputError, match="set dtype: bfloat16$"):
        check_fit("eval", large, need(large, ghost(seven_billion, dtype="float32")), 24 * GIB)
    drawing = {"rollout_engine": "vllm", "lora": lora, "micro_batch_size": 1, "batch_size": 8}
    check_fit("psi", PsiParams(**drawing), need(PsiParams(**drawing), adapted), gpu)  # 24 GiB for vLLM, with 14.2 of weights
    for memory in (0.15, 0.8):
        params = PsiParams(rollout_memory=memory, **drawing)
        with pytest.raises(
            InputError, match=rf"rollout_memory: {memory} is .* whose weights take 14.2, .*; set it between 0.19 and 0.7\d$"
        ):
            check_fit("psi", params, need(params, adapted), gpu)
    full = PsiParams(rollout_memory=0.3, **drawing | {"lora": None})
    with pytest.raises(InputError, match="set it on another GPU: rollout_device: cuda:1$"):
        check_fit("psi", full, need(full, whole), gpu)
    elsewhere = full.model_copy(update={"rollout_device": "cuda:1"})
    check_fit("psi", elsewhere, need(elsewhere, whole), 141 * GIB)
    small = EvalParams(batch_size=4)
    with pytest.raises(InputError, match="use a smaller model or a larger GPU$"):
        check_fit("eval", small, need(small, whole), 12 * GIB)
    check_fit("eval", small, need(small, whole), 24 * GIB)


LAYER = 2 * (2 * 3584 * 3584 + 2 * 3584 * 512 + 3 * 3584 * 18944 + 3584 + 2 * 512 + 2 * 3584)  # in bytes, with biases of q, k, v and norms
OUTSIDE = 2 * (2 * 152064 * 3584 + 3584)  # embeddings, output layer and last norm of Qwen2.5-7B


def test_seven_billion_parameters_on_eight_gpus_by_hand(seven_billion):
    model, all_weights = ghost(seven_billion), 28 * LAYER + OUTSIDE

    def on_eight(params, sharded: bool) -> Memory:
        return stage_memory(params, model, tokens=512, sampled_at_once=16, sharing=Sharing(8, sharded))

    alone = stage_memory(PsiParams(advantage="gae"), model, tokens=512, sampled_at_once=16)
    critic = 4 * (3584 * 3584 + 3584 + 3584 + 1)  # float32: two layers, the first with a bias of its width
    assert alone.critic == 4 * critic and alone.weights == alone.frozen_copy == all_weights
    ddp = on_eight(PsiParams(advantage="gae"), sharded=False)
    assert ddp == replace(alone, exchange=all_weights + critic)  # all of it on every GPU, and DDP's buckets of gradients
    psi, dpo, theta = (on_eight(params, sharded=True) for params in (PsiParams(advantage="gae"), DpoParams(), ThetaParams()))
    whole = OUTSIDE + 2 * LAYER
    assert (psi.weights, psi.optimizer) == (all_weights / 8, 3 * all_weights / 8) and psi.critic == -(-4 * critic // 8)
    assert psi.exchange == 2 * (whole + critic) and theta.exchange == 2 * whole
    assert dpo.training == 2 * theta.training  # of pairs
    assert on_eight(ThetaParams(micro_batch_size=4), sharded=True) == on_eight(ThetaParams(micro_batch_size=5), sharded=True)  # of 32 / 8
    assert (psi.frozen_copy, dpo.frozen_copy, theta.frozen_copy) == (all_weights / 8, all_weights / 8, 0)
    assert (psi.kv_cache, psi.logits, psi.training, psi.scoring) == (alone.kv_cache, alone.logits, alone.training, alone.scoring)
    assert (psi.loading, theta.loading, ddp.loading) == (2 * all_weights + critic, all_weights, 0)
    assert theta.total == theta.standing + max(theta.training, theta.scoring)
    assert psi.standing == sum(vars(psi).values()) - psi.loading - (psi.kv_cache + psi.training + psi.scoring)
    assert after_training(alone).standing == 2 * all_weights + critic + alone.logits
    sampling = EvalParams()
    assert stage_memory(sampling, model, 512, 16, Sharing(8, sharded=True)) == stage_memory(sampling, model, 512, 16)


def test_what_fsdp2_divides_and_gathers_is_what_torch_does(tmp_path):
    """torch's own tracker, on one of four ranks of a group that exchanges nothing."""
    shape = {"vocab_size": 512, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6, "num_attention_heads": 4}
    Qwen2Config(**shape, num_key_value_heads=2, tie_word_embeddings=False).save_pretrained(tmp_path)
    model, meta = AutoModelForCausalLM.from_config(Qwen2Config.from_pretrained(tmp_path)), ghost(str(tmp_path), dtype="float32")
    found = stage_memory(ThetaParams(device="cpu"), meta, tokens=8, sampled_at_once=0, sharing=Sharing(4, sharded=True))
    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        for module in (*model.model.layers, model):
            fully_shard(module)
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        tracker = FSDPMemTracker(model, optimizer)
        ids, mask = torch.zeros((1, 8), dtype=torch.long), torch.zeros((1, 1, 8, 8))
        for _ in range(2):  # the first step makes the moments
            with tracker:
                model(input_ids=ids, attention_mask=mask, use_cache=False).logits.sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            tracker.reset_mod_stats()
        peak = {str(kind).rpartition(".")[2]: size for kind, size in tracker.get_tracker_snapshot("peak")[torch.device("cpu")].items()}
    finally:
        torch.distributed.destroy_process_group()
    steps = 4 * len(optimizer.state)  # AdamW counts steps in a number per parameter
    assert (peak["SHARDED_PARAM"], peak["OPT"] - steps) == (found.weights, 2 * found.weights)
    assert peak["UNSHARDED_PARAM"] + peak["ALL_GATHER"] == found.exchange / 2
    activations = peak["ACT"] + peak["INP"]
    assert peak["Total"] - activations < found.standing - found.logits < 1.25 * (peak["Total"] - activations)


def test_the_shards_of_policy_critic_and_frozen_copy_take_the_bytes_foretold(tmp_path):
    real, meta = real_and_ghost(tmp_path)
    found = stage_memory(PsiParams(advantage="gae", device="cpu"), meta, tokens=8, sampled_at_once=0, sharing=Sharing(4, sharded=True))
    agents = [PolicyWithCritic(real, use_critic=True), PolicyWithCritic(copy.deepcopy(real), use_critic=False)]
    torch.distributed.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        for agent in agents:
            shard(agent)
        held = size(parameter.to_local() for agent in agents for parameter in agent.parameters())
    finally:
        torch.distributed.destroy_process_group()
    foretold = found.weights + found.frozen_copy + found.critic // 4
    assert foretold <= held < foretold + 1024  # matrices are cut between rows, and the critic's last layer has one row, on the first rank


def test_advice_of_what_to_share_makes_it_fit(seven_billion):
    model = ghost(seven_billion)

    def need(params):
        return lambda sharing=ALONE: stage_memory(params, model, tokens=700, sampled_at_once=0, sharing=sharing)

    theta = ThetaParams(micro_batch_size=1, batch_size=8)
    with pytest.raises(InputError, match=r"; set lora: .*, or processes: 4 with accelerate_config: params/accelerate/fsdp2.yaml") as error:
        check_fit("theta", theta, need(theta)(), 32 * GIB, need(theta))
    assert str(error.value).endswith("fsdp2.yaml, so that GPUs divide the weights")
    check_fit("theta", theta, need(theta)(Sharing(4, sharded=True)), 32 * GIB)
    assert need(theta)(Sharing(2, sharded=True)).total > 0.92 * 32 * GIB
    many = theta.model_copy(update={"processes": 4})
    with pytest.raises(InputError, match=r", or accelerate_config: params/accelerate/fsdp2.yaml, so that GPUs divide the weights$"):
        check_fit("theta", many, need(many)(Sharing(4)), 32 * GIB, need(many))
    with pytest.raises(InputError, match="that only adapters are trained$"):  # reading the whole model needs more than that
        check_fit("theta", theta, need(theta)(), 14 * GIB, need(theta))


def test_the_tables_of_what_fits_are_the_plans_own(tmp_path):
    assert scaling_tables.PAGE.read_text() == scaling_tables.page(tmp_path), "python tests/scaling_tables.py writes them anew"


def test_the_plan_counts_the_layers_inputs_and_one_layer(seven_billion):
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
