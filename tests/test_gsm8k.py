"""params/gsm8k-smoke.yaml end to end on real GSM8K rows, with a real chat model's parts at a random tiny size."""

import gzip
import json
import shutil

import pytest
from real_model import build_qwen2
from ruamel.yaml import YAML
from run_processes import start

from brite_lib.params import PROJECT_ROOT, load_experiment
from brite_lib.stages import run_directory
from brite_lib.tables import read_rationales

DATA = PROJECT_ROOT.parent / "shared" / "data" / "gsm8k"
# A random model writes "The answer is:" about never, but a line break once in some hundred tokens.
TEMPLATE = {"prompt": "{question}\nThink, then answer on a new line.", "boundary": "\n", "answer": "{answer}"}


@pytest.fixture
def experiment(tmp_path):
    """The parameter file with a model and data that lie here, and a clean run directory."""
    with gzip.open(DATA / "train.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["question"] + "\n" for _, line in zip(range(400), file, strict=False)]
    model = build_qwen2(tmp_path / "qwen2", texts, vocabulary=600)
    yaml = YAML()
    values = yaml.load((PROJECT_ROOT / "params/gsm8k-smoke.yaml").read_text())
    values.update(name="test-gsm8k", model=str(model), template=TEMPLATE)
    values["tasks"][0]["data"] = str(DATA)
    values["common"]["max_rationale_tokens"] = 64  # seconds, not minutes
    path = tmp_path / "gsm8k.yaml"
    yaml.dump(values, path)
    directory = run_directory(load_experiment(path))
    shutil.rmtree(directory, ignore_errors=True)
    yield path, directory
    shutil.rmtree(directory, ignore_errors=True)


def test_every_stage_runs_on_real_rows(experiment):
    path, directory = experiment
    run = start(PROJECT_ROOT, path)
    output, errors = run.communicate(timeout=600)
    assert run.returncode == 0, (output, errors)
    rows = json.loads((directory / "results.json").read_text())
    assert {row["method"] for row in rows} == {"base", "sft", "rs", "brite_psi", "brite"}
    assert all(row["n_problems"] == 32 and 0 <= row["mean"] <= 0.2 for row in rows)
    rationales = read_rationales(directory / "seed0/brite_psi/rationales.parquet")
    assert len(rationales) == 32 and rationales[0]["gold"].isdigit()
    finished = [row for row in rationales if row["finished"]]
    assert finished, "no rationale was finished: nothing was tested"
    for row in rationales:
        assert len(row["logp_theta"]) == len(row["logp_psi"]) == len(row["rationale_ids"]) == len(row["tokens"])
        assert (row["logp_answer"] is not None) == row["finished"]
    sft = json.loads((directory / "seed0/sft/stage.json").read_text())
    assert sft["metrics"]["rationales"] == 32 and sft["metrics"]["steps"] == 4
    assert (directory / "report.html").stat().st_size > 10_000
