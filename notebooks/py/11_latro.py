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
# # 11 · LaTRO and its relatives: a model trained in place
#
# LaTRO (arXiv 2411.04282) has no posterior model and no M-step. One model $\pi$ writes $z$, scores $y^\star$ itself and
# is trained on both, anchored to where it began, $\pi_0$:
#
# $$J = \mathbb{E}_{z\sim\pi(\cdot\mid x)}\big[\log \pi(y^\star \mid x, z)\big] - \beta\,\mathrm{KL}\big(\pi(z\mid x)\,\|\,\pi_0(z\mid x)\big),
# \qquad
# \nabla J = \mathbb{E}\Big[A(z)\,\nabla\log\pi(z\mid x) + \nabla\log\pi(y^\star\mid x,z)\Big]$$
#
# with $A$ the leave-one-out advantage of $\log\pi(y^\star\mid x,z) - \beta\log\frac{\pi(z\mid x)}{\pi_0(z\mid x)}$ among $K$ siblings. It is
# ψ-PPO with other settings, and so are GRPO, RLOO and VeriFree: this notebook runs them all. What LaTRO's released
# code does otherwise than its paper is in `docs/latro.md`.
#
# The next cell has every setting. What one changes first: the settings of the table below, `steps` and `learning_rate`.

# %% tags=["parameters"]
stage: str = ""  # name of the stage in its record; empty: the notebook's own
output_dir: str = "outputs/scratch/latro"  # where the stage writes
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
engine: str = "hf"  # who draws the rationales at the end: hf, or vllm for large models on GPUs (docs/vllm.md)
threads: int = 1  # CPU threads; on busy cores 2 are slower than 1
processes: int | str = 1  # processes that share the training, one per GPU; auto: as many as there are GPUs
accelerate_config: str = "auto"  # file for accelerate launch, such as params/accelerate/fsdp2.yaml; auto: ddp.yaml, or cpu2.yaml on a CPU
gradient_checkpointing: bool = False  # compute each layer again in the backward pass: long sequences fit, for one forward pass more
reward: str = "answer_likelihood"  # reward (i) log P(y*|x,z;θ), or (ii) verifier: R/β on a sampled y
beta: float = 1.0  # β of reward (ii)
kl_coef: float = 0.05  # β of the KL to the initial model (the paper: 0.05 GSM8K, 0.25 ARC)
brevity_cost: float = 0.0  # nats that every sampled token of z costs, boundary included: a signal o that wants short thinking
scorer: str = "live"  # who scores y*: the policy as it moves (LaTRO), or frozen: the initial model (BRiTE)
answer_signal: str = "log_prob"  # reward (i) is log P(y*|x,z), or prob: P(y*|x,z) itself (VeriFree)
answer_nll_weight: float = 1.0  # weight of the gradient through y*, the second term; 1 is exact, 0 LaTRO's code
boundary_is_action: bool = True  # False: the boundary is scored with y* and not with z (LaTRO's code)
unfinished_rule: str = "constant"  # unfinished rationales earn a constant, or twice_mean: twice the batch's mean (LaTRO's code)
unfinished_reward: float | None = None  # that constant; None: calibrated
unfinished_margin: float = 2.0  # nats below the lowest of the first 256 finished rewards
advantage: str = "rloo"  # gae (learned critic, the paper's PPO), rloo, group
gae_lambda: float = 0.95  # λ of GAE (γ is 1)
scale_group_std: bool = False  # divide a group's advantages by their standard deviation
whiten_advantages: bool = False  # standardise advantages over the batch
steps: int = 112  # policy updates: batches of fresh rationales
prompts_per_step: int = 16  # problems per batch
rationales_per_prompt: int = 16  # K, rationales sampled per problem
epochs: int = 1  # passes over a batch
minibatches: int = 1  # optimiser steps per pass
micro_batch_size: int = 256  # sequences per forward-backward pass of one process
learning_rate: float = 2e-4  # AdamW, policy
value_learning_rate: float = 1e-3  # AdamW, value head (gae)
lr_schedule: str = "linear"  # constant, linear, cosine
warmup_steps: int = 0  # updates of linear warm-up
weight_decay: float = 0.0  # AdamW, policy
clip: float = 0.2  # ε of the clipped objective
max_grad_norm: float = 1.0  # gradient norm is clipped to this
lora: dict | None = None  # train adapters, e.g. {"r": 32, "alpha": 128}; None: all weights
rollout_engine: str = "hf"  # who draws the rationales of each step: hf, or vllm with the policy's weights (docs/vllm.md)
rollout_device: str = "auto"  # rollout_engine: vllm on which GPU; auto: the policy's own, where it sleeps while the policy learns
rollout_memory: float = 0.3  # rollout_engine: vllm on the policy's GPU: share of its memory that it takes while it draws
importance_cap: float = 2.0  # rollout_engine: vllm: a completion counts Q(z) over vLLM's probability of it, this at the most
save_steps: int = 25  # checkpoint every so many updates
samples: int = 1  # rationales drawn from the model for every training problem at the end
monitor_problems: int = 0  # held-out problems of the EM monitor; 0: no monitor
monitor_samples: int = 64  # K of the EM monitor, rationales per held-out problem
validation_split: str = "validation"  # split that selects the weights; empty: the last training problems, held out
validation_limit: int = 200  # validation problems
validation_samples: int = 4  # samples per validation problem
validation_steps: int = 14  # validate every so many updates, before the first and after the last

