"""Judges of attempts for :mod:`brite_lib.drr`: the rule that knows the gold answer, a trained discriminator, the Reasoner itself.

A judge is a function of the rows of attempts (:data:`brite_lib.drr.ATTEMPTS`, without its last four columns).
"""

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification
from transformers import logging as transformers_logging

from brite_lib import costs
from brite_lib.errors import InputError
from brite_lib.files import atomic_directory
from brite_lib.likelihood import length_sorted, pad_sequences, score
from brite_lib.models import check_model, load_tokenizer, pick_device
from brite_lib.rollouts import sample_seed
from brite_lib.template import RationaleTemplate

FILE_NAME = "discriminator.json"
Row = dict[str, Any]


class Judgement(NamedTuple):
    """What a judge says of one attempt: ``score`` is P(right), ``written`` and ``read`` are the tokens this took."""

    score: float
    accepted: bool
    written: int = 0
    read: int = 0


Judge = Callable[[Sequence[Row]], list[Judgement]]


def by_rule(rows: Sequence[Row]) -> list[Judgement]:
    """The judge of step 1, which knows the gold answer."""
    return [Judgement(float(row["correct"] is True), row["correct"] is True) for row in rows]


def always_reject(rows: Sequence[Row]) -> list[Judgement]:
    """A judge that rejects whatever it reads, so that the last attempt wins: what retrying is worth without any judgement."""
    return [Judgement(row["turn"], False) for row in rows]


def attempt_text(row: Row, template: RationaleTemplate) -> str:
    """z, boundary and y as sampled, without the end token, as prompts show an attempt."""
    ids = [*row["rationale_ids"], *row["answer_ids"]]
    return template.decode(ids[:-1] if ids and ids[-1] in template.stop_ids else ids)


@dataclass
class Discriminator:
    """A classifier of attempts as a judge; accepts from ``threshold`` on.

    Attributes:
        model: sequence classifier with the classes 0 reject and 1 accept.
        template: of the Reasoner.
        tokenizer: its own one where its vocabulary is not the Reasoner's, else None.
        pad_id: pad token of the model.
        log_weight_ratio: log of reject's class weight over accept's; added to the logit it undoes the weighting of the loss, so that
            the score is P(right) among attempts as they come.
        threshold: see :func:`brite_lib.roc.best_threshold`.
        batch_size: attempts per forward pass.
    """

    model: nn.Module
    template: RationaleTemplate
    tokenizer: Any
    pad_id: int
    log_weight_ratio: float = 0.0
    threshold: float = 0.5
    batch_size: int = 512

    @classmethod
    def load(cls, name_or_path: str | Path, template: RationaleTemplate, device: str = "auto", **settings: Any) -> "Discriminator":
        """A saved discriminator, or a new one on the weights of any model (its head drawn from torch's global generator).

        Raises:
            InputError: if there is no such model, it has no safetensors weights, or no tokens can be told apart from padding.
        """
        path, tokenizer = check_model(name_or_path), load_tokenizer(name_or_path)
        own = tokenizer.get_vocab() != template.tokenizer.get_vocab()
        tokenizer.truncation_side = "left"  # the attempt that is judged stands last
        level = transformers_logging.get_verbosity()
        transformers_logging.set_verbosity_error()  # it would warn that the head of a new discriminator is new
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                path, num_labels=2, id2label={0: "reject", 1: "accept"}, label2id={"reject": 0, "accept": 1}, dtype=torch.float32,
                use_safetensors=True, trust_remote_code=False,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            raise InputError(f"discriminator: {path} could not be loaded as a classifier: {str(error).splitlines()[0]}") from error
        finally:
            transformers_logging.set_verbosity(level)
        pad_id = template.pad_id if not own else tokenizer.pad_token_id
        if pad_id is None:
            raise InputError(f"discriminator: the tokenizer of {path} has no pad token")
        model.config.get_text_config().pad_token_id = pad_id
        file = Path(path) / FILE_NAME
        saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return cls(model.to(pick_device(device)).eval(), template, tokenizer if own else None, pad_id, **saved | settings)

    def save(self, directory: str | Path) -> Path:
        """Write weights (safetensors), tokenizer and threshold; the directory appears only when it is whole."""
        with atomic_directory(directory) as temporary:
            self.model.save_pretrained(temporary, safe_serialization=True)
            (self.tokenizer or self.template.tokenizer).save_pretrained(temporary)
            settings = {"threshold": self.threshold, "log_weight_ratio": self.log_weight_ratio}
            (temporary / FILE_NAME).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
        return Path(directory)

    def input_ids(self, row: Row) -> list[int]:
        """Token ids of (problem, rejected attempts, current z and y)."""
        ids = [*row["prompt_ids"], *row["rationale_ids"], *row["answer_ids"]]
        return ids if self.tokenizer is None else self.tokenizer(self.template.decode(ids), truncation=True)["input_ids"]

    def scores(self, rows: Sequence[Row]) -> list[float]:
        """P(right) of each attempt."""
        sequences, values = [self.input_ids(row) for row in rows], [0.0] * len(rows)
        device = next(self.model.parameters()).device
        self.model.eval()
        costs.add(costs.ModelCost.of(self.model).forward([len(ids) for ids in sequences], logits=0))
        with torch.no_grad():
            for part in length_sorted([(ids,) for ids in sequences], self.batch_size):
                padded = pad_sequences([sequences[i] for i in part], device, pad_id=self.pad_id)
                logits = self.model(input_ids=padded.input_ids, attention_mask=padded.attention_mask).logits.double()
                for i, value in zip(part, torch.sigmoid(logits[:, 1] - logits[:, 0] + self.log_weight_ratio).tolist(), strict=True):
                    values[i] = value
        return values

    def __call__(self, rows: Sequence[Row]) -> list[Judgement]:
        """Judge attempts."""
        return [
            Judgement(value, value >= self.threshold, read=len(self.input_ids(row)))
            for row, value in zip(rows, self.scores(rows), strict=True)
        ]


@dataclass
class SelfCritique:
    """The Reasoner as its own judge: a verdict sampled at temperature 1 after the template's ``judge_prompt``, given that it is a verdict.

    The score is the probability of that: P(accept) / (P(accept) + P(reject)).
    """

    reasoner: nn.Module
    template: RationaleTemplate
    seed: int = 0
    batch_size: int = 512

    def __call__(self, rows: Sequence[Row]) -> list[Judgement]:
        """Judge attempts."""
        prompts = [self.template.judge_prompt_ids(row["question"], attempt_text(row, self.template)) for row in rows]
        verdicts = [self.template.verdict_ids(accept) for accept in (False, True)]
        reject, accept = (
            [part.sum().item() for part in score(self.reasoner, prompts, [ids] * len(rows), [[]] * len(rows), self.batch_size).rationale]
            for ids in verdicts
        )
        judgements = []
        for row, prompt, against, pro in zip(rows, prompts, reject, accept, strict=True):
            value = 1 / (1 + math.exp(min(against - pro, 700)))
            chance = random.Random(sample_seed(self.seed, "verdict", row["id"], row["sample"], row["turn"])).random()
            judgements.append(Judgement(value, chance < value, len(verdicts[chance < value]), len(prompt)))
        return judgements
