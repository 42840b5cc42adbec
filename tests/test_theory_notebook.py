"""The theory notebook, its sliders and its experiment files."""

import json

import nbformat
import pandas as pd
import pytest

from brite_lib.errors import InputError
from brite_lib.execute import execute
from brite_lib.params import PROJECT_ROOT, Experiment, TheoryParams, load_experiment
from brite_lib.stages import plan
from brite_lib.theory import explore


def test_the_notebook_itself(tmp_path):
    values = {"census": 3, "guaranteed": 3, "census_steps": 200, "output_dir": str(tmp_path), "seed": 2}
    assert execute(PROJECT_ROOT / "notebooks" / "01_theory_rkhs.ipynb", tmp_path / "notebook.ipynb", values) is None
    metrics = json.loads((tmp_path / "stage.json").read_text())["metrics"]
    assert metrics["identity_error"] < 1e-10 and metrics["inexact_identity_error"] < 1e-10 and metrics["guaranteed"] == 6
    assert len(pd.read_parquet(tmp_path / "census.parquet")) == 3
    cells = [cell for cell in nbformat.read(tmp_path / "notebook.ipynb", 4).cells if cell.cell_type == "code"]
    drawn = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(drawn) == len({output["data"]["image/png"] for output in drawn}) == 9, "each picture once"


def test_an_experiment_of_theory_alone():
    (spec,) = plan(load_experiment(PROJECT_ROOT / "params" / "theory.yaml"))
    assert spec.key == "seed0/theory" and spec.inputs == () and spec.params.census == 20
    assert plan(load_experiment(PROJECT_ROOT / "params" / "theory-census.yaml"))[0].params.census == 2000


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"theory": {"censsus": 3}}, "theory: censsus: is no parameter of TheoryParams; did you mean 'census'?"),
        ({"theory": {"seed": 3}}, "theory: seed: is decided by the experiment's seeds; set it there"),
        ({"theory": {"ridge": -1}}, "theory: ridge: Input should be greater than or equal to 0 (got -1)"),
        ({"theory": {}, "methods": ["base"]}, "tasks: at least one is needed"),
        ({}, "methods: at least one is needed"),
    ],
)
def test_bad_settings_are_one_sentence(changes, sentence):
    with pytest.raises(InputError) as error:
        plan(Experiment.parse({"name": "x", **changes}))
    assert str(error.value) == sentence


@pytest.mark.parametrize("optimum", explore.OPTIMA)
def test_an_overview_says_what_it_shows(optimum):
    params = TheoryParams.parse({"seed": 1})
    figure, sentence = explore.overview(explore.instance_of(params), 20, optimum, "corrected")
    assert len(figure.axes) == 3 and "largest T·gap/D" in sentence and "condition (C)" in sentence


def test_every_slider_redraws_and_a_sufficient_ridge_ends_the_violations():
    box = explore.explorer(TheoryParams.parse({"seed": 120, "prompts": 2, "rationales": 5, "rank": 5, "ridge": 1e-3, "steps": 60}))
    columns, words, _ = box.children
    controls = {control.description.split(" ")[0]: control for column in columns.children for control in column.children}
    assert "FAILS" in words.value
    controls["λ"].value = 10
    assert "FAILS" not in words.value and "yes" in controls["λ"].description
    for name, value in (("kernel", "tabular"), ("verifier", "soft"), ("index", "literal"), ("T", 5), ("θ*", explore.OPTIMA[1])):
        before = words.value
        controls[name].value = value
        assert words.value != before, name
