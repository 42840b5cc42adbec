"""DRR: distil the Reasoner's behaviour, reinforce a discriminator with it, reason with its feedback (paper.md section 3).

A *Reasoner* θ, never trained here, attempts a problem turn by turn. A *judge* scores each attempt: accept stops, reject
shows the Reasoner its rejected attempts and asks for another one. One loop (:func:`reason_with_feedback`) serves all:

- step 1, distil: the judge is the rule that knows the gold answer (:func:`collect_behaviour`);
- step 2, reinforce: a light classifier learns these labels (:func:`train_discriminator`);
- step 3, reason: the judge is that classifier; at the cap the attempt with the highest score wins.

Baselines of the same loop have other judges (:mod:`brite_lib.judges`): the Reasoner itself, or one that rejects everything.

What the discriminator reads is the conversation in the very tokens the Reasoner read and wrote: its prompt (x, or x with the
rejected attempts in the template's ``retry_prompt``), then z, boundary, y and end token. Nothing is written anew, so it starts from a
model that knows this text; only one with another vocabulary gets the same text in its own tokens. The judge format of the template is
for self-critique alone. The paper does not say what happens at the cap, nor gives threshold, cap or prompts: these are choices.
"""

import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, set_seed

from brite_lib import costs
from brite_lib.checkpointing import train_on
from brite_lib.errors import InputError
from brite_lib.judges import Discriminator, Judge, Row, attempt_text, by_rule
from brite_lib.likelihood import pad_sequences
from brite_lib.params import DrrParams
from brite_lib.progress import progress
from brite_lib.roc import auroc, best_threshold, error_rates
from brite_lib.rollouts import Sampler, judged_rows, sample, sample_seed
from brite_lib.sft import TrainerLog, on_one_gpu, trainer_settings
from brite_lib.stats import bootstrap_ci, majority_at_k
from brite_lib.tables import RATIONALES, by_problem
from brite_lib.template import RationaleTemplate

ATTEMPTS = pa.schema(
    [
        *(field for field in RATIONALES if not field.name.startswith(("logp_", "reward", "advantage", "value", "tokens"))),
        pa.field("turn", pa.int32(), nullable=False),  # counted from 1
        pa.field("rejected", pa.list_(pa.string()), nullable=False),  # attempts before this one, as the prompt shows them
        pa.field("score", pa.float64(), nullable=False),  # of the judge: P(right)
        pa.field("accepted", pa.bool_(), nullable=False),
        pa.field("chosen", pa.bool_(), nullable=False),  # the final answer of its problem and chain
        pa.field("judge_tokens", pa.int32(), nullable=False),  # written by the judge
        pa.field("tokens_read", pa.int32(), nullable=False),  # prompts of Reasoner and judge
    ]
)


def collect_behaviour(reasoner: Sampler, problems: Sequence[Row], template: RationaleTemplate, params: DrrParams) -> list[Row]:
    """Step 1: attempts at training problems, turn by turn until right or the cap, ``chains`` times each.

    Returns:
        rows of :data:`ATTEMPTS`; ``accepted`` is the label, by the final answer alone.
    """
    return reason_with_feedback(reasoner, by_rule, problems, template, params, chains=params.chains)


def reason_with_feedback(
    reasoner: Sampler, discriminator: Judge, problems: Sequence[Row], template: RationaleTemplate, params: DrrParams, chains: int = 1
) -> list[Row]:
    """Step 3: attempt each problem until the judge accepts or the cap ``turns``; then the attempt with the highest score wins.

    A turn is one batch over all open problems. Every attempt has its own seed (problem, chain, turn), so judges are compared on the
    same first attempts.

    Args:
        discriminator: a :class:`Discriminator`, or any other judge.
        chains: how often each problem is attempted from the start.

    Returns:
        rows of :data:`ATTEMPTS` by problem, chain (``sample``) and turn, exactly one ``chosen`` per problem and chain.
    """
    problems = [dict(problem) for problem in problems]
    ways: dict[tuple[int, int], list[Row]] = {(place, chain): [] for place in range(len(problems)) for chain in range(chains)}
    waiting = list(ways)
    for turn in progress(range(1, params.turns + 1), desc="turns"):
        rows = _attempts(reasoner, [(problems[place], chain, ways[place, chain]) for place, chain in waiting], turn, template, params)
        for way, row, judgement in zip(waiting, rows, discriminator(rows) if rows else [], strict=True):
            row |= {"score": judgement.score, "accepted": judgement.accepted, "judge_tokens": judgement.written}
            row["tokens_read"] = len(row["prompt_ids"]) + judgement.read
            ways[way].append(row)
        waiting = [way for way in waiting if not ways[way][-1]["accepted"]]
    attempts = [row for way in ways.values() for row in way]
    final = {id(row) for row in final_answers(attempts)}
    return [{**row, "chosen": id(row) in final} for row in attempts]


