"""What a rationale earns that is not finished within its limit: one constant per run, or LaTRO's twice the mean.

The constant lies a margin below the lowest of the first 256 finished rewards under θ, unless the settings give it.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from brite_lib.params import PsiParams

CALIBRATION_SAMPLES, CALIBRATION_ATTEMPTS = 256, 8


class Unfinished:
    """The rule of a run. It tells what it finds by ``say``.

    Attributes:
        constant: nats of an unfinished rationale; None before :meth:`calibrate`, and with the rule ``twice_mean``.
        below, finished: how many finished rewards there have been, and how many of them below the constant.
    """

    def __init__(self, config: PsiParams, default: float | None, say: Callable[[str], None]):
        self.say = say
        self.constant = config.unfinished_reward if config.unfinished_reward is not None else default
        self.margin, self.twice_mean = config.unfinished_margin, config.unfinished_rule == "twice_mean"
        self.below = self.finished = 0

    @property
    def to_calibrate(self) -> bool:
        """Whether the constant has still to be found."""
        return self.constant is None and not self.twice_mean

    def calibrate(self, problems: int, rewards_under_theta: Callable[[list[int], int], Sequence[float | None]]) -> None:
        """Find the constant.

        Args:
            problems: how many there are to choose from.
            rewards_under_theta: terminal rewards of a rationale each, of the problems with these numbers; and which attempt it is.

        Raises:
            RuntimeError: if nothing that θ samples is finished.
        """
        rewards: list[float] = []
        for attempt in range(CALIBRATION_ATTEMPTS):
            chosen = torch.randint(problems, (CALIBRATION_SAMPLES,), generator=torch.Generator().manual_seed(attempt))
            rewards += [reward for reward in rewards_under_theta(chosen.tolist(), attempt) if reward is not None]
            if len(rewards) >= CALIBRATION_SAMPLES:
                break
        if not rewards:
            raise RuntimeError(
                "no rationale that θ sampled was finished; raise max_rationale_tokens, check template.boundary, or set unfinished_reward"
            )
        lowest = min(rewards[:CALIBRATION_SAMPLES])
        self.constant = lowest - self.margin
        self.say(f"reward of unfinished rationales: {self.constant:.2f} (lowest finished one: {lowest:.2f})")

    def fill(self, rewards: Sequence[float | None]) -> Tensor:
        """The terminal rewards of a batch, (B,), those of unfinished completions (None) filled in."""
        if self.twice_mean:
            finished = [reward for reward in rewards if reward is not None]
            unfinished = 2 * sum(finished) / len(finished) if finished else 0.0  # alone in a batch, any number is the same
        else:
            self._watch(rewards)
            unfinished = self.constant
        return torch.tensor([unfinished if reward is None else reward for reward in rewards], dtype=torch.float32)

    def _watch(self, rewards: Sequence[float | None]) -> None:
        """Warn once when more than 1 % of the finished rewards are worse than being unfinished."""
        finished = [reward for reward in rewards if reward is not None]
        quiet = self.below <= 0.01 * self.finished
        self.below, self.finished = self.below + sum(reward < self.constant for reward in finished), self.finished + len(finished)
        if quiet and self.below > 0.01 * self.finished:
            self.say(f"warning: over 1 % of finished rewards lie below unfinished_reward = {self.constant:.2f}; lower it")
