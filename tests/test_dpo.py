"""Latent DPO: pairs by the rule, the loss by hand, training, and the notebook killed and resumed."""

import copy
import json
import shutil
import subprocess
import sys
from collections import Counter

import enumerable
import psutil
import pytest
import torch
from run_processes import lines, wait_until

from brite_lib import dpo, rollouts
from brite_lib.checkpointing import resume_step
from brite_lib.dpo import draw_pairs, make_pairs, rationale_dpo
from brite_lib.errors import InputError
from brite_lib.execute import execute
from brite_lib.likelihood import score
from brite_lib.models import attach_lora, load_policy, load_template, save_policy
from brite_lib.params import PROJECT_ROOT, DpoParams, LoraParams
from brite_lib.problems import load_problems
from brite_lib.records import read_metrics, read_record
from brite_lib.sft import trl_settings
from brite_lib.tables import PAIRS, read_pairs, write_table

BASE = "assets/tiny-base"
LORA = {"r": 2, "alpha": 4}
SETTINGS = {"beta": 0.7, "train_batch_size": 2, "micro_batch_size": 2, "learning_rate": 1e-2, "lr_schedule": "constant", "device": "cpu"}


def sample(name, number, correct, rationale_ids=(0, 2), answer_ids=(1, 3), **other):
    row = {"id": name, "question": "a", "gold": "b", "source": "dpo", "round": 1, "sample": number, "correct": correct, "num_tokens": 4}
    row |= {"rationale": "a", "answer_text": "b", "finished": True, "prompt_ids": [5, 0]}
    return row | {"rationale_ids": list(rationale_ids), "answer_ids": list(answer_ids)} | other


def literal_pairs():
    """Unequal lengths within a pair and between pairs, and a rejected sample without an end."""
    rows = [
        sample("q0", 0, True, [0, 1, 2], [1, 3]),
        sample("q0", 1, False, [1, 2], [0, 1, 3]),
        sample("q1", 0, True, [2], [1, 3], prompt_ids=[5, 1, 1]),
        sample("q1", 1, False, [0, 1, 0], [], prompt_ids=[5, 1, 1], finished=False, answer_text=None),
    ]
    return make_pairs(rows, seed=0)[0]


def log_prob(model, pair, side):
    parts = score(model, [pair["prompt_ids"]], [pair[f"{side}_rationale_ids"]], [pair[f"{side}_answer_ids"]])
    return parts.rationale[0].sum() + parts.answer[0].sum()


def margins_by_hand(model, reference, pairs, beta):
    def ratios(side):
        return torch.stack([log_prob(model, pair, side) - log_prob(reference, pair, side) for pair in pairs])

    return beta * (ratios("chosen") - ratios("rejected"))


def adapted():
    """A θ that carries a trained adapter."""
    torch.manual_seed(1)
    model = attach_lora(enumerable.model(0), LoraParams.parse(LORA))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


# Pairs


def test_a_pair_is_one_random_correct_and_one_random_incorrect_sample_of_a_problem():
    rows = [sample("a", k, k in (0, 2)) for k in range(4)] + [sample("b", k, True) for k in range(4)]
    rows += [sample("c", k, False, finished=k > 0) for k in range(4)] + [sample("d", 0, True), sample("d", 1, False, finished=False)]
    pairs, report = make_pairs(rows, seed=0)
    assert [pair["id"] for pair in pairs] == ["a", "d"]
    assert pairs[0]["chosen_sample"] in (0, 2) and pairs[0]["rejected_sample"] in (1, 3)
    assert (pairs[1]["chosen_sample"], pairs[1]["rejected_sample"], pairs[1]["rejected_finished"]) == (0, 1, False)
    assert [(pair["num_samples"], pair["num_correct"]) for pair in pairs] == [(4, 2), (2, 1)]
    assert report == {
        "problems": 4, "pairs": 2, "all_correct": 1, "all_wrong": 1, "draws": 14, "tokens": 56, "correct": 7 / 14, "finished": 12 / 14,
        "not_judged": 0.0,
    }  # fmt: skip


