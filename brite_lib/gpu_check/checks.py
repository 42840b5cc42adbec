"""The checks: each measures something on a device and says what it has to fulfil."""

import importlib.util
import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from brite_lib.experience import STEP_ZERO_TOLERANCE
from brite_lib.launch import launch
from brite_lib.likelihood import make_batch, score
from brite_lib.models import load_policy
from brite_lib.params import PsiParams, ThetaParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.problems import load_problems
from brite_lib.records import read_metrics
from brite_lib.rollouts import generate, open_sampler, sample, sample_seed
from brite_lib.sft import load_rows, rationale_sft, training_rows
from brite_lib.template import RationaleTemplate
from brite_lib.tiny_base import make_model
from brite_lib.vllm_rollouts import CANARY_TOLERANCE

EMBEDDED = "assets/tiny-base"
FSDP2 = "params/accelerate/fsdp2.yaml"
RESUME_TOLERANCE = 0.05  # nats, of a step's metrics
MISMATCH = {torch.float32: 1e-6, torch.bfloat16: 1e-2}  # nats per token by which vLLM's rollouts may differ from the policy
SAME_TOKENS = 0.95  # share of completions that vLLM and transformers must decode alike; rounding decides near ties


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        problems: of the embedded task, and how many ψ-PPO takes per step; each gets ``rationales``.
        steps: of ψ-PPO on the embedded model.
        large: width and layers of the randomly initialised model of the toy's vocabulary that ψ-PPO trains adapters on.
        shape: of the randomly initialised Qwen2 that is scored and sampled from; the default is that of Qwen2.5-0.5B.
        sequences: how many it scores, and samples, ``length`` tokens each.
    """

    problems: int = 512
    per_step: int = 64
    rationales: int = 16
    steps: int = 40
    large: tuple[int, int] = (1024, 24)
    vocabulary: int = 151_936
    shape: tuple[int, int] = (896, 24)
    sequences: int = 64
    length: int = 512
    batch_size: int = 16


SMALL = Size(64, 16, 4, 10, (64, 2), 2_000, (64, 2), 8, 32, 4)


class Setup(NamedTuple):
    """What every check is given."""

    device: torch.device
    dtype: str
    size: Size
    template: RationaleTemplate
    scratch: Path  # an empty directory

    @property
    def tolerance(self) -> float:
        """Nats by which the log-probability of a token may differ between two ways to compute it."""
        return STEP_ZERO_TOLERANCE[getattr(torch, self.dtype)]

    def embedded(self) -> nn.Module:
        """The embedded model, in the precision that is checked."""
        return load_policy(EMBEDDED, device=str(self.device), dtype=self.dtype)

    def problems(self, split: str) -> list[dict[str, Any]]:
        """Problems of the embedded task."""
        return list(load_problems("toy:easy", split, self.size.problems))


class Outcome(NamedTuple):
    """Measured numbers, and what they have to fulfil: sentences, each true or not."""

    numbers: dict[str, Any]
    requirements: dict[str, bool]


def train_tiny(setup: Setup) -> Outcome:
    """ψ-PPO and θ-SFT on the embedded task and model with large batches; all weights in the checked precision."""
    size, problems = setup.size, setup.problems("train")
    settings = {"steps": size.steps, "prompts_per_step": size.per_step, "rationales_per_prompt": size.rationales}
    trainer, lines, anchor = _train_psi(setup, setup.embedded(), problems, settings)
    few = max(1, size.steps // 8)
    before, after = (sum(line["elbo"] for line in part) / few for part in (lines[:few], lines[-few:]))

    rows = list(generate(trainer.model, problems, setup.template, n=2, seed=1, source="Q"))
    held_out = list(generate(trainer.model, setup.problems("test"), setup.template, n=1, seed=1, source="Q"))
    theta = setup.embedded()
    loss_before = _nats_per_token(theta, held_out, setup.template)
    params = ThetaParams.parse({"epochs": 2, "device": setup.device.type, "dtype": setup.dtype, "save_steps": 10**6})
    started = time.perf_counter()
    theta, metrics = rationale_sft(theta, training_rows(rows, setup.template), setup.template, params, setup.scratch / "theta")
    seconds = time.perf_counter() - started
    loss_after = _nats_per_token(theta, held_out, setup.template)
    return Outcome(
        {
            "step-0 difference": anchor,
            "ELBO, first steps": before,
            "ELBO, last steps": after,
            "ψ tokens/s": (trainer.tokens_generated + trainer.tokens_trained) / trainer.seconds,
            "θ nats/token before": loss_before,
            "θ nats/token after": loss_after,
            "θ tokens/s": metrics["tokens_trained"] / seconds,
        },
        {
            f"at step 0 log Q = log P_θ within {setup.tolerance:g}": anchor <= setup.tolerance,
            "the ELBO rises by 0.1 nats or more": after - before >= 0.1,
            "θ learns Q's rationales: fewer nats per token on held-out problems": loss_after < loss_before,
        },
    )


def train_large(setup: Setup) -> Outcome:
    """Three steps of ψ-PPO with LoRA on a larger model with random weights: speed and memory; it has nothing to learn from."""
    width, layers = setup.size.large
    model = make_model(setup.template, width, layers, seed=0).to(setup.device, getattr(torch, setup.dtype))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    settings = {
        "steps": 3,
        "prompts_per_step": setup.size.per_step,
        "rationales_per_prompt": setup.size.rationales,
        "micro_batch_size": 4 * setup.size.per_step,
        "unfinished_reward": -20.0,
        "lora": {"r": 32, "alpha": 128},
    }
    trainer, lines, anchor = _train_psi(setup, model, setup.problems("train"), settings)
    finite = all(math.isfinite(line[name]) for line in lines for name in ("elbo", "kl", "loss", "grad_norm"))
    return Outcome(
        {
            "parameters": parameters,
            "step-0 difference": anchor,
            "ψ tokens/s": (trainer.tokens_generated + trainer.tokens_trained) / trainer.seconds,
        },
        {
            f"at step 0 log Q = log P_θ within {setup.tolerance:g}": anchor <= setup.tolerance,
            "ELBO, KL, loss and gradient are finite": finite,
        },
    )


def likelihood(setup: Setup) -> Outcome:
    """``likelihood.score`` with a large vocabulary: speed, memory, and the difference to a plain softmax over all logits."""
    size, model = setup.size, _wide_model(setup)
    ids = torch.randint(size.vocabulary, (size.sequences, size.length + 1), generator=torch.Generator().manual_seed(0)).tolist()
    prompts, rationales = [row[:1] for row in ids], [row[1:] for row in ids]
    nothing = [[]] * len(ids)
    score(model, prompts[:2], rationales[:2], nothing[:2])  # warm-up
    reset_peak(setup.device)
    started = time.perf_counter()
    scores = score(model, prompts, rationales, nothing, size.batch_size).rationale
    seconds, peak = time.perf_counter() - started, peak_gib(setup.device)
    reset_peak(setup.device)  # what follows takes more, so the check's own peak is that of the plain softmax
    some = size.batch_size
    with torch.no_grad():
        batch = make_batch(prompts[:some], rationales[:some], setup.device)
        logits = model(**batch.padded._asdict(), use_cache=False).logits.float()
        plain = logits.log_softmax(-1)[batch.rows, batch.columns - 1, batch.targets].cpu()
    difference = (torch.cat(scores[:some]) - plain).abs().max().item()
    return Outcome(
        {
            "vocabulary": size.vocabulary,
            "tokens/s": size.sequences * size.length / seconds,
            "peak GiB of score": peak,
            "peak GiB of the plain softmax": peak_gib(setup.device),
            "max |difference|": difference,
        },
        {f"it equals the plain softmax within {setup.tolerance:g}": difference <= setup.tolerance},
    )


def generation(setup: Setup) -> Outcome:
    """``rollouts.sample`` with ``engine: hf``: its speed on the embedded model and with a large vocabulary; the same seeds again."""
    size, rows = setup.size, setup.problems("test")
    prompts = [setup.template.prompt_ids(row["question"]) for row in rows]
    numbers: dict[str, Any] = {}
    for name, model, length in (("embedded", setup.embedded(), 40), ("large vocabulary", _wide_model(setup), size.length // 8)):
        chosen = prompts if name == "embedded" else prompts[: size.sequences]
        seeds = [sample_seed(0, name, row) for row in range(len(chosen))]
        sample(model, setup.template, chosen[:2], seeds[:2], 1.0, 4)  # warm-up
        drawn = []
        started = time.perf_counter()
        for _ in range(2):
            drawn.append(sample(model, setup.template, chosen, seeds, 1.0, length))
        numbers[f"{name}, tokens/s"] = sum(map(len, drawn[0] + drawn[1])) / (time.perf_counter() - started)
        numbers[f"{name}, same again"] = _share_equal(*drawn)
    same = min(numbers[name] for name in numbers if name.endswith("same again"))
    return Outcome(numbers, {"the same seeds give the same tokens": same == 1.0})


def resume(setup: Setup) -> Outcome:
    """ψ-PPO, stopped in its third step, goes on from the checkpoint of its second and takes the steps of a run that never stopped."""
    settings = {"steps": 4, "save_steps": 2, "prompts_per_step": setup.size.per_step, "rationales_per_prompt": setup.size.rationales}
    problems, checkpoint = setup.problems("train"), setup.scratch / "psi.pt"
    _, undisturbed, _ = _train_psi(setup, setup.embedded(), problems, settings)

    def stop(step: int, **metrics: float) -> None:
        if step == 3:
            raise _Stopped

    with suppress(_Stopped):
        _psi_trainer(setup, setup.embedded(), problems, settings, checkpoint, stop).train()
    lines: list[dict[str, float]] = []
    trainer = _psi_trainer(setup, setup.embedded(), problems, settings, checkpoint, lambda step, **metrics: lines.append(metrics))
    from_step = trainer.resume()
    trainer.train()
    differences = [
        abs(one[name] - other[name]) for one, other in zip(lines[-2:], undisturbed[2:], strict=True) for name in ("elbo", "kl", "loss")
    ]
    return Outcome(
        {"resumed from step": from_step, "max |difference|": max(differences), "bit-identical": lines[-2:] == undisturbed[2:]},
        {
            "it resumes from step 2": from_step == 2,
            f"ELBO, KL and loss of the later steps differ by at most {RESUME_TOLERANCE}": max(differences) <= RESUME_TOLERANCE,
        },
    )


def fsdp2(setup: Setup) -> Outcome:
    """ψ-PPO and θ-SFT by ``accelerate launch`` with params/accelerate/fsdp2.yaml, in one process: the steps that this process makes too."""
    size = setup.size
    common = {"limit": 4 * size.per_step, "device": setup.device.type, "dtype": setup.dtype, "threads": 0, "save_steps": 10**6}
    psi = PsiParams.parse(common | {"steps": 3, "prompts_per_step": size.per_step, "rationales_per_prompt": size.rationales})
    theta = ThetaParams.parse(common | {"epochs": 1, "train_batch_size": size.per_step})
    differences = []
    for params in (psi, theta):
        lines = []
        for place, config in (("here", "auto"), ("launched", FSDP2)):
            folder = setup.scratch / place / params.kind
            launch(params.kind, params.model_copy(update={"output_dir": str(folder), "accelerate_config": config}), 1)
            lines.append(read_metrics(folder / "metrics.jsonl"))
        differences.append(max(abs(one["loss"] - other["loss"]) for one, other in zip(*lines, strict=True)))
    left_psi, left_theta = (setup.scratch / "launched" / params.kind / "checkpoint" for params in (psi, theta))
    trainer = PosteriorPPOTrainer(setup.embedded(), setup.template, setup.problems("train"), psi, checkpoint=left_psi / "state.pt")
    dataset = training_rows(load_rows(theta), setup.template)
    _, metrics = rationale_sft(setup.embedded(), dataset, setup.template, theta, left_theta)
    sharded = any(left_theta.glob("*/optimizer.bin"))  # FSDP's name for it
    return Outcome(
        {"sharded": sharded, "ψ max |loss difference|": differences[0], "θ max |loss difference|": differences[1]},
        {
            "on a GPU, FSDP wrote the checkpoint": sharded == (setup.device.type == "cuda"),
            f"losses differ by at most {RESUME_TOLERANCE}": max(differences) <= RESUME_TOLERANCE,
            "one process finds nothing left to do": (trainer.resume(), metrics["steps"]) == (3, 4),
        },
    )


def vllm(setup: Setup) -> Outcome | None:
    """vLLM on the embedded model: greedy tokens against transformers', log-probabilities against ``likelihood.score``."""
    if importlib.util.find_spec("vllm") is None:
        return None
    model, rows = setup.embedded(), setup.problems("test")
    prompts = [setup.template.prompt_ids(row["question"]) for row in rows]
    seeds = list(range(len(prompts)))
    greedy = sample(model, setup.template, prompts, seeds, 0.0, 40)
    with open_sampler(EMBEDDED, "vllm", device=str(setup.device), dtype=setup.dtype) as engine:
        same = engine.sample(prompts, seeds, setup.template.stop_ids, 0.0, 40).ids
        started = time.perf_counter()
        drawn = engine.sample(prompts, seeds, setup.template.stop_ids, 1.0, 40)
        seconds = time.perf_counter() - started
    scored = torch.cat(score(model, prompts, drawn.ids, [[]] * len(prompts)).rationale)
    differences = (scored - torch.tensor([value for row in drawn.log_probs for value in row])).abs()
    tolerance, share = CANARY_TOLERANCE[getattr(torch, setup.dtype)], _share_equal(greedy, same)
    return Outcome(
        {
            "greedy, same as hf": share,
            "mean |log-prob difference|": differences.mean().item(),
            "max |log-prob difference|": differences.max().item(),
            "tokens/s": len(scored) / seconds,
        },
        {
            f"{SAME_TOKENS:.0%} of the greedy completions are those of hf": share >= SAME_TOKENS,
            f"log-probabilities differ by at most {tolerance:g} on average": differences.mean().item() <= tolerance,
        },
    )


