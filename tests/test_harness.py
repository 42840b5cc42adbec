"""The bridge to lm-evaluation-harness, without it: its report as version 0.4.13 gives it, and a stand-in for the package."""

import importlib.util
import json
import sys

import pytest

from brite_lib import run
from brite_lib.errors import InputError
from brite_lib.harness import evaluate_tasks, rows_of
from brite_lib.params import EvalParams, Experiment, HarnessParams
from brite_lib.results import collect
from brite_lib.stages import plan

# As printed by lm_eval 0.4.13 for a group without a mean of its own, a group with one, and a task that is judged in two ways.
REPORT = {
    "results": {
        "group": {"name": "group", "alias": "group"},
        "generate": {"alias": "generate", "sample_len": 20, "exact_match,strict": 0.25, "exact_match_stderr,strict": 0.1,
                     "exact_match,flexible": 0.5, "exact_match_stderr,flexible": "N/A"},
        "choose": {"alias": "choose", "sample_len": 30, "acc,none": 0.75, "acc_stderr,none": 0.08},
        "mean": {"alias": "mean", "sample_len": 12, "acc,none": 0.5, "acc_stderr,none": 0.14, "sample_count": {"acc,none": 12}},
        "part1": {"alias": "part1", "acc,none": 0.25, "acc_stderr,none": 0.2},
        "part2": {"alias": "part2", "acc,none": 0.75, "acc_stderr,none": 0.2},
    },
    "group_subtasks": {"group": ["generate", "choose"], "mean": ["part1", "part2"]},
    "n-samples": {name: {"original": 100, "effective": n} for name, n in (("generate", 20), ("choose", 30), ("part1", 5), ("part2", 7))},
    "lm_eval_version": "0.4.13",
}  # fmt: skip


def test_rows_of_a_report():
    assert rows_of(REPORT, ["group", "mean"]) == [
        {"benchmark": "generate", "metric": "exact_match (strict)", "value": 0.25, "stderr": 0.1, "n_problems": 20},
        {"benchmark": "generate", "metric": "exact_match (flexible)", "value": 0.5, "stderr": None, "n_problems": 20},
        {"benchmark": "choose", "metric": "acc", "value": 0.75, "stderr": 0.08, "n_problems": 30},
        {"benchmark": "mean", "metric": "acc", "value": 0.5, "stderr": 0.14, "n_problems": 12},
    ]


def make(**changes: object) -> Experiment:
    values = {"name": "x", "model": "org/model", "tasks": [{"name": "toy", "data": "toy:easy"}], "methods": ["base", "sft"]}
    return Experiment.parse(values | {"harness_tasks": ["bbh", "mmlu"]} | changes)


def test_every_row_of_the_table_has_a_stage():
    stages = {spec.key: spec for spec in plan(make(seeds=[0, 3], harness={"num_fewshot": 2}, common={"dtype": "float32"}))}
    assert [key for key in stages if "harness" in key] == [f"seed{k}/harness_{name}" for k in (0, 3) for name in ("base", "sft")]
    base, sft = stages["seed3/harness_base"], stages["seed3/harness_sft"]
    assert (base.params.model, sft.params.model) == ("org/model", "outputs/x/seed3/sft/model")
    assert (base.inputs, sft.inputs) == ((), ("seed3/sft",))
    assert (sft.params.tasks, sft.params.method, sft.params.num_fewshot, sft.params.dtype) == (["bbh", "mmlu"], "sft", 2, "float32")
    assert not any("harness" in spec.key for spec in plan(make(harness_tasks=[])))


def test_the_student_is_evaluated_as_it_came():
    changes = {"model": "assets/tiny-base", "student": "assets/tiny-student", "methods": ["base", "student", "distil_sft"]}
    stages = {spec.key: spec for spec in plan(make(**changes))}
    harness = {key.removeprefix("seed0/harness_"): spec for key, spec in stages.items() if "harness" in key}
    assert harness.keys() == {"base", "student", "distil_sft"}
    assert all(key in stages for spec in harness.values() for key in spec.inputs)
    assert harness["student"].params.model == "assets/tiny-student"
    assert {name: spec.sources[0].parent.name for name, spec in harness.items()} == {
        "base": "tiny-base", "student": "tiny-student", "distil_sft": "tiny-base",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"harness": {"num_fewshots": 2}}, "harness: num_fewshots: is no parameter of HarnessParams; did you mean 'num_fewshot'"),
        ({"harness": {"tasks": ["bbh"]}}, "harness: tasks: is decided by the experiment's harness_tasks"),
        ({"tasks": [{"name": name, "data": "toy:easy"} for name in "ab"]}, "harness_tasks: with trained methods there must be one task"),
    ],
)
def test_bad_settings_are_one_sentence(changes, words):
    with pytest.raises(InputError, match=words):
        plan(make(**changes))


