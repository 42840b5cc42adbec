"""``python -m brite_lib.train STAGE PARAMS_FILE``: the training of a stage without its notebook, for ``accelerate launch``.

Every process builds from the parameters what the notebook builds, and trains from the last checkpoint to the last step; the first
writes the checkpoints and ``metrics.jsonl``. The notebook goes on from there (:mod:`brite_lib.launch`).
"""

import argparse
import json
import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.distributed.elastic.multiprocessing.errors import record

from brite_lib import costs, live
from brite_lib.checkpointing import resume_step
from brite_lib.dpo import draw_pairs, rationale_dpo
from brite_lib.errors import InputError
from brite_lib.models import load_policy, load_template
from brite_lib.params import DpoParams, LatroParams, PsiParams, ThetaParams, TrainingStageParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.problems import load_problems
from brite_lib.records import Stage
from brite_lib.selection import BestOnValidation, training_and_validation
from brite_lib.sft import load_rows, rationale_sft, training_rows

Log = Callable[..., None]  # called as log(step, **metrics)


def train_theta(params: ThetaParams, stage: Stage, log: Log | None) -> None:
    """As notebooks/03_theta_sft.ipynb."""
    _rewind(stage, resume_step(stage.path("checkpoint")))
    template = load_template(params.model, params.template)
    dataset = training_rows(load_rows(params), template, params.correct_only, params.reward_weighted)
    model = load_policy(params.model, device=params.device, dtype=params.dtype)
    rationale_sft(model, dataset, template, params, stage.path("checkpoint"), log)


def train_dpo(params: DpoParams, stage: Stage, log: Log | None) -> None:
    """As notebooks/04_dpo.ipynb, which has drawn the pairs; without it the first process draws them."""
    _rewind(stage, resume_step(stage.path("checkpoint")))
    template, problems = load_template(params.model, params.template), load_problems(params.data, params.split, params.limit)
    with PartialState().main_process_first():
        pairs, _ = draw_pairs(problems, template, params, stage.path("checkpoint"))
    model = load_policy(params.start, device=params.device, dtype=params.dtype)
    rationale_dpo(model, pairs, template, params, stage.path("checkpoint"), log)


def train_psi(params: PsiParams, stage: Stage, log: Log | None) -> None:
    """As notebooks/02_psi_ppo.ipynb."""
    problems = load_problems(params.data, params.split, params.limit)
    _psi_steps(_psi_trainer(params, stage, problems, log), stage)


def train_latro(params: LatroParams, stage: Stage, log: Log | None) -> None:
    """As notebooks/11_latro.ipynb, which restores the best weights."""

    def validate_and_log(step: int, **metrics: float) -> None:
        metrics |= best.validate(step)  # by all processes
        if log:
            log(step, **metrics)

    problems, validation = training_and_validation(params)
    trainer = _psi_trainer(params, stage, problems, validate_and_log)
    best = BestOnValidation(trainer, validation, params, stage.path("checkpoint") / "best.pt")
    _psi_steps(trainer, stage, lambda: validate_and_log(0))


def _psi_trainer(params: PsiParams, stage: Stage, problems: Sequence[dict[str, Any]], log: Log | None) -> PosteriorPPOTrainer:
    template = load_template(params.model, params.template)
    model = load_policy(params.model, device=params.device, dtype=params.dtype)
    return PosteriorPPOTrainer(model, template, problems, params, checkpoint=stage.path("checkpoint") / "state.pt", log=log)


def _psi_steps(trainer: PosteriorPPOTrainer, stage: Stage, first: Callable[[], None] = lambda: None) -> None:
    """The remaining steps; ``first`` is called before the very first."""
    _rewind(stage, trainer.resume())
    if trainer.step == 0:
        first()
    with live.shown(trainer) if PartialState().is_main_process else nullcontext():
        trainer.train()


def _rewind(stage: Stage, step: int) -> None:
    if PartialState().is_main_process:
        stage.rewind(step)


TRAINERS: dict[str, tuple[type[TrainingStageParams], Callable[[Any, Stage, Log | None], None]]] = {
    ThetaParams.kind: (ThetaParams, train_theta),
    DpoParams.kind: (DpoParams, train_dpo),
    PsiParams.kind: (PsiParams, train_psi),
    LatroParams.kind: (LatroParams, train_latro),
}


@costs.not_counted()  # the notebook's trainer counts all of it, as after any resume
def train(stage: str, params: TrainingStageParams) -> None:
    """Train a stage to its last step, in as many processes as there are.

    Raises:
        InputError: one sentence, if the stage does not train.
    """
    if stage not in TRAINERS:
        raise InputError(f"stage: {stage} does not train; known: {', '.join(TRAINERS)}")
    joined = Stage.join(stage, params)
    TRAINERS[stage][1](params, joined, joined.log if PartialState().is_main_process else None)


def meet(on_cpu: bool) -> PartialState:
    """Join the other processes, if ``accelerate launch`` started some, and find this one's device."""
    if on_cpu:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else it is cpu:1 in rank 1, where torch.load can't put a checkpoint
    return PartialState(cpu=on_cpu, timeout=timedelta(hours=2))  # the others wait while the first process writes a large checkpoint


@record  # the traceback goes to the launcher
def main() -> None:
    """Command line; one process, or one of those that ``accelerate launch`` starts."""
    parser = argparse.ArgumentParser(prog="python -m brite_lib.train", description="Train one stage to its last step.")
    parser.add_argument("stage", choices=TRAINERS)
    parser.add_argument("params_file", type=Path, help="the stage's parameters, JSON")
    arguments = parser.parse_args()
    cls, _ = TRAINERS[arguments.stage]
    params = cls.parse(json.loads(arguments.params_file.read_text(encoding="utf-8")), where=str(arguments.params_file))
    on_cpu = params.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    train(arguments.stage, params.model_copy(update={"device": str(meet(on_cpu).device)}))


if __name__ == "__main__":
    main()
