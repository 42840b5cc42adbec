"""Rejection sampling: rationales that θ itself samples and whose answer is right (paper.md sections 1.4 and 1.6).

What is kept given a hit is an exact draw from the posterior P(z|x, y = y*; θ). A perfect Q can therefore equal it
wherever there is a hit; problems without one are what rejection sampling misses.
"""

import random
from collections.abc import Sequence
from typing import Any

from torch import nn

from brite_lib.params import RejectionParams
from brite_lib.rollouts import generate, sample_seed
from brite_lib.template import RationaleTemplate


def reject(
    model: nn.Module, problems: Sequence[dict[str, Any]], template: RationaleTemplate, params: RejectionParams, source: str
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One random correct rationale for each problem that has one.

    With ``until_hit``, problems without a hit are sampled again in rounds of N, up to ``max_samples`` each.

    Returns:
        the kept rows (rationale table without log-probabilities), and a report: ``problems``, ``hits``, ``missed`` (share without
        a hit), ``draws`` (rationales sampled), ``tokens``, ``correct`` (share of all draws).
    """
    kept: list[dict[str, Any]] = []
    report = {"draws": 0, "tokens": 0, "correct_draws": 0}
    open_problems, drawn = list(problems), 0
    while open_problems and drawn < (params.max_samples if params.until_hit else params.samples):
        samples = generate(
            model, open_problems, template, params.samples, params.temperature,
            params.max_rationale_tokens + params.max_answer_tokens, seed=params.seed, max_rationale_tokens=params.max_rationale_tokens,
            max_answer_tokens=params.max_answer_tokens, answer_kind=params.answer_kind, source=source, round=params.round,
            first_sample=drawn, batch_size=params.batch_size,
        )  # fmt: skip
        drawn += params.samples
        hits: dict[str, list[int]] = {}
        for row, (problem_id, correct) in enumerate(zip(samples["id"], samples["correct"], strict=True)):
            if correct:
                hits.setdefault(problem_id, []).append(row)
        for problem_id, rows in hits.items():
            kept.append(samples[random.Random(sample_seed(params.seed, "keep", problem_id)).choice(rows)])
        report["draws"] += len(samples)
        report["tokens"] += sum(samples["num_tokens"])
        report["correct_draws"] += sum(samples["correct"])
        open_problems = [problem for problem in open_problems if problem["id"] not in hits]
    return kept, {
        "problems": len(problems),
        "hits": len(kept),
        "missed": len(open_problems) / len(problems),
        "draws": report["draws"],
        "tokens": report["tokens"],
        "correct": report["correct_draws"] / max(1, report["draws"]),
    }
