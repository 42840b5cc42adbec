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
# # 05 · Evaluation
#
# How often is the model right? Sampled at temperature 1 (**pass@1**, averaged over $k$ samples per problem), by
# majority vote over them (**maj@k**), and greedily. On a model that mixes styles greedy decoding shows one style only,
# so pass@1 is the number to compare. Intervals are bootstrapped over problems; methods are compared in the report by
# paired differences over seeds. Also: how long rationales are, and how likely they make the right answer,
# $\log P(y^\star \mid x, z; \theta)$ under the frozen base.
#
# Why pass@1 and not one greedy answer: BRiTE changes how *often* a model thinks well, that is $\mathbb{E}_{z,y}\,1\{y = y^\star\}$. The
# embedded base is right in about half of its samples and in all of its greedy answers on the easy level; greedily there is nothing to see.
#
# The next cell has every setting. What one changes first: `model`, `data`, `split`, `limit` and `samples`.

# %% tags=["parameters"]
stage: str = ""  # name of the stage in its record; empty: the notebook's own
output_dir: str = "outputs/scratch/evaluation"  # where the stage writes
seed: int = 0  # the one seed of the stage
round: int = 1  # EM round that the stage belongs to
model: str = "assets/tiny-base"  # θ: a Hugging Face model directory or hub name
template: str | dict = "auto"  # how z and y are written: auto, a preset's name, or its fields
data: str = "toy:easy"  # problems: toy:<level>, a hub data set, or a .jsonl/.parquet path
split: str = "test"  # split of the data
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
temperature: float = 1.0  # sampling temperature of pass@1 and maj@k
method: str = "base"  # row of the result table
benchmark: str = "toy"  # column of the result table
samples: int = 4  # k samples per problem; 0: only greedily
greedy: bool = True  # also decode greedily
answer_from: str = "answer"  # where the answer is looked for: in y (answer), or in all that was sampled (completion)
bootstrap: int = 2000  # resamples of the problems for the intervals
reference_model: str = ""  # θ that scores log P(y*|x,z); empty: the evaluated model itself

# %%
from brite_lib.params import EvalParams

params = EvalParams.from_notebook(globals())
params.difference()

# %%
import pandas as pd

from brite_lib import plots, quality
from brite_lib.evaluation import evaluate, style_counts, summary
from brite_lib.models import check_vocabulary, load_policy, load_template
from brite_lib.problems import load_problems
from brite_lib.records import Stage, metric_table
from brite_lib.rollouts import open_sampler
from brite_lib.stats import minimum_detectable_difference
from brite_lib.tables import PREDICTIONS, write_table

stage = Stage.start("evaluation", params)
stage.add_model(params.model)
problems = load_problems(params.data, params.split, params.limit)
template = load_template(params.model, params.template)
if params.reference_model:
    check_vocabulary("reference_model", params.reference_model, template, params.model)
model = load_policy(params.model, device=params.device, dtype=params.dtype)
same = params.reference_model in ("", params.model)
reference = model if same else load_policy(params.reference_model, device=params.device, dtype=params.dtype)

# %%
difference = minimum_detectable_difference(len(problems))
print(f"{len(problems):,} problems: of two models that disagree on a fifth of them, one sample each, a difference of "
      f"{100 * difference:.1f} points is found in 80 % of the cases (McNemar at 95 %), smaller ones less often.")

# %%
with open_sampler(model, saved_as=params.model, **params.drawing) as sampler:
    rows = evaluate(sampler, reference, problems, template, params)
stage.count(tokens_generated=sum(row["num_tokens"] for row in rows))
write_table(rows, PREDICTIONS, stage.path("predictions.parquet"))
pd.DataFrame(rows)[["question", "gold", "rationale", "prediction", "correct", "temperature", "logp_answer"]].head(8)

# %%
metrics = summary(rows, params)
metric_table(metrics)

# %% [markdown]
# pass@1 once more, without the library: the mean over problems of the share of right samples. Samples of one problem are not independent,
# so the standard error is that of the problems' means. The bootstrap says nearly the same as 1.96 of them either way.

# %%
table = pd.DataFrame(rows).query("temperature > 0")
share = table["correct"].eq(True).groupby(table["id"]).mean()
error = 1.96 * share.std(ddof=0) / len(share) ** 0.5 if params.samples else float("nan")
print(f"pass@1 {share.mean():.4f} ± {error:.4f}; above {metrics.get('pass@1')}")

# %% [markdown]
# How long they think. On the embedded task two humps are two habits: thoughts that are written down, and thoughts that are skipped.

# %%
plots.length_histogram(rows)

# %% [markdown]
# ## Quality of the sampled rationales
#
# Reward hacking shows here before it shows in the accuracy: rationales that repeat themselves, state the answer before any derivation,
# or end in another number than the answer. *Self-evaluation*: how well $\log P(y^\star \mid x, z; \theta)$ tells right from wrong
# (AUROC, interval over problems), and how far $P(y^\star \mid x, z; \theta)$ is from the share of right answers (calibration error).

# %%
sampled = [row for row in rows if row["temperature"] > 0]
written = quality.summary(sampled) | quality.self_evaluation(sampled, params.bootstrap, params.seed)
metrics |= written
metric_table(written)

# %% [markdown]
# On the toy task a rationale's style can be told by its shape: who thinks, who skips, who guesses, and how that pays.

# %%
styles = style_counts(rows) if params.data.startswith("toy") else {}
pd.DataFrame(styles).T.round(3) if styles else "styles are known on the toy task only"

# %%
flat = {f"style/{style}/{name}": value for style, values in styles.items() for name, value in values.items()}
stage.finish([stage.path("predictions.parquet")], {**metrics, **flat})
