"""Parameters of DPO on sampled pairs of rationale and answer."""

from typing import Annotated, Literal

from pydantic import Field

from brite_lib.params.base import NonNegativeFloat, PositiveFloat, PositiveInt
from brite_lib.params.stage import LoraParams, SamplingStageParams
from brite_lib.params.training import TrainingStageParams, check_batch


class DpoParams(SamplingStageParams, TrainingStageParams):
    """One iteration of latent DPO: pairs of a correct and an incorrect sample of the same problem (BRiTE eq. 3.6, section 4.1)."""

    kind = "dpo"

    sampler: str = Field("", description="model that the pairs are drawn from: Q_ψ for BRiTE-DPO; empty: the model itself")
    start_from: Literal["sampler", "model"] = Field(
        "sampler", description="what learns and is its own reference: the sampler, whose pairs these are, or θ (the paper does not say)"
    )
    pairs: str = Field("", description="a pairs.parquet, or pairs.jsonl from the rationale browser; empty: drawn here")
    samples: Annotated[int, Field(ge=2)] = Field(30, description="N, rationales and answers per problem (the paper's 30)")
    beta: PositiveFloat = Field(0.1, description="β of the loss: how much a log-ratio to the reference counts")
    epochs: PositiveFloat = Field(4, description="passes over the pairs")
    train_batch_size: PositiveInt = Field(32, description="pairs per optimiser step, of all processes")
    micro_batch_size: PositiveInt = Field(32, description="pairs per forward-backward pass of one process, at the most")
    learning_rate: PositiveFloat = Field(1e-4, description="AdamW")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after warm-up")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="share of the steps used for warm-up")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient norm is clipped to this")
    lora: LoraParams | None = Field(None, description="train adapters; null: all weights")
    save_steps: PositiveInt = Field(50, description="checkpoint every so many optimiser steps")

    def check_shares(self, processes: int) -> None:
        """As :meth:`TrainingStageParams.check_shares`."""
        check_batch(self.train_batch_size, processes)

    @property
    def start(self) -> str:
        """The model that learns."""
        return self.sampler if self.sampler and self.start_from == "sampler" else self.model
