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
# # 10 · Rejection sampling
#
# The classic way to get rationales: sample $N$ per problem from $\theta$ itself and keep one whose answer is right.
# What is kept is an exact draw from the posterior $P(z \mid x, y{=}y^\star; \theta)$, so wherever it has a hit nothing can
# beat it as an E-step. Its weakness is what it misses: a problem that $\theta$ solves with probability $p$ has no hit
# with probability $(1-p)^N$, and then teaches nothing. With `until_hit` it goes on until every problem has one: a
# perfect E-step at a price, the reference row `posterior` of the result table.

# %% tags=["parameters"]
stage: str = ""  # name of the stage in its record; empty: the notebook's own
output_dir: str = "outputs/scratch/rs_sampling"  # where the stage writes
seed: int = 0  # the one seed of the stage
round: int = 1  # EM round that the stage belongs to
model: str = "assets/tiny-base"  # θ: a Hugging Face model directory or hub name
template: str | dict = "auto"  # how z and y are written: auto, a preset's name, or its fields
data: str = "toy:easy"  # problems: toy:<level>, a hub data set, or a .jsonl/.parquet path
split: str = "train"  # split of the data
limit: int | None = None  # use only so many problems; None: all (1000 on the toy task)
answer_kind: str = "exact"  # how answers are compared: exact, number, math, choice
max_rationale_tokens: int = 32  # longest rationale z, boundary included
max_answer_tokens: int = 8  # longest answer y, end token included
batch_size: int = 512  # sequences per forward pass without gradients, and per call of generate
device: str = "auto"  # auto, cpu, cuda, mps
dtype: str = "auto"  # auto: bfloat16 on CUDA, else float32
threads: int = 1  # CPU threads; on busy cores 2 are slower than 1
temperature: float = 1.0  # sampling temperature; the posterior needs 1
samples: int = 30  # N, rationales per problem
until_hit: bool = False  # go on in rounds of N until every problem has a hit
max_samples: int = 3000  # until_hit: give a problem up after so many draws, and report it

# %%
from brite_lib.params import RejectionParams

params = RejectionParams.from_notebook(globals())
params.difference()

# %%
import pandas as pd

from brite_lib.models import load_policy, load_template
from brite_lib.problems import load_problems
from brite_lib.records import Stage
from brite_lib.rejection import reject
from brite_lib.rollouts import add_scores
from brite_lib.tables import RATIONALES, write_table

stage = Stage.start("rs_sampling", params)
problems = load_problems(params.data, params.split, params.limit)
stage.add_model(params.model)
template = load_template(params.model, params.template)
theta = load_policy(params.model, device=params.device, dtype=params.dtype)

# %%
kept, report = reject(theta, problems, template, params, source="posterior" if params.until_hit else "rs")
stage.count(tokens_generated=report["tokens"])
report

# %% [markdown]
# `missed` is the share of problems without a hit. They are counted here, and they are missing from what θ learns.

# %%
if not kept:
    print("warning: no problem had a hit; raise samples, or the model can't solve these problems at all")
rows = add_scores(kept, template, theta, batch_size=params.batch_size)
write_table(rows, RATIONALES, stage.path("rationales.parquet"))
pd.DataFrame(rows, columns=["question", "gold", "rationale", "answer_text", "sample", "logp_answer"]).head(8)

# %%
stage.finish([stage.path("rationales.parquet")], report)
