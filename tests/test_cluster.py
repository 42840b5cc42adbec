"""A cluster's profile is checked before anything is submitted; there is no Slurm here, so nothing is."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from brite_lib import cluster
from brite_lib.cluster import asked_for, read_options, runs_on_cluster
from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT, EvalParams, TheoryParams, ThetaParams

PROFILE = PROJECT_ROOT / "profiles/slurm"
NAMED = "executor: slurm\ndefault-resources: {slurm_partition: gpu}"


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: name)


def profile(folder, text):
    (folder / "config.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("text", [NAMED, "executor: slurm\ndefault-resources: [slurm_partition=gpu, mem_mb=1]"])
def test_a_profile_with_a_partition(tmp_path, installed, text):
    assert runs_on_cluster(profile(tmp_path, text), [])


def test_runs_on_this_machine(tmp_path):
    assert not runs_on_cluster(None, ["--forceall"])
    assert not runs_on_cluster(profile(tmp_path, "cores: 4"), [])
    assert not runs_on_cluster(profile(tmp_path, "executor: slurm"), ["--executor", "local"])


def test_options_instead_of_a_profile(installed):
    assert runs_on_cluster(None, ["--executor", "slurm", "--default-resources", "slurm_partition=gpu", "mem_mb=1"])
    with pytest.raises(InputError, match="^--default-resources: slurm_partition: names no partition"):
        runs_on_cluster(None, ["--executor", "slurm"])


@pytest.mark.parametrize("executor", [["--executor=slurm"], ["-e", "slurm"], ["-eslurm"]])
@pytest.mark.parametrize("resources", [["--default-resources=slurm_partition=gpu"], ["--default-res", "mem_mb=1", "slurm_partition=gpu"]])
def test_options_are_known_however_they_are_written(installed, executor, resources):
    assert runs_on_cluster(None, ["-k", *executor, *resources, "--forceall"])
    with pytest.raises(InputError, match="names no partition"):
        runs_on_cluster(None, [*executor, "--set-resources", "slurm_partition=gpu"])


def test_options_that_run_nothing():
    assert all(read_options(["--forceall", *options]).only_says for options in (["-n"], ["-np"], ["-pFn"], ["--dryrun"], ["--list"]))
    assert not any(read_options(options).only_says for options in (["-p"], ["--cores", "4"], ["--until", "n"], []))


@pytest.mark.parametrize("text", ["executor: slurm", NAMED.replace("gpu", "''"), "executor: slurm\ndefault-resources: [mem_mb=1]"])
def test_a_profile_without_a_partition_is_one_sentence(tmp_path, installed, text):
    with pytest.raises(InputError) as error:
        runs_on_cluster(profile(tmp_path, text), [])
    assert str(error.value).startswith(f"{tmp_path}/config.yaml: default-resources: slurm_partition: names no partition, ")
    assert "\n" not in str(error.value)


def test_what_a_cluster_needs_is_named(tmp_path, installed, monkeypatch):
    found = profile(tmp_path, NAMED)
    monkeypatch.setattr(cluster.shutil, "which", lambda name: None)
    assert runs_on_cluster(found, [], submits=False)
    with pytest.raises(InputError, match="there is no sbatch here"):
        runs_on_cluster(found, [])
    monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"plugin is not installed: .venv/bin/pip install -e .\[slurm\]"):
        runs_on_cluster(found, [])


TWO_NODES = "distributed_type: FSDP\nnum_machines: 2\n"


def test_what_a_stage_asks_for(tmp_path):
    (tmp_path / "two.yaml").write_text(TWO_NODES)
    batch = {"train_batch_size": 16}
    several = ThetaParams(processes=8, threads=2, **batch)
    assert asked_for(EvalParams()) == (1, 1, 1, 64_000)
    assert asked_for(EvalParams(device="cpu", threads=4)) == (0, 1, 4, 16_000)
    assert asked_for(several) == (8, 1, 16, 512_000)
    assert asked_for(ThetaParams(processes=2, device="cpu", **batch)) == (0, 1, 2, 32_000)
    assert asked_for(ThetaParams(processes="auto")) == (1, 1, 1, 64_000)  # and takes what a profile's set-resources gives it
    on_two = ThetaParams(processes=16, accelerate_config=str(tmp_path / "two.yaml"), **batch)
    assert asked_for(on_two) == (16, 2, 8, 512_000)
    assert asked_for(TheoryParams(processes=3)) == (0, 1, 3, 48_000)


def test_snakemake_asks_for_the_gpus_of_every_process(tmp_path):
    tasks = [{"name": "toy", "data": "toy:easy", "train_limit": 8, "test_limit": 5}]
    experiment = {"name": f"asks-{os.getpid()}", "model": str(PROJECT_ROOT / "assets/tiny-base"), "tasks": tasks, "methods": ["sft"]}
    with open(tmp_path / "asks.yaml", "w", encoding="utf-8") as file:
        YAML(typ="safe").dump(experiment | {"theta": {"processes": 4, "train_batch_size": 8}}, file)
    run_dir = PROJECT_ROOT / "outputs" / experiment["name"]
    command = [
        sys.executable,
        "-m",
        "snakemake",
        "--snakefile",
        PROJECT_ROOT / "Snakefile",
        "--directory",
        run_dir,
        "--cores",
        "64",
        "--dry-run",
    ]
    command += ["--config", f"experiment={tmp_path}/asks.yaml", f"launched_from={PROJECT_ROOT}"]
    run_dir.mkdir(parents=True)
    try:
        result = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    finally:
        shutil.rmtree(run_dir)
    text = result.stdout + result.stderr
    jobs = re.findall(r"output: (\S+)/stage\.json\n(?:    .*\n)*?    resources: .*?gpu=(\d+), nodes=(\d+), .*?mem_mb=(\d+)", text)
    assert jobs == [("seed0/sft", "4", "1", "256000"), ("seed0/eval_sft", "1", "1", "64000")], text


def test_a_profile_that_is_none(tmp_path):
    with pytest.raises(InputError, match="is no directory with a config.yaml"):
        runs_on_cluster(tmp_path / "slurm", [])
    with pytest.raises(InputError, match="not a YAML file"):
        runs_on_cluster(profile(tmp_path, "a: [1"), [])
    with pytest.raises(InputError, match="must be a mapping"):
        runs_on_cluster(profile(tmp_path, "- a"), [])


def test_the_committed_profile_asks_for_a_partition():
    settings = YAML(typ="safe").load((PROFILE / "config.yaml").read_text())
    assert settings["executor"] == "slurm" and settings["default-resources"] == {"slurm_partition": ""}
    command = [sys.executable, "-m", "brite_lib.run", "params/micro.yaml", "--profile", "profiles/slurm"]
    result = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr == (
        "error: profiles/slurm/config.yaml: default-resources: slurm_partition: names no partition, and a job without one may land "
        "anywhere; sinfo lists those of your cluster\n"
    )
