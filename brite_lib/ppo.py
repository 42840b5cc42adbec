"""The ψ-update: learn Q_ψ(z|x) ≈ P(z|x, y*, o = 1; θ) by PPO in the entropy-regularised token MDP (BRiTE section 3.4).

One step: sample rationales from Q at temperature 1; one forward of frozen θ over x·z·y* gives the KL and the
reward together; token rewards, advantages, a few clipped updates. With c = 1 and reward (i) the objective is the
ELBO E_Q[log P_θ(y*|x,z)] − KL(Q‖P_θ), whose maximum is the posterior (Proposition 3.7). LaTRO, GRPO, RLOO and
VeriFree are other settings of the same trainer (brite_lib/params/latro.py lists them).

The loop is ours, on accelerate: TRL has had no PPOTrainer since 1.13, and its GRPOTrainer would need all of
``_generate_and_score_completions`` replaced (forced y*, z-only actions, a critic). Shapes: B completions of a
batch, T action tokens after padding, K completions of one problem in consecutive rows.

Several processes (``accelerate launch``) share each step's work and follow the trajectory of one: every rank samples, scores and judges
its part of the batch, all of them then have the whole batch and compute the same advantages from it, and each does the forward and
backward passes of its part of a minibatch. With FSDP2 the weights are shared out too (brite_lib/sharding.py).
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import get_scheduler

from brite_lib import costs
from brite_lib.advantages import (
    answer_loss,
    explained_variance,
    gae,
    group_advantages,
    importance_weights,
    policy_loss,
    token_rewards,
    whiten,
)
from brite_lib.agent import PolicyWithCritic
from brite_lib.checkpointing import load_state, save_state
from brite_lib.errors import InputError
from brite_lib.experience import Experience, actions_and_forced, pad
from brite_lib.likelihood import length_sorted, score
from brite_lib.models import Reference, attach_lora, disable_dropout, merged, warn_of_lost_steps
from brite_lib.params import PsiParams as PosteriorPPOConfig
from brite_lib.progress import progress
from brite_lib.ranks import in_shares, totals
from brite_lib.rewards import TerminalReward, terminal_reward
from brite_lib.rollouts import sample, sample_seed
from brite_lib.sharding import fill, gathered, shard, wants_shards, whole, without_weights
from brite_lib.template import Completion, RationaleTemplate
from brite_lib.unfinished import Unfinished
from brite_lib.vllm_engine import Drawn
from brite_lib.vllm_rollouts import CANARY_PROMPTS, VllmRollouts

__all__ = ["Experience", "PosteriorPPOConfig", "PosteriorPPOTrainer", "gae", "token_rewards"]


class PosteriorPPOTrainer:
    """Trains Q_ψ from θ_t.

    Args:
        model: θ_t. If it carries adapters, they are merged first: the anchor of the KL is this model, whole.
        template: tokens of prompts, rationales and answers.
        problems: rows with ``id``, ``question`` and ``answer``.
        config: see :class:`brite_lib.params.PsiParams`; its ``reward`` is used unless ``reward`` is given.
        reward: a terminal reward of your own.
        checkpoint: file to save the whole state in every ``save_steps`` steps; :meth:`train` resumes from it.
        log: called after every step as ``log(step, **metrics)``, in each process that has one.

    Raises:
        InputError: if the processes can't share a batch, or are to shard in a way that is not supported.
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
        self.problems = [dict(problem) for problem in problems]
        self._prompts: dict[str, list[int]] = {}
        self.reward = reward or terminal_reward(config)
        model = merged(model)
        disable_dropout(model)
        self.model = attach_lora(model, config.lora) if config.lora else model.requires_grad_(True)
        warn_of_lost_steps(self.model, config.learning_rate)
        self.reference = Reference(self.model)
        torch.manual_seed(sample_seed(config.seed, "value head"))
        self.agent = PolicyWithCritic(self.model, config.advantage == "gae", config.gradient_checkpointing)
        self._spread()
        updates = config.steps * config.epochs * config.minibatches
        self.scheduler = get_scheduler(
            config.lr_schedule if config.lr_schedule != "constant" else "constant_with_warmup",
            self.optimizer,
            num_warmup_steps=config.warmup_steps,
            num_training_steps=updates,
        )
        self.vllm: VllmRollouts | None = None  # None: the policy samples itself
        if config.rollout_engine == "vllm":
            prompts = [self._prompt_ids(problem["question"]) for problem in self.problems[:CANARY_PROMPTS]]
            directory = checkpoint.parent if checkpoint and self.accelerator.is_main_process else None  # one engine's files each
            self.vllm = VllmRollouts(self.agent, template, config, prompts, directory, self._empty)
        self.step = 0
        self.latest: Experience | None = None  # the last step's batch, for who looks on
        self.unfinished = Unfinished(config, self.reward.unfinished_default(), self.accelerator.print)
        self.tokens_generated = self.tokens_trained = 0
        self.seconds = self.seconds_before = 0.0  # of training in all, and of interrupted runs before this one
        self._spent_before = self._spent_by_all = costs.spent()

    def _spread(self) -> None:
        """Find the other processes, and make the module and the optimiser that train in all of them."""
        # Each process has put its model where it belongs; accelerate's place would be the first GPU, also with device: cuda:1.
        self.accelerator = Accelerator(device_placement=False, cpu=next(self.model.parameters()).device.type == "cpu")
        if self.accelerator.num_processes > 1:
            try:
                self.config.check_shares(self.accelerator.num_processes)
            except ValueError as error:
                raise InputError(str(error)) from None
        with self.reference.model() as theta:
            self._anchor = self.agent if theta is self.model else PolicyWithCritic(theta, use_critic=False)
        self._empty = None  # what train() fills and returns, where the weights are sharded
        if sharded := wants_shards(self.accelerator):
            self._empty = without_weights(self.model)
            for agent in dict.fromkeys([self.agent, self._anchor]):  # in the same order in all processes
                shard(agent)
        optimizer = torch.optim.AdamW(self._parameter_groups(), betas=(0.9, 0.95))
        self._trained, self.optimizer = (self.agent, optimizer) if sharded else self.accelerator.prepare(self.agent, optimizer)

    def train(self) -> nn.Module:
        """Run the remaining steps, from the checkpoint if there is one, and return Q_ψ.

        Of sharded weights the main process gets a whole copy on the CPU, and the others one without weights (on the meta device).
        """
        if self.step == 0:
            self.resume()
        started = time.perf_counter() - self.seconds
        steps, main = range(self.step, self.config.steps), self.accelerator.is_main_process
        with self.vllm or nullcontext():
            if self.unfinished.to_calibrate:
                self.unfinished.calibrate(len(self.problems), self._rewards_under_theta)
            for _ in progress(steps, desc="ψ-PPO") if main else steps:
                metrics = self.train_step()
                self.seconds = time.perf_counter() - started
                self.log(self.step, **metrics)
                if self.checkpoint is not None and (self.step % self.config.save_steps == 0 or self.step == self.config.steps):
                    self.save(self.checkpoint)
        return self.model if self._empty is None else fill(self._empty, self.model, keep=main)

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
        experience = self.experience(chosen, *self.rollout(chosen, "step", self.step))
        if self.step == 0:
            experience.assert_anchor(next(self.model.parameters()).dtype)
        self.latest = experience
        update = self.update(experience)
        self.step += 1
        self._share_costs()
        return {**self.metrics(experience), **update}

    def rollout(self, problems: Sequence[dict[str, Any]], *key: object) -> Drawn:
        """Sample one completion per row at temperature 1, each process its share; ``key`` tells draws apart."""
        prompts = [self._prompt_ids(problem["question"]) for problem in problems]
        seeds = [sample_seed(self.config.noise_seed, *key, row) for row in range(len(problems))]
        limit = self.config.max_rationale_tokens + (self.config.max_answer_tokens if self.reward.samples_answer else 0)
        to_boundary = not self.reward.samples_answer

        def draw(rows: list[int]) -> list[tuple[list[int], list[float] | None]]:
            mine = [prompts[i] for i in rows], [seeds[i] for i in rows]
            if self.vllm:
                return list(zip(*self.vllm.draw(*mine, limit, to_boundary), strict=True))
            with gathered(self.agent):
                ids = sample(self.model, self.template, *mine, 1.0, limit, to_boundary, self.config.batch_size)
            return [(completion, None) for completion in ids]

        ids, log_probs = zip(*in_shares(self.accelerator, len(prompts), draw), strict=True)
        self.tokens_generated += sum(map(len, ids))
        return Drawn(list(ids), list(log_probs) if self.vllm else None)

    def experience(
        self,
        problems: Sequence[dict[str, Any]],
        completion_ids: Sequence[Sequence[int]],
        sampler_log_probs: Sequence[Sequence[float]] | None = None,
    ) -> Experience:
        """Score completions, each process its share, and turn them into rewards and advantages; K consecutive rows share a problem.

        ``sampler_log_probs`` are those of the completions' tokens under the engine that drew them; None: it was the policy itself.
        """
        completions = [self._split(ids) for ids in completion_ids]
        prompts = [self._prompt_ids(problem["question"]) for problem in problems]
        actions, forced = actions_and_forced(problems, completions, self.reward, self.template, self.config.boundary_is_action)

        def judge(rows: list[int]) -> list[tuple[Tensor, Tensor, Tensor, Tensor, float | None]]:
            return self._judge(*([every[i] for i in rows] for every in (problems, prompts, completions, actions, forced)))

        judged = zip(*in_shares(self.accelerator, len(completions), judge), strict=True)
        reference, log_prob, entropy, values = (pad(next(judged)) for _ in range(4))
        terminal = self.unfinished.fill(next(judged))
        mask = pad([torch.ones(len(a), dtype=torch.bool) for a in actions])
        rewards = token_rewards(log_prob, reference, terminal, mask, self.config.kl_coef)
        thinking = [torch.arange(len(ids)) < len(completion.rationale_ids) for ids, completion in zip(actions, completions, strict=True)]
        rewards -= self.config.brevity_cost * pad(thinking)
        advantages, returns = self._advantages(rewards, values, mask)
        sampler = log_prob
        if sampler_log_probs is not None:
            sampler = pad([log_prob.new_tensor(values[: len(a)]) for values, a in zip(sampler_log_probs, actions, strict=True)])
        importance = importance_weights(log_prob, sampler, mask, self.config.importance_cap)
        return Experience(
            *(problems, prompts, actions, forced, completions, mask),
            *(log_prob, sampler, importance, reference, entropy, values, rewards, terminal, advantages, returns),
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
        """What is minimised, (len(rows),): each completion's clipped objective, summed over tokens, plus (answer_nll_weight) the
        loss of y* behind it, both times what the completion counts, plus (gae) half its squared value error."""
        return self._losses(experience, rows)[0]

    def _losses(self, experience: Experience, rows: list[int]) -> tuple[Tensor, dict[str, float]]:
        weight = self.config.answer_nll_weight
        parts = [part for i in rows for part in (experience.actions[i], experience.forced[i] if weight else [])]
        completions = [[*actions, *forced] for actions, forced in zip(parts[::2], parts[1::2], strict=True)]
        log_prob, _, values = self._trained([experience.prompts[i] for i in rows], completions)
        log_prob, values = log_prob.split(list(map(len, parts))), values.split(list(map(len, parts)))
        answer, log_prob, values = log_prob[1::2], pad(log_prob[::2]), pad(values[::2])
        device = log_prob.device
        mask, old, advantages, returns = (
            tensor[rows, : log_prob.shape[1]].to(device)
            for tensor in (experience.mask, experience.log_prob, experience.advantages, experience.returns)
        )
        losses = policy_loss(log_prob, old, advantages, mask, self.config.clip)
        if weight:
            losses = losses + weight * answer_loss(answer, self.config.answer_signal)
        losses = losses * experience.importance[rows].to(device)
        if self.config.advantage == "gae":
            losses = losses + 0.5 * ((values - returns) ** 2 * mask).sum(1)
        with torch.no_grad():
            log_ratio = log_prob - old
            kl = ((log_ratio.exp() - 1 - log_ratio) * mask).sum().item()
            clipped = (((log_ratio.exp() - 1).abs() > self.config.clip) & mask).sum().item()
        return losses, {"approx_kl": kl, "clipfrac": clipped}

    def metrics(self, experience: Experience) -> dict[str, float]:
        """Statistics of a batch as it was sampled; sequence sums are per completion, in nats."""
        metrics = experience.metrics(self.reward.metric) | {"learning_rate": self.scheduler.get_last_lr()[0]}
        if self.config.advantage == "gae":
            metrics["explained_variance"] = explained_variance(experience.values, experience.returns, experience.mask)
        return metrics | (experience.mismatch() if self.vllm else {})

    @property
    def unfinished_reward(self) -> float | None:
        """What an unfinished rationale earns, in nats; None before it is calibrated, and with ``unfinished_rule: twice_mean``."""
        return self.unfinished.constant

    @property
    def flops(self) -> int:
        """Model FLOPs since this trainer was made, of all processes, those of interrupted runs before its checkpoint included."""
        return costs.spent() - self._spent_before

    def _share_costs(self) -> None:
        """Count here what the other processes have spent since they last told."""
        own = costs.spent() - self._spent_by_all
        costs.add(totals({"flops": own})["flops"] - own)
        self._spent_by_all = costs.spent()

    def save(self, path: Path) -> None:
        """Write the whole state of the run atomically. All processes must call this; the main one writes."""
        self._share_costs()  # what log has spent on validation
        save_state(self, path)

    def load(self, path: Path) -> None:
        """Continue where :meth:`save` left off; the next steps are those of a run that never stopped."""
        load_state(self, path)
        self._spent_by_all = costs.spent()  # the others have read the same

    def _prompt_ids(self, question: str) -> list[int]:
        """Token ids of x, made once per question: a step repeats each K times."""
        if question not in self._prompts:
            self._prompts[question] = self.template.prompt_ids(question)
        return self._prompts[question]

    def _split(self, ids: Sequence[int]) -> Completion:
        return self.template.split(ids, self.config.max_rationale_tokens, self.config.max_answer_tokens)

    def _parameter_groups(self) -> list[dict[str, Any]]:
        config, critic = self.config, self.agent.value_head
        policy = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [{"params": policy, "lr": config.learning_rate, "weight_decay": config.weight_decay}]
        if critic is not None:
            groups.append({"params": list(critic.parameters()), "lr": config.value_learning_rate, "weight_decay": 0.0})
        return groups

    def _prompt_indices(self, step: int) -> Iterator[int]:
        """Problems of a step: walks through seeded permutations, so the step number alone is the data cursor."""
        size, count = len(self.problems), self.config.prompts_per_step
        for position in range(step * count, (step + 1) * count):
            generator = torch.Generator().manual_seed(sample_seed(self.config.noise_seed, "epoch", position // size))
            yield torch.randperm(size, generator=generator)[position % size].item()

    def _rewards_under_theta(self, chosen: list[int], attempt: int) -> list[float | None]:
        """Terminal rewards of fresh rationales of these problems, as long as Q is θ."""
        problems = [self.problems[i] for i in chosen]
        completions = [self._split(ids) for ids in self.rollout(problems, "calibrate", attempt).ids]
        prompts = [self._prompt_ids(problem["question"]) for problem in problems]
        parts = actions_and_forced(problems, completions, self.reward, self.template, self.config.boundary_is_action)

        def judge(rows: list[int]) -> list[float | None]:
            with self._theta() as theta:
                answer = score(theta, *([every[i] for i in rows] for every in (prompts, *parts)), self.config.batch_size).answer
            mine = [problems[i] for i in rows], [completions[i] for i in rows]
            return self.reward.terminal(*mine, [values.sum().item() for values in answer])

        return in_shares(self.accelerator, len(problems), judge)

    @contextmanager
    def _theta(self) -> Iterator[nn.Module]:
        with self.reference.model() as theta, gathered(self._anchor):
            yield theta

    def _judge(
        self,
        problems: list[dict[str, Any]],
        prompts: list[list[int]],
        completions: list[Completion],
        actions: list[list[int]],
        forced: list[list[int]],
    ) -> list[tuple[Tensor, Tensor, Tensor, Tensor, float | None]]:
        """Per completion: log P_θ, log Q, entropy and value of its actions, and its terminal reward, None if it is unfinished."""
        nothing, live = [[]] * len(actions), self.config.scorer == "live"
        with self._theta() as theta:
            anchor = score(theta, prompts, actions, nothing if live else forced, self.config.batch_size)
        policy, answer = self.agent.judge(prompts, actions, forced if live else nothing, self.config.batch_size)
        answer = answer if live else [part.sum().item() for part in anchor.answer]
        terminal = self.reward.terminal(problems, completions, answer)
        return [(reference, *old, reward) for reference, old, reward in zip(anchor.rationale, policy, terminal, strict=True)]

    def _advantages(self, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        config = self.config
        if config.advantage == "gae":
            advantages, returns = gae(rewards, values, mask, 1.0, config.gae_lambda)
        else:
            advantages = group_advantages(rewards, mask, config.rationales_per_prompt, config.advantage == "rloo", config.scale_group_std)
            returns = torch.zeros_like(rewards)
        return (whiten(advantages, mask) if config.whiten_advantages else advantages), returns

    def _optimise(self, experience: Experience, rows: list[int]) -> dict[str, float]:
        """One optimiser step on some completions, each process its share in micro-batches of similar length."""
        sums = {"loss": 0.0, "approx_kl": 0.0, "clipfrac": 0.0}
        mine = rows[self.accelerator.process_index :: self.accelerator.num_processes]
        parts = list(length_sorted([(experience.prompts[i], experience.actions[i]) for i in mine], self.config.micro_batch_size))
        for part in parts:
            alone = part is not parts[-1] and self._empty is None  # shards have no room to keep whole gradients until the last part
            with self.accelerator.no_sync(self._trained) if alone else nullcontext():
                losses, statistics = self._losses(experience, [mine[i] for i in part])
                loss = losses.sum()
                self.accelerator.backward(loss / len(mine))  # the processes' gradients are averaged
            for name, value in {"loss": loss.item(), **statistics}.items():
                sums[name] += value
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.max_grad_norm)
        if self.agent.value_head is not None:  # apart, so that a young critic's large error does not shrink the policy's step
            self.accelerator.clip_grad_norm_(self.agent.value_head.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad()
        tokens = experience.mask[rows].sum().item()
        self.tokens_trained += tokens + (sum(len(experience.forced[i]) for i in rows) if self.config.answer_nll_weight else 0)
        per = {"loss": len(rows), "approx_kl": max(tokens, 1), "clipfrac": max(tokens, 1)}
        return {"grad_norm": whole(norm).item(), **{name: value / per[name] for name, value in totals(sums).items()}}
