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
# # 02 · ψ-PPO: learning the posterior over rationales
#
# The E-step of BRiTE. For a question $x$ with known answer $y^\star$, the rationales worth learning from are those of
# the posterior $P(z \mid x, y^\star, o{=}1; \theta) \propto P(z \mid x; \theta)\,P(y^\star \mid x, z; \theta)$. It can be
# sampled only by rejection, so a second model $Q_\psi(z \mid x)$ learns it by reinforcement learning: it starts at
# $\theta$, sees $x$ only, and maximises
#
# $$\mathbb{E}_{z\sim Q_\psi}\big[\log P(y^\star \mid x, z; \theta)\big] \;-\; c\,\mathrm{KL}\big(Q_\psi(\cdot \mid x)\,\|\,P(\cdot \mid x; \theta)\big)$$
#
# At $c = 1$ this is the evidence lower bound, and its maximum is the posterior. Token by token, the reward is
# $-c\,(\log Q_\psi - \log P_\theta)$, plus $\log P(y^\star \mid x, z; \theta)$ on the last token of $z$ (Proposition 3.7).
#
# The bound is one line of algebra: $\log P(y^\star \mid x; \theta) - \mathrm{ELBO} = \mathrm{KL}(Q_\psi \,\|\, \text{posterior}) \ge 0$. The
# left side's first term does not depend on $\psi$, so whatever raises the ELBO brings $Q_\psi$ nearer to the posterior.
#
# The next cell has every setting. What one changes first: `model` and `data`, the lengths `max_*_tokens`, `steps` and `learning_rate`.

# %% tags=["parameters"]
stage: str = ""  # name of the stage in its record; empty: the notebook's own
output_dir: str = "outputs/scratch/brite_psi"  # where the stage writes
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
kl_coef: float = 1.0  # c; only 1 has the posterior as its optimum
brevity_cost: float = 0.0  # nats that every sampled token of z costs, boundary included: a signal o that wants short thinking
scorer: str = "frozen"  # who scores y* in reward (i): frozen θ, or live: the policy as it moves (LaTRO)
answer_signal: str = "log_prob"  # reward (i) is log P(y*|x,z), or prob: P(y*|x,z) itself (VeriFree)
answer_nll_weight: float = 0.0  # scorer: live also sends the gradient of its signal through y*, times this; 1 is exact
boundary_is_action: bool = True  # False: the boundary is scored with y* and not with z (LaTRO's code)
unfinished_rule: str = "constant"  # unfinished rationales earn a constant, or twice_mean: twice the batch's mean (LaTRO's code)
unfinished_reward: float | None = None  # that constant; None: calibrated
unfinished_margin: float = 5.0  # nats below the lowest of the first 256 finished rewards
advantage: str = "rloo"  # gae (learned critic, the paper's PPO), rloo, group
gae_lambda: float = 0.95  # λ of GAE (γ is 1)
scale_group_std: bool = False  # divide a group's advantages by their standard deviation
whiten_advantages: bool = False  # standardise advantages over the batch
steps: int = 112  # policy updates: batches of fresh rationales
prompts_per_step: int = 32  # problems per batch
rationales_per_prompt: int = 8  # rationales sampled per problem
epochs: int = 1  # passes over a batch
minibatches: int = 1  # optimiser steps per pass
micro_batch_size: int = 256  # sequences per forward-backward pass of one process
learning_rate: float = 2e-4  # AdamW, policy
value_learning_rate: float = 1e-3  # AdamW, value head (gae)
lr_schedule: str = "constant"  # constant, linear, cosine
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
samples: int = 1  # rationales drawn from Q for every training problem at the end
monitor_problems: int = 0  # held-out problems of the EM monitor; 0: no monitor
monitor_samples: int = 64  # K of the EM monitor, rationales per held-out problem

# %%
from brite_lib.params import PsiParams

params = PsiParams.from_notebook(globals())
params.difference()

# %%
import pandas as pd
import torch

