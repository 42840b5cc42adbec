"""Bad input ends in one sentence that names the file, key or row, before a model is loaded, and nothing is half-written.

Here as a user meets it: `make run`, plain `papermill -p`, plain `papermill -f`. All sentences about parameters: test_params.py;
about rows and tables: test_problems.py, test_tables.py; misspelt and mistyped parameters under papermill: test_run.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from ruamel.yaml import YAML

from brite_lib import run
from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT, load_experiment
from brite_lib.stages import plan

NAME = "test-bad-input"
GOOD = {"id": "a", "question": "1+1", "answer": "2", "rationale": "two"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Bad files of every kind, named as the tests use them; the current directory, as a user's may be any."""
    rows = {"good": [GOOD], "no_answer": [GOOD, {"id": "b", "question": "2+2"}], "twice": [GOOD, GOOD | {"question": "2+2"}]}
    for name, values in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in values))
    (tmp_path / "cut.parquet").write_bytes(b"PAR1" + bytes(100))
    (tmp_path / "splits").mkdir()
    shutil.copy(tmp_path / "good.jsonl", tmp_path / "splits/train.jsonl")
    shutil.copy(tmp_path / "no_answer.jsonl", tmp_path / "splits/test.jsonl")
    (tmp_path / "monitored").mkdir()
    for split, rows_of in (("train", "good"), ("test", "good"), ("validation", "no_answer")):
        shutil.copy(tmp_path / f"{rows_of}.jsonl", tmp_path / f"monitored/{split}.jsonl")
    (tmp_path / "brite/model").mkdir(parents=True)  # the θ of round 1, changed after its stage recorded it
    shutil.copy(PROJECT_ROOT / "assets/tiny-base/config.json", tmp_path / "brite/model")
    record = {"stage": "brite", "seed": 0, "seconds": 0, "tokens_generated": 0, "tokens_trained": 0}
    record |= {"params": {}, "inputs": {}, "outputs": {"brite/model": "0" * 64}, "metrics": {}}
    (tmp_path / "brite/stage.json").write_text(json.dumps(record))
    (tmp_path / "bin").mkdir()
    shutil.copy(PROJECT_ROOT / "assets/tiny-base/config.json", tmp_path / "bin")
    (tmp_path / "bin/pytorch_model.bin").write_bytes(b"\x80")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    shutil.rmtree(PROJECT_ROOT / "outputs" / NAME, ignore_errors=True)


def experiment(folder: Path, data: str = "toy:easy", **changes: object) -> Path:
    values = {"name": NAME, "model": "assets/tiny-base", "methods": ["base", "rs", "brite"], "tasks": [{"name": "t", "data": data}]}
    path = folder / "bad.yaml"
    YAML().dump(values | changes, path)
    return path


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"psi": {"stepz": 3}}, "bad.yaml: psi: stepz: is no parameter of PsiParams; did you mean 'steps'?"),
        ({"theta": {"epochs": "many"}}, 'bad.yaml: theta: epochs: Input should be a valid number, * (got "many")'),
        ({"rounds": 0}, "bad.yaml: rounds: Input should be greater than 0 (got 0)"),
        ({"dpo_iterations": 0}, "bad.yaml: dpo_iterations: Input should be greater than 0 (got 0)"),
        (
            {"methods": ["rloo"], "rloo": {"rationales_per_prompt": 1}},
            "bad.yaml: rloo: rationales_per_prompt must be at least 2 for advantage: rloo, or use advantage: gae",
        ),
        ({"psi": {"steps": -1}}, "bad.yaml: psi: steps: Input should be greater than 0 (got -1)"),
        (
            {"theta": {"processes": 1024, "train_batch_size": 1024}},
            f"seed0/rs: processes: 1024 are more than the {torch.cuda.device_count() or os.cpu_count()} *s found",
        ),
        ({"methods": ["base", "britte"]}, "bad.yaml: methods: 'britte' is unknown; did you mean 'brite'?"),
        ({"model": "./nowhere"}, "bad.yaml: model: ./nowhere: no such model directory*"),
        ({"model": "bin"}, "bad.yaml: model: bin: has no *.safetensors weights, only .bin files, *; convert it to safetensors"),
        ({"data": "toy:eazy"}, "data: toy:eazy: name a level as in toy:easy; did you mean 'easy'?"),
        ({"data": "no_answer.jsonl"}, "{folder}/no_answer.jsonl: row 2: answer: is missing"),
        ({"data": "twice.jsonl"}, "{folder}/twice.jsonl: row 2: id: 'a' is already in row 1"),
        ({"data": "cut.parquet"}, "{folder}/cut.parquet: is no whole parquet file, it may be truncated: *"),
        ({"data": "splits"}, "{folder}/splits/test.jsonl: row 2: answer: is missing"),  # found before, not after training
        ({"data": "monitored", "psi": {"monitor_problems": 1}}, "{folder}/monitored/validation.jsonl: row 2: answer: is missing"),
    ],
)
def test_run(folder, changes, sentence, monkeypatch, capsys):
    monkeypatch.setattr(run, "_snakemake", lambda *_: pytest.fail("a stage would have run"))
    assert run.main([str(experiment(folder, **changes).relative_to(folder))]) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert_matches(errors, f"error: {sentence.replace('{folder}', str(folder))}\n")
    assert not (PROJECT_ROOT / "outputs" / NAME).exists()


