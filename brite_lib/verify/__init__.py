"""Answers: cut out of a text, and compared with the gold answer. The rules, and what they get wrong: docs/verifiers.md.

Five kinds. ``exact`` compares stripped texts; ``number`` the values of plain numbers (GSM8K); ``choice`` option letters;
``math`` takes lists, brackets, units and words apart and asks math-verify about the formulas, in processes of its own that
are killed when they exceed their time: sympy can compute for ever inside one C call, where no handler or thread can stop it. ``code`` runs
programs in sandboxes (docs/sandbox.md); their gold answer is the problem's tests.
"""

import os
import re
from collections.abc import Sequence
from math import log10
from typing import Any

from brite_lib.errors import InputError
from brite_lib.sandbox import extract_program, judge_programs, whole_program
from brite_lib.sandbox.programs import SETTINGS
from brite_lib.verify import choice, number, pool
from brite_lib.verify.equal import numbers_equal
from brite_lib.verify.extract import math_answer
from brite_lib.verify.latex import compact, normalise

KINDS = ("exact", "number", "math", "choice", "code")
MAX_TEXT = 100_000  # characters at the end of a text in which its answer is looked for
MAX_LENGTH = 2000  # characters of a math answer that is judged; the longest gold answer of MATH and OlympiadBench has 204
MAX_DEPTH = 60  # brackets within brackets
Choices = Sequence[str] | None


def extract_answer(text: str | None, kind: str = "math", choices: Choices = None) -> str | None:
    """The final answer that a text states, as it is written there; None if there is none, or no text.

    In this order: the last ``\\boxed{}`` that is not empty; what follows the last "####", "the answer is", "Final answer:" …;
    and without these

    - ``exact`` takes the whole text, announced or not;
    - ``number`` takes the last number, without currency, thousands commas and unit: ``$1,234.50`` → ``1234.50``;
    - ``math`` takes the last line that is not empty; where that is prose, its last formula or number;
    - ``choice`` takes the letter that the text begins with (``B``, ``(b)``, ``B. because …``), else the last one that it
      mentions in brackets or as a capital, A to J (not the article A or the pronoun I). With ``choices``, the options' texts
      in their order, a text that is one of them is that letter.

    ``code`` does not look for announcements: see :func:`brite_lib.sandbox.extract_program`.

    Raises:
        InputError: for an unknown kind, or something else than a text.
    """
    _check_kind(kind)
    if text is None:
        return None
    _check_texts("text", [text])
    if kind == "exact":
        return text.strip() or None
    if kind == "code":
        return extract_program(text)
    text = text[-MAX_TEXT:]
    if kind == "choice":
        return choice.chosen(text, choices)
    return number.last_number(text) if kind == "number" else math_answer(text)


def is_correct(prediction: str | None, gold: str, kind: str = "math", choices: Choices = None) -> bool:
    """Whether an answer equals the gold answer; one that cannot be judged in 5 seconds is not correct.

    Raises:
        InputError: as :func:`verify_batch`.
    """
    return verify_batch([prediction], [gold], kind, workers=1, choices=[choices])[0] is True


def verify_batch(
    predictions: Sequence[str | None],
    golds: Sequence[str],
    kind: str = "math",
    workers: int | None = None,
    timeout: float = 5.0,
    choices: Sequence[Choices] | None = None,
) -> list[bool | None]:
    """Compare many answers; equal pairs are compared once.

    Args:
        predictions: extracted answers, or texts that state one; None (nothing extracted) and what cannot be parsed is wrong.
        golds: gold answers, one per prediction; of kind ``code`` tests, None or empty where there are none.
        kind: exact, number, math, choice or code.
        workers: processes of kind ``math``, programs of kind ``code`` that run at once; None: one per core, at most 8.
        timeout: seconds for one comparison of kind ``math``, whose process is then killed and replaced, or for one program
            with its tests, which is then wrong.
        choices: the options' texts of each item, kind ``choice`` only; None where only letters count.

    Returns:
        True, False, or None for a pair that cannot be judged: longer than :data:`MAX_LENGTH`, without a gold answer, or the judge
            ran out of time or memory, or failed; a program without tests. Evaluations report their share as ``not_judged``; they
            never count as correct.

    Raises:
        InputError: for an unknown kind, a prediction or gold answer that is no text (named by its row, counted from 1), a gold
            answer that is empty or none of this kind, fewer than one worker, no time, or programs where nothing isolates them.
        ValueError: for sequences of different lengths.
    """
    _check_kind(kind)
    _check_texts("prediction", predictions, may_lack=True)
    _check_texts("gold answer", golds, may_lack=kind == "code")
    if workers is None:
        workers = min(8, os.cpu_count() or 1)
    if workers < 1 or not timeout > 0:
        raise InputError(f"workers: {workers} must be at least 1 and timeout: {timeout} above 0 seconds")
    options = choices if choices is not None else [None] * len(golds)
    items = [(p, g, tuple(o) if o else None) for p, g, o in zip(predictions, golds, options, strict=True)]
    verdicts: dict[tuple, bool | None] = {}
    pairs: dict[tuple, pool.Pair] = {}
    if kind == "code":
        programs = [pair for pair in dict.fromkeys(zip(predictions, golds, strict=True)) if pair[0] is not None and pair[1]]
        judged = judge_programs(programs, workers, timeout)
        return [judged.get((prediction, gold)) if prediction is not None else False for prediction, gold, _ in items]
    for item in dict.fromkeys(items):
        prediction, gold, known = item
        if kind == "math":
            verdict = _quick(prediction, gold)
            if isinstance(verdict, tuple):
                pairs[item] = verdict
            else:
                verdicts[item] = verdict
        else:
            verdicts[item] = _equal(prediction, gold, kind, known)
    if pairs:
        judged = pool.judge(list(dict.fromkeys(pairs.values())), workers, timeout)
        verdicts |= {item: judged[pair] for item, pair in pairs.items()}
    return [verdicts[item] for item in items]


