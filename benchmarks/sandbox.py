"""What the sandbox costs per program, in both ways of isolation; and whether reference solutions of a benchmark pass in it.

python benchmarks/sandbox.py [--programs 40]
python benchmarks/sandbox.py --data ../shared/data/humaneval_plus [--split test] [--seconds 300] [--workers 2]
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from brite_lib.problems import load_problems
from brite_lib.sandbox import run, run_tests
from brite_lib.sandbox.isolation import WAYS, failure_of
from brite_lib.sandbox.programs import MEMORY_MB

PROGRAM = "def add(a, b):\n    return a + b\n"
TESTS = "assert add(1, 2) == 3\n"


def bare() -> None:
    """The least that a process of its own can cost: no limits, no isolation, one interpreter for program and tests."""
    subprocess.run([sys.executable, "-s", "-S", "-c", PROGRAM + TESTS], check=True)


def sandboxed(way: str) -> Callable[[], None]:
    """One verdict with one way of isolation."""

    def judge() -> None:
        run.best_way = lambda risk: way
        assert run_tests(PROGRAM, TESTS).passed

    return judge


def overhead(programs: int) -> None:
    """Medians in ms, the candidates interleaved; and the time of one call from the tests into the program."""
    candidates = {"bare subprocess": bare} | {way: sandboxed(way) for way in WAYS if failure_of(way) is None}
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(programs):
        for name, judge in candidates.items():
            start = time.perf_counter()
            judge()
            times[name].append(time.perf_counter() - start)
    base = statistics.median(times["bare subprocess"])
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:16} median {1000 * median:6.1f} ms  fastest {1000 * min(values):6.1f} ms  {median / base:.1f} × bare")
    loop = "import time\nstart = time.perf_counter()\nfor i in range(2000): add(i, i)\nprint((time.perf_counter() - start) / 2000 * 1e6)"
    print(f"one call from the tests into the program: {float(run_tests(PROGRAM, loop).stdout):.0f} µs")


def references(data: str, split: str, seconds: float, workers: int) -> None:
    """Judge the reference solution of every problem."""
    problems = load_problems(data, split)
    start = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        verdicts = list(pool.map(lambda problem: run_tests(problem["answer"], problem["tests"], seconds, MEMORY_MB), problems))
    passed = sum(verdict.passed for verdict in verdicts)
    print(
        f"{data} {split}: {passed} of {len(verdicts)} reference solutions pass, {time.monotonic() - start:.0f} s with {workers} at a time"
    )
    by_time = sorted(zip(verdicts, problems["id"], strict=True), key=lambda pair: -pair[0].seconds)
    print("slowest: " + ", ".join(f"{name} {verdict.seconds:.1f} s" for verdict, name in by_time[:5]))
    for limit in (5, 10, 30, 60, 120):
        print(f"longer than {limit} s: {sum(verdict.seconds > limit for verdict in verdicts)}")
    for verdict, name in by_time:
        if not verdict.passed:
            print(f"{name}: {verdict.status}\n{verdict.stderr}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--programs", type=int, default=40)
    parser.add_argument("--data")
    parser.add_argument("--split", default="test")
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    if args.data:
        references(args.data, args.split, args.seconds, args.workers)
    else:
        overhead(args.programs)
