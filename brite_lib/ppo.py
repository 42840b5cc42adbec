"""The ψ-update: learn Q_ψ(z|x) ≈ P(z|x, y*, o = 1; θ) by PPO in the entropy-regularised token MDP (BRiTE section 3.4).

One step: sample rationales from Q at temperature 1; one forward of frozen θ over x·z·y* gives the KL and the
reward together; token rewards, advantages, a few clipped updates. With c = 1 and reward (i) the objective is the
ELBO E_Q[log P_θ(y*|x,z)] − KL(Q‖P_θ), whose maximum is the posterior (Proposition 3.7). LaTRO, GRPO, RLOO and
VeriFree are other settings of the same trainer (brite_lib/params/latro.py lists them).

The loop is ours, on accelerate: TRL has had no PPOTrainer since 1.13, and its GRPOTrainer would need all of
``_generate_and_score_completions`` replaced (forced y*, z-only actions, a critic). Shapes: B completions of a
batch, T action tokens after padding, K completions of one problem in consecutive rows.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from brite_lib import costs
from brite_lib.advantages import answer_loss, explained_variance, gae, group_advantages, masked_mean, policy_loss, token_rewards, whiten
from brite_lib.agent import PolicyWithCritic
from brite_lib.checkpointing import load_state, save_state
from brite_lib.likelihood import length_sorted, score
from brite_lib.models import Reference, attach_lora, disable_dropout, merged
from brite_lib.params import PsiParams as PosteriorPPOConfig
from brite_lib.progress import progress
from brite_lib.rewards import TerminalReward, terminal_reward
from brite_lib.rollouts import sample, sample_seed
from brite_lib.template import Completion, RationaleTemplate

__all__ = ["Experience", "PosteriorPPOConfig", "PosteriorPPOTrainer", "gae", "token_rewards"]

CALIBRATION_SAMPLES = 256
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
    reference_log_prob: Tensor
    entropy: Tensor
    values: Tensor
    rewards: Tensor
    terminal: Tensor  # (B,)
    advantages: Tensor
    returns: Tensor


class PosteriorPPOTrainer:
    """Trains Q_ψ from θ_t.

    Args:
        model: θ_t. If it carries adapters, they are merged first: the anchor of the KL is this model, whole.
        template: tokens of prompts, rationales and answers.
        problems: rows with ``id``, ``question`` and ``answer``.
        config: see :class:`brite_lib.params.PsiParams`; its ``reward`` is used unless ``reward`` is given.
        reward: a terminal reward of your own.
        checkpoint: file to save the whole state in every ``save_steps`` steps; :meth:`train` resumes from it.
        log: called after every step as ``log(step, **metrics)``.

    Raises:
        RuntimeError: at step 0, if log Q and log P_θ of the same tokens differ.
    """

    def __init__(
        self,
        model: nn.Module,
        template: RationaleTemplate,
        problems: Sequence[dict[str, Any]],
        config: PosteriorPPOConfig,
        reward: TerminalReward | None = None,
        checkpoint: Path | None = None,
        log: Callable[..., None] | None = None,
    ):
        self.config, self.template, self.checkpoint, self.log = config, template, checkpoint, log or (lambda step, **metrics: None)
        self.problems = list(problems)
        self._prompts: dict[str, list[int]] = {}
        self.reward = reward or terminal_reward(config)
        model = merged(model)
        disable_dropout(model)
        self.model = attach_lora(model, config.lora) if config.lora else model.requires_grad_(True)
        self.reference = Reference(self.model)
        self.accelerator = Accelerator(cpu=next(model.parameters()).device.type == "cpu")
        torch.manual_seed(sample_seed(config.seed, "value head"))
        agent = PolicyWithCritic(self.model, config.advantage == "gae")
        optimizer = torch.optim.AdamW(self._parameter_groups(agent), betas=(0.9, 0.95))
        self.agent, self.optimizer = self.accelerator.prepare(agent, optimizer)
        updates = config.steps * config.epochs * config.minibatches
        self.scheduler = get_scheduler(
            config.lr_schedule if config.lr_schedule != "constant" else "constant_with_warmup",
            self.optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=updates,
        )
        self.step = 0
        self.latest: Experience | None = None  # the last step's batch, for who looks on
        self.unfinished_reward = config.unfinished_reward if config.unfinished_reward is not None else self.reward.unfinished_default()
        self.tokens_generated = self.tokens_trained = 0
        self.seconds = self.seconds_before = 0.0  # of training in all, and of interrupted runs before this one
        self._spent_before = costs.spent()
        self._below_constant = self._finished = 0

    def train(self) -> nn.Module:
        """Run the remaining steps, from the checkpoint if there is one, and return Q_ψ."""
        if self.step == 0:
            self.resume()
        started = time.perf_counter() - self.seconds
        if self.unfinished_reward is None and self.config.unfinished_rule == "constant":
            self.unfinished_reward = self.calibrate()
        for _ in progress(range(self.step, self.config.steps), desc="ψ-PPO"):
            metrics = self.train_step()
            self.seconds = time.perf_counter() - started
            self.log(self.step, **metrics)
            if self.checkpoint is not None and (self.step % self.config.save_steps == 0 or self.step == self.config.steps):
                self.save(self.checkpoint)
        return self.model

    def resume(self) -> int:
        """Load the checkpoint if there is one; returns the step it stands at, -1 for a fresh start."""
        if self.checkpoint is None or not self.checkpoint.is_file():
            return -1
        self.load(self.checkpoint)
        self.seconds_before = self.seconds
        return self.step

    def train_step(self) -> dict[str, float]:
        """Sample one batch, update on it, and return the step's metrics."""
        chosen = [self.problems[i] for i in self._prompt_indices(self.step) for _ in range(self.config.rationales_per_prompt)]
        experience = self.experience(chosen, self.rollout(chosen, "step", self.step))
        if self.step == 0:
            self._assert_anchor(experience)
        self.latest = experience
        update = self.update(experience)
        self.step += 1
        return {**self.metrics(experience), **update}

    def rollout(self, problems: Sequence[dict[str, Any]], *key: object) -> list[list[int]]:
        """Sample one completion per row at temperature 1; ``key`` tells draws apart."""
        prompts = [self._prompt_ids(problem["question"]) for problem in problems]
        seeds = [sample_seed(self.config.noise_seed, *key, row) for row in range(len(problems))]
        limit = self.config.max_rationale_tokens + (self.config.max_answer_tokens if self.reward.samples_answer else 0)
        ids = sample(self.model, self.template, prompts, seeds, 1.0, limit, not self.reward.samples_answer, self.config.batch_size)
        self.tokens_generated += sum(map(len, ids))
        return ids

    def experience(self, problems: Sequence[dict[str, Any]], completion_ids: Sequence[Sequence[int]]) -> Experience:
        """Score completions and turn them into rewards and advantages; K consecutive rows share a problem."""
        completions = [self._split(ids) for ids in completion_ids]
        prompts = [self._prompt_ids(problem["question"]) for problem in problems]
        actions, forced = self._actions_and_forced(problems, completions)
        nothing, live = [[]] * len(actions), self.config.scorer == "live"
        with self.reference.model() as theta:
            anchor = score(theta, prompts, actions, nothing if live else forced, self.config.batch_size)
        reference = _pad(anchor.rationale)
        log_prob, entropy, values, answer = self._old_policy(prompts, actions, forced if live else nothing)
        terminal = self._terminal(problems, completions, answer if live else [part.sum().item() for part in anchor.answer])
        mask = _pad([torch.ones(len(a), dtype=torch.bool) for a in actions])
        rewards = token_rewards(log_prob, reference, terminal, mask, self.config.kl_coef)
        thinking = [torch.arange(len(ids)) < len(completion.rationale_ids) for ids, completion in zip(actions, completions, strict=True)]
        rewards -= self.config.brevity_cost * _pad(thinking)
        advantages, returns = self._advantages(rewards, values, mask)
        return Experience(
            *(problems, prompts, actions, forced, completions, mask),
            *(log_prob, reference, entropy, values, rewards, terminal, advantages, returns),
        )

    def update(self, experience: Experience) -> dict[str, float]:
        """Epochs of minibatch updates on one batch; returns their mean statistics."""
        statistics: list[dict[str, float]] = []
        for epoch in range(self.config.epochs):
            generator = torch.Generator().manual_seed(sample_seed(self.config.seed, "minibatch", self.step, epoch))
            order = torch.randperm(len(experience.actions), generator=generator)
            for rows in order.tensor_split(self.config.minibatches):
                statistics.append(self._optimise(experience, rows.tolist()))
        return {name: sum(entry[name] for entry in statistics) / len(statistics) for name in statistics[0]}

    def loss_per_completion(self, experience: Experience, rows: list[int]) -> Tensor:
        """What is minimised, (len(rows),): each completion's clipped objective, summed over tokens, plus (gae) half its squared
        value error, plus (answer_nll_weight) the loss of y* behind it."""
        return self._losses(experience, rows)[0]

    def _losses(self, experience: Experience, rows: list[int]) -> tuple[Tensor, dict[str, float]]:
        weight = self.config.answer_nll_weight
        parts = [part for i in rows for part in (experience.actions[i], experience.forced[i] if weight else [])]
        completions = [[*actions, *forced] for actions, forced in zip(parts[::2], parts[1::2], strict=True)]
        log_prob, _, values = self.agent([experience.prompts[i] for i in rows], completions)
        log_prob, values = log_prob.split(list(map(len, parts))), values.split(list(map(len, parts)))
        answer, log_prob, values = log_prob[1::2], _pad(log_prob[::2]), _pad(values[::2])
        device = log_prob.device
        mask, old, advantages, returns = (
            tensor[rows, : log_prob.shape[1]].to(device)
            for tensor in (experience.mask, experience.log_prob, experience.advantages, experience.returns)
        )
        losses = policy_loss(log_prob, old, advantages, mask, self.config.clip)
        if self.config.advantage == "gae":
            losses = losses + 0.5 * ((values - returns) ** 2 * mask).sum(1)
        if weight:
            losses = losses + weight * answer_loss(answer, self.config.answer_signal)
        with torch.no_grad():
            log_ratio = log_prob - old
            kl = ((log_ratio.exp() - 1 - log_ratio) * mask).sum().item()
            clipped = (((log_ratio.exp() - 1).abs() > self.config.clip) & mask).sum().item()
        return losses, {"approx_kl": kl, "clipfrac": clipped}

    def metrics(self, experience: Experience) -> dict[str, float]:
        """Statistics of a batch as it was sampled; sequence sums are per completion, in nats."""
        finished = torch.tensor([completion.finished for completion in experience.completions])
        kl = ((experience.log_prob - experience.reference_log_prob) * experience.mask).sum(1)
        metrics = {
            f"reward/{self.reward.metric}": experience.terminal[finished].mean().item() if finished.any() else math.nan,
            "reward/terminal": experience.terminal.mean().item(),
            "elbo": (experience.terminal - self.config.kl_coef * kl).mean().item(),
            "kl": kl.mean().item(),
            "entropy": masked_mean(experience.entropy, experience.mask),
            "rationale_length": sum(map(len, experience.actions)) / len(experience.actions),
            "finished": finished.float().mean().item(),
            "learning_rate": self.scheduler.get_last_lr()[0],
        }
        if self.config.advantage == "gae":
            metrics["explained_variance"] = explained_variance(experience.values, experience.returns, experience.mask)
        return metrics

    def calibrate(self) -> float:
        """The constant for unfinished rationales: a margin below the lowest of the first 256 finished rewards under θ.

        Raises:
            RuntimeError: if nothing that θ samples is finished.
        """
        rewards: list[float] = []
        for attempt in range(8):
            rows = torch.randint(len(self.problems), (CALIBRATION_SAMPLES,), generator=torch.Generator().manual_seed(attempt))
            chosen = [self.problems[i] for i in rows.tolist()]
            completions = [self._split(ids) for ids in self.rollout(chosen, "calibrate", attempt)]
            prompts = [self._prompt_ids(problem["question"]) for problem in chosen]
            with self.reference.model() as theta:
                answer = score(theta, prompts, *self._actions_and_forced(chosen, completions), self.config.batch_size).answer
            terminal = self.reward.terminal(chosen, completions, [values.sum().item() for values in answer])
            rewards += [value for value in terminal if value is not None]
            if len(rewards) >= CALIBRATION_SAMPLES:
                break
        if not rewards:
            raise RuntimeError(
                "no rationale that θ sampled was finished; raise max_rationale_tokens, check template.boundary, or set unfinished_reward"
            )
        lowest = min(rewards[:CALIBRATION_SAMPLES])
        constant = lowest - self.config.unfinished_margin
        print(f"reward of unfinished rationales: {constant:.2f} (lowest finished one: {lowest:.2f})")
        return constant

    @property
    def flops(self) -> int:
        """Model FLOPs since this trainer was made, those of interrupted runs before its checkpoint included."""
        return costs.spent() - self._spent_before

    def save(self, path: Path) -> None:
        """Write the whole state of the run atomically."""
        save_state(self, path)

    def load(self, path: Path) -> None:
        """Continue where :meth:`save` left off; the next steps are those of a run that never stopped."""
        load_state(self, path)

    def _prompt_ids(self, question: str) -> list[int]:
        """Token ids of x, made once per question: a step repeats each K times."""
        if question not in self._prompts:
            self._prompts[question] = self.template.prompt_ids(question)
        return self._prompts[question]

    def _split(self, ids: Sequence[int]) -> Completion:
        return self.template.split(ids, self.config.max_rationale_tokens, self.config.max_answer_tokens)

    def _parameter_groups(self, agent: PolicyWithCritic) -> list[dict[str, Any]]:
        config = self.config
        policy = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [{"params": policy, "lr": config.learning_rate, "weight_decay": config.weight_decay}]
        if agent.value_head is not None:
            groups.append({"params": list(agent.value_head.parameters()), "lr": config.value_learning_rate, "weight_decay": 0.0})
        return groups

    def _prompt_indices(self, step: int) -> Iterator[int]:
        """Problems of a step: walks through seeded permutations, so the step number alone is the data cursor."""
        size, count = len(self.problems), self.config.prompts_per_step
        for position in range(step * count, (step + 1) * count):
            generator = torch.Generator().manual_seed(sample_seed(self.config.noise_seed, "epoch", position // size))
            yield torch.randperm(size, generator=generator)[position % size].item()

    def _actions_and_forced(
        self, problems: Sequence[dict[str, Any]], completions: Sequence[Completion]
    ) -> tuple[list[list[int]], list[list[int]]]:
        """Tokens of each completion that are the policy's actions, and those that are scored behind them."""
        actions = [self.reward.actions(completion) for completion in completions]
        forced = [self.reward.forced(p, c, self.template) for p, c in zip(problems, completions, strict=True)]
        if not self.config.boundary_is_action:
            for i, completion in enumerate(completions):
                start = self.template.boundary_start(actions[i]) if completion.finished else len(actions[i])
                actions[i], forced[i] = actions[i][:start], [*actions[i][start:], *forced[i]]
        return actions, forced

    def _terminal(self, problems: Sequence[dict[str, Any]], completions: list[Completion], forced_log_prob: list[float]) -> Tensor:
        """Terminal rewards (B,), those of unfinished completions filled in."""
        rewards = self.reward.terminal(problems, completions, forced_log_prob)
        if self.config.unfinished_rule == "twice_mean":
            finished = [reward for reward in rewards if reward is not None]
            unfinished = 2 * sum(finished) / len(finished) if finished else 0.0  # alone in a batch, any number is the same
        else:
            self._watch_constant(rewards)
            unfinished = self.unfinished_reward
        return torch.tensor([unfinished if reward is None else reward for reward in rewards], dtype=torch.float32)

    @torch.no_grad()
    def _old_policy(
        self, prompts: list[list[int]], actions: list[list[int]], forced: list[list[int]]
    ) -> tuple[Tensor, Tensor, Tensor, list[float]]:
        """log Q, entropy and value of the sampled actions, (B, T) each; and log Q of the forced tokens behind them, summed."""
        flat: list[tuple[Tensor, ...]] = [()] * len(actions)
        answers = [0.0] * len(actions)
        for rows in length_sorted(list(zip(prompts, actions, forced, strict=True)), self.config.batch_size):
            outputs = self.agent([prompts[i] for i in rows], [[*actions[i], *forced[i]] for i in rows], entropy=True)
            split = [output.cpu().split([len(actions[i]) + len(forced[i]) for i in rows]) for output in outputs]
            for place, i in enumerate(rows):
                flat[i] = tuple(part[place][: len(actions[i])] for part in split)
                answers[i] = split[0][place][len(actions[i]) :].sum().item()
        return *(_pad([row[kind] for row in flat]) for kind in range(3)), answers

    def _advantages(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.advantage == "gae":
            advantages, returns = gae(rewards, values, mask, 1.0, config.gae_lambda)
        else:
            advantages = group_advantages(rewards, mask, config.rationales_per_prompt, config.advantage == "rloo", config.scale_group_std)
            returns = torch.zeros_like(rewards)
        return (whiten(advantages, mask) if config.whiten_advantages else advantages), returns

    def _optimise(self, experience: Experience, rows: list[int]) -> dict[str, float]:
        """One optimiser step on some completions, in micro-batches of similar length."""
        totals = {"loss": 0.0, "approx_kl": 0.0, "clipfrac": 0.0}
        lengths = [(experience.prompts[i], experience.actions[i]) for i in rows]
        for part in length_sorted(lengths, self.config.micro_batch_size):
            losses, statistics = self._losses(experience, [rows[i] for i in part])
            loss = losses.sum()
            self.accelerator.backward(loss / len(rows))
            for name, value in {"loss": loss.item(), **statistics}.items():
                totals[name] += value
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if self.agent.value_head is not None:  # apart, so that a young critic's large error does not shrink the policy's step
            self.accelerator.clip_grad_norm_(self.agent.value_head.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        tokens = experience.mask[rows].sum().item()
        self.tokens_trained += tokens + (sum(len(experience.forced[i]) for i in rows) if self.config.answer_nll_weight else 0)
        per = {"loss": len(rows), "approx_kl": max(tokens, 1), "clipfrac": max(tokens, 1)}
        return {"grad_norm": float(norm), **{name: total / per[name] for name, total in totals.items()}}

    def _assert_anchor(self, experience: Experience) -> None:
        difference = ((experience.log_prob - experience.reference_log_prob) * experience.mask).abs().max().item()
        tolerance = STEP_ZERO_TOLERANCE[next(self.model.parameters()).dtype]
        if not difference <= tolerance:
            raise RuntimeError(
                f"at step 0 log Q and log P_θ differ by {difference:.2e} (> {tolerance:.0e}): θ is not the model that ψ starts from"
            )

    def _watch_constant(self, rewards: Sequence[float | None]) -> None:
        """Warn once when more than 1 % of the finished rewards are worse than being unfinished."""
        finished = [reward for reward in rewards if reward is not None]
        below = sum(reward < self.unfinished_reward for reward in finished)
        quiet = self._below_constant <= 0.01 * self._finished
        self._below_constant, self._finished = self._below_constant + below, self._finished + len(finished)
        if quiet and self._below_constant > 0.01 * self._finished:
            print(f"warning: over 1 % of finished rewards lie below unfinished_reward = {self.unfinished_reward:.2f}; lower it")


def _pad(rows: Sequence[Tensor]) -> Tensor:
    """Rows of different lengths as (B, T), padded with zeros; T is at least 1."""
    padded = nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
    return padded if padded.shape[1] else nn.functional.pad(padded, (0, 1))
