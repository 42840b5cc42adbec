import itertools
import json
import math
import random
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch

from brite_lib import progress as progress_module
from brite_lib.errors import InputError
from brite_lib.files import sha256_of
from brite_lib.params import PROJECT_ROOT, EvalParams, ThetaParams
from brite_lib.progress import progress
from brite_lib.records import Stage, metric_table, read_metrics, read_record

KEYS = [
    "stage", "status", "params", "seed", "started", "seconds", "tokens_generated", "tokens_trained", "flops", "peak_rss_gib",
    "peak_gpu_gib", "gpu_hours", "git_commit", "code", "versions", "inputs", "outputs", "metrics",
]  # fmt: skip


@pytest.fixture(autouse=True)
def torch_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def start(directory, **fields) -> Stage:
    return Stage.start("theta_sft", ThetaParams(output_dir=str(directory), **fields))


def test_the_peak_is_that_of_the_largest_process(tmp_path):
    stage, own = start(tmp_path), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10
    subprocess.run([sys.executable, "-c", f"b'x' * {own + 2**28}"], check=True)  # as a vLLM engine is, a child with more than its parent
    stage.finish([], {})
    assert own / 2**30 + 0.25 < read_record(stage.path("stage.json"))["peak_rss_gib"] < own / 2**30 + 0.5


def test_record(tmp_path, capsys):
    stage = start(tmp_path / "sft", seed=3, stage="sft")
    assert "CPU threads: 1 of" in capsys.readouterr().out
    drawn = (random.random(), np.random.rand(), torch.rand(1).item())
    (tmp_path / "data.jsonl").write_text("{}")
    assert stage.add_input(tmp_path / "data.jsonl") == tmp_path / "data.jsonl"
    stage.path("model").mkdir()
    stage.path("model").joinpath("weights").write_text("w")
    stage.count(tokens_generated=5)
    stage.count(tokens_generated=2, tokens_trained=7, flops=1e9, seconds=100)
    arrays = {"share": np.float32(0.5), "count": np.int64(3), "tensor": torch.tensor([1.0, math.nan])}
    stage.finish([stage.path("model")], {"loss": float("nan"), "list": [1.0, float("inf")], **arrays})
    record = read_record(stage.path("stage.json"))
    assert list(record) == KEYS
    assert (record["stage"], record["status"], record["seed"], record["params"]["output_dir"]) == (
        "sft",
        "finished",
        3,
        str(tmp_path / "sft"),
    )
    assert (record["tokens_generated"], record["tokens_trained"], record["flops"]) == (7, 7, 1e9)
    assert 100 <= record["seconds"] < 160 and record["peak_rss_gib"] > 0.05
    assert record["metrics"] == {"loss": None, "list": [1.0, None], "share": 0.5, "count": 3, "tensor": [1.0, None]}
    assert record["inputs"] == {str(tmp_path / "data.jsonl"): sha256_of(tmp_path / "data.jsonl")}
    assert record["outputs"] == {str(tmp_path / "sft" / "model"): sha256_of(tmp_path / "sft" / "model")}
    assert record["versions"]["torch"] == torch.__version__

    again = start(tmp_path / "sft", seed=3)
    assert not again.path("stage.json").exists()  # a stage that runs again has not finished
    assert again.name == "theta_sft" and Stage.start("mine", again.params).name == "mine"
    assert drawn == (random.random(), np.random.rand(), torch.rand(1).item())


def test_paths_inside_the_project_are_relative():
    stage = Stage("x", EvalParams(output_dir="outputs/x"), PROJECT_ROOT / "outputs/x")
    stage.add_input(PROJECT_ROOT / "brite_lib" / "errors.py")
    assert list(stage._inputs) == ["brite_lib/errors.py"]


def test_upstream_files_are_checked(tmp_path):
    upstream = start(tmp_path / "up")
    upstream.path("rationales.parquet").write_bytes(b"table")
    upstream.finish([upstream.path("rationales.parquet")], {})
    stage = start(tmp_path / "down")
    stage.add_input(upstream.path("rationales.parquet"))
    upstream.path("rationales.parquet").write_bytes(b"tabl")
    with pytest.raises(InputError, match=r"up/rationales.parquet: is corrupt"):
        stage.add_input(upstream.path("rationales.parquet"))
    upstream.path("rationales.parquet").unlink()
    with pytest.raises(InputError, match=r"up/rationales.parquet: is missing, though .*stage.json lists it"):
        stage.add_input(upstream.path("rationales.parquet"))
    with pytest.raises(InputError, match=r"nothing.parquet: is missing; run the stage that writes it first$"):
        stage.add_input(tmp_path / "nothing.parquet")
    upstream.path("rationales.parquet").write_bytes(b"table")
    upstream.path("stage.json").write_text('{"stage": ')
    with pytest.raises(InputError, match=r"up/stage.json: is no readable stage record"):
        stage.add_input(upstream.path("rationales.parquet"))


