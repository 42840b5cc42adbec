import csv
import json
from pathlib import Path

import pytest

from brite_lib.errors import InputError
from brite_lib.records import finished_stages
from brite_lib.results import COLUMNS, collect, write_results
from brite_lib.tables import PREDICTIONS, write_table


def write_stage(
    directory: Path, inputs: tuple[Path, ...] = (), seed: int = 0, seconds: float = 0.0, generated: int = 0, trained: int = 0, **params
):
    directory.mkdir(parents=True, exist_ok=True)
    record = {
        "stage": directory.name, "status": "finished", "params": params, "seed": seed, "seconds": seconds, "tokens_generated": generated,
        "tokens_trained": trained, "flops": 10.0 * trained, "gpu_hours": 0.0,
        "inputs": dict.fromkeys(map(str, inputs), "0"), "outputs": {}, "metrics": {},
    }  # fmt: skip
    (directory / "stage.json").write_text(json.dumps(record))


def write_evaluation(
    directory: Path, model: Path, method: str, verdicts: list[list[bool]], greedy: list[bool], seed: int = 0, benchmark: str = "toy"
):
    """``verdicts``: per problem, per sample; a wrong prediction is '0', a right one '1'."""
    write_stage(directory, (model,), seed, seconds=1000.0, generated=10**6, method=method, benchmark=benchmark, model=str(model))
    rows = []
    for problem, samples in enumerate(verdicts):
        for sample, correct in enumerate([greedy[problem], *samples]):
            rows.append(
                {
                    "id": f"p{problem}", "question": "q", "gold": "1", "rationale": "z", "prediction": str(int(correct)),
                    "correct": correct, "finished": True, "source": method, "round": 1, "sample": max(0, sample - 1),
                    "benchmark": benchmark, "temperature": 0.0 if sample == 0 else 1.0,
                }
            )  # fmt: skip
    write_table(rows, PREDICTIONS, directory / "predictions.parquet")


def write_run(run: Path, seeds: int = 2, prefix: str = "") -> None:
    base = run.parent / "assets" / "tiny-base"
    base.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        stages = run / f"seed{seed}"
        psi, theta = stages / f"{prefix}brite_psi", stages / f"{prefix}brite"
        write_stage(psi, (base,), seed, seconds=10.0 + seed, generated=100, trained=50)
        # θ reads ψ's rationales and, as in a later round, its model too: the stage is counted once
        write_stage(theta, (base, psi / "rationales.parquet", psi / "model"), seed, seconds=5.0, trained=30)
        write_evaluation(stages / f"{prefix}eval_base", base, "base", [[True, False], [False, False]], [False, True], seed)
        brite = [[True, True], [seed == 1, False]]
        write_evaluation(stages / f"{prefix}eval_brite", theta / "model", "brite", brite, [True, True], seed)


def test_rows_of_two_seeds(tmp_path):
    write_run(tmp_path / "run")
    rows = {(row["method"], row["metric"]): row for row in collect(tmp_path / "run")}
    assert list(rows) == [(m, k) for m in ("base", "brite") for k in ("pass@1", "greedy", "maj@2")]
    brite = rows["brite", "pass@1"]
    assert list(brite) == list(COLUMNS)
    assert (brite["seeds"], brite["values"], brite["mean"]) == ([0, 1], [0.5, 0.75], 0.625)
    half = 12.706205 * 0.1767767 / 2**0.5  # t(0.975, 1) · s / √2
    assert (brite["ci_low"], brite["ci_high"]) == pytest.approx((0.625 - half, 0.625 + half), abs=1e-5)
    assert (brite["ci"], brite["k"], brite["n_problems"], brite["benchmark"]) == ("t over seeds", 1, 2, "toy")
    assert (brite["seconds"], brite["tokens_generated"], brite["tokens_trained"]) == (15.5, 100, 80)
    assert (brite["flops"], brite["gpu_hours"]) == (800, 0)
    assert rows["brite", "maj@2"]["values"] == [0.5, 0.75]  # a tie counts one half
    assert rows["brite", "maj@2"]["k"] == 2
    assert rows["base", "greedy"]["values"] == [0.5, 0.5]
    assert (rows["base", "greedy"]["seconds"], rows["base", "greedy"]["tokens_generated"]) == (0, 0)


