"""The census over random instances: what each row says, resuming, and the tables made from it."""

import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from brite_lib.errors import InputError
from brite_lib.theory import census
from brite_lib.theory.census import (
    COLUMNS,
    RANKS,
    RIDGES,
    SHARD,
    attainment,
    census_instance,
    census_record,
    census_settings,
    run_census,
    share,
    summarise,
)
from brite_lib.theory.instances import VERIFIERS, Instance, ridge, saddle_escape, two_basins
from brite_lib.theory.model import gradient, hessian, objective

CHEAP = {"max_steps": 400, "starts": 3}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Forty instances, made once; the sizes are cut so that a row takes about 50 ms."""
    patch = pytest.MonkeyPatch()
    patch.setattr(census, "SIZES", ((1, 4, 3), (2, 3, 3)))
    path = tmp_path_factory.mktemp("census") / "census.parquet"
    table = run_census(path, 40, **CHEAP)
    yield path, table
    patch.undo()


def test_settings_cover_the_design_and_depend_on_the_seed_alone():
    drawn = [census_settings(seed) for seed in range(400)]
    assert drawn == [census_settings(seed) for seed in range(400)]
    assert {one["rank"] for one in drawn} == set(RANKS)
    assert {one["verifier"] for one in drawn} == set(VERIFIERS)
    zero = sum(one["ridge"] == 0 for one in drawn) / len(drawn)
    assert zero == pytest.approx(RIDGES.count(0.0) / len(RIDGES), abs=0.1)
    assert all(one["rank"] is None for one in drawn if one["kernel"] == "tabular")
    instance = census_instance(3)
    settings = census_settings(3)
    assert instance.evidence.shape == (settings["prompts"], settings["rationales"] * settings["answers"])
    assert instance.ridge == settings["ridge"]


def test_rows_say_what_is_true(small):
    _, table = small
    assert table["seed"].tolist() == list(range(40))
    assert list(table.columns) == list(COLUMNS)
    assert not table["status"].isin(["failed"]).any()
    ran = table[table["identity_f"].notna()]
    scale = ran["largest_logit"].clip(lower=1)
    for column in ("identity_f", "identity_p", "budget_error"):
        assert (ran[column] / scale).max() <= 1e-10
    assert (ran["increase"] / scale).min() >= -1e-12
    assert ran["unconditional_ratio"].max() <= 1 + 1e-9
    own = table[table["status"] == "attained"]
    assert len(own) >= 15 and own["identity_r"].max() <= 1e-10 and own["residual"].max() <= 1e-10
    assert (own["rho"] < 1).all() and (own["curvature"] > 0).all()
    assert own["gap_end"].abs().max() < own["gap_start"].max()
    violated = own["own_ratio"] > 1 + census.VIOLATION
    assert (own["explained"].astype(bool) | ~violated).all()  # nothing but slack: the budget closes
    assert not (own["condition"].astype(bool) & violated).any()
    assert (own["best_value"] >= own["own_value"] - 1e-12).all()
    assert table.loc[table["status"] != "attained", "own_ratio"].isna().all()
    assert (table.loc[table["status"] == "m_step_at_infinity", "ridge"] == 0).all()


def test_a_row_agrees_with_its_instance(small):
    _, table = small
    row = table[(table["status"] == "attained") & table["converged"].astype(bool)].iloc[0]
    instance = census_instance(int(row["seed"]))
    trace = instance.run(int(row["steps"]))
    last = trace.theta[-1]
    assert objective(instance.model, last) == pytest.approx(row["own_value"], abs=1e-11)
    assert np.linalg.norm(gradient(instance.model, last)) < 1e-4
    assert np.linalg.eigvalsh(-hessian(instance.model, last))[0] > -1e-8
    ratios = np.arange(1, row["steps"] + 1) * (row["own_value"] - trace.log_marginal[1:]) / row["divergence"]
    assert ratios.max() == pytest.approx(row["own_ratio"], rel=1e-9)
    assert int(ratios.argmax()) + 1 == row["own_at"]
    spent = (row["own_value"] - trace.log_marginal[1 : int(row["own_at"]) + 1]).sum()
    assert bool(row["explained"]) == (spent > row["divergence"]) and not row["explained"]
    literal = np.arange(1, row["steps"] + 1) * (row["own_value"] - trace.log_marginal[:-1]) / row["divergence"]
    assert literal.max() == pytest.approx(row["literal_ratio"], rel=1e-9)
    assert literal[1:].max() == pytest.approx(row["literal_later_ratio"], rel=1e-9)
    assert row["gap_start"] == pytest.approx(row["own_value"] - trace.log_marginal[0], abs=1e-12)


def row_of(instance: Instance, monkeypatch, **limits):
    monkeypatch.setattr(census, "census_instance", lambda seed: instance)
    return census_record(0, **({"max_steps": 400, "starts": 12} | limits))


def test_known_counterexamples_are_counted(monkeypatch):
    """V1 violates against its own limit, V2 only against the better basin."""
    saddle = row_of(saddle_escape(1e-4), monkeypatch)
    assert saddle["status"] == "attained" and saddle["converged"]
    assert saddle["own_ratio"] == pytest.approx(3.07, abs=0.01)
    assert saddle["explained"] and not saddle["condition"] and saddle["sum_slack"] < 0 and saddle["min_slack"] < 0
    basins = row_of(two_basins(), monkeypatch)
    assert basins["own_ratio"] < 1 and basins["best_ratio"] > 1 and basins["best_attained"]
    assert basins["best_value"] - basins["own_value"] == pytest.approx(0.8479, abs=1e-4)
    summary = summarise(table_of([saddle, basins])).iloc[0]
    assert (summary["n"], summary["own"], summary["best"], summary["missed"], summary["explained"]) == (
        2,
        1,
        1 + (saddle["best_ratio"] > 1),
        1,
        1,
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_sufficient_ridge_guarantees_the_bound(seed, monkeypatch):
    row = row_of(ridge(seed, prompts=2, rationales=3, answers=3), monkeypatch)
    assert ridge(seed, prompts=2, rationales=3, answers=3).ridge == pytest.approx(row["sufficient_ridge"], rel=1e-12)
    assert row["status"] == "attained" and row["condition"] and row["own_ratio"] <= 1 and row["best_ratio"] <= 1
    assert row["best_value"] == pytest.approx(row["own_value"], abs=1e-10)  # the maximum is unique


def test_runs_without_a_maximum_are_named(monkeypatch):
    line = np.array([-1.0, 0.0, 1.0])[None, :, None]

    def case(evidence, theta0=0.5, features=line, base=None):
        return Instance(features, np.array([evidence]), np.ones(1), np.array([theta0]), 0.0, base)

    assert row_of(case([0.0, 0.0, 1.0]), monkeypatch)["status"] == "m_step_at_infinity"
    assert row_of(case([0.1, 0.5, 1.0]), monkeypatch)["status"] == "at_infinity"
    assert row_of(saddle_escape(0.0), monkeypatch)["status"] == "saddle"
    assert row_of(saddle_escape(1e-3), monkeypatch, max_steps=2)["status"] == "undecided"

    def refuse(*_, **__):
        raise InputError("no such thing")

    monkeypatch.setattr(census, "own_limit", refuse)
    failed = row_of(case([0.1, 1.0, 0.1]), monkeypatch)
    assert (failed["status"], failed["error"]) == ("failed", "no such thing")


def test_resuming_makes_only_what_is_missing(small, monkeypatch):
    path, table = small
    parts = sorted(path.with_name("census.parquet.parts").glob("*.parquet"))
    assert [len(pq.read_table(part)) for part in parts] == [SHARD, SHARD]
    whole, times = path.read_bytes(), parts[0].stat().st_mtime_ns
    parts[1].unlink()
    path.unlink()
    made = []
    record = census.census_record
    monkeypatch.setattr(census, "census_record", lambda seed, *limits: made.append(seed) or record(seed, *limits))
    pd.testing.assert_frame_equal(run_census(path, 40, **CHEAP), table)
    assert made == list(range(20, 40)) and path.read_bytes() == whole and parts[0].stat().st_mtime_ns == times
    parts[1].write_bytes(parts[1].read_bytes()[:100])  # torn: made again
    made.clear()
    run_census(path, 40, **CHEAP)
    assert made == list(range(20, 40)) and path.read_bytes() == whole
    made.clear()
    run_census(path, 40, **CHEAP)
    assert made == []
    with pytest.raises(InputError, match="other limits"):
        run_census(path, 40, max_steps=401, starts=3)


def test_a_killed_census_and_two_processes_give_the_same_rows(small, tmp_path):
    path = tmp_path / "census.parquet"
    program = tmp_path / "go.py"
    program.write_text(
        "import sys\n"
        "from brite_lib.theory import census\n"
        f"census.SIZES, census.SHARD = {census.SIZES}, 10\n"  # outside main: the workers import this file too
        "if __name__ == '__main__':\n"
        f"    census.run_census({str(path)!r}, 40, processes=int(sys.argv[1]), **{CHEAP})\n"
    )
    environment = os.environ | {"OMP_NUM_THREADS": "1", "BRITE_BATCH": "1"}
    first = subprocess.Popen([sys.executable, str(program), "1"], env=environment, stdout=subprocess.DEVNULL)
    parts, deadline = path.with_name("census.parquet.parts"), time.monotonic() + 60
    while not list(parts.glob("0*.parquet")) and first.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    first.kill()
    assert first.wait() == -9 and not path.exists() and 1 <= len(list(parts.glob("0*.parquet"))) <= 3
    assert json.loads((parts / "limits.json").read_text()) == CHEAP
    subprocess.run([sys.executable, str(program), "2"], env=environment, check=True, stdout=subprocess.DEVNULL)
    pd.testing.assert_frame_equal(pd.read_parquet(path), small[1])


def table_of(rows):
    return pd.DataFrame([dict.fromkeys(COLUMNS) | row for row in rows])


def test_tables_by_hand():
    base = {"seed": 0, "prompts": 1, "kernel": "rbf", "verifier": "answer", "one_answer": False, "ridge": 0.01, "start": 1.0, "rank": 3}
    own = {"status": "attained", "own_ratio": 0.2, "literal_ratio": 0.3, "literal_later_ratio": 0.3, "reverse_ratio": 0.4}
    own |= {"best_ratio": 0.2, "own_value": -1.0, "best_value": -1.0, "explained": False, "condition": True}
    rows = [
        base | own,
        base
        | own
        | {"own_ratio": 1.5, "explained": True, "condition": False, "rank": None, "literal_ratio": 2.0, "literal_later_ratio": 1.2},
        base | own | {"best_ratio": 7.0, "best_value": -0.5, "own_ratio": 0.1, "literal_ratio": 1.1, "condition": False, "ridge": 0.0},
        base | own | {"own_ratio": 1 + 1e-7, "reverse_ratio": 3.0},
        base | {"status": "at_infinity", "ridge": 0.0},
        base | {"status": "m_step_at_infinity", "ridge": 0.0, "rank": None},
    ]
    table = table_of(rows)
    summary = summarise(table).set_index("subset")
    everything = summary.loc["all"]
    assert [everything[name] for name in ("n", "own", "explained", "slack", "literal", "literal_later", "reverse", "best", "missed")] == [
        4, 1, 1, 2, 2, 1, 1, 1, 1,
    ]  # fmt: skip
    assert (everything["own_max"], everything["best_max"]) == (1.5, 7.0)
    assert everything["own_median"] == pytest.approx((0.2 + 1) / 2, abs=1e-6)
    # Clopper-Pearson for 1 of 4: (1 − low)^4 = 0.975, and P(X ≤ 1 | high) = 0.025
    low, high = everything["own_low"], everything["own_high"]
    assert (1 - low) ** 4 == pytest.approx(0.975) and (1 - high) ** 4 + 4 * high * (1 - high) ** 3 == pytest.approx(0.025)
    assert summary.loc["rank full", "own"] == 1 and summary.loc["rank 3", "own"] == 0
    assert summary.loc["ridge 0.0", "n"] == 1 and summary.loc["ridge 0.01", "n"] == 3
    counts = attainment(table).set_index(["ridge", "verifier", "rank"])
    assert counts.loc[("ridge = 0", "answer", "low")].to_dict() == {
        "attained": 1, "saddle": 0, "m_step_at_infinity": 0, "at_infinity": 1, "undecided": 0, "failed": 0,
    }  # fmt: skip
    assert counts.loc[("ridge = 0", "answer", "full"), "m_step_at_infinity"] == 1
    assert counts.to_numpy().sum() == 6
    assert share(0, 20)[:2] == (0.0, 0.0) and share(0, 20)[2] == pytest.approx(1 - 0.025 ** (1 / 20))
    assert all(math.isnan(value) for value in share(0, 0))


def test_bad_numbers_are_one_sentence(tmp_path):
    for settings in ({"count": 0}, {"count": 2, "processes": 0}, {"count": 2.5}, {"count": 2, "starts": True}):
        with pytest.raises(InputError, match="must be a whole number of at least 1"):
            run_census(tmp_path / "census.parquet", **settings)
    assert not list(tmp_path.iterdir())