def test_the_draw_is_uniform_and_depends_on_the_seed_and_the_problem_alone():
    rows = [sample(f"q{i}", k, k in (0, 1, 3)) for i in range(600) for k in range(5)]
    pairs, _ = make_pairs(rows, seed=0)
    assert all(count == pytest.approx(200, abs=50) for count in Counter(pair["chosen_sample"] for pair in pairs).values())
    assert all(count == pytest.approx(300, abs=60) for count in Counter(pair["rejected_sample"] for pair in pairs).values())
    both = Counter((pair["chosen_sample"], pair["rejected_sample"]) for pair in pairs)
    assert len(both) == 6 and all(count == pytest.approx(100, abs=40) for count in both.values())
    assert make_pairs(rows, seed=0)[0] == pairs != make_pairs(rows, seed=1)[0]
    assert make_pairs(rows[-50:], seed=0)[0] == pairs[-10:]


def test_no_contrast_in_the_whole_data_set_is_one_sentence():
    rows = [sample("a", k, True) for k in range(3)] + [sample(name, k, False) for name in "bc" for k in range(3)]
    with pytest.raises(InputError) as error:
        make_pairs(rows, seed=0)
    assert str(error.value) == (
        "samples: none of 3 problems has both a correct and an incorrect sample (1 have only correct, 2 only incorrect ones), "
        "so there is no pair to learn from; raise samples or change the data"
    )


def test_a_sample_that_could_not_be_judged_is_in_no_pair_and_counted():
    pairs, report = make_pairs([sample("a", 0, True), sample("a", 1, None), sample("a", 2, False), sample("b", 0, None)], seed=0)
    assert [(pair["chosen_sample"], pair["rejected_sample"], pair["num_samples"]) for pair in pairs] == [(0, 2, 2)]
    assert (report["not_judged"], report["correct"], report["problems"]) == (0.5, 0.25, 1)


def test_given_pairs_are_read_and_no_model_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr("brite_lib.dpo.open_sampler", lambda *_, **__: pytest.fail("a model was loaded"))
    template, path = load_template(BASE), tmp_path / "pairs.jsonl"
    pairs, _ = make_pairs([sample("a", k, k == 0) for k in range(3)], seed=0)
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    params = DpoParams.parse({"pairs": str(path)})
    assert draw_pairs([], template, params, tmp_path) == (pairs, {"problems": 1, "pairs": 1, "tokens": 0})
    path.write_text(json.dumps(pairs[0] | {"rejected_answer_ids": [10**6]}))
    with pytest.raises(InputError, match="row 1: has token ids of another model"):
        draw_pairs([], template, params, tmp_path)
    path.write_text("")
    with pytest.raises(InputError, match="has no pair"):
        draw_pairs([], template, params, tmp_path)


def test_pairs_are_drawn_once_and_from_the_sampler(tmp_path, monkeypatch):
    problems, template = load_problems("toy:easy", "validation", limit=6), load_template(BASE)
    params = DpoParams.parse({"samples": 6, "seed": 3})
    pairs, report = draw_pairs(problems, template, params, tmp_path)
    assert report["problems"] == 6 and report["draws"] == 36 and len(pairs) == report["pairs"] > 3
    answers = {problem["id"]: problem["answer"] for problem in problems}
    assert all(pair["chosen_answer_text"] == answers[pair["id"]] == pair["gold"] != pair["rejected_answer_text"] for pair in pairs)
    assert all(template.decode(pair["chosen_answer_ids"]).startswith(pair["gold"]) for pair in pairs)
    write_table(pairs, PAIRS, tmp_path / "copy.parquet")
    assert read_pairs(tmp_path / "copy.parquet") == pairs

    loaded, load = [], rollouts.load_policy
    monkeypatch.setattr(rollouts, "load_policy", lambda path, **more: loaded.append(path) or load(BASE, **more))
    assert draw_pairs(problems, template, params, tmp_path) == (pairs, report) and not loaded
    shutil.copytree(BASE, tmp_path / "psi")
    (tmp_path / "other").mkdir()
    other = {"sampler": str(tmp_path / "psi"), "round": 2}
    assert draw_pairs(problems, template, DpoParams.parse(params.model_dump() | other), tmp_path / "other")[0] != pairs
    assert loaded == [other["sampler"]]


