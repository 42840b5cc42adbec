"""The world in which thinking is right half of the time (docs/limits.md)."""

import json
import math

import pytest

from brite_lib import tiny_base
from brite_lib.execute import execute
from brite_lib.params import PROJECT_ROOT
from brite_lib.problems import toy, two_readings


def test_a_reading_changes_the_start_only():
    assert two_readings.read("3+4-2", "as written") == "3+4-2"
    assert two_readings.read("7+4-2", "five more") == "2+4-2"
    assert toy.write_rationale(two_readings.read("3+4-2", "five more"), "careful") == "+4=2-2=0"


def test_which_reading_is_right_is_a_coin_and_answers_follow_from_it():
    problems = two_readings.two_reading_problems("train", 1000)
    readings = [two_readings.right_reading(problem.question) for problem in problems]
    assert 450 < readings.count("five more") < 550
    for problem, reading in zip(problems, readings, strict=True):
        as_read = two_readings.read(problem.question, reading)
        assert problem.answer == toy.answer_of(as_read) == problem.rationale[-1]
        assert problem.answer != toy.answer_of(two_readings.read(problem.question, "as written" if reading == "five more" else "five more"))
    assert not {p.question for p in problems} & {p.question for p in two_readings.two_reading_problems("test", 1000)}


def test_the_base_is_taught_to_think_in_either_reading():
    template = tiny_base.make_template()
    rows = two_readings.training_sequences(template, 2000, 0)
    texts = [template.decode([label for label in row["labels"] if label != -100]) for row in rows]
    questions = [template.decode(row["input_ids"][1 : row["labels"].count(-100)]).removesuffix(":") for row in rows]
    rationales = [text.split("#")[0] for text in texts]
    readings = {
        name: sum(
            rationale == toy.write_rationale(two_readings.read(question, name), "careful")
            for question, rationale in zip(questions, rationales, strict=True)
        )
        for name in ("as written", "five more")
    }
    assert all(430 < count < 570 for count in readings.values()), readings
    assert 430 < rationales.count("?") < 570


def test_expected_shares_by_hand():
    """Thinking is right in half of the cases: 0.5·½(1 + e⁻⁶) of the posterior, 0.5·e⁻³ of what Q can learn."""
    prior = {"careful": 0.5, "guessing": 0.5}
    posterior, mixture = two_readings.expected_shares(prior, {"careful": [0.0, -6.0], "guessing": [-2.0, -2.0]})
    assert posterior["careful"] == pytest.approx((1 + math.exp(-6)) / 2 / ((1 + math.exp(-6)) / 2 + math.exp(-2)))
    assert mixture["careful"] == pytest.approx(math.exp(-3) / (math.exp(-3) + math.exp(-2)))
    assert posterior["careful"] > 0.75 > 0.5 > mixture["careful"]


def test_the_notebook_itself(tmp_path):
    values = {"problems": 40, "base_steps": 20, "psi_steps": 2, "output_dir": str(tmp_path)}
    assert execute(PROJECT_ROOT / "notebooks" / "20_limits.ipynb", tmp_path / "notebook.ipynb", values) is None
    metrics = json.loads((tmp_path / "stage.json").read_text())["metrics"]
    assert {"pass@1/rs", "pass@1/BRiTE, reward (i)", "careful/best Q, reward (i)", "right/careful"} <= metrics.keys()
    assert all(0 <= value <= 1 for value in metrics.values())
    assert (tmp_path / "figures/limits.png").stat().st_size > 1000
