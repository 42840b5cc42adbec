"""The result table of a run: one row per method, benchmark and metric, with its interval and its cost (design section 6)."""

import csv
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from brite_lib import harness
from brite_lib.errors import InputError
from brite_lib.files import atomic_path, atomic_write_text
from brite_lib.params import method_order, resolve_path
from brite_lib.records import checked_digest, finished_stages, for_json, read_record
from brite_lib.stats import bootstrap_ci, majority_at_k, pass_at_k, t_interval, wilson_interval
from brite_lib.tables import read_predictions

COSTS = ("seconds", "tokens_generated", "tokens_trained", "flops", "gpu_hours")
COLUMNS = ("method", "benchmark", "metric", "k", "seeds", "values", "mean", "ci_low", "ci_high", "ci", "n_problems", *COSTS)
METRIC_ORDER = ("pass@1", "greedy")  # then maj@k


def collect(run_dir: str | Path) -> list[dict[str, Any]]:
    """The rows of ``results.json``, from all finished evaluations of the run.

    ``values`` has one accuracy per seed: ``pass@1`` over the samples at a temperature above 0 (the presets use 1),
    ``maj@k`` over the same k samples, ``greedy`` at temperature 0. What could not be judged counts as wrong. With one seed
    the interval is over problems (Wilson's where each has one answer, else a bootstrap), with several a t-interval over
    seeds; ``ci`` says which. Tasks of
    lm-evaluation-harness have its metrics, and with one seed the interval of its standard error. ``seconds``,
    ``tokens_generated``, ``tokens_trained``, ``flops`` and ``gpu_hours`` are the method's training in this run, sampling of its
    rationales included and evaluation excluded, as means over seeds; a base model that the run did not make costs 0.

    Raises:
        InputError: one sentence naming the file, if a record or table is broken, two evaluations are of the same method,
            benchmark and seed, or seeds were evaluated on different problems.
    """
    run_dir = resolve_path(run_dir)
    evaluations: dict[tuple[str, str], dict[int, Path]] = defaultdict(dict)
    for path in finished_stages(run_dir):
        record = read_record(path)
        if not {"method", "benchmark"} <= record["params"].keys():
            continue
        of_seed = evaluations[record["params"]["method"], record["params"]["benchmark"]]
        if record["seed"] in of_seed:
            raise InputError(f"{path}: evaluates the same method, benchmark and seed as {of_seed[record['seed']]}")
        of_seed[record["seed"]] = path
    rows = [row for (method, benchmark), paths in evaluations.items() for row in _rows(method, benchmark, paths, run_dir)]
    return sorted(rows + _harness_rows(run_dir), key=_order)


def write_results(run_dir: str | Path) -> list[dict[str, Any]]:
    """Write ``results.json`` and ``results.csv`` (lists as JSON in a cell), each atomically, and return the rows."""
    run_dir = resolve_path(run_dir)
    rows = collect(run_dir)
    atomic_write_text(run_dir / "results.json", json.dumps(rows, indent=2) + "\n")
    with atomic_path(run_dir / "results.csv") as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows({name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()} for row in rows)
    return rows


def _rows(method: str, benchmark: str, paths: dict[int, Path], run_dir: Path) -> list[dict[str, Any]]:
    seeds = sorted(paths)
    accuracies: dict[tuple[str, int], list[NDArray[np.float64]]] = defaultdict(list)
    problems: set[str] | None = None
    for seed in seeds:
        path = paths[seed].with_name("predictions.parquet")
        checked_digest(path)
        by_metric, ids = _accuracies(path)
        if problems is not None and problems != ids:
            raise InputError(f"{path}: has other problems than the {method} evaluation of seed {seeds[0]}")
        problems = ids
        for metric, values in by_metric.items():
            accuracies[metric].append(values)
    shared = {"n_problems": len(problems or ()), **_mean_cost([paths[seed] for seed in seeds], run_dir)}
    rows = []
    for (metric, k), per_seed in accuracies.items():
        if len(per_seed) != len(seeds):
            raise InputError(f"{run_dir}: {method} on {benchmark}: some seeds have no {metric}")
        values = [float(accuracy.mean()) for accuracy in per_seed]
        mean, low, high, kind = _interval(per_seed)
        row = {"method": method, "benchmark": benchmark, "metric": metric, "k": k, "seeds": seeds, "values": values, "mean": mean}
        row |= {"ci_low": for_json(low), "ci_high": for_json(high), "ci": kind}
        rows.append(row | shared)
    return rows


def _interval(per_seed: Sequence[NDArray[np.float64]]) -> tuple[float, float, float, str]:
    """Mean, low, high, and what the interval is."""
    if len(per_seed) > 1:
        return *t_interval([float(accuracy.mean()) for accuracy in per_seed]), "t over seeds"
    if np.isin(per_seed[0], (0.0, 1.0)).all():  # one answer per problem, or votes without a tie
        return *wilson_interval(per_seed[0]), "Wilson over problems"
    return *bootstrap_ci(per_seed[0]), "bootstrap over problems"


