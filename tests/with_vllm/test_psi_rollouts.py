"""ψ-PPO on the embedded model with rollouts by vLLM itself, on CPU (`make test-vllm`)."""

import json
import os
import signal
import subprocess
import sys

import psutil
import pytest
import torch

from brite_lib.gpu_check import checks
from brite_lib.likelihood import score
from brite_lib.models import load_policy, load_template
from brite_lib.params import PROJECT_ROOT, PsiParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.problems import load_problems
from brite_lib.template import RationaleTemplate
from brite_lib.vllm_engine import VllmEngine

BASE = PROJECT_ROOT / "assets/tiny-base"
TEMPLATE = load_template(BASE)
PROBLEMS = load_problems("toy:easy", "train", 40).to_list()
COMMON = {"rollout_engine": "vllm", "prompts_per_step": 16, "rationales_per_prompt": 8, "unfinished_reward": -20.0, "save_steps": 1}
ALL_WEIGHTS, LORA = {"learning_rate": 2e-4}, {"learning_rate": 1e-3, "lora": {"r": 4, "alpha": 8}}


def trainer(checkpoint=None, log=None, **settings) -> PosteriorPPOTrainer:
    torch.manual_seed(0)  # of the adapter's first weights; a stage does it
    return PosteriorPPOTrainer(load_policy(BASE), TEMPLATE, PROBLEMS, PsiParams.parse(COMMON | settings), checkpoint=checkpoint, log=log)


def trained(**settings) -> tuple[PosteriorPPOTrainer, list[dict[str, float]]]:
    lines: list[dict[str, float]] = []
    made = trainer(log=lambda step, **metrics: lines.append(metrics), **settings)
    made.train()
    return made, lines


@pytest.mark.parametrize("settings", [ALL_WEIGHTS, LORA], ids=["all weights", "LoRA"])
def test_the_engine_follows_the_policy_and_the_elbo_rises_as_with_hugging_face(settings):
    made, lines = trained(steps=12, **settings)
    assert made.vllm._engine is None  # it ended with the training
    assert max(line["mismatch_kl"] for line in lines) < 1e-6
    assert all(line["importance_weight"] == pytest.approx(1, abs=1e-4) for line in lines)
    assert made.tokens_generated > 12 * 128
    plain = trained(steps=12, rollout_engine="hf", **settings)[1]
    assert not {"mismatch_kl", "importance_weight"} & plain[0].keys()
    first, last = ([sum(line["elbo"] for line in part[steps]) / 3 for part in (lines, plain)] for steps in (slice(3), slice(-3, None)))
    assert last[0] > first[0] + 0.4
    assert last[1] > first[1] + 0.4
    assert last[0] == pytest.approx(last[1], abs=0.4)  # other samples of one law


def test_the_same_samples_again_and_a_run_without_a_constant_calibrates_with_vllm():
    runs = [trained(steps=2, unfinished_reward=None, **LORA) for _ in range(2)]
    assert runs[0][1] == runs[1][1]
    assert runs[0][0].unfinished_reward == runs[1][0].unfinished_reward < -5


@pytest.mark.parametrize("settings", [ALL_WEIGHTS, LORA], ids=["all weights", "LoRA"])
def test_the_canary_stops_a_run_whose_engine_is_stale(settings, monkeypatch):
    monkeypatch.setattr(VllmEngine, "load", lambda self, directory: None)
    steps: list[int] = []
    made = trainer(log=lambda step, **metrics: steps.append(step), steps=8, **settings)
    with pytest.raises(RuntimeError, match=r"vllm does not sample from the policy: .* differ by \S+ nats on average, 0.001 is allowed"):
        made.train()
    assert steps[-1] == 1  # one update, and the next draw is refused
    assert made.vllm._engine is None


