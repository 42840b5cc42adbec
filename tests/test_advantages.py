"""Token rewards, GAE and the clipped objective against numbers worked by hand (issue check 4)."""

import math

import pytest
import torch

from brite_lib.advantages import explained_variance, group_advantages, policy_loss, token_rewards, whiten
from brite_lib.ppo import gae
from brite_lib.ppo import token_rewards as exported

MASK = torch.tensor([[True, True, True], [True, True, False]])


def test_token_rewards():
    log_prob = torch.tensor([[-1.0, -2.0, -0.5], [-1.0, -1.0, 7.0]])  # 7 stands in the padding
    reference = torch.tensor([[-1.5, -1.0, -0.5], [-3.0, -0.5, 9.0]])
    rewards = token_rewards(log_prob, reference, torch.tensor([-4.0, -6.0]), MASK, kl_coef=0.5)
    # row 1: -0.5·(0.5, -1, 0), and -4 on its third token; row 2: -0.5·(2, -0.5), and -6 on its second
    assert torch.allclose(rewards, torch.tensor([[-0.25, 0.5, -4.0], [-1.0, 0.25 - 6.0, 0.0]]))
    assert exported is token_rewards


def test_the_terminal_reward_stands_on_the_last_action_wherever_actions_begin():
    nothing, mask = torch.zeros(2, 3), torch.tensor([[0.0, 1.0, 1.0], [0.0, 1.0, 0.0]])
    assert token_rewards(nothing, nothing, torch.tensor([-4.0, -6.0]), mask).tolist() == [[0, 0, -4], [0, -6, 0]]


def test_gae_with_lambda():
    rewards = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]])
    values = torch.tensor([[0.5, 1.0, 1.5], [1.0, 2.0, 9.0]])  # 9 stands in the padding and must not leak in
    advantages, returns = gae(rewards, values, MASK, gamma=1.0, lam=0.5)
    # row 1: δ = (1+1-0.5, 0+1.5-1, 2-1.5) = (1.5, 0.5, 0.5); A₃ = 0.5, A₂ = 0.5+0.25 = 0.75, A₁ = 1.5+0.375 = 1.875
    # row 2: δ = (0+2-1, 3-2) = (1, 1); A₂ = 1, A₁ = 1.5
    assert torch.allclose(advantages, torch.tensor([[1.875, 0.75, 0.5], [1.5, 1.0, 0.0]]))
    assert torch.allclose(returns, torch.tensor([[2.375, 1.75, 2.0], [2.5, 3.0, 0.0]]))


def test_gae_with_lambda_one_is_the_return_to_go_minus_the_value():
    rewards = torch.tensor([[1.0, 0.0, 2.0]])
    values = torch.tensor([[0.5, 1.0, 1.5]])
    advantages, returns = gae(rewards, values, MASK[:1], lam=1.0)
    assert torch.allclose(advantages, torch.tensor([[2.5, 1.0, 0.5]]))
    assert torch.allclose(returns, torch.tensor([[3.0, 2.0, 2.0]]))


def test_gae_discounts():
    advantages, _ = gae(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), gamma=0.5, lam=1.0)
    assert torch.allclose(advantages, torch.tensor([[0.5, 1.0]]))


def test_group_advantages():
    rewards = torch.tensor([[1.0, 2.0], [0.0, 1.0], [5.0, 0.0], [1.0, 0.0]])  # returns 3, 1 | 5, 1
    mask = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    rloo = group_advantages(rewards, mask, 2, leave_one_out=True)
    assert torch.allclose(rloo, torch.tensor([[2.0, 2.0], [-2.0, -2.0], [4.0, 0.0], [-4.0, 0.0]]))
    group = group_advantages(rewards, mask, 2, leave_one_out=False)
    assert torch.allclose(group, rloo / 2)
    scaled = group_advantages(rewards, mask, 2, leave_one_out=False, scale_std=True)
    assert scaled[0, 0].item() == pytest.approx(1 / (math.sqrt(2) + 1e-4), rel=1e-5)


def test_policy_loss_clips_only_what_went_too_far():
    old = torch.zeros(1, 4)
    log_prob = torch.log(torch.tensor([[1.5, 0.5, 1.5, 0.5]]))
    advantages = torch.tensor([[1.0, 1.0, -1.0, -1.0]])
    loss = policy_loss(log_prob, old, advantages, torch.ones(1, 4, dtype=torch.bool), clip=0.2)
    assert loss.tolist() == pytest.approx([-1.2 - 0.5 + 1.5 + 0.8])


def test_whiten_and_explained_variance_ignore_padding():
    values = torch.tensor([[1.0, 3.0, 100.0]])
    mask = torch.tensor([[True, True, False]])
    assert torch.allclose(whiten(values, mask), torch.tensor([[-1.0, 1.0, 0.0]]) / math.sqrt(2), atol=1e-6)
    assert explained_variance(values, values, mask) == 1.0
    assert explained_variance(torch.zeros(1, 3), values, mask) == 0.0
