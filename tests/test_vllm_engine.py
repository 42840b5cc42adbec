"""engine: vllm without vLLM: what is refused before anything loads, and the parts that need no engine (the others: tests/with_vllm)."""

import importlib.util
import json
import os
from pathlib import Path

import enumerable
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.llama import modeling_llama

from brite_lib import run
from brite_lib.errors import InputError
from brite_lib.head_width import widened, wider_heads
from brite_lib.models import attach_lora, load_policy, load_template
from brite_lib.params import PROJECT_ROOT, EvalParams, LoraParams, PsiParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.rollouts import _saved, generate, open_sampler
from brite_lib.vllm_engine import VllmEngine, shares, visible_devices
from brite_lib.vllm_worker import room_for_rank

BASE = PROJECT_ROOT / "assets/tiny-base"
HOW_TO_INSTALL = r"engine: vllm is not installed here: pip install -e '\.\[vllm\]'"


def adapted(path):
    """A model with an adapter that changes what it computes."""
    torch.manual_seed(0)
    return with_other_weights(load_policy(path, lora=LoraParams(r=4, alpha=8)))


def with_other_weights(policy):
    for name, weight in policy.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return policy


@pytest.fixture
def without_vllm(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "vllm" else found(name, *rest))


def test_vllm_that_is_not_installed_is_one_sentence_before_anything_loads(without_vllm, tmp_path):
    with pytest.raises(InputError, match=HOW_TO_INSTALL):
        generate(tmp_path / "nowhere", enumerable.problems(), enumerable.template(), engine="vllm")
    with pytest.raises(InputError, match=HOW_TO_INSTALL), open_sampler(enumerable.model(0), "vllm"):
        pass
    with pytest.raises(InputError, match=HOW_TO_INSTALL):
        EvalParams.from_notebook({"engine": "vllm"})
    assert EvalParams(engine="vllm").engine == "vllm"  # a file of settings is valid anywhere
    with pytest.raises(InputError, match=f"rollout_{HOW_TO_INSTALL}"):
        PsiParams.from_notebook({"rollout_engine": "vllm"})
    with pytest.raises(InputError, match=f"rollout_{HOW_TO_INSTALL}"):
        PosteriorPPOTrainer(enumerable.model(0), enumerable.template(), enumerable.problems(), PsiParams(rollout_engine="vllm"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"processes": 2, "rollout_device": "cuda:1"}, "rollout_device must be auto with several processes"),
        ({"device": "mps"}, "rollout_engine: vllm does not run on device: mps; set rollout_engine: hf"),
        ({"rollout_device": "cpu"}, "rollout_device must be auto, or a GPU such as cuda:1, not 'cpu'"),
        ({"rollout_memory": 1.0}, "rollout_memory: Input should be less than 1"),
        ({"importance_cap": 0.9}, "importance_cap: Input should be greater than or equal to 1"),
    ],
)
def test_rollouts_that_vllm_cannot_draw_are_refused(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        PsiParams.parse({"rollout_engine": "vllm"} | settings)


@pytest.mark.parametrize(("section", "parameter"), [("common", "engine"), ("psi", "rollout_engine")])
def test_a_run_that_needs_vllm_does_not_begin_without_it(section, parameter, without_vllm, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "_snakemake", lambda *_: pytest.fail("a stage would have run"))
    path = tmp_path / "x.yaml"
    tasks = "[{name: t, data: 'toy:easy'}]"
    path.write_text(f"{{name: test-no-vllm, methods: [base, brite], tasks: {tasks}, {section}: {{{parameter}: vllm}}}}")
    assert run.main([str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {parameter}: vllm is not installed here: ")
    assert run.main([str(path), "--plan"]) == 0  # what a run elsewhere would cost


def test_an_engine_that_cannot_start_says_why_and_keeps_its_log(tmp_path, monkeypatch):
    monkeypatch.setattr("brite_lib.vllm_engine.check_engine", lambda engine: None)
    with (
        pytest.raises(InputError, match=rf"engine: vllm could not start: \S+Error: .*; see {tmp_path}/vllm.log"),
        VllmEngine(tmp_path / "nowhere", directory=tmp_path),
    ):
        pass
    assert "Traceback" in (tmp_path / "vllm.log").read_text()
    assert os.listdir(tmp_path) == ["vllm.log"]


def test_with_hf_the_sampler_is_the_model_itself():
    model = enumerable.model(0)
    with open_sampler(model, saved_as="nowhere") as sampler:
        assert sampler is model


def test_an_adapter_directory_is_its_base_with_the_adapter_and_one_on_merged_weights_brings_its_base(tmp_path):
    policy = adapted(BASE)
    adapter = tmp_path / "one/adapter"
    assert _saved(policy, tmp_path / "one") == (str(BASE), adapter)  # vLLM adds it to the base, unmerged
    theta = load_policy(adapter)
    ids = torch.tensor([load_template(adapter).prompt_ids("3+4-5")])
    with torch.no_grad():
        torch.testing.assert_close(theta(input_ids=ids).logits, policy(input_ids=ids).logits)
        psi = with_other_weights(attach_lora(theta, LoraParams(r=2, alpha=2)))
        path, second = _saved(psi, tmp_path / "two")  # the base on disk lacks the first adapter
        assert (path, second) == (tmp_path / "two/base", tmp_path / "two/adapter")
        torch.testing.assert_close(load_policy(path)(input_ids=ids).logits, policy(input_ids=ids).logits)
        assert (psi(input_ids=ids).logits - policy(input_ids=ids).logits).abs().max() > 0.1
        torch.testing.assert_close(load_policy(path, second)(input_ids=ids).logits, psi(input_ids=ids).logits)
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": null}')
    with pytest.raises(InputError, match="does not name its base_model_name_or_path"):
        load_policy(adapter)


def test_stages_that_sample_have_an_engine():
    assert EvalParams().drawing["engine"] == "hf"
    assert PsiParams(engine="vllm", output_dir="/x").drawing == {
        "engine": "vllm",
        "device": "auto",
        "dtype": "auto",
        "directory": Path("/x"),
    }


@given(st.integers(0, 100), st.integers(1, 9))
def test_engines_share_the_prompts_evenly_and_in_order(count, workers):
    rows = list(range(count))
    parts = [rows[place] for place in shares(count, workers)]
    assert [row for part in parts for row in part] == rows
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("device", "visible", "found"),
    [
        ("auto", None, ["0", "1", "2"]),
        ("cuda", "4,5,7", ["4", "5", "7"]),
        ("cuda:1", "4,5,7", ["5"]),
        ("cuda:1", None, ["1"]),
        ("cpu", None, [None]),
    ],
)
def test_there_is_an_engine_for_every_gpu_or_the_one_that_is_named(device, visible, found, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_devices(device) == found
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert visible_devices(device) == [None]


def test_the_room_for_an_adapter_is_the_next_rank_that_vllm_knows(tmp_path):
    def room(**config) -> int:
        (tmp_path / "adapter_config.json").write_text(json.dumps(config))
        return room_for_rank(str(tmp_path), (1, 8, 16, 32))

    assert room(r=8) == 8
    assert room(r=9, rank_pattern=None) == 16
    assert room(r=2, rank_pattern={"o_proj": 17}) == 32
    with pytest.raises(InputError, match="rank 33"):
        room(r=33)


def test_a_llama_with_wider_heads_is_the_same_function(tmp_path, monkeypatch):
    """With an adapter on every linear layer. Hugging Face's Llama has no partial rotation, so the test brings it."""
    assert wider_heads(str(BASE), [24, 32]) is None
    assert wider_heads(str(BASE), [16, 64, 32]) == (24, 32)
    policy = adapted(BASE)
    policy.save_pretrained(tmp_path / "adapter")
    wide = [widened(str(source), tmp_path / f"wide-{source.name}", 24, 32) for source in (BASE, tmp_path / "adapter")]
    config = json.loads((tmp_path / f"wide-{BASE.name}/config.json").read_text())
    assert (config["head_dim"], config["rope_parameters"]["partial_rotary_factor"]) == (32, 0.75)
    ids = torch.tensor([load_template(BASE).prompt_ids("3+4-5")])
    wide_policy = load_policy(wide[0], adapter=wide[1])
    with torch.no_grad():
        expected = policy(input_ids=ids).logits
        assert (policy.get_base_model()(input_ids=ids).logits - load_policy(BASE)(input_ids=ids).logits).abs().max() > 0.1
        wide_policy.get_base_model().model.rotary_emb.inv_freq = policy.get_base_model().model.rotary_emb.inv_freq

        def rotate_the_old_places(q, k, cos, sin, rotate=modeling_llama.apply_rotary_pos_emb):
            turned = rotate(q[..., :24], k[..., :24], cos, sin)
            return [torch.cat([part, whole[..., 24:]], dim=-1) for part, whole in zip(turned, (q, k), strict=True)]

        monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", rotate_the_old_places)
        torch.testing.assert_close(wide_policy(input_ids=ids).logits, expected)


def test_heads_that_cannot_be_widened_are_refused(tmp_path):
    for name, config in {
        "other": {"model_type": "qwen2"},
        "scaled": {"model_type": "llama", "rope_parameters": {"rope_type": "llama3"}},
    }.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"hidden_size": 96, "num_attention_heads": 4} | config))
        with pytest.raises(InputError, match="no attention for heads of 24 numbers, only of 32, 64; use engine: hf"):
            wider_heads(str(tmp_path / name), [32, 64])
