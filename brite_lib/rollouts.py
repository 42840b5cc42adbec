"""Sampling rationales and answers, and the table they end in.

Every sample has a seed of its own (:func:`sample_seed`), so a rollout does not depend on which other prompts
share its batch. Log-probabilities are exact only at temperature 1 without top-p or top-k, the one way this
module samples, except for evaluation (temperature 0 is greedy).
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pyarrow as pa
import torch
from datasets import Dataset
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from brite_lib import costs
from brite_lib.errors import InputError
from brite_lib.likelihood import length_sorted, pad_sequences, score
from brite_lib.models import adapter_base, empty_model, load_policy, local_model
from brite_lib.params import check_engine, resolve_path, suggestion
from brite_lib.problems import Problem
from brite_lib.progress import progress
from brite_lib.sharding import is_sharded
from brite_lib.tables import RATIONALES
from brite_lib.template import Completion, RationaleTemplate
from brite_lib.verify import judge
from brite_lib.vllm_engine import SCRATCH, Drawn, VllmEngine, visible_devices

Sampler = nn.Module | VllmEngine
NOISE_BLOCK = 2**16  # random numbers drawn at once per sample, at the most


def sample_seed(seed: int, *key: object) -> int:
    """A 63-bit seed for one sample, e.g. ``sample_seed(run_seed, step, problem_id, k)``; the same on every machine."""
    text = "/".join(str(part) for part in (seed, *key))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


class GumbelSampler(LogitsProcessor):
    """Turns greedy decoding into exact sampling: argmax(logits / temperature + Gumbel noise), noise from each row's seed."""

    def __init__(self, seeds: Sequence[int], temperature: float, max_new_tokens: int):
        self.temperature, self.max_new_tokens = temperature, max_new_tokens
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.noise: Tensor | None = None
        self.step = 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        vocabulary = scores.shape[-1]
        block = max(1, min(self.max_new_tokens, NOISE_BLOCK // vocabulary))
        if self.step % block == 0:
            uniform = torch.stack([torch.rand((block, vocabulary), generator=g, dtype=torch.float64) for g in self.generators])
            self.noise = -torch.log(-torch.log(uniform.clamp(min=1e-300))).to(scores.device, torch.float32)
        noisy = scores.float() / self.temperature + self.noise[:, self.step % block]
        self.step += 1
        return noisy


class StopAtBoundary(StoppingCriteria):
    """Ends a row once its sampled text holds the boundary, for boundaries of several tokens; the same decoding as the template's."""

    def __init__(self, template: RationaleTemplate, prompt_length: int):
        self.template, self.prompt_length = template, prompt_length
        self.tail = len(template.formats.boundary) + 8  # tokens that may hold it; some (parts of a character) have no text

    def __call__(self, input_ids: Tensor, scores: Tensor | None, **kwargs: Any) -> Tensor:
        sampled = input_ids[:, self.prompt_length :][:, -self.tail :].tolist()
        done = [self.template.formats.boundary in self.template.decode(row) for row in sampled]
        return torch.tensor(done, device=input_ids.device)


@contextmanager
def open_sampler(
    model: Sampler | str | Path,
    engine: Literal["hf", "vllm"] = "hf",
    *,
    saved_as: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    directory: Path | None = None,
    memory: float | None = None,
    sleeps: bool = False,
) -> Iterator[Sampler]:
    """What :func:`generate` and :func:`sample` draw from, for the length of a ``with`` block.

    With ``engine: hf`` that is the module itself, loaded if need be; with ``vllm`` an engine with the same weights, which
    gives its memory back at the end.

    Args:
        saved_as: where the weights of a module lie; None: vLLM reads a temporary copy (with LoRA, of the adapter alone).
        directory: an existing one for ``vllm.log`` and the copy; None: the system's temporary directory.
        memory, sleeps: of vLLM's engines, see :class:`brite_lib.vllm_engine.VllmEngine`.

    Raises:
        InputError: for an unknown engine, or one that is not installed or can't run this model.
    """
    if isinstance(model, VllmEngine):
        yield model
    elif engine == "hf":
        yield load_policy(model, device=device, dtype=dtype) if isinstance(model, str | Path) else model
    elif engine == "vllm":
        check_engine("vllm")
        for leftover in directory.glob(f"{SCRATCH}*") if directory else []:  # of a killed run
            shutil.rmtree(leftover)
        with TemporaryDirectory(prefix=SCRATCH, dir=directory) as copy:
            source = saved_as or model
            path, adapter = _saved(source, Path(copy)) if isinstance(source, nn.Module) else _base_and_adapter(source)
            path = local_model(path)
            cost = costs.ModelCost.of(model if isinstance(model, nn.Module) else empty_model(path))
            with VllmEngine(path, adapter, dtype, visible_devices(device), directory, cost, memory, sleeps) as running:
                yield running
    else:
        raise InputError(f"engine: {engine!r} is unknown{suggestion(str(engine), ['hf', 'vllm'])}")


def sample(
    model: Sampler,
    template: RationaleTemplate,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    temperature: float,
    max_new_tokens: int,
    stop_at_boundary: bool = False,
    batch_size: int = 512,
    desc: str = "",
) -> list[list[int]]:
    """Token ids of one completion per prompt, through its end token (or boundary, or the limit).

    Args:
        prompts: token ids of x, one list per sample (repeat a prompt for several samples).
        seeds: one per sample.
        temperature: 0 decodes greedily.
        stop_at_boundary: stop once z is complete and sample no y (reward (i) needs none).
        desc: progress is shown under this name; empty: none is.
    """
    if isinstance(model, VllmEngine):
        return sample_with_vllm(model, template, prompts, seeds, temperature, max_new_tokens, stop_at_boundary).ids
    stops, watch_text = _stops(template, stop_at_boundary)
    config = GenerationConfig(do_sample=False, max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=template.pad_id)
    completions: list[list[int]] = [[] for _ in prompts]
    device = next(model.parameters()).device
    with torch.no_grad(), _plain_generation(model) as causal:
        for rows in length_sorted([(prompt,) for prompt in prompts], batch_size, desc):
            padded = pad_sequences([prompts[i] for i in rows], device, side="left", pad_id=template.pad_id)
            sampler = [GumbelSampler([seeds[i] for i in rows], temperature, max_new_tokens)] if temperature > 0 else []
            length = padded.input_ids.shape[1]
            output = causal.generate(
                input_ids=padded.input_ids,
                attention_mask=padded.attention_mask,
                generation_config=config,
                logits_processor=LogitsProcessorList(sampler),
                stopping_criteria=StoppingCriteriaList([StopAtBoundary(template, length)] if watch_text else []),
                synced_gpus=is_sharded(model),  # each rank takes part in every token of the others
            )
            for i, ids in zip(rows, output[:, length:].tolist(), strict=True):
                ids = _trim(ids, config.eos_token_id)
                completions[i] = ids[: template.boundary_end(ids)] if watch_text else ids
    costs.add(costs.ModelCost.of(model).sampling([len(prompt) for prompt in prompts], [len(ids) for ids in completions]))
    return completions


def sample_with_vllm(
    engine: VllmEngine,
    template: RationaleTemplate,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    temperature: float,
    max_new_tokens: int,
    stop_at_boundary: bool = False,
) -> Drawn:
    """As :func:`sample`, with the log-probabilities of the tokens.

    vLLM watches tokens and no text: behind a boundary of several tokens it samples on, to the end token or the limit, and what
    follows the boundary is cut off.
    """
    stops, watch_text = _stops(template, stop_at_boundary)
    drawn = engine.sample(prompts, seeds, stops, temperature, max_new_tokens, desc=None)
    if not watch_text:
        return drawn
    ids = [row[: template.boundary_end(row)] for row in drawn.ids]
    return Drawn(ids, [values[: len(row)] for row, values in zip(ids, drawn.log_probs, strict=True)])


def generate(
    model_or_path: Sampler | str | Path,
    problems: Dataset | Sequence[Problem | dict[str, Any]],
    template: RationaleTemplate,
    n: int = 1,
    temperature: float = 1.0,
    max_new_tokens: int = 40,
    engine: Literal["hf", "vllm"] = "hf",
    seed: int = 0,
    *,
    max_rationale_tokens: int | None = None,
    max_answer_tokens: int | None = None,
    answer_kind: str = "exact",
    answer_from: Literal["answer", "completion"] = "answer",
    source: str = "",
    round: int = 1,
    first_sample: int = 0,
    batch_size: int = 512,
    hint: bool = False,
) -> Dataset:
    """Sample ``n`` completions per problem and return them as a rationale table (design section 6).

    Rows are ordered by problem, then sample. What is not known yet is null: rewards, and log-probabilities, which
    :func:`add_scores` fills in; vLLM's own log-probabilities of z are kept in ``logp_psi``. To draw more than once, open the
    engine once with :func:`open_sampler` and pass what it gives. The engines have the same law and the same seeds, but not the
    same samples.
    ``first_sample`` numbers the samples on, with new seeds, when a problem is sampled again.
    ``hint`` shows the answer in the prompt (STaR). ``answer_from="completion"`` looks for the answer in all that was
    sampled, finished or not, as the evaluators of papers do, and not in y alone.

    Raises:
        InputError: for an unknown engine, or one that is not installed or can't run this model; n or max_new_tokens below 1, or a
            negative temperature.
    """
    if n < 1 or max_new_tokens < 1 or not temperature >= 0:
        raise InputError(f"n: {n} and max_new_tokens: {max_new_tokens} must be at least 1, temperature: {temperature} at least 0")
    problems = [dict(problem) for problem in problems]
    jobs = [(problem, first_sample + k) for problem in problems for k in range(n)]
    seeds = [sample_seed(seed, problem["id"], k) for problem, k in jobs]
    shown = [problem["answer"] if hint else None for problem in problems]
    prompts = [
        ids for problem, answer in zip(problems, shown, strict=True) for ids in [template.prompt_ids(problem["question"], answer)] * n
    ]
    with open_sampler(model_or_path, engine) as model:
        completions, log_probs = _draw(model, template, prompts, seeds, temperature, max_new_tokens, batch_size, source)
    split = [template.split(ids, max_rationale_tokens, max_answer_tokens) for ids in completions]
    whole = None
    if answer_from == "completion":
        whole = [template.decode([token for token in ids if token not in template.stop_ids]) for ids in completions]
    rows = judged_rows([problem for problem, _ in jobs], split, answer_kind, template, whole)
    for row, (_, k), row_seed, prompt, ids, log_prob in zip(rows, jobs, seeds, prompts, completions, log_probs, strict=True):
        row |= {"source": source, "round": round, "sample": k, "seed": row_seed, "num_tokens": len(ids), "prompt_ids": prompt}
        if log_prob is not None:
            row["logp_psi"] = log_prob[: len(row["rationale_ids"])]
    return Dataset(pa.Table.from_pylist(rows, schema=RATIONALES))


def add_scores(
    rows: Sequence[dict[str, Any]], template: RationaleTemplate, theta: nn.Module | None, psi: nn.Module | None = None, batch_size: int = 64
) -> list[dict[str, Any]]:
    """The rows with ``logp_theta``, ``logp_answer`` = log P_θ(y*|x,z) of the gold answer, and ``logp_psi`` filled in.

    An unfinished rationale has no answer likelihood: its ``logp_answer`` stays null.
    """
    rows = [dict(row) for row in rows]
    prompts, rationales = [row["prompt_ids"] for row in rows], [row["rationale_ids"] for row in rows]
    gold = [template.answer_ids(row["gold"]) if row["finished"] else [] for row in rows]
    if theta is not None:
        scores = score(theta, prompts, rationales, gold, batch_size, desc="scoring under θ")
        for row, rationale, answer in zip(rows, scores.rationale, scores.answer, strict=True):
            row["logp_theta"] = rationale.tolist()
            row["logp_answer"] = answer.sum().item() if row["finished"] else None
    if psi is not None:
        scores = score(psi, prompts, rationales, [[]] * len(rows), batch_size, desc="scoring under ψ")
        for row, rationale in zip(rows, scores.rationale, strict=True):
            row["logp_psi"] = rationale.tolist()
    return rows


def judged_rows(
    problems: Sequence[dict[str, Any]],
    completions: Sequence[Completion],
    answer_kind: str,
    template: RationaleTemplate,
    whole: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """The columns of a rationale table that completions and their problems decide; the one rule of what is correct.

    The answer stands in y, which must have ended, or anywhere in the ``whole`` text if that is given. ``correct`` is null for
    an answer that could not be judged.
    """
    if whole is None:
        predictions, verdicts = judge(problems, [c.answer for c in completions], answer_kind, [c.ended for c in completions])
    else:
        predictions, verdicts = judge(problems, whole, answer_kind)
    return [
        {
            "id": problem["id"],
            "question": problem["question"],
            "gold": problem["answer"],
            "rationale": completion.rationale,
            "answer_text": completion.answer,
            "prediction": prediction,
            "correct": verdict,
            "finished": completion.finished,
            "rationale_ids": completion.rationale_ids,
            "answer_ids": completion.answer_ids,
            "tokens": template.tokens(completion.rationale_ids),
        }
        for problem, completion, prediction, verdict in zip(problems, completions, predictions, verdicts, strict=True)
    ]


def _draw(
    model: Sampler,
    template: RationaleTemplate,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    temperature: float,
    max_new_tokens: int,
    batch_size: int,
    source: str,
) -> tuple[list[list[int]], Sequence[list[float] | None]]:
    """Completions with progress, and the log-probabilities that vLLM gives with them."""
    desc = f"sampling {source}".strip()
    if isinstance(model, VllmEngine):
        return model.sample(prompts, seeds, template.stop_ids, temperature, max_new_tokens, desc)
    completions: list[list[int]] = []
    for start in progress(range(0, len(prompts), batch_size), desc=desc):
        part = slice(start, start + batch_size)
        completions += sample(model, template, prompts[part], seeds[part], temperature, max_new_tokens, batch_size=batch_size)
    return completions, [None] * len(completions)


def _base_and_adapter(model: str | Path) -> tuple[str | Path, str | Path | None]:
    base = adapter_base(model)
    return (base, resolve_path(model)) if base else (model, None)


def _saved(model: nn.Module, directory: Path) -> tuple[str | Path, Path | None]:
    """The weights of a module on disk, as model and adapter; the base of an adapter is written only if it does not lie there already."""
    if not isinstance(model, PeftModel):
        model.save_pretrained(directory)
        return directory, None
    model.save_pretrained(directory / "adapter")
    path = model.active_peft_config.base_model_name_or_path
    if not path:  # θ carried an adapter that was merged
        path, base = directory / "base", model.get_base_model()
        own = {name: tensor for name, tensor in base.state_dict().items() if model.base_model.prefix not in name}
        base.save_pretrained(path, state_dict={name.replace(".base_layer", ""): tensor for name, tensor in own.items()})
    return path, directory / "adapter"


@contextmanager
def _plain_generation(model: nn.Module) -> Iterator[nn.Module]:
    """The causal model in eval mode, without the sampling defaults that a hub model brings (Qwen's repetition penalty, say)."""
    causal = model.get_base_model() if isinstance(model, PeftModel) else model
    own, was_training = causal.generation_config, model.training
    causal.generation_config = GenerationConfig()
    model.eval()
    try:
        yield causal
    finally:
        causal.generation_config = own
        model.train(was_training)


def _stops(template: RationaleTemplate, stop_at_boundary: bool) -> tuple[list[int], bool]:
    """The tokens that end a sample, and whether its text has to be watched, for a boundary that is not one token."""
    one_token = stop_at_boundary and len(template.boundary_ids) == 1
    return [*template.stop_ids, *(template.boundary_ids if one_token else [])], stop_at_boundary and not one_token


def _trim(ids: list[int], stops: list[int]) -> list[int]:
    """Drop what generate padded after the first stop token."""
    end = next((i for i, token in enumerate(ids) if token in stops), None)
    return ids if end is None else ids[: end + 1]