def test_several_benchmarks_of_the_base_model_need_one_stage():
    stages = plan(make(methods=["base"], tasks=[{"name": name, "data": "toy:easy"} for name in "ab"]))
    assert sum(isinstance(spec.params, EvalParams) for spec in stages) == 2
    assert sum(isinstance(spec.params, HarnessParams) for spec in stages) == 1


def test_without_the_package_a_run_ends_at_once(tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "lm_eval" else find(name, *more))
    path = tmp_path / "x.yaml"
    path.write_text("{name: test-harness, methods: [base], harness_tasks: [bbh], tasks: [{name: t, data: 'toy:easy'}]}")
    assert run.main([str(path)]) == 2
    assert capsys.readouterr().err == "error: harness_tasks: lm-evaluation-harness is not installed; pip install -e .[harness]\n"
    assert run.main([str(path), "--plan"]) == 0


STAND_IN = {
    "__init__.py": "def simple_evaluate(**settings):\n    return settings\n",
    "tasks.py": "class TaskManager:\n    def __init__(self, include_path):\n        self.all_tasks = ['bbh', 'mmlu', str(include_path)]\n",
    "models/__init__.py": "",
    "models/huggingface.py": "class HFLM:\n    def __init__(self, **settings):\n        self.settings = settings\n",
}


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    for name, text in STAND_IN.items():
        (tmp_path / "lm_eval" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "lm_eval" / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        del sys.modules[name]


def test_what_the_harness_is_asked(stand_in, tmp_path):
    asked = evaluate_tasks(HarnessParams(tasks=["bbh", str(tmp_path)], include_path=str(tmp_path), seed=5, documents=3, batch_size=2))
    model = asked.pop("model").settings
    assert model["batch_size"] == 2 and model["pretrained"].config.model_type and model["tokenizer"]("1+2").input_ids
    assert asked.pop("task_manager").all_tasks[2] == str(tmp_path)
    assert asked == {
        "tasks": ["bbh", str(tmp_path)], "num_fewshot": None, "limit": 3, "apply_chat_template": False, "log_samples": False,
        "random_seed": 5, "numpy_random_seed": 5, "torch_random_seed": 5, "fewshot_random_seed": 5,
    }  # fmt: skip
    for tasks, words in ((["mmul"], "'mmul' is no task of lm-evaluation-harness; did you mean 'mmlu'"), ([], "at least one task")):
        with pytest.raises(InputError, match=words):
            evaluate_tasks(HarnessParams(tasks=tasks, model="./nowhere"))  # before a model is looked for


@pytest.mark.parametrize(("seeds", "interval"), [([0], (0.75 - 1.96 * 0.08, 0.75 + 1.96 * 0.08)), ([0, 1], None)])
def test_the_rows_land_in_the_result_table(tmp_path, seeds, interval):
    for seed in seeds:
        for method in ("base", "sft"):
            folder = tmp_path / f"seed{seed}/harness_{method}"
            folder.mkdir(parents=True)
            record = dict.fromkeys(("seconds", "tokens_generated", "tokens_trained"), 0) | {"inputs": {}, "outputs": {}, "metrics": {}}
            record |= {"stage": "harness", "seed": seed, "params": {"method": method, "model": f"seed{seed}/{method}/model"}}
            (folder / "stage.json").write_text(json.dumps(record))
            rows = rows_of(REPORT, ["choose"])
            rows[0]["value"] -= 0.5 * seed
            (folder / "harness.json").write_text(json.dumps({"lm_eval_version": "0.4.13", "rows": rows}))
    base, sft = collect(tmp_path)
    assert (base["method"], base["benchmark"], base["metric"], base["n_problems"]) == ("base", "choose", "acc", 30)
    assert sft["seeds"] == seeds and sft["values"] == [0.75, 0.25][: len(seeds)]
    half = 12.706205 * 0.25  # t(0.975, 1) · s / √2 with s = 0.5 / √2
    assert (base["ci_low"], base["ci_high"]) == pytest.approx(interval or (0.5 - half, 0.5 + half), abs=1e-5)
    assert base["ci"] == ("harness's standard error" if interval else "t over seeds")
