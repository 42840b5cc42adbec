"""The table of brevity.md, of runs with several costs, 0 first: ``python docs/results/brevity.py outputs/brevity-0 outputs/brevity-1``.

What Q writes for its training problems, and what the best Q that cannot tell right from wrong would write: style s in proportion to
share(s)·exp(mean log P(y*|x,z) − cost·mean |z|), all three measured on samples of the base model for problems of the same length.
"""

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from brite_lib.models import load_template
from brite_lib.problems.toy import style_of, totals
from brite_lib.records import read_record
from brite_lib.stats import t_interval
from brite_lib.tables import read_predictions, read_rationales

STYLES = ["careful", "skipping", "guessing"]


def read(rows: list[dict]) -> pd.DataFrame:
    """Style, steps of the problem, tokens of z and log P(y*|x,z) of finished samples."""
    template = load_template("assets/tiny-base")
    return pd.DataFrame(
        {
            "style": style_of(row["question"], row["rationale"]),
            "steps": len(totals(row["question"])),
            "tokens of z": len(template.rationale_ids(row["rationale"])),
            "log P": row["logp_answer"],
        }
        for row in rows
        if row["finished"]
    )


def best_blind(base: pd.DataFrame, cost: float, steps: pd.Series) -> dict[str, float]:
    """Shares of the styles in % and mean length of the best Q that sees x only."""
    found = pd.Series(0.0, index=[*STYLES, "tokens of z"])
    for number, weight in steps.value_counts(normalize=True).items():
        styles = base[(base["steps"] == number) & base["style"].isin(STYLES)].groupby("style")
        share = styles.size() * np.exp(styles["log P"].mean() - cost * styles["tokens of z"].mean())
        share /= share.sum()
        found += weight * pd.concat([100 * share, pd.Series({"tokens of z": (share * styles["tokens of z"].mean()).sum()})])
    return found.to_dict()


def interval(values: list[float], digits: int = 1) -> str:
    """Mean and 95 % t-interval over seeds."""
    return "{:.{d}f} [{:.{d}f}, {:.{d}f}]".format(*t_interval(values), d=digits)


runs = [Path(name) for name in sys.argv[1:]]
files = sorted(runs[0].glob("seed*/eval_base/predictions.parquet"))
base = read([row for file in files for row in read_predictions(file) if row["temperature"] > 0])
table = []
for run in runs:
    stages = sorted(run.glob("seed*/brite_psi/rationales.parquet"))
    cost = read_record(stages[0].with_name("stage.json"))["params"]["brevity_cost"]
    seeds = [read(read_rationales(file)) for file in stages]
    evaluations = [read_record(path)["metrics"] for path in sorted(run.glob("seed*/eval_brite_psi/stage.json"))]
    expected = best_blind(base, cost, seeds[0]["steps"])
    row = {"cost": cost, "tokens of z": interval([seed["tokens of z"].mean() for seed in seeds], 2)}
    row |= {f"{style} %": interval([100 * (seed["style"] == style).mean() for seed in seeds]) for style in STYLES}
    row |= {"pass@1 %": interval([100 * metrics["pass@1"] for metrics in evaluations])}
    row |= {"greedy %": interval([100 * metrics["greedy"] for metrics in evaluations])}
    table += [row, {"cost": "expected", "tokens of z": f"{expected['tokens of z']:.2f}"} | {f"{s} %": f"{expected[s]:.1f}" for s in STYLES}]
print(pd.DataFrame(table).fillna("").to_markdown(index=False, disable_numparse=True))
