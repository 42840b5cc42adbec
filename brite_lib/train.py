"""``python -m brite_lib.train STAGE PARAMS_FILE``: the training of a stage without its notebook, for ``accelerate launch``.

Every process builds from the parameters what the notebook builds, and trains from the last checkpoint to the last step; the first
writes the checkpoints and ``metrics.jsonl``. The notebook goes on from there (:mod:`brite_lib.launch`).
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch.distributed.elastic.multiprocessing.errors import record

from brite_lib import costs
from brite_lib.checkpointing import resume_step
from brite_lib.dpo import draw_pairs, rationale_dpo
from brite_lib.errors import InputError
from brite_lib.models import load_policy, load_template
from brite_lib.params import DpoParams, ThetaParams, TrainingStageParams
from brite_lib.problems import load_problems
from brite_lib.records import Stage
from brite_lib.sft import load_rows, rationale_sft, training_rows

Log = Callable[..., None]  # called as log(step, **metrics)


def train_theta(params: ThetaParams, stage: Stage, log: Log | None) -> None:
    """As notebooks/03_theta_sft.ipynb."""
    template = load_template(params.model, params.template)
    dataset = training_rows(load_rows(params), template, params.correct_only, params.reward_weighted)
    model = load_policy(params.model, device=params.device, dtype=params.dtype)
    rationale_sft(model, dataset, template, params, stage.path("checkpoint"), log)


def train_dpo(params: DpoParams, stage: Stage, log: Log | None) -> None:
    """As notebooks/04_dpo.ipynb, which has drawn the pairs; without it the first process draws them."""
    template, problems = load_template(params.model, params.template), load_problems(params.data, params.split, params.limit)
    with PartialState().main_process_first():
        pairs, _ = draw_pairs(problems, template, params, stage.path("checkpoint"))
    model = load_policy(params.start, device=params.device, dtype=params.dtype)
    rationale_dpo(model, pairs, template, params, stage.path("checkpoint"), log)


TRAINERS: dict[str, tuple[type[TrainingStageParams], Callable[[Any, Stage, Log | None], None]]] = {
    ThetaParams.kind: (ThetaParams, train_theta),
    DpoParams.kind: (DpoParams, train_dpo),
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
    first = PartialState().is_main_process
    if first:
        joined.rewind(resume_step(joined.path("checkpoint")))
    PartialState().wait_for_everyone()
    TRAINERS[stage][1](params, joined, joined.log if first else None)


def meet(on_cpu: bool) -> PartialState:
    """Join the other processes, if ``accelerate launch`` started some, and find this one's device."""
    if on_cpu:
        os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"  # else it is cpu:1 in rank 1, where torch.load can't put a checkpoint
    return PartialState(cpu=on_cpu)


@record  # the traceback goes to the launcher
def main() -> None:
    """Command line; one process, or one of those that ``accelerate launch`` starts."""
    stage, path = sys.argv[1:]
    if stage not in TRAINERS:
        raise InputError(f"stage: {stage} does not train; known: {', '.join(TRAINERS)}")
    params = TRAINERS[stage][0].parse(json.loads(Path(path).read_text(encoding="utf-8")), where=path)
    on_cpu = params.device == "cpu" or parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available()
    train(stage, params.model_copy(update={"device": str(meet(on_cpu).device)}))


if __name__ == "__main__":
    main()
