"""Several processes: what is refused before a model loads, a stage trained by two, and what becomes of a rank that fails."""

import os
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from run_processes import wait_until
from safetensors.torch import load_file

from brite_lib.errors import InputError
from brite_lib.execute import execute
from brite_lib.launch import RankTraceback, launch, number_of_processes
from brite_lib.lifeline import is_alive
from brite_lib.params import PROJECT_ROOT, DpoParams, LatroParams, PsiParams, ThetaParams
from brite_lib.records import read_metrics, read_record
from brite_lib.train import TRAINERS

SMALL = {"limit": 22, "epochs": 2, "train_batch_size": 8, "device": "cpu"}
FEW_STEPS = {"limit": 16, "steps": 6, "prompts_per_step": 4, "rationales_per_prompt": 4, "device": "cpu"}
FAILING = """
import os
if os.environ.get("RANK") == "1":
    import datasets
    def from_list(*arguments, **options):
        raise ArithmeticError("one over nothing")
    datasets.Dataset.from_list = from_list
"""
AGENT_OF_A_KILLED_RANK = """
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -15 (pid: 24803)
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_16:49:00
  rank      : 1 (local_rank: 1)
  exitcode  : -9 (pid: 24804)
  error_file: <N/A>
"""


@pytest.mark.parametrize(
    ("cls", "values", "parts"),
    [
        (ThetaParams, {"processes": 0}, ["processes: must be a whole number above 0, or auto (got 0)"]),
        (ThetaParams, {"processes": "many"}, ["processes: must be", '"many"']),
        (ThetaParams, {"processes": 3}, ["train_batch_size must be a multiple of processes, 32 is none of 3"]),
        (DpoParams, {"processes": 3}, ["train_batch_size must be a multiple of processes, 32 is none of 3"]),
        (PsiParams, {"processes": 3}, ["prompts_per_step must be a multiple of processes, 32 is none of 3"]),
        (LatroParams, {"processes": 2, "minibatches": 3}, ["minibatches × processes, 256 is none of 6"]),
        (PsiParams, {"accelerate_config": "no.yaml"}, ["accelerate_config: there is no file", "no.yaml"]),
        (PsiParams, {"accelerate_config": "params/micro.yaml"}, ["accelerate_config: params/micro.yaml is no configuration of accelerate"]),
        (PsiParams, {"accelerate_config": "README.md"}, ["accelerate_config: README.md: not a YAML file"]),
    ],
)
def test_wrong_processes_are_one_sentence_before_torch_is_needed(cls, values, parts):
    with pytest.raises(InputError) as error:
        cls.parse(values, where="notebook parameter")
    for part in parts:
        assert part in str(error.value)


def test_a_notebook_refuses_more_processes_than_there_are_cores_or_gpus(monkeypatch):
    cores = os.cpu_count()
    with pytest.raises(InputError, match=rf"processes: {2 * cores} are more than the {cores} cores found"):
        ThetaParams.from_notebook({"processes": 2 * cores, "train_batch_size": 2 * cores, "device": "cpu"})
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(InputError, match="processes: 4 are more than the 2 GPUs found"):
        ThetaParams.from_notebook({"processes": 4})


