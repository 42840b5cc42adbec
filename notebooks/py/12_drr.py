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
# # 12 · DRR: distil, reinforce, reason
#
# A model that is often wrong can be helped from outside, without training it. (1) *Distil*: the Reasoner $\theta$ attempts
# training problems turn by turn until it is right or a cap is reached; every attempt $(z, y)$ is labelled by its final answer. (2) *Reinforce*:
# a light discriminator learns $D(x, \text{rejected attempts}, z, y) \approx P(y = y^\star)$ from these labels. (3) *Reason*: at
# inference $D \ge \tau$ accepts and stops; else the Reasoner is shown its rejected attempts and tries again, up to the cap, where the attempt
# with the highest $D$ wins. The threshold $\tau$ is chosen on held-out training problems. With a perfect $D$ and attempts that are right with
# probability $p$, independently, the accuracy at a cap of $T$ turns is $1-(1-p)^T$.
#
# The next cell has every setting. What one changes first: `turns`, `chains`, `model` and `data`.

# %% tags=["parameters"]
stage: str = ""  # name of the stage in its record; empty: the notebook's own
output_dir: str = "outputs/scratch/drr"  # where the stage writes
seed: int = 0  # the one seed of the stage
round: int = 1  # EM round that the stage belongs to
model: str = "assets/tiny-base"  # θ, the Reasoner: a Hugging Face model directory or hub name
template: str | dict = "auto"  # how z and y are written: auto, a preset's name, or its fields
data: str = "toy:easy"  # problems: toy:<level>, a hub data set, or a .jsonl/.parquet path
split: str = "train"  # split of the data
limit: int | None = None  # use only so many problems; None: all (1000 on the toy task)
answer_kind: str = "auto"  # how answers are compared: auto, exact, number, math, choice, code
program_seconds: float = 10.0  # answer_kind code: time for one program and its tests
i_understand_the_risk: bool = False  # answer_kind code: run programs with your rights where nothing isolates them
max_rationale_tokens: int = 32  # longest rationale z, boundary included
max_answer_tokens: int = 8  # longest answer y, end token included
batch_size: int = 512  # sequences per forward pass without gradients, and per call of generate
device: str = "auto"  # auto, cpu, cuda, mps
dtype: str = "auto"  # auto: bfloat16 on CUDA, else float32
engine: str = "hf"  # who draws the samples: hf, or vllm for large models on GPUs (docs/vllm.md)
threads: int = 1  # CPU threads; on busy cores 2 are slower than 1
temperature: float = 1.0  # sampling temperature of attempts and votes
method: str = "drr"  # row of the result table
benchmark: str = "toy"  # column of the result table
test_data: str = ""  # problems to be answered with feedback; empty: the same data
test_split: str = "test"  # their split
test_limit: int | None = None  # use only so many of them; None: all (1000 on the toy task)
turns: int = 4  # T, attempts at a problem at the most
chains: int = 4  # how many times each training problem is attempted, turn by turn until right
discriminator: str = ""  # model that the discriminator starts from; empty: the Reasoner's own weights
false_accept_weight: float = 1.0  # what accepting a wrong attempt costs, in rejected right ones
validation_share: float = 0.2  # training problems held out to choose the threshold on
threshold: float | None = None  # accept from this score on; None: chosen on the held-out training problems
epochs: float = 4  # passes over the attempts
train_batch_size: int = 32  # attempts per optimiser step
micro_batch_size: int = 32  # attempts per forward-backward pass
learning_rate: float = 5e-4  # AdamW
lr_schedule: str = "cosine"  # constant, linear, cosine
warmup_ratio: float = 0.05  # share of the steps used for warm-up
weight_decay: float = 0.0  # AdamW
max_grad_norm: float = 1.0  # gradient norm is clipped to this
save_steps: int = 50  # checkpoint every so many optimiser steps
vote_samples: int = 8  # most samples per problem of the majority vote
bins: int = 10  # of the reliability diagram
bootstrap: int = 2000  # resamples of the problems for the intervals

# %%
from brite_lib.params import DrrParams

params = DrrParams.from_notebook(globals())
params.difference()

# %%
import math

import numpy as np
import pandas as pd

from brite_lib import costs, drr, judges, plots, roc
from brite_lib.checkpointing import resume_step
from brite_lib.models import load_policy, load_template
from brite_lib.problems import load_problems
from brite_lib.records import Stage, metric_table
from brite_lib.rollouts import add_scores, generate, open_sampler
from brite_lib.tables import PREDICTIONS, write_table

stage = Stage.start("drr", params)
problems = load_problems(params.data, params.split, params.limit).to_list()
test = load_problems(params.test_data or params.data, params.test_split, params.test_limit).to_list()
stage.add_model(params.model)
if params.discriminator:
    stage.add_model(params.discriminator)