def test_one_seed_has_an_interval_over_problems(tmp_path):
    write_run(tmp_path / "run", seeds=1, prefix="toy-easy.")
    rows = {(row["method"], row["metric"]): row for row in collect(tmp_path / "run")}
    base, brite = rows["base", "pass@1"], rows["brite", "pass@1"]
    assert (base["mean"], base["ci_low"], base["ci_high"], base["ci"]) == (0.25, 0.0, 0.5, "bootstrap over problems")
    assert brite["ci"] == "Wilson over problems"  # every problem always right or always wrong
    half, centre = 0.40547, 0.5  # z²/(n + z²) by hand for n = 2, one of them right
    assert (brite["mean"], brite["ci_low"], brite["ci_high"]) == pytest.approx((0.5, centre - half, centre + half), abs=1e-4)
    assert rows["brite", "greedy"]["ci_low"] == pytest.approx(2 / (2 + 1.959964**2), abs=1e-5) and rows["brite", "greedy"]["ci_high"] == 1.0
    assert brite["seconds"] == 15.0


def test_flops_that_a_stage_did_not_count_are_unknown_and_not_zero(tmp_path):
    write_run(tmp_path / "run", seeds=1)
    path = tmp_path / "run" / "seed0" / "brite_psi" / "stage.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in record.items() if name != "flops"}))
    rows = {row["method"]: row for row in collect(tmp_path / "run")}
    assert (rows["brite"]["flops"], rows["brite"]["tokens_trained"], rows["base"]["flops"]) == (None, 80, 0)


def test_files_are_written_and_stable(tmp_path):
    write_run(tmp_path / "run")
    rows = write_results(tmp_path / "run")
    first = (tmp_path / "run" / "results.json").read_bytes()
    assert json.loads(first) == rows
    with (tmp_path / "run" / "results.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(rows) and list(table[0]) == list(COLUMNS)
    assert json.loads(table[0]["values"]) == rows[0]["values"]
    write_results(tmp_path / "run")
    assert (tmp_path / "run" / "results.json").read_bytes() == first


def test_unfinished_evaluations_are_left_out_and_bad_ones_named(tmp_path):
    run = tmp_path / "run"
    assert collect(run) == []
    write_run(run, seeds=1)
    (run / "seed0" / "eval_base" / "stage.json").unlink()
    assert {row["method"] for row in collect(run)} == {"brite"}
    write_evaluation(run / "seed0" / "copy", run, "brite", [[True]], [True])
    with pytest.raises(InputError, match="same method, benchmark and seed"):
        collect(run)
    (run / "seed0" / "copy" / "stage.json").unlink()
    write_evaluation(run / "seed1" / "eval_brite", run, "brite", [[True]], [True], seed=1)
    with pytest.raises(InputError, match=r"seed1/eval_brite/predictions.parquet: has other problems"):
        collect(run)
    (run / "seed1" / "eval_brite" / "predictions.parquet").unlink()
    with pytest.raises(InputError, match=r"predictions.parquet: is missing"):
        collect(run)


def test_what_the_experiment_has_no_longer_is_left_out(tmp_path):
    run = tmp_path / "run"
    write_run(run)
    write_evaluation(run / "seed1" / "eval_brite", run, "brite", [[True]], [True], seed=1)  # of other settings
    (run / "stages.json").write_text(json.dumps(["seed0/brite_psi", "seed0/brite", "seed0/eval_brite", "seed0/eval_later"]))
    assert {(row["method"], *row["seeds"]) for row in collect(run)} == {("brite", 0)}
    assert [path.parent.name for path in finished_stages(run)] == ["brite", "brite_psi", "eval_brite"]


def test_unequal_samples_are_an_error(tmp_path):
    write_evaluation(tmp_path / "seed0" / "eval_base", tmp_path, "base", [[True, True], [True]], [True, True])
    with pytest.raises(InputError, match="p1: has 1 samples, other problems have 2"):
        collect(tmp_path)


def test_a_stage_that_trains_and_answers_is_its_own_cost(tmp_path):
    write_run(tmp_path / "run", seeds=1)
    psi, drr = tmp_path / "run" / "seed0" / "brite_psi", tmp_path / "run" / "seed0" / "drr"
    write_evaluation(drr, psi / "model", "drr", [[True], [True]], [True, True])
    write_stage(drr, (psi / "model",), seconds=7.0, generated=40, trained=20, method="drr", benchmark="toy", model=str(psi / "model"))
    rows = [row for row in collect(tmp_path / "run") if row["method"] == "drr"]
    assert {row["metric"]: row["mean"] for row in rows} == {"pass@1": 1.0, "greedy": 1.0}
    assert {(row["seconds"], row["tokens_generated"], row["tokens_trained"]) for row in rows} == {(17.0, 140.0, 70.0)}


def test_a_run_of_another_clone_has_its_costs(tmp_path):
    run = tmp_path / "outputs" / "run"
    made = run / "seed0" / "rs"
    write_stage(made, seconds=3.0, generated=5)
    write_evaluation(run / "seed0" / "eval_rs", Path("outputs/run/seed0/rs/model"), "rs", [[True]], [True])
    assert {(row["seconds"], row["tokens_generated"]) for row in collect(run)} == {(3.0, 5.0)}