def test_what_accelerate_does_not_know_in_a_file_is_one_sentence(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("{distributed_type: MULTI_GPU, use_cpu: true, machine_ranks: 1}")
    with pytest.raises(InputError, match=rf"^accelerate_config: {path}: .*unknown keys \(\['machine_ranks'\]\)"):
        ThetaParams.from_notebook({"accelerate_config": str(path)})


def test_auto_is_one_process_per_gpu(monkeypatch):
    assert number_of_processes(ThetaParams(processes="auto")) == 1
    assert not ThetaParams(processes="auto").launched
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert number_of_processes(ThetaParams(processes="auto")) == 4
    assert ThetaParams(processes="auto").launched
    assert number_of_processes(ThetaParams(processes="auto", device="cpu")) == 1
    with pytest.raises(InputError, match="processes: auto means 4 here: train_batch_size must be a multiple"):
        number_of_processes(ThetaParams(processes="auto", train_batch_size=6))


def test_a_single_gpu_that_was_named_is_for_one_process():
    assert number_of_processes(ThetaParams(device="cuda:1")) == 1
    with pytest.raises(InputError, match="processes: more than one needs device auto, cpu or cuda, not cuda:1"):
        number_of_processes(ThetaParams(processes=2, device="cuda:1"))


# Two processes


@pytest.mark.parametrize(("kind", "notebook", "settings"), [("theta_sft", "03_theta_sft", SMALL), ("brite_psi", "02_psi_ppo", FEW_STEPS)])
def test_the_notebook_trained_by_two_processes_ends_like_that_of_one(kind, notebook, settings, tmp_path):
    params = {"output_dir": str(tmp_path / "two"), "processes": 2} | settings
    assert execute(PROJECT_ROOT / f"notebooks/{notebook}.ipynb", tmp_path / "two/notebook.ipynb", params) is None
    cls, _ = TRAINERS[kind]
    launch(kind, cls.parse(settings | {"output_dir": str(tmp_path / "one")}), 1)

    lines, others = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(lines) == len(others) == 6
    for line, other in zip(lines, others, strict=True):
        assert other == pytest.approx(line, abs=1e-4)
    trained = load_file(tmp_path / "two/model/model.safetensors")
    for name, weights in checkpoint_of(tmp_path / "one/checkpoint").items():
        assert name not in trained or (trained[name] - weights).abs().max() < 1e-4  # one of two tied weights is not saved
    record = read_record(tmp_path / "two/stage.json")
    assert record["flops"] > 0 and record["tokens_trained"] > 0
    text = (tmp_path / "two/notebook.ipynb").read_text()
    assert text.count("<pre>2 processes of accelerate launch; ") == 1 and "default0" not in text


def checkpoint_of(directory: Path) -> dict[str, torch.Tensor]:
    """The trained weights in the last checkpoint of either trainer."""
    if (directory / "state.pt").is_file():
        return torch.load(directory / "state.pt", weights_only=True)["policy"]
    return load_file(directory / "checkpoint-6/model.safetensors")


def test_the_error_of_a_rank_is_the_ranks_own(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    before = psutil.Process().children()  # of other tests
    with pytest.raises(RuntimeError, match=r"^rank 1 of 2: ArithmeticError: one over nothing \(log: (.*/1/stderr.log)\)$") as error:
        launch("theta_sft", ThetaParams.parse(SMALL | {"output_dir": str(tmp_path / "out"), "processes": 2}), 2)
    assert isinstance(error.value.__cause__, RankTraceback)
    assert "in train_theta" in str(error.value.__cause__) and str(error.value.__cause__).rstrip().endswith("one over nothing")
    assert not set(psutil.Process().children()) - set(before)


def test_ranks_end_with_the_process_that_launched_them_and_with_an_interrupt_of_it(tmp_path):
    with train_forever(tmp_path / "killed") as killed, train_forever(tmp_path / "interrupted") as interrupted:
        try:
            end_by(signal.SIGKILL, killed, tmp_path / "killed")
            end_by(signal.SIGINT, interrupted, tmp_path / "interrupted")
            assert "KeyboardInterrupt" in interrupted.stdout.read()
        finally:
            killed.kill()
            interrupted.kill()


def train_forever(directory: Path) -> subprocess.Popen:
    """A process that has launched two."""
    params = {**SMALL, "epochs": 10_000, "output_dir": str(directory), "processes": 2, "samples": 4}
    code = f"from brite_lib.launch import launch; from brite_lib.params import DpoParams; launch('dpo', DpoParams(**{params!r}), 2)"
    return subprocess.Popen([sys.executable, "-c", code], cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def end_by(sent: int, launcher: subprocess.Popen, directory: Path) -> None:
    """Send a signal to a process whose ranks train, and see them end."""
    wait_until(lambda: launcher.poll() is not None or len(read_metrics(directory / "metrics.jsonl")) > 2, "two processes train", 120)
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert len(family) >= 3, "an agent and two ranks"
    launcher.send_signal(sent)
    wait_until(lambda: not any(map(is_alive, family)), "all have ended", 20)


@pytest.mark.parametrize(
    ("agent", "sentence"),
    [
        (AGENT_OF_A_KILLED_RANK, "rank 1 of 2 ended with exit code -9, killed: was there too little memory? (logs: {0})"),
        ("Traceback …\nOSError: no such thing\n", "accelerate launch failed: OSError: no such thing (log: {0}/agent.log)"),
        ("", "accelerate launch failed: it said nothing (log: {0}/agent.log)"),
    ],
)
def test_what_is_said_of_ranks_that_left_no_error(agent, sentence, tmp_path, monkeypatch):
    ranks = tmp_path / "ranks"
    monkeypatch.setattr("brite_lib.launch._command", lambda *_: ["sh", "-c", f"printf %s {shlex.quote(agent)}; exit 1"])
    with pytest.raises(RuntimeError) as error:
        launch("theta_sft", ThetaParams(output_dir=str(tmp_path), device="cpu", processes=2), 2)
    assert str(error.value) == sentence.format(ranks)


def test_a_busy_port_is_one_sentence(tmp_path, monkeypatch):
    config = tmp_path / "config.yaml"
    params = ThetaParams(output_dir=str(tmp_path), device="cpu", processes=2)
    with socket.socket() as listener:
        listener.bind(("", 0))
        listener.listen()
        port = listener.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(port))
        with pytest.raises(InputError, match=f"^MASTER_PORT: port {port} is in use"):
            launch("theta_sft", params, 2)
        config.write_text(f"{{distributed_type: MULTI_GPU, use_cpu: true, main_process_port: {port}}}")
        with pytest.raises(InputError, match=f"^main_process_port of accelerate_config: port {port} is in use"):
            launch("theta_sft", params.model_copy(update={"accelerate_config": str(config)}), 2)
