"""What ``make plan`` foretells: bounds worked by hand, and memory against what real tensors take."""

import json
from dataclasses import replace

import enumerable
import httpx
import pytest

from brite_lib import run
from brite_lib.costs import ModelCost
from brite_lib.errors import InputError
from brite_lib.forecast import Forecaster, Pass, flops_bound, number_of_problems, passes, rationales_per_problem, token_bounds
from brite_lib.params import (
    PROJECT_ROOT,
    DpoParams,
    DrrParams,
    EvalParams,
    Experiment,
    LatroParams,
    PsiParams,
    RejectionParams,
    ThetaParams,
)
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.stages import plan

LENGTHS = {"max_rationale_tokens": 10, "max_answer_tokens": 2, "limit": 100}
PSI = {"steps": 3, "prompts_per_step": 4, "rationales_per_prompt": 5, "epochs": 2, "samples": 1}
CALIBRATION = 8 * 256 * 10


@pytest.mark.parametrize(
    ("params", "generated", "trained"),
    [
        (PsiParams(**LENGTHS, **PSI), 3 * 4 * 5 * 10 + CALIBRATION + 100 * 12, 2 * 3 * 4 * 5 * 10),
        (PsiParams(**LENGTHS, **PSI, unfinished_reward=-9.0), 3 * 4 * 5 * 10 + 100 * 12, 2 * 3 * 4 * 5 * 10),
        (PsiParams(**LENGTHS, **PSI, reward="verifier"), 3 * 4 * 5 * 12 + 100 * 12, 2 * 3 * 4 * 5 * 12),
        (LatroParams(**LENGTHS, **PSI, reward="verifier", scorer="frozen", answer_nll_weight=0, validation_steps=2, validation_limit=7,
                     validation_samples=3), 3 * 4 * 5 * 12 + 100 * 12 + 3 * 7 * 3 * 12, 2 * 3 * 4 * 5 * 12),
        (RejectionParams(**LENGTHS, samples=7), 7 * 100 * 12, 0),
        (RejectionParams(**LENGTHS, samples=7, strategy="star"), 14 * 100 * 12, 0),
        (RejectionParams(**LENGTHS, until_hit=True, max_samples=50), 50 * 100 * 12, 0),
        (ThetaParams(**LENGTHS, epochs=1.5), 0, 1800),
        (DpoParams(**LENGTHS, samples=4, epochs=2), 4 * 100 * 12, 2 * 2 * 100 * 12),
        (DrrParams(**LENGTHS, chains=2, turns=3, epochs=4), 2 * 3 * 100 * 12, 4 * 2 * 3 * 100 * 3 * 12),
        (EvalParams(**LENGTHS, samples=4, greedy=True), 5 * 100 * 12, 0),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)  # fmt: skip
def test_token_bounds_by_hand(params, generated, trained):
    assert token_bounds(passes(params, 100)) == (generated, trained)


def test_theta_learns_from_as_many_rationales_as_its_source_keeps():
    raft, rest_em = RejectionParams(strategy="raft", samples=7), RejectionParams(strategy="rest_em", samples=7, max_per_problem=5)
    assert [rationales_per_problem(source) for source in (None, RejectionParams(), raft, rest_em, PsiParams(samples=3))] == [1, 1, 7, 5, 3]
    assert token_bounds(passes(ThetaParams(**LENGTHS, epochs=1), 100, per_problem=7)) == (0, 7 * 100 * 12)


def test_the_number_of_problems(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"question": "1+1", "answer": "2"}\n' * 3)
    assert number_of_problems(EvalParams(data="toy:easy")) == 1000
    assert number_of_problems(EvalParams(data=str(tmp_path / "rows.jsonl"))) == 3
    assert number_of_problems(EvalParams(data=str(tmp_path / "rows.jsonl"), limit=2)) == 2
    assert number_of_problems(EvalParams(data="gsm8k", split="test")) == 1319
    assert number_of_problems(EvalParams(data="gsm8k", split="test", limit=5000)) == 1319
    assert number_of_problems(EvalParams(data="org/unknown")) is None
    assert number_of_problems(EvalParams(data="org/unknown", limit=9)) == 9


def test_flops_of_passes_by_hand():
    cost = ModelCost(trunk=10, trunk_trained=10, head=2, head_trained=2, attention=1)
    # 5 tokens in all, 4 of them read before the last is sampled; 15 and 10 pairs of a token and a key, 4 FLOPs each
    sample, score, train = 2 * (10 * 4 + 2 * 3) + 4 * 10, 2 * (10 * 5 + 2 * 3) + 4 * 15, 3 * (2 * (10 * 5 + 2 * 3) + 4 * 15)
    found = [Pass("sample", 7, 3), Pass("score", 2, 3), Pass("train", 4, 3)]
    assert flops_bound(found, cost, prompt=2) == 7 * sample + 2 * score + 4 * train


def test_a_psi_update_whose_rationales_are_all_of_full_length_costs_exactly_the_bound(monkeypatch):
    settings = {
        "steps": 2,
        "prompts_per_step": 2,
        "rationales_per_prompt": 2,
        "max_rationale_tokens": 3,
        "epochs": 2,
        "unfinished_reward": 0.0,
    }
    config = PsiParams(**settings, device="cpu", advantage="gae")
    full = [[0, 1, 0]] * 4  # no boundary: as long as allowed, and without an answer behind it
    monkeypatch.setattr("brite_lib.ppo.sample", lambda *_, **__: full)
    model = enumerable.model()
    problems = [{"id": "q", "question": "aba", "answer": "a"}]
    trainer = PosteriorPPOTrainer(model, enumerable.template(), problems, config)
    trainer.train()
    cost = ModelCost.of(model, trainer.agent.value_head)
    batch = 2 * 2 * 2
    assert passes(config, 1)[:3] == [Pass("sample", batch, 3), Pass("score", 2 * batch, 11), Pass("train", 2 * batch, 3)]
    prompt = len(enumerable.template().prompt_ids("aba"))
    spent = flops_bound([Pass("score", 2 * batch, 3), Pass("train", 2 * batch, 3)], cost, prompt)
    critic = 2 * batch * 3 * sum(p.numel() for p in trainer.agent.value_head.parameters() if p.ndim > 1)  # frozen θ has none
    assert trainer.flops == spent - critic


EXPERIMENT = {
    "name": "foretold",
    "tasks": [{"name": "toy", "data": "toy:easy", "train_limit": 5, "test_limit": 5}],
    "methods": ["base", "rs"],
}


def test_the_plan_of_an_experiment_and_what_it_took(tmp_path, capsys):
    experiment = Experiment.parse({**EXPERIMENT, "model": str(PROJECT_ROOT / "assets/tiny-base")}, where="")
    stages = [replace(spec, directory=tmp_path / spec.key) for spec in plan(experiment)]
    run.print_plan(experiment, stages, tokens_per_second=100.0, gpu_memory_gib=24)
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split() for line in printed.splitlines() if line.startswith("seed0/")}
    assert rows["seed0/rs_sampling"][2] == f"{30 * 5 * 40:,}" and rows["seed0/rs_sampling"][4] == "60"
    assert rows["seed0/rs"][3:4] == [f"{4 * 5 * 40:,}"]
    assert "GPU-hours: 0.0" in printed and "predicted against actual" not in printed

    directory = stages[0].directory
    directory.mkdir(parents=True)
    record = {
        **{"stage": "rs", "seed": 0, "inputs": {}, "outputs": {}, "metrics": {}},
        "params": stages[0].params.model_dump(mode="json"),
        "tokens_generated": 3000,
        "tokens_trained": 0,
        "flops": 1e9,
        "seconds": 30.0,
    }
    (directory / "stage.json").write_text(json.dumps({**record, "peak_rss_gib": 0.5, "peak_gpu_gib": None}))
    run.print_plan(experiment, stages)
    printed = capsys.readouterr().out
    assert "seed0/rs_sampling         3,000 (50 %)" in printed and "0.50 (process)" in printed
    forecast = Forecaster(experiment, stages).of(stages[0])
    assert forecast.seconds == 60.0  # 6,000 tokens at the 100 per second that the finished stage had

    (directory / "stage.json").write_text('{"stage": "rs"')
    run.print_plan(experiment, stages)
    assert "not readable" in capsys.readouterr().out


