"""Starting a run as a user does, finding its processes, and killing them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

VICTIMS = {"snakemake": ["-m", "snakemake"], "papermill": ["-m", "brite_lib.execute"], "kernel": ["-m", "ipykernel_launcher"]}


def start(project: Path, experiment: Path, *options: str) -> subprocess.Popen:
    """``python -m brite_lib.run`` with the library of ``project``, its output in pipes."""
    command = [sys.executable, "-m", "brite_lib.run", str(experiment), *options]
    environment = os.environ | {"PYTHONPATH": str(project)}
    return subprocess.Popen(command, cwd=project, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def processes(run_dir: Path) -> list[psutil.Process]:
    """The living processes of a run, its launcher excepted."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("BRITE_RUN_DIR") == str(run_dir) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def victim(run_dir: Path, kind: str, stage: str) -> psutil.Process:
    """The Snakemake process of a run, or the papermill process or kernel of one of its stages."""
    for process in processes(run_dir):
        command = process.cmdline()
        if command[1:3] != VICTIMS[kind]:
            continue
        papermill = process if kind == "papermill" else process.parent()
        if kind == "snakemake" or any(f"{stage}/notebook.ipynb" in argument for argument in papermill.cmdline()):
            return process
    raise LookupError(f"{run_dir.name} has no {kind} of {stage}: {[process.cmdline()[:4] for process in processes(run_dir)]}")


def kinds(run_dir: Path) -> set[str]:
    """Which of Snakemake, papermill and kernel run now."""
    commands = []
    for process in processes(run_dir):
        with suppress(psutil.Error):  # it may end between the two looks
            commands.append(process.cmdline()[1:3])
    return {kind for kind, command in VICTIMS.items() if command in commands}


def lines(path: Path) -> int:
    """How many lines a file has; 0 if there is none."""
    return path.read_text().count("\n") if path.exists() else 0


def log_of(run_dir: Path) -> str:
    """What Snakemake and the kernels wrote last."""
    path = run_dir / "snakemake.log"
    return path.read_text()[-5000:] if path.exists() else ""


def wait_until(condition: Callable[[], bool], what: str, timeout: float) -> None:
    """Poll ``condition``."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout} s in vain until {what}"
        time.sleep(0.05)


def kill_in_the_middle(project: Path, experiment: Path, run_dir: Path, kind: str, stage: str, timeout: float, save_steps: int = 1) -> None:
    """Start the run, SIGKILL one of its processes when ``stage`` has made some progress, and check that nothing is left.

    Progress is one checkpoint more than before, and a step beyond it that will be lost.
    """
    metrics, record = run_dir / stage / "metrics.jsonl", run_dir / stage / "stage.json"
    # A resumed stage first cuts its metrics back to its checkpoint, so the count may start below this.
    enough = (lines(metrics) // save_steps + 1) * save_steps + 1
    run = start(project, experiment)

    def in_the_middle() -> bool:
        assert run.poll() is None, f"the run ended before {stage} was in its middle: {run.communicate()}\n{log_of(run_dir)}"
        return lines(metrics) >= enough

    wait_until(in_the_middle, f"{stage} makes progress", timeout)
    victim(run_dir, kind, stage).kill()
    output, errors = run.communicate(timeout=60)
    assert run.returncode == 1, (output, errors)
    assert "run the same command again" in errors
    assert not processes(run_dir)
    assert not record.exists(), f"{stage} finished although its {kind} was killed"
