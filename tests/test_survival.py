"""A whole experiment, killed twenty times at random moments, any process, also while it writes: nothing is lost, nothing is left behind.

What each kind of process does to a training stage, moment by moment: test_kill_resume.py.
"""

import random
import shutil
import time
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from run_processes import processes, start, wait_until
from test_kill_resume import outputs, results

from brite_lib.lifeline import end_processes
from brite_lib.params import PROJECT_ROOT, load_experiment
from brite_lib.records import read_record
from brite_lib.stages import plan, run_directory

KILLS = 20
SECONDS = (2.0, 16.0)  # after the start of a run: from the import of Snakemake to the third stage


@pytest.fixture
def experiments(tmp_path):
    """params/micro.yaml twice, under names of their own, and the clean run directories."""
    found = []
    for name in ("test-survival", "test-survival-undisturbed"):
        values = YAML().load((PROJECT_ROOT / "params/micro.yaml").read_text()) | {"name": name}
        YAML().dump(values, tmp_path / f"{name}.yaml")
        directory = run_directory(load_experiment(tmp_path / f"{name}.yaml"))
        shutil.rmtree(directory, ignore_errors=True)
        found.append((tmp_path / f"{name}.yaml", directory))
    yield found
    for _, directory in found:
        end_processes(directory)
        shutil.rmtree(directory, ignore_errors=True)


def test_twenty_kills_at_random_moments(experiments):
    (killed, killed_dir), (undisturbed, undisturbed_dir) = experiments
    undisturbed_run = start(PROJECT_ROOT, undisturbed)
    rng = random.Random(0)
    for kill in range(KILLS):
        kill_somewhere(killed, killed_dir, rng, while_writing=kill % 3 == 0)
    for run in (start(PROJECT_ROOT, killed), undisturbed_run):
        output, errors = run.communicate(timeout=900)
        assert run.returncode == 0, (output, errors)

    assert not processes(killed_dir)
    assert not list(killed_dir.rglob("*.tmp"))
    assert results(killed_dir) == results(undisturbed_dir) != []
    for spec in plan(load_experiment(killed)):
        one, other = (read_record(directory / spec.key / "stage.json") for directory in (killed_dir, undisturbed_dir))
        assert outputs(one) == outputs(other), spec.key
        assert one["metrics"] == other["metrics"], spec.key


def kill_somewhere(experiment: Path, run_dir: Path, rng: random.Random, while_writing: bool) -> None:
    """Start the run, SIGKILL one of its processes (the launcher is one) at a random moment, and see that the others end."""
    run = start(PROJECT_ROOT, experiment)
    moment = time.monotonic() + rng.uniform(*SECONDS)
    while time.monotonic() < moment and run.poll() is None:
        if while_writing and (temporary := next(run_dir.rglob("*.tmp"), None)):
            pid = int(temporary.name.split(".")[-2])  # files.py names its writer
            victims = [process for process in processes(run_dir) if process.pid == pid]
            break
        time.sleep(0.005)
    else:
        victims = [None, *sorted(processes(run_dir), key=lambda process: process.pid)]
    if run.poll() is not None:  # done before the moment came: there is work again
        rng.choice(sorted(run_dir.glob("seed0/*/stage.json"))).unlink()
    elif (victim := rng.choice(victims or [None])) is None:
        run.kill()
    else:
        victim.kill()
    run.communicate(timeout=600)  # Snakemake lets the stages that were not killed finish
    wait_until(lambda: not processes(run_dir), "every process of the killed run has ended", 30)