# %%
from brite_lib.params import LatroParams

params = LatroParams.from_notebook(globals())
params.difference()

# %%
import pandas as pd

from brite_lib import em, live, plots
from brite_lib.launch import launch, number_of_processes
from brite_lib.models import load_policy, load_template, save_policy
from brite_lib.params import SPECIAL_CASES
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.records import Stage, metric_table
from brite_lib.rollouts import add_scores, generate, open_sampler
from brite_lib.selection import BestOnValidation, training_and_validation
from brite_lib.tables import RATIONALES, write_table

stage = Stage.start("latro", params)
problems, validation = training_and_validation(params)
stage.add_model(params.model)
template = load_template(params.model, params.template)
model = load_policy(params.model, device=params.device, dtype=params.dtype)
print(f"{len(problems)} training and {len(validation)} validation problems; boundary {template.formats.boundary!r}")

# %% [markdown]
# ## Special cases of one trainer
#
# Which settings make which method, whose gradient they follow in expectation, and where that leads a policy that
# could be anything. $P_\theta = \pi_0$ is the initial model. Every row but the released code is tested against the
# enumerated gradient of its objective. GRPO's own paper has the KL as a term of the loss and divides each completion's loss by its
# length; here both are as in the other rows, so that its objective can be written down.

# %%
cases = pd.DataFrame(SPECIAL_CASES.values(), SPECIAL_CASES.keys())
cases["settings"] = [", ".join(f"{name}: {value}" for name, value in case.items()) or "those of 02_psi_ppo" for case in cases["settings"]]
left = {"text-align": "left", "vertical-align": "top"}
cases.style.set_properties(**left).set_table_styles([{"selector": "th", "props": list(left.items())}])

# %% [markdown]
# ## Training
#
# The weights with the best pass@1 on *validation* problems are kept, the initial ones included. (LaTRO's own results
# are of the checkpoint with the best test accuracy.) An interrupted run resumes from `checkpoint/`. With several `processes`,
# `accelerate launch` trains to the last step, and the trainer here finds its checkpoint with nothing left to do.


# %%
def log(step: int, **metrics: float) -> None:
    stage.log(step, **metrics, **best.validate(step))


checkpoints = stage.checkpoints()
launched = launch("latro", params, number_of_processes(params), model) if params.launched else 0.0  # seconds
trainer = PosteriorPPOTrainer(model, template, problems, params, checkpoint=checkpoints / "state.pt", log=log)
best = BestOnValidation(trainer, validation, params, checkpoints / "best.pt")
stage.rewind(trainer.resume())
if trainer.step == 0:
    stage.log(0, **best.validate(0))
with live.shown(trainer, validation):
    policy = trainer.train()
step, score = best.restore()
stage.count(trainer.tokens_generated, trainer.tokens_trained, seconds=max(0.0, trainer.seconds_before - launched))
print(f"kept: the weights after {step} updates, validation pass@1 {score:.3f}")

# %%
names = ["validation/pass@1", f"reward/{trainer.reward.metric}", "kl", "entropy", "rationale_length", "finished"]
plots.training_curves(stage.path("metrics.jsonl"), names, title=params.stage, path=stage.path("figures/training.png"))

# %% [markdown]
# What to look at: with a small β the KL grows and $z$ may shrink. Where the gradient also goes through $y^\star$, the
# model can learn to answer well whatever it thought. The objective is still reward less β KL (`kl_coef`; here `elbo`, though it is a
# bound only at 1), and a nat of KL is now cheap: in the last batch

# %%
last = pd.read_json(stage.path("metrics.jsonl"), lines=True).iloc[-1]
reward, kl = last[f"reward/{trainer.reward.metric}"], last["kl"]
print(f"{reward:.4f} − {params.kl_coef:g} · {kl:.4f} = {reward - params.kl_coef * kl:.4f}; logged {last['elbo']:.4f}")

# %% [markdown]
# ## Rationales of the trained model

# %%
with open_sampler(policy, **params.drawing) as sampler:
    sampled = generate(sampler, problems, template, n=params.samples, seed=params.noise_seed + 1, source=params.stage, **params.generation)
stage.count(tokens_generated=sum(sampled["num_tokens"]))
with trainer.reference.model() as initial:
    rows = add_scores(sampled.to_list(), template, initial, batch_size=params.batch_size)
rows = add_scores(rows, template, None, policy, batch_size=params.batch_size)
write_table(rows, RATIONALES, stage.path("rationales.parquet"))
pd.DataFrame(rows)[["question", "gold", "rationale", "answer_text", "correct", "logp_answer"]].head(8)

# %% [markdown]
# ## EM monitor
#
# $\log P(y^\star \mid x; \pi)$ of the trained model on the validation split, with $\pi$ itself as the proposal. The same split selects
# the weights, so it flatters a little. Off unless `monitor_problems` is set.

# %%
monitored = em.monitored(params, template, policy)
metric_table(monitored) if monitored else "off: monitor_problems is 0"

# %%
directory = save_policy(policy, template, stage.path("model"))
table = pd.DataFrame(rows)
metrics = {f"train/{name}": float(table[name].mean()) for name in ("correct", "finished", "num_tokens", "logp_answer")}
kept = {"kept_step": step, "validation/pass@1": score, "unfinished_reward": trainer.unfinished_reward}
stage.finish([directory, stage.path("rationales.parquet")], {**kept, **metrics, **monitored})