def test_a_missing_output_is_no_finished_stage(tmp_path):
    stage = start(tmp_path)
    with pytest.raises(FileNotFoundError, match="model was not written"):
        stage.finish([stage.path("model")], {})
    assert not stage.path("stage.json").exists()


def test_metrics_survive_a_kill(tmp_path):
    stage = start(tmp_path)
    for step in range(5):
        stage.log(step, loss=step / 2, bad=float("nan"))
    with stage.path("metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # torn by SIGKILL
    stage = start(tmp_path)
    assert [line["step"] for line in read_metrics(stage.path("metrics.jsonl"))] == [0, 1, 2, 3, 4]
    stage.rewind(2)
    stage.log(3, loss=9.0)
    lines = [json.loads(line) for line in stage.path("metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert lines[-1] == {"step": 3, "loss": 9.0} and lines[0]["bad"] is None
    stage.rewind(-1)
    assert read_metrics(stage.path("metrics.jsonl")) == []


def checkpoint_survives(directory, data, **fields) -> bool:
    """Whether a stage started with these parameters finds the checkpoint that an interrupted one left in ``directory``."""
    stage = start(directory, **fields)
    stage.add_input(data)
    return (stage.checkpoints() / "checkpoint-4").exists()


def test_only_the_same_parameters_and_inputs_resume_a_checkpoint(tmp_path, capsys):
    data, directory = tmp_path / "data.jsonl", tmp_path / "sft"
    data.write_text("{}")
    settings = {"epochs": 6, "lora": {"r": 4, "alpha": 8}}

    def killed() -> None:
        checkpoint_survives(directory, data, **settings)
        (directory / "checkpoint/checkpoint-4").mkdir(parents=True, exist_ok=True)

    killed()
    assert checkpoint_survives(directory, data, **settings)
    assert checkpoint_survives(
        directory, data, **settings, batch_size=7, threads=2, save_steps=9, device="cpu"
    )  # nothing learned depends on these
    assert "removed" not in capsys.readouterr().out
    for change in ({"learning_rate": 1e-5}, {"seed": 1}, {"epochs": 7}, {"lora": {"r": 8, "alpha": 8}}, {"model": "other"}):
        killed()
        assert not checkpoint_survives(directory, data, **settings | change), change
        assert "checkpoints of other parameters or inputs are removed" in capsys.readouterr().out
        assert not checkpoint_survives(directory, data, **settings)  # gone for good
    killed()
    data.write_text("{} ")
    assert not checkpoint_survives(directory, data, **settings)
    killed()
    (directory / "checkpoint/made_with.json").unlink()  # killed before it was written
    assert not checkpoint_survives(directory, data, **settings)


def test_batch_progress_prints_a_line_every_few_seconds_and_none_for_what_is_quick(monkeypatch, capsys):
    monkeypatch.setenv("BRITE_BATCH", "1")
    assert list(progress(range(10_000), desc="rollouts")) == list(range(10_000))
    assert capsys.readouterr().out == ""
    clock = itertools.count(step=0.5)  # seconds
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    assert list(progress(range(30), desc="rollouts")) == list(range(30))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines] == ["2/30", "10/30", "18/30", "26/30", "30/30"] and lines[0].startswith("rollouts:   7%")


def test_a_batch_run_of_days_prints_hundreds_of_lines():
    elapsed, lines = 0.0, 0
    while elapsed < 3 * 24 * 3600:
        elapsed, lines = elapsed + progress_module.pause(elapsed), lines + 1
    assert progress_module.pause(60) == 5 and 500 < lines < 1500


def test_metrics_are_readable():
    table = metric_table({"pass@1": 0.51175, "tokens": 221726, "draws": 30000.0, "loss": None, "kept": True, "rate": 2e-05})
    assert table["value"].tolist() == ["0.5118", "221,726", "30,000", "–", "True", "2e-05"]
    assert table.index[0] == "pass@1"
    assert metric_table({}).empty
