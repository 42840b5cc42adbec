"""Going on where an interrupted run stood: our trainer's state on disk, and the checkpoints of the Hugging Face trainers."""

import json
import pickle
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback, TrainerState
from transformers.trainer_utils import get_last_checkpoint

from brite_lib import costs
from brite_lib.errors import InputError
from brite_lib.files import atomic_path
from brite_lib.progress import progress
from brite_lib.sharding import shards_like, whole

if TYPE_CHECKING:
    from transformers import Trainer

    from brite_lib.ppo import PosteriorPPOTrainer

UNREADABLE = (SafetensorError, pickle.UnpicklingError, EOFError, OSError, json.JSONDecodeError, RuntimeError)


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training moves (with LoRA: the adapters), by name; not copies."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in trained}


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Give weights by name, be they all that :func:`trained_weights` gave, to a model that may be sharded."""
    own = dict(model.named_parameters())
    model.load_state_dict({name: shards_like(value, own[name]) for name, value in weights.items()}, strict=False)


def save_state(trainer: "PosteriorPPOTrainer", path: Path) -> None:
    """Write the whole state of the run atomically, the same for any number of processes; all must call this, the main one writes."""
    critic, main = trainer.agent.value_head, trainer.accelerator.is_main_process
    state = {
        "step": trainer.step,
        "policy": trained_weights(trainer.model),
        "critic": critic.state_dict() if critic is not None else None,
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "unfinished_reward": trainer.unfinished.constant,
        "below_constant": [trainer.unfinished.below, trainer.unfinished.finished],
        "tokens": [trainer.tokens_generated, trainer.tokens_trained],
        "seconds": trainer.seconds,
        "flops": trainer.flops,
    }
    state = whole(state, keep=main)
    if main:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            torch.save(state, temporary)
    trainer.accelerator.wait_for_everyone()


def load_state(trainer: "PosteriorPPOTrainer", path: Path) -> None:
    """Continue where :func:`save_state` left off; the next steps are those of a run that never stopped.

    Of a run that stands at its last step the optimiser's state is not read, so that one process can hold what several have trained.

    Raises:
        InputError: one sentence naming the file, if it cannot be read.
    """
    try:
        state = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except UNREADABLE as error:
        raise _unreadable(path, error, path) from None
    load_weights(trainer.model, state["policy"])
    if state["critic"] is not None:
        load_weights(trainer.agent.value_head, state["critic"])
    if state["step"] < trainer.config.steps:
        trained = [parameter for group in trainer.optimizer.param_groups for parameter in group["params"]]
        for i, moments in state["optimizer"]["state"].items():
            # Copies: the file that is mapped here may be replaced, and a shard would keep the whole tensor alive.
            state["optimizer"]["state"][i] = {name: shards_like(value, trained[i]).clone() for name, value in moments.items()}
        trainer.optimizer.load_state_dict(state["optimizer"])
        trainer.scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"].cpu())
    trainer.step, trainer.seconds = state["step"], state["seconds"]
    trainer.unfinished.constant = state["unfinished_reward"]
    trainer.unfinished.below, trainer.unfinished.finished = state["below_constant"]
    trainer.tokens_generated, trainer.tokens_trained = state["tokens"]
    costs.add(state["flops"])


def train_on(trainer: "Trainer", checkpoints: str | Path) -> None:
    """Train from the newest checkpoint below ``checkpoints``, or from the start; from the last step only the weights are read.

    Raises:
        InputError: one sentence naming the checkpoint, if it cannot be read, or not by this number of processes.
    """
    newest = last_checkpoint(checkpoints)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(TrainerProgress)
    try:
        if newest and (state := TrainerState.load_from_json(Path(newest) / "trainer_state.json")).global_step >= state.max_steps:
            _load_weights(trainer.model, Path(newest))
            trainer.state = state
        else:
            if newest and not trainer.is_deepspeed_enabled:
                _check_optimizer(Path(newest), trainer.is_fsdp_enabled)
            trainer.train(resume_from_checkpoint=newest)
    except UNREADABLE as error:
        read = trainer.state.global_step > resume_step(checkpoints)
        if newest is None or read or (isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error)):
            raise  # of the training itself, for example out of memory
        raise _unreadable(newest, error, checkpoints) from None
    for module in trainer.model.modules():  # without the wrappers of accelerate and TRL: in a copy they would compute with these weights
        vars(module).pop("forward", None)


class TrainerProgress(TrainerCallback):
    """Shows a Hugging Face trainer's steps as all progress is shown: its own bar would flood an executed notebook."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.steps = progress(range(state.global_step, state.max_steps) if state.is_world_process_zero else (), desc="training")
        next(self.steps, None)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        next(self.steps, None)  # asked for another step, it counts one as done


def _load_weights(model: nn.Module, checkpoint: Path) -> None:
    """Read what ``save_pretrained`` wrote, be it of a sharded model, which transformers itself reads into a sharded one only."""
    if isinstance(model, PeftModel):
        model.load_adapter(checkpoint, model.active_adapter, is_trainable=True)
        return
    weights = {name: tensor for file in checkpoint.glob("model*.safetensors") for name, tensor in load_file(file).items()}
    if not weights or model.load_state_dict(weights, strict=False).unexpected_keys:  # tied weights are in no file
        raise OSError("its weights are not those of the model")


def _check_optimizer(checkpoint: Path, sharded: bool) -> None:
    """The optimiser's state is in other files where the model was sharded; transformers would go on without it, and say nothing."""
    if (checkpoint / "optimizer.pt").is_file() == sharded:
        how, other = ("without", "with") if sharded else ("with", "without")
        raise InputError(
            f"{checkpoint}: was made {how} FSDP and can't be continued {other} it; "
            "take the accelerate_config that it was made with, or delete it and the stage starts over"
        )


def last_checkpoint(checkpoints: str | Path) -> str | None:
    """The newest whole checkpoint; a torn one is removed. The trainer writes trainer_state.json last."""
    while Path(checkpoints).is_dir() and (newest := get_last_checkpoint(str(checkpoints))):
        if (Path(newest) / "trainer_state.json").is_file():
            return newest
        shutil.rmtree(newest)
    return None


def resume_step(checkpoints: str | Path) -> int:
    """The optimiser step that :func:`train_on` will resume from, -1 for a fresh start."""
    newest = last_checkpoint(checkpoints)
    return int(newest.rpartition("-")[2]) if newest else -1


def _unreadable(path: str | Path, error: Any, delete: str | Path) -> InputError:
    reason = " ".join(str(error).split())[:120]
    return InputError(f"{path}: this checkpoint cannot be read ({reason}); delete {delete} and the stage starts over")