template = load_template(params.model, params.template)
reasoner = load_policy(params.model, device=params.device, dtype=params.dtype)
checkpoints = stage.checkpoints()

# %% [markdown]
# ## 1 · Distil
#
# Every training problem is attempted in `chains` chains; a chain ends with its first right attempt, and a next attempt sees the
# rejected ones in its prompt. Sampled once: a run that was killed in training finds the attempts beside its checkpoints.

# %%
if not (checkpoints / "behaviour.parquet").is_file():
    # Not counted here, but from the table below, also after a resume.
    with costs.not_counted(), open_sampler(reasoner, saved_as=params.model, **params.drawing) as sampler:
        attempted = drr.collect_behaviour(sampler, problems, template, params)
    write_table(attempted, drr.ATTEMPTS, checkpoints / "behaviour.parquet")
behaviour = drr.read_attempts(checkpoints / "behaviour.parquet")
write_table(behaviour, drr.ATTEMPTS, stage.path("behaviour.parquet"))
written, read = [row["num_tokens"] for row in behaviour], [len(row["prompt_ids"]) for row in behaviour]
stage.count(tokens_generated=sum(written), flops=costs.ModelCost.of(reasoner).sampling(read, written))
table = pd.DataFrame(behaviour)
table[["question", "rejected", "rationale", "answer_text", "gold", "accepted"]].head(8)

# %% [markdown]
# Look at `right` in the second turn: does a Reasoner that is told "this was wrong" do better than before? Later turns have only the
# chains that failed twice. Below the table, what independent attempts would reach, $1 - (1-p)^T$: much less means that a
# chain repeats its mistakes, more that the rejection helps.

# %%
turns = table.groupby("turn")["accepted"].agg(attempts="size", right="mean")
p, reached = turns["right"].iloc[0], table.groupby(["id", "sample"])["accepted"].any().mean()
print(f"right within {params.turns} turns: {reached:.3f}; independent attempts: {1 - (1 - p) ** params.turns:.3f}")
turns.round(3)

# %% [markdown]
# ## 2 · Reinforce
#
# The discriminator is the model with a head of two classes, trained by cross-entropy. Right and wrong attempts weigh the same, whatever
# their numbers, and its score is corrected for that afterwards. $\tau$ minimises false accepts plus false rejects on problems that
# were held out (`validation/…`).

# %%
stage.rewind(resume_step(checkpoints))
base = params.discriminator or params.model
discriminator, metrics = drr.train_discriminator(behaviour, base, template, params, checkpoints, log=stage.log)
stage.count(tokens_trained=metrics["tokens_trained"])
metric_table(metrics)

# %%
plots.training_curves(stage.path("metrics.jsonl"), ["loss"], title="Discriminator", path=stage.path("figures/training.png"))

# %% [markdown]
# A judge that always says one half has a loss of $\log 2$; what is learned lies below it.

# %%
losses = pd.read_json(stage.path("metrics.jsonl"), lines=True)["loss"]
print(f"loss {losses.head(20).mean():.3f} over the first 20 steps, {losses.tail(20).mean():.3f} over the last; log 2 = {math.log(2):.3f}")

# %% [markdown]
# ## 3 · Reason
#
# One loop, three judges: the discriminator; the Reasoner itself (*self-critique*: it samples the verdict); and one that rejects
# everything, which shows what retrying is worth without judgement. All three judge the same first attempts. The majority vote
# has samples of its own.

# %%
used = {
    params.method: discriminator,
    "self-critique": judges.SelfCritique(reasoner, template, params.seed, params.batch_size),
    "always reject": judges.always_reject,
}
options = {**params.generation, "seed": params.seed, "source": "vote"}
# Not counted: inference is no cost of making the discriminator.
with costs.not_counted(), open_sampler(reasoner, saved_as=params.model, **params.drawing) as sampler:
    runs = {name: drr.reason_with_feedback(sampler, judge, test, template, params) for name, judge in used.items()}
    votes = generate(sampler, test, template, params.vote_samples, params.temperature, **options).to_list()
attempts = runs[params.method]

# %% [markdown]
# Accuracy of one answer per problem, with bootstrap intervals over problems. `single` is the first attempt. `vote/written` is a majority vote
# that may write as many tokens as DRR does, `vote/written+read` one that may spend as many on reading and writing (`samples`: how many
# votes that buys); the second is the fair rival. Rows with a minus are paired differences: an interval without 0 says that DRR is worth its turns.

# %%
results = drr.compare(runs, votes, params)
pd.DataFrame(results).T.round(3).astype(object).fillna("")

# %% [markdown]
# By the cap on turns $T$. All judges see the same first attempts, so the first line is one number; *always reject* shows what trying again
# is worth when right answers are thrown away too.