def vllm_rollouts(setup: Setup) -> Outcome | None:
    """ψ-PPO with rollouts by vLLM on the same device, where it sleeps between them: three steps with adapters, three with all weights."""
    if importlib.util.find_spec("vllm") is None:
        return None
    shared = {"rollout_engine": "vllm", "steps": 3, "unfinished_reward": -20.0, "device": setup.device.type, "dtype": setup.dtype}
    shared |= {"prompts_per_step": setup.size.per_step, "rationales_per_prompt": setup.size.rationales}
    numbers: dict[str, Any] = {}
    for name, settings in {"adapters": {"lora": {"r": 8, "alpha": 16}, "learning_rate": 1e-3}, "all weights": {}}.items():
        trainer, lines, _ = _train_psi(setup, setup.embedded(), setup.problems("train"), shared | settings)  # a canary in every step
        numbers[f"{name}, mismatch KL"] = max(line["mismatch_kl"] for line in lines)
        numbers[f"{name}, mean importance weight"] = min(line["importance_weight"] for line in lines)
        numbers[f"{name}, seconds"] = trainer.seconds
    worst = max(value for name, value in numbers.items() if name.endswith("KL"))
    bound = MISMATCH[getattr(torch, setup.dtype)]
    return Outcome(numbers, {f"the mismatch is at most {bound:g} nats per token": worst <= bound})


