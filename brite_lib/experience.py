"""One batch of sampled completions with all that an update needs, and its statistics.

Shapes: B completions, T action tokens after padding; K completions of one problem stand in consecutive rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brite_lib.advantages import masked_mean, mismatch_kl
from brite_lib.params import PsiParams
from brite_lib.rewards import TerminalReward
from brite_lib.rollouts import judged_rows
from brite_lib.template import Completion, RationaleTemplate

STEP_ZERO_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4, torch.bfloat16: 5e-2, torch.float16: 2e-2}


@dataclass
class Experience:
    """One batch of sampled completions with everything an update needs; tensors are (B, T) unless said otherwise."""

    problems: Sequence[dict[str, Any]]
    prompts: list[list[int]]
    actions: list[list[int]]
    forced: list[list[int]]  # scored behind the actions: y*, for reward (i)
    completions: list[Completion]
    mask: Tensor
    log_prob: Tensor  # of the actions under Q when they were sampled
    sampler_log_prob: Tensor  # under the engine that drew them; where that is the policy itself, log_prob
    importance: Tensor  # (B,), what each completion counts: about Q/engine
    reference_log_prob: Tensor
    entropy: Tensor
    values: Tensor
    rewards: Tensor
    terminal: Tensor  # (B,)
    advantages: Tensor
    returns: Tensor

    def metrics(self, reward: str) -> dict[str, float]:
        """Statistics of the batch as it was sampled; sequence sums are per completion, in nats. ``reward`` is its metric's name.

        ``elbo`` is the objective, terminal reward − c·KL − brevity cost: with reward (i) and c = 1 the evidence lower bound.
        """
        finished = torch.tensor([completion.finished for completion in self.completions])
        kl = ((self.log_prob - self.reference_log_prob) * self.mask).sum(1)
        return {
            f"reward/{reward}": self.terminal[finished].mean().item() if finished.any() else math.nan,
            "reward/terminal": self.terminal.mean().item(),
            "elbo": self.rewards.sum(1).mean().item(),
            "kl": kl.mean().item(),
            "entropy": masked_mean(self.entropy, self.mask),
            "rationale_length": sum(len(completion.rationale_ids) for completion in self.completions) / len(self.completions),
            "finished": finished.float().mean().item(),
        }

    def mismatch(self) -> dict[str, float]:
        """How far the engine that drew the batch is from Q, and what a completion counts on average, which is 1 up to noise and the cap."""
        kl = mismatch_kl(self.log_prob, self.sampler_log_prob, self.mask)
        return {"mismatch_kl": kl, "importance_weight": self.importance.mean().item()}

    def rows(self, template: RationaleTemplate, config: PsiParams, problems: int | None = None) -> list[dict[str, Any]]:
        """The completions of the first ``problems`` problems (None: all) as a rationale table, with ``reward`` and, per token of z,
        ``advantage`` and (gae) ``value``.

        Where no y was sampled there is nothing to judge: ``answer_text`` and ``correct`` are null. A boundary that is no action is
        left out.
        """
        count = config.rationales_per_prompt
        end = len(self.actions) if problems is None else problems * count
        rows = judged_rows(self.problems[:end], self.completions[:end], config.answer_kind, template)
        sampled_answer = any(completion.answer_ids for completion in self.completions)
        of_tokens = {"logp_theta": self.reference_log_prob, "logp_psi": self.log_prob, "advantage": self.advantages}
        of_tokens |= {"value": self.values} if config.advantage == "gae" else {}
        for i, row in enumerate(rows):
            length = min(len(row["rationale_ids"]), len(self.actions[i]))
            row |= {name: tensor[i, :length].tolist() for name, tensor in of_tokens.items()}
            row |= {name: row[name][:length] for name in ("rationale_ids", "tokens")} | {"prompt_ids": self.prompts[i]}
            row |= {"source": "psi", "round": config.round, "sample": i % count, "num_tokens": len(self.actions[i])}
            row |= {"reward": self.terminal[i].item()}
            if row["finished"] and (config.reward, config.scorer, config.answer_signal) == ("answer_likelihood", "frozen", "log_prob"):
                row["logp_answer"] = row["reward"]
            row |= {} if sampled_answer else {"answer_text": None, "prediction": None, "correct": None}
        return rows

    def assert_anchor(self, dtype: torch.dtype) -> None:
        """Check that Q is still θ, as before the first update.

        Raises:
            RuntimeError: if log Q and log P_θ of the same tokens differ by more than rounding in ``dtype``.
        """
        difference = ((self.log_prob - self.reference_log_prob) * self.mask).abs().max().item()
        tolerance = STEP_ZERO_TOLERANCE[dtype]
        if not difference <= tolerance:
            raise RuntimeError(
                f"at step 0 log Q and log P_θ differ by {difference:.2e} (> {tolerance:.0e}): θ is not the model that ψ starts from"
            )


def actions_and_forced(
    problems: Sequence[dict[str, Any]],
    completions: Sequence[Completion],
    reward: TerminalReward,
    template: RationaleTemplate,
    boundary_is_action: bool,
) -> tuple[list[list[int]], list[list[int]]]:
    """Tokens of each completion that are the policy's actions, and those that are scored behind them."""
    actions = [reward.actions(completion) for completion in completions]
    forced = [reward.forced(p, c, template) for p, c in zip(problems, completions, strict=True)]
    if not boundary_is_action:
        for i, completion in enumerate(completions):
            start = template.boundary_start(actions[i]) if completion.finished else len(actions[i])
            actions[i], forced[i] = actions[i][:start], [*actions[i][start:], *forced[i]]
    return actions, forced


def pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths as (B, T), padded with zeros; T is at least 1."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return padded if padded.shape[1] else nn.functional.pad(padded, (0, 1))
