"""The verifier's processes: nothing hangs, nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from brite_lib.params import PROJECT_ROOT
from brite_lib.verify import is_correct, pool, verify_batch

HOSTILE = [
    # numbers that nobody can write down
    "9^{9^{9^{9}}}", "9^{9^{9^9}}", "10**(10**8)", "2^{2^{2^{2^{2^{2}}}}}", "(10^8)!", "((((((9!)!)!)!)!)!)!",
    "99999^{99999}", "1e999999999", "2^{999999999^{99}}", "2^{999999^{999999}}",
    "9" * 10**6, "0.\\overline{" + "3" * 1500 + "}", "\\sqrt[99999999]{2}", "\\binom{10^{9}}{5 \\cdot 10^{8}}",
    # work without end for sympy
    "\\int_0^1 e^{e^{e^{x}}} dx", "\\sum_{n=1}^{10^{9}} \\frac{1}{n^2}", "\\prod_{k=1}^{100000} k",
    "(x+y+z+w)^{500}", "x^{y^{z^{w^{v^{u}}}}}",
    "\\lim_{n\\to\\infty} (1+1/n)^n", "\\sin" * 300, "\\pm" * 12 + "1", "1 \\pm " * 20, "a," * 900, "1:" * 900, "[1,2]" * 300,
    # brackets and sizes
    "{" * 10**6, "{" * 10**6 + "}" * 10**6, "(" * 500 + "x" + ")" * 500, "\\left(" * 200, "\\frac" * 200_000,
    "\\frac{" * 150_000, "\\sqrt{" * 100,
    "\\begin{pmatrix}" + "1 & 2 \\\\ " * 20_000 + "\\end{pmatrix}",
    "\\begin{pmatrix}" + "1 & 2 \\\\ " * 150 + "\\end{pmatrix}", "\\text{" * 300,
    # characters
    "٣٤٥", "x\0y", "\ud800", "\u202e5", "５" * 1000,
    # searches that could go wrong in regular expressions
    "\\boxed{" * 10**5, "\\boxed{}" * 10**5, "answer " * 10**5, "the answer is " * 10**5, "$" * 10**6,
    "\\(" * 50_000, "\\[x" * 30_000, "so \\(x\\) and \\[x" * 5_000, "\\boxed{$" * 12_000,
    "\\" * 10**6, "\\ " * 10**6, "*" * 10**6,
    " " * 10**6, "\n" * 10**6, "-" * 10**5, "1/" * 10**5, "1 " * 10**5, "1," * 10**5, "A " * 10**5, "(A" * 10**5,
    "." * 10**6, "=1" * 10**5, "#" * 10**6,
]  # fmt: skip
GOLD = {"math": "x+7", "number": "7", "choice": "B", "exact": "7"}


@pytest.mark.parametrize("kind", GOLD)
def test_hostile_answers_end_in_time_and_the_next_pair_is_judged_right(kind):
    assert len(HOSTILE) >= 50
    timeout, workers = 1.0, 3
    assert is_correct({"math": "7+x"}.get(kind, GOLD[kind]), GOLD[kind], kind)  # the workers have started
    verify_batch(["x+1"] * 3, ["1+x", "1+ x+0", "x+2"], workers=workers)
    start = time.monotonic()
    verdicts = verify_batch(HOSTILE, [GOLD[kind]] * len(HOSTILE), kind, workers=workers, timeout=timeout)
    assert time.monotonic() - start < 1.5 * timeout * len(HOSTILE)
    assert True not in verdicts and (kind == "math" or None not in verdicts)
    assert verify_batch(["7 + x", "x + 8", "2x"], ["x + 7", "x + 7", "x+x"], workers=workers) == [True, False, True]


def test_an_answer_that_computes_for_ever_is_given_up_and_does_not_hold_up_the_others():
    endless = "\\binom{10^{9}}{5 \\cdot 10^{8}}"
    verify_batch(["x+1", "x+2"], ["1+x", "2+x"], workers=2)
    processes = [worker.process.pid for worker in pool._workers]
    predictions = [endless, "x/2", None, "(x+y+z+w)^{500}", "x/4", endless]
    start = time.monotonic()
    golds = ["x+7", "0.5x", "1", "x+7", "0.5x", "x+7"]
    assert verify_batch(predictions, golds, workers=2, timeout=2.0) == [None, True, False, None, False, None]
    assert time.monotonic() - start < 60  # each of them alone computes for hours
    assert [worker.process.pid for worker in pool._workers] == processes  # only their children were replaced


def test_a_worker_that_is_killed_is_replaced():
    verify_batch(["x+1"], ["1+x"], workers=1)
    pool._workers[0].process.kill()
    pool._workers[0].process.wait()
    assert None not in verify_batch(["x+2"] * 2, ["2+x", "x+3"], workers=1)[1:]
    assert verify_batch(["x+3", "x+4"], ["3+x", "x+5"], workers=1) == [True, False]


def test_threads_may_judge_at_the_same_time():
    found = {}

    def judge(i):
        found[i] = verify_batch([f"x+{i}"] * 2, [f"{i}+x", "y"], workers=2)

    threads = [threading.Thread(target=judge, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == {i: [True, False] for i in range(4)}


def run(tmp_path, program, **options):
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(program))
    return subprocess.Popen([sys.executable, script], text=True, env=os.environ | {"PYTHONPATH": str(PROJECT_ROOT)}, **options)


def test_a_script_needs_no_main_guard_and_ends_without_waiting(tmp_path):
    program = """
        import os
        from brite_lib.verify import pool, verify_batch
        print(verify_batch(["x+1"], ["1+x"]), flush=True)
        if (child := os.fork()) == 0:  # a fork starts workers of its own
            print(verify_batch(["x+2"], ["2+x"], workers=1), flush=True)
            pool.stop()
            os._exit(0)
        os.waitpid(child, 0)
        print(*[worker.process.pid for worker in pool._workers])
    """
    output, _ = run(tmp_path, program, stdout=subprocess.PIPE).communicate(timeout=120)
    first, second, pids = output.splitlines()
    assert (first, second) == ("[True]", "[True]")
    assert pids and not any(psutil.pid_exists(int(pid)) for pid in pids.split())


def test_no_worker_outlives_a_killed_parent(tmp_path):
    program = """
        from brite_lib.verify import verify_batch
        verify_batch(["x+1", "x+2"], ["1+x", "2+x"], workers=2)
        print("ready", flush=True)
        verify_batch(["\\\\binom{10^{9}}{5 \\\\cdot 10^{8}}"], ["x+7"], workers=2, timeout=4)
    """
    with run(tmp_path, program, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == "ready\n"
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len(children) >= 3  # two workers, at least one with a child
        time.sleep(1.0)  # one of them is now inside the binomial
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive, json.dumps([" ".join(process.cmdline()) for process in alive])
