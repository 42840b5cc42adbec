"""A run's tables as Markdown, for ``docs/results``: ``python -m brite_lib.markdown outputs/tiny-5seeds``.

No number in the documentation is typed by hand: it is printed by this module from the records of a run.
"""

import argparse
import os
import platform
from pathlib import Path

import pandas as pd

from brite_lib.report import Run, cost_table, difference_table, load_run, provenance, result_table, sampling_table


def markdown(run: Run) -> str:
    """Results with per-seed values, paired differences, missed problems, costs and provenance."""
    facts = provenance(run)
    seconds = sum(record["seconds"] for record in run.records.values())
    machine = f"{os.cpu_count()} CPU cores ({platform.machine()})"
    parts = [
        f"Commit {facts.pop('commit')}, seeds {facts.pop('seeds')}, last stage {facts.pop('last stage')}; {len(run.records)} stages, "
        f"{seconds:.0f} s of them together, on a machine with {machine}; {', '.join(f'{name} {value}' for name, value in facts.items())}.",
        "### pass@1 at temperature 1",
        _table(result_table(run, "pass@1").drop(columns="metric")),
        "### Paired differences, percentage points",
        _table(difference_table(run)),
    ]
    missed = missed_problems(run)
    if not missed.empty:
        parts += ["### What rejection sampling missed", _table(missed)]
    return "\n\n".join([*parts, "### Cost per method, means over seeds", _table(cost_table(run))]) + "\n"


def missed_problems(run: Run) -> pd.DataFrame:
    """Share of training problems without a hit and number of draws, by stage, means over seeds; empty without rejection sampling."""
    table = sampling_table(run)
    if table.empty:
        return table
    table["stage"] = table["stage"].map(lambda key: Path(key).name)
    return table.groupby("stage", sort=True).mean().round(1).reset_index()


def _table(table: pd.DataFrame) -> str:
    return table.to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", help="outputs/<run>")
    print(markdown(load_run(parser.parse_args().run_dir)))
