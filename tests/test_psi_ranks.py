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


def assert_same_selection(directory: Path, other: Path) -> None:
    one, two = (json.loads((path / "latro.json").read_text()) for path in (directory, other))
    assert one == two and [bool(line) for line in one["lines"]] == [True, False, True, False, True]
    kept, others = (torch.load(path / "best.pt") for path in (directory, other))
    assert kept["step"] == one["kept"][0] and kept["weights"].keys() == others["weights"].keys()
    for name, weights in kept["weights"].items():
        torch.testing.assert_close(weights, others["weights"][name], rtol=0, atol=1e-4)


@pytest.mark.parametrize(("mode", "cases"), [("whole", psi_ranks.CASES), ("sharded", psi_ranks.SHARDED_CASES)])
def test_two_processes_follow_the_trajectory_of_one(mode, cases, tmp_path):
    one, two, back = tmp_path / "one", tmp_path / "two", tmp_path / "back"
    psi_ranks.train_all(one, cases)
    psi_ranks.train(psi_ranks.MIXED, one / "mixed", torch.bfloat16)
    continued = {case: cases[case] for case in cases if case in psi_ranks.CONTINUED}
    for case in continued:
        (two / f"{case}_begun").mkdir(parents=True)
        shutil.copy(one / f"{case}_half.pt", two / f"{case}_begun" / "state.pt")
    result = in_two_processes(two, mode)
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stdout.splitlines() if line.startswith("reward of unfinished rationales")]
    assert len(told) == 2, "by the main process, of both runs that had no constant yet"
    half = psi_ranks.STEPS // 2 + 1
    for case in cases:
        assert_same_trajectory(one / case, two / case)
    for case, settings in continued.items():
        assert_same_trajectory(one / case, two / f"{case}_begun", half)
        (back / case).mkdir(parents=True)
        shutil.copy(two / f"{case}_half.pt", back / case / "state.pt")
        psi_ranks.train(settings, back / case)
        assert_same_trajectory(one / case, back / case, half)
    assert_same_trajectory(one / "mixed", two / "mixed")
    assert_same_selection(one, two)


def test_an_error_in_one_process_ends_all_of_them(tmp_path):
    result = in_two_processes(tmp_path, "failing")
    assert result.returncode != 0 and "ValueError: this judge is broken" in result.stderr
    assert not (tmp_path / "state.pt").exists()


def test_a_run_at_its_last_step_is_resumed_without_the_optimisers_state(tmp_path):
    psi_ranks.train(psi_ranks.CASES["gae_lora"], tmp_path)
    state = torch.load(tmp_path / "state.pt")
    torch.save({**state, "optimizer": None, "scheduler": None}, tmp_path / "state.pt")
    lines = []
    trainer = psi_ranks.make_trainer(psi_ranks.CASES["gae_lora"], tmp_path / "state.pt", lines)
    assert trainer.resume() == psi_ranks.STEPS
    torch.testing.assert_close(law(trainer.train()), law(load_policy(tmp_path / "model")), rtol=0, atol=1e-5)
    assert lines == []