def test_training_on_the_test_problems_is_said(folder):
    for name, shared in (("good.jsonl", [str(folder / "good.jsonl")]), ("splits", [])):
        assert run.shared_problems(plan(load_experiment(experiment(folder, data=str(folder / name))))) == shared
    evaluated = {"name": "t", "data": str(folder / "splits"), "test_split": "train"}
    assert run.shared_problems(plan(load_experiment(experiment(folder, tasks=[evaluated])))) == [f"{folder / 'splits'} (train)"]
    assert run.shared_problems(plan(load_experiment(experiment(folder, tasks=[evaluated], methods=["base"])))) == []


def test_make_run(folder):
    path = experiment(folder, data=str(folder / "no_answer.jsonl"))
    # -o: a newer pyproject.toml is no reason to install again here
    command = ["make", "--no-print-directory", "-o", ".venv/.installed", "run", f"EXPERIMENT={path}", f"BIN={Path(sys.executable).parent}"]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL")}
    result = subprocess.run(command, cwd=PROJECT_ROOT, env=environment | {"LC_ALL": "C"}, capture_output=True, text=True)
    assert result.returncode != 0
    sentence, *by_make = result.stderr.splitlines()
    assert sentence == f"error: {folder}/no_answer.jsonl: row 2: answer: is missing"
    assert all(line.startswith("make") for line in by_make)
    assert result.stdout == ""
    assert not (PROJECT_ROOT / "outputs" / NAME).exists()


@pytest.mark.parametrize(
    ("notebook", "how", "values", "sentence"),
    [
        # A model that isn't there shows that rows are read before a model is loaded; learning_rate, that 1e-5 in YAML is no error.
        (
            "02_psi_ppo",
            "-f",
            {"model": "./nowhere", "data": "{folder}/no_answer.jsonl", "learning_rate": "1e-5"},
            "{folder}/no_answer.jsonl: row 2: answer: is missing",
        ),
        (
            "05_evaluation",
            "-p",
            {"model": "{folder}/bin", "data": "{folder}/good.jsonl"},
            "model: {folder}/bin has no *.safetensors weights; convert them *",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value[0].isdigit() else "",
)
def test_plain_papermill(folder, notebook, how, values, sentence):
    target = folder / "stage"
    values = {name: value.replace("{folder}", str(folder)) for name, value in values.items()} | {"output_dir": target}
    (folder / "p.yaml").write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    options = ["-f", folder / "p.yaml"] if how == "-f" else [part for name, value in values.items() for part in ("-p", name, value)]
    command = [sys.executable, "-m", "papermill", f"notebooks/{notebook}.ipynb", folder / "out.ipynb", "-k", "python3", *options]
    result = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if line.startswith("InputError: ")]
    assert len(said) == 1, result.stderr
    assert_matches(said[0], f"InputError: {sentence.replace('{folder}', str(folder))}")
    assert not [path for path in target.rglob("*") if path.is_file()]
    if "learning_rate" in values:
        assert any("'learning_rate': 1e-05" in str(cell.get("outputs")) for cell in nbformat.read(folder / "out.ipynb", 4).cells)


@pytest.mark.parametrize(
    ("notebook", "values", "sentence"),
    [
        (
            "02_psi_ppo",
            {"round": 2, "model": "{folder}/brite/model"},
            "{folder}/brite/model: is corrupt or was changed, its SHA-256 is not the one in {folder}/brite/stage.json; *",
        ),
        (
            "10_rejection_sampling",
            {"model": "./nowhere", "data": "{folder}/twice.jsonl"},
            "{folder}/twice.jsonl: row 2: id: 'a' is already in row 1",
        ),
        (
            "03_theta_sft",
            {"model": "./nowhere", "rationales": "{folder}/cut.parquet"},
            "{folder}/cut.parquet: is no whole parquet file, it may be truncated: *",
        ),
    ],
)
def test_the_cells_of_other_notebooks(folder, notebook, values, sentence):
    """In this process: a kernel of its own takes twenty seconds, and would show the sentence as those above."""
    values = {name: value.replace("{folder}", str(folder)) if isinstance(value, str) else value for name, value in values.items()}
    namespace: dict = {}
    cells = [cell for cell in nbformat.read(PROJECT_ROOT / f"notebooks/{notebook}.ipynb", 4).cells if cell.cell_type == "code"]
    with pytest.raises(InputError) as caught:
        for cell in cells:
            exec(cell.source, namespace)
            if "parameters" in cell.metadata.get("tags", []):
                namespace |= values | {"output_dir": str(folder / "stage")}
    assert_matches(str(caught.value), sentence.replace("{folder}", str(folder)))
    assert not [path for path in (folder / "stage").rglob("*") if path.is_file()]


def assert_matches(text: str, pattern: str) -> None:
    """``*`` stands for anything on the same line."""
    expression = ".*".join(map(re.escape, pattern.split("*")))
    assert re.fullmatch(expression, text), text