from brite_lib import costs, em, live, plots
from brite_lib.launch import launch, number_of_processes
from brite_lib.models import load_policy, load_template, save_policy
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.problems import has_split, load_problems
from brite_lib.records import Stage, metric_table
from brite_lib.rollouts import add_scores, generate, open_sampler
from brite_lib.tables import RATIONALES, write_table
from brite_lib.viewer import show

stage = Stage.start("brite_psi", params)
problems = load_problems(params.data, params.split, params.limit)
stage.add_model(params.model)
template = load_template(params.model, params.template)
theta = load_policy(params.model, device=params.device, dtype=params.dtype)
print(f"{len(problems)} problems; boundary {template.formats.boundary!r}; {sum(p.numel() for p in theta.parameters()):,} parameters")

# %% [markdown]
# ## What θ does before
#
# A few samples of $P(z \mid x; \theta)$ for one problem, with $\log P(y^\star \mid x, z; \theta)$: the reward that tells them apart.

# %%
shown = problems.select(range(min(64, len(problems))))
with costs.not_counted():  # only to be looked at
    before = add_scores(generate(theta, shown, template, n=4, seed=params.seed, source="θ", **params.generation), template, theta)
columns = ["question", "gold", "rationale", "answer_text", "correct", "logp_answer"]
pd.DataFrame(before)[columns].head(8)

# %% [markdown]
# One reward by another way: the loss of transformers on the tokens of $y^\star$ alone is their mean $-\log P$.

# %%
row = next((row for row in before if row["finished"]), None)
if row:
    context, gold = row["prompt_ids"] + row["rationale_ids"], template.answer_ids(row["gold"])
    with torch.no_grad(), costs.not_counted():
        ids = torch.tensor([context + gold, [-100] * len(context) + gold], device=theta.device)
        loss = theta(input_ids=ids[:1], labels=ids[1:]).loss.item()
    print(f"log P(y*|x,z): {row['logp_answer']:.4f} in the table, {-loss * len(gold):.4f} from the loss")

# %% [markdown]
# ## Training
#
# Every step samples fresh rationales from $Q_\psi$ at temperature 1 and updates on them. At step 0 the trainer checks
# that $\log Q_\psi = \log P_\theta$ on what it sampled: otherwise the KL would have the wrong anchor. The run resumes
# from `checkpoint/` if it was interrupted. In JupyterLab the picture below moves while it trains; it only looks on. With several
# `processes`, `accelerate launch` trains to the last step, and the trainer here finds its checkpoint with nothing left to do.

# %%
checkpoint = stage.checkpoints() / "state.pt"
launched = launch("brite_psi", params, number_of_processes(params), theta) if params.launched else 0.0  # seconds
trainer = PosteriorPPOTrainer(theta, template, problems, params, checkpoint=checkpoint, log=stage.log)
stage.rewind(trainer.resume())
validation = load_problems(params.data, "validation", 50) if has_split(params.data, "validation") else []
with live.shown(trainer, validation):  # looks on, changes nothing
    psi = trainer.train()
stage.count(trainer.tokens_generated, trainer.tokens_trained, seconds=max(0.0, trainer.seconds_before - launched))

# %% [markdown]
# What to look at. `elbo` must rise: it is the objective. It is made of two: the likelihood of $y^\star$ (`reward/…`), which rises, and
# `kl`, the nats that were paid for it. `finished` stays near 1; a fall means that $Q$ forgets to end its thoughts. `entropy` falls, but not
# to 0: a posterior has several rationales. A reward that rises while right answers (below) do not is the sign of hedging.

# %%
names = ["elbo", f"reward/{trainer.reward.metric}", "kl", "entropy", "rationale_length", "finished"]
plots.training_curves(stage.path("metrics.jsonl"), names, title="ψ-PPO", path=stage.path("figures/training.png"))

# %% [markdown]
# $Q$ starts at $\theta$, so the KL of the first batch, sampled before any update, is 0 up to rounding.

