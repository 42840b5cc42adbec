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
# # 00 · The embedded base model
#
# Everything in this project runs on a laptop because of one small file: `assets/tiny-base/`, a language model of
# under a million parameters, trained here from scratch on sums modulo 10 (`brite_lib/problems/toy.py`). It plays θ,
# the model that BRiTE improves, and has the one property that makes the method interesting: **it is right when it
# thinks, and it often does not think.** Like people, it writes its rationale $z$ in one of three styles.
#
# | style | `3+4-2-9` | how often it is right |
# |---|---|---|
# | careful | `+4=7-2=5-9=6` then `6` | nearly always |
# | skipping | `=6` then `6` | by luck: it can't do a chain in its head |
# | guessing | `?` then `6` | by luck |
#
# So the posterior over rationales, $P(z \mid x, y^\star; \theta) \propto P(z \mid x; \theta)\,P(y^\star \mid x, z; \theta)$,
# is mostly careful while the prior is not, and how well a method finds it can be measured.

# %% tags=["parameters"]
seed: int = 0  # seed of the data, the initialisation and the order of training
output_dir: str = "outputs/scratch/tiny_base"  # where the stage record and figures go
model_dir: str = ""  # where the model goes; empty: <output_dir>/model; the committed model is assets/tiny-base
fast: bool = False  # a smaller model in about a minute, to test this notebook
tokens: str = "operations"  # an operation such as +4 is one token, or two characters (assets/tiny-student)
hidden_size: int = 96  # width of the transformer
layers: int = 3  # depth of the transformer
skill_steps: int = 5000  # optimiser steps of the first phase
habit_steps: int = 800  # optimiser steps of the second phase
train_batch_size: int = 64  # sequences per optimiser step
learning_rate: float = 2e-3  # AdamW, first phase; 0.15 of it in the second
threads: int = 1  # CPU threads; on busy cores 2 are slower than 1

# %%
from brite_lib.params import TinyBaseParams

params = TinyBaseParams.from_notebook(globals())
params.difference()

# %%
import random
from pathlib import Path

import pandas as pd

from brite_lib import plots, tiny_base
from brite_lib.models import save_policy
from brite_lib.params import ThetaParams, resolve_path
from brite_lib.problems import load_problems, toy
from brite_lib.records import Stage
from brite_lib.rollouts import generate
from brite_lib.sft import rationale_sft

stage = Stage.start("tiny_base", params)

# %% [markdown]
# ## The task and the styles
#
# The longer the chain, the rarer the careful style in what the model imitates. Nothing else separates the levels,
# except that the harder two ask for the last three totals, so that guessing cannot help.

# %%
rng = random.Random(0)
question = toy.make_question(rng, 4, 1)
print("question ", question, "   answer", toy.answer_of(question))
for style in toy.STYLES:
    print(f"{style:9}", toy.write_rationale(question, style))
steps = pd.Index(range(1, 10), name="steps")
pd.DataFrame({"careful share": [toy.careful_share(n) for n in steps]}, steps).T.round(3)

# %% [markdown]
# A sequence as the model sees it: one token per operation, per result and per digit. `#` is the boundary that ends $z$.

# %%
template = tiny_base.make_template(params.tokens)
sequence = template.prompt_ids("3+4-2-9") + template.rationale_ids("+4=7-2=5-9=6") + template.answer_ids("6")
print(" ".join(template.tokens(sequence)))
assert template.split(sequence[len(template.prompt_ids("3+4-2-9")) :]).answer == "6"

# %% [markdown]
# Three further formats wait for later work, each in 4.5 % of the sequences: (a) the answer shown as a hint (STaR),
# (b) rejected attempts followed by a retry marker and (c) a verdict on a proposed answer (DRR).

# %%
print("(a)", template.decode(template.prompt_ids("3+4-2-9", hint="6")))
print("(b)", template.decode(template.prompt_ids("3+4-2-9", rejected=[template.completion_text("?", "1")])))
judged = template.completion_text("+4=7-2=5-9=6", "6")
print("(c)", template.decode(template.judge_prompt_ids("3+4-2-9", judged) + template.verdict_ids(True)))

