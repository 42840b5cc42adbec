"""The tables that the documentation shows are printed, not typed."""

import json

import pandas as pd
from test_report import extend_record, write_toy_run

from brite_lib.markdown import census_markdown, limits_markdown, markdown
from brite_lib.report import load_run
from brite_lib.theory.census import run_census


def write_record(path, seed, metrics):
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"stage": "limits", "seed": seed, "seconds": 3.0, "git_commit": "0123456789abcdef", "params": {}, "inputs": {}, "outputs": {}}
    path.write_text(json.dumps(record | {"status": "finished", "tokens_generated": 0, "tokens_trained": 0, "metrics": metrics}))


def test_limits_by_hand(tmp_path):
    paths = [tmp_path / f"seed{seed}" / "stage.json" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        write_record(path, seed, {"pass@1/rs": 0.4, "pass@1/BRiTE, reward (i)": 0.3 + 0.02 * seed})
    text = limits_markdown(paths)
    assert "Commit 0123456789ab, seeds 0, 1." in text
    (difference,) = [line for line in text.splitlines() if "− rs" in line]
    assert [cell.strip() for cell in difference.split("|")[2:5]] == ["-9.0", "[-21.7, 3.7]", "-10.0, -8.0"]  # t of 1 degree: 12.706


def test_a_census(tmp_path):
    table = run_census(tmp_path / "census.parquet", 6, max_steps=100, starts=2)
    write_record(tmp_path / "stage.json", 0, {})
    text = census_markdown(tmp_path / "census.parquet")
    assert f"| attained | {(table['status'] == 'attained').sum()}" in " ".join(text.split())
    assert len(pd.read_parquet(tmp_path / "census.parquet")) == 6 and "| all " in text and "identity_f" in text


def test_a_run(tmp_path):
    write_toy_run(tmp_path / "run", seeds=2)
    monitored = {"em/log_marginal": -1.5, "em/log_marginal_se": 0.1, "em/elbo": -1.7, "em/gap": 0.2, "em/kl": 0.3, "em/ess": 60.0}
    for seed in (0, 1):
        extend_record(tmp_path / "run" / f"seed{seed}" / "brite_psi", metrics=monitored, params={"round": 1})
    run = load_run(tmp_path / "run")
    cells = [[cell.strip() for cell in line.split(" | ")] for line in markdown(run).splitlines()]
    votes = {row["method"]: f"{100 * row['mean']:.1f}" for row in run.rows if row["metric"] == "maj@3"}
    (brite,) = [row for row in cells if len(row) == 4 and row[1] == "brite"]  # benchmark, method, greedy, maj@3
    assert brite[3].startswith(votes["brite"])
    assert ["| 1", "brite_psi", "-1.500", "0.100", "-1.700", "0.200", "0.300", "60.000 |"] in cells
    assert any("log P(y*\\|x)" in row for row in cells)
