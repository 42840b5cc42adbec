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
# # 20 · Limits: when the base is not competent
#
# Everywhere else in this project the base model is right when it thinks. Here it is not. In a world of *two readings*
# (`brite_lib/problems/two_readings.py`) a chain starts at its first digit or at five more, by the hash of the
# question; the model thinks fluently in either reading and cannot know which one is right. Its confident thinking is
# wrong in half of the problems, guessing is right in one of ten.
#
# Rejection sampling keeps rationales in proportion to $\mathbb{E}[P(y^\star \mid x, z)]$. ψ-PPO with reward (i) sees $x$
# only, so the best it can do is a mixture of styles in proportion to $\exp \mathbb{E}[\log P(y^\star \mid x, z)]$. The two
# differ by Jensen's inequality, and a logarithm is merciless to confident error: **reward (i) prefers an honest guess.**
# Reward (ii), a verifier on a sampled answer, averages rightness itself and does not.

# %% tags=["parameters"]
seed: int = 0  # seed of everything
output_dir: str = "outputs/scratch/limits"  # where the stage writes
model: str = "assets/tiny-base"  # a model that can add; it becomes the incompetent base
problems: int = 1000  # training problems, and half as many test problems
base_steps: int = 400  # optimiser steps that teach the base the two readings
psi_steps: int = 112  # policy updates of each ψ-PPO
beta: float = 0.1  # β of reward (ii)
threads: int = 1  # CPU threads; on busy cores 2 are slower than 1

# %%
from brite_lib.params import LimitsParams

params = LimitsParams.from_notebook(globals())
params.difference()

# %%
import copy

import pandas as pd

from brite_lib import plots
from brite_lib.models import load_policy, load_template
from brite_lib.params import PsiParams, RejectionParams, ThetaParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.problems import style_of, two_readings
from brite_lib.records import Stage
from brite_lib.rejection import reject
from brite_lib.rollouts import add_scores, generate
from brite_lib.sft import rationale_sft, training_rows

