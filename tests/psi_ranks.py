"""ψ-updates of the enumerable task, in as many processes as there are: ``torchrun … psi_ranks.py DIRECTORY [sharded | failing]``."""

import json
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import enumerable
import torch
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from brite_lib.errors import InputError
from brite_lib.models import save_policy
from brite_lib.params import LatroParams, PsiParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.rewards import AnswerLikelihood
from brite_lib.selection import BestOnValidation

STEPS = 4
COMMON = {
    "max_rationale_tokens": enumerable.MAX_RATIONALE,
    "max_answer_tokens": 2,
    "prompts_per_step": 4,
    "rationales_per_prompt": 4,
    "epochs": 2,
    "minibatches": 2,
    "micro_batch_size": 3,  # several parts, the last one smaller
    "steps": STEPS,
    "save_steps": 2,
    "learning_rate": 4e-3,
    "value_learning_rate": 1e-2,
    "lr_schedule": "linear",
    "device": "cpu",
}
LORA = {"lora": {"r": 4, "alpha": 8}}
CASES: dict[str, dict[str, Any]] = {
    "rloo": {"advantage": "rloo", "whiten_advantages": True},  # its reward of unfinished rationales is calibrated
    "gae_lora": {"advantage": "gae", "unfinished_reward": -6.0, "gradient_checkpointing": True, **LORA},
    "gae_verifier": {"advantage": "gae", "reward": "verifier", "beta": 0.5, "whiten_advantages": True},
    "rloo_verifier_lora": {"advantage": "rloo", "reward": "verifier", "brevity_cost": 0.1, **LORA},
    "live": {"scorer": "live", "answer_nll_weight": 1.0, "boundary_is_action": False, "unfinished_rule": "twice_mean"},
}
SHARDED_CASES = {
    "gae": {"advantage": "gae", "whiten_advantages": True, "gradient_checkpointing": True},
    "rloo_lora": {"advantage": "rloo", "unfinished_reward": -6.0, **LORA},
}
CONTINUED = ("rloo", "gae_lora", "gae", "rloo_lora")  # by another number of processes
MIXED = {"advantage": "gae", "unfinished_reward": -6.0, **LORA}  # of a bfloat16 policy, whose adapters and critic are float32


def theta() -> torch.nn.Module:
    return enumerable.model(3, scale=4.0)


def make_trainer(settings: dict[str, Any], checkpoint: Path, lines: list[dict[str, float]], dtype: torch.dtype = torch.float32):
    config = PsiParams.parse({**COMMON, **settings})
    log = lambda step, **metrics: lines.append({"step": step, **metrics})  # noqa: E731
    model = theta().to(dtype)
    torch.manual_seed(5)  # adapters are drawn from the global generator
    return PosteriorPPOTrainer(model, enumerable.template(), enumerable.problems(), config, None, checkpoint, log)


def train(settings: dict[str, Any], directory: Path, dtype: torch.dtype = torch.float32) -> None:
    """Train from ``state.pt`` in the directory, if it is there, and leave the metrics and the policy."""
    directory.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, float]] = []
    trainer = make_trainer(settings, directory / "state.pt", lines, dtype)
    psi = trainer.train()
    if trainer.accelerator.is_main_process:
        counts = {name: getattr(trainer, name) for name in ("tokens_generated", "tokens_trained", "flops")}
        found = {"lines": lines, "counts": counts, "unfinished_reward": trainer.unfinished_reward}
        (directory / "logged.json").write_text(json.dumps(found))
        save_policy(psi, trainer.template, directory / "model")
    trainer.accelerator.wait_for_everyone()


def train_half(settings: dict[str, Any], path: Path) -> None:
    """Leave the state after half of the steps."""
    trainer = make_trainer(settings, path, [])
    if trainer.unfinished.to_calibrate:
        trainer.unfinished.calibrate(len(trainer.problems), trainer._rewards_under_theta)
    for _ in range(STEPS // 2):
        trainer.train_step()
    trainer.save(path)


def train_latro(directory: Path) -> None:
    """LaTRO with weights that validation selects: what was measured, and the best weights."""
    settings = {**COMMON, "minibatches": 1, "unfinished_reward": -6.0, "validation_steps": 2, "validation_samples": 5}
    params, lines = LatroParams.parse(settings), []
    trainer = PosteriorPPOTrainer(theta(), enumerable.template(), enumerable.problems(), params, None, directory / "latro.pt")
    best = BestOnValidation(trainer, enumerable.problems()[:2], params, directory / "best.pt")
    trainer.log = lambda step, **metrics: lines.append(best.validate(step))
    lines.append(best.validate(0))
    trainer.train()
    kept = best.restore()
    if trainer.accelerator.is_main_process:
        found = {"lines": lines, "kept": kept, "tokens": trainer.tokens_generated, "flops": trainer.flops}
        (directory / "latro.json").write_text(json.dumps(found))
    trainer.accelerator.wait_for_everyone()


def train_all(directory: Path, cases: dict[str, dict[str, Any]]) -> None:
    """Every case from its start, some of them also from the state that others have left."""
    for name, settings in cases.items():
        train(settings, directory / name)
        if name in CONTINUED:
            train_half(settings, directory / f"{name}_half.pt")
        if (directory / f"{name}_begun").is_dir():
            train(settings, directory / f"{name}_begun")
    train_latro(directory)


def pretend_to_have_gpus() -> None:
    """Have accelerate believe in FSDP2, as ``fsdp2.yaml`` does on GPUs; on a CPU it leaves the configuration unread."""
    Accelerator(cpu=True)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    AcceleratorState._shared_state.update(distributed_type=DistributedType.FSDP, fsdp_plugin=plugin)


class NothingIsFinished(AnswerLikelihood):
    def terminal(self, problems, completions, forced_log_prob):
        return [None] * len(completions)


class FailsOnOneRank(AnswerLikelihood):
    """A judge that breaks down in the last process only."""

    def terminal(self, problems, completions, forced_log_prob):
        if torch.distributed.get_rank() == 1:
            raise ValueError("this judge is broken")
        return super().terminal(problems, completions, forced_log_prob)


if __name__ == "__main__":
    target, mode = Path(sys.argv[1]), sys.argv[2]
    torch.set_num_threads(1)
    if mode == "failing":
        with suppress(InputError):
            make_trainer({"prompts_per_step": 3, "minibatches": 3}, target / "state.pt", [])
            sys.exit("a batch was shared that can't be divided")
        trainer = make_trainer(CASES["rloo"], target / "state.pt", [])
        trainer.reward = NothingIsFinished()
        with suppress(RuntimeError):
            trainer.train()
            sys.exit("a reward was found where nothing is finished")
        trainer = make_trainer(CASES["rloo"], target / "state.pt", [])
        trainer.reward = FailsOnOneRank()
        trainer.train()
    else:
        if mode == "sharded":
            pretend_to_have_gpus()
        train_all(target, SHARDED_CASES if mode == "sharded" else CASES)
        train(MIXED, target / "mixed", torch.bfloat16)
