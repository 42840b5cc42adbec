"""Rejection sampling on the embedded model, and its bookkeeping with a sampler whose answers are known."""

from collections import Counter

import pytest
from datasets import Dataset

from brite_lib import rejection
from brite_lib.models import load_policy, load_template
from brite_lib.params import RejectionParams
from brite_lib.problems import load_problems, toy
from brite_lib.rejection import reject
from brite_lib.rollouts import sample_seed

BASE = "assets/tiny-base"


@pytest.fixture(scope="module")
def base():
    return load_policy(BASE), load_template(BASE)


class Sampler:
    """In place of ``generate``: ``right`` says which sample numbers of a problem are right; every call is recorded."""

    def __init__(self, right: dict[str, set[int]]):
        self.right, self.calls = right, []

    def __call__(self, model, problems, template, n, *_, seed, first_sample, source, round, **__):
        self.calls.append(([problem["id"] for problem in problems], first_sample))
        keys = [(problem["id"], first_sample + k) for problem in problems for k in range(n)]
        rows = [
            {"id": name, "sample": k, "seed": sample_seed(seed, name, k), "correct": k in self.right[name], "num_tokens": 3}
            | {"source": source, "round": round}
            for name, k in keys
        ]
        return Dataset.from_list(rows)


def run(monkeypatch, right, **settings):
    sampler = Sampler(right)
    monkeypatch.setattr(rejection, "generate", sampler)
    params = RejectionParams.parse(settings)
    return *reject(None, [{"id": name} for name in right], None, params, "rs_sampling"), sampler


def test_one_correct_rationale_per_hit_problem_and_a_report(monkeypatch):
    kept, report, sampler = run(monkeypatch, {"a": {0, 2}, "b": set(), "c": {3}}, samples=4, round=2)
    assert [row["id"] for row in kept] == ["a", "c"] and all(row["correct"] for row in kept)
    assert {(row["source"], row["round"]) for row in kept} == {("rs_sampling", 2)}
    assert report == {
        "problems": 3, "hits": 2, "missed": pytest.approx(1 / 3), "draws": 12, "tokens": 36, "correct": 3 / 12,
        "kept": 2, "rationalised": 0, "duplicates": 0,
    }  # fmt: skip
    assert len(sampler.calls) == 1


def test_the_kept_one_is_drawn_uniformly_from_the_correct_ones(monkeypatch):
    right = {f"q{i}": {0, 1, 3} for i in range(600)}
    kept, _, _ = run(monkeypatch, right, samples=4)
    counts = Counter(row["sample"] for row in kept)
    assert counts.keys() == {0, 1, 3} and all(count == pytest.approx(200, abs=50) for count in counts.values())
    assert run(monkeypatch, right, samples=4)[0] == kept
    assert run(monkeypatch, right, samples=4, seed=1)[0] != kept


def test_until_hit_goes_on_with_the_open_problems_and_new_seeds(monkeypatch):
    right = {"a": {1}, "b": {5}, "c": {99}}
    kept, report, sampler = run(monkeypatch, right, samples=3, until_hit=True, max_samples=9)
    assert sampler.calls == [(["a", "b", "c"], 0), (["b", "c"], 3), (["c"], 6)]
    assert [(row["id"], row["sample"]) for row in kept] == [("a", 1), ("b", 5)]
    assert len({row["seed"] for row in kept}) == 2
    assert report == {
        "problems": 3, "hits": 2, "missed": pytest.approx(1 / 3), "draws": 18, "tokens": 54, "correct": 2 / 18,
        "kept": 2, "rationalised": 0, "duplicates": 0,
    }  # fmt: skip


@pytest.mark.parametrize("most", [2, 3, 7])
def test_until_hit_draws_no_more_than_it_may(monkeypatch, most):
    _, report, sampler = run(monkeypatch, {"a": set()}, samples=3, until_hit=True, max_samples=most)
    assert report["draws"] == most and [first for _, first in sampler.calls] == list(range(0, most, 3))


def test_until_hit_ends_when_all_have_a_hit(monkeypatch):
    _, report, sampler = run(monkeypatch, {"a": {4}, "b": {0}}, samples=2, until_hit=True)
    assert [first for _, first in sampler.calls] == [0, 2, 4]
    assert (report["hits"], report["missed"], report["draws"]) == (2, 0, 8)


def test_the_embedded_model_thinks_in_what_is_kept(base):
    problems = load_problems("toy:easy", "validation", limit=12).to_list()
    params = RejectionParams.parse({"samples": 8, "seed": 3})
    kept, report = reject(base[0], problems, base[1], params, "rs_sampling")
    answers = {problem["id"]: problem["answer"] for problem in problems}
    assert len({row["id"] for row in kept}) == len(kept) == report["hits"] > 6
    assert all(row["finished"] and row["correct"] and row["prediction"] == answers[row["id"]] == row["gold"] for row in kept)
    styles = Counter(toy.style_of(row["question"], row["rationale"]) for row in kept)
    assert styles["careful"] > len(kept) / 2
    assert report["draws"] == 96 and 0 < report["correct"] < 1 and report["missed"] == 1 - report["hits"] / 12
    assert reject(base[0], problems, base[1], params, "rs_sampling")[0] == kept


def test_rounds_of_the_embedded_model_have_seeds_of_their_own(base, monkeypatch):
    problems = load_problems("toy:hard", "validation", limit=6).to_list()
    rounds, original = [], rejection.generate
    monkeypatch.setattr(rejection, "generate", lambda *args, **more: rounds.append(original(*args, **more)) or rounds[-1])
    params = RejectionParams.parse({"samples": 2, "until_hit": True, "max_samples": 6})
    kept, report = reject(base[0], problems, base[1], params, "posterior_sampling")
    rows = [row for table in rounds for row in table]
    assert len(rounds) == 3 and report["draws"] == len(rows) and report["hits"] == len(kept)
    assert len({row["seed"] for row in rows}) == len(rows)
    assert all(row["seed"] == sample_seed(0, row["id"], row["sample"]) for row in rows)
    assert {row["sample"] for row in rounds[1]} == {2, 3}
