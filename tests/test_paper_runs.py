"""The papers' runs (params/table*.yaml, figure2-*.yaml, latro-*-*.yaml): their plans, and the first two steps of each kind of stage.

Each file runs on a random tiny model of its family (tests/families.py) with its own settings; only sizes are overridden. The notebooks
of the plan are executed, in this process.
"""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from families import FAMILIES, build
from ruamel.yaml import YAML

from brite_lib import likelihood
from brite_lib.models import load_policy, load_template, save_policy
from brite_lib.params import PROJECT_ROOT, ThetaParams, load_experiment
from brite_lib.problems import load_problems
from brite_lib.records import read_metrics, read_record
from brite_lib.run import main
from brite_lib.stages import plan
from brite_lib.tables import read_rationales

DATA = PROJECT_ROOT.parent / "shared" / "data"
FAMILY_OF = {
    "mistralai/Mistral-7B-Instruct-v0.2": "mistral",
    "mistralai/Mistral-7B-Instruct-v0.3": "mistral",
    "google/gemma-1.1-7b-it": "gemma",
    "google/gemma-2-9b-it": "gemma2",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3",
    "meta-llama/Llama-3.1-8B-Instruct": "llama3",
    "microsoft/Phi-3.5-mini-instruct": "phi3",
    "deepseek-ai/deepseek-coder-6.7b-instruct": "deepseek-coder",
    "Qwen/Qwen2.5-7B": "qwen2",
}
# Rows of the same kind for data that is not at hand.
ROWS_OF = {"arc_challenge": "arc_challenge/dev", "RUC-AIBOX/STILL-3-Preview-RL-Data": "math/train", "opc_educational": "mbpp/train"}
FILES = sorted(path for pattern in ("table*.yaml", "figure2-*.yaml", "latro-*-*.yaml") for path in PROJECT_ROOT.glob(f"params/{pattern}"))
SHORT = {"max_rationale_tokens": 24, "max_answer_tokens": 24}
SIZES = {
    "common": {**SHORT, "batch_size": 64, "engine": "hf"},  # tests/with_vllm has the other one
    "psi": {"steps": 2, "prompts_per_step": 2, "rationales_per_prompt": 4},
    "theta": {"epochs": 2, "train_batch_size": 4},
    "rejection": {"samples": 8},
    "dpo": {"samples": 8, "epochs": 2, "train_batch_size": 4},
    "latro": {"steps": 2, "prompts_per_step": 2, "rationales_per_prompt": 4, "validation_limit": 2, "validation_samples": 2},
    "evaluation": {**SHORT, "bootstrap": 20},
}
LONGER = {"table2-deepseek-coder-6.7b": {"max_answer_tokens": 80}}  # programs
# One stage of each kind, in this order.
STAGES = ("sft", "rs_sampling", "brite_psi", "brite", "brite_dpo_psi_round1", "brite_dpo_round1", "latro")


# One file of each family and of each kind of run takes its steps; the others may differ from it in OWN alone.
STEPPED = {
    "table1-mistral-7b-v0.2-gsm8k": "table1",
    "table1-gemma-1.1-7b-math": "table1",
    "table1-gemma-2-9b-gsm8k": "table1",
    "figure2-llama-3-8b": "figure2",
    "table2-deepseek-coder-6.7b": "table2",
    "table3-qwen2.5-7b": "table3",
    "latro-phi-3.5-mini-arc": "latro",
}
OWN = {
    "stage", "output_dir", "model", "reference_model", "data", "split", "test_data", "benchmark", "answer_kind", "learning_rate",
    "max_rationale_tokens", "max_answer_tokens", "kl_coef", "steps", "rationales", "sampler",
}  # fmt: skip


def test_every_file_of_a_paper_is_here():
    models = ("mistral-7b-v0.2", "gemma-1.1-7b", "gemma-2-9b", "llama-3-8b")
    expected = {f"table1-{model}-{data}" for model in models for data in ("gsm8k", "math")} | {f"figure2-{model}" for model in models}
    expected |= {f"latro-{model}-{data}" for model in ("phi-3.5-mini", "mistral-7b-v0.3", "llama-3.1-8b") for data in ("gsm8k", "arc")}
    assert {path.stem for path in FILES} == expected | {"table2-deepseek-coder-6.7b", "table3-qwen2.5-7b"}


@pytest.mark.parametrize("path", [*FILES, *PROJECT_ROOT.glob("params/base/*.yaml")], ids=lambda path: path.stem)
def test_every_setting_has_its_source(path):
    """A comment names the paper's place, or says that it is our choice and why."""
    for line in path.read_text(encoding="utf-8").splitlines():
        setting, _, comment = line.strip().partition("#")
        if "not disclosed" in comment:
            assert "our choice, because" in comment, line
        if setting.startswith(("learning_rate:", "lora:", "kl_coef:", "samples:", "epochs:", "rationales_per_prompt:")):
            assert comment.startswith((" BP ", " S0", " LP ", " not disclosed")), line


def test_settings_that_the_paper_gives_for_each_model():
    rates = {}
    for path in FILES:
        for spec in plan(load_experiment(path)):
            if spec.key in ("seed0/sft", "seed0/brite", "seed0/brite_psi", "seed0/gsm8k.iterative_dpo"):
                rates[path.stem, spec.key.rpartition("/")[2].removeprefix("gsm8k.")] = spec.params.learning_rate
                assert (spec.params.lora.r, spec.params.lora.alpha) == (32, 128)
    of = {"mistral-7b-v0.2": (5e-5, 2e-7), "gemma-1.1-7b": (5e-5, 4e-7), "gemma-2-9b": (5e-6, 5e-7), "llama-3-8b": (8e-7, 5e-7)}
    for model, (human, dpo) in of.items():
        for data in ("gsm8k", "math"):
            name = f"table1-{model}-{data}"
            assert [rates[name, stage] for stage in ("sft", "brite", "brite_psi")] == [human, 5e-5, 5e-7]
        assert rates[f"figure2-{model}", "iterative_dpo"] == dpo


