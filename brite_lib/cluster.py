"""Runs on a cluster: what each stage asks for, several nodes, and a Snakemake profile, checked before anything is submitted.

See profiles/slurm and docs/scaling.md. Nothing here imports torch: the Snakefile is read again for every job.
"""

import argparse
import importlib.util
import shlex
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from brite_lib.errors import InputError
from brite_lib.params import StageParams, TrainingStageParams, suggestion
from brite_lib.params.base import read_mapping

MB_PER_PROCESS = {"gpu": 64_000, "cpu": 16_000}  # our choice: each process reads the whole model first


class Asked(NamedTuple):
    """What a stage asks for: GPUs in all, machines, and of each machine CPU cores and MB of memory."""

    gpus: int
    nodes: int
    cores: int
    mem_mb: int


def asked_for(params: StageParams) -> Asked:
    """What a stage needs to run. ``processes: auto`` asks for one GPU and takes all that it is given (``set-resources`` in a profile)."""
    wanted = getattr(params, "processes", 1)
    processes = 1 if wanted == "auto" else wanted
    nodes = params.accelerate_settings.get("num_machines", 1) if isinstance(params, TrainingStageParams) else 1
    device = "cpu" if getattr(params, "device", "cpu") == "cpu" else "gpu"
    per_node = -(-processes // nodes)
    return Asked(processes * (device == "gpu"), nodes, per_node * max(1, params.threads), per_node * MB_PER_PROCESS[device])


def on_all_nodes(agent: Sequence[str], job: Sequence[str], nodes: int) -> list[str]:
    """A command that starts ``accelerate launch`` once on every node of the Slurm job that this process runs in, each with its number.

    The first node is this one: there the ranks meet, and there this process shows what the first of them prints.

    Args:
        agent: ``accelerate launch`` and its options.
        job: what each of its processes runs.
    """
    numbered = f'{shlex.join(agent)} --main_process_ip {socket.gethostname()} --machine_rank "$SLURM_PROCID" {shlex.join(job)}'
    # Processes of a job step are no children of this one; they end with their agent, which srun ends.
    script = f"export BRITE_LAUNCHER_PID=$$; exec {numbered}"
    options = ["--overlap", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--cpu-bind=none", "--kill-on-bad-exit=1"]
    return ["srun", *options, "bash", "-c", script]


def runs_on_cluster(profile: Path | None, options: Sequence[str], submits: bool = True) -> bool:
    """Whether a profile or Snakemake's own options send the stages to Slurm; everything else runs on this machine.

    Args:
        profile: a directory with Snakemake's ``config.yaml``, or None.
        options: what else is handed to Snakemake.
        submits: False for a run that only says what it would do, which needs no ``sbatch``.

    Raises:
        InputError: one sentence: no such profile, no partition, no plugin, no ``sbatch``.
    """
    settings, asked = _read(profile) if profile else {}, read_options(options)
    if (asked.executor or settings.get("executor")) != "slurm":
        return False
    named = _pairs(settings.get("default-resources")) + _pairs(asked.default_resources)
    if not any(name == "slurm_partition" and str(value).strip() for name, value in named):
        where = f"{profile}/config.yaml: default-resources: slurm_partition" if profile else "--default-resources: slurm_partition"
        raise InputError(f"{where}: names no partition, and a job without one may land anywhere; sinfo lists those of your cluster")
    if importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
        raise InputError("executor slurm: its plugin is not installed: .venv/bin/pip install -e .[slurm]")
    if submits and shutil.which("sbatch") is None:
        raise InputError("executor slurm: there is no sbatch here; start the run on a machine that submits jobs")
    return True


def read_options(options: Sequence[str]) -> argparse.Namespace:
    """Of Snakemake's options ``executor``, ``default_resources`` and ``only_says`` (it runs nothing), however they are written."""
    parser = argparse.ArgumentParser(prog="Snakemake's options", add_help=False, allow_abbrev=False)
    parser.add_argument("-e", "--executor")
    parser.add_argument("--default-resources", "--default-res", nargs="*")
    only_says = "-n --dry-run --dryrun -t --touch -l --list-rules --list -S --summary -D --detailed-summary"
    parser.add_argument(*only_says.split(), dest="only_says", action="store_true")
    parser.add_argument(*(f"-{letter}" for letter in "afFkp"), dest="others", action="store_true")  # may be written together: -np
    return parser.parse_known_args(options)[0]


def _read(profile: Path) -> dict[str, Any]:
    path = profile / "config.yaml"
    if not path.is_file():
        near = suggestion(profile.name, [p.name for p in profile.parent.glob("*") if (p / "config.yaml").is_file()])
        raise InputError(f"--profile: {profile}: is no directory with a config.yaml{near}")
    return read_mapping(path, "Snakemake's options")


def _pairs(resources: Any) -> list[tuple[str, Any]]:
    """Snakemake takes a mapping, or a list of ``name=value``."""
    if isinstance(resources, dict):
        return list(resources.items())
    return [tuple(entry.split("=", 1)) for entry in resources or () if "=" in str(entry)]
