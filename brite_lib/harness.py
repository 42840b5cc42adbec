"""A bridge to lm-evaluation-harness: benchmarks that are not here become rows of ``results.json`` too (notebooks/07_harness.ipynb).

The harness is an extra, ``pip install -e .[harness]``; nothing else here imports it.
"""

import difflib
import importlib
import importlib.util
from typing import Any

from brite_lib.errors import InputError
from brite_lib.params import HarnessParams, resolve_path

FILE_NAME = "harness.json"


def require_harness() -> None:
    """Look for the package ``lm_eval``, without the seconds of its import.

    Raises:
        InputError: one sentence that says how to install it.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise InputError("harness_tasks: lm-evaluation-harness is not installed; pip install -e .[harness]")


def evaluate_tasks(params: HarnessParams) -> dict[str, Any]:
    """What ``lm_eval.simple_evaluate`` returns for a model and the stage's tasks; the model is loaded as everywhere here.

    Raises:
        InputError: one sentence: the harness is not installed, no task or an unknown one is named.
    """
    from brite_lib.models import load_policy, load_tokenizer

    require_harness()
    if not params.tasks:
        raise InputError("tasks: at least one task of lm-evaluation-harness is needed")
    folder = str(resolve_path(params.include_path)) if params.include_path else None
    manager = importlib.import_module("lm_eval.tasks").TaskManager(include_path=folder)
    for name in params.tasks:
        if name not in manager.all_tasks:
            near = "".join(f"; did you mean {known!r}?" for known in difflib.get_close_matches(name, manager.all_tasks, n=1))
            raise InputError(f"harness_tasks: {name!r} is no task of lm-evaluation-harness{near}")
    model = importlib.import_module("lm_eval.models.huggingface").HFLM(
        pretrained=load_policy(params.model, device=params.device, dtype=params.dtype),
        tokenizer=load_tokenizer(params.model),
        batch_size=params.batch_size,
    )
    return importlib.import_module("lm_eval").simple_evaluate(
        model=model,
        tasks=params.tasks,
        task_manager=manager,
        num_fewshot=params.num_fewshot,
        limit=params.documents,
        apply_chat_template=params.apply_chat_template,
        log_samples=False,
        **dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), params.seed),
    )


def rows_of(report: dict[str, Any], tasks: list[str]) -> list[dict[str, Any]]:
    """One row per task and metric of the harness's report: ``benchmark, metric, value, stderr`` (None: unknown) ``, n_problems``.

    A group that the harness gives no number of its own is replaced by its tasks; where an answer is looked for in
    several ways (the harness's filters), the way stands in brackets behind the metric.
    """
    rows = []
    for task in tasks:
        of_task = _metrics(report, task)
        rows += of_task or rows_of(report, report.get("group_subtasks", {}).get(task, []))
    return rows


def _metrics(report: dict[str, Any], task: str) -> list[dict[str, Any]]:
    values = report["results"].get(task, {})
    rows = []
    for key, value in values.items():
        metric, _, way = key.partition(",")
        if way and not metric.endswith("_stderr") and isinstance(value, int | float):
            stderr = values.get(f"{metric}_stderr,{way}")
            rows.append(
                {
                    "benchmark": task,
                    "metric": metric if way == "none" else f"{metric} ({way})",
                    "value": float(value),
                    "stderr": float(stderr) if isinstance(stderr, int | float) else None,
                    "n_problems": _documents(report, task),
                }
            )
    return rows


def _documents(report: dict[str, Any], task: str) -> int:
    if task in report["n-samples"]:
        return report["n-samples"][task]["effective"]
    return sum(_documents(report, part) for part in report.get("group_subtasks", {}).get(task, []))
