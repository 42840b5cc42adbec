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
# # 04 · DPO: learning from pairs
#
# Another learner on samples: not "make right thinking likely", but "make it likelier than wrong thinking". Of $N$ samples
# $(z, y)$ of a problem one random correct one $(z^+, y^+)$ and one random incorrect one $(z^-, y^-)$ make a pair, and latent DPO
# (equation 3.6) minimises
# $$-\log \sigma\Big(\beta \log \tfrac{Q(z^+, y^+ \mid x)}{P(z^+, y^+ \mid x)} - \beta \log \tfrac{Q(z^-, y^- \mid x)}{P(z^-, y^- \mid x)}\Big)$$
# with $P$ the model before and $Q$ the model that learns. *Iterative DPO* draws the pairs from the model itself, again in every
# iteration; *BRiTE-DPO* draws them from a $Q_\psi$ that ψ-PPO has learned first (`sampler`), and goes on from that $Q_\psi$. The paper
# does not say what DPO starts from; with `start_from: model` it is $\theta$, for which both sides of such a pair can be unlikely. Then the loss
# pushes down what they share ([`docs/results/tiny-all.md`](../docs/results/tiny-all.md) shows how far that goes). A problem that the
# sampler always or never solves has no contrast and teaches nothing: those are counted.
#
# The next cell has every setting. What one changes first: `sampler` or `pairs`, `samples`, `beta` and `learning_rate`.

# %% tags=["parameters"]
stage: str = ""  # name of the stage in its record; empty: the notebook's own
output_dir: str = "outputs/scratch/dpo"  # where the stage writes
seed: int = 0  # the one seed of the stage
round: int = 1  # iteration that the stage belongs to
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
processes: int | str = 1  # processes that share the training, one per GPU; auto: as many as there are GPUs
accelerate_config: str = "auto"  # file for accelerate launch, such as params/accelerate/fsdp2.yaml; auto: ddp.yaml, or cpu2.yaml on a CPU
gradient_checkpointing: bool = False  # compute each layer again in the backward pass: long sequences fit, for one forward pass more
temperature: float = 1.0  # sampling temperature of the pairs
sampler: str = ""  # model that the pairs are drawn from: Q_ψ for BRiTE-DPO; empty: the model itself
start_from: str = "sampler"  # what learns and is its own reference: the sampler, or model: θ (the paper does not say)
pairs: str = ""  # a pairs.parquet, or pairs.jsonl from the rationale browser; empty: drawn here
samples: int = 30  # N, rationales and answers per problem
beta: float = 0.1  # β of the loss: how much a log-ratio to the reference counts
epochs: float = 4  # passes over the pairs
train_batch_size: int = 32  # pairs per optimiser step, of all processes
micro_batch_size: int = 32  # pairs per forward-backward pass of one process
learning_rate: float = 1e-4  # AdamW
lr_schedule: str = "cosine"  # constant, linear, cosine
warmup_ratio: float = 0.05  # share of the steps used for warm-up
weight_decay: float = 0.0  # AdamW
max_grad_norm: float = 1.0  # gradient norm is clipped to this
lora: dict | None = None  # train adapters, e.g. {"r": 32, "alpha": 128}; None: all weights
save_steps: int = 50  # checkpoint every so many optimiser steps

# %%
from brite_lib.params import DpoParams

params = DpoParams.from_notebook(globals())
params.difference()

# %%
import math

import pandas as pd

from brite_lib import plots
from brite_lib.checkpointing import resume_step
from brite_lib.dpo import draw_pairs, rationale_dpo
from brite_lib.launch import launch, number_of_processes
from brite_lib.models import load_policy, load_template, save_policy
from brite_lib.problems import load_problems
from brite_lib.records import Stage, metric_table
from brite_lib.tables import PAIRS, write_table

stage = Stage.start("dpo", params)
problems = load_problems(params.data, params.split, params.limit)
stage.add_model(params.model)
if params.sampler:
    stage.add_model(params.sampler)
if params.pairs:
    stage.add_input(params.pairs)
template = load_template(params.model, params.template)
checkpoints = stage.checkpoints()

# %% [markdown]
# ## Pairs
#
# Sampled once: a run that was killed in training finds its pairs beside its checkpoints. `pairs` takes pairs that a person picked in
# the rationale browser instead.

# %%
pairs, report = draw_pairs(problems, template, params, checkpoints)
write_table(pairs, PAIRS, stage.path("pairs.parquet"))
stage.count(tokens_generated=report["tokens"])
print(f"{report['pairs']} pairs, from {report['problems']} problems; a problem that is always right or always wrong has none")
metric_table(report)

# %%
parts = {"rationale": "z", "answer_text": "y"}
sides = {f"{side}_{part}": f"{side} {letter}" for side in ("chosen", "rejected") for part, letter in parts.items()}
pd.DataFrame(pairs)[["question", "gold", *sides, "num_correct"]].rename(columns=sides).head(8)

# %% [markdown]
# The two sides of a pair have one prompt, so a drawn problem was sometimes solved and sometimes not: `num_correct` is neither 0 nor $N$.

# %%
assert params.pairs or all(0 < pair["num_correct"] < params.samples for pair in pairs)
right, drawn = (pd.Series([pair[name] for pair in pairs], dtype=float).median() for name in ("num_correct", "num_samples"))
print(f"median over the pairs: {right:g} of {drawn:g} samples of the problem are right")

# %% [markdown]
# ## Training
#
# With several `processes`, `accelerate launch` trains to the last step, and the trainer here finds its checkpoint with nothing left to do.

# %%
stage.rewind(resume_step(checkpoints))
if params.launched:
    launch("dpo", params, number_of_processes(params))
theta = load_policy(params.start, device=params.device, dtype=params.dtype)
theta, metrics = rationale_dpo(theta, pairs, template, params, checkpoints, log=stage.log)
stage.count(tokens_trained=metrics["tokens_trained"])
metric_table(metrics)

# %% [markdown]
# The implicit reward of a sample is $\beta \log Q/P$. Its margin within a pair rises, and its accuracy (the share of pairs in which
# the correct one has more) goes to 1. Watch `logps/chosen`: only the difference is trained, so both may fall. What the model is
# worth is for the evaluation to say.

# %%
names = ["loss", "rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected", "logps/chosen"]
plots.training_curves(stage.path("metrics.jsonl"), names, title="DPO", path=stage.path("figures/training.png"))

# %% [markdown]
# Before the first update $Q = P$, both log-ratios are 0, and the loss is $-\log\sigma(0) = \log 2$.

# %%
history = pd.read_json(stage.path("metrics.jsonl"), lines=True)
print(f"loss {history['loss'].iloc[0]:.4f} at first (log 2 = {math.log(2):.4f}), {history['loss'].iloc[-1]:.4f} at the end")

# %%
directory = save_policy(theta, template, stage.path("model"))
stage.finish([directory, stage.path("pairs.parquet")], {**metrics, **report})
