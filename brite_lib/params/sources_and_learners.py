"""Parameters of the rationale sources and the learners."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from brite_lib.params.base import Float, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from brite_lib.params.stage import EngineStageParams, LoraParams, SamplingStageParams, check_engine
from brite_lib.params.training import TrainingStageParams, check_batch


class PsiParams(EngineStageParams, TrainingStageParams):
    """ψ-update: learn Q_ψ(z|x) ≈ P(z|x, y*, o = 1; θ) by PPO (BRiTE section 3.4; design section 4)."""

    kind = "brite_psi"

    reward: Literal["answer_likelihood", "verifier"] = Field(
        "answer_likelihood", description="reward (i) log P(y*|x,z;θ), or (ii) R/β of a verifier on a sampled y"
    )
    beta: PositiveFloat = Field(1.0, description="β of reward (ii): a correct answer is worth 1/β nats")
    kl_coef: NonNegativeFloat = Field(1.0, description="c; only 1 has the posterior as its optimum")
    brevity_cost: NonNegativeFloat = Field(
        0.0, description="nats that every sampled token of z costs, boundary included: a richer signal o that wants short thinking"
    )
    scorer: Literal["frozen", "live"] = Field(
        "frozen", description="who scores y* in reward (i): frozen θ, or the policy as it moves (LaTRO); the KL anchor is always θ"
    )
    answer_signal: Literal["log_prob", "prob"] = Field(
        "log_prob", description="reward (i) is log P(y*|x,z), or P(y*|x,z) itself (VeriFree)"
    )
    answer_nll_weight: NonNegativeFloat = Field(
        0.0, description="scorer: live also sends the gradient of its signal through y*, times this; 1 is exact"
    )
    boundary_is_action: bool = Field(
        True, description="false: the boundary is scored with y* and not with z, so log Q(z) teaches no stopping (LaTRO's code)"
    )
    unfinished_rule: Literal["constant", "twice_mean"] = Field(
        "constant", description="unfinished rationales earn a constant, or twice the mean reward of their batch (LaTRO's code)"
    )
    unfinished_reward: Float | None = Field(
        None, description="that constant; null: calibrated once (reward i), 0 (reward ii, or answer_signal: prob)"
    )
    unfinished_margin: NonNegativeFloat = Field(5.0, description="nats below the lowest of the first 256 finished rewards")
    advantage: Literal["gae", "rloo", "group"] = Field(
        "rloo", description="gae: learned critic (the paper's PPO); rloo: leave-one-out mean; group: group mean"
    )
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="λ of GAE (γ is 1)")
    scale_group_std: bool = Field(
        False, description="divide a group's advantages by their standard deviation (GRPO does; biases the posterior)"
    )
    whiten_advantages: bool = Field(False, description="standardise advantages over the batch")
    steps: PositiveInt = Field(112, description="policy updates: batches of fresh rationales")
    prompts_per_step: PositiveInt = Field(32, description="problems per batch")
    rationales_per_prompt: PositiveInt = Field(8, description="rationales sampled per problem")
    epochs: PositiveInt = Field(1, description="passes over a batch (the clipped objective matters from the second on)")
    minibatches: PositiveInt = Field(1, description="optimiser steps per pass")
    micro_batch_size: PositiveInt = Field(256, description="sequences per forward-backward pass of one process")
    learning_rate: PositiveFloat = Field(2e-4, description="AdamW, policy")
    value_learning_rate: PositiveFloat = Field(1e-3, description="AdamW, value head (gae)")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after warm-up")
    warmup_steps: NonNegativeInt = Field(0, description="updates of linear warm-up")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW, policy")
    clip: PositiveFloat = Field(0.2, description="ε of the clipped objective")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient norm is clipped to this")
    lora: LoraParams | None = Field(None, description="train adapters; null: all weights")
    rollout_engine: Literal["hf", "vllm"] = Field(
        "hf", description="who draws the rationales of each step: hf, or vllm, which gets the policy's weights each time (docs/vllm.md)"
    )
    rollout_device: str = Field(
        "auto", description="rollout_engine: vllm on which GPU; auto: the policy's own, where it sleeps while the policy learns"
    )
    rollout_memory: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.3, description="rollout_engine: vllm on the policy's GPU: share of the GPU's memory that it takes while it draws"
    )
    importance_cap: Annotated[float, Field(ge=1)] = Field(
        2.0, description="rollout_engine: vllm: a completion counts Q(z) over vLLM's probability of it, this at the most"
    )
    save_steps: PositiveInt = Field(25, description="checkpoint every so many updates")
    samples: PositiveInt = Field(1, description="rationales drawn from Q for every training problem at the end")
    monitor_problems: NonNegativeInt = Field(0, description="held-out problems of the EM monitor; 0: no monitor")
    monitor_samples: Annotated[int, Field(ge=2)] = Field(64, description="K of the EM monitor, rationales per held-out problem")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.advantage != "gae" and self.rationales_per_prompt < 2:
            raise ValueError(f"rationales_per_prompt must be at least 2 for advantage: {self.advantage}, or use advantage: gae")
        if self.minibatches > self.prompts_per_step * self.rationales_per_prompt:
            raise ValueError("minibatches must not exceed prompts_per_step × rationales_per_prompt")
        self._consistent_answer()
        if self.rollout_engine == "vllm":
            self._consistent_rollouts()
        return self

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """As :meth:`EngineStageParams.from_notebook`; the engine of the rollouts must be installed, too."""
        params = super().from_notebook(namespace)
        check_engine(params.rollout_engine, "rollout_engine")
        return params

    def check_shares(self, processes: int) -> None:
        """As :meth:`TrainingStageParams.check_shares`, of problems and of the rationales in a minibatch."""
        if self.prompts_per_step % processes:
            raise ValueError(f"prompts_per_step must be a multiple of processes, {self.prompts_per_step} is none of {processes}")
        if self.prompts_per_step * self.rationales_per_prompt % (self.minibatches * processes):
            raise ValueError(
                "prompts_per_step × rationales_per_prompt must be a multiple of minibatches × processes, "
                f"{self.prompts_per_step * self.rationales_per_prompt} is none of {self.minibatches * processes}"
            )

    def _consistent_rollouts(self) -> None:
        """Where vLLM can draw."""
        if not re.fullmatch(r"auto|cuda:\d+", self.rollout_device):
            raise ValueError(f"rollout_device must be auto, or a GPU such as cuda:1, not {self.rollout_device!r}")
        if self.processes != 1 and self.rollout_device != "auto":
            raise ValueError("rollout_device must be auto with several processes: each has an engine on its own GPU")
        if self.device == "mps":
            raise ValueError("rollout_engine: vllm does not run on device: mps; set rollout_engine: hf")

    def _consistent_answer(self) -> None:
        """Settings of how y* is scored that would have no meaning together."""
        for name in ("scorer", "answer_signal", "answer_nll_weight", "boundary_is_action", "unfinished_rule"):
            neutral = PsiParams.model_fields[name].default
            if self.reward == "verifier" and getattr(self, name) != neutral:
                raise ValueError(f"{name} must be {neutral!r} with reward: verifier, which does not score y*")
        if self.answer_nll_weight > 0 and self.scorer == "frozen":
            raise ValueError("answer_nll_weight is the gradient through a live scorer; a frozen one has none, set scorer: live")
        if self.unfinished_rule == "twice_mean" and (self.answer_signal == "prob" or self.unfinished_reward is not None):
            raise ValueError("unfinished_rule: twice_mean is for answer_signal: log_prob without unfinished_reward")


class RejectionParams(SamplingStageParams):
    """Rejection family: N rationales per problem from θ, of which ``strategy`` says what is kept (paper.md sections 1.4 and 1.6)."""

    kind = "rs_sampling"

    strategy: Literal["rs", "raft", "star", "rest_em"] = Field(
        "rs", description="one correct rationale each (the paper), all different ones, one with a hint where none is, or reward-weighted"
    )
    samples: PositiveInt = Field(30, description="N, rationales per problem (the paper's 30); star: as many again with the hint")
    until_hit: bool = Field(False, description="go on in rounds of N until every problem has a hit: draws from the posterior exactly")
    max_samples: PositiveInt = Field(3000, description="until_hit: give a problem up after so many draws, and report it")
    beta: PositiveFloat | None = Field(None, description="rest_em: β of the weight exp(R/β); null: 0/1, only correct ones")
    max_per_problem: PositiveInt = Field(10, description="rest_em: rationales kept per problem, so that easy ones don't dominate")

    @model_validator(mode="after")
    def _one_goal(self) -> Self:
        if self.until_hit and self.strategy != "rs":
            raise ValueError(f"until_hit draws one rationale from the posterior; it needs strategy: rs, not {self.strategy}")
        return self


class ThetaParams(TrainingStageParams):
    """θ-update: SFT of θ on (x, z, y*), loss on z and y only (BRiTE eq. 3.5)."""

    kind = "theta_sft"

    rationales: str = Field("human", description="a rationales.parquet, or 'human' for the data's own rationales")
    correct_only: bool = Field(False, description="leave out rationales whose sampled answer was judged wrong")
    reward_weighted: bool = Field(False, description="ReST-EM: weight a rationale by exp(reward), and train on its sampled y instead of y*")
    retokenise: bool = Field(
        False, description="tokenise the rationales' texts anew: they are of a model with another tokenizer (distillation)"
    )
    epochs: PositiveFloat = Field(4, description="passes over the rationales")
    train_batch_size: PositiveInt = Field(32, description="sequences per optimiser step, of all processes")
    micro_batch_size: PositiveInt = Field(32, description="sequences per forward-backward pass of one process, at the most")
    learning_rate: PositiveFloat = Field(5e-4, description="AdamW")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after warm-up")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="share of the steps used for warm-up")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient norm is clipped to this")
    lora: LoraParams | None = Field(None, description="train adapters; null: all weights")
    save_steps: PositiveInt = Field(50, description="checkpoint every so many optimiser steps")
    monitor_problems: NonNegativeInt = Field(0, description="held-out problems of the EM monitor; 0: no monitor")
    monitor_samples: Annotated[int, Field(ge=2)] = Field(64, description="K of the EM monitor, rationales per held-out problem")

    def check_shares(self, processes: int) -> None:
        """As :meth:`TrainingStageParams.check_shares`."""
        check_batch(self.train_batch_size, processes)

    @model_validator(mode="after")
    def _own_answers(self) -> Self:
        if self.retokenise and self.reward_weighted:
            raise ValueError("retokenise trains on y*, reward_weighted on the tokens of the sampled y: set one of them to false")
        return self
