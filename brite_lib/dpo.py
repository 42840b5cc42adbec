"""Latent DPO: preferences between samples (z, y) of one problem, thin over TRL's DPOTrainer (BRiTE eq. 3.6)."""

import json
import math
import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from trl import DPOConfig, DPOTrainer

from brite_lib import costs
from brite_lib.checkpointing import train_on
from brite_lib.errors import InputError
from brite_lib.files import atomic_write_text
from brite_lib.models import attach_lora, check_vocabulary, merged, warn_of_lost_steps
from brite_lib.params import DpoParams, resolve_path
from brite_lib.rollouts import generate, open_sampler, sample_seed
from brite_lib.sft import TrainerLog, on_one_gpu, trl_settings
from brite_lib.shared_batches import EachRowOnce
from brite_lib.tables import PAIRS, by_problem, read_pairs, write_table
from brite_lib.template import RationaleTemplate
from brite_lib.verify import not_judged

SHARED = ("id", "question", "gold", "source", "round", "prompt_ids")
PER_PAIR = (*(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")), "logps/chosen", "logps/rejected")
OF_EACH = ("rationale", "answer_text", "finished", "sample", "rationale_ids", "answer_ids")


def draw_pairs(
    problems: Sequence[dict[str, Any]], template: RationaleTemplate, params: DpoParams, directory: str | Path
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Sample N times per problem from the sampler, and :func:`make_pairs`; done once and kept in ``directory``. Or read ``params.pairs``.

    Args:
        directory: where an interrupted run of the same parameters and inputs left ``pairs.parquet``, if it came so far.

    Raises:
        InputError: if the sampler has other tokens than the model, or no problem has a contrast; if the pairs to be read are none, or
            have tokens that the model lacks.
    """
    if params.pairs:
        return _given_pairs(params.pairs, len(template.tokenizer))
    table, report_path = Path(directory) / "pairs.parquet", Path(directory) / "pairs.json"
    if not table.is_file():
        if params.sampler:
            check_vocabulary("sampler", params.sampler, template, params.model)
        before = costs.spent()
        seed = sample_seed(params.seed, "dpo", params.round)
        options = {**params.generation, "seed": seed, "source": params.stage}
        with open_sampler(params.sampler or params.model, **params.drawing) as sampler:
            samples = generate(sampler, problems, template, params.samples, params.temperature, **options)
        pairs, report = make_pairs(samples.to_list(), seed)
        atomic_write_text(report_path, json.dumps({"report": report, "flops": costs.spent() - before}))
        write_table(pairs, PAIRS, table)  # last: with it all is there
    else:
        costs.add(json.loads(report_path.read_text(encoding="utf-8"))["flops"])
    return read_pairs(table), json.loads(report_path.read_text(encoding="utf-8"))["report"]


def _given_pairs(path: str, vocabulary: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    path = resolve_path(path)
    pairs = read_pairs(path)
    if not pairs:
        raise InputError(f"pairs: {path}: has no pair")
    for number, pair in enumerate(pairs, start=1):
        ids = _token_ids(pair)
        if max(max(values, default=0) for values in ids.values()) >= vocabulary:
            raise InputError(f"pairs: {path}: row {number}: has token ids of another model: this one has {vocabulary} tokens")
    return pairs, {"problems": len({pair["id"] for pair in pairs}), "pairs": len(pairs), "tokens": 0}


def make_pairs(rows: Sequence[dict[str, Any]], seed: int = 0) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """One random correct and one random incorrect sample of each problem that has both (the authors' rule, paper.md section 1.6).

    An unfinished sample is an incorrect one: it has no answer, and the log-probability of what was sampled of it is as well
    defined as any other. The draw has a seed of its own for each problem, so it does not depend on which others there are.

    Args:
        rows: judged samples as :func:`brite_lib.rollouts.generate` makes them; one that could not be judged is in no pair.

    Returns:
        rows of ``pairs.parquet``, and a report: ``problems``, ``pairs``, ``all_correct`` and ``all_wrong`` (problems without a
        contrast), ``draws``, ``tokens``, ``correct``, ``not_judged`` and ``finished`` (shares of all draws).

    Raises:
        InputError: if no problem has a contrast.
    """
    judged = by_problem(row for row in rows if row["correct"] is not None)  # the others are neither preferred nor rejected
    problems = [tuple([row for row in group if row["correct"] == verdict] for verdict in (True, False)) for group in judged]
    report = {
        "problems": len(problems),
        "pairs": sum(bool(right and wrong) for right, wrong in problems),
        "all_correct": sum(not wrong for _, wrong in problems),
        "all_wrong": sum(not right for right, _ in problems),
        "draws": len(rows),
        "tokens": sum(row["num_tokens"] for row in rows),
        "correct": sum(row["correct"] is True for row in rows) / max(1, len(rows)),
        "not_judged": not_judged([row["correct"] for row in rows]),
        "finished": sum(row["finished"] for row in rows) / max(1, len(rows)),
    }
    if not report["pairs"]:
        raise InputError(
            f"samples: none of {len(problems)} problems has both a correct and an incorrect sample ({report['all_correct']} have only "
            f"correct, {report['all_wrong']} only incorrect ones), so there is no pair to learn from; raise samples or change the data"
        )
    return [_pair(right, wrong, seed) for right, wrong in problems if right and wrong], report


def rationale_dpo(
    model: nn.Module,
    pairs: Sequence[dict[str, Any]],
    template: RationaleTemplate,
    params: DpoParams,
    checkpoints: str | Path,
    log: Callable[..., None] | None = None,
) -> tuple[nn.Module, dict[str, float]]:
    """Minimise −log σ(β[log Q/P(z⁺,y⁺|x) − log Q/P(z⁻,y⁻|x)]), Q the learning model, P the model as it comes in.

    Each log-probability is a sum over the sampled tokens of z, boundary and y with its end token. P is a frozen copy, or with LoRA
    the model with the adapter off; adapters that the model carries are merged first. Resumes from the newest checkpoint below
    ``checkpoints``, for which ``model`` must be the one that the interrupted run started from.

    Args:
        pairs: rows of ``pairs.parquet``.
        log: called as ``log(step, loss=…, …)``; ``rewards/margins`` is β times the bracket in nats, ``rewards/accuracies`` the
            share of pairs in which it is positive, both means over the step's pairs before its update.

    Returns:
        the trained model and metrics: ``loss``, ``reward_margin``, ``reward_accuracy`` (of the last step), ``steps``,
        ``tokens_trained``.
    """
    if params.lora:
        torch.manual_seed(params.seed)  # of the adapter's first weights
        model = attach_lora(model, params.lora)
    elif isinstance(model, PeftModel):
        model = merged(model).requires_grad_(True)  # PEFT froze them
    warn_of_lost_steps(model, params.learning_rate)
    dataset = Dataset.from_list([_token_ids(pair) for pair in pairs])
    tuned = _ReadyTokens(
        model=model,
        ref_model=None if params.lora else deepcopy(model),
        args=on_one_gpu(DPOConfig(**trl_settings(params, checkpoints), beta=params.beta)),
        train_dataset=dataset,
        processing_class=template.tokenizer,
        callbacks=[TrainerLog(log)] if log else None,
    )
    if params.lora:
        tuned.model.delete_adapter("ref")  # TRL's copy of the new adapter; without it the reference is the adapter off, which is the same
    train_on(tuned, checkpoints)
    _count(tuned.model, dataset, params.epochs)
    last = [entry for entry in tuned.state.log_history if "loss" in entry][-1]
    return tuned.model, {
        "loss": last["loss"],
        "reward_margin": last["rewards/margins"],
        "reward_accuracy": last["rewards/accuracies"],
        "steps": tuned.state.global_step,
        "tokens_trained": round(sum(len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in dataset) * params.epochs),
    }


def _count(model: nn.Module, dataset: Dataset, epochs: float) -> None:
    """Count a forward and backward pass of Q, and a forward pass of P, over all pairs and epochs, also after a resume."""
    sides = [(len(row["prompt_ids"]), len(row[f"{side}_ids"])) for row in dataset for side in ("chosen", "rejected")]
    work = [prompt + completion for prompt, completion in sides], sum(completion for _, completion in sides)
    cost = costs.ModelCost.of(model)
    costs.add(round(epochs * (cost.training(*work) + cost.forward(*work))))


class _ReadyTokens(EachRowOnce, DPOTrainer):
    """DPOTrainer on columns that hold token ids: TRL 1.16 would look for texts and tokenise them.

    Its loss, and the rewards it logs, are means over the pairs of a step. TRL's are means over micro-batches of their means.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = True  # the number of pairs comes to compute_loss, which divides by it

    def _prepare_dataset(self, dataset: Dataset, *args: Any) -> Dataset:
        return dataset

    def get_batch_samples(self, *args: Any) -> tuple[list[dict[str, Tensor]], Tensor]:
        """The micro-batches of a step, and its number of pairs in all processes."""
        batches, _ = super().get_batch_samples(*args)
        return batches, self.accelerator.reduce(sum(map(_real_pairs, batches)))

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """This micro-batch's part of the step's mean; a pair without targets, which TRL counts too, has no gradient and the loss log 2."""
        rows, real = len(inputs["completion_mask"]) // 2, _real_pairs(inputs)
        loss = super().compute_loss(model, inputs) * rows - (rows - real) * math.log(2)
        processes = self.accelerator.num_processes  # whose gradients, and logged losses, are averaged
        weight = rows * processes * self.current_gradient_accumulation_steps / num_items_in_batch.item()
        for name in PER_PAIR:
            self._metrics["train"][name][-1] *= weight
        return loss * processes / num_items_in_batch


def _real_pairs(batch: dict[str, Tensor]) -> Tensor:
    """How many pairs of a micro-batch have targets; the mask is (2B, T), the chosen sides first."""
    chosen, _ = batch["completion_mask"].chunk(2)
    return chosen.any(1).sum()


def _pair(right: list[dict[str, Any]], wrong: list[dict[str, Any]], seed: int) -> dict[str, Any]:
    draw = random.Random(sample_seed(seed, "pair", right[0]["id"]))
    chosen, rejected = draw.choice(right), draw.choice(wrong)
    return {
        **{name: chosen[name] for name in SHARED},
        "num_samples": len(right) + len(wrong),
        "num_correct": len(right),
        **{f"chosen_{name}": chosen[name] for name in OF_EACH},
        **{f"rejected_{name}": rejected[name] for name in OF_EACH},
    }


def _token_ids(pair: dict[str, Any]) -> dict[str, list[int]]:
    """The columns that TRL's collator reads; the completion is z with its boundary and y with its end token, as sampled."""
    return {"prompt_ids": pair["prompt_ids"]} | {
        f"{side}_ids": [*pair[f"{side}_rationale_ids"], *pair[f"{side}_answer_ids"]] for side in ("chosen", "rejected")
    }
