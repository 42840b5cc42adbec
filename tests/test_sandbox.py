import textwrap
import time

import psutil
import pytest

from brite_lib.errors import InputError
from brite_lib.sandbox import isolation, run, run_tests

ADD = "def add(a, b):\n    return a + b\n"


def judged(program, tests, **limits):
    """These programs mean no harm, and this must also be tested where nothing isolates them; tests/test_sandbox_attacks.py is the rest."""
    return run_tests(textwrap.dedent(program), textwrap.dedent(tests), i_understand_the_risk=True, **limits)


def test_a_right_and_a_wrong_program():
    right = judged(ADD, "assert add(1, 2) == 3", timeout=5, memory_mb=256)
    assert (right.passed, right.status, right.stdout, right.stderr) == (True, "passed", "", "")
    assert 0 <= right.seconds < 5
    wrong = judged(ADD, "assert add(1, 2) == 4", timeout=5, memory_mb=256)
    assert (wrong.passed, wrong.status) == (False, "failed")
    assert wrong.stderr == 'Traceback (most recent call last):\n  File "<tests>", line 1, in <module>\nAssertionError\n'
    with pytest.raises(AttributeError):
        right.passed = False


@pytest.mark.parametrize(
    ("program", "status", "said"),
    [
        ("def add(a, b) return a", "failed", "SyntaxError"),
        ("1 / 0\n" + ADD, "failed", "ZeroDivisionError"),
        ("def plus(a, b): return a + b", "failed", "NameError: name 'add' is not defined"),
        ("def add(a, b): raise KeyError('\\x1b[31mred')", "failed", "KeyError: '\\x1b[31mred'"),
        ("x = input()\n" + ADD, "failed", "EOFError"),
        ("\x00" + ADD, "failed", "null bytes"),
        ("\ud800" + ADD, "failed", "UnicodeEncodeError"),
        ("", "failed", "NameError"),
        ("def add(a, b): return add(a, b)", "failed", "RecursionError"),
        ("def add(a, b):\n    x = []\n    x.append(x)\n    return x", "failed", "AssertionError"),
    ],
)
def test_programs_that_fail_say_why(program, status, said):
    verdict = judged(program, "assert add(1, 2) == 3", timeout=20)
    assert verdict.status == status
    assert said in verdict.stderr


def test_prints_are_kept_at_their_end_and_without_control_characters():
    verdict = judged("print('x' * 5000)\ndef add(a, b):\n    print('\\x1b[2J\\u202eé', a)\n    return a + b\n", "assert add(1, 2) == 3")
    assert verdict.passed
    assert verdict.stdout == "x" * (2000 - len("\n\x1b[2J\u202eé 1\n")) + "\n\\x1b[2J\\u202eé 1\n"