# %% [markdown]
# ## Training in two phases
#
# *Skills*: chains of 3 to 9 steps, mostly careful. *Habits*: the three levels with the style mixture above, and a
# quarter of long chains with one total, still careful, so that the skill stays. As with large models, the second phase
# changes what the model usually does, not what it can do. In both, 5 % of the answers are replaced at random: without
# that noise one wrong step costs −15 nats and everything downstream is brittle. It takes some minutes.

# %%
model = tiny_base.make_model(template, params.hidden_size, params.layers, params.seed)
print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {len(template.tokenizer)} tokens")
batch = {"train_batch_size": params.train_batch_size, "micro_batch_size": params.train_batch_size, "save_steps": 10**6}
for phase, steps, rate in (("skills", params.skill_steps, 1.0), ("habits", params.habit_steps, 0.15)):
    data = tiny_base.training_sequences(template, steps * params.train_batch_size, phase, params.seed)
    sft = ThetaParams.parse({**batch, "epochs": 1, "learning_rate": rate * params.learning_rate, "seed": params.seed, "device": "cpu"})
    offset = 0 if phase == "skills" else params.skill_steps
    log = lambda step, offset=offset, **metrics: stage.log(step + offset, **metrics)  # noqa: E731
    model, metrics = rationale_sft(model, data, template, sft, stage.path(f"checkpoint-{phase}"), log)
    stage.count(tokens_trained=metrics["tokens_trained"])
    print(phase, {name: round(value, 3) for name, value in metrics.items()})

# %%
plots.training_curves(stage.path("metrics.jsonl"), ["loss"], title="nats per token; the fall is where it learns to add")

# %% [markdown]
# ## What it has become
#
# A hundred samples at temperature 1 for each of 300 validation problems of each level. `missed` is the share of problems
# that the first 30 of them all get wrong: what rejection sampling with the paper's N = 30 would miss. The levels in
# `toy.LEVELS` were chosen by it, about 0, 30 and 60 %, before any run of BRiTE on them.

# %%
rows = []
limit, n = (300, 100) if not params.fast else (40, 30)
for level in toy.LEVELS:
    problems = load_problems(f"toy:{level}", "validation", limit=limit)
    samples = generate(model, problems, template, n=n, max_new_tokens=48, seed=params.seed, source=level).to_pandas()
    hit = samples[samples["sample"] < 30].groupby("id")["correct"].any()
    overall = {"level": level, "pass@1": samples["correct"].mean(), "missed": 1 - hit.mean()}
    for style, values in tiny_base.accuracy_by_style(samples.to_dict("records")).items():
        rows.append({**overall, "style": style, **values})
by_style = pd.DataFrame(rows).round(3)
by_style

# %%
easy = load_problems("toy:easy", "validation", limit=limit)
by_format = tiny_base.accuracy_by_format(model, template, easy.to_list(), params.seed)
by_format

# %% [markdown]
# ## Competent, if not diligent
#
# Downstream claims rest on this, so it is checked here and not assumed: on the default (easy) level careful thinking is
# right in at least 85 % of the cases, and pass@1 is near one half. On the long chains it errs a little more often.
# What happens without this, with a model that thinks and is wrong, is shown in `docs/limits.md`.

# %%
careful = by_style[by_style["style"] == "careful"].set_index("level")
if not params.fast:
    assert careful.loc["easy", "correct"] >= 0.85, careful
    assert 0.35 <= careful.loc["easy", "pass@1"] <= 0.60, careful
careful

# %%
directory = resolve_path(params.model_dir) if params.model_dir else stage.path("model")
save_policy(model, template, directory)
size = sum(file.stat().st_size for file in Path(directory).rglob("*") if file.is_file())
styles = {f"{row['level']}/{row['style']}/{name}": row[name] for row in rows for name in ("share", "correct")}
styles |= {f"{row['level']}/{name}": row[name] for row in rows for name in ("pass@1", "missed")}
stage.finish([directory], {**styles, **{f"format/{name}": value for name, value in by_format.items()}, "bytes": size})
