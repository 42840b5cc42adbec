"""LaTRO (arXiv 2411.04282) and its relatives: settings of the ψ-trainer that train a model in place (paper.md sections 1.3, 2, 4)."""

from typing import Any, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from brite_lib.params.base import NonNegativeFloat, PositiveFloat, PositiveInt
from brite_lib.params.sources_and_learners import PsiParams


class LatroParams(PsiParams):
    """LaTRO as its paper has it: the policy scores y* itself, and both terms of the gradient are on.

    The paper's batches (24 prompts × 16), learning rate (5e-7, linear decay) and 0.05 or 0.25 of KL are for models of
    billions of parameters; here the batch and the learning rate are the tiny model's. Weights are selected on
    validation problems, where LaTRO's were on the test set.
    """

    kind = "latro"

    kl_coef: NonNegativeFloat = Field(0.05, description="β of the KL to the initial model (the paper: 0.05 GSM8K, 0.25 ARC)")
    scorer: Literal["frozen", "live"] = Field(
        "live", description="who scores y*: frozen θ (BRiTE), or the policy as it moves (LaTRO); the KL anchor is always θ"
    )
    answer_nll_weight: NonNegativeFloat = Field(
        1.0, description="weight of the gradient through y*, the second term; 1 is exact, 0 LaTRO's code"
    )
    unfinished_margin: NonNegativeFloat = Field(
        2.0, description="nats below the lowest of the first 256 finished rewards (the paper: a constant penalty, γ = 2)"
    )
    prompts_per_step: PositiveInt = Field(16, description="problems per batch")
    rationales_per_prompt: PositiveInt = Field(16, description="K, rationales sampled per problem")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="after warm-up")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient norm is clipped to this (LaTRO's code: not at all, say 1e9)")
    validation_split: str = Field("validation", description="split that selects the weights; empty: the last training problems, held out")
    validation_limit: PositiveInt = Field(200, description="validation problems")
    validation_samples: PositiveInt = Field(4, description="samples per validation problem")
    validation_steps: PositiveInt = Field(14, description="validate every so many updates, before the first and after the last")

    @model_validator(mode="after")
    def _selects_honestly(self) -> Self:
        if self.validation_split == "test":
            raise ValueError("validation_split must not be the test split: weights selected on it would be reported on it")
        return self


class SpecialCase(NamedTuple):
    """A setting of the ψ-trainer that has a name of its own; tests/test_special_cases.py checks each gradient by enumeration."""

    settings: dict[str, Any]  # what differs from PsiParams' defaults
    gradient: str  # that of which objective
    optimum: str  # of that objective over all policies


_LIVE = {"scorer": "live", "answer_nll_weight": 1.0}

SPECIAL_CASES = {
    "BRiTE ψ, reward (i)": SpecialCase({}, "E_Q[log P_θ(y*|x,z)] − c·KL(Q(z)‖P_θ)", "Q ∝ P_θ(z|x)·P_θ(y*|x,z)^(1/c); c = 1: the posterior"),
    "BRiTE ψ, reward (ii)": SpecialCase({"reward": "verifier"}, "E_Q[R]/β − c·KL(Q(z,y)‖P_θ)", "Q ∝ P_θ(z,y|x)·exp(R/(cβ))"),
    "BRiTE ψ, brief": SpecialCase(
        {"brevity_cost": 0.3},
        "of either, − cost·E_Q[|z|]",
        "the same, times exp(−cost·|z|/c): P(o=1) falls with every token",
    ),
    "LaTRO, paper": SpecialCase(
        {**_LIVE, "kl_coef": 0.05, "rationales_per_prompt": 16},
        "E_π[log π(y*|x,z)] − β·KL(π(z)‖π₀), both terms",
        "π(y*|x,z) = 1 and π(z) = π₀(z): nothing more to think about",
    ),
    "LaTRO, released code": SpecialCase(
        {
            "scorer": "live",
            "kl_coef": 0.05,
            "rationales_per_prompt": 16,
            "boundary_is_action": False,
            "unfinished_rule": "twice_mean",
            "max_grad_norm": 1e9,
        },
        "of no objective: the first term only, without the stopping of z",
        "—",
    ),
    "RLOO": SpecialCase({"reward": "verifier", "kl_coef": 0.05}, "E_π[R]/β − c·KL(π(z,y)‖π₀)", "π ∝ π₀(z,y|x)·exp(R/(cβ))"),
    "GRPO / RLVR": SpecialCase(
        {"reward": "verifier", "advantage": "group", "scale_group_std": True, "kl_coef": 0.04},
        "as RLOO, each group's gradient divided by its standard deviation",
        "as RLOO where groups spread alike; else easy and hard problems weigh more",
    ),
    "VeriFree": SpecialCase(
        {**_LIVE, "answer_signal": "prob", "kl_coef": 0.0}, "E_π[π(y*|x,z)], both terms", "π(y*|x,z) = 1: the likelihood itself, no anchor"
    ),
}
