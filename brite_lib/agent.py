"""The policy Q_ψ and its critic as one module."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brite_lib import costs
from brite_lib.likelihood import length_sorted, make_batch, token_log_probs


class PolicyWithCritic(nn.Module):
    """Q_ψ with a value head on its trunk, as one module, so that any accelerate wrapper sees one forward.

    The head reads the trunk's hidden states without sending gradients back: the critic can't move the policy.

    Args:
        policy: a causal language model without dropout.
        use_critic: whether there is a value head; else values are 0.
        recompute: keep only the layers' inputs for the backward pass, and compute the rest again there (gradient checkpointing).
    """

    def __init__(self, policy: nn.Module, use_critic: bool, recompute: bool = False):
        super().__init__()
        self.policy, self._recompute = policy, recompute
        if recompute:
            policy.gradient_checkpointing_enable({"use_reentrant": False})
        width = policy.config.get_text_config().hidden_size
        self.value_head = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)) if use_critic else None
        if self.value_head is not None:
            nn.init.zeros_(self.value_head[-1].weight)
            self.value_head.to(next(policy.parameters()).device)

    def forward(
        self, prompts: Sequence[Sequence[int]], actions: Sequence[Sequence[int]], entropy: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """log Q, entropy and value of every action, flat (N,) in the order of the rows."""
        costs.add_pass(self.policy, prompts, actions, self.value_head)
        if self._recompute:
            self.policy.train(torch.is_grad_enabled())  # transformers recomputes in this mode only; there is no dropout to mind
        batch = make_batch(prompts, actions, next(self.policy.parameters()).device)
        log_prob, entropies, hidden = token_log_probs(self.policy, batch, entropy)
        # .sum, because FSDP2 wants no views: (N, 1) → (N,)
        values = self.value_head(hidden.detach().float()).sum(-1) if self.value_head is not None else torch.zeros_like(log_prob)
        return log_prob, entropies if entropies is not None else torch.zeros_like(log_prob), values

    @torch.no_grad()
    def judge(
        self,
        prompts: Sequence[Sequence[int]],
        actions: Sequence[Sequence[int]],
        forced: Sequence[Sequence[int]],
        batch_size: int,
    ) -> tuple[list[tuple[Tensor, ...]], list[float]]:
        """log Q, entropy and value of each completion's actions, on the CPU; and log Q of the forced tokens behind them, summed."""
        flat: list[tuple[Tensor, ...]] = [()] * len(actions)
        answers = [0.0] * len(actions)
        for rows in length_sorted(list(zip(prompts, actions, forced, strict=True)), batch_size):
            outputs = self([prompts[i] for i in rows], [[*actions[i], *forced[i]] for i in rows], entropy=True)
            split = [output.cpu().split([len(actions[i]) + len(forced[i]) for i in rows]) for output in outputs]
            for place, i in enumerate(rows):
                flat[i] = tuple(part[place][: len(actions[i])] for part in split)
                answers[i] = split[0][place][len(actions[i]) :].sum().item()
        return flat, answers