def test_the_plan_of_a_stage_on_several_gpus(tmp_path, capsys):
    settings = {"processes": 4, "train_batch_size": 8}
    experiment = Experiment.parse({**EXPERIMENT, "model": str(PROJECT_ROOT / "assets/tiny-base"), "theta": settings}, where="")
    stages = [replace(spec, directory=tmp_path / spec.key) for spec in plan(experiment)]
    run.print_plan(experiment, stages, tokens_per_second=1.0, gpu_memory_gib=24, gpus=4)
    printed = capsys.readouterr().out
    assert "theta_sft, each of 4 GPUs" in printed and "rs_sampling  " in printed
    forecaster = Forecaster(experiment, stages, tokens_per_second=1.0)
    hours = sum(forecaster.of(spec).seconds * (4 if spec.kind == "theta_sft" else 1) for spec in stages) / 3600
    assert f"GPU-hours: {hours:,.1f}\n" in printed
    run.print_plan(experiment, stages, gpu_memory_gib=24)  # of an unknown number of them
    with pytest.raises(InputError, match="^seed0/rs: processes: 4 are more than the 2 GPUs there are; set it to 2, or to auto$"):
        run.print_plan(experiment, stages, gpu_memory_gib=24, gpus=2)
    settings |= {"processes": "auto"}
    stages = plan(Experiment.parse({**EXPERIMENT, "model": str(PROJECT_ROOT / "assets/tiny-base"), "theta": settings}, where=""))
    with pytest.raises(InputError, match="^seed0/rs: processes: auto means 3 here: train_batch_size must be a multiple of processes"):
        run.print_plan(experiment, stages, gpu_memory_gib=24, gpus=3)


