"""Which weights of a run are kept: those that solve the most validation problems, never test problems."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from brite_lib.checkpointing import load_weights, trained_weights
from brite_lib.errors import InputError
from brite_lib.files import atomic_path
from brite_lib.params import LatroParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.problems import load_problems
from brite_lib.ranks import in_shares
from brite_lib.rollouts import generate
from brite_lib.sharding import gathered, whole


def training_and_validation(params: LatroParams) -> tuple[Dataset, Dataset]:
    """The training problems, and disjoint ones that select the weights.

    Raises:
        InputError: one sentence, if problems are in both (a local file has one split only), or none is left to train on.
    """
    problems = load_problems(params.data, params.split, params.limit)
    if not params.validation_split:
        kept = len(problems) - params.validation_limit
        if kept < 1:
            raise InputError(f"validation_limit: {params.validation_limit} problems held out of {len(problems)} leave none to train on")
        return problems.select(range(kept)), problems.select(range(kept, len(problems)))
    validation = load_problems(params.data, params.validation_split, params.validation_limit)
    if shared := len(set(problems["question"]) & set(validation["question"])):
        raise InputError(
            f"validation_split: {shared} questions of {params.validation_split} are training questions too; leave it empty to hold some out"
        )
    return problems, validation


class BestOnValidation:
    """Keeps the weights with the best pass@1 on validation problems in a file; of equals the earliest.

    Args:
        trainer: whose policy is validated; the tokens are added to its own.
        problems: the validation problems.
        path: file of the best weights; it outlives an interrupted run, whose repeated steps find the same.
    """

    def __init__(self, trainer: PosteriorPPOTrainer, problems: Sequence[dict[str, Any]], params: LatroParams, path: Path):
        self.trainer, self.problems, self.params, self.path = trainer, problems, params, path

    def validate(self, step: int) -> dict[str, float]:
        """``validation/pass@1`` after ``step`` updates, or nothing where none is due. All processes must call this."""
        if step % self.params.validation_steps and step != self.params.steps:
            return {}
        params = self.params
        options = {**params.generation, "seed": params.seed, "source": "validation"}
        trainer, main = self.trainer, self.trainer.accelerator.is_main_process

        def answer(mine: list[int]) -> list[list[tuple[int, bool | None]]]:
            problems, n = [self.problems[i] for i in mine], params.validation_samples
            rows = generate(trainer.model, problems, trainer.template, n, **options)
            found = list(zip(rows["num_tokens"], rows["correct"], strict=True))
            return [found[i : i + n] for i in range(0, len(found), n)]

        with gathered(trainer.agent):
            answers = [sample for samples in in_shares(trainer.accelerator, len(self.problems), answer) for sample in samples]
        trainer.tokens_generated += sum(tokens for tokens, _ in answers)
        score = sum(verdict is True for _, verdict in answers) / len(answers)
        best = not self.path.is_file() or score > self._load()["pass@1"]
        trainer.accelerator.wait_for_everyone()  # all have looked before it changes
        if best:
            kept = {"step": step, "pass@1": score, "weights": whole(trained_weights(trainer.model), keep=main)}
            if main:
                with atomic_path(self.path) as temporary:
                    torch.save(kept, temporary)
        return {"validation/pass@1": score}

    def restore(self) -> tuple[int, float]:
        """Give the policy its best weights back; returns their step and pass@1."""
        best = self._load()
        load_weights(self.trainer.model, best["weights"])
        return best["step"], best["pass@1"]

    def _load(self) -> dict[str, Any]:
        return torch.load(self.path, map_location="cpu", mmap=True, weights_only=True)
