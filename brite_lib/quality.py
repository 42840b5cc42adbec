"""How good a set of rationales is, apart from whether their answers are right: checks against reward hacking, cheap enough for a laptop.

All measures but :func:`perplexity` read text alone, so they compare models with different tokenizers, and rationales by people. They
are heuristics, made for chains of arithmetic in plain text or LaTeX; each says where it is blind. A row needs ``question``, ``gold``,
``rationale`` and, where a model wrote it, ``prediction`` (the answer of the rationale; without it the gold answer is taken),
``finished`` and ``correct``. Rationales that were not finished are left out: there is no whole z to judge.
"""

import math
import re
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np

from brite_lib.roc import auroc_interval, calibration_error, reliability

if TYPE_CHECKING:
    from torch import nn

    from brite_lib.template import RationaleTemplate

Rows = Sequence[dict[str, Any]]

WORD = re.compile(r"\d+(?:[.,]\d+)*|\w+|[^\w\s]")
NUMBER = re.compile(r"(?<![\w.])[-−]?\d+(?:\.\d+)?(?![\w]|\.\d)")
STEP_END = re.compile(r"\n+|;|(?<=[.!?])\s+")  # a line, a clause or a sentence
EQUALS = re.compile(r"(?<![<>=!:])=(?!=)")
DERIVATION = re.compile(rf"(?P<end>{STEP_END.pattern})|(?P<equals>{EQUALS.pattern})|[\d+*/×÷^]")
NGRAM = 4
LONGEST = 1000  # characters of a number that is read


def summary(rows: Rows) -> dict[str, float]:
    """Means over finished rationales, as ``quality/…`` metrics.

    ``rationales`` is their number and ``words`` their mean length (numbers and punctuation marks are words); ``steps``,
    ``repeated_4grams``, ``answer_leak`` and ``agreement`` are the means of the functions below, the latter two over the
    ``…_judged`` rationales that they can judge (nan if there is none); and, where ``logp_theta`` is known for all,
    ``tokens`` of z with its boundary, and :func:`perplexity`.
    """
    rows = _finished(rows)
    if not rows:
        return {"quality/rationales": 0}
    leaks = [leak for row in rows if (leak := answer_leak(row["question"], row["rationale"], _answer(row))) is not None]
    agreements = [agrees for row in rows if (agrees := agreement(row["rationale"], _answer(row))) is not None]
    found = {
        "rationales": len(rows),
        "words": _mean([len(words(row["rationale"])) for row in rows]),
        "steps": _mean([steps(row["rationale"]) for row in rows]),
        "repeated_4grams": _mean([repeated_ngrams(row["rationale"]) for row in rows]),
        "answer_leak": _mean(leaks),
        "answer_leak_judged": len(leaks),
        "agreement": _mean(agreements),
        "agreement_judged": len(agreements),
    }
    if all(row.get("logp_theta") for row in rows):
        found |= {"tokens": _mean([len(row["logp_theta"]) for row in rows]), **perplexity([row["logp_theta"] for row in rows])}
    return {f"quality/{name}": value for name, value in found.items()}


def perplexity(log_probs: Sequence[Sequence[float]]) -> dict[str, float]:
    """Perplexity of a set of rationales under the model that scored them; a token of z (its boundary included) each.

    With ℓ_i = −Σ_t log P(z_it | x, z_i<t) and T_i tokens: ``perplexity`` = exp(Σ ℓ_i / Σ T_i), in which all tokens weigh the
    same; ``perplexity_per_rationale`` = exp(mean of ℓ_i / T_i), in which all rationales do; ``nats`` = mean of ℓ_i, which a longer
    rationale cannot dilute. (BRiTE's authors call their table "perplexity" and describe it as a mean negative log-probability.)
    """
    nats = np.array([-float(np.sum(values)) for values in log_probs])
    tokens = np.array([len(values) for values in log_probs])
    return {
        "perplexity": float(np.exp(nats.sum() / tokens.sum())),
        "perplexity_per_rationale": float(np.exp((nats / tokens).mean())),
        "nats": float(nats.mean()),
    }


def with_log_probs(rows: Rows, template: "RationaleTemplate", theta: "nn.Module", batch_size: int = 64) -> list[dict[str, Any]]:
    """The rows with ``logp_theta``: as stored where all have it (θ scored them when they were made), else all scored under ``theta``."""
    from brite_lib import costs
    from brite_lib.likelihood import score

    if all(row.get("logp_theta") for row in _finished(rows)):
        return list(rows)
    prompts = [row.get("prompt_ids") or template.prompt_ids(row["question"]) for row in rows]
    rationales = [row.get("rationale_ids") or template.rationale_ids(row["rationale"]) for row in rows]
    with costs.not_counted():
        scores = score(theta, prompts, rationales, [[]] * len(rows), batch_size, desc="perplexity under θ").rationale
    return [{**row, "logp_theta": values.tolist()} for row, values in zip(rows, scores, strict=True)]


def words(text: str) -> list[str]:
    """Words, numbers and punctuation marks: ``"+4=7"`` has four."""
    return WORD.findall(text)


def steps(rationale: str) -> int:
    """Steps of a derivation: lines, sentences and clauses (``;``), but every ``=`` of one counts, so ``"+4=7-2=5"`` has two.

    Blind to steps that share a sentence without a calculation, and a chain ``a = b = c`` counts as two.
    """
    parts = [part for part in STEP_END.split(rationale) if part.strip()]
    return sum(max(1, len(EQUALS.findall(part))) for part in parts)


