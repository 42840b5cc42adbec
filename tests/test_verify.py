import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil
import pytest

from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT
from brite_lib.problems import load_problems
from brite_lib.verify import extract_answer, is_correct, verify_batch

DATA = PROJECT_ROOT.parent / "shared" / "data"


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("She has 3 + 4 = 7 apples.\n#### 7", "7"),
        ("The answer is: $1,234.50.", "1234.50"),
        ("so the answer is -3 degrees", "-3"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("16 -3", "-3"),
        ("16-3", "3"),
        ("about .5 litres", ".5"),
        ("3/4 of it", "3/4"),
        ("**Answer:** 12%", "12"),
        ("€ 20", "20"),
        ("\\boxed{42} because of 3", "42"),
        ("The answer is obvious after 9 steps", "9"),
        ("no idea", None),
        ("", None),
    ],
)
def test_number_extraction(text, answer):
    assert extract_answer(text, "number") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("thus \\boxed{\\frac{1}{2}} and \\boxed{\\frac{\\sqrt{3}}{2}}.", "\\frac{\\sqrt{3}}{2}"),
        ("The answer is $x^2$.", "x^2"),
        ("first\n$\\frac12$\n", "\\frac12"),
        ("$a$ or $b$", "$a$ or $b$"),
        ("\\boxed{unclosed", "\\boxed{unclosed"),
        (" \n", None),
    ],
)
def test_math_extraction(text, answer):
    assert extract_answer(text, "math") == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [("(B)", "B"), ("b", "B"), ("B. because A is wrong", "B"), ("The answer is (C).", "C"), ("It must be D", "D"), ("option (e)", "E"),
     ("I can't say", None), ("", None)],
)  # fmt: skip
def test_choice_extraction(text, answer):
    assert extract_answer(text, "choice") == answer


def test_exact_extraction():
    assert extract_answer(" 042 ", "exact") == "042"
    assert extract_answer("  ", "exact") is None


@pytest.mark.parametrize(
    ("prediction", "gold", "kind", "verdict"),
    [
        ("042 ", "042", "exact", True),
        ("42", "042", "exact", False),
        ("18.0", "18", "number", True),
        ("$1,200", "1200", "number", True),
        ("18 dollars", "18", "number", True),
        ("-18", "18", "number", False),
        ("0.75", "3/4", "number", True),
        ("1/0", "3", "number", False),
        ("1e999999999", "3", "number", False),
        ("many", "3", "number", False),
        ("(b)", "B", "choice", True),
        ("A", "B", "choice", False),
        ("none", "B", "choice", False),
        ("0.5", "\\frac{1}{2}", "math", True),
        ("x^2+2x+1", "(x+1)^2", "math", True),
        ("\\frac{1}{3}", "0.5", "math", False),
        ("}{ no formula (((", "0.5", "math", False),
        ("Evelyn", "\\text{Evelyn}", "math", True),
    ],
)
def test_is_correct(prediction, gold, kind, verdict):
    assert is_correct(prediction, gold, kind) is verdict


def test_unknown_kind_and_gold_of_another_kind():
    with pytest.raises(InputError, match="'nubmer' is unknown; known: exact, number, math, choice"):
        extract_answer("1", "nubmer")
    with pytest.raises(InputError, match="'code' is unknown; known: exact, number, math, choice"):
        verify_batch(["1"], ["1"], "code")
    with pytest.raises(InputError, match="gold answer 'blue' is no number"):
        is_correct("1", "blue", "number")


def test_real_gsm8k_answers():
    problems = load_problems(str(DATA / "gsm8k"), "test")
    predictions = [extract_answer(f"The answer is: {float(answer):,.2f} dollars.", "number") for answer in problems["answer"]]
    assert all(verify_batch(predictions, problems["answer"], "number"))
    wrong = [str(int(answer) + 1) for answer in problems["answer"]]
    assert not any(verify_batch(wrong, problems["answer"], "number"))


def test_real_math_answers():
    golds = list(load_problems(str(DATA / "math500"), "test", limit=60)["answer"])
    assert verify_batch([f"\\boxed{{{gold}}}" for gold in golds], golds, "math", workers=2) == [True] * 60
    shifted = [*golds[1:], golds[0]]
    # math-verify takes the assignment x=5 for its value 5
    equal = [a.removeprefix("x=") == b for a, b in zip(shifted, golds, strict=True)]
    assert verify_batch(shifted, golds, "math", workers=2) == equal


def test_math_batch_does_not_hang_and_goes_on_after_a_kill():
    predictions = ["9^{9^{9^9}}", "1/2", None, "10^{10^{10}}", "0.25", "9^{9^{9^9}}"]
    start = time.monotonic()
    verdicts = verify_batch(predictions, ["\\frac12", "0.5", "1", "5", "0.5", "\\frac12"], "math", workers=2, timeout=2.0)
    assert verdicts == [None, True, False, None, False, None]
    assert time.monotonic() - start < 45
    assert is_correct("2/4", "0.5", "math")


def test_no_worker_outlives_a_killed_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        textwrap.dedent("""
            from brite_lib.verify import verify_batch
            if __name__ == "__main__":
                verify_batch(["1/2"] , ["0.5"], "math", workers=2)
                print("ready", flush=True)
                verify_batch(["9^{9^{9^9}}"], ["3"], "math", workers=2, timeout=4)
        """)
    )
    environment = os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout.readline() == "ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 2
        time.sleep(1.0)  # one of them is now inside the power
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, json.dumps([" ".join(process.cmdline()) for process in alive])
