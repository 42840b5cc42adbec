"""Parameters of DRR: distil, reinforce, reason with an external discriminator."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from brite_lib.params.base import NonNegativeFloat, PositiveFloat, PositiveInt
from brite_lib.params.stage import SamplingStageParams


class DrrParams(SamplingStageParams):
    """DRR (paper.md section 3): behaviour of the Reasoner on training problems, a discriminator of it, and answers with its feedback."""

    kind = "drr"

    method: str = Field("drr", description="row of the result table")
    benchmark: str = Field("toy", description="column of the result table")
    test_data: str = Field("", description="problems to be answered with feedback; empty: the same data")
    test_split: str = Field("test", description="their split")
    test_limit: PositiveInt | None = Field(None, description="use only so many of them; null: all (1000 on the toy task)")
    turns: PositiveInt = Field(4, description="T, attempts at a problem at the most, in training and at inference")
    chains: PositiveInt = Field(4, description="how many times each training problem is attempted, turn by turn until right")
    discriminator: str = Field("", description="model that the discriminator starts from; empty: the Reasoner's own weights")
    false_accept_weight: PositiveFloat = Field(
        1.0, description="what accepting a wrong attempt costs, in rejected right ones; 1: both classes weigh the same"
    )
    validation_share: Annotated[float, Field(gt=0, lt=1)] = Field(0.2, description="training problems held out to choose the threshold on")
    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="accept from this score on; null: the one with the lowest cost of errors on the held-out training problems"
    )
    epochs: PositiveFloat = Field(4, description="passes over the attempts")
    train_batch_size: PositiveInt = Field(32, description="attempts per optimiser step")
    micro_batch_size: PositiveInt = Field(32, description="attempts per forward-backward pass")
    learning_rate: PositiveFloat = Field(5e-4, description="AdamW")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after warm-up")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="share of the steps used for warm-up")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient norm is clipped to this")
    save_steps: PositiveInt = Field(50, description="checkpoint every so many optimiser steps")
    vote_samples: PositiveInt = Field(8, description="most samples per problem of the majority vote, the baseline")
    bins: PositiveInt = Field(10, description="of the reliability diagram")
    bootstrap: PositiveInt = Field(2000, description="resamples of the problems for the intervals")

    @model_validator(mode="after")
    def _retries_differ(self) -> Self:
        if self.temperature == 0:
            raise ValueError("temperature must be above 0: votes and new attempts would repeat the first one")
        return self
