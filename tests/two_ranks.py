"""SFT and DPO of a tiny model, in one process or as one of two.

test_two_processes.py starts it as ``accelerate launch --config_file … two_ranks.py DIRECTORY OTHERS``. The same cases run in the test's
own process; both leave what they logged and the trained weights.
"""

import json
import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import enumerable
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset

from brite_lib.dpo import rationale_dpo
from brite_lib.errors import InputError
from brite_lib.params import DpoParams, ThetaParams
from brite_lib.sft import rationale_sft
from brite_lib.train import meet

LORA = {"r": 2, "alpha": 4}
COMMON = {"device": "cpu", "epochs": 2, "learning_rate": 1e-3, "save_steps": 2}
CASES = {  # parameters, and how many rows: the last step of an epoch leaves rank 1 something, and nothing, to do
    "sft": (ThetaParams, {"train_batch_size": 8, "micro_batch_size": 4}, 21),
    "sft_little": (ThetaParams, {"train_batch_size": 8, "micro_batch_size": 4}, 18),
    "sft_lora_weighted": (ThetaParams, {"train_batch_size": 8, "micro_batch_size": 2, "lora": LORA, "reward_weighted": True}, 21),
    "dpo": (DpoParams, {"train_batch_size": 4, "micro_batch_size": 2}, 11),
    "dpo_lora": (DpoParams, {"train_batch_size": 4, "micro_batch_size": 1, "lora": LORA}, 9),
}
INTERRUPTED_AT = 3  # after the checkpoint of step 2, in the first epoch of case sft


class Interrupted(RuntimeError):
    pass


def sequence(draw: torch.Generator, longest: int) -> list[int]:
    return torch.randint(5, (int(torch.randint(1, longest + 1, (), generator=draw)),), generator=draw).tolist()


def sft_rows(count: int, weighted: bool) -> Dataset:
    """Sequences of different lengths, so that ranks have different numbers of target tokens."""
    draw = torch.Generator().manual_seed(1)
    rows = [(sequence(draw, 3), sequence(draw, 6)) for _ in range(count)]
    table = [{"input_ids": [*prompt, *target], "labels": [-100] * len(prompt) + target} for prompt, target in rows]
    return Dataset.from_list([row | {"weight": 1 / (i + 1)} for i, row in enumerate(table)] if weighted else table)


def dpo_pairs(count: int) -> list[dict[str, list[int]]]:
    draw = torch.Generator().manual_seed(2)
    names = ("chosen_rationale_ids", "chosen_answer_ids", "rejected_rationale_ids", "rejected_answer_ids")
    return [{"prompt_ids": sequence(draw, 3)} | {name: sequence(draw, 4) for name in names} for _ in range(count)]


def train(case: str, directory: Path, stop_at: int | None = None) -> None:
    """Train a case from its checkpoint, if there is one, to the end, or until a step at which all processes are interrupted."""
    cls, settings, count = CASES[case]
    params, model, template, logged = cls.parse(COMMON | settings), enumerable.model(0), enumerable.template(), []

    def log(step: int, **metrics: float) -> None:
        if step == stop_at:
            raise Interrupted
        logged.append({"step": step, **metrics})

    if cls is ThetaParams:
        model, _ = rationale_sft(
            enumerable.model(0), sft_rows(count, params.reward_weighted), enumerable.template(), params, directory, log
        )
    else:
        model, _ = rationale_dpo(model, dpo_pairs(count), template, params, directory, log)
    if PartialState(cpu=True).is_main_process:
        (directory / "logged.json").write_text(json.dumps(logged))
        torch.save(dict(model.state_dict()), directory / "weights.pt")


def pretend_gpus() -> None:
    """Let accelerate take these CPUs for GPUs that talk by gloo: else it does not shard on a CPU, though torch does."""

    def on_gpus(state: PartialState, *arguments: Any) -> tuple[str, DistributedType]:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo")
        return "gloo", DistributedType.MULTI_GPU

    PartialState._prepare_backend = on_gpus


def train_all(directory: Path) -> None:
    for case in CASES:
        train(case, directory / case)
    with suppress(Interrupted):
        train("sft", directory / "interrupted", INTERRUPTED_AT)


def resume_all(directory: Path, others: Path) -> None:
    """Finish what was interrupted here, and what one process was interrupted in."""
    for name, source in (("resumed", directory), ("taken_over", others)):
        if PartialState().is_main_process:
            shutil.copytree(source / "interrupted", directory / name)
        PartialState().wait_for_everyone()
        try:
            train("sft", directory / name)
        except InputError as error:
            (directory / name / "refused.txt").write_text(str(error))


if __name__ == "__main__":
    if "ACCELERATE_USE_FSDP" in os.environ:
        pretend_gpus()
    meet(on_cpu=True)
    train_all(Path(sys.argv[1]))
    resume_all(Path(sys.argv[1]), Path(sys.argv[2]))
