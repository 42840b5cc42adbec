"""Several processes: what is refused before a model loads."""

import os

import pytest

from brite_lib.errors import InputError
from brite_lib.launch import number_of_processes
from brite_lib.params import DpoParams, LatroParams, PsiParams, ThetaParams


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
        (PsiParams, {"accelerate_config": "README.md"}, ["accelerate_config: README.md is no"]),
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


def test_auto_is_one_process_per_gpu(monkeypatch):
    assert number_of_processes(ThetaParams(processes="auto")) == 1
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert number_of_processes(ThetaParams(processes="auto")) == 4
    assert number_of_processes(ThetaParams(processes="auto", device="cpu")) == 1
    with pytest.raises(InputError, match="processes: auto means 4 here: train_batch_size must be a multiple"):
        number_of_processes(ThetaParams(processes="auto", train_batch_size=6))


def test_a_single_gpu_that_was_named_is_for_one_process():
    assert number_of_processes(ThetaParams(device="cuda:1")) == 1
    with pytest.raises(InputError, match="processes: more than one needs device auto, cpu or cuda, not cuda:1"):
        number_of_processes(ThetaParams(processes=2, device="cuda:1"))