def _attempts(
    reasoner: Sampler, jobs: Sequence[tuple[Row, int, list[Row]]], turn: int, template: RationaleTemplate, params: DrrParams
) -> list[Row]:
    """One more attempt for each (problem, chain, attempts rejected so far)."""
    rejected = [[attempt_text(row, template) for row in before] for _, _, before in jobs]
    prompts = [template.prompt_ids(problem["question"], rejected=texts) for (problem, _, _), texts in zip(jobs, rejected, strict=True)]
    seeds = [sample_seed(params.seed, problem["id"], chain, turn) for problem, chain, _ in jobs]
    limit = params.max_rationale_tokens + params.max_answer_tokens
    sampled = sample(reasoner, template, prompts, seeds, params.temperature, limit, batch_size=params.batch_size) if jobs else []
    completions = [template.split(ids, params.max_rationale_tokens, params.max_answer_tokens) for ids in sampled]
    judged = judged_rows([problem for problem, _, _ in jobs], completions, params.answer_kind, template)
    rows = []
    for row, (_, chain, _), texts, prompt, seed, ids in zip(judged, jobs, rejected, prompts, seeds, sampled, strict=True):
        row |= {"source": params.method, "round": params.round, "sample": chain, "seed": seed, "num_tokens": len(ids)}
        rows.append({**row, "prompt_ids": prompt, "turn": turn, "rejected": texts})
        del rows[-1]["tokens"]
    return rows


def final_answers(rows: Sequence[Row], turns: int | None = None) -> list[Row]:
    """What each problem and chain ends with at a cap of ``turns``: the accepted attempt, else the highest-scored (of equals the latest)."""
    ways: dict[tuple[str, int], list[Row]] = {}
    for row in rows:
        if turns is None or row["turn"] <= turns:
            ways.setdefault((row["id"], row["sample"]), []).append(row)
    return [max(way, key=lambda row: (row["accepted"], row["score"], row["turn"])) for way in ways.values()]


def by_turns(rows: Sequence[Row], turns: int) -> list[dict[str, float]]:
    """What a cap of 1, 2, … ``turns`` would give: ``accuracy``, and ``tokens_generated`` and ``tokens_read`` per problem and chain.

    Tokens are those of the Reasoner and of the judge together. An attempt does not depend on the cap, so one run holds all caps.
    """
    table = []
    for cap in range(1, turns + 1):
        answers, spent = final_answers(rows, cap), [row for row in rows if row["turn"] <= cap]
        table.append(
            {
                "turns": cap,
                "accuracy": sum(row["correct"] is True for row in answers) / len(answers),
                "tokens_generated": sum(row["num_tokens"] + row["judge_tokens"] for row in spent) / len(answers),
                "tokens_read": sum(row["tokens_read"] for row in spent) / len(answers),
            }
        )
    return table


