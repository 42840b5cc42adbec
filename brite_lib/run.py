"""Run a whole experiment: ``python -m brite_lib.run params/tiny.yaml [--plan] [--cores N]`` (``make run``).

Validates the file, takes the run's lock, lets Snakemake run the notebooks that are missing or out of date, and
prints the result table. It can be killed at any moment; the same command goes on where it stopped.
Options that this command does not know (``--dry-run``, ``--forceall``) go to Snakemake.
"""

import argparse
import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from brite_lib.cluster import read_options, runs_on_cluster
from brite_lib.errors import InputError
from brite_lib.files import atomic_write_text, is_full, remove_temporary
from brite_lib.fingerprint import code_fingerprint
from brite_lib.harness import require_harness
from brite_lib.lifeline import end_processes
from brite_lib.params import (
    PROJECT_ROOT,
    DrrParams,
    EvalParams,
    Experiment,
    ModelStageParams,
    TrainingStageParams,
    check_engine,
    is_path,
    is_toy,
    load_experiment,
    resolve_path,
)
from brite_lib.stages import StageSpec, plan, run_directory

RESULT_COLUMNS = ("method", "benchmark", "metric", "k", "mean", "ci_low", "ci_high", "n_problems", "seconds")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit code (0 done, 1 a stage failed, 2 bad input or the run is taken, 130 interrupted)."""
    about = "Run a whole experiment. Options that are not listed here, such as --dry-run and --forceall, go to Snakemake."
    parser = argparse.ArgumentParser(prog="python -m brite_lib.run", description=about)
    parser.add_argument("experiment", type=Path, help="params/<experiment>.yaml")
    parser.add_argument("--plan", action="store_true", help="show the stages and a cost estimate, run nothing")
    parser.add_argument("--profile", type=Path, help="Snakemake profile of a cluster: profiles/slurm")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 2, help="stages at once (default: all cores)")
    measured = "with --plan: generated and trained; default: as measured on finished stages"
    parser.add_argument("--tokens-per-second", type=float, help=measured)
    parser.add_argument("--gpu-memory-gib", type=float, help="with --plan: of the GPU to plan for; default: of the one found")
    parser.add_argument("--gpus", type=int, help="with --plan: how many of them; default: those found, or as many as the stages ask for")
    arguments, snakemake_options = parser.parse_known_args(argv)
    for name in ("cores", "tokens_per_second", "gpu_memory_gib", "gpus"):
        if (value := getattr(arguments, name)) is not None and not value > 0:
            parser.error(f"--{name.replace('_', '-')}: must be above 0, found {value}")
    try:
        experiment = load_experiment(arguments.experiment)
        stages = plan(experiment, where=str(arguments.experiment))
        if not arguments.plan:
            for spec in stages:
                for parameter in ("engine", "rollout_engine"):
                    check_engine(getattr(spec.params, parameter, "hf"), parameter)
        on_cluster = runs_on_cluster(arguments.profile, snakemake_options, submits=not read_options(snakemake_options).only_says)
        if not (arguments.plan or on_cluster):
            check_processes(stages)
        check_data(stages, hub=not arguments.plan)
        for problems in shared_problems(stages):
            print(f"warning: {problems}: tested on the problems that are trained on; a directory has splits, or set test_data")
        if arguments.plan:
            print_plan(experiment, stages, arguments.tokens_per_second, arguments.gpu_memory_gib, arguments.gpus)
            return 0
        if experiment.harness_tasks:
            require_harness()
        if arguments.profile:
            snakemake_options += ["--profile", str(arguments.profile.absolute())]
        run_dir = run_directory(experiment)
        with lock(run_dir):
            return run(arguments.experiment, experiment, stages, run_dir, arguments.cores, snakemake_options, on_cluster)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def check_processes(stages: list[StageSpec]) -> None:
    """Refuse stages that this machine has too few GPUs or cores for, before any stage runs.

    Raises:
        InputError: one sentence naming the stage.
    """
    for spec in stages:
        if isinstance(spec.params, TrainingStageParams) and spec.params.launched:
            from brite_lib.launch import number_of_processes

            try:
                number_of_processes(spec.params)
            except InputError as error:
                raise InputError(f"{spec.key}: {error}") from None


def check_data(stages: list[StageSpec], hub: bool = False) -> None:
    """Read every problem set, of the hub only if asked to, so that a bad row or a missing login is not found after hours of training.

    Raises:
        InputError: one sentence naming the file and the row.
    """
    from brite_lib.problems import has_split, load_problems

    with_data = [spec.params for spec in stages if isinstance(spec.params, ModelStageParams)]
    read = [(params.data, params.split, params.limit) for params in with_data]
    read += [(params.test_data, params.test_split, params.test_limit) for params in with_data if isinstance(params, DrrParams)]
    for data, split, limit in dict.fromkeys(read):
        if hub or is_toy(data) or is_path(data):
            load_problems(data, split, limit)
    for data in dict.fromkeys(params.data for params in with_data if getattr(params, "monitor_problems", 0)):
        if is_path(data) and has_split(data, "validation"):
            load_problems(data, "validation")


def shared_problems(stages: list[StageSpec]) -> list[str]:
    """Where problems to train on are those to test on; a single file has no splits, and is taken for any."""

    def source(params: ModelStageParams) -> str:
        return params.data if resolve_path(params.data).is_file() else f"{params.data} ({params.split})"

    trained = {source(spec.params) for spec in stages if isinstance(spec.params, TrainingStageParams)}
    return sorted(trained & {source(spec.params) for spec in stages if isinstance(spec.params, EvalParams)})


def run(
    path: Path,
    experiment: Experiment,
    stages: list[StageSpec],
    run_dir: Path,
    cores: int,
    snakemake_options: list[str],
    on_cluster: bool = False,
) -> int:
    """Run the stages with Snakemake; the caller holds the lock."""
    end_processes(run_dir)  # of a run that was killed a moment ago; we hold its lock, so nobody needs them
    remove_temporary(run_dir)
    done = sum((spec.directory / "stage.json").exists() for spec in stages)
    print(f"{experiment.name}: {len(stages)} stages, {done} done before; log: {_shown(run_dir / 'snakemake.log')}", flush=True)
    only_says = read_options(snakemake_options).only_says
    if not only_says:
        atomic_write_text(run_dir / "stages.json", json.dumps([spec.key for spec in stages], indent=0) + "\n")
        left = sorted({path.parent for path in run_dir.glob("seed*/*/stage.json")} - {spec.directory for spec in stages})
        if left:
            names = ", ".join(path.relative_to(run_dir).as_posix() for path in left)
            print(f"note: no stages of this experiment now, so they are kept but not reported: {names}", flush=True)
    started = time.time()
    try:
        code = _snakemake(path, run_dir, cores, snakemake_options, on_cluster)
    except KeyboardInterrupt:
        print(f"interrupted; run the same command again to go on ({_shown(run_dir)})", file=sys.stderr)
        return 130
    finally:
        end_processes(run_dir)
    if code:
        print_failure(stages, run_dir, started, code)
        return 1
    if only_says:
        return 0
    if experiment.methods:
        print_results(run_dir / "results.csv")
    made = [run_dir / "report.html"] if experiment.methods else [spec.directory / "notebook.ipynb" for spec in stages]
    print(f"\nreport: {', '.join(map(_shown, made))}   ({time.time() - started:.0f} s)")
    return 0


@contextmanager
def lock(run_dir: Path) -> Iterator[None]:
    """The run's lock: an OS lock on ``outputs/<run>/.lock``, so it dies with its holder and can't be left behind.

    Raises:
        InputError: one sentence that says who holds it, or that the directory cannot be written to.
    """
    with _open_lock(run_dir) as file:
        if is_full(run_dir):
            raise InputError(f"{_shown(run_dir)}: the disk is full; free some space")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise InputError(f"{_shown(run_dir)}: is being run by {file.read().strip()}; wait for it or stop it") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename} since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        file.flush()
        yield


def _open_lock(run_dir: Path) -> TextIO:
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        return open(run_dir / ".lock", "a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"{_shown(run_dir)}: cannot be written to ({error.strerror})") from None


def print_plan(
    experiment: Experiment,
    stages: list[StageSpec],
    tokens_per_second: float | None = None,
    gpu_memory_gib: float | None = None,
    gpus: int | None = None,
) -> None:
    """The stages, what they read, upper bounds of their cost and their memory on a GPU; of finished stages also what they took.

    Raises:
        InputError: one sentence, if a stage can't fit on the GPU found or stated, or asks for more GPUs than there are.
    """
    from brite_lib import forecast

    gpu, found = (forecast.GIB * gpu_memory_gib, None) if gpu_memory_gib else forecast.gpus_found()
    forecaster = forecast.Forecaster(experiment, stages, tokens_per_second, gpu, gpus or found)
    rows = [("stage", "notebook", "reads", "state", "tokens generated ≤", "trained ≤", "FLOPs ≤", "seconds", "GiB")]
    predicted = {spec.key: forecaster.of(spec) for spec in stages}
    known = [bounds for bounds in predicted.values() if bounds is not None]
    for spec in stages:
        cells = forecast.bound_cells(predicted[spec.key])
        rows.append((spec.key, spec.notebook.name, ", ".join(spec.inputs), _state(spec), *cells))
    rows.append(("total", "", "", "", *forecast.bound_cells(forecast.total(known))))
    print_table(rows)
    if gpu and forecast.total(known).seconds:
        print(f"GPU-hours: {sum((bounds.seconds or 0) * bounds.processes for bounds in known) / 3600:,.1f}")
    if len(known) < len(stages):
        forecaster.notes.append(
            "stages marked ? are not in the total; set train_limit and test_limit where the number of problems is not known"
        )
    done = [(spec, predicted[spec.key]) for spec in stages if _state(spec) in ("done", "done with other code")]
    for table in (forecast.memory_rows({spec.kind: predicted[spec.key] for spec in stages}), forecast.actual_rows(done)):
        if table:
            print()
            print_table(table)
    for note in forecaster.notes:
        print(f"note: {note}")
    if experiment.methods:
        print(f"then notebooks/06_report.ipynb writes {_shown(run_directory(experiment) / 'report.html')}")


def print_results(path: Path) -> None:
    """The result table of a finished run."""
    with open(path, encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    columns = [name for name in RESULT_COLUMNS if table and name in table[0]]
    print()
    print_table([columns, *([_short(row[name]) for name in columns] for row in table)])


def print_failure(stages: list[StageSpec], run_dir: Path, started: float, code: int) -> None:
    """Which stage failed, why, and where its notebook is."""
    found = False
    for name, directory, notebook in [*((s.key, s.directory, "notebook.ipynb") for s in stages), ("report", run_dir, "report.ipynb")]:
        error, partial = directory / "error.txt", (directory / notebook).with_suffix(".partial.ipynb")
        if _newer(error, started):
            sentence = error.read_text(encoding="utf-8").strip()
            print(f"{name} failed: {sentence}\n  notebook: {_shown(directory / notebook)}", file=sys.stderr)
        elif _newer(partial, started):
            print(f"{name} was killed before it could finish (out of memory?)\n  notebook so far: {_shown(partial)}", file=sys.stderr)
        else:
            continue
        found = True
    if is_full(run_dir):
        print(f"{_shown(run_dir)}: the disk is full; free some space", file=sys.stderr)
    elif not found:
        log = (run_dir / "snakemake.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
        print(*(log[-15:] or [f"Snakemake ended with code {code}"]), sep="\n", file=sys.stderr)
    print("run the same command again to go on", file=sys.stderr)


def print_table(rows: list) -> None:
    """Columns of text, aligned."""
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))] if rows[0] else []
    for row in rows:
        print("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _snakemake(path: Path, run_dir: Path, cores: int, options: list[str], on_cluster: bool) -> int:
    command = [sys.executable, "-m", "snakemake", "--snakefile", PROJECT_ROOT / "Snakefile", "--directory", run_dir]
    command += ["--config", f"experiment={path.absolute()}", f"launched_from={Path.cwd()}"]
    command += ["--cores", cores, "--rerun-incomplete", "--rerun-triggers", "mtime", "params", "input", "--scheduler", "greedy"]
    command += ["--nolock"]  # the run's own lock is held; Snakemake's would survive a SIGKILL
    if not on_cluster and any(Path("/dev").glob("nvidia[0-9]*")):
        command += ["--resources", "gpu=1"]  # one stage at a time on the GPU
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "BRITE_BATCH": "1",
        "BRITE_RUN_DIR": str(run_dir),
    }
    if not on_cluster:  # a cluster's jobs are not our children
        environment["BRITE_LAUNCHER_PID"] = str(os.getpid())
    for name in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(name) != signal.SIG_IGN:  # nohup
            signal.signal(name, _interrupt)
    with open(run_dir / "snakemake.log", "w", encoding="utf-8") as log:
        # Its own session: Ctrl-C reaches this process alone, which then ends the others.
        process = subprocess.Popen(list(map(str, command + options)), stderr=log, env=environment, start_new_session=True)
        return process.wait()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _state(spec: StageSpec) -> str:
    path = spec.directory / "stage.json"
    if not path.exists():
        return ""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "not readable"
    if record.get("params") != spec.params.model_dump(mode="json"):
        return "done with other parameters"
    return "done" if record.get("code") in (None, code_fingerprint(spec.notebook)) else "done with other code"


def _newer(path: Path, moment: float) -> bool:
    return path.exists() and path.stat().st_mtime >= moment


def _short(cell: str) -> str:
    try:
        return f"{float(cell):.4g}"
    except ValueError:
        return cell


def _shown(path: Path) -> str:
    return os.path.relpath(path) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    sys.exit(main())