# %%
curves = {name: pd.DataFrame(drr.by_turns(rows, params.turns)) for name, rows in runs.items()}
by_turn = pd.DataFrame({name: curve.set_index("turns")["accuracy"] for name, curve in curves.items()})
assert by_turn.loc[1].nunique() == 1
curves["vote"] = pd.DataFrame(drr.vote_by_samples(votes)).drop(columns="values")
by_turn.round(3)

# %% [markdown]
# The same against what it costs per problem. Left, tokens that were written; right, also those that were read: a turn reads its prompt, the
# rejected attempts in it, and what the judge reads. Up and to the left is better.

# %%
with plots.styled():
    figure, (ax, other) = plots.plt.subplots(1, 2, figsize=(7.2, 2.8), layout="constrained", sharey=True)
    for colour, (name, curve) in zip(plots.PALETTE, curves.items(), strict=False):
        ax.plot(curve["tokens_generated"], curve["accuracy"], "o-", markersize=3.5, color=colour, label=name)
        other.plot(curve["tokens_generated"] + curve["tokens_read"], curve["accuracy"], "o-", markersize=3.5, color=colour)
    ax.set(xlabel="tokens written per problem", ylabel="accuracy", ylim=(0, 1.02))
    other.set(xlabel="tokens written and read per problem")
    ax.legend(frameon=False, fontsize=8)
plots.finish(figure, "A point per turn (or vote)", stage.path("figures/accuracy.png"))

# %% [markdown]
# ## How good is the judgement?
#
# On the first attempts, one per problem, which no judge selected. Nothing here was used to choose anything. `auroc`: how often a right
# attempt scores above a wrong one (0.5 is chance); `false_accept`: share of the wrong ones that pass; `false_reject`: share of the right
# ones that do not; `ece`: how far scores are from shares of right ones.

# %%
judged = {}
for name in (params.method, "self-critique"):
    first = [row for row in runs[name] if row["turn"] == 1]
    judged[name] = roc.summary(first, params.bins, params.bootstrap, params.seed)
    judged[f"{name}, all turns"] = roc.summary(runs[name], params.bins, params.bootstrap, params.seed)
pd.DataFrame(judged).T.round(3)

# %% [markdown]
# The AUROC once more, by its definition: all pairs of a right and a wrong attempt, a tie counts half.

# %%
first = [row for row in attempts if row["turn"] == 1]
right, wrong = ([row["score"] for row in first if row["correct"] is side] for side in (True, False))
ahead = np.subtract.outer(right, wrong)
print(f"{(ahead > 0).mean() + (ahead == 0).mean() / 2:.4f} by hand; above {judged[params.method]['auroc']:.4f}")

# %% [markdown]
# On the diagonal a score means what it says. The size of a dot is the number of attempts in its bin.

# %%
bins = pd.DataFrame(roc.reliability([row["correct"] for row in first], [row["score"] for row in first], params.bins))
with plots.styled():
    figure, ax = plots.plt.subplots(figsize=(3.6, 3.2), layout="constrained")
    ax.plot([0, 1], [0, 1], color=plots.GREY, linewidth=1, linestyle="--")
    ax.scatter(bins["score"], bins["right"], s=10 + 240 * bins["count"] / bins["count"].sum(), color=plots.PALETTE[0], alpha=0.8)
    ax.set(xlabel="mean score", ylabel="share right", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
plots.finish(figure, "Reliability of the discriminator", stage.path("figures/reliability.png"))

# %% [markdown]
# ## The record
#
# One final answer per problem in the table of predictions, so that the report reads it as pass@1. The stage's cost is that of making
# the discriminator; what inference costs is in the metrics.

# %%
with costs.not_counted():
    answers = add_scores(drr.final_answers(attempts), template, reasoner, batch_size=params.batch_size)
answers = [{**row, "temperature": params.temperature, "benchmark": params.benchmark} for row in answers]
predictions = [{name: row[name] for name in PREDICTIONS.names if name in row} for row in answers]
write_table(predictions, PREDICTIONS, stage.path("predictions.parquet"))
judged_rows = [{**row, "source": name} for name, rows in runs.items() for row in rows]
write_table(judged_rows, drr.ATTEMPTS, stage.path("attempts.parquet"))

# %%
outputs = [stage.path(name) for name in ("behaviour.parquet", "attempts.parquet", "predictions.parquet")]
outputs.append(discriminator.save(stage.path("discriminator")))
metrics |= {"results": results, "judgement": judged, "reliability": bins.to_dict("records")}
metrics |= {"curves": {name: curve.to_dict("records") for name, curve in curves.items()}}
stage.finish(outputs, {"pass@1": results[params.method]["accuracy"], **metrics})
