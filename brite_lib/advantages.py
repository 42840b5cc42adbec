"""Token rewards, advantages and the clipped objective: pure functions of padded (B, T) tensors.

Notation: B completions, T action tokens after padding, K completions of one problem (consecutive rows). Every
``mask`` is a bool (B, T), True on actions; masked entries of a result are 0. Rewards and KL are in nats.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def token_rewards(log_prob: Tensor, reference_log_prob: Tensor, terminal: Tensor, mask: Tensor, kl_coef: float = 1.0) -> Tensor:
    """r_h = −c·(log Q(z_h) − log P_θ(z_h)), plus the terminal reward on the last action (BRiTE section 3.4).

    Args:
        log_prob, reference_log_prob: (B, T) of the sampled actions under Q_ψ (as sampled) and frozen θ.
        terminal: (B,) terminal reward.
        kl_coef: c.

    Returns:
        (B, T) rewards. Their row sum is terminal − c·log Q(z)/P_θ(z), the single-sample ELBO at c = 1.
    """
    rewards = -kl_coef * (log_prob - reference_log_prob) * mask
    last = mask.cumsum(1).argmax(1)  # the first place at which all actions are counted
    rewards[torch.arange(len(rewards)), last] += terminal
    return rewards


def gae(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation; the state after the last action is worth 0.

    Returns:
        advantages and returns (= advantages + values), both (B, T).
    """
    advantages = torch.zeros_like(rewards)
    running = rewards.new_zeros(len(rewards))
    mask_float = mask.to(rewards.dtype)
    for t in reversed(range(rewards.shape[1])):
        follows = mask_float[:, t + 1] if t + 1 < rewards.shape[1] else torch.zeros_like(running)
        next_value = values[:, t + 1] * follows if t + 1 < rewards.shape[1] else torch.zeros_like(running)
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = (delta + gamma * lam * follows * running) * mask_float[:, t]
        advantages[:, t] = running
    return advantages, (advantages + values) * mask


def group_advantages(rewards: Tensor, mask: Tensor, group_size: int, leave_one_out: bool, scale_std: bool = False) -> Tensor:
    """Sequence return minus a baseline from its K siblings, the same on every token of a completion.

    Args:
        leave_one_out: baseline without the completion itself (RLOO, unbiased); else the group mean (GRPO).
        scale_std: divide by the group's standard deviation (GRPO), which changes the optimum.

    Returns:
        (B, T) advantages.
    """
    returns = rewards.sum(1).view(-1, group_size)
    advantages = returns - returns.mean(1, keepdim=True)
    if leave_one_out:
        advantages = advantages * (group_size / (group_size - 1))
    if scale_std:
        advantages = advantages / (returns.std(1, keepdim=True) + 1e-4)
    return advantages.view(-1, 1) * mask


def whiten(values: Tensor, mask: Tensor) -> Tensor:
    """Values with mean 0 and standard deviation 1 over the masked entries, all tokens of the batch alike."""
    kept = values[mask]
    return torch.where(mask, (values - kept.mean()) / (kept.std() + 1e-8), torch.zeros_like(values))


def policy_loss(log_prob: Tensor, old_log_prob: Tensor, advantages: Tensor, mask: Tensor, clip: float = 0.2) -> Tensor:
    """PPO's clipped objective, negated: summed over the tokens of each completion, (B,).

    The caller averages over completions, so a token weighs the same in a long completion as in a short one and
    the first gradient of an epoch is the exact policy gradient.
    """
    ratio = torch.exp(log_prob - old_log_prob)
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + clip)
    return (torch.maximum(unclipped, clipped) * mask).sum(1)


def importance_weights(log_prob: Tensor, sampler_log_prob: Tensor, mask: Tensor, cap: float = math.inf) -> Tensor:
    """min(Q(z)/q(z), cap), (B,): what a completion counts that was drawn from q instead of Q, because another engine drew it.

    The ratio is that of the whole completion, as in TRL's ``vllm_importance_sampling_mode: sequence_truncate``. Without a cap
    E_q[Q/q · f] = E_Q[f] for any f of the completion, so the expected gradient is exact. Ratios of single tokens (``token_truncate``)
    vary less and leave a bias however large the cap: a token's prefix, and what followed it, was drawn from q as well (Liu et al.
    2025, "When Speed Kills Stability"). The cap bounds the variance, at the price of a bias where it is reached (Ionides 2008; for
    language models Yao et al. 2025, "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training").

    Args:
        log_prob, sampler_log_prob: (B, T) of the actions under Q and under q.
    """
    return ((log_prob - sampler_log_prob) * mask).sum(1).exp().clamp(max=cap)


def mismatch_kl(log_prob: Tensor, sampler_log_prob: Tensor, mask: Tensor) -> float:
    """Nats per token of KL(q‖Q), estimated from samples of q by the mean of r − 1 − log r with r = Q/q, which is never negative."""
    log_ratio = (log_prob - sampler_log_prob).double()[mask]
    return (log_ratio.expm1() - log_ratio).mean().item()


def answer_loss(log_probs: Sequence[Tensor], signal: Literal["log_prob", "prob"] = "log_prob") -> Tensor:
    """−log π(y*|x,z), or −π(y*|x,z), of each completion, (B,): the part of a live scorer's gradient that goes through y*.

    The gradient of π is that of log π times π itself (VeriFree), that of log π LaTRO's second term.

    Args:
        log_probs: per completion those of the tokens of y*; empty where none is forced, which costs nothing.
    """
    total = torch.stack([values.sum() for values in log_probs])
    forced = torch.tensor([len(values) > 0 for values in log_probs], device=total.device)
    return -(total.exp() if signal == "prob" else total) * forced


def masked_mean(values: Tensor, mask: Tensor) -> float:
    """Mean over the masked entries; nan if there is none."""
    return values[mask].float().mean().item()


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> float:
    """1 − Var(return − value) / Var(return) over the masked entries: 1 is a perfect critic, 0 a constant one."""
    spread = returns[mask].var()
    return (1 - (returns[mask] - values[mask]).var() / spread).item() if spread > 0 else float("nan")