def judge(
    problems: Sequence[dict[str, Any]], texts: Sequence[str | None], kind: str, ended: Sequence[bool] | None = None
) -> tuple[list[str | None], list[bool | None]]:
    """What texts answer to problems, and whether that is right.

    Args:
        problems: rows of :class:`brite_lib.problems.Problem`.
        texts: where the answer is looked for; None: there is none.
        ended: whether an answer counts; None: all do. One that does not is wrong.

    Returns:
        predictions and verdicts, as :func:`extract_answer` and :func:`verify_batch` give them. A program that continues its
        question is the prediction together with it, and has the stage's ``program_seconds``.
    """
    choices = [problem.get("choices") for problem in problems]
    predictions = [None if text is None else extract_answer(text, kind, options) for text, options in zip(texts, choices, strict=True)]
    golds, timeout = [problem["answer"] for problem in problems], 5.0
    if kind == "code":
        golds, timeout = [problem.get("tests") for problem in problems], SETTINGS.seconds
        predictions = [
            program and whole_program(program, problem["question"], problem.get("tests") or "")
            for program, problem in zip(predictions, problems, strict=True)
        ]
    counted = predictions if ended is None else [p if end else None for p, end in zip(predictions, ended, strict=True)]
    return predictions, verify_batch(counted, golds, kind, timeout=timeout, choices=choices)


def not_judged(verdicts: Sequence[bool | None]) -> float:
    """The share of verdicts that are None, 0 for no verdicts."""
    return sum(verdict is None for verdict in verdicts) / max(1, len(verdicts))


def _check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise InputError(f"answer kind: {kind!r} is unknown; known: {', '.join(KINDS)}")


def _check_texts(name: str, texts: Sequence[str | None], may_lack: bool = False) -> None:
    for row, text in enumerate(texts, start=1):
        if not (isinstance(text, str) or (text is None and may_lack)):
            raise InputError(f"{name}: row {row}: must be a text, found {'none' if text is None else f'{text!r:.60}'}")


def _equal(prediction: str | None, gold: str, kind: str, choices: Choices) -> bool:
    if kind == "exact":
        return prediction is not None and prediction.strip() == gold.strip()
    read = number.value if kind == "number" else lambda text: choice.chosen(text, choices)
    right = read(gold)
    if right is None:
        raise InputError(f"answer_kind: {kind}: the gold answer {gold[:60]!r} is no {kind}; use another kind for this data")
    return prediction is not None and read(prediction[-MAX_TEXT:]) == right


def _quick(prediction: str | None, gold: str) -> bool | pool.Pair | None:
    """A verdict that needs no sympy, or the normalised pair to be judged."""
    answer = math_answer(prediction[-MAX_TEXT:]) if prediction is not None else None
    if answer is None:
        return False
    if answer.strip() == gold.strip():
        return True
    if not gold.strip():
        return None
    if max(len(answer), len(gold)) > MAX_LENGTH:
        return None
    right, guess = normalise(gold), normalise(answer)
    if compact(right) == compact(guess):
        return True
    if not compact(guess):
        return False
    if (verdict := numbers_equal(right, guess)) is not None:
        return verdict
    return None if _boundless(right) or _boundless(guess) else (right, guess)


def _boundless(text: str) -> bool:
    """Whether sympy would surely not come back: a number beyond 10^100000, or brackets deeper than any answer's."""
    depth = deepest = 0
    for mark in re.findall(r"[({\[\]})]", text):
        depth += 1 if mark in "({[" else -1
        deepest = max(deepest, depth)
    powers = re.finditer(r"(?=(?<!\d)(\d+)[)}]*\s?\^[({\s]*(\d+)(?:[)}]*\s?\^[({\s]*(\d+))?)", text)
    tower = any(  # exponent^top · log10(base) > 10^5, in logarithms: the power itself may be beyond any float
        len(top or "") > 6 or int(top or 1) * log10(max(1, int(exponent[:9]))) + log10(log10(max(2, int(base[:9])))) > 5
        for base, exponent, top in (match.groups() for match in powers)
    )
    return deepest > MAX_DEPTH or tower or re.search(r"\d{5,}[)}]*\s?!|!\s?[)}]\s?!", text) is not None