def _harness_rows(run_dir: Path) -> list[dict[str, Any]]:
    found: dict[tuple[str, str, str], dict[int, tuple[Path, dict[str, Any]]]] = defaultdict(dict)
    for path in finished_stages(run_dir):
        if not path.parent.name.startswith("harness_"):
            continue
        record, numbers = read_record(path), path.with_name(harness.FILE_NAME)
        checked_digest(numbers)
        for row in json.loads(numbers.read_text(encoding="utf-8"))["rows"]:
            found[record["params"]["method"], row["benchmark"], row["metric"]][record["seed"]] = path, row
    rows = []
    for (method, benchmark, metric), by_seed in found.items():
        seeds = sorted(by_seed)
        paths, numbers = zip(*(by_seed[seed] for seed in seeds), strict=True)
        values = [row["value"] for row in numbers]
        mean, low, high = t_interval(values)
        if len(seeds) == 1:
            half = math.nan if numbers[0]["stderr"] is None else 1.96 * numbers[0]["stderr"]
            low, high = mean - half, mean + half
        row = {"method": method, "benchmark": benchmark, "metric": metric, "k": 1, "seeds": seeds, "values": values, "mean": mean}
        row |= {"ci_low": for_json(low), "ci_high": for_json(high), "ci": "harness's standard error" if len(seeds) == 1 else "t over seeds"}
        rows.append(row | {"n_problems": numbers[0]["n_problems"]} | _mean_cost(paths, run_dir))
    return rows


def _mean_cost(evaluations: Sequence[Path], run_dir: Path) -> dict[str, float | None]:
    costs = [_training_cost(path, run_dir) for path in evaluations]
    return {name: for_json(float(np.mean([cost[name] for cost in costs]))) for name in COSTS}


def _accuracies(path: Path) -> tuple[dict[tuple[str, int], NDArray[np.float64]], set[str]]:
    """Per-problem accuracies by (metric, k), and the problems' ids, of one evaluation."""
    greedy: dict[str, list[dict[str, Any]]] = defaultdict(list)
    sampled: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in read_predictions(path):
        (sampled if row["temperature"] > 0 else greedy)[row["id"]].append(row)
    if not greedy and not sampled:
        raise InputError(f"{path}: has no rows")
    if greedy and sampled and greedy.keys() != sampled.keys():
        raise InputError(f"{path}: the greedy and the sampled predictions are of different problems")
    result: dict[tuple[str, int], NDArray[np.float64]] = {}
    if sampled:
        k = _samples_per_problem(sampled, path)
        ordered = [sorted(sampled[name], key=lambda row: row["sample"]) for name in sorted(sampled)]
        predictions = [[row["prediction"] for row in rows] for rows in ordered]
        correct = [[bool(row["correct"]) for row in rows] for rows in ordered]
        result["pass@1", 1] = pass_at_k(k, [sum(row) for row in correct], 1)
        if k > 1:
            result[f"maj@{k}", k] = majority_at_k(predictions, correct)
    if greedy:
        if _samples_per_problem(greedy, path) != 1:
            raise InputError(f"{path}: has more than one greedy prediction per problem")
        result["greedy", 1] = np.array([float(bool(greedy[name][0]["correct"])) for name in sorted(greedy)])
    return result, set(greedy or sampled)


def _samples_per_problem(rows: dict[str, list[dict[str, Any]]], path: Path) -> int:
    counts = {len(samples) for samples in rows.values()}
    if len(counts) > 1:
        name = min(rows, key=lambda key: len(rows[key]))
        raise InputError(f"{path}: {name}: has {len(rows[name])} samples, other problems have {max(counts)}")
    return counts.pop()


def _training_cost(evaluation: Path, run_dir: Path) -> dict[str, float]:
    """Costs of the stage that made the evaluated model and of all stages of the run that it read from, each once.

    A stage that trained something and answered itself (DRR) counts as the one that made the model; its seconds include its answers.
    """
    run_dir = run_dir.resolve()
    project = run_dir.parents[1]  # paths in records are relative to it; the run may be another clone's
    total = dict.fromkeys(COSTS, 0.0)
    record = read_record(evaluation)
    todo, seen = [evaluation if record["tokens_trained"] else project / record["params"]["model"]], set()
    while todo:
        record_path = todo.pop().resolve().with_name("stage.json")
        if record_path in seen or not record_path.is_relative_to(run_dir) or not record_path.is_file():
            continue
        seen.add(record_path)
        record = read_record(record_path)
        for name in COSTS:
            total[name] += math.nan if record.get(name) is None else record[name]  # a record before FLOPs were counted
        todo += [project / path for path in record["inputs"]]
    return total


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    metric = METRIC_ORDER.index(row["metric"]) if row["metric"] in METRIC_ORDER else len(METRIC_ORDER)
    return row["benchmark"], method_order(row["method"]), metric, row["k"]
