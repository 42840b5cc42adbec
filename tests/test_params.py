"""Bad parameters end in one sentence that names the file, the key and the way out, before anything is loaded."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT, PsiParams, RejectionParams, ReportParams, load_experiment


def experiment_file(folder: Path, **changes: str) -> Path:
    """A small valid experiment, its top-level keys replaced or added as YAML text."""
    model = folder / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_bytes(b"")
    keys = {
        "name": "x",
        "model": str(model),
        "tasks": "[{name: toy, data: 'toy:easy'}]",
        "methods": "[base, rs, brite]",
    }
    path = folder / "x.yaml"
    path.write_text("\n".join(f"{key}: {value}" for key, value in (keys | changes).items()))
    return path


def sentence(folder: Path, **changes: str) -> str:
    path = experiment_file(folder, **changes)
    with pytest.raises(InputError) as error:
        load_experiment(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_valid_file_loads(tmp_path):
    experiment = load_experiment(experiment_file(tmp_path, psi="{steps: 3}"))
    assert experiment.psi == {"steps": 3}
    assert experiment.seeds == [0]


@pytest.mark.parametrize("spelling", ["1e-5", "1E-5", "1.0e-5", "0.00001", "'1e-5'"])
def test_small_numbers_in_yaml(tmp_path, spelling):
    from brite_lib.stages import plan

    experiment = load_experiment(experiment_file(tmp_path, psi=f"{{learning_rate: {spelling}}}"))
    params = next(spec.params for spec in plan(experiment) if spec.kind == "brite_psi")
    assert params.learning_rate == 1e-5
    assert isinstance(params.learning_rate, float)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"psi": "{stepz: 3}"}, ["psi: stepz", "did you mean 'steps'"]),
        ({"theta": "{lora: {rank: 8}}"}, ["theta: lora: rank: is no parameter of LoraParams"]),
        ({"common": "{max_rationale_token: 3}"}, ["common: max_rationale_token", "did you mean 'max_rationale_tokens'"]),
        ({"common": "{batch_size: many}"}, ["common: batch_size", '"many"']),
        ({"methodz": "[base]"}, ["methodz", "did you mean 'methods'"]),
        ({"tasks": "[{name: toy, dat: toy}]"}, ["tasks.0: dat: is no parameter of TaskParams; did you mean 'data'?"]),
        ({"psi": "{steps: -1}"}, ["psi: steps", "greater than 0", "-1"]),
        ({"psi": "{steps: 0}"}, ["psi: steps"]),
        ({"psi": "{steps: 2.5}"}, ["psi: steps", "2.5"]),
        ({"psi": "{steps: true}"}, ["psi: steps", "not true or false"]),
        ({"psi": "{learning_rate: fast}"}, ["psi: learning_rate", '"fast"']),
        ({"psi": "{learning_rate: .nan}"}, ["psi: learning_rate"]),
        ({"psi": "{learning_rate: .inf}"}, ["psi: learning_rate"]),
        ({"psi": "{advantage: gea}"}, ["psi: advantage", "'gae'", '"gea"']),
        ({"psi": "{rationales_per_prompt: 1}"}, ["psi: rationales_per_prompt must be at least 2"]),
        ({"psi": "{seed: 1}"}, ["psi: seed", "experiment's seeds"]),
        ({"evaluation": "{limit: 5}"}, ["evaluation: limit", "test_limit"]),
        ({"psi": "3"}, ["psi", "dictionary"]),
        ({"methods": "[base, britte]"}, ["'britte'", "did you mean 'brite'"]),
        ({"methods": "[base, brite_round2]"}, ["'brite_round2' is unknown; its row comes with rounds"]),
        ({"methods": "[base, base]"}, ["methods", "twice"]),
        ({"methods": "[]"}, ["methods"]),
        ({"seeds": "[-1]"}, ["seeds.0"]),
        ({"name": "../evil"}, ["name"]),
        ({"model": "./no/such/model"}, ["model: ./no/such/model", "no such model directory"]),
        ({"model": "assets/tiny-bsae"}, ["model: assets/tiny-bsae", "no such model directory"]),
        ({"tasks": "[{name: g, data: ./rows.jsonl}]"}, ["tasks: g: ./rows.jsonl", "no such data file"]),
        ({"tasks": "[{name: g, data: openai/gsm8k}]", "methods": "[sft_careful]"}, ["sft_careful", "toy task", "use sft"]),
    ],
)
def test_one_sentence(tmp_path, changes, parts):
    message = sentence(tmp_path, **changes)
    for part in parts:
        assert part in message


def test_a_class_called_directly_suggests_names_too():
    with pytest.raises(ValueError, match="stepz: is no parameter of PsiParams; did you mean 'steps'"):
        PsiParams(stepz=3)


@pytest.mark.parametrize(("name", "reason"), [(300 * "x", "File name too long"), ("~nobody-here/x", "Could not determine home directory")])
def test_names_that_no_path_can_have(tmp_path, name, reason):
    for changes in ({"model": name}, {"tasks": f"[{{name: g, data: '{name}'}}]"}):
        with pytest.raises(InputError, match=f"{name[:60]}: is no path: {reason}$"):
            load_experiment(experiment_file(tmp_path, **changes))


def test_bin_only_and_empty_model_directories(tmp_path):
    path = experiment_file(tmp_path)
    (tmp_path / "model/model.safetensors").rename(tmp_path / "model/pytorch_model.bin")
    with pytest.raises(InputError, match=r"no \*\.safetensors weights, only \.bin files"):
        load_experiment(path)
    (tmp_path / "model/pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"no \*\.safetensors weights$"):
        load_experiment(path)
    (tmp_path / "model/config.json").unlink()
    with pytest.raises(InputError, match=r"no config\.json"):
        load_experiment(path)


@pytest.mark.parametrize(
    ("text", "part"),
    [("name: [", "not a YAML file"), ("3", "must be a mapping"), ("# x", "found nothing"), ("a: 1\na: 2", "not a YAML file")],
)
def test_unreadable_files(tmp_path, text, part):
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=part):
        load_experiment(path)


def test_a_missing_file_suggests_its_neighbour():
    with pytest.raises(InputError, match=r"no such experiment file; did you mean 'tiny\.yaml'"):
        load_experiment(PROJECT_ROOT / "params/tinny.yaml")
    with pytest.raises(InputError, match="params: is a directory, not an experiment file"):
        load_experiment(PROJECT_ROOT / "params")


@pytest.mark.parametrize("option", [[], ["--plan"]])
def test_the_command_says_one_sentence_and_exits_with_2(tmp_path, option):
    path = experiment_file(tmp_path, psi="{stepz: 3}")
    command = [sys.executable, "-m", "brite_lib.run", str(path), *option]
    result = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert not (PROJECT_ROOT / "outputs/x").exists()


def test_wrong_parameters_fail_before_torch_is_imported():
    code = "import sys, brite_lib.params, brite_lib.stages, brite_lib.run; assert not {'torch', 'transformers'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], cwd=PROJECT_ROOT, check=True)


def notebook_namespace(**values: object) -> dict[str, object]:
    """What a notebook's ``globals()`` holds when its second cell runs."""
    return {"__name__": "__main__", "_i": "", "In": [""], "Out": {}, "get_ipython": print, "PsiParams": PsiParams, "sys": sys} | values


