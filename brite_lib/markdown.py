"""A run's tables as Markdown, for ``docs``: ``python -m brite_lib.markdown outputs/tiny-5seeds``, of a census or of ``20_limits`` too.

No number in the documentation is typed by hand: it is printed by this module from the records of a run.
"""

import argparse
import os
import platform
from pathlib import Path

import pandas as pd

from brite_lib.errors import InputError
from brite_lib.params import resolve_path
from brite_lib.records import read_record
from brite_lib.report import Run, cost_table, difference_table, load_run, monitor_table, provenance, result_table, sampling_table
from brite_lib.stats import paired_difference, t_interval
from brite_lib.theory import census


def markdown(run: Run) -> str:
    """Results with per-seed values, paired differences, the EM monitor, missed problems, costs and provenance."""
    facts = provenance(run)
    seconds = sum(record["seconds"] for record in run.records.values())
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    parts = [
        f"Commit {facts.pop('commit')}, seeds {facts.pop('seeds')}, last stage started {facts.pop('last stage started')}; "
        f"{len(run.records)} stages, {seconds:.0f} s of them together, on a machine with {machine}; "
        f"{', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "### pass@1 at temperature 1",
        _table(result_table(run, "pass@1").drop(columns="metric")),
        "### Paired differences, percentage points",
        _table(difference_table(run)),
        "### Other measures, %",
        _table(other_measures(run)),
    ]
    monitored = monitor_table(run)
    if not monitored.empty:
        parts += ["### EM monitor, nats per held-out problem, means over seeds", _table(monitored)]
    missed = missed_problems(run)
    if not missed.empty:
        parts += ["### What rejection sampling missed", _table(missed)]
    return "\n\n".join([*parts, "### Cost per method, means over seeds", _table(cost_table(run))]) + "\n"


def other_measures(run: Run) -> pd.DataFrame:
    """Everything but pass@1 with its interval, one column per metric."""
    table = result_table(run)
    table = table[table["metric"] != "pass@1"]
    table = table.assign(value=table["accuracy %"].astype(str) + " " + table["95 % interval"])
    wide = table.pivot(index=["benchmark", "method"], columns="metric", values="value").fillna("")
    return wide.reindex(pd.MultiIndex.from_frame(table[["benchmark", "method"]].drop_duplicates())).reset_index()


def missed_problems(run: Run) -> pd.DataFrame:
    """Share of training problems without a hit and number of draws, by stage, means over seeds; empty without rejection sampling."""
    table = sampling_table(run)
    if table.empty:
        return table
    table["stage"] = table["stage"].map(lambda key: Path(key).name)
    return table.groupby("stage", sort=True).mean().round(1).reset_index()


def census_markdown(path: Path) -> str:
    """Outcomes, violations by subset and attainment of a ``census.parquet``."""
    table, record = pd.read_parquet(path), read_record(path.with_name("stage.json"))
    summary = census.summarise(table)
    percent = summary[["own_share", "own_low", "own_high"]].mul(100).round(1).astype(str)
    summary["own %"] = percent["own_share"] + " [" + percent["own_low"] + ", " + percent["own_high"] + "]"
    names = ["subset", "n", "own", "own %", "own_max", "own_median", "slack", "literal", "literal_later", "reverse", "best", "best_max"]
    attained = table[table["status"] == "attained"]
    exact = attained[["identity_f", "identity_p", "identity_r", "budget_error", "residual", "unconditional_ratio"]].max()
    parts = [
        f"Commit {str(record['git_commit'])[:12]}, {len(table)} instances, {record['seconds']:.0f} s.",
        _table(table["status"].value_counts().rename_axis("outcome").reset_index(name="instances")),
        _table(summary[[*names, "missed"]].round({"own_max": 2, "own_median": 3, "best_max": 1})),
        _table(census.attainment(table)),
        _table(exact.map("{:.1e}".format).rename_axis("largest over the attained").reset_index(name="value")),
    ]
    return "\n\n".join(parts) + "\n"


def limits_markdown(paths: list[Path]) -> str:
    """Metrics of the seeds of ``20_limits`` in %, with t-intervals, and BRiTE's paired differences to RS."""
    records = [read_record(path) for path in paths]

    def row(name: str, values: list[float], interval: tuple[float, float, float]) -> dict[str, str]:
        mean, low, high = interval
        return {"": name, "%": f"{mean:.1f}", "95 %": f"[{low:.1f}, {high:.1f}]", "per seed": ", ".join(f"{value:.1f}" for value in values)}

    values = {name: [100 * record["metrics"][name] for record in records] for name in records[0]["metrics"]}
    metrics = [row(name, found, t_interval(found)) for name, found in values.items()]
    pairs = []
    for name in (name for name in values if name.startswith("pass@1/BRiTE")):
        difference = paired_difference(values[name], values["pass@1/rs"])
        pairs.append(row(f"{name} − rs", list(difference.values), (difference.mean, difference.low, difference.high)))
    facts = f"Commit {records[0]['git_commit'][:12]}, seeds {', '.join(str(r['seed']) for r in records)}."
    return "\n\n".join([facts, _table(pd.DataFrame(metrics)), _table(pd.DataFrame(pairs))]) + "\n"


def _table(table: pd.DataFrame) -> str:
    escaped = table.map(lambda cell: cell.replace("|", "\\|") if isinstance(cell, str) else cell)
    return escaped.rename(columns=lambda name: name.replace("|", "\\|")).to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", help="outputs/<run>")
    run_dir = resolve_path(parser.parse_args().run_dir)
    tables, limits = sorted(run_dir.glob("seed*/theory/census.parquet")), sorted(run_dir.glob("seed*/figures/limits.png"))
    if limits:
        print(limits_markdown([path.parents[1] / "stage.json" for path in limits]))
    elif tables:
        print("\n".join(map(census_markdown, tables)))
    else:
        try:
            print(markdown(load_run(run_dir)))
        except InputError as error:
            parser.error(str(error))
