"""A run killed in the middle of ψ-PPO, of θ-SFT and of DPO, each time another process, ends like a run that was never killed.

That is determinism too: two runs of the same seed, stopped at different moments or never, write the same numbers, weights and tables.
The real notebooks on the embedded model. The machinery alone, on pretended notebooks: test_run.py.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from run_processes import kill_in_the_middle, processes, start

from brite_lib.files import atomic_write_text
from brite_lib.lifeline import end_processes
from brite_lib.params import PROJECT_ROOT, load_experiment
from brite_lib.records import read_metrics, read_record
from brite_lib.stages import plan, run_directory

TIMES = ("seconds", "gpu_hours")
DPO = {"samples": 4, "epochs": 8, "train_batch_size": 8, "save_steps": 8}
CASES = {  # changes to params/micro.yaml, the stages to be killed in, and what is killed in each
    "round1": ({"methods": ["brite"]}, ("brite_psi", "brite"), ("snakemake", "papermill", "kernel")),
    "round2": ({"methods": ["brite"], "rounds": 2}, ("brite_psi_round2", "brite_round2"), ("kernel",)),
    "dpo2": ({"methods": ["iterative_dpo"], "dpo_iterations": 2, "dpo": DPO}, ("iterative_dpo",), ("papermill",)),
}


def micro(folder: Path, name: str, changes: dict[str, Any]) -> Path:
    """params/micro.yaml with changes, under another name."""
    yaml = YAML()
    values = yaml.load((PROJECT_ROOT / "params/micro.yaml").read_text())
    values.update(changes, name=name)
    path = folder / f"{name}.yaml"
    yaml.dump(values, path)
    return path


@pytest.fixture
def experiments(case, tmp_path):
    """Two experiment files, the same apart from their names, and their clean run directories."""
    paths = [micro(tmp_path, f"test-{name}-{case}", CASES[case][0]) for name in ("killed", "undisturbed")]
    directories = [run_directory(load_experiment(path)) for path in paths]
    for directory in directories:
        shutil.rmtree(directory, ignore_errors=True)
    yield list(zip(paths, directories, strict=True))
    for directory in directories:
        end_processes(directory)
        shutil.rmtree(directory, ignore_errors=True)


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_like_one_that_was_not_and_the_same_seed_gives_the_same_numbers(case, experiments):
    (killed, killed_dir), (undisturbed, undisturbed_dir) = experiments
    undisturbed_run = start(PROJECT_ROOT, undisturbed)  # meanwhile
    _, names, kinds = CASES[case]
    stages = {spec.key: spec.params.save_steps for spec in plan(load_experiment(killed)) if spec.key.removeprefix("seed0/") in names}
    for stage, save_steps in stages.items():
        for kind in kinds:
            kill_in_the_middle(PROJECT_ROOT, killed, killed_dir, kind, stage, 600, save_steps)
            mark(killed_dir / stage / "metrics.jsonl")
    for run in (start(PROJECT_ROOT, killed), undisturbed_run):
        output, errors = run.communicate(timeout=600)
        assert run.returncode == 0, (output, errors)
    assert not processes(killed_dir)

    assert results(killed_dir) == results(undisturbed_dir) != []
    assert len(stages) == len(names)
    for stage, save_steps in stages.items():
        assert_resumed(killed_dir / stage / "metrics.jsonl", save_steps, kills=len(kinds))
        assert logged(killed_dir / stage / "metrics.jsonl") == logged(undisturbed_dir / stage / "metrics.jsonl")
        one, other = (read_record(directory / stage / "stage.json") for directory in (killed_dir, undisturbed_dir))
        assert outputs(one) == outputs(other)
        for name in ("tokens_generated", "tokens_trained", "flops", "metrics"):
            assert one[name] == other[name]
        assert "model" in outputs(one)  # bit by bit


def mark(metrics: Path) -> None:
    """Mark what a killed stage logged: one that resumes keeps the lines up to its checkpoint, one that starts over drops all."""
    lines = [line | {"marked": True} for line in read_metrics(metrics)]
    atomic_write_text(metrics, "".join(json.dumps(line) + "\n" for line in lines))


def assert_resumed(metrics: Path, save_steps: int, kills: int) -> None:
    """Every kill came after one more checkpoint, and none of them was thrown away."""
    lines = read_metrics(metrics)
    marked = [line["step"] for line in lines if "marked" in line]
    assert marked == list(range(1, len(marked) + 1))
    assert len(marked) % save_steps == 0
    assert kills * save_steps <= len(marked) < len(lines)


def logged(metrics: Path) -> list[dict[str, Any]]:
    """The logged lines, without the mark and without TRL's count of tokens, which starts over when it resumes."""
    return [{key: value for key, value in line.items() if key not in ("marked", "num_tokens")} for line in read_metrics(metrics)]


def results(run_dir: Path) -> list[dict[str, Any]]:
    """results.json apart from times."""
    rows = json.loads((run_dir / "results.json").read_text())
    return [{key: value for key, value in row.items() if key not in TIMES} for row in rows]


def outputs(record: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of a stage's outputs by name, without the run's directory."""
    return {Path(path).name: digest for path, digest in record["outputs"].items()}