def test_from_notebook():
    params = PsiParams.from_notebook(notebook_namespace(steps=3, learning_rate="1e-5", lora={"r": 4, "alpha": 8}))
    assert (params.steps, params.learning_rate, params.lora.r) == (3, 1e-5, 4)
    assert params.output_dir == "outputs/scratch/brite_psi"
    assert params.difference().keys() >= {"steps", "learning_rate", "lora"}


@pytest.mark.parametrize(
    ("cls", "values", "parts"),
    [
        (PsiParams, {"learning_rte": 1e-4}, ["notebook parameter: learning_rte", "did you mean 'learning_rate'"]),
        (PsiParams, {"steps": "many"}, ["notebook parameter: steps", "many"]),
        (PsiParams, {"steps": -3}, ["notebook parameter: steps", "-3"]),
        (RejectionParams, {"steps": 3}, ["steps", "RejectionParams"]),
        (ReportParams, {"rundir": "x"}, ["rundir", "did you mean 'run_dir'"]),
    ],
)
def test_from_notebook_refuses(cls, values, parts):
    with pytest.raises(InputError) as error:
        cls.from_notebook(notebook_namespace(**values))
    for part in parts:
        assert part in str(error.value)


def test_the_configuration_cell_can_be_run_again():
    first = PsiParams.from_notebook(notebook_namespace(steps=3))
    again = PsiParams.from_notebook(notebook_namespace(steps=4, params=first, table=[1, 2], figure=object()))
    assert again.steps == 4


def test_input_errors_show_no_traceback_in_a_notebook():
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    shell = InteractiveShell.instance()
    with capture_output() as captured:
        shell.run_cell(
            textwrap.dedent("""
            from brite_lib.errors import InputError
            raise InputError("rows.jsonl: row 3: has no answer")
        """)
        )
    InteractiveShell.clear_instance()
    assert captured.stdout.strip() == "InputError: rows.jsonl: row 3: has no answer"
