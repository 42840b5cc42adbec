# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 06 · Report
#
# Reads every finished stage of the run in `outputs/<run>/` and says what came out: accuracy with intervals, how much of
# BRiTE's gain over rejection sampling comes from problems that rejection sampling misses, training curves, rationales
# side by side and what each method cost. It computes nothing that the stages did not record, and writes `results.json`,
# `results.csv`, `report.html` and `rationales.html`, files that open without a network.
#
# The gap is split by a reference that knows the E-step exactly: `posterior` samples until every problem has a hit, so
#
# $$\underbrace{\text{brite} - \text{rs}}_{\text{the whole gain}} =
# \underbrace{(\text{posterior} - \text{rs})}_{\text{missed problems}} +
# \underbrace{(\text{brite} - \text{posterior})}_{Q_\psi \text{ is not the posterior}}.$$

# %% tags=["parameters"]
run_dir: str = "outputs/tiny"  # outputs/<run>
title: str = ""  # heading; empty: the run's name

# %%
from brite_lib.params import ReportParams

params = ReportParams.from_notebook(globals())
params.difference()

# %%
from brite_lib import report
from brite_lib.records import metric_table
from brite_lib.results import write_results
from brite_lib.viewer import embedded, to_html

run = report.load_run(params.run_dir, params.title)
print(run.title, "·", len(run.records), "stages")
for name, reason in report.unfinished(run).items():
    print(f"not in this report: {name}: {reason}")
metric_table(report.provenance(run))

# %% [markdown]
# ## Accuracy
#
# With one seed the interval is over problems: what another test set of the same kind would change. With several
# it is a t-interval over training seeds: what training again would change. The column `interval is` says which.

# %%
report.result_table(run)

# %% [markdown]
# What to look at: the bars, and then why they differ. Does the ELBO of the ψ-update rise and settle? Do the methods that are right more often
# think longer? Whose rationales surprise θ, and (on the toy task) who derives, skips or guesses? In `report.html` each picture has its note.

# %%
pictures = report.figures(run)

# %% [markdown]
# ## Differences
#
# Paired by seed, in percentage points. With one seed there is no interval and nothing should be concluded from the sign.

# %%
report.difference_table(run)

# %% [markdown]
# With one seed the greedy answers, one per problem, can still be compared, by McNemar's exact test. It is over problems, so it says
# nothing about training again; p is not corrected for the number of rows.

# %%
report.one_answer_table(run, report.DIFFERENCES)

# %% [markdown]
# ## EM monitor
#
# Where stages measured it (`monitor_problems`): log P(y*|x, θ) and the ELBO on fixed held-out problems, after every update.

# %%
monitored = report.monitor_table(run)
"no stage had one" if monitored.empty else monitored

# %% [markdown]
# ## Rationales
#
# The first sample of each method for the first problems of the test split, not selected. All of them, to be filtered and compared,
# with the numbers of every token where a stage kept them, are in `rationales.html`.

# %%
report.rationales_html(report.rationales(run))

# %% [markdown]
# ## Quality of rationales
#
# What each θ-update learned from, and below it what each method writes on the test split: `brite_lib/quality.py` defines the columns.

# %%
report.learned_table(run)

# %%
report.written_table(run)

# %% [markdown]
# ## Costs
#
# To make each method: the sampling of its rationales is included, evaluation is not. Below it, the problems without a hit.

# %%
report.cost_table(run)

# %%
report.sampling_table(run)

# %% [markdown]
# Which stage read which, in seconds; the shade is the share of the slowest stage's.

# %%
report.pipeline_html(run)

# %% [markdown]
# Every stage; its tokens also in % of the upper bounds that `make plan` printed.

# %%
report.stage_table(run)

# %%
rows = write_results(run.dir)
places = [run.dir / key / f"{name}.parquet" for name in ("rationales", "predictions") for key in run.records]
tables = [path for path in places if path.is_file()]
page = report.write_html(run, pictures, run.dir / "report.html", browser=embedded(tables))
browser = to_html(tables, run.dir / "rationales.html", title=run.title)
print(f"{len(rows)} rows in {run.dir / 'results.json'}; report: {page}; all rationales: {browser}")
