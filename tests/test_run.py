"""The machinery of a run (Snakemake, papermill, lock, lifeline) on notebooks that only pretend to train.

The same with the real notebooks: test_kill_resume.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from run_processes import VICTIMS, kill_in_the_middle, kinds, processes, start, wait_until

from brite_lib.lifeline import end_processes
from brite_lib.params import PROJECT_ROOT

STEPS = 20

EXPERIMENT = """
name: pretend
model: model
tasks: [{name: toy, data: "toy:easy"}]
methods: [base, brite]
psi: {steps: 5}
"""

PRETEND_TO_TRAIN = """
import json, os, time
from pathlib import Path
from brite_lib.lifeline import die_with_ancestors

if os.environ.get("BRITE_BATCH"):
    die_with_ancestors()
folder = Path(params.output_dir)
folder.mkdir(parents=True, exist_ok=True)
metrics = folder / "metrics.jsonl"
for step in range(metrics.read_text().count("\\n") if metrics.exists() else 0, STEPS):
    time.sleep(0.1)
    with metrics.open("a") as file:
        file.write(json.dumps({"step": step}) + "\\n")
(folder / "stage.json").write_text(json.dumps({"params": params.model_dump(mode="json")}))
"""

PRETEND_TO_REPORT = """
import json
from pathlib import Path

