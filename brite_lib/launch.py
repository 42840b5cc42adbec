"""Several processes for one stage's training: how many, and what starts them (docs/processes.md)."""

import os

import torch

from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT, TrainingStageParams, resolve_path
from brite_lib.params.training import read_accelerate_config

CONFIGS = PROJECT_ROOT / "params/accelerate"


def number_of_processes(params: TrainingStageParams) -> int:
    """How many processes ``params.processes`` means here, over all machines; ``auto`` is one per GPU found, and one without any.

    Raises:
        InputError: one sentence, if there are fewer GPUs (on a CPU: cores) or they can't share the work.
    """
    if params.processes != 1 and params.device not in ("auto", "cpu", "cuda"):
        raise InputError(f"processes: more than one needs device auto, cpu or cuda, not {params.device}")
    settings = accelerate_settings(params)
    machines, on_cpu = settings.get("num_machines", 1), settings.get("use_cpu", False)
    found = machines * (os.cpu_count() if on_cpu else torch.cuda.device_count())
    processes = params.processes
    if processes == "auto":
        processes = 1 if on_cpu else max(1, found)
        try:
            params.check_shares(processes)
        except ValueError as error:
            raise InputError(f"processes: auto means {processes} here: {error}") from None
    if processes > max(1, found):
        where = f" on {machines} machines" if machines > 1 else ""
        raise InputError(f"processes: {processes} are more than the {found} {'cores' if on_cpu else 'GPUs'} found{where}")
    return processes


def accelerate_settings(params: TrainingStageParams) -> dict:
    """What the file for ``accelerate launch`` says; ``auto`` is the one for GPUs where the stage uses them, else the one for a CPU."""
    if params.accelerate_config != "auto":
        return read_accelerate_config(resolve_path(params.accelerate_config))
    on_gpus = params.device != "cpu" and torch.cuda.is_available()
    return read_accelerate_config(CONFIGS / ("ddp.yaml" if on_gpus else "cpu2.yaml"))
