"""The tables that the documentation shows are printed, not typed."""

import json

import pandas as pd

from brite_lib.markdown import census_markdown, limits_markdown
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