folder = Path(params.run_dir)
stages = sorted(folder.glob("*/*/metrics.jsonl"))
(folder / "results.json").write_text(json.dumps([[path.parent.name, path.read_text()] for path in stages]))
(folder / "results.csv").write_text("method,benchmark,metric,mean\\n" + "".join(f"{p.parent.name},toy,pass@1,0.51239\\n" for p in stages))
(folder / "report.html").write_text("<p>done</p>")
"""


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Path]:
    """A clone with pretended notebooks; the library is a copy because it finds its project by its own place."""
    shutil.copytree(PROJECT_ROOT / "brite_lib", tmp_path / "brite_lib", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT_ROOT / "Snakefile", tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "model" / name).write_text("")
    (tmp_path / "pretend.yaml").write_text(EXPERIMENT)
    (tmp_path / "notebooks").mkdir()
    write_notebook(tmp_path, "02_psi_ppo", "PsiParams", STEPS)
    write_notebook(tmp_path, "03_theta_sft", "ThetaParams", STEPS)
    write_notebook(tmp_path, "05_evaluation", "EvalParams", 1)
    write_notebook(tmp_path, "06_report", "ReportParams", None)
    yield tmp_path
    end_processes(tmp_path / "outputs/pretend")


def write_notebook(project: Path, name: str, cls: str, steps: int | None, extra: str = "") -> None:
    body = PRETEND_TO_REPORT if steps is None else f"STEPS = {steps}" + extra + PRETEND_TO_TRAIN
    sources = ["", f"from brite_lib.params import {cls}\nparams = {cls}.from_notebook(globals())", body]
    cells = [new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(sources)]
    cells[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(new_notebook(cells=cells, metadata=kernel), project / "notebooks" / f"{name}.ipynb")


def run(project: Path, *options: str) -> tuple[int, str, str]:
    process = start(project, project / "pretend.yaml", *options)
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def test_run_then_nothing_then_what_changed(project):
    run_dir = project / "outputs/pretend"
    code, output, errors = run(project, "--plan")
    assert code == 0
    assert "seed0/brite_psi" in output
    assert not run_dir.exists()

    code, output, errors = run(project)
    assert code == 0, errors
    assert errors == ""
    assert output.count(": started") == output.count(": finished") == 5
    assert ["brite_psi", "toy", "pass@1", "0.5124"] in [line.split() for line in output.splitlines()]
    assert "report: outputs/pretend/report.html" in output

    code, output, _ = run(project)
    assert code == 0
    assert "started" not in output
    assert "0.5124" in output

    (project / "pretend.yaml").write_text(EXPERIMENT.replace("steps: 5", "steps: 6"))
    assert "done with other parameters" in run(project, "--plan")[1]
    code, output, _ = run(project)
    assert code == 0
    assert "seed0/eval_base: started" not in output
    for stage in ("seed0/brite_psi", "seed0/brite", "seed0/eval_brite", "report"):
        assert f"{stage}: started" in output

    write_notebook(project, "05_evaluation", "EvalParams", 1, extra="  # changed")
    code, output, _ = run(project)
    assert code == 0
    assert {line.split()[1] for line in output.splitlines() if "started" in line} == {"seed0/eval_base:", "seed0/eval_brite:", "report:"}

    (project / "pretend.yaml").write_text(EXPERIMENT.replace("[base, brite]", "[base]"))
    code, output, _ = run(project)
    assert code == 0
    assert {line.split()[1] for line in output.splitlines() if "started" in line} == {"report:"}
    assert "not reported: seed0/brite, seed0/brite_psi, seed0/eval_brite\n" in output
    assert json.loads((run_dir / "stages.json").read_text()) == ["seed0/eval_base"]


def test_an_executed_notebook_keeps_no_bar_of_a_library(project):
    notebook, output = project / "bar.ipynb", project / "executed.ipynb"
    nbformat.write(new_notebook(cells=[new_code_cell("from tqdm.auto import tqdm\nprint(*tqdm(range(3)))")]), notebook)
    subprocess.run([sys.executable, "-m", "brite_lib.execute", notebook, output, "{}"], timeout=120, check=True)
    assert [one.get("text") for one in nbformat.read(output, as_version=4).cells[-1].outputs] == ["0 1 2\n"]


@pytest.mark.parametrize(("name", "transport"), [("short", "ipc"), ("long" * 30, "tcp")])
def test_a_kernel_takes_no_port_that_another_could_take_first(name, transport):
    with tempfile.TemporaryDirectory() as directory:
        (folder := Path(directory) / name).mkdir()
        notebook, output, environment = folder / "asks.ipynb", folder / "executed.ipynb", os.environ | {"TMPDIR": str(folder)}
        ask = "from ipykernel.kernelapp import IPKernelApp\nprint(IPKernelApp.instance().transport)"
        nbformat.write(new_notebook(cells=[new_code_cell(ask)]), notebook)
        subprocess.run([sys.executable, "-m", "brite_lib.execute", notebook, output, "{}"], env=environment, timeout=120, check=True)
        assert [one.get("text") for one in nbformat.read(output, as_version=4).cells[-1].outputs] == [f"{transport}\n"]
        assert set(folder.iterdir()) == {notebook, output}


def test_changed_code_reruns_what_uses_it_and_a_moved_clone_is_up_to_date(project, tmp_path_factory):
    write_notebook(project, "02_psi_ppo", "PsiParams", 1)
    write_notebook(project, "03_theta_sft", "ThetaParams", 1)
    assert run(project)[0] == 0
    shutil.move(project, moved := tmp_path_factory.mktemp("elsewhere") / "clone")
    assert would_run(moved) == set()

    with (moved / "brite_lib/params/sources_and_learners.py").open("a") as file:  # ψ's and θ's parameters, not the evaluation's
        file.write("LATER = 1\n")
    assert would_run(moved) == {"seed0/brite_psi", "seed0/brite", "seed0/eval_brite", "report"}


def test_seeds_run_side_by_side(project):
    (project / "pretend.yaml").write_text(EXPERIMENT.replace("[base, brite]", "[base]") + "seeds: [0, 1]\n")
    write_notebook(project, "05_evaluation", "EvalParams", STEPS)
    code, output, errors = run(project, "--cores", "2")
    assert code == 0, errors
    events = [line.split()[2] for line in output.splitlines() if "eval_base:" in line]
    assert events == ["started", "started", "finished", "finished"]


def would_run(project: Path) -> set[str]:
    """Stages that the next run would run, and the report."""
    code, output, errors = run(project, "--dry-run")
    assert code == 0, errors
    outputs = [line.split(":")[1] for line in output.splitlines() if line.strip().startswith("output:")]
    return {"report" if "report.html" in line else line.strip().removesuffix("/stage.json") for line in outputs}


def test_killed_anywhere_it_goes_on(project):
    run_dir = project / "outputs/pretend"
    for stage in ("seed0/brite_psi", "seed0/brite"):
        for kind in ("snakemake", "papermill", "kernel"):
            kill_in_the_middle(project, project / "pretend.yaml", run_dir, kind, stage, timeout=30)
    code, _, errors = run(project)
    assert code == 0, errors
    steps = {name: text.count("\n") for name, text in json.loads((run_dir / "results.json").read_text())}
    assert steps == {"brite_psi": STEPS, "brite": STEPS, "eval_base": 1, "eval_brite": 1}


def test_ending_the_launcher_ends_the_run(project):
    run_dir = project / "outputs/pretend"
    write_notebook(project, "02_psi_ppo", "PsiParams", 4 * STEPS)  # so that it still runs when the last signal is sent
    for name, expected in (("SIGTERM", 130), ("SIGINT", 130), ("SIGKILL", -9)):
        process = start(project, project / "pretend.yaml")
        wait_until(lambda: kinds(run_dir) == set(VICTIMS), "Snakemake, papermill and a kernel run", 30)
        _, output, errors = run(project)
        assert errors.startswith(f"error: outputs/pretend: is being run by process {process.pid} on ")
        assert output == ""
        process.send_signal(getattr(signal, name))
        process.communicate(timeout=20)
        assert process.returncode == expected
        assert name == "SIGKILL" or not processes(run_dir)
    code, _, errors = run(project)  # at once: it ends what the killed launcher left behind
    assert code == 0, errors
    assert not processes(run_dir)


@pytest.mark.parametrize(
    ("extra", "sentence"),
    [
        ("\nfrom brite_lib.errors import InputError\nraise InputError('rows.jsonl: row 3: no answer')", "rows.jsonl: row 3: no answer"),
        ("\nraise KeyError('what')", "KeyError: 'what'"),
    ],
)
def test_a_failing_stage_is_named_with_its_sentence_and_notebook(project, extra, sentence):
    write_notebook(project, "05_evaluation", "EvalParams", 1, extra=extra)
    (project / "pretend.yaml").write_text(EXPERIMENT.replace("[base, brite]", "[base]"))
    code, output, errors = run(project)
    assert code == 1
    assert "FAILED" in output
    assert "Traceback" not in errors + output
    failed = errors.splitlines()[0].split(" failed: ")
    assert failed == ["seed0/eval_base", sentence]
    notebook = project / errors.splitlines()[1].split("notebook: ")[1]
    assert any(output.output_type == "error" for cell in nbformat.read(notebook, 4).cells for output in cell.get("outputs", []))
    assert not (notebook.parent / "stage.json").exists()


FILL_THE_DISK = """
from pathlib import Path

