"""The θ-update's sequences, worked by hand, and its training."""

import copy

import enumerable
import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from brite_lib import sft, tiny_base
from brite_lib.checkpointing import resume_step
from brite_lib.errors import InputError
from brite_lib.likelihood import score
from brite_lib.models import load_policy
from brite_lib.params import ThetaParams
from brite_lib.sft import human_rows, rationale_sft, training_rows, trl_settings

SETTINGS = {"epochs": 6, "train_batch_size": 2, "micro_batch_size": 1, "learning_rate": 3e-3, "save_steps": 4, "device": "cpu"}


def rows():
    sampled = {"id": "q0", "question": "a", "gold": "b", "rationale": "ab", "prompt_ids": [5, 0], "rationale_ids": [0, 1, 2]}
    return [
        {**sampled, "finished": True, "correct": True},
        {**sampled, "finished": False, "correct": False, "rationale_ids": [0, 0, 0]},
        {**sampled, "finished": True, "correct": False, "rationale": "b", "rationale_ids": [1, 2]},
    ]


def test_labels_are_z_boundary_y_and_the_end_token():
    dataset = training_rows(rows(), enumerable.template())
    assert dataset["input_ids"][:] == [[5, 0, 0, 1, 2, 1, 3], [5, 0, 1, 2, 1, 3]]  # the unfinished one is left out
    assert dataset["labels"][:] == [[-100, -100, 0, 1, 2, 1, 3], [-100, -100, 1, 2, 1, 3]]
    assert len(training_rows(rows(), enumerable.template(), correct_only=True)) == 1


def test_written_rationales_are_tokenised_once_with_the_same_boundaries():
    problems = [
        {"id": "q", "question": "a", "answer": "b", "rationale": "ab"},
        {"id": "r", "question": "a", "answer": "b", "rationale": None},
    ]
    human = human_rows(problems, "data")
    assert len(human) == 1
    assert training_rows(human, enumerable.template())[0]["input_ids"] == [5, 0, 0, 1, 2, 1, 3]
    with pytest.raises(InputError, match="data has no human rationales"):
        human_rows(problems[1:], "data")


def test_the_loss_is_the_mean_negative_log_likelihood_of_z_and_y(tmp_path):
    """BRiTE eq. 3.5, on the one step of one epoch: all tokens of z and y* weigh the same, those of x nothing."""
    rules, theta = enumerable.template(), enumerable.model(0)
    log_probs = score(theta, [[5, 0]] * 2, [[0, 1, 2], [1, 2]], [[1, 3]] * 2)
    wanted = -sum(values.sum().item() for values in (*log_probs.rationale, *log_probs.answer)) / 9
    params = ThetaParams.parse({**SETTINGS, "epochs": 1})
    assert rationale_sft(theta, training_rows(rows(), rules), rules, params, tmp_path)[1]["loss"] == pytest.approx(wanted, abs=1e-5)


def test_training_raises_the_likelihood_and_resumes_to_the_same_weights(tmp_path):
    rules, dataset = enumerable.template(), training_rows(rows()[:1] * 8, enumerable.template())
    params = ThetaParams.parse(SETTINGS)
    logged = []
    trained, metrics = rationale_sft(
        enumerable.model(0), dataset, rules, params, tmp_path / "a", lambda step, **m: logged.append((step, m["loss"]))
    )
    assert metrics["steps"] == 24 and metrics["tokens_trained"] == 8 * 5 * 6
    assert [step for step, _ in logged] == list(range(1, 25)) and logged[-1][1] < 0.5 * logged[0][1]

    class Interrupted(RuntimeError):
        pass

    def stop(step, **_):
        if step == 10:
            raise Interrupted

    with pytest.raises(Interrupted):
        rationale_sft(enumerable.model(0), dataset, rules, params, tmp_path / "b", stop)
    assert resume_step(tmp_path / "b") == 8
    resumed, _ = rationale_sft(enumerable.model(0), dataset, rules, params, tmp_path / "b")
    for one, other in zip(trained.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_torn_checkpoint_is_passed_over(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    (tmp_path / "checkpoint-4/trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-8").mkdir()
    assert resume_step(tmp_path) == 4
    assert resume_step(tmp_path / "nowhere") == -1


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "trainer_state.json", "rng_state.pth"])
def test_a_corrupt_checkpoint_is_named(tmp_path, name):
    rules, dataset = enumerable.template(), training_rows(rows()[:1] * 8, enumerable.template())

    class Interrupted(RuntimeError):
        pass

    def stop(step, **_):
        if step == 5:
            raise Interrupted  # no error of the training itself is taken for a bad checkpoint

    with pytest.raises(Interrupted):
        rationale_sft(enumerable.model(0), dataset, rules, ThetaParams.parse(SETTINGS), tmp_path, stop)
    file = tmp_path / "checkpoint-4" / name
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match="checkpoint-4: this checkpoint cannot be read .*; delete .* and the stage starts over"):
        rationale_sft(enumerable.model(0), dataset, rules, ThetaParams.parse(SETTINGS), tmp_path)


