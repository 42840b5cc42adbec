"""Answers: cut out of a text, and compared with the gold answer.

Four kinds. ``exact`` compares stripped texts; ``number`` the values of plain numbers (GSM8K); ``choice`` option
letters; ``math`` asks math-verify, in processes of its own that are killed when they exceed their time: sympy can
compute for ever inside one C call (``9^{9^{9^9}}``), where no signal handler or thread can stop it.
"""

import math
import multiprocessing
import os
import re
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import TimeoutError
from contextlib import suppress
from fractions import Fraction

from pebble import ProcessExpired, ProcessPool

from brite_lib.errors import InputError

MEMORY_LIMIT = 4 * 2**30  # bytes of address space of one math worker

# What announces a final answer; the last one in a text counts.
ANNOUNCED = re.compile(r"(?:####|\banswer(?:\s+is|:)\s*:?)[ \t]*(.+)", re.IGNORECASE)
# 18, -3.50, 1,234,567, .5, 3/4, 1e-5; a minus after a digit, letter or bracket is a subtraction.
NUMBER = re.compile(
    r"""((?<![\w)])[-−+])? (?:[$€£¥]\s?)? ((?<![\w)])[-−+])?
    ( (?: \d{1,3}(?:,\d{3})+(?!\d) | \d+ ) (?:\.\d+)? (?:[eE][-+]?\d+)? | \.\d+ ) (?:/(\d+))?""",
    re.VERBOSE,
)
LETTER = re.compile(r"\(([A-Ja-j])\)|(?<![\w'’])([A-HJ])(?![\w'’])")


def extract_answer(text: str, kind: str = "math") -> str | None:
    """The final answer in a text, as it is written there; None if there is none.

    An answer is announced by a last ``\\boxed{}``, ``####`` or "answer is"; without these

    - ``exact`` takes the whole text, announced or not;
    - ``number`` takes the last number, without currency, thousands commas and unit: ``$1,234.50`` → ``1234.50``;
    - ``math`` takes the last line that is not empty, without ``$…$`` and a final full stop;
    - ``choice`` takes the letter that the text begins with (``B``, ``(b)``, ``B. because …``), else its last one
      in brackets or alone as a capital: A to J (a lone I is the pronoun).

    Raises:
        InputError: for an unknown kind.
    """
    _check_kind(kind)
    if kind == "exact":
        return text.strip() or None
    return EXTRACTORS[kind](_announced(text) or "") or EXTRACTORS[kind](text)


def is_correct(prediction: str, gold: str, kind: str = "math") -> bool:
    """Whether an extracted answer equals the gold answer; one that cannot be judged in 5 seconds is not correct.

    ``number`` compares values exactly (18 = 18.0 = $18; 50 % = 50: units are not looked at), ``math`` by math-verify.

    Raises:
        InputError: for an unknown kind, or a gold answer that is none of this kind.
    """
    return verify_batch([prediction], [gold], kind, workers=1)[0] is True


def verify_batch(
    predictions: Sequence[str | None], golds: Sequence[str], kind: str = "math", workers: int | None = None, timeout: float = 5.0
) -> list[bool | None]:
    """Compare many answers; equal pairs are compared once.

    Args:
        predictions: extracted answers; None (nothing extracted) and what cannot be parsed is wrong.
        golds: gold answers, one per prediction.
        kind: exact, number, math or choice.
        workers: processes of kind ``math``; None: one per core, at most 8. They stay for the next call.
        timeout: seconds for one comparison of kind ``math``; the process is then killed and replaced.

    Returns:
        True, False, or None for a pair that cannot be judged: the judge ran out of time or memory, or failed.

    Raises:
        InputError: for an unknown kind, or a gold answer that is none of this kind.
    """
    _check_kind(kind)
    pairs = list(zip(predictions, golds, strict=True))
    verdicts: dict[tuple[str | None, str], bool | None] = {}
    open_pairs = []
    for prediction, gold in dict.fromkeys(pairs):
        if kind != "math":
            verdicts[prediction, gold] = _equal(prediction, gold, kind)
        elif prediction is None or prediction.strip() == gold.strip():
            verdicts[prediction, gold] = prediction is not None
        else:
            open_pairs.append((prediction, gold))
    if open_pairs:
        verdicts |= _judge(open_pairs, workers or min(8, os.cpu_count() or 1, len(open_pairs)), timeout)
    return [verdicts[pair] for pair in pairs]


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"answer kind: {kind!r} is unknown; known: {', '.join(KINDS)}")