Path(params.output_dir).mkdir(parents=True, exist_ok=True)
with open("outputs/ballast", "wb", buffering=0) as ballast:  # once: another program's file, which somebody deletes
    while not Path("filled").exists():
        try:
            ballast.write(bytes(4096))
        except OSError:
            Path("filled").touch()
"""


def in_a_small_disk(project: Path, script: str, options: str = "size=3m") -> subprocess.CompletedProcess:
    """Run a shell script in the project, with a small disk of its own as outputs/ (a mount that only this script sees)."""
    (project / "outputs").mkdir()
    mount = f"mount -t tmpfs -o {options} tmpfs outputs && "
    command = ["unshare", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--mount", "sh", "-c", mount + script]
    environment = os.environ | {"PYTHONPATH": str(project), "RUN": f"{sys.executable} -m brite_lib.run pretend.yaml"}
    return subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a small disk in a namespace of its own")
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(project):
    write_notebook(project, "02_psi_ppo", "PsiParams", STEPS, extra=FILL_THE_DISK)
    script = "$RUN --cores 1; echo first $?; $RUN; echo again $?; rm outputs/ballast; $RUN >&2; cat outputs/pretend/results.json"
    result = in_a_small_disk(project, script)
    first, again = result.stdout.split("first 1\n")
    assert "seed0/brite_psi: FAILED" in first and "outputs/pretend/seed0/brite_psi: the disk is full, free some space (" in first
    assert again.startswith("again 2\n")
    assert "outputs/pretend: the disk is full; free some space\nrun the same command again to go on\n" in result.stderr
    assert "error: outputs/pretend: the disk is full; free some space\n" in result.stderr
    assert "Traceback" not in result.stdout + result.stderr
    steps = {name: text.count("\n") for name, text in json.loads(again.splitlines()[-1])}
    assert steps == {"brite_psi": STEPS, "brite": STEPS, "eval_base": 1, "eval_brite": 1}


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_a_folder_that_cannot_be_written_to(project):
    result = in_a_small_disk(project, "$RUN", options="ro")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: outputs/pretend: cannot be written to (Read-only file system)\n"


@pytest.mark.parametrize("allocation", ["bytearray(2**40)", "__import__('torch').empty(2**40)"])
def test_a_stage_without_enough_memory_is_named_with_what_to_lower(project, allocation):
    extra = f"\nimport resource\nresource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))\n{allocation}"
    write_notebook(project, "05_evaluation", "EvalParams", 1, extra=extra)
    (project / "pretend.yaml").write_text(EXPERIMENT.replace("[base, brite]", "[base]"))
    code, _, errors = run(project)
    assert code == 1
    assert errors.startswith("seed0/eval_base failed: out of memory; lower batch_size, micro_batch_size or the lengths (")


def test_a_notebook_by_plain_papermill_refuses_unknown_and_mistyped_parameters(project):
    source, output = project / "notebooks/02_psi_ppo.ipynb", project / "out.ipynb"
    (project / "p.yaml").write_text("learning_rate: 1e-5\nsteps: -1\n")
    for options, part in ((["-p", "stepz", "3"], "did you mean 'steps'"), (["-f", project / "p.yaml"], "notebook parameter: steps")):
        command = ["-m", "papermill", source, output, "-k", "python3", *options]
        environment = os.environ | {"PYTHONPATH": str(project)}
        result = subprocess.run([sys.executable, *command], cwd=project, env=environment, capture_output=True, text=True)
        assert result.returncode != 0
        assert part in result.stderr
        assert not (project / "outputs").exists()