def test_training_says_how_far_it_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BRITE_BATCH", "1")
    monkeypatch.setattr("brite_lib.progress.SECONDS_BEFORE_A_BAR", 0)
    rules = enumerable.template()
    rationale_sft(enumerable.model(0), training_rows(rows()[:1] * 8, rules), rules, ThetaParams.parse(SETTINGS), tmp_path)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("training")]
    assert lines[0].startswith("training:   4% 1/24") and lines[-1].startswith("training: 100% 24/24")


def test_fsdp_keeps_neither_whole_gradients_nor_float32_copies(tmp_path):
    """The Trainer's own choice would be both: no exchange between the passes of a step, and float32 for what bf16 trains."""
    settings = {
        name: SFTConfig(**trl_settings(ThetaParams(dtype="bfloat16", accelerate_config=name), tmp_path))
        for name in ("auto", "params/accelerate/fsdp2-two-nodes.yaml")
    }
    assert [config.bf16 for config in settings.values()] == [True, False]
    assert [c.accelerator_config.gradient_accumulation_kwargs["sync_each_batch"] for c in settings.values()] == [False, True]


def test_nothing_to_train_on_leaves_the_model_alone(tmp_path, capsys):
    model = enumerable.model(0)
    before = [parameter.clone() for parameter in model.parameters()]
    trained, metrics = rationale_sft(
        model, training_rows([], enumerable.template()), enumerable.template(), ThetaParams.parse({}), tmp_path
    )
    assert metrics["steps"] == 0 and all(torch.equal(a, b) for a, b in zip(before, trained.parameters(), strict=True))
    assert "no rationale to train on" in capsys.readouterr().out


def test_rationales_are_no_sequences_yet(tmp_path):
    with pytest.raises(InputError, match="no column input_ids; brite_lib.sft.training_rows makes it"):
        rationale_sft(enumerable.model(0), Dataset.from_list(rows()), enumerable.template(), ThetaParams.parse(SETTINGS), tmp_path)


def test_a_copy_of_the_trained_model_computes_with_its_own_weights(tmp_path):
    """EM in one process copies what it trained; accelerate's wrapper would tie the copy to the original."""
    template, model = tiny_base.make_template(), load_policy("assets/tiny-base", device="cpu")
    rows = training_rows([{"question": "3+4", "rationale": "+4=7", "gold": "7"}] * 4, template)
    params = ThetaParams.parse({"epochs": 1, "train_batch_size": 4, "micro_batch_size": 4, "device": "cpu"})
    trained, _ = rationale_sft(model, rows, template, params, tmp_path)
    copied = copy.deepcopy(trained)
    with torch.no_grad():
        copied.lm_head.weight.zero_()
        assert copied(input_ids=torch.tensor([rows[0]["input_ids"]])).logits.abs().max() == 0
        assert trained(input_ids=torch.tensor([rows[0]["input_ids"]])).logits.abs().max() > 1


def test_one_process_takes_one_of_several_gpus(tmp_path, monkeypatch):
    """The Trainer's own choice would be DataParallel over all of them, with as many times the rows in a step."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(sft, "trl_settings", lambda *arguments: trl_settings(*arguments) | {"use_cpu": False})
    rules, params = enumerable.template(), ThetaParams.parse(SETTINGS | {"epochs": 1, "train_batch_size": 4, "micro_batch_size": 2})
    _, metrics = rationale_sft(enumerable.model(0), training_rows(rows()[:1] * 8, rules), rules, params, tmp_path)
    assert metrics["steps"] == 2


def test_another_gpu_than_the_first_is_refused(tmp_path):
    with pytest.raises(InputError, match="^device: cuda:1: this trainer takes the first GPU; set CUDA_VISIBLE_DEVICES=1"):
        trl_settings(ThetaParams(device="cuda:1"), tmp_path)
    assert trl_settings(ThetaParams(device="cuda:0"), tmp_path)["seed"] == 0