# %%
history = pd.read_json(stage.path("metrics.jsonl"), lines=True)
print(f"KL of the first batch {abs(history['kl'].iloc[0]):.4f}; ELBO {history['elbo'].iloc[0]:.3f} → {history['elbo'].iloc[-1]:.3f}")

# %% [markdown]
# The last batch, token by token (`?` lists the keys). Key 5 colours the reward, key 6 the advantage: the last update made blue tokens more
# frequent and orange ones rarer. With `rloo` and `group` a completion is compared with its siblings (`g` groups them), with `gae` a token
# with what the critic expected (key 7).

# %%
batch = trainer.latest.rows(template, params, problems=16) if trainer.latest else []  # none if the training was finished before
show(batch, title="Last batch of training") if batch else "trained before this kernel started"

# %% [markdown]
# ## EM monitor
#
# On held-out problems, with $K$ rationales each from $Q$: the ELBO and $\log P(y^\star \mid x; \theta)$ by importance sampling.
# The gap between them estimates $\mathrm{KL}(Q \,\|\, \text{posterior})$: what this E-step has left to do. The effective sample size
# says how far the likelihood can be trusted; its tokens are no cost of the method. Off unless `monitor_problems` is set.
# Its names: `…_se` is the standard error over problems, `…_sampling_se` that of the $K$ draws alone; `low_ess` is the share of problems
# in which a few rationales carry the estimate, `unresolved` counts those without a finished one.

# %%
monitored = em.monitored(params, template, psi, theta=trainer.reference.model())
metric_table(monitored) if monitored else "off: monitor_problems is 0"

# %% [markdown]
# ## Rationales from Q
#
# One pass over the training problems; these rows are what the θ-update learns from. `logp_theta` and `logp_psi` are
# per-token log-probabilities, `logp_answer` is $\log P(y^\star \mid x, z; \theta)$.

# %%
with open_sampler(psi, **params.drawing) as q:
    sampled = generate(q, problems, template, n=params.samples, seed=params.noise_seed + 1, source="psi", **params.generation)
stage.count(tokens_generated=sum(sampled["num_tokens"]))
with trainer.reference.model() as frozen:
    rows = add_scores(sampled.to_list(), template, frozen, batch_size=params.batch_size)
rows = add_scores(rows, template, None, psi, batch_size=params.batch_size)
write_table(rows, RATIONALES, stage.path("rationales.parquet"))
pd.DataFrame(rows)[columns].head(8)

# %% [markdown]
# The table is enough to compute the ELBO again, on other problems and other samples than the last batch of training. With $c = 1$,
# reward (i) and no cost of brevity the two agree up to sampling.

# %%
scored = [row for row in rows if row["finished"]]
again = [row["logp_answer"] - params.kl_coef * (sum(row["logp_psi"]) - sum(row["logp_theta"])) for row in scored]
print(f"ELBO {pd.Series(again, dtype=float).mean():.3f} over {len(again)} rationales; in the last batch {history['elbo'].iloc[-1]:.3f}")

# %% [markdown]
# What to look at: the share of right answers and the likelihood of $y^\star$ should have risen. Where the base is *not*
# competent, reward (i) rightly prefers an honest guess over confident wrong thinking; `docs/limits.md` shows that case.


# %%
def mean(table: list[dict], column: str) -> float:
    return pd.Series([row[column] for row in table], dtype=float).mean()


compared = {name: {"θ": mean(before, name), "Q": mean(rows, name)} for name in ("correct", "finished", "num_tokens", "logp_answer")}
pd.DataFrame(compared).T.round(3)

# %%
directory = save_policy(psi, template, stage.path("model"))
metrics = {f"{side}/{name}": value for name, sides in compared.items() for side, value in sides.items()}
stage.finish([directory, stage.path("rationales.parquet")], {**metrics, **monitored, "unfinished_reward": trainer.unfinished_reward})
