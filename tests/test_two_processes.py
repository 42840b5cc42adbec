"""SFT and DPO in two processes follow the trajectory of one, and continue each other's checkpoints."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import two_ranks

from brite_lib.checkpointing import resume_step
from brite_lib.params import PROJECT_ROOT


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("one")
    two_ranks.train_all(directory)
    return directory


@pytest.fixture(scope="module")
def two(tmp_path_factory, one) -> Path:
    """What two processes leave; they also finish what the one was interrupted in."""
    directory = tmp_path_factory.mktemp("two")
    shutil.copytree(one / "interrupted_here", directory / "interrupted_elsewhere")
    assert resume_step(directory / "interrupted_elsewhere") == 2
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", Path(two_ranks.__file__), directory]
    paths = os.pathsep.join([str(PROJECT_ROOT), str(Path(two_ranks.__file__).parent)])
    result = subprocess.run([sys.executable, *command], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return directory


def logged(directory: Path) -> list[dict[str, float]]:
    return json.loads((directory / "logged.json").read_text())


def assert_same(directory: Path, other: Path) -> None:
    weights, others = (torch.load(path / "weights.pt") for path in (directory, other))
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_two_processes_follow_the_trajectory_of_one(case, one, two):
    lines, others = logged(one / case), logged(two / case)
    assert len(lines) == 6 and [line["step"] for line in lines] == [line["step"] for line in others]
    compared = ("loss", "grad_norm", "learning_rate", *(name for name in lines[0] if name.startswith(("rewards/", "logps/"))))
    assert len(compared) == (9 if case.startswith("dpo") else 3)
    for name in compared:
        residual = sum(abs(line[name] - other[name]) for line, other in zip(lines, others, strict=True)) / len(lines)
        assert residual < 1e-5, name
    assert_same(one / case, two / case)


def test_one_process_finishes_what_two_began_and_two_what_one_began(one, two, tmp_path):
    shutil.copytree(two / "interrupted_here", tmp_path / "here")
    two_ranks.train("sft", tmp_path / "here")
    for directory in (tmp_path / "here", two / "interrupted_elsewhere"):
        assert [line["step"] for line in logged(directory)] == [3, 4, 5, 6]
        assert_same(directory, one / "sft")


def test_the_notebooks_trainer_finds_nothing_left_to_do_and_reads_the_weights_only(two, tmp_path):
    shutil.copytree(two / "dpo_lora", tmp_path / "dpo_lora")
    (tmp_path / "dpo_lora/checkpoint-6/optimizer.pt").unlink()
    two_ranks.train("dpo_lora", tmp_path / "dpo_lora")
    assert logged(tmp_path / "dpo_lora") == []
    assert_same(tmp_path / "dpo_lora", two / "dpo_lora")
