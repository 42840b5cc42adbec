"""Rollouts of ψ-PPO by vLLM: the engine gets the policy's weights before every draw, and has to prove it (docs/vllm.md).

The engine holds nothing that a run depends on, so a resumed run draws the same samples. With LoRA the adapter alone goes over
and runs unmerged. On the policy's own GPU the engine sleeps while the policy learns.
"""

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from pathlib import Path
from typing import Self

import torch
from peft import PeftModel
from torch import nn
from transformers.utils import logging

from brite_lib import costs
from brite_lib.agent import PolicyWithCritic
from brite_lib.checkpointing import trained_weights
from brite_lib.errors import InputError
from brite_lib.params import PsiParams, check_engine
from brite_lib.rollouts import open_sampler, sample_with_vllm
from brite_lib.sharding import fill, gathered, whole
from brite_lib.template import RationaleTemplate
from brite_lib.vllm_engine import SCRATCH, Drawn, VllmEngine

CANARY_PROMPTS, CANARY_TOKENS = 8, 32
CANARY_TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}  # nats, mean over the canary's tokens


class VllmRollouts:
    """A vLLM engine for a policy that is being trained; use it as a context manager.

    Args:
        agent: the present weights of its policy are what every draw is from.
        prompts: token ids that the canary goes on from.
        directory: for ``vllm.log`` and for weights on their way; None: the system's temporary directory.
        empty: of a policy in shards, its copy :func:`brite_lib.sharding.without_weights`; all processes must then draw at the same time.

    Raises:
        InputError: if vLLM is not installed, or there is no such ``rollout_device``.
    """

    def __init__(
        self,
        agent: PolicyWithCritic,
        template: RationaleTemplate,
        config: PsiParams,
        prompts: Sequence[list[int]],
        directory: Path | None,
        empty: nn.Module | None = None,
    ):
        check_engine("vllm", "rollout_engine")
        self._agent, self._policy, self._empty = agent, agent.policy, empty
        self._template, self._config, self._directory = template, config, directory
        self._canary = prompts
        for model in filter(None, [agent.policy, empty]):
            causal = model.get_base_model() if isinstance(model, PeftModel) else model
            # transformers would write weights in the first process only, but each has an engine that reads its own.
            causal.should_save_on_this_rank = lambda is_main_process: True
        own = next(self._policy.parameters()).device
        home = f"cuda:{own.index or 0}" if own.type == "cuda" else own.type
        self._device = home if config.rollout_device == "auto" else config.rollout_device
        if self._device.startswith("cuda:") and int(self._device[5:]) >= torch.cuda.device_count():
            raise InputError(f"rollout_device: there is no {self._device} here, only {torch.cuda.device_count()} GPUs")
        self._shares_gpu = own.type == "cuda" and self._device == home
        self._engine: VllmEngine | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.__exit__(*error)
        self._engine = None

    def draw(self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], max_new_tokens: int, stop_at_boundary: bool) -> Drawn:
        """One completion per prompt of the policy as it is now, at temperature 1, with vLLM's log-probabilities of its tokens.

        Raises:
            RuntimeError: if the engine fails, or does not compute what the policy computes.
        """
        self._bring_weights()
        with costs.not_counted():
            self._check()
        drawn = sample_with_vllm(self._engine, self._template, prompts, seeds, 1.0, max_new_tokens, stop_at_boundary)
        if self._shares_gpu:
            self._engine.sleep()
        return drawn

    def _bring_weights(self) -> None:
        if self._shares_gpu:
            torch.cuda.empty_cache()  # what torch keeps for itself is not free for the engine
        if self._engine is None:
            memory = self._config.rollout_memory if self._shares_gpu else None
            dtype = str(next(self._policy.parameters()).dtype).removeprefix("torch.")
            options = {"device": self._device, "dtype": dtype, "directory": self._directory}
            if self._directory:
                self._directory.mkdir(parents=True, exist_ok=True)
            policy = self._policy if self._empty is None else fill(deepcopy(self._empty), self._policy, keep=True)
            sampler = open_sampler(policy, "vllm", **options, memory=memory, sleeps=self._shares_gpu)
            with _no_bars():
                self._engine = self._stack.enter_context(sampler)
            if self._empty is not None:
                policy.to("meta")  # its weights lie on disk now
            return
        weights = tempfile.mkdtemp(prefix=SCRATCH, dir=self._directory)
        try:
            with _no_bars():
                shards = {} if self._empty is None else {"state_dict": whole(trained_weights(self._policy))}
                self._policy.save_pretrained(weights, **shards)
            self._engine.load(weights)
        finally:
            shutil.rmtree(weights)

    def _check(self) -> None:
        """The canary: greedy tokens of fixed prompts, by vLLM, must be the policy's own, with the policy's log-probabilities."""
        tokens = min(CANARY_TOKENS, self._config.max_rationale_tokens)
        ids, log_probs = sample_with_vllm(self._engine, self._template, self._canary, [0] * len(self._canary), 0.0, tokens)
        dtype = next(self._policy.parameters()).dtype
        with gathered(self._agent):
            difference = canary_difference(self._policy, self._canary, ids, log_probs)
        if not difference <= CANARY_TOLERANCE[dtype]:
            raise RuntimeError(
                f"rollout_engine: vllm does not sample from the policy: on the canary's greedy tokens their log-probabilities differ by "
                f"{difference:.1e} nats on average, {CANARY_TOLERANCE[dtype]:g} is allowed; set rollout_engine: hf"
            )


@contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' progress bar of every file that it writes."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@torch.no_grad()
def canary_difference(
    policy: nn.Module, prompts: Sequence[list[int]], ids: Sequence[list[int]], log_probs: Sequence[Sequence[float]]
) -> float:
    """How far another engine's greedy completions are from the policy's, in nats, a mean over tokens.

    For each token, how much the policy's own log-probability differs from the engine's, or, where that is more, falls short of the
    policy's best token: two engines may break a tie differently, but may not prefer another token.
    """
    device = next(policy.parameters()).device
    differences = []
    for prompt, completion, values in zip(prompts, ids, log_probs, strict=True):
        logits = policy(input_ids=torch.tensor([prompt + completion], device=device)).logits[0, len(prompt) - 1 : -1]
        own = logits.float().log_softmax(-1)
        chosen = own.gather(1, torch.tensor(completion, device=device)[:, None])[:, 0]
        engine = torch.tensor(values, device=device)
        differences.append(torch.maximum((chosen - engine).abs(), own.max(1).values - chosen))
    return torch.cat(differences).mean().item()
