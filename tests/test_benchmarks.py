"""The benchmark table: sizes, layouts and answer kinds, against ../shared/data and against rows written by hand in the hub's layouts."""

import pytest

from brite_lib.params import EvalParams, PsiParams


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ("toy:easy", "exact"),
        ("gsm8k", "number"),
        ("openai/gsm8k", "number"),
        ("math500", "math"),
        ("/somewhere/else/math500", "math"),
        ("HuggingFaceH4/MATH-500", "math"),
        ("arc_challenge", "choice"),
        ("/somewhere/arc_challenge/", "choice"),
        ("/somewhere/mine.jsonl", "math"),
        ("org/name", "math"),
    ],
)
def test_the_answer_kind_fits_the_data(data, kind):
    assert EvalParams(data=data).answer_kind == kind
    assert PsiParams(data=data, answer_kind="exact").answer_kind == "exact"
