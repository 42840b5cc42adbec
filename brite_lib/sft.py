"""The θ-update: supervised fine-tuning on (x, z, y*), thin over TRL's SFTTrainer (BRiTE eq. 3.5)."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import TrainerCallback, TrainingArguments
from trl import SFTConfig, SFTTrainer

from brite_lib import costs
from brite_lib.checkpointing import train_on
from brite_lib.errors import InputError
from brite_lib.models import attach_lora, warn_of_lost_steps
from brite_lib.params import DpoParams, DrrParams, ThetaParams, resolve_path
from brite_lib.problems import load_problems
from brite_lib.shared_batches import EachRowOnce, number_of_ranks, share
from brite_lib.tables import read_rationales
from brite_lib.template import RationaleTemplate

OF_THE_SAMPLER = ("prompt_ids", "rationale_ids", "answer_ids", "tokens", "logp_theta", "logp_psi", "logp_answer", "advantage", "value")


def load_rows(params: ThetaParams) -> list[dict[str, Any]]:
    """The rows of ``params.rationales``, or the data's own rationales."""
    if params.rationales == "human":
        return human_rows(load_problems(params.data, params.split, params.limit), params.data)
    rows = read_rationales(resolve_path(params.rationales))
    return texts_only(rows) if params.retokenise else rows


def training_rows(
    rows: Sequence[dict[str, Any]], template: RationaleTemplate, correct_only: bool = False, reward_weighted: bool = False
) -> Dataset:
    """Sequences x·z·y* with labels on z and y* only (``input_ids``, ``labels``).

    Sampled rationales keep their token ids; written ones are tokenised once. Unfinished rationales are left out,
    and so are wrongly answered ones if ``correct_only``. With ``reward_weighted`` (ReST-EM, paper.md eq. 3.8) the answer is the
    sampled y, right or wrong, and ``weight`` is exp(reward), divided by the highest.

    Raises:
        InputError: one sentence naming the row (counted from 1), if one to be weighted has no reward, if ids say something else
            than their text, or if the tokenizer cannot write a text.
    """
    sequences, rewards = [], []
    for number, row in enumerate(rows, start=1):
        if row.get("finished") is False or (correct_only and row.get("correct") is not True):
            continue
        where = f"rationales: row {number}"
        prompt = _sampled_or_written(row.get("prompt_ids"), row["question"], template.prompt_ids, template, where)
        rationale = _sampled_or_written(row.get("rationale_ids"), row["rationale"], template.rationale_ids, template, where)
        if reward_weighted and (row.get("reward") is None or not row.get("answer_ids")):
            raise InputError(f"rationales: row {number} has no reward or no sampled answer, which reward_weighted needs; set it to false")
        completion = [*rationale, *(row["answer_ids"] if reward_weighted else template.answer_ids(row["gold"]))]
        sequences.append({"input_ids": [*prompt, *completion], "labels": [-100] * len(prompt) + completion})
        rewards.append(row.get("reward"))
    if reward_weighted:
        highest = max(rewards, default=0.0)
        sequences = [{**ids, "weight": math.exp(reward - highest)} for ids, reward in zip(sequences, rewards, strict=True)]
    return Dataset.from_list(sequences)