def vote_by_samples(samples: Sequence[Row]) -> list[dict[str, Any]]:
    """Majority votes of the first 1, 2, … samples of each problem (rows of ``generate``), for comparison at equal tokens.

    Returns:
        rows with ``samples``, ``values`` ((problems,) expected accuracies), ``accuracy`` (their mean), ``tokens_generated`` and
        ``tokens_read`` per problem; samples of one problem read their prompt once.
    """
    problems = by_problem(samples)
    predictions, correct = ([[row[name] for row in group] for group in problems] for name in ("prediction", "correct"))
    read = sum(len(group[0]["prompt_ids"]) for group in problems) / len(problems)
    table = []
    for k in range(1, min(map(len, predictions)) + 1):
        values = majority_at_k(predictions, correct, k)
        written = sum(row["num_tokens"] for group in problems for row in group[:k]) / len(problems)
        table.append({"samples": k, "values": values, "accuracy": float(values.mean()), "tokens_generated": written, "tokens_read": read})
    return table


def vote_at_budget(table: Sequence[dict[str, Any]], tokens: float, with_reading: bool = False) -> tuple[NDArray[np.float64], float]:
    """The vote that spends as many tokens per problem: a random share of the problems has k samples, the rest k + 1.

    Args:
        table: of :func:`vote_by_samples`.
        tokens: budget per problem; beyond the table's last row, that row.
        with_reading: whether tokens read count too.

    Returns:
        (problems,) expected accuracies, and the mean number of samples.
    """
    costs = [row["tokens_generated"] + with_reading * row["tokens_read"] for row in table]
    place = float(np.interp(tokens, costs, range(len(costs))))
    low, high = table[math.floor(place)], table[math.ceil(place)]
    share = place - math.floor(place)
    return (1 - share) * low["values"] + share * high["values"], place + 1


def compare(runs: dict[str, Sequence[Row]], votes: Sequence[Row], params: DrrParams) -> dict[str, dict[str, float]]:
    """Accuracies of one chain per problem, each with a bootstrap interval over problems.

    Args:
        runs: rows of :func:`reason_with_feedback` by judge, that of DRR under ``params.method``; all on the same problems.
        votes: samples of the same problems, for the majority vote.

    Returns:
        ``accuracy``, ``low`` and ``high`` of ``single`` (the first attempts), each judge, ``vote/written`` and ``vote/written+read``
        (which spend as many tokens as DRR, with ``samples``), and the differences of DRR to ``single`` and to both votes.
    """
    drr, table = runs[params.method], vote_by_samples(votes)
    spent = by_turns(drr, params.turns)[-1]
    written, read = spent["tokens_generated"], spent["tokens_read"]
    values = {"single": _right([row for row in drr if row["turn"] == 1])}
    values |= {name: _right(final_answers(rows)) for name, rows in runs.items()}
    values["vote/written"], few = vote_at_budget(table, written)
    values["vote/written+read"], many = vote_at_budget(table, written + read, with_reading=True)
    for name in ("single", "vote/written", "vote/written+read"):
        values[f"{params.method} − {name}"] = values[params.method] - values[name]
    found = {}
    for name, per_problem in values.items():
        interval = bootstrap_ci(per_problem, resamples=params.bootstrap, seed=params.seed)
        found[name] = dict(zip(("accuracy", "low", "high"), interval, strict=True))
    found["vote/written"]["samples"], found["vote/written+read"]["samples"] = few, many
    return found


def _right(rows: Sequence[Row]) -> NDArray[np.float64]:
    return np.array([float(row["correct"] is True) for row in rows])


def read_attempts(path: str | Path) -> list[Row]:
    """The rows of a table of :data:`ATTEMPTS` that this stage wrote."""
    return pq.read_table(path).to_pylist()


