"""Parameters of the stages that train: how many processes share the work, and how accelerate starts them."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator

from brite_lib.params.base import PositiveInt, read_mapping, resolve_path
from brite_lib.params.stage import ModelStageParams


class TrainingStageParams(ModelStageParams):
    """A stage that can train in several processes (docs/processes.md)."""

    processes: PositiveInt | Literal["auto"] = Field(
        1, description="processes that share the training, one per GPU; auto: as many as there are GPUs, 1 without any"
    )
    accelerate_config: str = Field(
        "auto", description="file for accelerate launch, such as params/accelerate/fsdp2.yaml; auto: ddp.yaml, or cpu2.yaml on a CPU"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute each layer again in the backward pass: long sequences fit, for one forward pass more"
    )

    @field_validator("processes", mode="wrap")
    @classmethod
    def _number_or_auto(cls, value: Any, check: ValidatorFunctionWrapHandler) -> Any:
        try:
            return check(value)
        except ValidationError:  # it says what each half of the union wants
            raise ValueError("must be a whole number above 0, or auto") from None

    @model_validator(mode="after")
    def _can_be_shared(self) -> Self:
        _ = self.accelerate_settings  # which can be read
        if self.processes not in (1, "auto"):
            self.check_shares(self.processes)
        return self

    @property
    def launched(self) -> bool:
        """Whether ``accelerate launch`` trains the stage, and not the notebook's own process: several do, or a file was given."""
        if self.processes == "auto" and self.accelerate_config == "auto":
            from brite_lib.launch import number_of_processes

            return number_of_processes(self) > 1
        return self.processes != 1 or self.accelerate_config != "auto"

    @property
    def accelerate_settings(self) -> dict[str, Any]:
        """The settings of the ``accelerate_config`` file; empty for auto, which is one machine with DDP."""
        return {} if self.accelerate_config == "auto" else read_accelerate_config(resolve_path(self.accelerate_config))

    @property
    def sharded(self) -> bool:
        """Whether FSDP divides the model among the processes."""
        return self.accelerate_settings.get("distributed_type") == "FSDP"

    def check_shares(self, processes: int) -> None:
        """Refuse totals that ``processes`` can't share evenly: each must have as much to do as the others.

        Raises:
            ValueError: one sentence naming the parameter.
        """

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """As :meth:`StageParams.from_notebook`; the processes must find their GPUs or cores."""
        params = super().from_notebook(namespace)
        if params.launched:
            from brite_lib.launch import number_of_processes

            number_of_processes(params)
        return params


def read_accelerate_config(path: Path) -> dict[str, Any]:
    """The settings of a YAML file for ``accelerate launch``.

    Raises:
        ValueError: one sentence naming the file, if it is missing or something else.
    """
    if not path.is_file():
        raise ValueError(f"accelerate_config: there is no file {path}")
    settings = read_mapping(path, "accelerate's settings", f"accelerate_config: {path}")
    if "distributed_type" not in settings:
        raise ValueError(f"accelerate_config: {path} is no configuration of accelerate, it has no distributed_type")
    return settings


def check_batch(train_batch_size: int, processes: int) -> None:
    """Refuse a batch that ``processes`` can't share evenly.

    Raises:
        ValueError: one sentence.
    """
    if train_batch_size % processes:
        raise ValueError(f"train_batch_size must be a multiple of processes, {train_batch_size} is none of {processes}")
