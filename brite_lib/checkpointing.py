"""The state of a :class:`brite_lib.ppo.PosteriorPPOTrainer` on disk."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from brite_lib.files import atomic_path

if TYPE_CHECKING:
    from brite_lib.ppo import PosteriorPPOTrainer


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training moves (with LoRA: the adapters), by name; not copies."""
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in trained}


def save_state(trainer: "PosteriorPPOTrainer", path: Path) -> None:
    """Write the whole state of the run atomically."""
    critic = trainer.accelerator.unwrap_model(trainer.agent).value_head
    state = {
        "step": trainer.step,
        "policy": trained_weights(trainer.model),
        "critic": critic.state_dict() if critic is not None else None,
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "unfinished_reward": trainer.unfinished_reward,
        "below_constant": [trainer._below_constant, trainer._finished],
        "tokens": [trainer.tokens_generated, trainer.tokens_trained],
        "seconds": trainer.seconds,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        torch.save(state, temporary)


def load_state(trainer: "PosteriorPPOTrainer", path: Path) -> None:
    """Continue where :func:`save_state` left off; the next steps are those of a run that never stopped."""
    state = torch.load(path, map_location=trainer.accelerator.device, weights_only=True)
    trainer.model.load_state_dict(state["policy"], strict=False)
    if state["critic"] is not None:
        trainer.accelerator.unwrap_model(trainer.agent).value_head.load_state_dict(state["critic"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scheduler.load_state_dict(state["scheduler"])
    torch.set_rng_state(state["rng"].cpu())
    trainer.step, trainer.unfinished_reward, trainer.seconds = state["step"], state["unfinished_reward"], state["seconds"]
    trainer._below_constant, trainer._finished = state["below_constant"]
    trainer.tokens_generated, trainer.tokens_trained = state["tokens"]