def texts_only(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows without all that belongs to the model that sampled them and its tokens, for another one to learn from (distillation)."""
    return [{**row, **dict.fromkeys(OF_THE_SAMPLER)} for row in rows]


def _sampled_or_written(
    ids: list[int] | None, text: str, write: Callable[[str], list[int]], template: RationaleTemplate, where: str
) -> list[int]:
    """The sampled ids, after a look at whether they say their text in this tokenizer at all; without any, those of the text.

    Spaces don't count, as a text may have been trimmed; and a tokenizer that normalises what it reads may say it its own way.
    """
    if not ids:
        ids = write(text)
        known = template.tokenizer
        unknown = {known.unk_token_id} - {known.bos_token_id, known.eos_token_id, known.pad_token_id}  # GPT-2's is its end token
        if unknown & set(ids):
            raise InputError(f"{where}: the model's tokenizer has no tokens for {text[:80]!r}; it would read {template.decode(ids)[:80]!r}")
        return ids
    said, meant = "".join(template.decode(ids).split()), "".join(text.split())
    if meant not in said and said != "".join(template.decode(write(text)).split()):
        raise InputError(
            f"{where}: its token ids say {template.decode(ids)[:80]!r} in the model's tokenizer, not {text[:80]!r}; "
            "if a model with another tokenizer sampled it, set retokenise: true"
        )
    return ids


def human_rows(problems: Sequence[dict[str, Any]], where: str) -> list[dict[str, Any]]:
    """The data's own rationales as rows for :func:`training_rows`; problems without one are left out.

    Raises:
        InputError: if there is none at all.
    """
    rows = [
        {"id": problem["id"], "question": problem["question"], "gold": problem["answer"], "rationale": problem["rationale"]}
        for problem in problems
        if problem["rationale"]
    ]
    if not rows:
        raise InputError(f"rationales: {where} has no human rationales; train on a rationales.parquet instead")
    return rows


def rationale_sft(
    model: nn.Module,
    dataset: Dataset,
    template: RationaleTemplate,
    params: ThetaParams,
    checkpoints: str | Path,
    log: Callable[..., None] | None = None,
) -> tuple[nn.Module, dict[str, float]]:
    """Train θ on ready sequences; resumes from the newest checkpoint below ``checkpoints``. In several processes each calls this.

    Without any sequence θ stays as it is, and a warning says so: rejection sampling may have had no hit at all.

    Args:
        dataset: rows with ``input_ids`` and ``labels``; a label of -100 is no target. With ``weight`` in them, the loss is weighted.
        log: called as ``log(step, loss=…, …)``.

    Returns:
        the trained model and metrics: ``loss`` (mean nats per target token of the last log), ``steps``, ``tokens_trained``.

    Raises:
        InputError: one sentence, if the checkpoint cannot be read, or the rows are no sequences.
    """
    if len(dataset) == 0:
        print("warning: there is no rationale to train on (none was finished, or none correct); θ stays as it is")
        return model, {"loss": float("nan"), "steps": 0, "tokens_trained": 0}
    if "input_ids" not in dataset.column_names:
        raise InputError("dataset: has no column input_ids; brite_lib.sft.training_rows makes it from rationales")
    if params.lora:
        torch.manual_seed(params.seed)  # of the adapter's first weights
        model = attach_lora(model, params.lora)
    warn_of_lost_steps(model, params.learning_rate)
    tuned = (WeightedSFTTrainer if "weight" in dataset.column_names else RationaleSFTTrainer)(
        model=model,
        args=on_one_gpu(SFTConfig(**trl_settings(params, checkpoints), dataset_kwargs={"skip_prepare_dataset": True})),
        train_dataset=dataset,
        processing_class=template.tokenizer,
        callbacks=[TrainerLog(log)] if log else None,
    )
    train_on(tuned, checkpoints)
    targets = sum(sum(label != -100 for label in row["labels"]) for row in dataset)
    work = costs.ModelCost.of(tuned.model).training([len(row["input_ids"]) for row in dataset], targets)
    costs.add(round(params.epochs * work))  # all of it, also after a resume
    losses = [entry["loss"] for entry in tuned.state.log_history if "loss" in entry]
    return tuned.model, {
        "loss": losses[-1] if losses else float("nan"),
        "steps": tuned.state.global_step,
        "tokens_trained": round(targets * params.epochs),
    }


def trainer_settings(params: ThetaParams | DpoParams | DrrParams, checkpoints: str | Path) -> dict[str, Any]:
    """What the Hugging Face trainers of SFT, DPO and DRR's discriminator have in common: every step logged, the newest checkpoint kept.

    Raises:
        InputError: for a GPU other than the first: they would silently train on that one.
    """
    if number_of_ranks() == 1 and params.device.startswith("cuda:") and params.device != "cuda:0":
        number = params.device.removeprefix("cuda:")
        raise InputError(f"device: {params.device}: this trainer takes the first GPU; set CUDA_VISIBLE_DEVICES={number} and device: cuda")
    micro_batch_size, passes = share(params.train_batch_size, params.micro_batch_size)
    return {
        "output_dir": str(checkpoints),
        "num_train_epochs": params.epochs,
        "per_device_train_batch_size": micro_batch_size,
        "gradient_accumulation_steps": passes,
        "learning_rate": params.learning_rate,
        "lr_scheduler_type": params.lr_schedule,
        "warmup_steps": params.warmup_ratio,
        "weight_decay": params.weight_decay,
        "max_grad_norm": params.max_grad_norm,
        "seed": params.seed,
        "save_steps": params.save_steps,
        "save_total_limit": 1,
        "logging_steps": 1,
        "bf16": params.dtype == "bfloat16",
        "use_cpu": params.device == "cpu" or not torch.cuda.is_available(),
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def trl_settings(params: ThetaParams | DpoParams, checkpoints: str | Path) -> dict[str, Any]:
    """:func:`trainer_settings` for TRL, where nothing is truncated and several processes may share the work."""
    return trainer_settings(params, checkpoints) | {
        "max_length": None,
        "bf16": params.dtype == "bfloat16" and not params.sharded,  # FSDP would make its weights, gradients and moments float32
        "accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": params.sharded}},  # else FSDP keeps gradients whole
        "gradient_checkpointing": params.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "ddp_find_unused_parameters": False,  # there are none
    }


def on_one_gpu(args: TrainingArguments) -> TrainingArguments:
    """The settings of a process that takes one GPU: the Trainer's choice is all, and a step as many times as large (TRL's refuse)."""
    args._n_gpu = min(1, args.n_gpu)
    return args


class RationaleSFTTrainer(EachRowOnce, SFTTrainer):
    """TRL's, whose loss is a mean over the target tokens of a whole step."""


class WeightedSFTTrainer(RationaleSFTTrainer):
    """Sums each sequence's NLL times its ``weight``, and divides by the number of target tokens as without weights."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        collate = self.data_collator
        self.data_collator = lambda rows: {**collate(rows), "weight": torch.tensor([row["weight"] for row in rows])}

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        """TRL's loss with weights: Σ w·NLL / target tokens; ``return_outputs`` is for evaluation, which has none here."""
        weight = inputs.pop("weight")  # (B,)
        log_probs = model(**inputs, use_cache=False, fused_lm_head=True).log_probs  # (B, T - 1), 0 where there is no target
        mean = -(weight[:, None] * log_probs).sum() / num_items_in_batch
        return mean * self.accelerator.num_processes  # whose gradients are averaged


class TrainerLog(TrainerCallback):
    """Hands the trainer's logs to the stage record."""

    def __init__(self, log: Callable[..., None]):
        self.log = log

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            kept = {name: value for name, value in logs.items() if isinstance(value, int | float)}
            kept.pop("num_tokens", None)  # TRL counts from 0 again after a resume
            self.log(state.global_step, **kept)
