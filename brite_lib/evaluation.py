"""Evaluation: greedy and sampled answers of one model on one benchmark."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from brite_lib.params import EvalParams
from brite_lib.rollouts import Sampler, add_scores, generate
from brite_lib.stats import bootstrap_ci, majority_at_k
from brite_lib.tables import PREDICTIONS, by_problem
from brite_lib.template import RationaleTemplate
from brite_lib.tiny_base import accuracy_by_style
from brite_lib.verify import not_judged


def evaluate(
    model: Sampler, reference: nn.Module, problems: Sequence[dict[str, Any]], template: RationaleTemplate, params: EvalParams
) -> list[dict[str, Any]]:
    """Rows of ``predictions.parquet``: k samples per problem at ``temperature``, and one greedy sample at temperature 0.

    ``logp_answer`` is log P(y*|x,z) of the gold answer under ``reference`` after the sampled rationale.
    """
    rows = []
    settings = {"seed": params.seed, "source": params.method, "answer_from": params.answer_from, **params.generation}
    for temperature, n in [(params.temperature, params.samples)] * (params.samples > 0) + [(0.0, 1)] * params.greedy:
        samples = generate(model, problems, template, n, temperature, **settings)
        scored = add_scores(samples.to_list(), template, reference, batch_size=params.batch_size)
        rows += [{**row, "temperature": temperature, "benchmark": params.benchmark} for row in scored]
    return [{name: row[name] for name in PREDICTIONS.names if name in row} for row in rows]


def summary(rows: Sequence[dict[str, Any]], params: EvalParams) -> dict[str, float]:
    """Metrics of one evaluation with bootstrap intervals over problems; ``results.json`` is made of the rows themselves.

    ``not_judged`` is the share of all answers that the verifier could not judge; they count as wrong.
    """
    sampled = [row for row in rows if row["temperature"] > 0]
    greedy = [row for row in rows if row["temperature"] == 0]
    metrics: dict[str, float] = {}
    if groups := by_problem(sampled):
        means = [sum(row["correct"] is True for row in group) / len(group) for group in groups]
        interval = bootstrap_ci(means, resamples=params.bootstrap, seed=params.seed)
        metrics |= dict(zip(("pass@1", "pass@1/low", "pass@1/high"), map(float, interval), strict=True))
        votes = ([[row[name] for row in group] for group in groups] for name in ("prediction", "correct"))
        metrics[f"maj@{params.samples}"] = float(majority_at_k(*votes).mean())
        metrics |= _means("sampled", sampled)
    if greedy:
        metrics["greedy"] = sum(row["correct"] is True for row in greedy) / len(greedy)
    metrics["not_judged"] = not_judged([row["correct"] for row in rows])
    return metrics


def _means(prefix: str, rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    likelihoods = [row["logp_answer"] for row in rows if row["logp_answer"] is not None]
    return {
        f"{prefix}/tokens": sum(row["num_tokens"] for row in rows) / len(rows),
        f"{prefix}/finished": sum(row["finished"] for row in rows) / len(rows),
        f"{prefix}/logp_answer": sum(likelihoods) / len(likelihoods) if likelihoods else float("nan"),
    }


def style_counts(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Share and accuracy of each rationale style among the sampled rows (toy task only)."""
    return accuracy_by_style([row for row in rows if row["temperature"] > 0])
