"""Several machines: what the ranks of a Slurm job's two nodes are started with, and a stage trained by two "nodes" that are this one."""

import subprocess

import pytest
from accelerate.commands.config import load_config_from_file
from accelerate.commands.config.config_args import ClusterConfig
from safetensors.torch import load_file

from brite_lib.launch import launch
from brite_lib.params import PROJECT_ROOT, ThetaParams
from brite_lib.records import read_metrics

SMALL = {"limit": 8, "epochs": 2, "train_batch_size": 4, "device": "cpu"}
# Stands in for Slurm's: both tasks run here, each with its number; srun's own options go before bash.
SRUN = """#!/bin/bash
echo "$@" > "$SRUN_LOG"
while [ "$1" != bash ]; do shift; done
SLURM_PROCID=0 "$@" & first=$!
SLURM_PROCID=1 "$@" & second=$!
trap 'kill $first $second' TERM
wait $first && wait $second
"""


@pytest.mark.parametrize("path", sorted(PROJECT_ROOT.glob("params/accelerate/*.yaml")), ids=lambda path: path.stem)
def test_accelerate_reads_its_files(path):
    assert isinstance(load_config_from_file(str(path)), ClusterConfig)


def test_the_two_nodes_of_the_example_are_those_of_its_script():
    config = load_config_from_file(str(PROJECT_ROOT / "params/accelerate/fsdp2-two-nodes.yaml"))
    script = PROJECT_ROOT / "profiles/slurm/two-nodes.sbatch"
    assert f"#SBATCH --nodes={config.num_machines}\n" in script.read_text()
    assert config.fsdp_config["fsdp_version"] == 2
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    usage = subprocess.run(["bash", script], capture_output=True, text=True)
    assert usage.returncode != 0 and "usage: sbatch profiles/slurm/two-nodes.sbatch params/x.yaml" in usage.stderr


def test_two_nodes_train_a_stage_together(tmp_path, monkeypatch):
    (tmp_path / "srun").write_text(SRUN)
    (tmp_path / "srun").chmod(0o755)
    (tmp_path / "two.yaml").write_text("{distributed_type: MULTI_GPU, use_cpu: true, num_machines: 2, machine_rank: 0}")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("SRUN_LOG", str(tmp_path / "asked"))
    two = ThetaParams.parse(SMALL | {"processes": 2, "accelerate_config": str(tmp_path / "two.yaml"), "output_dir": str(tmp_path / "two")})
    launch("theta_sft", two, 2)
    asked = (tmp_path / "asked").read_text()
    assert asked.startswith("--overlap --nodes=2 --ntasks=2 --ntasks-per-node=1 ") and '--machine_rank "$SLURM_PROCID"' in asked
    assert len(list((tmp_path / "two/ranks").glob("*/attempt_0/0/stdout.log"))) == 2, "an agent with a rank on each"
    monkeypatch.delenv("SLURM_JOB_ID")
    launch("theta_sft", ThetaParams.parse(SMALL | {"output_dir": str(tmp_path / "one")}), 1)
    lines, others = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [line["loss"] for line in others] == pytest.approx([line["loss"] for line in lines], abs=1e-5)
    weights, trained = (load_file(tmp_path / name / "checkpoint/checkpoint-4/model.safetensors") for name in ("one", "two"))
    assert all((trained[name] - weights[name]).abs().max() < 1e-4 for name in weights)
