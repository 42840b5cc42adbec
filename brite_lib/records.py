"""The record of a stage: what went in, what came out, what it cost (design section 6).

``stage.json`` is written last, so a stage without one did not finish. Files are known by their SHA-256: a stage
compares what it reads with what the stage upstream wrote.
"""

import importlib.metadata
import json
import math
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from brite_lib import costs, sandbox
from brite_lib.errors import InputError
from brite_lib.files import atomic_write_text, portable, sha256_of
from brite_lib.params import PROJECT_ROOT, StageParams, resolve_path

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "pyarrow", "math-verify")
SETTINGS_WITHOUT_EFFECT = (  # on what is learned
    *("output_dir", "stage", "device", "threads", "rollout_device", "rollout_memory", "batch_size", "save_steps"),
    *("processes", "accelerate_config", "gradient_checkpointing"),
)


class Stage:
    """One run of one notebook; made by :meth:`start` in the config cell, ended by :meth:`finish` in the last.

    Attributes:
        name: name of the stage.
        params: its validated parameters.
        dir: directory that all its files go to.
    """

    def __init__(self, name: str, params: StageParams, directory: Path):
        self.name, self.params, self.dir = name, params, directory
        self._inputs: dict[str, str] = {}
        self._cost = {"tokens_generated": 0, "tokens_trained": 0, "flops": 0.0, "seconds": 0.0}
        self._started, self._clock, self._spent = datetime.now(UTC), time.monotonic(), costs.spent()

    @classmethod
    def start(cls, name: str, params: StageParams) -> Self:
        """Prepare the process and the stage's directory.

        Makes ``params.output_dir`` (a relative one lies below the project), removes the record of an earlier run, sets
        the number of CPU threads and says why, seeds Python, NumPy and torch, and in a batch run ties this process's
        life to its ancestors'.

        Args:
            name: of the stage, unless ``params.stage`` gives it one of its own.
            params: the stage's parameters.

        Raises:
            InputError: if they ask for programs to be judged and nothing isolates those here.
        """
        if getattr(params, "answer_kind", "") == "code" and params.kind != "theta_sft":  # which judges nothing
            sandbox.prepare(params.program_seconds, params.i_understand_the_risk)
        stage = cls.join(name, params)
        stage.path("stage.json").unlink(missing_ok=True)
        stage.rewind(math.inf)  # drops a line that a killed run tore
        return stage

    @classmethod
    def join(cls, name: str, params: StageParams) -> Self:
        """:meth:`start` for a process that only trains, of a stage that another one has started and will finish."""
        if os.environ.get("BRITE_BATCH"):
            from brite_lib.lifeline import die_with_ancestors

            die_with_ancestors()
        own = params.stage != params.kind
        stage = cls(params.stage if own else name, params, PROJECT_ROOT / Path(params.output_dir).expanduser())
        stage.dir.mkdir(parents=True, exist_ok=True)
        _set_threads(params.threads)
        _seed(params.seed)
        return stage

    def path(self, name: str) -> Path:
        """A file or directory of this stage."""
        return self.dir / name

    def add_input(self, path: str | Path) -> Path:
        """Note a file or directory that the stage reads, and check it against the record of the stage that wrote it.

        Returns:
            the path to open.

        Raises:
            InputError: one sentence naming the file, if it is missing or not what was written.
        """
        found = resolve_path(path)
        self._inputs[portable(found)] = checked_digest(found)
        return found

    def add_model(self, name: str) -> None:
        """:meth:`add_input` for a model that may also be a hub name, which has no local file to check."""
        if resolve_path(name).is_dir():
            self.add_input(name)

    def checkpoints(self) -> Path:
        """The directory for checkpoints of this run; call it when all inputs are noted.

        Checkpoints of other parameters or other inputs are removed: an interrupted run may only go on with its own.
        """
        directory = self.path("checkpoint")
        settings = self.params.model_dump(mode="json", exclude=set(SETTINGS_WITHOUT_EFFECT))
        key = json.dumps({"params": settings, "inputs": self._inputs}, sort_keys=True)
        if directory.is_dir() and (not (directory / "made_with.json").is_file() or (directory / "made_with.json").read_text() != key):
            print(f"{directory}: checkpoints of other parameters or inputs are removed")
            shutil.rmtree(directory)
        directory.mkdir(exist_ok=True)
        atomic_write_text(directory / "made_with.json", key)
        return directory

    def log(self, step: int, **metrics: float) -> None:
        """Append one line to ``metrics.jsonl``."""
        line = json.dumps(for_json({"step": step, **metrics}))
        with self.path("metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")

    def rewind(self, step: float) -> None:
        """Drop the logged lines after ``step``, which a resumed run writes again (-1: all, when nothing is resumed)."""
        if not self.path("metrics.jsonl").exists():
            return
        kept = [line for line in read_metrics(self.path("metrics.jsonl")) if line["step"] <= step]
        atomic_write_text(self.path("metrics.jsonl"), "".join(json.dumps(line) + "\n" for line in kept))

    def count(self, tokens_generated: int = 0, tokens_trained: int = 0, flops: float = 0.0, seconds: float = 0.0) -> None:
        """Add to the stage's cost.

        The stage's own seconds, and the model FLOPs that this process reports to :mod:`brite_lib.costs`, are counted without this:
        ``seconds`` are those of interrupted runs before this one, ``flops`` those of anything that does not report.
        """
        added = {"tokens_generated": tokens_generated, "tokens_trained": tokens_trained, "flops": flops, "seconds": seconds}
        self._cost = {name: self._cost[name] + amount for name, amount in added.items()}

    def finish(self, outputs: Iterable[str | Path], metrics: dict[str, Any]) -> None:
        """Write ``stage.json``; numbers that are not finite become null.

        Args:
            outputs: files and directories that other stages read.
            metrics: results of the stage, for JSON.

        Raises:
            FileNotFoundError: if an output does not exist.
        """
        hashes = {}
        for output in map(Path, outputs):
            if not output.exists():
                raise FileNotFoundError(f"{self.name}: output {output} was not written")
            hashes[portable(output)] = sha256_of(output)
        seconds = self._cost["seconds"] + time.monotonic() - self._clock
        gpu_gib, gpus = _gpu_use()
        if gpus and getattr(self.params, "launched", False):
            from brite_lib.launch import number_of_processes

            gpus = number_of_processes(self.params)
        record = {
            "stage": self.name,
            "status": "finished",
            "params": self.params.model_dump(mode="json"),
            "seed": self.params.seed,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
            "tokens_generated": self._cost["tokens_generated"],
            "tokens_trained": self._cost["tokens_trained"],
            "flops": float(self._cost["flops"] + costs.spent() - self._spent),
            "peak_rss_gib": round(_peak_rss_gib(), 3),
            "peak_gpu_gib": gpu_gib,
            "gpu_hours": gpus * seconds / 3600,
            "git_commit": git_commit(),
            "code": os.environ.get("BRITE_CODE"),  # brite_lib/fingerprint.py; null by hand
            "versions": {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}},
            "inputs": self._inputs,
            "outputs": hashes,
            "metrics": metrics,
        }
        shutil.rmtree(self.path("checkpoint"), ignore_errors=True)  # a rerun must not start at the end
        path = self.path("stage.json")
        atomic_write_text(path, json.dumps(for_json(record), indent=2, ensure_ascii=False) + "\n")
        print(f"{self.name}: finished in {seconds:.1f} s, peak memory {record['peak_rss_gib']:.2f} GiB; {portable(path)}")


