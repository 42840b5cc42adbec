"""Throughput of ``verify_batch`` against calling math-verify one pair after the other, with the same verdicts (target: 3×).

    python benchmarks/verify_batch.py [--problems 500] [--samples 8] [--data PATH] [--workers N]

Gold answers are those of ``--data`` (a path, or a name on the hub), by default of a copy of MATH-500 in ../shared/data, and made up
where there is none. The samples of a problem are its gold answer rewritten
(``\\dfrac``, spaces, a box) or changed (a digit, a sign), drawn with the seed as a model of the given pass@1 would: wrong answers
repeat too. The ratio is split into what comes from judging equal pairs once, from deciding equal writings and plain numbers
without sympy, and from the processes.
"""

import argparse
import logging
import os
import random
import re
import time
from collections.abc import Callable

os.environ.setdefault("OMP_NUM_THREADS", "1")

from math_verify import parse, verify

from brite_lib.params import PROJECT_ROOT
from brite_lib.problems import load_problems
from brite_lib.verify import pool, verify_batch
from brite_lib.verify.equal import equal
from brite_lib.verify.latex import normalise

MATH_500 = PROJECT_ROOT.parent / "shared" / "data" / "math500"
Pairs = list[tuple[str, str]]


def made(count: int, seed: int) -> list[str]:
    """Gold answers like those of MATH: integers, fractions, roots, pairs, expressions, intervals."""
    rng, forms = (
        random.Random(seed),
        ("{a}", "{a}", r"\frac{{{a}}}{{{b}}}", r"{a}\sqrt{{{b}}}", "({a}, {b})", "{a}x + {b}", "({a},{c}]", r"{a}\pi"),
    )
    return [rng.choice(forms).format(a=rng.randint(2, 99), b=rng.randint(2, 99), c=rng.randint(100, 999)) for _ in range(count)]


def rewritten(gold: str, rng: random.Random) -> str:
    """The same answer in another writing."""
    writings = (gold, gold.replace(r"\frac", r"\dfrac"), gold.replace(", ", ","), re.sub(r"\^(\d)", r"^{\1}", gold), f" {gold} ")
    return rng.choices(writings, (6, 2, 1, 1, 1))[0]


def wrong(gold: str, rng: random.Random) -> str:
    """A near miss: another digit, another sign, or the answer to something else."""
    digits = [match.start() for match in re.finditer(r"(?<![_.])\d", gold)]
    if not digits or rng.random() < 0.2:
        return f"-({gold})" if rng.random() < 0.5 and not re.search(r"[,=a-zA-Z]", gold) else str(rng.randint(1, 200))
    place = rng.choice(digits)
    return gold[:place] + str((int(gold[place]) + rng.randint(1, 9)) % 10) + gold[place + 1 :]


def samples(golds: list[str], per_problem: int, accuracy: float, seed: int) -> Pairs:
    """(prediction, gold) pairs; a problem's wrong samples are drawn from three near misses, so that some repeat."""
    rng, pairs = random.Random(seed), []
    for gold in golds:
        misses = [wrong(gold, rng) for _ in range(3)]
        pairs += [(rewritten(gold, rng) if rng.random() < accuracy else rng.choice(misses), gold) for _ in range(per_problem)]
    return pairs


def plain(pair: tuple[str, str]) -> bool:
    """What most scripts do: math-verify's own parse and verify, both with their default time limits."""
    prediction, gold = pair
    return verify(parse(f"${gold}$"), parse(f"${prediction}$"))


def timed(what: Callable[[], list[bool | None]]) -> tuple[float, list[bool | None]]:
    """Seconds and result."""
    start = time.perf_counter()
    result = what()
    return time.perf_counter() - start, result


def main() -> None:
    """Print one line per way of judging, then where they differ."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=500)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--accuracy", type=float, default=0.6, help="share of rewritten gold answers among the samples")
    parser.add_argument("--data", help="path or name of the problems whose answers are the gold ones")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    data = options.data or (str(MATH_500) if MATH_500.is_dir() else None)
    golds = list(load_problems(data, "test", limit=options.problems)["answer"]) if data else made(options.problems, options.seed)
    pairs = samples(golds, options.samples, options.accuracy, options.seed)
    different = list(dict.fromkeys(pairs))
    predictions, right = map(list, zip(*pairs, strict=True))
    print(f"gold answers: {'MATH-500' if data == str(MATH_500) else data or 'made up'}")
    print(f"{len(pairs)} pairs, {len(different)} different, {options.workers} workers, {os.cpu_count()} cores, seed {options.seed}")
    verify_batch(["x+1"] * options.workers, [f"x+{i + 2}" for i in range(options.workers)], workers=options.workers)  # they start
    for pair in different[:20]:
        plain(pair)  # math-verify's parser builds its tables on its first formulas

    slow, by_math_verify = timed(lambda: [plain(pair) for pair in pairs])
    once, _ = timed(lambda: [plain(pair) for pair in different])
    ours, serial = timed(lambda: [equal(normalise(gold), normalise(prediction)) for prediction, gold in pairs])
    single, _ = timed(lambda: verify_batch(predictions, right, workers=1))
    fast, batch = timed(lambda: verify_batch(predictions, right, workers=options.workers))
    print(f"{'':44} {'seconds':>8} {'pairs/s':>8} {'ratio':>6}")
    for name, seconds in (
        ("math-verify, one after the other", slow),
        ("math-verify, each different pair once", once),
        ("our comparison, one after the other", ours),
        ("verify_batch, one worker", single),
        (f"verify_batch, {options.workers} workers", fast),
    ):
        print(f"{name:44} {seconds:8.2f} {len(pairs) / seconds:8.0f} {slow / seconds:6.1f}")
    print(f"verdicts of verify_batch that differ from our comparison: {sum(a is not b for a, b in zip(batch, serial, strict=True))}")
    differing = dict.fromkeys((*pair, a, b) for pair, a, b in zip(pairs, batch, by_math_verify, strict=True) if a is not b)
    print(f"different pairs with another verdict than math-verify's: {len(differing)} of {len(different)}")
    for prediction, gold, batch_says, math_verify_says in differing:
        print(f"  {prediction!r} for {gold!r}: {batch_says}, math-verify {math_verify_says}")
    pool.stop()


if __name__ == "__main__":
    main()
