"""The view of a running ψ-update: it shows what happens, and nothing that happens depends on it."""

import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from brite_lib import live
from brite_lib.models import load_policy, load_template
from brite_lib.params import PROJECT_ROOT, PsiParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.problems import load_problems

BASE = str(PROJECT_ROOT / "assets" / "tiny-base")
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def outputs(monkeypatch):
    """Every picture shown in a notebook's output, oldest first."""
    shown = []
    monkeypatch.delenv("BRITE_BATCH", raising=False)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=object))
    monkeypatch.setattr(live, "updating_output", lambda: shown.append)
    monkeypatch.setattr(live, "SECONDS_BETWEEN_PICTURES", 0.0)
    return shown


def make_trainer(logged: list) -> PosteriorPPOTrainer:
    config = PsiParams.parse({"steps": 3, "prompts_per_step": 4, "rationales_per_prompt": 4, "seed": 1})
    problems = load_problems("toy:easy", "train", 32)
    log = lambda step, **metrics: logged.append((step, metrics))  # noqa: E731
    return PosteriorPPOTrainer(load_policy(BASE), load_template(BASE), problems, config, log=log)


def test_a_watched_run_is_the_same_run(outputs):
    alone, watched = [], []
    policy = make_trainer(alone).train()
    trainer = make_trainer(watched)
    with live.shown(trainer, load_problems("toy:easy", "validation", 8).to_list()):
        same = trainer.train()
    assert watched == alone and len(alone) == 3
    assert all(torch.equal(a, b) for a, b in zip(policy.state_dict().values(), same.state_dict().values(), strict=True))
    assert len(outputs) == 3
    assert 'points="0.0,' in outputs[-1].partition("validation accuracy")[2]  # from before the first step
    assert f"elbo <b>{alone[-1][1]['elbo']:.3g}</b>" in outputs[-1] and "validation accuracy" in outputs[-1]
    trainer.log(4, elbo=0.0)  # afterwards it is the caller's again
    assert len(outputs) == 3 and watched[-1] == (4, {"elbo": 0.0})


def test_what_a_model_writes_is_escaped(outputs):
    trainer = make_trainer([])
    with live.shown(trainer):
        trainer.train()
        trainer.latest.completions = [replace(completion, rationale=HOSTILE) for completion in trainer.latest.completions]
        trainer.latest.problems[0]["question"] = HOSTILE
        trainer.log(3, elbo=math.nan)
    assert "<script" not in outputs[-1] and outputs[-1].count("&lt;script&gt;") == 4


def test_a_batch_run_has_lines(outputs, monkeypatch, capsys):
    monkeypatch.setenv("BRITE_BATCH", "1")
    monkeypatch.setattr(live, "pause", lambda elapsed: 0.0)
    trainer, logged = make_trainer([]), []
    trainer.log = lambda step, **metrics: logged.append(metrics)
    with live.shown(trainer, [{"id": "never asked"}]):
        trainer.train()
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    assert not outputs and [line.split("  ")[0] for line in lines] == ["step 1/3", "step 2/3", "step 3/3"]
    assert f"kl {logged[1]['kl']:.3g}" in lines[1].split("  ")
