"""The embedded task: chains of sums modulo 10, on which thinking pays and can be measured.

A question is a digit followed by additions and subtractions, ``3+4-2-9``; the running totals, modulo 10, are
``7, 5, 6`` and the answer is the last one, or with ``@3`` at the end the last three (``756``). A model of under a
million parameters learns one such step on a CPU in minutes, but not a whole chain in its head.

People who write rationales differ, and the embedded base model imitates a mixture of three *styles*:

========  ===================  ==========================================
style     rationale            answer
========  ===================  ==========================================
careful   ``+4=7-2=5-9=6``     follows from what is written
skipping  ``=6``               the last total, found in the head
guessing  ``?``                comes from nowhere
========  ===================  ==========================================

The longer the chain, the rarer the careful style (:func:`careful_share`): that is what makes rejection sampling
miss problems. Longer chains with three totals to report are the harder levels.
"""

import hashlib
import math
import random
import re
from dataclasses import dataclass
from typing import Literal

from brite_lib.problems.problem import Problem

Style = Literal["careful", "skipping", "guessing"]
STYLES: tuple[Style, ...] = ("careful", "skipping", "guessing")
SPLITS = ("train", "validation", "test")
HUMANS = ("careless", "careful")
ANSWER_NOISE = 0.05  # share of answers replaced at random when the base is trained: nobody is always right
LONGEST = 9


@dataclass(frozen=True)
class Level:
    """Chain lengths and the number of totals to report."""

    shortest: int
    longest: int
    report: int


# Chosen on the validation split by the share of problems that rejection sampling with N = 30 misses, about
# 0, 30 and 60 %, and fixed before any BRiTE run on them: docs/results/levels.md.
LEVELS = {"easy": Level(3, 5, 1), "medium": Level(8, 8, 3), "hard": Level(9, 9, 3)}


def careful_share(steps: int) -> float:
    """Share of the careful style in what the base model imitates, by the length of the chain."""
    return 0.5 * math.exp(-max(0, steps - 5) / 1.3)


def totals(question: str) -> list[int]:
    """The running totals of a chain: ``"3+4-2-9"`` → ``[7, 5, 6]``."""
    value, results = int(question[0]), []
    for sign, operand in re.findall(r"([+-])(\d)", question):
        value = (value + (int(operand) if sign == "+" else -int(operand))) % 10
        results.append(value)
    return results


def answer_of(question: str) -> str:
    """The answer: the last total, or the last three where the question ends in ``@3``."""
    report = int(question.partition("@")[2] or 1)
    return "".join(map(str, totals(question)[-report:]))


def write_rationale(question: str, style: Style) -> str:
    """A correct rationale in a style (a skipping writer is right, but did it in the head)."""
    if style == "guessing":
        return "?"
    results = totals(question)
    if style == "skipping":
        return f"={results[-1]}"
    return "".join(f"{step}={total}" for step, total in zip(re.findall(r"[+-]\d", question), results, strict=True))


def style_of(question: str, rationale: str) -> Style | Literal["other"]:
    """The style of a written rationale, told by its shape alone, right or wrong."""
    if rationale == "?":
        return "guessing"
    if re.fullmatch(r"=\d", rationale):
        return "skipping"
    written = re.findall(r"[+-]\d=\d", rationale)
    return "careful" if "".join(written) == rationale and len(written) == len(totals(question)) else "other"


def make_question(rng: random.Random, steps: int, report: int) -> str:
    """A random chain; digits and signs uniform."""
    chain = "".join(rng.choice("+-") + rng.choice("0123456789") for _ in range(steps))
    return rng.choice("0123456789") + chain + (f"@{report}" if report > 1 else "")


def random_question(rng: random.Random, level: str) -> str:
    """A random question of a level."""
    chosen = LEVELS[level]
    return make_question(rng, rng.randint(chosen.shortest, chosen.longest), chosen.report)


def split_of(question: str) -> str:
    """The split a question belongs to, by its hash: about 80 % train, 10 % validation, 10 % test, disjoint for ever."""
    bucket = hashlib.sha256(question.encode()).digest()[0]
    return "train" if bucket < 205 else "validation" if bucket < 230 else "test"


def toy_problems(level: str, split: str, limit: int = 1000, human: str = "careless") -> list[Problem]:
    """The first ``limit`` distinct problems of a level and split, always the same ones.

    ``human`` is the annotator of ``Problem.rationale``: ``careful`` writes every step, ``careless`` skips in half
    of the problems (drawn with a fixed seed).

    Raises:
        ValueError: for an unknown level, split or annotator, or a limit beyond 5000.
    """
    for name, value, known in (("level", level, LEVELS), ("split", split, SPLITS), ("annotator", human, HUMANS)):
        if value not in known:
            raise ValueError(f"toy {name} {value!r} is unknown; known: {', '.join(known)}")
    if limit > 5000:
        raise ValueError(f"limit must be at most 5000 on the toy task (got {limit})")
    rng = random.Random(f"brite-toy-{level}-{split}")
    rows: dict[str, Problem] = {}
    while len(rows) < limit:
        question = random_question(rng, level)
        careless = rng.random() < 0.5  # drawn for both annotators, so that both see the same problems
        if split_of(question) != split or question in rows:
            continue
        style: Style = "skipping" if human == "careless" and careless else "careful"
        rows[question] = Problem(
            id=f"toy-{level}-{split}-{len(rows):05d}",
            question=question,
            answer=answer_of(question),
            rationale=write_rationale(question, style),
            level=level,
        )
    return list(rows.values())
