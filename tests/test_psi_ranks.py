"""ψ-PPO in two processes, with whole weights and with shards, follows the trajectory of one."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import enumerable
import psi_ranks
import pytest
import torch

from brite_lib.models import load_policy
from brite_lib.params import PROJECT_ROOT


def in_two_processes(directory: Path, mode: str) -> subprocess.CompletedProcess:
    directory.mkdir(exist_ok=True)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", psi_ranks.__file__, directory, mode]
    paths = os.pathsep.join([str(PROJECT_ROOT), str(Path(psi_ranks.__file__).parent)])
    environment = os.environ | {"PYTHONPATH": paths, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "BRITE_BATCH": "1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300)


def logged(directory: Path) -> dict:
    return json.loads((directory / "logged.json").read_text())


def law(model: torch.nn.Module) -> torch.Tensor:
    rules = enumerable.template()
    return enumerable.law(model, rules.prompt_ids("aba"), enumerable.completions(rules))


def assert_same_trajectory(directory: Path, other: Path, first_step: int = 1, tolerance: float = 1e-4) -> None:
    """All metrics of all steps with a mean residual ≤ ``tolerance``, the same counts, and the same law of the trained policy."""
    one, two = logged(directory), logged(other)
    lines, others = one["lines"][first_step - 1 :], two["lines"]
    assert [line["step"] for line in others] == list(range(first_step, psi_ranks.STEPS + 1)) == [line["step"] for line in lines]
    assert lines[0].keys() == others[0].keys() and {"elbo", "loss", "grad_norm", "clipfrac", "approx_kl"} < lines[0].keys()
    for name in lines[0]:
        residual = sum(abs(line[name] - other[name]) for line, other in zip(lines, others, strict=True)) / len(lines)
        assert residual <= tolerance, f"{name}: {residual:.2e}"
    assert one["counts"] == two["counts"]
    assert one["unfinished_reward"] == pytest.approx(two["unfinished_reward"], abs=1e-5)
    rules = enumerable.template()
    laws = [
        enumerable.law(load_policy(path / "model"), rules.prompt_ids("aba"), enumerable.completions(rules)) for path in (directory, other)
    ]
    torch.testing.assert_close(*laws, rtol=0, atol=10 * tolerance)
    start = enumerable.law(enumerable.model(3, scale=4.0), rules.prompt_ids("aba"), enumerable.completions(rules))
    assert (laws[0] - start).abs().max() > 0.1, "nothing was learned that could differ"


def test_two_processes_follow_the_trajectory_of_one(tmp_path):
    psi_ranks.train_all(tmp_path / "one", psi_ranks.CASES)
    for case in psi_ranks.CASES:
        (tmp_path / "two" / f"{case}_begun").mkdir(parents=True)
        shutil.copy(tmp_path / "one" / f"{case}_half.pt", tmp_path / "two" / f"{case}_begun" / "state.pt")
    result = in_two_processes(tmp_path / "two", "whole")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("reward of unfinished rationales") == 2  # of the main process, of both runs that need it
    for case, settings in psi_ranks.CASES.items():
        assert_same_trajectory(tmp_path / "one" / case, tmp_path / "two" / case)
        assert_same_trajectory(tmp_path / "one" / case, tmp_path / "two" / f"{case}_begun", psi_ranks.STEPS // 2 + 1)
        (tmp_path / "back" / case).mkdir(parents=True)
        shutil.copy(tmp_path / "two" / f"{case}_half.pt", tmp_path / "back" / case / "state.pt")
        psi_ranks.train(settings, tmp_path / "back" / case)
        assert_same_trajectory(tmp_path / "one" / case, tmp_path / "back" / case, psi_ranks.STEPS // 2 + 1)


def test_shards_follow_the_trajectory_of_whole_weights(tmp_path):
    psi_ranks.train_all(tmp_path / "one", psi_ranks.SHARDED_CASES)
    for case in psi_ranks.SHARDED_CASES:
        (tmp_path / "two" / f"{case}_begun").mkdir(parents=True)
        shutil.copy(tmp_path / "one" / f"{case}_half.pt", tmp_path / "two" / f"{case}_begun" / "state.pt")
    result = in_two_processes(tmp_path / "two", "sharded")
    assert result.returncode == 0, result.stderr
    for case, settings in psi_ranks.SHARDED_CASES.items():
        assert_same_trajectory(tmp_path / "one" / case, tmp_path / "two" / case)
        assert_same_trajectory(tmp_path / "one" / case, tmp_path / "two" / f"{case}_begun", psi_ranks.STEPS // 2 + 1)
        (tmp_path / "back" / case).mkdir(parents=True)
        shutil.copy(tmp_path / "two" / f"{case}_half.pt", tmp_path / "back" / case / "state.pt")
        psi_ranks.train(settings, tmp_path / "back" / case)
        assert_same_trajectory(tmp_path / "one" / case, tmp_path / "back" / case, psi_ranks.STEPS // 2 + 1)