def test_files_of_a_kind_differ_in_model_data_and_sizes_alone():
    def settings(path):
        specs = [spec for spec in plan(load_experiment(path)) if spec.key.startswith("seed0/")]
        return {spec.key.rpartition("/")[2].rpartition(".")[2]: spec.params.model_dump(exclude=OWN) for spec in specs}

    for path in FILES:
        other = next(name for name, kind in STEPPED.items() if path.stem.startswith(kind))
        assert settings(path) == settings(path.with_stem(other)), (path.stem, other)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("papers")


def problems_at(place: Path, name: str) -> Path:
    """Four problems of a benchmark in a directory of its name, so that its answers keep their kind."""
    directory = place / Path(name).name
    if not directory.exists():
        source, _, split = ROWS_OF.get(name, f"{name}/train").partition("/")
        rows = sorted(load_problems(str(DATA / source), split), key=length)[:4]
        directory.mkdir()
        for file in ("train.jsonl", "test.jsonl"):
            (directory / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return directory


def length(row: dict) -> int:
    """Characters of a problem with its rationale and answer."""
    return sum(len(row[part] or "") for part in ("question", "rationale", "answer"))


def model_at(place: Path, family: str, problems: Path, template) -> Path:
    """A tiny model that has learned to think shortly and to give a problem's answer or the next one's: right half of the time."""
    rows = list(load_problems(str(problems), "train"))
    directory = place / f"{family}-{problems.name}"
    if directory.exists():
        return directory
    texts = [f"{row['question']}\n{row['rationale'] or ''}\n\nThe answer is: {row['answer']}\n" for row in rows]
    base = build(FAMILIES[family], place / f"{directory.name}-random", texts, merges=100)
    rules, model = load_template(base, template), load_policy(base, device="cpu")
    examples = [(row, answer["answer"]) for i, row in enumerate(rows) for answer in (row, rows[i - 1])]
    prompts = [rules.prompt_ids(row["question"]) for row, _ in examples]
    completions = [rules.rationale_ids("So.") + rules.answer_ids(answer) for _, answer in examples]
    batch = likelihood.make_batch(prompts, completions, torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = -likelihood.token_log_probs(model, batch)[0].mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.5, loss
    return save_policy(model, rules, directory)


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
@pytest.mark.parametrize("path", [path for path in FILES if path.stem in STEPPED], ids=lambda path: path.stem)
def test_the_first_two_steps(path, place, tmp_path, monkeypatch, capsys):
    own = load_experiment(path)
    task = own.tasks[0]
    problems = problems_at(place, task.data)
    model = model_at(place, FAMILY_OF[own.model], problems, own.template)
    small = {"name": f"test-{path.stem}", "model": str(model), "seeds": [0], "tasks": [{"name": task.name, "data": str(problems)}]}
    values = own.model_dump(exclude_unset=True) | small
    for section, sizes in SIZES.items():
        values[section] = values.get(section, {}) | sizes
    values["common"] |= LONGER.get(path.stem, {})
    with open(tmp_path / "small.yaml", "w", encoding="utf-8") as file:
        YAML(typ="safe").dump(values, file)
    stages = {spec.params.stage: spec for spec in plan(load_experiment(tmp_path / "small.yaml"))}
    assert main([str(tmp_path / "small.yaml"), "--plan"]) == 0
    planned = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line}
    assert {"total", *(spec.key for spec in stages.values())} <= planned
    run_dir = PROJECT_ROOT / "outputs" / small["name"]
    monkeypatch.setattr("matplotlib.pyplot.show", lambda *args, **kwargs: None)
    try:
        for name in STAGES:
            if name in stages:
                execute(stages[name])
        check(run_dir / "seed0")
    finally:
        shutil.rmtree(run_dir, ignore_errors=True)


def execute(spec):
    """The notebook of a stage in this process, with the stage's parameters behind its parameters cell."""
    namespace = {}
    for cell in nbformat.read(spec.notebook, as_version=4).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, f"{spec.notebook.name}", "exec"), namespace)
        if "parameters" in cell.metadata.get("tags", ()):
            namespace |= spec.params.model_dump(mode="json")


def check(directory: Path) -> None:
    done = {path.parent.name: read_record(path) for path in directory.glob("*/stage.json")}
    assert done
    for name, record in done.items():
        metrics = record["metrics"]
        if record["params"].get("steps") == 2:  # ψ, LaTRO
            lines = [line for line in read_metrics(directory / name / "metrics.jsonl") if "loss" in line]
            assert [line["step"] for line in lines] == [1, 2] and all(abs(line["loss"]) < 1e3 for line in lines)
            rows = read_rationales(directory / name / "rationales.parquet")
            assert any(row["finished"] for row in rows) and all(len(row["logp_psi"]) == len(row["rationale_ids"]) for row in rows)
        elif name == "rs_sampling":
            assert metrics["hits"] > 0 and metrics["kept"] == metrics["hits"]
        elif metrics.get("pairs"):
            assert metrics["steps"] == 2 and metrics["loss"] < 1
        else:
            assert name in ("sft", "brite") and ThetaParams.parse(record["params"])
            assert metrics["steps"] == 2 or not metrics["rationales"]