def test_a_plan_that_cannot_fit_ends_in_a_sentence(capsys):
    assert run.main([str(PROJECT_ROOT / "params/micro.yaml"), "--plan", "--gpu-memory-gib", "0.01"]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: seed0/") and errors.count("\n") == 1 and "set " in errors


@pytest.mark.parametrize("option", ["--cores", "--gpus", "--gpu-memory-gib", "--tokens-per-second"])
@pytest.mark.parametrize("value", ["0", "-1"])
def test_no_option_may_be_zero_or_less(option, value, capsys):
    with pytest.raises(SystemExit):
        run.main([str(PROJECT_ROOT / "params/micro.yaml"), "--plan", option, value])
    assert f"{option}: must be above 0" in capsys.readouterr().err


def test_without_the_models_configuration_tokens_are_still_foretold(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_text("")
    experiment = Experiment.parse({**EXPERIMENT, "model": str(tmp_path)}, where="")
    stages = plan(experiment)
    forecaster = Forecaster(experiment, stages)
    forecasts = [forecaster.of(spec) for spec in stages]
    assert forecasts[0].tokens_generated == 30 * 5 * 40 and forecasts[0].flops is None
    assert len(forecaster.notes) == 1 and forecaster.notes[0].endswith("FLOPs and memory are not known")


def test_a_hub_out_of_reach_is_tried_once(tmp_path, monkeypatch):
    tried = []

    class Session:
        def head(self, url, **options):
            tried.append(url)
            raise httpx.ConnectError("Name or service not known")

    monkeypatch.setattr("brite_lib.models.get_session", Session)
    monkeypatch.setattr("brite_lib.models.try_to_load_from_cache", lambda *name: None)
    experiment = Experiment.parse({**EXPERIMENT, "model": "nobody/nothing"}, where="")
    stages = plan(experiment)
    forecaster = Forecaster(experiment, stages)
    assert [forecaster.of(spec).flops for spec in stages] == [None] * len(stages)
    assert len(tried) == 1 and tried[0].endswith("nobody/nothing/resolve/main/config.json")
    assert forecaster.notes == [
        "model: nobody/nothing: its config.json is not in the cache and the hub is out of reach (Name or service not known); "
        "FLOPs and memory are not known"
    ]