def stage_directories(run_dir: Path) -> list[Path]:
    """The directories of a run's stages, finished or not.

    Those that its experiment has now, by the ``stages.json`` of :mod:`brite_lib.run`: what an earlier version of the file left (a seed, a
    method, other settings) is not mixed into its results. Without that file, all there are.
    """
    listed = run_dir / "stages.json"
    keys = json.loads(listed.read_text(encoding="utf-8")) if listed.is_file() else None
    return [place for place in sorted(run_dir.glob("seed*/*/")) if keys is None or place.relative_to(run_dir).as_posix() in keys]


def finished_stages(run_dir: Path) -> list[Path]:
    """The ``stage.json`` of each finished stage of a run."""
    return [path for place in stage_directories(run_dir) if (path := place / "stage.json").is_file()]


def checked_digest(path: Path) -> str:
    """SHA-256 of a file or directory, after comparing it with the record of the stage that wrote it, if it lies beside one.

    Raises:
        InputError: one sentence naming the file, if it is missing or not what was written.
    """
    record_path = path.parent / "stage.json"
    outputs = read_record(record_path)["outputs"] if record_path.is_file() else {}
    written = {Path(key).name: digest for key, digest in outputs.items()}
    if not path.exists():
        hint = f", though {record_path} lists it; run that stage again" if path.name in written else "; run the stage that writes it first"
        raise InputError(f"{path}: is missing{hint}")
    digest = sha256_of(path)
    if written.get(path.name, digest) != digest:
        raise InputError(f"{path}: is corrupt or was changed, its SHA-256 is not the one in {record_path}; run that stage again")
    return digest


def read_record(path: str | Path) -> dict[str, Any]:
    """A ``stage.json``.

    Raises:
        InputError: one sentence naming the file, if it is missing or no record.
    """
    try:
        record = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is no readable stage record: {error}") from None
    for key in ("stage", "params", "seed", "seconds", "tokens_generated", "tokens_trained", "inputs", "outputs", "metrics"):
        if not isinstance(record, dict) or key not in record:
            raise InputError(f"{path}: is no stage record: {key} is missing")
    return record


def readable(value: Any) -> str:
    """A value of a record for a person: four digits, or all before the point; – for None."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def metric_table(metrics: Mapping[str, Any]) -> "pd.DataFrame":
    """Metrics for a person, a line for each."""
    import pandas as pd

    return pd.DataFrame({"value": {name: readable(value) for name, value in metrics.items()}}, dtype=str)


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` in order, [] if there is none; a line that a killed process tore is left out."""
    path = Path(path)
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def _set_threads(threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)
        reason = "parameter threads; on busy cores more threads wait for each other" if threads == 1 else "parameter threads"
    else:
        reason = "torch's own choice, as threads is 0"
    print(f"CPU threads: {torch.get_num_threads()} of {os.cpu_count()} cores ({reason})")


def _seed(seed: int) -> None:
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def _peak_rss_gib() -> float:
    """Of the largest process of the stage: this one, or one of its children that have ended, such as a vLLM engine or a rank."""
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes there, KiB on Linux


def _gpu_use() -> tuple[float | None, int]:
    """Peak GPU memory in GiB over all devices of this process, and how many devices it used."""
    import torch

    if not torch.cuda.is_available():
        return None, 0
    peaks = [torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count())]
    return sum(peaks) / 2**30, sum(peak > 0 for peak in peaks)


def git_commit() -> str | None:
    """The commit of the project's checkout, None if it is none."""
    try:
        answer = subprocess.run(["git", "rev-parse", "HEAD"], cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()


def for_json(value: Any) -> Any:
    """The value for JSON: nan and infinities become None, numbers and arrays of NumPy and torch plain ones."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: for_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [for_json(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