def _equal(prediction: str | None, gold: str, kind: str) -> bool:
    if kind == "exact":
        return prediction is not None and prediction.strip() == gold.strip()
    value = _value if kind == "number" else _choice
    right = value(gold)
    if right is None:
        raise InputError(f"answer_kind: {kind}: the gold answer {gold[:60]!r} is no {kind}; use another kind for this data")
    return prediction is not None and value(prediction) == right


def _announced(text: str) -> str | None:
    """The text of the last ``\\boxed{}``, else what follows the last "####" or "answer is"."""
    start = text.rfind("\\boxed{")
    if start >= 0:
        depth, first = 0, start + len("\\boxed")
        for i in range(first, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[first + 1 : i]
    found = ANNOUNCED.findall(text)
    return found[-1] if found else None


def _number(text: str) -> str | None:
    found = NUMBER.findall(text)
    if not found:
        return None
    outer, inner, digits, denominator = found[-1]
    sign = "-" if {outer, inner} & {"-", "−"} else ""
    return sign + digits.replace(",", "") + (f"/{denominator}" if denominator else "")


def _value(text: str) -> Fraction | None:
    number = _number(text)
    if number is None or len(number) > 1000 or re.search(r"[eE][-+]?\d{4}", number):  # Fraction("1e999999999") would never end
        return None
    numerator, _, denominator = number.partition("/")
    return None if denominator and int(denominator) == 0 else Fraction(numerator) / Fraction(denominator or 1)


def _math(text: str) -> str | None:
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return None
    line = lines[-1].removesuffix(".").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        inner = line[len(opening) : -len(closing)]
        if line.startswith(opening) and line.endswith(closing) and opening not in inner:
            line = inner.strip()
    return line or None


def _choice(text: str) -> str | None:
    start = re.match(r"\W*([A-Ja-j])(?:\W*$|[).:,])", text.strip())
    found = [start[1]] if start else [a or b for a, b in LETTER.findall(text)]
    return found[-1].upper() if found else None


EXTRACTORS: dict[str, Callable[[str], str | None]] = {"number": _number, "math": _math, "choice": _choice}
KINDS = ("exact", "number", "math", "choice")


_pools: dict[int, ProcessPool] = {}


def _judge(pairs: Sequence[tuple[str, str]], workers: int, timeout: float) -> dict[tuple[str, str], bool | None]:
    pool = _pools.get(workers)
    if pool is None or not pool.active:
        # spawn: a fork of a process that has torch's or a notebook's threads may deadlock.
        pool = _pools[workers] = ProcessPool(workers, initializer=_start_worker, context=multiprocessing.get_context("spawn"))
    futures = [pool.schedule(_math_equal, args=(*pair, timeout), timeout=timeout) for pair in pairs]
    verdicts: dict[tuple[str, str], bool | None] = {}
    for pair, future in zip(pairs, futures, strict=True):
        try:
            verdicts[pair] = future.result()
        except (TimeoutError, ProcessExpired, MemoryError):
            verdicts[pair] = None
    return verdicts


def _start_worker() -> None:
    """Runs in a new worker: its imports do not count against the first comparison's time."""
    import logging
    import resource

    import math_verify  # noqa: F401

    logging.disable(logging.WARNING)  # math-verify warns that its own timeout, useless here, is off
    with suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()  # no orphan when the parent is killed


def _math_equal(prediction: str, gold: str, timeout: float) -> bool | None:
    """Runs in a worker."""
    from math_verify import parse, verify

    # The kernel ends this process if nobody else can (the pool's process was killed in the meantime).
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(math.ceil(timeout) + 2)
    try:
        right, guess = (parse(_as_latex(text), parsing_timeout=None) for text in (gold, prediction))
        return verify(right, guess, timeout_seconds=None, raise_on_error=True)
    except Exception:  # whatever sympy trips over: not judged
        return None
    finally:
        signal.alarm(0)


def _as_latex(text: str) -> str:
    return text if "$" in text or "\\boxed" in text else f"${text}$"
