"""Rejection family: rationales that θ itself samples and whose answer is right (paper.md sections 1.4 and 1.6).

RS-EM (eq. 3.7) maximises E_{(z,y)~P_θ(.|x)}[P(o=1|x,z,y) · log P_θ'(z,y|x)]; the strategies are its special cases:

- ``rs``, the paper's: P(o=1) = 1{y right}, one random correct (z, y) per problem. What is kept given a hit is an exact draw
  from the posterior, so a perfect Q equals it wherever there is a hit; problems without one are what it misses.
- ``raft`` (RAFT, RFT): all correct ones, each different (z, y) once. This evens out what θ likes best.
- ``star`` (STaR): as ``rs``, and problems without a hit are sampled again with the answer shown. The hint is taken off what is
  learned; such a rationale is a draw from P(z | x, hint, y right), not from the posterior.
- ``rest_em`` (ReST-EM, eq. 3.8): P(o=1) = exp(R/β), up to a constant that does not matter: all samples, weighted by it.
"""

import random
from collections.abc import Sequence
from typing import Any

from brite_lib.errors import InputError
from brite_lib.params import RejectionParams
from brite_lib.rollouts import Sampler, generate, sample_seed
from brite_lib.tables import by_problem
from brite_lib.template import RationaleTemplate

Rows = list[dict[str, Any]]


def check_hint(template: RationaleTemplate, params: RejectionParams) -> None:
    """Refuse ``star`` where nobody said how the answer is shown; call it before a model is loaded.

    A chat model reads any text, so there the default hint will do.

    Raises:
        InputError: one sentence.
    """
    if params.strategy == "star" and not template.chat and "hint_prompt" not in template.formats.model_fields_set:
        raise InputError("template: strategy star shows the answer as a hint, but this template has no hint_prompt; give it as a field")


def reject(
    model: Sampler, problems: Sequence[dict[str, Any]], template: RationaleTemplate, params: RejectionParams, source: str
) -> tuple[Rows, dict[str, float]]:
    """What the strategy keeps of N samples per problem.

    With ``until_hit``, problems without a hit are sampled again in rounds of N, up to ``max_samples`` each.

    Returns:
        the kept rows (rationale table without log-probabilities; ``source`` ends in ``_hint`` where the answer was shown, and
        ``rest_em`` fills ``reward`` with R/β), and a report: ``problems``, ``hits`` (problems with a correct sample),
        ``rationalised`` (problems that only the hint helped), ``missed`` (share without either), ``kept`` (rows), ``duplicates``
        (correct ones that only repeat another), ``draws`` (rationales sampled), ``tokens``, ``correct`` (share of draws without hint).
    """
    check_hint(template, params)
    kept: Rows = []
    report = {"rationalised": 0, "duplicates": 0, "draws": 0, "tokens": 0}

    def attempt(tried: Rows, count: int, first_sample: int, hint: bool = False) -> tuple[Rows, int]:
        """Sample each problem ``count`` times and keep what the strategy wants; the problems without a hit, and the correct draws."""
        samples = _sample(model, tried, template, params, source, count, first_sample, hint)
        correct = [row for row in samples if row["correct"]]
        chosen = [row for rows in by_problem(samples) for row in _keep(rows, params, template)]
        kept.extend(chosen)
        report["draws"] += len(samples)
        report["tokens"] += sum(row["num_tokens"] for row in samples)
        report["duplicates"] += len(correct) - len(chosen) if params.strategy == "raft" else 0
        report["rationalised"] += len(chosen) if hint else 0
        hits = {row["id"] for row in correct}
        return [problem for problem in tried if problem["id"] not in hits], len(correct)

    open_problems, drawn, correct = [dict(problem) for problem in problems], 0, 0
    most = params.max_samples if params.until_hit else params.samples
    while open_problems and drawn < most:
        count = min(params.samples, most - drawn)
        open_problems, right = attempt(open_problems, count, drawn)
        drawn, correct = drawn + count, correct + right
    hits, plain_draws = len(problems) - len(open_problems), report["draws"]
    if params.strategy == "star" and open_problems:
        open_problems, _ = attempt(open_problems, params.samples, drawn, hint=True)
    return kept, {
        "problems": len(problems),
        "hits": hits,
        "missed": len(open_problems) / len(problems),
        "kept": len(kept),
        **report,
        "correct": correct / max(1, plain_draws),
    }


def _sample(
    model: Sampler,
    problems: Rows,
    template: RationaleTemplate,
    params: RejectionParams,
    source: str,
    count: int,
    first_sample: int,
    hint: bool,
) -> Rows:
    source = f"{source}_hint" if hint else source
    options = {**params.generation, "seed": params.noise_seed, "source": source, "first_sample": first_sample, "hint": hint}
    samples = generate(model, problems, template, count, params.temperature, **options).to_list()
    # What is learned from a rationale that had the hint has to work without it.
    return [{**row, "prompt_ids": template.prompt_ids(row["question"])} for row in samples] if hint else samples


def _keep(rows: Rows, params: RejectionParams, template: RationaleTemplate) -> Rows:
    """What the strategy keeps of one problem's samples."""
    correct = [row for row in rows if row["correct"]]
    chance = random.Random(sample_seed(params.noise_seed, "keep", rows[0]["id"]))
    if params.strategy == "raft":
        different: dict[tuple[tuple[int, ...], ...], dict[str, Any]] = {}
        for row in correct:
            different.setdefault((tuple(row["rationale_ids"]), tuple(row["answer_ids"])), row)
        return list(different.values())
    if params.strategy == "rest_em":
        # Without the end of y there is nothing to judge: P(o=1) = 0.
        judged = [row for row in rows if row["correct"] is not None and row["answer_ids"] and row["answer_ids"][-1] in template.stop_ids]
        weighted = correct if params.beta is None else judged
        weighted = chance.sample(weighted, min(params.max_per_problem, len(weighted)))
        return [{**row, "reward": float(row["correct"]) / (params.beta or 1.0)} for row in sorted(weighted, key=lambda row: row["sample"])]
    return [chance.choice(correct)] if correct else []