def train_discriminator(
    rows: Sequence[Row],
    base: str | Path,
    template: RationaleTemplate,
    params: DrrParams,
    checkpoints: str | Path,
    log: Callable[..., None] | None = None,
) -> tuple[Discriminator, dict[str, float]]:
    """Step 2: train a classifier on attempts labelled by the rule; resumes from the newest checkpoint below ``checkpoints``.

    The loss is cross-entropy in which both classes weigh the same, reject ``false_accept_weight`` times as much. A share of
    the problems is held out, and the threshold chosen on it.

    Args:
        rows: of :func:`collect_behaviour`.
        base: directory or hub name of the model it starts from.
        log: called as ``log(step, loss=…, …)``.

    Returns:
        the discriminator and metrics: ``loss``, ``steps``, ``tokens_trained`` (read in training), ``attempts`` (all labelled ones),
        ``accept_share``, ``threshold``, and on the held-out problems ``validation/auroc``, ``validation/false_accept`` and
        ``validation/false_reject``.

    Raises:
        InputError: before any training, if the attempts to learn from or the held-out ones are all right or all wrong.
    """
    learned, held_out = hold_out(rows, params)
    _check_classes(learned, "to learn from")
    _check_classes(held_out, "held out to choose the threshold on")
    set_seed(params.seed)
    judge = Discriminator.load(base, template, params.device, batch_size=params.batch_size)
    labels = [int(row["accepted"]) for row in learned]
    accept_share = sum(labels) / len(labels)
    weights = torch.tensor([params.false_accept_weight / (1 - accept_share), 1 / accept_share])
    weights /= params.false_accept_weight + 1  # a mean of 1 over the attempts
    tuned = Trainer(
        model=judge.model,
        args=on_one_gpu(TrainingArguments(**trainer_settings(params, checkpoints))),
        train_dataset=[{"ids": judge.input_ids(row), "label": label} for row, label in zip(learned, labels, strict=True)],
        data_collator=lambda batch: _collate(batch, judge.pad_id),
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: _weighted_loss(outputs, labels, weights, num_items_in_batch),
        callbacks=[TrainerLog(log)] if log else None,
    )
    train_on(tuned, checkpoints)
    read = [len(judge.input_ids(row)) for row in learned]
    costs.add(round(params.epochs * costs.ModelCost.of(judge.model).training(read, logits=0)))  # all of it, also after a resume
    judge.log_weight_ratio = float(torch.log(weights[0] / weights[1]))
    truth, scores = [row["accepted"] for row in held_out], judge.scores(held_out)
    judge.threshold = best_threshold(truth, scores, params.false_accept_weight) if params.threshold is None else params.threshold
    losses = [entry["loss"] for entry in tuned.state.log_history if "loss" in entry]
    errors = error_rates(truth, [value >= judge.threshold for value in scores])
    return judge, {
        "loss": losses[-1] if losses else float("nan"),
        "steps": tuned.state.global_step,
        "tokens_trained": round(sum(read) * params.epochs),
        "attempts": len(rows),
        "accept_share": accept_share,
        "threshold": judge.threshold,
        "validation/auroc": auroc(truth, scores),
        **{f"validation/{name}": value for name, value in errors.items()},
    }


def hold_out(rows: Sequence[Row], params: DrrParams) -> tuple[list[Row], list[Row]]:
    """Attempts to learn from and held-out ones, split by problem, at random with the stage's seed."""
    names = sorted({row["id"] for row in rows})
    random.Random(sample_seed(params.seed, "hold out")).shuffle(names)
    chosen = set(names[: round(params.validation_share * len(names))])
    return [row for row in rows if row["id"] not in chosen], [row for row in rows if row["id"] in chosen]


def _check_classes(rows: Sequence[Row], what: str) -> None:
    right = sum(row["accepted"] for row in rows)
    if right in (0, len(rows)):
        found = f"all {len(rows)} attempts {what} are {'right' if right else 'wrong'}" if rows else f"there are no attempts {what}"
        raise InputError(f"behaviour: {found}, but a discriminator needs both; use more or other problems, chains or turns")


def _collate(batch: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    padded = pad_sequences([row["ids"] for row in batch], torch.device("cpu"), pad_id=pad_id)
    return {
        "input_ids": padded.input_ids,
        "attention_mask": padded.attention_mask,
        "labels": torch.tensor([row["label"] for row in batch]),
    }


def _weighted_loss(outputs: Any, labels: Tensor, weights: Tensor, count: Tensor | int | None) -> Tensor:
    """Class-weighted cross-entropy, summed and divided by the attempts of the whole optimiser step."""
    total = nn.functional.cross_entropy(outputs.logits.float(), labels, weights.to(labels.device), reduction="sum")
    return total / (len(labels) if count is None else count)