# train_tiny after the others that train, and in fsdp2 θ after ψ: an SFTTrainer leaves mixed precision on in accelerate for the rest of the
# process.
CHECKS: dict[str, Callable[[Setup], Outcome | None]] = {
    check.__name__: check for check in (likelihood, generation, resume, train_large, fsdp2, train_tiny, vllm, vllm_rollouts)
}


class _Stopped(Exception):
    """Ends a training run between two checkpoints."""


def _psi_trainer(
    setup: Setup,
    model: nn.Module,
    problems: list[dict[str, Any]],
    settings: dict[str, Any],
    checkpoint: Path | None,
    log: Callable[..., None],
) -> PosteriorPPOTrainer:
    return PosteriorPPOTrainer(model, setup.template, problems, PsiParams.parse(settings), checkpoint=checkpoint, log=log)


def _train_psi(
    setup: Setup, model: nn.Module, problems: list[dict[str, Any]], settings: dict[str, Any]
) -> tuple[PosteriorPPOTrainer, list[dict[str, float]], float]:
    """A trained trainer, the metrics of its steps, and max |log Q − log P_θ| at step 0."""
    lines: list[dict[str, float]] = []
    anchor: list[float] = []

    def log(step: int, **metrics: float) -> None:
        lines.append(metrics)
        if step == 1:
            first = trainer.latest
            anchor.append(((first.log_prob - first.reference_log_prob) * first.mask).abs().max().item())

    trainer = _psi_trainer(setup, model, problems, settings, None, log)
    trainer.train()
    return trainer, lines, anchor[0]