stage = Stage.start("limits", params)
stage.add_model(params.model)
checkpoints = stage.checkpoints()
template = load_template(params.model)
train = [problem.model_dump() for problem in two_readings.two_reading_problems("train", params.problems)]
test = [problem.model_dump() for problem in two_readings.two_reading_problems("test", params.problems // 2)]
pd.DataFrame(train)[["question", "answer", "rationale"]].head(4)

# %% [markdown]
# ## A base that is fluent and cannot tell
#
# The embedded model, taught a mixture: thinking in either reading 1/4 each, skipping 1/4, guessing 1/4.

# %%
lessons = two_readings.training_sequences(template, params.base_steps * 64, params.seed)
settings = {"train_batch_size": 64, "micro_batch_size": 64, "epochs": 1, "learning_rate": 3e-4, "seed": params.seed, "device": "cpu"}
sft = ThetaParams.parse({**settings, "save_steps": 10**6})
base, _ = rationale_sft(load_policy(params.model, device="cpu"), lessons, template, sft, checkpoints / "base")
stage.count(tokens_trained=sum(label != -100 for row in lessons for label in row["labels"]))

drawn = add_scores(generate(base, train, template, n=8, seed=params.seed, source="base"), template, base)
table = pd.DataFrame(drawn).assign(style=[style_of(row["question"], row["rationale"]) for row in drawn]).query("finished")
prior = table["style"].value_counts(normalize=True)
table.groupby("style").agg(samples=("id", "size"), right=("correct", "mean"), logp=("logp_answer", "mean")).round(3)

# %% [markdown]
# Read the last two columns together: careful thinking is right more than four times as often as guessing, and yet its *mean*
# log-likelihood of the right answer is lower, because being confidently wrong costs five nats.
#
# ## What should happen
#
# The exact posterior over styles, and the best mixture of a $Q$ that cannot tell right from wrong, computed from these samples.

# %%
values = {style: rows["logp_answer"].tolist() for style, rows in table.groupby("style")}
posterior, mixture = two_readings.expected_shares(prior.to_dict(), values)
expected = pd.DataFrame({"θ": prior, "posterior": posterior, "best Q, reward (i)": mixture}).round(3)
expected

# %% [markdown]
# Look at `careful` and `guessing`: the posterior thinks, the best $Q$ guesses more than θ did. Nothing has been trained yet; this follows from
# the samples alone.
#
# ## What happens: three E-steps from the same base

# %%
common = {"seed": params.seed, "device": "cpu", "limit": params.problems}
rationales, _ = reject(base, train, template, RejectionParams.parse(common), source="rs")
sources = {"rs": rationales}
for name, reward in (("reward (i)", "answer_likelihood"), ("reward (ii)", "verifier")):
    config = PsiParams.parse({**common, "reward": reward, "beta": params.beta, "steps": params.psi_steps})
    trainer = PosteriorPPOTrainer(copy.deepcopy(base), template, train, config, log=lambda step, **metrics: None)
    q = trainer.train()
    stage.count(trainer.tokens_generated, trainer.tokens_trained)
    sources[name] = generate(q, train, template, n=1, seed=params.seed + 1, source=name).to_list()
    sources[f"{name} as solver"] = generate(q, test, template, n=4, seed=params.seed, source=name).to_list()

# %%
styles = {name: pd.Series([style_of(row["question"], row["rationale"]) for row in rows]) for name, rows in sources.items()}
shares = pd.DataFrame({name: values.value_counts(normalize=True) for name, values in styles.items()}).fillna(0).round(3)
shares

# %% [markdown]
# The prediction holds: rejection sampling keeps about what the posterior would, ψ-PPO with reward (i) goes where the best $Q$ is.

# %%
for name, target in (("rs", "posterior"), ("reward (i)", "best Q, reward (i)")):
    print(f"careful: {shares.loc['careful', name]:.3f} of {name}, {expected.loc['careful', target]:.3f} expected of the {target}")

# %% [markdown]
# ## What θ learns from them
#
# The M-step trains on $(x, z, y^\star)$. After a wrong thought $y^\star$ contradicts $z$, so θ also unlearns to follow its own
# thinking; keeping only rationales whose sampled answer was right (`correct_only`) avoids that.

# %%
accuracy = {"base": generate(base, test, template, n=4, seed=params.seed, source="base").to_pandas()["correct"].mean()}
for name in ("reward (i)", "reward (ii)"):
    accuracy[f"Q, {name}"] = pd.DataFrame(sources[f"{name} as solver"])["correct"].mean()
for name in ("rs", "reward (i)", "reward (ii)"):
    for correct_only in (False, True) if name != "rs" else (True,):
        rows, place = training_rows(sources[name], template, correct_only), checkpoints / f"{name} {correct_only}"
        tuned, metrics = rationale_sft(copy.deepcopy(base), rows, template, ThetaParams.parse(common), place)
        stage.count(tokens_trained=metrics["tokens_trained"])
        label = name if name == "rs" else f"BRiTE, {name}" + (", right ones" if correct_only else "")
        accuracy[label] = generate(tuned, test, template, n=4, seed=params.seed, source=label).to_pandas()["correct"].mean()
accuracy = pd.Series(accuracy, name="pass@1")
accuracy.round(3).to_frame()

# %% [markdown]
# Who beats rejection sampling? Not BRiTE with reward (i). With a verifier as reward, or with right rationales only, it does
# (five seeds: [`docs/limits.md`](../docs/limits.md)).

# %%
with plots.styled():
    figure, ax = plots.plt.subplots(figsize=(5.4, 2.6), layout="constrained")
    ax.barh(accuracy.index, accuracy, color=[plots.PALETTE[0] if value > accuracy["rs"] else "#c9c9c9" for value in accuracy])
    ax.axvline(accuracy["rs"], color="#222222", linewidth=1, linestyle="--")
    ax.invert_yaxis()
    ax.set(xlabel="pass@1 on the test split; dashed: rejection sampling")
plots.finish(figure, path=stage.path("figures/limits.png"))

# %%
metrics = {f"pass@1/{name}": float(value) for name, value in accuracy.items()}
metrics |= {f"careful/{name}": float(value) for name, value in shares.loc["careful"].items()}
metrics |= {f"careful/{name}": float(value) for name, value in expected.loc["careful"].items()}
metrics |= {f"right/{style}": float(right) for style, right in table.groupby("style")["correct"].mean().items()}
stage.finish([stage.path("figures/limits.png")], metrics)
