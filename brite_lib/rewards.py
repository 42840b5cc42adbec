"""The two terminal rewards that BRiTE runs (section 4.1; paper.md section 1.3).

A reward says which sampled tokens are actions, which answer is forced behind them for scoring, and what the
finished ones earn on their last action. The per-token KL to the frozen θ is the trainer's, the same for both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from brite_lib.template import Completion, RationaleTemplate
from brite_lib.verify import extract_answer, is_correct


class TerminalReward(Protocol):
    """What :class:`brite_lib.ppo.PosteriorPPOTrainer` needs of a reward."""

    samples_answer: bool
    metric: str

    def actions(self, completion: Completion) -> list[int]:
        """Token ids that are the policy's actions."""

    def forced(self, problem: dict[str, Any], completion: Completion, template: RationaleTemplate) -> list[int]:
        """Token ids that are not actions, scored behind them by frozen θ."""

    def terminal(
        self, problems: Sequence[dict[str, Any]], completions: Sequence[Completion], forced_log_prob: Sequence[float]
    ) -> list[float | None]:
        """Reward in nats on the last action, None where the completion is unfinished."""

    def unfinished_default(self) -> float | None:
        """Reward of unfinished completions, or None to calibrate it on the first finished ones."""


@dataclass(frozen=True)
class AnswerLikelihood:
    """Reward (i): Σ log P_θ(y*|x,z), no verifier. The actions are z; the optimum is the posterior at c = 1."""

    samples_answer: bool = False
    metric: str = "answer_log_prob"

    def actions(self, completion: Completion) -> list[int]:
        return completion.rationale_ids

    def forced(self, problem: dict[str, Any], completion: Completion, template: RationaleTemplate) -> list[int]:
        return template.answer_ids(problem["answer"]) if completion.finished else []

    def terminal(
        self, problems: Sequence[dict[str, Any]], completions: Sequence[Completion], forced_log_prob: Sequence[float]
    ) -> list[float | None]:
        return [value if completion.finished else None for completion, value in zip(completions, forced_log_prob, strict=True)]

    def unfinished_default(self) -> float | None:
        return None


@dataclass(frozen=True)
class VerifierReward:
    """Reward (ii): R(x,z,y)/β with R = 1 for a correct sampled y, else 0. The actions are z and y with its end token."""

    beta: float = 1.0
    answer_kind: str = "exact"
    samples_answer: bool = True
    metric: str = "verifier"

    def actions(self, completion: Completion) -> list[int]:
        return [*completion.rationale_ids, *completion.answer_ids]

    def forced(self, problem: dict[str, Any], completion: Completion, template: RationaleTemplate) -> list[int]:
        return []

    def terminal(
        self, problems: Sequence[dict[str, Any]], completions: Sequence[Completion], forced_log_prob: Sequence[float]
    ) -> list[float | None]:
        return [
            self._correct(completion.answer, problem["answer"]) / self.beta if completion.ended else None
            for problem, completion in zip(problems, completions, strict=True)
        ]

    def unfinished_default(self) -> float | None:
        return 0.0

    def _correct(self, answer: str | None, gold: str) -> bool:
        prediction = extract_answer(answer, self.answer_kind) if answer else None
        return prediction is not None and is_correct(prediction, gold, self.answer_kind)