def repeated_ngrams(rationale: str, n: int = NGRAM) -> float:
    """Share of the n-grams of words that occurred before in the same rationale; 0 if it has fewer than n words."""
    found = words(rationale)
    grams = [tuple(found[i : i + n]) for i in range(len(found) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def answer_leak(question: str, rationale: str, answer: str | None) -> bool | None:
    """Whether a rationale states its answer before any derivation; None without an answer.

    The opening of a rationale is all that comes before its first calculation: an ``=`` with a digit or an operator before it in the
    same step. Without one it is the first step (line, sentence or clause). It leaks if it asserts the answer (is nothing but the
    answer or ``=`` and the answer, or has it after "answer is", ``####`` or in ``\\boxed{}``), or mentions it though the question
    does not. So the toy's skipping style ``=6`` leaks where 6 is its answer, and ``+4=7-2=5`` does not.

    Blind to derivations in words alone after the first step, to an answer that is mentioned in other words or is a number of the
    question, and to single letters (options) that are not asserted.
    """
    if answer is None:
        return None
    opening, answer = _plain(_opening(rationale)), _plain(answer)
    value = re.escape(answer)
    # Bounded gaps: with \W* a rationale of nothing but "####" takes minutes.
    asserted = rf"^[\s=]*{value}[\s.]*$|(?:\banswer\b\W{{0,20}}(?:is\b)?|####|\\boxed\{{)\W{{0,20}}{value}(?!\w|\.\d)"
    if re.search(asserted, opening, re.IGNORECASE):
        return True
    return _mentions(opening, answer) and not _mentions(_plain(question), answer)


def agreement(rationale: str, answer: str | None) -> bool | None:
    """Whether a rationale ends in its answer: its last number, or its last result (a number after ``=``), has the same value.

    An answer may also be spelled by the last results in a row, as the toy's harder levels ask (``…=7-2=5-9=6`` and 756). None where
    the answer is no plain number. Blind to units, and to a last number that says something else (``… = 72 clips in 2 months``
    agrees with 72 and with 2).
    """
    wanted = _value(_plain(answer)) if answer is not None else None
    if wanted is None:
        return None
    text = _plain(rationale)
    results = [found[0] for part in EQUALS.split(text)[1:] if (found := NUMBER.match(part.strip(" $\\{(")))]
    last = results[-LONGEST:]
    spelled = ["".join(last[i:]) for i in range(len(last))]
    return wanted in [_value(number) for number in (*spelled, *NUMBER.findall(text)[-1:])]


def self_evaluation(rows: Rows, resamples: int = 2000, seed: int = 0) -> dict[str, float]:
    """How well log P(y*|x,z) tells right from wrong, as ``self_evaluation/…`` metrics of the finished rows that were judged.

    ``auroc``: the probability that a rationale whose sampled answer is right has the higher log P(y*|x,z), with a bootstrap interval
    over problems (``low``, ``high``). ``ece``: calibration error of P(y*|x,z) as the probability of a right answer, in ten bins.
    ``judged``: rows. Where the model that scores is the one that answers, P(y*|x,z) is that probability by definition (at temperature
    1, and if a right answer has one spelling); of a frozen θ behind another model's rationales it is what reward (i) believes.

    Args:
        rows: with ``id``, ``correct`` and ``logp_answer``, the log-likelihood of the gold answer.
        resamples: of the problems.
        seed: of the resampling.
    """
    rows = [row for row in _finished(rows) if row.get("logp_answer") is not None and row["correct"] is not None]
    right, scores = [row["correct"] for row in rows], [row["logp_answer"] for row in rows]
    if not rows:
        return {"self_evaluation/judged": 0}
    area = auroc_interval(right, scores, [row["id"] for row in rows], resamples=resamples, seed=seed)
    found = dict(zip(("auroc", "low", "high"), area, strict=True))
    found |= {"ece": calibration_error(reliability(right, np.exp(np.minimum(scores, 0.0)))), "judged": len(rows)}
    return {f"self_evaluation/{name}": value for name, value in found.items()}


def _finished(rows: Rows) -> list[dict[str, Any]]:
    return [row for row in rows if row.get("finished") is not False]


def _answer(row: dict[str, Any]) -> str | None:
    """The rationale's own answer; people's rationales have none apart from the gold one."""
    return row["prediction"] if row.get("answer_text") is not None or row.get("prediction") is not None else row["gold"]


def _opening(rationale: str) -> str:
    calculates = False
    for mark in DERIVATION.finditer(rationale):
        if mark.lastgroup == "equals" and calculates:
            return rationale[: mark.start()]
        if mark.lastgroup != "equals":
            calculates = mark.lastgroup is None  # a digit or an operator; the end of a step forgets it
    return next((part for part in STEP_END.split(rationale) if part.strip()), "")


def _mentions(text: str, answer: str) -> bool:
    wanted = _value(answer)
    if wanted is not None:
        return wanted in map(_value, NUMBER.findall(text))
    return len(answer) > 1 and re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE) is not None


def _plain(text: str) -> str:
    """Without thousands commas, currency and a typographic minus."""
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))|[$€£]", "", text).replace("−", "-").strip()


def _value(text: str) -> Fraction | None:
    return Fraction(text) if len(text) < LONGEST and NUMBER.fullmatch(text) else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if len(values) else math.nan