def test_nothing_is_kept_of_samples_without_contrast(tmp_path):
    params = DpoParams.parse({"samples": 2, "max_rationale_tokens": 1})  # none can be finished
    with pytest.raises(InputError, match="none of 4 problems has both .* [(]0 have only correct, 4 only incorrect ones[)]"):
        draw_pairs(load_problems("toy:easy", "validation", limit=4), load_template(BASE), params, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_sampler_with_other_tokens_is_refused(tmp_path):
    directory = save_policy(enumerable.model(0), enumerable.template(), tmp_path / "psi")
    with pytest.raises(InputError, match=f"sampler: {directory} has another vocabulary than {BASE}"):
        draw_pairs([], load_template(BASE), DpoParams.parse({"sampler": str(directory)}), tmp_path)


# The loss


@pytest.mark.parametrize(
    ("start", "lora", "micro_batch_size"),
    [(enumerable.model, None, 2), (enumerable.model, LORA, 1), (adapted, None, 1), (adapted, LORA, 2)],
    ids=["weights", "lora", "weights_of_an_adapted_model", "lora_on_an_adapted_model"],
)
def test_the_loss_is_the_latent_dpo_loss_of_both_steps(tmp_path, start, lora, micro_batch_size):
    """Step 1 at Q = P, step 2 with the weights that step 1 left, against a reference that was never trained."""
    pairs, logged = literal_pairs(), []
    settings = SETTINGS | {"lora": lora, "micro_batch_size": micro_batch_size, "warmup_ratio": 0}
    once, _ = rationale_dpo(start(), pairs, enumerable.template(), DpoParams.parse(settings | {"epochs": 1}), tmp_path / "once")
    _, metrics = rationale_dpo(
        start(), pairs, enumerable.template(), DpoParams.parse(settings | {"epochs": 2}), tmp_path / "twice",
        lambda step, **more: logged.append(more),
    )  # fmt: skip
    margins = margins_by_hand(once, start(), pairs, beta=0.7)
    assert margins.abs().min() > 0.05 and margins[0] != margins[1]
    loss = -torch.nn.functional.logsigmoid(margins).mean().item()
    assert logged[0]["loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-6)
    assert metrics["loss"] == logged[1]["loss"] == pytest.approx(loss, abs=1e-5)
    assert metrics["reward_margin"] == logged[1]["rewards/margins"] == pytest.approx(margins.mean().item(), abs=1e-5)
    assert metrics["steps"] == 2 and metrics["tokens_trained"] == 2 * (5 + 5 + 3 + 3)


# Training


@pytest.mark.parametrize("lora", [None, LORA], ids=["weights", "lora"])
def test_training_raises_the_margin_and_resumes_to_the_same_weights(tmp_path, lora):
    pairs, rules, logged = literal_pairs() * 4, enumerable.template(), []
    params = DpoParams.parse(SETTINGS | {"epochs": 3, "save_steps": 4, "lora": lora, "warmup_ratio": 0.2, "lr_schedule": "cosine"})
    trained, metrics = rationale_dpo(enumerable.model(0), pairs, rules, params, tmp_path / "a", lambda step, **m: logged.append(m))
    assert metrics["steps"] == 12 and metrics["reward_accuracy"] == 1 and metrics["loss"] < 0.5 * logged[0]["loss"]
    assert metrics["reward_margin"] > 1 and logged[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)
    assert "num_tokens" not in logged[0]

    class Interrupted(RuntimeError):
        pass

    def stop(step, **_):
        if step == 6:
            raise Interrupted

    with pytest.raises(Interrupted):
        rationale_dpo(enumerable.model(0), pairs, rules, params, tmp_path / "b", stop)
    assert resume_step(tmp_path / "b") == 4
    resumed, again = rationale_dpo(enumerable.model(0), pairs, rules, params, tmp_path / "b")
    assert again == metrics
    for one, other in zip(trained.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("lora", [None, LORA], ids=["weights", "lora"])
def test_a_copy_of_the_trained_model_computes_with_its_own_weights(tmp_path, lora):
    start = enumerable.model(0)
    trained, _ = rationale_dpo(start, literal_pairs(), enumerable.template(), DpoParams.parse(SETTINGS | {"lora": lora}), tmp_path)
    ids = torch.tensor([[5, 0, 0, 1, 2]])
    copied = copy.deepcopy(trained)
    with torch.no_grad():
        copied.get_output_embeddings().weight.zero_()
        assert copied(input_ids=ids).logits.abs().max() == 0
        assert trained(input_ids=ids).logits.abs().max() > 0.1
    if lora:  # no second adapter stays behind
        assert list(trained.peft_config) == ["default"]
        logits = trained(input_ids=ids).logits
        merged = load_policy(save_policy(trained, enumerable.template(), tmp_path / "model"), device="cpu")
        assert torch.allclose(merged(input_ids=ids).logits, logits, atol=1e-5)


# The notebook

NOTEBOOK = PROJECT_ROOT / "notebooks" / "04_dpo.ipynb"


def test_the_notebook_killed_in_training_ends_like_one_that_was_not(tmp_path):
    values = {"limit": 24, "samples": 6, "train_batch_size": 2, "micro_batch_size": 2, "epochs": 2, "save_steps": 3}
    killed, undisturbed = tmp_path / "killed", tmp_path / "undisturbed"
    assert execute(NOTEBOOK, undisturbed / "notebook.ipynb", values | {"output_dir": str(undisturbed)}) is None
    parameters = json.dumps(values | {"output_dir": str(killed)})
    command = [sys.executable, "-m", "brite_lib.execute", NOTEBOOK, killed / "notebook.ipynb", parameters]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL) as papermill:
        wait_until(lambda: lines(killed / "metrics.jsonl") >= 5 or papermill.poll() is not None, "it trains", 120)
        for process in [*psutil.Process(papermill.pid).children(recursive=True), papermill]:
            process.kill()
    assert not (killed / "stage.json").exists() and resume_step(killed / "checkpoint") >= 3
    assert execute(NOTEBOOK, killed / "notebook.ipynb", values | {"output_dir": str(killed)}) is None

    one, other = (read_record(directory / "stage.json") for directory in (undisturbed, killed))
    for name in ("tokens_generated", "tokens_trained", "flops", "metrics"):
        assert one[name] == other[name]
    assert list(one["outputs"].values()) == list(other["outputs"].values())  # model and pairs, bit by bit
    assert read_metrics(undisturbed / "metrics.jsonl") == read_metrics(killed / "metrics.jsonl")
    assert one["metrics"]["pairs"] == len(read_pairs(killed / "pairs.parquet")) > 16
    assert (killed / "figures/training.png").is_file() and not (killed / "checkpoint").exists()


def test_what_learns_is_the_sampler_unless_theta_is_asked_for():
    drawn = {"model": "theta", "sampler": "q"}
    assert [DpoParams.parse(drawn | more).start for more in ({}, {"start_from": "model"})] == ["q", "theta"]
    assert DpoParams.parse({"model": "theta"}).start == "theta"


def test_one_process_takes_one_of_several_gpus(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(dpo, "trl_settings", lambda *arguments: trl_settings(*arguments) | {"use_cpu": False})
    params = DpoParams.parse(SETTINGS | {"train_batch_size": 1, "micro_batch_size": 1, "epochs": 1})
    assert rationale_dpo(enumerable.model(0), literal_pairs(), enumerable.template(), params, tmp_path)[1]["steps"] == 2
