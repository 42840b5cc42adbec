"""Programs of the code benchmarks: cut out of completions, completed, and judged; the benchmarks' own solutions all pass."""

import random

import pytest

from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT, EvalParams, ThetaParams
from brite_lib.problems import load_problems
from brite_lib.records import Stage
from brite_lib.sandbox import Verdict, extract_program, isolation, judge_programs, programs, whole_program
from brite_lib.verify import judge

DATA = PROJECT_ROOT.parent / "shared" / "data"
# On all the inputs of the + sets.
SLOW = {"HumanEval/15", "HumanEval/83", "HumanEval/130", "HumanEval/139", "MbppPlus/255", "MbppPlus/392", "MbppPlus/599", "MbppPlus/603"}


@pytest.fixture(autouse=True)
def harmless(monkeypatch):
    """The solutions mean no harm, and this must also be tested where nothing isolates them."""
    monkeypatch.setattr(programs.SETTINGS, "i_understand_the_risk", True)
    monkeypatch.setattr(programs.SETTINGS, "seconds", 60.0)  # put back afterwards


@pytest.mark.parametrize(
    ("name", "split", "sample"),
    [("humaneval", "test", 164), ("mbpp", "test", 500), ("mbpp", "train", 60), ("humaneval_plus", "test", 12), ("mbpp_plus", "test", 12)],
)
def test_the_solutions_of_the_code_benchmarks_pass(name, split, sample):
    """All of them, or a seeded sample of the quick ones; docs/results/sandbox.md has the rest."""
    problems = [problem for problem in load_problems(str(DATA / name), split) if not (name.endswith("plus") and problem["id"] in SLOW)]
    chosen = random.Random(0).sample(problems, min(sample, len(problems)))
    verdicts = judge_programs([(problem["answer"], problem["tests"]) for problem in chosen], 2, 60.0)
    assert len(verdicts) == sample
    assert [problem["id"] for problem in chosen if verdicts[problem["answer"], problem["tests"]] is not True] == []


def test_solutions_of_other_problems_do_not_pass():
    problems = load_problems(str(DATA / "humaneval"), "test", limit=20)
    shifted = [(answer, tests) for answer, tests in zip(problems["answer"][1:], problems["tests"], strict=False)]
    assert set(judge_programs(shifted, 2, 60.0).values()) == {False}


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("First:\n```python\nx = 1\n```\nno, better\n```python\nx = 2\n```\nDone.", "x = 2\n"),
        ("```py\nx = 1\n```\nIt prints\n```\n3\n```\n", "x = 1\n"),
        ("```\nx = 1\n```\n```bash\npython x.py\n```", "x = 1\n"),
        ("```python\nx = 1", "x = 1"),
        ("x = 1\n```", "x = 1\n"),
        ("x = 1\n```\nIt prints\n```\n3\n```\n", "x = 1\n"),
        ("1. So:\n   ```Python title\n   x = 1\n   ```", "   x = 1\n"),
        ("    return 3\n", "    return 3\n"),
        ("```json\n{}\n```", "```json\n{}\n```"),
        ("s = '''\n~~~'''", "s = '''\n~~~'''"),
        ("```python\n\n```", None),
        (" \n", None),
    ],
)
def test_extraction(text, program):
    assert extract_program(text) == program


QUESTION = 'from typing import List\n\ndef helper(x):\n    return x\n\ndef last(x: List[int]) -> int:\n    """The last one."""\n'
CHECK = "def check(candidate):\n    assert candidate([1, 2]) == 2\n\ncheck(last)\n"


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("    return helper(x)[-1]\n", True),
        ("return helper(x)[-1]", True),
        ("y = helper(x)\n    return y[-1]", True),
        ("def last(x):\n    return x[-1]", True),
        ("last = lambda x: x[-1]", True),
        ("def lasting(x):\n    return x[-1]", False),
        ("    return x[0]", False),
    ],
)
def test_a_question_that_is_code_is_continued(completion, right):
    program = whole_program(completion, QUESTION, CHECK)
    assert judge_programs([(program, CHECK)], 1, 10.0) == {(program, CHECK): right}


def test_other_questions_are_not():
    assert whole_program("x = 1", "Write x.\nassert x == 1", "assert x == 1") == "x = 1"
    assert whole_program("x = 1", "Write last.", CHECK) == "x = 1"


def test_what_could_not_be_judged_is_none(monkeypatch):
    monkeypatch.setattr(programs, "run_tests", lambda *args: Verdict(False, "broken" if args[0] == "b" else "failed", "", "", 0.0))
    assert judge_programs([("a", "t"), ("b", "t")], 2, 10.0) == {("a", "t"): False, ("b", "t"): None}


def test_a_stage_that_judges_programs_sets_how_or_is_refused_before_a_model_loads(monkeypatch, tmp_path):
    settings = {"answer_kind": "code", "program_seconds": 0.5, "output_dir": str(tmp_path)}
    Stage.start("evaluation", EvalParams(**settings, i_understand_the_risk=True))
    problem = {"question": "Sleep.", "answer": "-", "tests": "assert True"}
    assert judge([problem], ["import time\ntime.sleep(5)"], "code")[1] == [False]
    monkeypatch.setattr(isolation, "failure_of", lambda way: "not installed")
    with pytest.raises(InputError, match="cannot isolate generated programs"):
        Stage.start("evaluation", EvalParams(**settings))
    Stage.start("theta_sft", ThetaParams(**settings))
