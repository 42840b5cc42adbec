"""The terminal rewards: the two that BRiTE runs (section 4.1; paper.md section 1.3), and VeriFree's.

A reward says which sampled tokens are actions, which answer is forced behind them for scoring, and what the
finished ones earn on their last action. The per-token KL to the frozen θ is the trainer's, the same for both; so is
``brevity_cost``, which every z pays for its |z| tokens, finished or not: P(o=1|x,z,y*) is then P(y*|x,z)·exp(−cost·|z|) (or
exp(R/β − cost·|z|)), and the optimum is Q ∝ P_θ(z|x)·P_θ(y*|x,z)^{1/c}·exp(−cost·|z|/c) (or P_θ(z,y|x)·exp((R/β − cost·|z|)/c)).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from brite_lib.params import PsiParams
from brite_lib.template import Completion, RationaleTemplate
from brite_lib.verify import judge


class TerminalReward(Protocol):
    """What :class:`brite_lib.ppo.PosteriorPPOTrainer` needs of a reward."""

    samples_answer: bool

    @property
    def metric(self) -> str:
        """Its name in the logs."""

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
    """Reward (i): Σ log P(y*|x,z), no verifier. The actions are z; with θ as scorer the optimum is the posterior at c = 1.

    With ``signal: prob`` it is P(y*|x,z) itself (VeriFree), and an unfinished z earns 0, as if y* had no chance.
    """

    signal: Literal["log_prob", "prob"] = "log_prob"
    samples_answer: bool = False

    @property
    def metric(self) -> str:
        return f"answer_{self.signal}"

    def actions(self, completion: Completion) -> list[int]:
        return completion.rationale_ids

    def forced(self, problem: dict[str, Any], completion: Completion, template: RationaleTemplate) -> list[int]:
        return template.answer_ids(problem["answer"]) if completion.finished else []

    def terminal(
        self, problems: Sequence[dict[str, Any]], completions: Sequence[Completion], forced_log_prob: Sequence[float]
    ) -> list[float | None]:
        values = [math.exp(value) if self.signal == "prob" else value for value in forced_log_prob]
        return [value if completion.finished else None for completion, value in zip(completions, values, strict=True)]

    def unfinished_default(self) -> float | None:
        return 0.0 if self.signal == "prob" else None


@dataclass(frozen=True)
class VerifierReward:
    """Reward (ii): R(x,z,y)/β with R = 1 for a correct sampled y, else 0. The actions are z and y with its end token.

    An answer that could not be judged earns what an unfinished one does, and is counted in a warning.
    """

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
        texts = [completion.answer if completion.ended else None for completion in completions]
        _, verdicts = judge(problems, texts, self.answer_kind)
        if unknown := sum(verdict is None for verdict in verdicts):
            print(f"warning: {unknown} of {len(verdicts)} sampled answers could not be judged; their reward is that of unfinished ones")
        return [
            verdict / self.beta if completion.ended and verdict is not None else None
            for completion, verdict in zip(completions, verdicts, strict=True)
        ]

    def unfinished_default(self) -> float | None:
        return 0.0


def terminal_reward(config: PsiParams) -> TerminalReward:
    """The reward that the settings name."""
    if config.reward == "verifier":
        return VerifierReward(config.beta, config.answer_kind)
    return AnswerLikelihood(config.answer_signal)
