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
# # 10 · The rejection family
#
# The classic way to get rationales: sample $N$ per problem from $\theta$ itself and keep what is right. All of it is one objective
# (RS-EM, equation 3.7), with a choice of what counts as success:
#
# $$\max_{\theta'} \; \mathbb{E}_{(z, y) \sim P(\cdot \mid x; \theta)}\big[\,P(o{=}1 \mid x, z, y)\,\log P(z, y \mid x; \theta')\,\big]$$
#
# | `strategy` | $P(o{=}1 \mid x, z, y)$ | keeps |
# |---|---|---|
# | `rs`, the paper's | $1\{y \text{ right}\}$ | one random correct rationale per problem |
# | `raft` (RAFT, RFT) | the same | all correct ones, each different $(z, y)$ once |
# | `star` (STaR) | the same | as `rs`; problems without a hit are sampled again with the answer shown |
# | `rest_em` (ReST-EM, eq. 3.8) | $\propto \exp(R/\beta)$, or 0/1 without a $\beta$ | all, at most `max_per_problem`, with their rewards |
#
# What `rs` keeps is an exact draw from the posterior $P(z \mid x, y{=}y^\star; \theta)$, so wherever it has a hit nothing can
# beat it as an E-step. Its weakness is what it misses: a problem that $\theta$ solves with probability $p$ has no hit
# with probability $(1-p)^N$, and then teaches nothing: at $N = 30$ that is 4 % of the problems with $p = 0.1$, and 74 % of those with
# $p = 0.01$. With `until_hit` it goes on until every problem has one: a
# perfect E-step at a price, the reference row `posterior` of the result table.
#
# The others leave the posterior. `raft` evens out what $\theta$ likes best, and lets easy problems count more; so does `rest_em`, up to
# its cap. `star` rationalises: the hint is taken off what is learned, but such a $z$ comes from $P(z \mid x, \text{hint})$ and may
# justify an answer that it was told. `rest_em` fills the column `reward` with $R/\beta$ ($R$ is 1 or 0); $\theta$-SFT with
# `reward_weighted` weights the loss by its exponential and learns the sampled $y$, which may be wrong.
#
# The next cell has every setting. What one changes first: `strategy`, `samples`, `model` and `data`.

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
temperature: float = 1.0  # sampling temperature; the posterior needs 1
strategy: str = "rs"  # rs (the paper), raft, star, rest_em
samples: int = 30  # N, rationales per problem; star: as many again with the hint
until_hit: bool = False  # go on in rounds of N until every problem has a hit
max_samples: int = 3000  # until_hit: give a problem up after so many draws, and report it
beta: float | None = None  # rest_em: β of the weight exp(R/β); None: 0/1, only correct ones
max_per_problem: int = 10  # rest_em: rationales kept per problem, so that easy ones don't dominate

# %%
from brite_lib.params import RejectionParams

params = RejectionParams.from_notebook(globals())
params.difference()

# %%
import pandas as pd

from brite_lib.models import load_policy, load_template
from brite_lib.problems import load_problems
from brite_lib.records import Stage, metric_table
from brite_lib.rejection import check_hint, reject
from brite_lib.rollouts import add_scores, open_sampler
from brite_lib.tables import RATIONALES, write_table

stage = Stage.start("rs_sampling", params)
problems = load_problems(params.data, params.split, params.limit)
stage.add_model(params.model)
template = load_template(params.model, params.template)
check_hint(template, params)
theta = load_policy(params.model, device=params.device, dtype=params.dtype)

# %%
with open_sampler(theta, saved_as=params.model, **params.drawing) as sampler:
    kept, report = reject(sampler, problems, template, params, source="posterior" if params.until_hit else params.strategy)
stage.count(tokens_generated=report["tokens"])
metric_table(report)

# %% [markdown]
# `missed` is the share of problems without a hit (`star`: with or without the hint; `rationalised` counts those that needed it). They
# are counted here, and they are missing from what θ learns. `duplicates` are correct samples that only repeat another (`raft`).

# %% [markdown]
# The mean hides the hard problems. Were all as hard as the average one, $(1 - \bar p)^N$ of them would be missed. By Jensen's inequality
# the expected share is never less, and it is much more where a few problems are hopeless: they are what ψ-PPO can still learn from.

# %%
if not params.until_hit and params.strategy != "star":
    alike = (1 - report["correct"]) ** params.samples
    print(f"missed: {report['missed']:.4f}; were all alike: (1 − {report['correct']:.3f})^{params.samples} = {alike:.1e}")

# %%
if not kept:
    print("warning: no problem had a hit; raise samples, or the model can't solve these problems at all")
rows = add_scores(kept, template, theta, batch_size=params.batch_size)
write_table(rows, RATIONALES, stage.path("rationales.parquet"))
assert params.strategy in ("star", "rest_em") or all(row["correct"] for row in rows)
assert params.strategy != "rs" or len({row["id"] for row in rows}) == len(rows)  # one per problem
pd.DataFrame(rows, columns=["question", "gold", "rationale", "answer_text", "source", "sample", "logp_answer"]).head(8)

# %%
stage.finish([stage.path("rationales.parquet")], report)
