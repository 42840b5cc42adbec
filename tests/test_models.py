"""Loading and saving model directories."""

import copy
import shutil
from pathlib import Path

import enumerable
import pytest
import torch
from peft import LoraConfig, get_peft_model

from brite_lib.errors import InputError
from brite_lib.models import attach_lora, check_model, disable_dropout, load_policy, load_template, save_policy, warn_of_lost_steps
from brite_lib.params import PROJECT_ROOT, LoraParams

IDS = torch.tensor([[5, 0, 1, 2]])


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_a_trained_adapter_is_saved_merged_and_loads_as_a_plain_model(tmp_path):
    model = get_peft_model(enumerable.model(0), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    wanted = logits(model)
    directory = save_policy(copy.deepcopy(model), enumerable.template(), tmp_path / "model")
    loaded = load_policy(directory, device="cpu").eval()
    assert torch.allclose(logits(loaded), wanted, atol=1e-5)
    assert load_template(directory).formats == enumerable.template().formats
    assert sorted(p.suffix for p in directory.iterdir() if p.suffix in (".bin", ".safetensors")) == [".safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]  # nothing half-written beside it


def test_an_adapter_directory_belongs_to_theta_and_is_merged_before_new_ones(tmp_path):
    base = enumerable.model(0)
    save_policy(copy.deepcopy(base), enumerable.template(), tmp_path / "base")
    theta = get_peft_model(copy.deepcopy(base), LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)).eval()
    theta.save_pretrained(tmp_path / "adapter")
    policy = load_policy(tmp_path / "base", adapter=tmp_path / "adapter", lora=LoraParams(r=2, alpha=4), device="cpu").eval()
    with policy.disable_adapter():
        assert torch.allclose(logits(policy), logits(theta), atol=1e-5)
    trainable = {name for name, parameter in policy.named_parameters() if parameter.requires_grad}
    assert trainable and all("lora_" in name for name in trainable)


def test_dropout_is_off_also_in_training_mode():
    model = enumerable.model(0)
    model.model.layers[0].self_attn.attention_dropout = 0.5
    adapted = get_peft_model(model, LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False))
    disable_dropout(adapted)
    adapted.train()
    assert torch.equal(adapted(input_ids=IDS).logits, adapted(input_ids=IDS).logits)
    assert not torch.equal(logits(adapted), logits(attach_lora(enumerable.model(0), LoraParams(r=2, alpha=4))))


def test_bad_directories_are_named(tmp_path):
    with pytest.raises(InputError, match="no directory .*; run the stage that writes it first"):
        check_model(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no directory assets/tiny-bsae; did you mean 'tiny-base'"):
        check_model("assets/tiny-bsae")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"config\.json"):
        check_model(tmp_path / "empty")
    (tmp_path / "empty/config.json").write_text("{}")
    (tmp_path / "empty/pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(InputError, match="safetensors"):
        check_model(tmp_path / "empty")
    torn = Path(shutil.copytree(PROJECT_ROOT / "assets/tiny-base", tmp_path / "torn")) / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:1000])
    with pytest.raises(InputError, match="torn could not be loaded: .*header"):
        load_policy(torn.parent, device="cpu")
    adapted = load_policy("assets/tiny-base", lora={"r": 2}, device="cpu", dtype=torch.bfloat16)
    assert adapted.peft_config["default"].r == 2 and adapted.get_base_model().lm_head.weight.dtype == torch.bfloat16
    with pytest.raises(InputError, match=r"adapter: .*adapter_config\.json"):
        load_policy("assets/tiny-base", adapter=tmp_path / "empty", device="cpu")
    for settings, words in (
        ({"dtype": "float23"}, "dtype: 'float23' is none"),
        ({"lora": {"rank": 4}}, "lora: rank: is no parameter"),
        ({"lora": LoraConfig(r=4)}, "lora: Input should be a valid dictionary or instance of LoraParams"),
    ):
        with pytest.raises(InputError, match=words):
            load_policy("assets/tiny-base", device="cpu", **settings)
    with pytest.raises(InputError, match="device: 'cudda' cannot be used here"):
        load_policy("assets/tiny-base", device="cudda")
    assert check_model("Qwen/Qwen2.5-0.5B-Instruct") == "Qwen/Qwen2.5-0.5B-Instruct"


@pytest.mark.parametrize(
    ("dtype", "learning_rate", "said"), [("bfloat16", 5e-7, True), ("bfloat16", 2e-4, False), ("float32", 5e-7, False)]
)
def test_steps_that_rounding_swallows_are_said_before_training(capsys, dtype, learning_rate, said):
    model = load_policy("assets/tiny-base", device="cpu", dtype=dtype).requires_grad_(True)
    warn_of_lost_steps(model, learning_rate)
    printed = capsys.readouterr().out
    assert ("is rounded away in" in printed) == said
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    unmoved = sum((old == new).sum().item() for old, new in zip(before, model.parameters(), strict=True)) / sum(p.numel() for p in before)
    assert (unmoved > 0.5) == said, unmoved


def test_adapters_are_float32_and_lose_nothing(capsys):
    model = load_policy("assets/tiny-base", lora={"r": 2}, device="cpu", dtype="bfloat16")
    warn_of_lost_steps(model, 5e-7)
    assert not capsys.readouterr().out
