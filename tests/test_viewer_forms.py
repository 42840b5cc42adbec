"""The form of parameters: every field, read as experiment files are, never invalid."""

import pytest

from brite_lib.params import DpoParams, DrrParams, EvalParams, LatroParams, PsiParams, RejectionParams, TheoryParams, ThetaParams
from brite_lib.viewer import edit

STAGES = (PsiParams, ThetaParams, RejectionParams, DpoParams, EvalParams, LatroParams, DrrParams, TheoryParams)


@pytest.mark.parametrize("cls", STAGES)
def test_a_form_shows_every_parameter_and_changes_none(cls):
    params = cls.parse({"seed": 3})
    form = edit(params)
    assert form.params == params and form.fields.keys() == cls.model_fields.keys()
    accordion = form.children[1]
    assert sum(len(box.children) for box in accordion.children) == len(cls.model_fields)
    assert "seed = 3" in form.message.value
    assert accordion.titles[-1] == "What every stage has" and not any("Params" in title for title in accordion.titles)
    assert repr(form).startswith("ParameterForm(")  # JupyterLab asks for it


def test_texts_are_read_as_experiment_files_are():
    form = edit(PsiParams())
    form.fields["learning_rate"].value = "1e-5"
    form.fields["reward"].value = "verifier"
    form.fields["limit"].value = "64"
    form.fields["lora"].value = "{r: 8, alpha: 16}"
    assert (form.params.learning_rate, form.params.reward, form.params.limit, form.params.lora.r) == (1e-5, "verifier", 64, 8)
    form.fields["limit"].value = "null"
    assert form.params.limit is None
    again = edit(form.params)  # a mapping that the form wrote is read again
    assert again.params == form.params


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("steps", "-1", "form: steps: Input should be greater than 0 (got -1)"),
        ("steps", "<img src=x>", "&lt;img src=x&gt;"),
        ("lora", "{r: ", "form: lora: &#x27;{r: &#x27; cannot be read; quote a text with special characters"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_the_last_valid_parameters_stay(name, text, sentence):
    form = edit(PsiParams())
    form.fields["beta"].value = "0.5"
    form.fields[name].value = text
    assert sentence in form.message.value and 'role="alert"' in form.message.value and "<img" not in form.message.value
    assert form.params == PsiParams.parse({"beta": 0.5})
    row = next(row for box in form.children[1].children for row in box.children if row.children[1] is form.fields[name])
    assert sentence in row.children[2].value
    form.fields[name].value = "7" if name == "steps" else "null"
    assert "alert" not in form.message.value and form.params.beta == 0.5
    assert "form: " not in row.children[2].value


def test_nothing_differs_at_first():
    assert edit(PsiParams()).message.value == "differs from the defaults: nothing"
