"""Kind ``code`` end to end: MBPP rows through verifier, rollouts, rejection sampling and ψ-PPO, with a random tiny model."""

import json
import math

import pytest
from real_model import build_qwen2
from transformers import AutoTokenizer

from brite_lib import rollouts
from brite_lib.errors import InputError
from brite_lib.models import load_policy
from brite_lib.params import PROJECT_ROOT, PsiParams, RejectionParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.problems import load_problems
from brite_lib.rejection import reject
from brite_lib.rewards import VerifierReward
from brite_lib.sandbox import programs
from brite_lib.template import RationaleTemplate
from brite_lib.verify import extract_answer, is_correct, judge, verify_batch

DATA = PROJECT_ROOT.parent / "shared" / "data"
ROW = {
    "task_id": 2000,
    "text": "Write a function to double a number.",
    "code": "def double(x):\n    return 2 * x",
    "test_list": ["assert double(2) == 4", "assert double(-1) == -2"],
    "test_setup_code": "",
    "challenge_test_list": [],
}  # as MBPP's rows are
RIGHT, WRONG = ROW["code"], "def double(x):\n    return x"
SETTINGS = {"answer_kind": "code", "max_rationale_tokens": 16, "max_answer_tokens": 200}


@pytest.fixture(autouse=True)
def harmless(monkeypatch):
    """Random tokens and our own programs mean no harm, and this must also be tested where nothing isolates them."""
    monkeypatch.setattr(programs.SETTINGS, "i_understand_the_risk", True)


@pytest.fixture
def problems(tmp_path):
    """Our own row, and a few of MBPP."""
    path = tmp_path / "mbpp"
    path.mkdir()
    (path / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    return [*load_problems(str(path), "train").to_list(), *load_problems(str(DATA / "mbpp"), "train", limit=3).to_list()]


@pytest.fixture
def model(tmp_path, problems):
    """(random model, template); a line break, the boundary, comes about every hundredth token."""
    path = build_qwen2(tmp_path / "qwen2", [problem["question"] + problem["answer"] for problem in problems], vocabulary=300)
    policy = load_policy(path)
    fields = {"prompt": "{question}\nThink, then answer on a new line.", "boundary": "\n", "answer": "{answer}"}
    return policy, RationaleTemplate.load(AutoTokenizer.from_pretrained(path), fields, path)


def written(template, answer):
    """A completion as a model would have sampled it."""
    return template.rationale_ids("I think") + template.answer_ids(answer)


def test_verify_code(problems):
    tests = problems[0]["tests"]
    fenced = f"It doubles:\n```python\n{RIGHT}\n```"
    assert extract_answer(fenced, "code") == RIGHT + "\n" and extract_answer(" ", "code") is None
    assert is_correct(RIGHT, tests, "code") and not is_correct(WRONG, tests, "code")
    assert verify_batch([RIGHT, None, WRONG, RIGHT, RIGHT], [tests, tests, tests, None, ""], "code", workers=2) == [
        True,
        False,
        False,
        None,
        None,
    ]
    assert judge(problems[:1] * 3, [fenced, None, WRONG], "code", [True, True, True]) == ([RIGHT + "\n", None, WRONG], [True, False, False])
    assert judge(problems[:1], [fenced], "code", [False])[1] == [False]
    assert verify_batch(["while True: pass"], [tests], "code", timeout=0.5) == [False]


def test_a_continued_question_is_part_of_the_prediction():
    humaneval = load_problems(str(DATA / "humaneval"), "test", limit=1)[0]
    body = humaneval["answer"].removeprefix(humaneval["question"])
    predictions, verdicts = judge([humaneval], [body], "code")
    assert verdicts == [True] and predictions[0].startswith(humaneval["question"].rstrip())


def test_judged_rows_and_the_verifier_reward(problems, model):
    _, template = model
    completions = [template.split(written(template, answer)) for answer in (RIGHT, f"```python\n{RIGHT}\n```", WRONG)]
    rows = rollouts.judged_rows(problems[:1] * 3, completions, "code", template)
    assert [row["correct"] for row in rows] == [True, True, False]
    assert rows[0]["prediction"] == RIGHT and rows[0]["gold"] == problems[0]["answer"] and rows[0]["rationale"] == "I think"
    reward = VerifierReward(beta=0.5, answer_kind="code")
    assert reward.terminal(problems[:1] * 3, completions, [0.0] * 3) == [2.0, 2.0, 0.0]
    without = [{**problems[0], "tests": None}]
    assert rollouts.judged_rows(without, completions[:1], "code", template)[0]["correct"] is None


def test_rejection_sampling_keeps_programs_that_pass(problems, model, monkeypatch):
    policy, template = model
    params = RejectionParams.parse({**SETTINGS, "samples": 2})
    kept, report = reject(policy, problems, template, params, "rs")
    assert (kept, report["draws"], report["hits"], report["missed"]) == ([], 8, 0, 1.0)

    def sample(model, template, prompts, *_, **__):
        return [written(template, RIGHT if i % 2 else WRONG) for i in range(len(prompts))]

    monkeypatch.setattr(rollouts, "sample", sample)
    kept, report = reject(policy, problems, template, params, "rs")
    assert [(row["id"], row["prediction"], row["sample"]) for row in kept] == [(problems[0]["id"], RIGHT, 1)]
    assert report["hits"] == 1


@pytest.mark.parametrize("reward", ["answer_likelihood", "verifier"])
def test_psi_updates_run_on_code(problems, model, reward):
    """Reward (i) needs no tests: it never runs a program."""
    policy, template = model
    rows = problems if reward == "verifier" else [{**problem, "tests": None} for problem in problems]
    settings = {
        "reward": reward,
        "steps": 2,
        "prompts_per_step": 4,
        "rationales_per_prompt": 8,
        "unfinished_reward": -1000.0,
        "max_rationale_tokens": 64,
        "max_answer_tokens": 32,
        "advantage": "rloo",
    }
    logged = []
    trainer = PosteriorPPOTrainer(
        policy, template, rows, PsiParams.parse({**SETTINGS, **settings}), log=lambda step, **metrics: logged.append(metrics)
    )
    before = [parameter.clone() for parameter in policy.parameters()]
    trainer.train()
    assert len(logged) == 2 and all(math.isfinite(metrics["kl"]) for metrics in logged) and any(metrics["finished"] for metrics in logged)
    assert any((old != new).any() for old, new in zip(before, trainer.model.parameters(), strict=True))


def test_empty_tests_are_refused_by_the_sandbox():
    with pytest.raises(InputError, match="tests: are empty"):
        is_correct("x = 1", " \n", "code")


@pytest.mark.parametrize("name", ["humaneval", "mbpp", "humaneval_plus", "mbpp_plus"])
def test_canonical_programs_pass_their_tests_and_others_raise(name):
    """Trusted programs of the data sets, so in this process; the sandbox runs all of them (tests/test_sandbox.py)."""
    for problem in load_problems(str(DATA / name), "test", limit=3):
        exec(f"{problem['answer']}\n{problem['tests']}", {})
        entry_point = problem["tests"].rsplit("check(", 1)[-1].rstrip(")\n") if name.startswith("humaneval") else None
        wrong = f"def {entry_point}(*_):\n    return None\n" if entry_point else "pass"
        with pytest.raises((AssertionError, NameError, TypeError)):
            exec(f"{wrong}\n{problem['tests']}", {})