def test_a_main_guard_does_not_run_and_modules_may_be_imported():
    program = """
        import math, os.path as p
        from typing import List
        def f(x: List[int]): return math.sqrt(len(x))
        if __name__ == "__main__":
            1 / 0
    """
    tests = """
        def check(g: List[int]):
            assert g([1] * 4) == math.floor(2.5)
            assert p.sep == "/"
        check(f)
    """
    assert judged(program, tests).passed


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        # values of every kind that crosses as a value, in both directions
        (
            """
            def same(x, *, key=None): return x if key is None else key
            """,
            """
            import collections, datetime, decimal, fractions, math
            import numpy as np
            for value in [True, -7, -(10**5000), [10**5000], 1.5, math.inf, "é\\ud800", b"\\xff", bytearray(b"a"), (1, [2, (3,)]),
                          {(1, 2): {3}}, frozenset({1}), 2j, range(1, 9, 2), collections.Counter("aab"), collections.OrderedDict(a=1),
                          collections.deque([1], 3), decimal.Decimal("1.10"), fractions.Fraction(1, 3), datetime.date(2024, 2, 29),
                          datetime.datetime(2024, 2, 29, 1, 2, 3, 4), datetime.timedelta(1, 2, 3), int, np.float64(1.5), np.bool_(True)]:
                for got in (same(value), same(0, key=value), same([value])[0]):
                    assert type(got) is type(value) and got == value, value
            assert math.isnan(same(math.nan))
            assert same(collections.defaultdict(list, {1: [2]}))[5] == []
            array = same(np.arange(6.0).reshape(2, 3).astype("float32"))
            assert array.dtype == "float32" and array.shape == (2, 3) and array[1, 2] == 5
            """,
        ),
        # objects of the program
        (
            """
            class Point:
                def __init__(self, x, y=0): self.x, self.y = x, y
                def __eq__(self, other): return (self.x, self.y) == (other.x, other.y)
                def __add__(self, other): return Point(self.x + other.x, self.y + other.y)
                def __repr__(self): return f"Point({self.x}, {self.y})"
                def __len__(self): return 2
                def __getitem__(self, i): return (self.x, self.y)[i]
                def moved(self, dx): return Point(self.x + dx, self.y)
                def __enter__(self): return self
                def __exit__(self, *error): self.x = 0
                def __bool__(self): return self.x != 0
            class Point3(Point): pass
            """,
            """
            p = Point(1, y=2)
            assert p == Point(1, 2) and p != Point(1, 3) and p + p == Point(2, 4) and repr(p) == "Point(1, 2)"
            assert len(p) == 2 and p[1] == 2 and list(p) == [1, 2] and 2 in p and p.moved(3).x == 4
            assert isinstance(Point3(1), Point) and not isinstance(p, Point3) and not isinstance(3, Point) and Point.__name__ == "Point"
            p.x = 5
            assert p.x == 5 and p
            with p as q:
                assert q.x == 5
            assert p.x == 0 and not p
            try:
                p[2]
            except IndexError:
                pass
            else:
                raise AssertionError
            assert not hasattr(p, "z") and {p.x: 1}[0] == 1
            """,
        ),
        # subclasses of plain types compare as what they are
        (
            """
            import enum, collections
            Pair = collections.namedtuple("Pair", "a b")
            class Colour(enum.IntEnum):
                RED = 3
            class Stack(list):
                def push(self, x): self.append(x)
            def keys(): return {"a": 1}.keys()
            """,
            """
            assert Pair(1, 2) == (1, 2) and Pair(1, 2).b == 2 and (1, 2) == Pair(1, 2)
            assert Colour.RED == 3 and Colour.RED + 1 == 4 and 5 - Colour.RED == 2 and Colour.RED < 4
            s = Stack(); s.push(1)
            assert s == [1] and s != [2] and keys() == {"a"} and list(keys()) == ["a"]
            """,
        ),
        # generators and iterators
        (
            "def count(n):\n    for i in range(n): yield i\ndef squares(x): return map(lambda i: i * i, x)",
            "assert list(count(3)) == [0, 1, 2]\ng = count(2)\nassert next(g) == 0 and sum(g) == 1 and sorted(squares({2, 1})) == [1, 4]",
        ),
        # exceptions, built-in and the program's own
        (
            """
            class Mine(ValueError): pass
            def fail(kind):
                if kind == "mine": raise Mine("text", 3)
                if kind == "unicode": b"\\xff".decode()
                {}["missing"]
            """,
            """
            import unittest
            class Tests(unittest.TestCase):
                def test_fail(self):
                    with self.assertRaises(Mine) as caught:
                        fail("mine")
                    self.assertEqual(caught.exception.args, ("text", 3))
                    self.assertIsInstance(caught.exception, ValueError)
                    self.assertRaises(KeyError, fail, "key")
                    self.assertRaises(Exception, fail, "unicode")
            unittest.main()
            """,
        ),
        # changes in place, as of a function without result
        (
            """
            def sort(x): x.sort()
            def turn(m): m[0][0], m[1][0] = m[1][0], m[0][0]
            def fill(d, s): d["k"] = 1; s.add(2)
            """,
            """
            x = [3, 1]; sort(x)
            m = [[1], [2]]; turn(m)
            d, s = {}, {1}; fill(d, s)
            assert x == [1, 3] and m == [[2], [1]] and d == {"k": 1} and s == {1, 2}
            """,
        ),
        # functions and objects of the tests
        (
            """
            def apply(f, x): return [f(i) for i in x]
            def read(node): node.seen = True; return node.value + len(node)
            def drain(it): return list(it)
            """,
            """
            class Node:
                value = 2
                def __len__(self): return 3
            node = Node()
            assert apply(lambda i: i + 1, [1, 2]) == [2, 3] and read(node) == 5 and node.seen and drain(i for i in range(2)) == [0, 1]
            try:
                apply(lambda i: 1 / 0, [1])
            except ZeroDivisionError:
                pass
            else:
                raise AssertionError
            """,
        ),
        # a program may have a built-in function's name (MBPP/126)
        ("def sum(a, b): return a + b", "def check(got, want):\n    assert got == want\ncheck(sum(1, 2), 3)"),
    ],
)  # fmt: skip
def test_tests_meet_the_program_as_in_one_module(program, tests):
    verdict = judged(program, tests)
    assert verdict.passed, verdict.stderr


