"""SFT and DPO in two processes, with whole models (DDP) or shards (FSDP2), follow the trajectory of one, and leave what one can load."""

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
from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT
from brite_lib.shared_batches import share


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    """What one process leaves."""
    directory = tmp_path_factory.mktemp("one")
    two_ranks.train_all(directory)
    assert resume_step(directory / "interrupted") == 2
    return directory


@pytest.fixture(scope="module", params=["cpu2", "fsdp2"])
def two(request, tmp_path_factory, one) -> Path:
    """What two processes leave; they also finish what the one was interrupted in."""
    directory = tmp_path_factory.mktemp(request.param)
    config = PROJECT_ROOT / "params/accelerate" / f"{request.param}.yaml"
    options = ["--config_file", config, "--num_processes", "2", "--main_process_port", "0"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, Path(two_ranks.__file__), directory, one]
    paths = os.pathsep.join([str(PROJECT_ROOT), str(Path(two_ranks.__file__).parent)])
    result = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert bool(list(directory.glob("sft/*/optimizer.bin"))) == (request.param == "fsdp2"), "FSDP's name for it"
    return directory


def logged(directory: Path) -> list[dict[str, float]]:
    return json.loads((directory / "logged.json").read_text())


def assert_same_weights(directory: Path, other: Path, case: str, copy: Path) -> None:
    """One process finds nothing left to do in ``directory``, without a look at the optimiser, and has the weights of ``other``."""
    shutil.copytree(directory, copy)
    for path in copy.glob("*/optimizer.*"):
        path.unlink()
    two_ranks.train(case, copy)
    assert logged(copy) == []
    weights, others = (torch.load(path / "weights.pt") for path in (copy, other))
    assert weights.keys() == others.keys()
    for name in weights:
        torch.testing.assert_close(weights[name], others[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("total", "most", "expected"), [(32, 32, (32, 1)), (32, 8, (8, 4)), (32, 24, (16, 2)), (8, 32, (8, 1))])
def test_micro_batches_make_the_whole_batch(total, most, expected):
    assert share(total, most) == expected


@pytest.mark.parametrize("case", ["sft", "dpo"])
def test_micro_batches_change_nothing_also_where_an_epoch_ends(case, one, tmp_path, monkeypatch):
    cls, settings, count = two_ranks.CASES[case]
    monkeypatch.setitem(two_ranks.CASES, case, (cls, settings | {"micro_batch_size": 1}, count))
    two_ranks.train(case, tmp_path)
    for line, other in zip(logged(one / case), logged(tmp_path), strict=True):
        for name in ("loss", "grad_norm", *(name for name in line if name.startswith(("rewards/", "logps/")))):
            assert line[name] == pytest.approx(other[name], abs=1e-5), name


@pytest.mark.parametrize("case", two_ranks.CASES)
def test_two_processes_follow_the_trajectory_of_one(case, one, two, tmp_path):
    lines, others = logged(one / case), logged(two / case)
    assert len(lines) == 6 and [line["step"] for line in lines] == [line["step"] for line in others]
    compared = ("loss", "grad_norm", "learning_rate", *(name for name in lines[0] if name.startswith(("rewards/", "logps/"))))
    assert len(compared) == (9 if case.startswith("dpo") else 3)
    for name in compared:
        residual = sum(abs(line[name] - other[name]) for line, other in zip(lines, others, strict=True)) / len(lines)
        assert residual < 1e-5, name
    assert_same_weights(two / case, one / case, case, tmp_path / "copy")


def test_two_processes_finish_what_they_began(one, two, tmp_path):
    assert [line["step"] for line in logged(two / "resumed")] == [3, 4, 5, 6]
    assert_same_weights(two / "resumed", one / "sft", "sft", tmp_path / "copy")


def test_one_process_finishes_what_two_began_and_two_what_one_began_unless_one_has_shards(one, two, tmp_path):
    shutil.copytree(two / "interrupted", tmp_path / "begun_by_two")
    if two.name.startswith("fsdp2"):
        with pytest.raises(InputError, match="checkpoint-2: was made with FSDP and can't be continued without it; take"):
            two_ranks.train("sft", tmp_path / "begun_by_two")
        assert "checkpoint-2: was made without FSDP and can't be continued with it" in (two / "taken_over/refused.txt").read_text()
        return
    two_ranks.train("sft", tmp_path / "begun_by_two")
    for name, directory in (("one", tmp_path / "begun_by_two"), ("two", two / "taken_over")):
        assert [line["step"] for line in logged(directory)] == [3, 4, 5, 6]
        assert_same_weights(directory, one / "sft", "sft", tmp_path / name)
