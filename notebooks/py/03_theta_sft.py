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
# # 03 · θ-SFT: learning from rationales
#
# The M-step of BRiTE, and of every method that makes rationales first: maximise
# $\mathbb{E}_{z}\big[\log P(z, y^\star \mid x; \theta)\big]$ over $\theta$, with $z$ from $Q_\psi$ (BRiTE), from rejection sampling,
# or from people (equation 3.5). That is supervised fine-tuning with the loss on $z$ and $y^\star$ only; TRL's
# `SFTTrainer` does it. The source of $z$ is the only difference between the methods.
#
# The next cell has every setting. What one changes first: `rationales` (what it learns from), `model`, `epochs` and `learning_rate`.

# %% tags=["parameters"]
stage: str = ""  # name of the stage in its record; empty: the notebook's own
output_dir: str = "outputs/scratch/theta_sft"  # where the stage writes
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
threads: int = 1  # CPU threads; on busy cores 2 are slower than 1
processes: int | str = 1  # processes that share the training, one per GPU; auto: as many as there are GPUs
accelerate_config: str = "auto"  # file for accelerate launch, such as params/accelerate/fsdp2.yaml; auto: ddp.yaml, or cpu2.yaml on a CPU
gradient_checkpointing: bool = False  # compute each layer again in the backward pass: long sequences fit, for one forward pass more
rationales: str = "human"  # a rationales.parquet, or human for the data's own rationales
correct_only: bool = False  # leave out rationales whose sampled answer was judged wrong
reward_weighted: bool = False  # ReST-EM: weight by exp(reward), and train on the sampled y instead of y*
retokenise: bool = False  # tokenise the rationales' texts anew: they are of a model with another tokenizer (distillation)
epochs: float = 4  # passes over the rationales
train_batch_size: int = 32  # sequences per optimiser step, of all processes
micro_batch_size: int = 32  # sequences per forward-backward pass of one process
learning_rate: float = 5e-4  # AdamW
lr_schedule: str = "cosine"  # constant, linear, cosine
warmup_ratio: float = 0.05  # share of the steps used for warm-up
weight_decay: float = 0.0  # AdamW
max_grad_norm: float = 1.0  # gradient norm is clipped to this
lora: dict | None = None  # train adapters, e.g. {"r": 32, "alpha": 128}; None: all weights
save_steps: int = 50  # checkpoint every so many optimiser steps
monitor_problems: int = 0  # held-out problems of the EM monitor; 0: no monitor
monitor_samples: int = 64  # K of the EM monitor, rationales per held-out problem

# %%
from brite_lib.params import ThetaParams

params = ThetaParams.from_notebook(globals())
params.difference()

# %%
import pandas as pd

from brite_lib import em, plots, quality
from brite_lib.checkpointing import resume_step
from brite_lib.launch import launch, number_of_processes
from brite_lib.models import load_policy, load_template, save_policy
from brite_lib.records import Stage, metric_table
from brite_lib.sft import load_rows, rationale_sft, training_rows

stage = Stage.start("theta_sft", params)
if params.rationales != "human":
    stage.add_input(params.rationales)
rows = load_rows(params)
stage.add_model(params.model)
template = load_template(params.model, params.template)
model = load_policy(params.model, device=params.device, dtype=params.dtype)

# %% [markdown]
# ## What it learns from
#
# Sampled rationales keep the very tokens that were sampled; human ones, and those of a model with another tokenizer
# (`retokenise`), are tokenised once. Unfinished ones are left out.

# %%
dataset = training_rows(rows, template, params.correct_only, params.reward_weighted)
print(f"{len(dataset)} of {len(rows)} rationales are trained on")
pd.DataFrame(rows)[["question", "rationale", "gold"]].head(5) if rows else "no rationales"

# %% [markdown]
# One sequence: prompt tokens are context (label −100), rationale, boundary, answer and end token are learned.

# %%
if len(dataset):
    first = dataset[0]
    context = first["labels"].count(-100)
    print("context:", template.decode(first["input_ids"][:context])[-300:])
    print("learned:", template.decode(first["input_ids"][context:])[-300:])
    assert first["labels"] == [-100] * context + first["input_ids"][context:]  # each token is either context or its own target

# %% [markdown]
# ## How good they are
#
# Apart from right or wrong: perplexity under $\theta$ before it learns from them, steps, repetition, the share that states the answer
# before any derivation, and the share that ends in its own answer. `brite_lib/quality.py` defines each and says where it is blind.

# %%
before = quality.with_log_probs(rows, template, model, params.batch_size)
written = quality.summary(before)
metric_table(written)

# %% [markdown]
# ## Training
#
# The loss is $-\log P(z, y^\star \mid x; \theta)$ in nats per learned token. Where $\theta$ itself or $Q_\psi$ wrote the
# rationales it starts low: what changes is less what $\theta$ can do than how *often* it does it. An interrupted run resumes. With
# several `processes`, `accelerate launch` trains to the last step, and the trainer here finds its checkpoint with nothing left to do.

# %%
checkpoints = stage.checkpoints()
stage.rewind(resume_step(checkpoints))
if params.launched:
    launch("theta_sft", params, number_of_processes(params), model)
model, metrics = rationale_sft(model, dataset, template, params, checkpoints, log=stage.log)
stage.count(tokens_trained=metrics["tokens_trained"])
metric_table(metrics)

# %%
if metrics["steps"]:
    plots.training_curves(stage.path("metrics.jsonl"), ["loss", "learning_rate"], title="θ-SFT", path=stage.path("figures/training.png"))

# %% [markdown]
# Did it learn what it was shown? The rationales of the first problems, $-\log P(z \mid x; \theta)$ before and after. The second should be lower,
# and not 0: a question has several good rationales.

# %%
shown = before[:64]
after = quality.with_log_probs([{**row, "logp_theta": None} for row in shown], template, model, params.batch_size)
nats = {name: quality.summary(table).get("quality/nats") for name, table in (("before", shown), ("after", after))}
pd.DataFrame(nats, index=["nats per rationale"], dtype=float).round(3)

# %% [markdown]
# ## EM monitor
#
# $\log P(y^\star \mid x; \theta)$ of the new $\theta$ on held-out problems, with $\theta$ itself as the proposal. EM promises that a
# round raises it on what it learned from; here it is measured on what it has not seen. Off unless `monitor_problems` is set.

# %%
monitored = em.monitored(params, template, model)
metric_table(monitored) if monitored else "off: monitor_problems is 0"

# %%
directory = save_policy(model, template, stage.path("model"))
stage.finish([directory], {**metrics, **written, **monitored, "rationales": len(dataset), "problems": len({row["id"] for row in rows})})