def test_a_failing_unittest_fails():
    tests = "import unittest\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(add(1, 2), 4)\nunittest.main()"
    assert judged(ADD, tests).status == "failed"


def test_time_counts_from_the_start_of_the_program_and_the_kill_is_prompt():
    before = set(psutil.Process().children(recursive=True))  # another test's pool of verifiers may live on
    start = time.monotonic()
    verdict = judged("while True: pass", "assert True", timeout=1)
    assert verdict.status == "timeout" and 1 <= verdict.seconds < 10
    assert time.monotonic() - start < 60
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_process_that_has_ended_is_not_killed_again(monkeypatch):
    """Its number may be another process's by then."""
    killed, killpg = [], run.os.killpg
    monkeypatch.setattr(run.os, "killpg", lambda number, signal: (killed.append(number), killpg(number, signal)))
    assert judged(ADD, "assert add(1, 2) == 3").passed
    assert len(killed) == len(set(killed)) == 2


def test_bad_arguments_are_one_sentence():
    for tests, timeout, memory_mb, said in [
        (" \n", 1, 100, "tests: are empty, so that every program would pass"),
        ("x", 0, 100, "timeout: 0 and memory_mb: 100 must be positive"),
        ("x", 1, 0, "timeout: 1 and memory_mb: 0 must be positive"),
    ]:
        with pytest.raises(InputError, match=said):
            run_tests("x = 1", tests, timeout, memory_mb)


def test_without_isolation_it_refuses_unless_the_risk_is_understood(monkeypatch):
    monkeypatch.setattr(isolation, "failure_of", {"bubblewrap": "not installed", "namespaces": "unshare: Operation not permitted"}.get)
    with pytest.raises(InputError) as refusal:
        run_tests(ADD, "assert add(1, 2) == 3")
    assert str(refusal.value) == (
        "sandbox: this machine cannot isolate generated programs (bubblewrap: not installed; "
        "namespaces: unshare: Operation not permitted); on Linux install bubblewrap 0.7 or newer (Debian, Ubuntu: apt-get install "
        "bubblewrap) and allow user namespaces, or set i_understand_the_risk: true to run them with your rights"
    )
    assert run_tests(ADD, "assert add(1, 2) == 3", i_understand_the_risk=True).passed
    assert run_tests(ADD, "assert add(1, 2) == 4", i_understand_the_risk=True).status == "failed"
    assert run_tests("while True: pass", "assert 1", timeout=1, i_understand_the_risk=True).status == "timeout"
    files = "import os\nassert os.listdir() == []\nopen('x', 'w').write('x')\nassert 'HOME' not in os.environ"
    assert run_tests(files, "assert True", i_understand_the_risk=True).passed


def test_what_does_not_isolate_is_found_out_by_trying(monkeypatch):
    isolation.failure_of.cache_clear()
    monkeypatch.setattr(isolation.sys, "platform", "darwin")
    with pytest.raises(InputError, match=r"bubblewrap: not on darwin; namespaces: not on darwin"):
        isolation.best_way()
    monkeypatch.undo()
    isolation.failure_of.cache_clear()
    monkeypatch.setattr(isolation, "command", lambda way, script, scratch: ["/bin/sh", "-c", f"echo first; echo {way} is off >&2; exit 3"])
    with pytest.raises(InputError, match=r"namespaces: namespaces is off"):
        isolation.best_way()
    isolation.failure_of.cache_clear()


def test_a_sandbox_that_breaks_is_no_verdict_on_the_program(monkeypatch):
    isolation.best_way(i_understand_the_risk=True)
    monkeypatch.setattr(run, "command", lambda way, script, scratch: ["/bin/false"])
    assert judged(ADD, "assert add(1, 2) == 3").status == "broken"