def _wide_model(setup: Setup) -> nn.Module:
    width, layers = setup.size.shape
    config = Qwen2Config(
        vocab_size=setup.size.vocabulary, hidden_size=width, num_hidden_layers=layers, intermediate_size=width * 38 // 7,
        num_attention_heads=width // 64 or 1, num_key_value_heads=2 if width > 64 else 1, tie_word_embeddings=True,
        max_position_embeddings=2048, attention_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(0)
    return Qwen2ForCausalLM(config).to(setup.device, getattr(torch, setup.dtype)).eval()


def _nats_per_token(model: nn.Module, rows: list[dict[str, Any]], template: RationaleTemplate) -> float:
    """Mean −log P_θ of the tokens of z and y*, of finished rationales."""
    rows = [row for row in rows if row["finished"]]
    answers = [template.answer_ids(row["gold"]) for row in rows]
    scores = score(model, [row["prompt_ids"] for row in rows], [row["rationale_ids"] for row in rows], answers)
    return -torch.cat([*scores.rationale, *scores.answer]).mean().item()


def _share_equal(one: list[list[int]], other: list[list[int]]) -> float:
    return sum(a == b for a, b in zip(one, other, strict=True)) / len(one)


def reset_peak(device: torch.device) -> None:
    """Start measuring :func:`peak_gib` anew."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_gib(device: torch.device) -> float | None:
    """Most memory that tensors took on a GPU since :func:`reset_peak`, in GiB; None on the CPU."""
    return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None
