"""Evaluation of the embedded model on a few problems, and its summary worked by hand."""

import pytest

from brite_lib.evaluation import evaluate, style_counts, summary
from brite_lib.likelihood import score
from brite_lib.models import load_policy, load_template
from brite_lib.params import EvalParams
from brite_lib.problems import load_problems
from brite_lib.tables import PREDICTIONS, read_predictions, write_table

BASE = "assets/tiny-base"
SETTINGS = {"samples": 3, "method": "base", "benchmark": "toy", "seed": 5, "bootstrap": 200}


@pytest.fixture(scope="module")
def base():
    return load_policy(BASE), load_template(BASE), load_problems("toy:easy", "validation", limit=8).to_list()


@pytest.fixture(scope="module")
def rows(base):
    model, template, problems = base
    return evaluate(model, model, problems, template, EvalParams.parse(SETTINGS))


def prediction(name, sample, correct, text="1", temperature=1.0, logp=-1.0, **more):
    row = {"id": name, "question": "1+2", "rationale": "?", "prediction": text, "correct": correct, "temperature": temperature}
    return row | {"sample": sample, "num_tokens": 4, "finished": True, "logp_answer": logp} | more


def test_k_samples_and_one_greedy_answer_per_problem(base, rows, tmp_path):
    problems = base[2]
    warm = [(row["id"], row["sample"]) for row in rows if row["temperature"] == 1]
    cold = [(row["id"], row["sample"]) for row in rows if row["temperature"] == 0]
    assert warm == [(problem["id"], k) for problem in problems for k in range(3)]
    assert cold == [(problem["id"], 0) for problem in problems]
    answers = {problem["id"]: problem["answer"] for problem in problems}
    assert all(row["correct"] == (row["prediction"] == answers[row["id"]]) for row in rows if row["finished"])
    assert all((row["source"], row["benchmark"]) == ("base", "toy") for row in rows)
    write_table(rows, PREDICTIONS, tmp_path / "predictions.parquet")
    assert len(read_predictions(tmp_path / "predictions.parquet")) == len(rows) == 32


def test_the_answer_likelihood_is_of_the_gold_answer_under_the_reference(base, rows):
    model, template, _ = base
    for row in [row for row in rows if row["finished"]][:6]:
        ids = template.prompt_ids(row["question"]), template.rationale_ids(row["rationale"]), template.answer_ids(row["gold"])
        expected = score(model, *([part] for part in ids)).answer[0].sum().item()
        assert row["logp_answer"] == pytest.approx(expected, abs=1e-4)


def test_evaluation_depends_on_the_seed_and_not_on_the_batch(base, rows):
    model, template, problems = base
    again = evaluate(model, model, problems, template, EvalParams.parse(SETTINGS | {"batch_size": 5}))
    drawn = [(row["rationale"], row["prediction"], row["seed"]) for row in rows]
    assert [(row["rationale"], row["prediction"], row["seed"]) for row in again] == drawn
    other = evaluate(model, model, problems, template, EvalParams.parse(SETTINGS | {"seed": 6, "greedy": False}))
    assert len(other) == 24 and {row["seed"] for row in other}.isdisjoint({row["seed"] for row in rows})


def test_a_greedy_protocol_takes_the_answer_from_all_that_was_written(base):
    """The toy's numbers are the last ones of a completion, so the whole text is judged as y is; cut short, it has no y but an answer."""
    model, template, problems = base
    settings = SETTINGS | {"samples": 0, "answer_kind": "number"}
    of_y = evaluate(model, model, problems, template, EvalParams.parse(settings))
    whole = evaluate(model, model, problems, template, EvalParams.parse(settings | {"answer_from": "completion"}))
    assert len(of_y) == len(problems) and all(row["correct"] for row in of_y)
    assert [(row["prediction"], row["correct"]) for row in whole] == [(row["prediction"], row["correct"]) for row in of_y]
    short = {"max_rationale_tokens": 3, "max_answer_tokens": 1}
    assert {row["prediction"] for row in evaluate(model, model, problems, template, EvalParams.parse(settings | short))} == {None}
    cut = evaluate(model, model, problems, template, EvalParams.parse(settings | short | {"answer_from": "completion"}))
    assert all(row["prediction"] is not None and row["answer_text"] is None and not row["finished"] for row in cut)


def test_summary_worked_by_hand():
    rows = [
        prediction("a", 0, True, "1"),
        prediction("a", 1, True, "1"),
        prediction("a", 2, False, "2", logp=-4.0),
        prediction("b", 0, False, "2"),
        prediction("b", 1, False, "2"),
        prediction("b", 2, None, None, finished=False, logp=None),
        prediction("a", 0, False, "3", temperature=0.0, logp=-100.0),
        prediction("b", 0, True, "1", temperature=0.0, logp=-100.0),
    ]
    metrics = summary(rows, EvalParams.parse(SETTINGS))
    assert metrics["pass@1"] == pytest.approx(1 / 3) and metrics["pass@1/low"] <= 1 / 3 <= metrics["pass@1/high"]
    assert (metrics["maj@3"], metrics["greedy"]) == (0.5, 0.5)
    assert metrics["sampled/tokens"] == 4 and metrics["sampled/finished"] == pytest.approx(5 / 6)
    assert metrics["sampled/logp_answer"] == pytest.approx(-8 / 5)  # greedy ones and the unfinished one are not in it
    only_greedy = summary(rows[6:], EvalParams.parse(SETTINGS))
    assert only_greedy == {"greedy": 0.5, "not_judged": 0.0}
    assert summary([*rows, {**rows[6], "correct": None}], EvalParams.parse(SETTINGS))["not_judged"] == 2 / 9


def test_styles_are_counted_among_the_samples():
    rows = [
        prediction("a", 0, True),
        prediction("a", 1, False, rationale="+2=3"),
        prediction("a", 0, True, temperature=0.0, rationale="=3"),
    ]
    assert style_counts(rows) == {"careful": {"share": 0.5, "correct": 0.0}, "guessing": {"share": 0.5, "correct": 1.0}}


def test_the_base_model_is_about_as_good_as_its_record_says(base, rows):
    metrics = summary(rows, EvalParams.parse(SETTINGS))
    assert metrics["greedy"] >= 0.5 and 0.2 <= metrics["pass@1"] <= 0.9 and metrics["sampled/finished"] > 0.9
