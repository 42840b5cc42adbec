"""``make gpu-check`` on the CPU with small sizes: all its checks, its files, and what it says of a check that fails."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch

from brite_lib.errors import InputError
from brite_lib.gpu_check import __main__ as gpu_check
from brite_lib.gpu_check import checks
from brite_lib.params import PROJECT_ROOT

NOT_NEEDED = (
    "IPython", "PIL", "antlr4", "anywidget", "ipykernel", "ipywidgets", "jupyter_client", "latex2sympy2_extended", "math_verify",
    "matplotlib", "nbformat", "papermill", "pytest", "seaborn", "snakemake", "tabulate", "traitlets",
)  # fmt: skip
ENTRY = {"status", "failures", "numbers", "seconds", "peak_gpu_gib"}


def run_small(folder, *options):
    code = gpu_check.main(["--device", "cpu", "--small", "--output", str(folder / "results.json"), *options])
    return code, json.loads((folder / "results.json").read_text())


def test_every_check_passes_on_a_cpu_in_bf16_with_no_more_packages_than_a_gpu_machine_is_asked_for(tmp_path):
    script = f"import sys; sys.modules.update(dict.fromkeys({NOT_NEEDED})); from brite_lib.gpu_check.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-c", script, "--device", "cpu", "--small", "--output", str(tmp_path / "results.json"), "--commit", "abc"]
    run = subprocess.run(command, capture_output=True, text=True, cwd=PROJECT_ROOT, env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)})
    assert run.returncode == 0, (run.stdout, run.stderr)
    results = json.loads((tmp_path / "results.json").read_text())
    statuses = {name: entry["status"] for name, entry in results["checks"].items()}
    assert statuses == {**dict.fromkeys(checks.CHECKS, "passed"), "vllm": "not importable", "vllm_rollouts": "not importable"}
    assert all(entry.keys() == ENTRY for entry in results["checks"].values())
    assert (results["dtype"], results["small"], results["git_commit"], results["device"]) == ("bfloat16", True, "abc", "cpu")
    assert results["card"] is results["driver"] is results["versions"]["vllm"] is None
    assert results["versions"]["torch"] == torch.__version__
    numbers = {name: entry["numbers"] for name, entry in results["checks"].items()}
    assert numbers["resume"]["bit-identical"] is True  # which no GPU promises
    assert numbers["train_tiny"]["ELBO, last steps"] > numbers["train_tiny"]["ELBO, first steps"]
    assert numbers["likelihood"]["tokens/s"] > 0
    assert numbers["likelihood"]["peak GiB of score"] is None
    assert "| likelihood | passed |" in run.stdout
    assert "| vllm | not importable |" in run.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "results.json"]


def test_the_wheels_to_carry_are_pinned_and_the_documentation_names_them():
    wheels = re.search(r"^GPU_WHEELS := (.+)$", (PROJECT_ROOT / "Makefile").read_text(), flags=re.MULTILINE)[1].split()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in (PROJECT_ROOT / "requirements.lock").read_text().split()}
    assert set(wheels) <= pinned
    assert ", ".join(wheels) in (PROJECT_ROOT / "docs/gpu.md").read_text()


def test_a_failing_check_is_reported_and_the_others_run(tmp_path, monkeypatch, capsys):
    def broken(setup):
        """Something that this card can't do."""
        raise ValueError("no such kernel | here")

    honest = checks.score

    def a_little_off(*arguments, **settings):
        scores = honest(*arguments, **settings)
        return scores._replace(rationale=[values - 0.1 for values in scores.rationale])

    monkeypatch.setattr(checks, "score", a_little_off)
    monkeypatch.setattr(gpu_check, "CHECKS", {"broken": broken, "likelihood": checks.likelihood, "generation": checks.generation})
    code, results = run_small(tmp_path)
    assert code == 1
    assert results["checks"]["broken"]["status"] == "failed"
    assert results["checks"]["broken"]["failures"] == ["ValueError: no such kernel | here"]
    assert results["checks"]["likelihood"]["failures"] == ["it equals the plain softmax within 0.05"]
    assert results["checks"]["likelihood"]["numbers"]["max |difference|"] == pytest.approx(0.1, abs=1e-2)
    assert results["checks"]["generation"]["status"] == "passed"
    assert "| broken | failed |" in capsys.readouterr().out


def test_a_resume_that_loses_the_checkpoint_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(checks.PosteriorPPOTrainer, "save", lambda trainer, path: None)
    monkeypatch.setattr(gpu_check, "CHECKS", {"resume": checks.resume})
    code, results = run_small(tmp_path)
    assert code == 1
    assert results["checks"]["resume"]["failures"] == ["it resumes from step 2"]


@pytest.mark.parametrize(("found", "sentence"), [(0, "finds 0 GPUs here.*--device cpu"), (2, "2 GPUs here.*CUDA_VISIBLE_DEVICES=0")])
def test_it_wants_exactly_one_gpu(found, sentence, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    with pytest.raises(InputError, match=sentence):
        gpu_check.main([])
