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
# # 07 · lm-evaluation-harness
#
# Benchmarks that are not here: every task and group of EleutherAI's lm-evaluation-harness (`bbh`, `mmlu`, …), with its
# prompts, extraction and metrics. Needs the extra `harness`. The rows land in `results.json` beside our own, under the
# harness's names of task and metric; with one seed their interval is made of the harness's standard error.

# %% tags=["parameters"]
stage: str = ""  # name of the stage in its record; empty: the notebook's own
output_dir: str = "outputs/scratch/harness"  # where the stage writes
seed: int = 0  # the one seed of the stage
threads: int = 1  # CPU threads; on busy cores 2 are slower than 1
model: str = "assets/tiny-base"  # θ: a Hugging Face model directory or hub name
method: str = "base"  # row of the result table
tasks: list[str] = []  # tasks or groups of lm-evaluation-harness, as in bbh or mmlu
include_path: str = ""  # directory with task files of one's own
num_fewshot: int | None = None  # examples in the prompt; None: as the task has it
documents: int | None = None  # only so many documents of each task, for a trial; None: all
apply_chat_template: bool = False  # write prompts as the tokenizer's chat template wants them
batch_size: int = 8  # sequences per forward pass
device: str = "auto"  # auto, cpu, cuda, mps
dtype: str = "auto"  # auto: bfloat16 on CUDA, else float32

# %%
from brite_lib.params import HarnessParams

params = HarnessParams.from_notebook(globals())
params.difference()

# %%
import json

import pandas as pd

from brite_lib.files import atomic_write_text
from brite_lib.harness import FILE_NAME, evaluate_tasks, rows_of
from brite_lib.records import Stage

stage = Stage.start("harness", params)
stage.add_model(params.model)
report = evaluate_tasks(params)

# %%
rows = rows_of(report, params.tasks)
atomic_write_text(stage.path(FILE_NAME), json.dumps({"lm_eval_version": report["lm_eval_version"], "rows": rows}, indent=2) + "\n")
pd.DataFrame(rows)

# %%
stage.finish([stage.path(FILE_NAME)], {f"{row['benchmark']}/{row['metric']}": row["value"] for row in rows})