def test_the_canary_stops_a_run_that_hands_over_other_weights(monkeypatch):
    made = trainer(steps=2, **ALL_WEIGHTS)
    save = made.model.save_pretrained

    def perturbed(directory, **options):
        with torch.no_grad():
            weight = made.model.model.layers[1].mlp.down_proj.weight
            weight.mul_(1.05)
            save(directory, **options)
            weight.div_(1.05)

    monkeypatch.setattr(made.model, "save_pretrained", perturbed)
    with pytest.raises(RuntimeError, match="vllm does not sample from the policy"):
        made.train()


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
import test_psi_rollouts as here
settings = here.LORA if sys.argv[2] == "LoRA" else here.ALL_WEIGHTS
here.trainer(Path(sys.argv[1]), lambda step, **metrics: print(step, flush=True), steps=4, **settings).train()
"""


@pytest.mark.parametrize("kind", ["all weights", "LoRA"])
def test_a_killed_run_goes_on_with_the_samples_it_would_have_drawn(kind, tmp_path):
    settings = {"all weights": ALL_WEIGHTS, "LoRA": LORA}[kind]
    whole, lines = trained(steps=4, **settings)
    checkpoint = tmp_path / "checkpoint/state.pt"
    command = [sys.executable, "-c", KILLED, str(checkpoint), kind, os.path.dirname(__file__)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=PROJECT_ROOT, text=True) as process:
        printed = [int(process.stdout.readline()) for _ in range(2)]
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
    assert printed == [1, 2]
    assert len(children) == 1
    psutil.wait_procs(children, timeout=30)
    assert not children[0].is_running()
    rest: list[dict[str, float]] = []
    resumed = trainer(checkpoint, lambda step, **metrics: rest.append(metrics), steps=4, **settings)
    assert resumed.resume() in (1, 2)  # the step that was printed may not have been saved yet
    resumed.train()
    assert rest == lines[-len(rest) :]
    assert not list(checkpoint.parent.glob("vllm-*"))  # no weights of the killed run are left
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_boundary_of_several_tokens_is_cut_off_with_its_log_probabilities():
    """vLLM watches tokens, so it samples on behind such a boundary; what counts is up to it, as with hf."""
    rules = RationaleTemplate(TEMPLATE.tokenizer, TEMPLATE.formats.model_copy(update={"boundary": "=7#"}))
    assert len(rules.boundary_ids) == 2
    made = PosteriorPPOTrainer(load_policy(BASE), rules, PROBLEMS, PsiParams.parse(COMMON | {"steps": 1}))
    with made.vllm:
        drawn = made.rollout(PROBLEMS, "test")
    scored = score(made.model, [rules.prompt_ids(row["question"]) for row in PROBLEMS], drawn.ids, [[]] * len(PROBLEMS)).rationale
    assert [len(row) for row in drawn.ids] == [len(row) for row in drawn.log_probs]
    assert max((a - torch.tensor(b)).abs().max() for a, b in zip(scored, drawn.log_probs, strict=True)) < 1e-3
    assert any(rules.split(ids).finished for ids in drawn.ids)
    assert all(rules.boundary_end(ids) in (None, len(ids)) for ids in drawn.ids)


IN_RANKS = """
import json, sys
from pathlib import Path
sys.path[:0] = [sys.argv[2], str(Path(sys.argv[2]).parent)]
import psi_ranks
import test_psi_rollouts as here
if sys.argv[3] == "sharded":
    psi_ranks.pretend_to_have_gpus()
settings, lines = json.loads(sys.argv[4]), []
made = here.trainer(Path(sys.argv[1], "state.pt"), lambda step, **metrics: lines.append(metrics), steps=3, processes=2, **settings)
made.train()
if made.accelerator.is_main_process:
    Path(sys.argv[1], "lines.json").write_text(json.dumps([lines, made.tokens_generated]))
made.accelerator.wait_for_everyone()
"""


@pytest.mark.parametrize(("weights", "settings"), [("whole", ALL_WEIGHTS), ("sharded", LORA), ("sharded", ALL_WEIGHTS)])
def test_two_processes_with_an_engine_each_follow_the_trajectory_of_one(weights, settings, tmp_path):
    alone, lines = trained(steps=3, **settings)
    script = tmp_path / "ranks.py"
    script.write_text(IN_RANKS)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [sys.executable, *torchrun, script, tmp_path, os.path.dirname(__file__), weights, json.dumps(settings)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    shared, tokens = json.loads((tmp_path / "lines.json").read_text())
    assert tokens == alone.tokens_generated
    for name in lines[0]:
        residual = sum(abs(line[name] - other[name]) for line, other in zip(lines, shared, strict=True)) / len(lines)
        assert residual <= 1e-4, f"{name}: {residual:.2e}"


def test_the_check_for_a_gpu_machine_passes_on_a_cpu(tmp_path):
    outcome = checks.vllm_rollouts(checks.Setup(torch.device("cpu"), "float32", checks.SMALL, TEMPLATE, tmp_path))
    assert all(outcome.requirements.values())
    assert outcome.numbers["all weights, mismatch KL"] < 1e-6
