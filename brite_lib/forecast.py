"""What a run will cost, before it starts: ``make plan``.

A stage is a list of passes over its model (sampling, scoring, training); from them follow upper bounds of its tokens and, with the
model's sizes, of its model FLOPs (:mod:`brite_lib.costs`). They are bounds because every rationale and answer is taken to be as long
as the settings allow; people's rationales may be longer. Looking on (EM monitor, live view) is left out, as in the records. Seconds
come from tokens per second, stated or measured on finished stages of the same kind. Importing this needs no torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal, NamedTuple

from brite_lib.benchmarks import published_split
from brite_lib.costs import ModelCost
from brite_lib.errors import InputError
from brite_lib.memory import ALONE, GIB, Memory, Sharing, after_training, check_fit, critic_of, ghost, stage_memory
from brite_lib.params import (
    DpoParams,
    DrrParams,
    EvalParams,
    Experiment,
    HarnessParams,
    LatroParams,
    ModelStageParams,
    PsiParams,
    RejectionParams,
    StageParams,
    ThetaParams,
    TrainingStageParams,
    is_path,
    is_toy,
)
from brite_lib.records import read_record
from brite_lib.stages import StageSpec

CALIBRATIONS = 8 * 256  # rationales that calibrate the reward of unfinished ones, at the most (brite_lib/unfinished.py)
UNKNOWN_PROMPT = 256  # tokens of a prompt, where the questions can't be read without the hub


class Pass(NamedTuple):
    """A number of sequences through a model, each with at most so many tokens behind its prompt."""

    kind: Literal["sample", "score", "train"]
    sequences: int
    tokens: int


@dataclass(frozen=True)
class Forecast:
    """Upper bounds of one stage; None where something is not known. ``memory`` is that of each of its ``processes``."""

    tokens_generated: int
    tokens_trained: int
    flops: int | None = None
    seconds: float | None = None
    memory: Memory | None = None
    processes: int = 1


def passes(params: StageParams, problems: int, per_problem: int = 1) -> list[Pass]:
    """What a stage does with its models, at the most; nothing for a stage without a language model.

    Args:
        params: of the stage.
        problems: training or test problems.
        per_problem: rationales per problem that a θ-update learns from (:func:`rationales_per_problem` of their source).
    """
    if not isinstance(params, ModelStageParams):
        return []
    z, zy = params.max_rationale_tokens, params.max_rationale_tokens + params.max_answer_tokens
    match params:
        case DrrParams():
            attempts = params.chains * params.turns * problems
            read = params.turns * zy  # the discriminator reads all attempts so far
            return [Pass("sample", attempts, zy), Pass("train", round(params.epochs * attempts), read), Pass("score", attempts, read)]
        case DpoParams():
            pairs = round(params.epochs * 2 * problems)  # a pair has two
            return [Pass("sample", params.samples * problems, zy), Pass("train", pairs, zy), Pass("score", pairs, zy)]
        case PsiParams():
            return _psi_passes(params, problems, z, zy)
        case RejectionParams():
            draws = params.max_samples if params.until_hit else params.samples * (1 + (params.strategy == "star"))  # again with the hint
            return [Pass("sample", draws * problems, zy), Pass("score", rationales_per_problem(params) * problems, zy)]
        case ThetaParams():
            return [Pass("train", round(params.epochs * per_problem * problems), zy)]
        case EvalParams():
            answers = (params.samples + params.greedy) * problems
            return [Pass("sample", answers, zy), Pass("score", answers, zy)]
    raise TypeError(f"no forecast for {type(params).__name__}")


def _psi_passes(params: PsiParams, problems: int, z: int, zy: int) -> list[Pass]:
    likelihood = params.reward == "answer_likelihood"
    rollout, batch = z if likelihood else zy, params.steps * params.prompts_per_step * params.rationales_per_prompt
    constant = params.unfinished_rule == "constant" and params.unfinished_reward is None
    calibrations = CALIBRATIONS if likelihood and constant and params.answer_signal == "log_prob" else 0
    drawn = params.samples * problems
    found = [
        Pass("sample", batch, rollout),
        Pass("score", 2 * batch, zy),  # frozen θ, and Q with its critic before the update
        Pass("train", params.epochs * batch, zy if params.answer_nll_weight else rollout),
        Pass("sample", calibrations, rollout),
        Pass("score", calibrations, zy),
        Pass("sample", drawn, zy),
        Pass("score", 2 * drawn, zy),
    ]
    if isinstance(params, LatroParams):
        validations = params.steps // params.validation_steps + 2
        found.append(Pass("sample", validations * params.validation_limit * params.validation_samples, zy))
    return found


def rationales_per_problem(source: StageParams | None) -> int:
    """Rationales per problem that a source hands on, at the most; 1 without a source (people wrote them)."""
    match source:
        case RejectionParams(strategy="raft"):
            return source.samples
        case RejectionParams(strategy="rest_em"):
            return min(source.samples, source.max_per_problem)
        case PsiParams():
            return source.samples
    return 1


def token_bounds(found: Sequence[Pass]) -> tuple[int, int]:
    """(generated, trained) tokens of some passes, prompts not counted."""
    generated, trained = (sum(p.sequences * p.tokens for p in found if p.kind == kind) for kind in ("sample", "train"))
    return generated, trained


def flops_bound(found: Sequence[Pass], cost: ModelCost, prompt: int) -> int:
    """Model FLOPs of some passes behind prompts of ``prompt`` tokens."""
    of = {
        "sample": lambda tokens: cost.sampling([prompt], [tokens]),
        "score": lambda tokens: cost.forward([prompt + tokens], tokens),
        "train": lambda tokens: cost.training([prompt + tokens], tokens),
    }
    return sum(p.sequences * of[p.kind](p.tokens) for p in found)


def number_of_problems(params: ModelStageParams) -> int | None:
    """How many problems a stage reads, at the most; None if only the hub knows."""
    if is_toy(params.data):
        return params.limit or 1000
    if is_path(params.data):
        from brite_lib.problems import load_problems

        return len(load_problems(params.data, params.split, params.limit))
    published = published_split(params.data, params.split)
    return min(published[1], params.limit or published[1]) if published else params.limit


def source_of(spec: StageSpec, stages: Sequence[StageSpec]) -> StageParams | None:
    """The parameters of the stage whose rationales a stage reads."""
    if getattr(spec.params, "rationales", "human") == "human":
        return None
    return next(
        (other.params for other in stages if other.key in spec.inputs and isinstance(other.params, RejectionParams | PsiParams)), None
    )


class Forecaster:
    """Forecasts of the stages of one experiment.

    Args:
        experiment: whose model is read, its ``config.json`` only.
        stages: its plan.
        tokens_per_second: generated and trained, of any stage; None: as measured on its finished stages of the same kind.
        gpu: bytes of the GPU, None if there is none: then float32 is assumed where ``dtype`` is auto.
        gpus: how many there are of it; None: as many as the stages ask for.

    Attributes:
        notes: sentences about what is not known.
    """

    def __init__(
        self,
        experiment: Experiment,
        stages: Sequence[StageSpec],
        tokens_per_second: float | None = None,
        gpu: float | None = None,
        gpus: int | None = None,
    ):
        self.experiment, self.stages, self.tokens_per_second, self.gpu, self.gpus = experiment, stages, tokens_per_second, gpu, gpus
        self.notes: list[str] = []
        self._models: dict[Any, Any] = {}
        self._prompts: dict[tuple[str, str], tuple[int, int]] = {}
        self._rates: dict[str, float | None] = {}

    def of(self, spec: StageSpec) -> Forecast | None:
        """The forecast of one stage; None if the number of its problems is not known.

        Raises:
            InputError: one sentence, if the stage can't fit on the GPU, or asks for more GPUs than there are.
        """
        params = spec.params
        sharing = self._sharing(spec)
        if isinstance(params, HarnessParams):
            return None
        if not isinstance(params, ModelStageParams):
            return Forecast(0, 0)
        problems = number_of_problems(params)
        if problems is None:
            return None
        found = passes(params, problems, rationales_per_problem(source_of(spec, self.stages)))
        generated, trained = token_bounds(found)
        rate = self.tokens_per_second or self._measured(spec.kind)
        seconds = (generated + trained) / rate if rate else None
        model = self._model(params)
        if model is None:
            return Forecast(generated, trained, None, seconds, processes=sharing.processes)
        mean, longest = self._prompt_tokens(params)
        flops = flops_bound(found, ModelCost.of(model, critic_of(params, model)), mean)
        most = max((p.sequences for p in found if p.kind == "sample"), default=0)
        engine = getattr(params, "engine", "hf")
        if engine == getattr(params, "rollout_engine", engine) == "vllm":
            most = 0  # its cache takes what is free
        tokens = longest + params.max_rationale_tokens + params.max_answer_tokens
        need = partial(stage_memory, params, model, tokens, min(most, params.batch_size))
        memory = need(sharing)
        if self.gpu is not None and params.device != "cpu":
            check_fit(spec.key, params, memory, self.gpu, need if isinstance(params, TrainingStageParams) else None)
        if sharing != ALONE:
            afterwards = after_training(need())
            if self.gpu is not None and params.device != "cpu":
                check_fit(f"{spec.key}: after training, the notebook's own process", params, afterwards, self.gpu)
            memory = max(memory, afterwards, key=lambda memory: memory.total)
        return Forecast(generated, trained, flops, seconds, memory, sharing.processes)

    def _sharing(self, spec: StageSpec) -> Sharing:
        params = spec.params
        if not isinstance(params, TrainingStageParams):
            return ALONE
        there = None if self.gpus is None else self.gpus * params.accelerate_settings.get("num_machines", 1)
        processes = params.processes if params.processes != "auto" else there or 1
        if there is not None and params.device != "cpu" and processes > there:
            raise InputError(f"{spec.key}: processes: {processes} are more than the {there} GPUs there are; set it to {there}, or to auto")
        try:
            params.check_shares(processes)
        except ValueError as error:
            raise InputError(f"{spec.key}: processes: {params.processes} means {processes} here: {error}") from None
        return Sharing(processes, params.sharded)

    def _model(self, params: ModelStageParams) -> Any:
        lora, dtype = getattr(params, "lora", None), params.dtype
        dtype = ("float32" if self.gpu is None or params.device == "cpu" else "bfloat16") if dtype == "auto" else dtype
        key = (lora.model_dump_json() if lora else None, dtype)
        if key not in self._models:
            known = None not in self._models.values()
            try:
                self._models[key] = ghost(self.experiment.model, lora, dtype) if known else None
            except InputError as error:
                self._models[key] = None
                self._note(f"{error}; FLOPs and memory are not known")
        return self._models[key]

    def _prompt_tokens(self, params: ModelStageParams) -> tuple[int, int]:
        """Mean (rounded up) and longest prompt of the first 256 questions."""
        key = params.data, params.split
        if key not in self._prompts:
            self._prompts[key] = UNKNOWN_PROMPT, UNKNOWN_PROMPT
            if is_toy(params.data) or is_path(params.data):
                from brite_lib.models import load_template
                from brite_lib.problems import load_problems

                template = load_template(self.experiment.model, params.template)
                questions = load_problems(params.data, params.split, min(params.limit or 256, 256))["question"]
                lengths = [len(template.prompt_ids(question)) for question in questions]
                self._prompts[key] = -(-sum(lengths) // len(lengths)), max(lengths)
            else:
                self._note(
                    f"prompts of {params.data} are taken to have {UNKNOWN_PROMPT} tokens, as the plan does not load data from the hub"
                )
        return self._prompts[key]

    def _measured(self, kind: str) -> float | None:
        if kind not in self._rates:
            records = [finished(spec) for spec in self.stages if spec.kind == kind]
            tokens = sum(r["tokens_generated"] + r["tokens_trained"] for r in records if r)
            seconds = sum(r["seconds"] for r in records if r)
            self._rates[kind] = tokens / seconds if tokens and seconds else None
        return self._rates[kind]

    def _note(self, sentence: str) -> None:
        if sentence not in self.notes:
            self.notes.append(sentence)


def finished(spec: StageSpec) -> dict[str, Any] | None:
    """The record of a stage that has finished; None if there is none, or none that can be read."""
    try:
        return read_record(spec.directory / "stage.json")
    except InputError:
        return None


def gpus_found() -> tuple[int | None, int | None]:
    """Bytes of the first CUDA device, and how many there are; None, None without any."""
    import torch

    if not torch.cuda.is_available():
        return None, None
    return torch.cuda.get_device_properties(0).total_memory, torch.cuda.device_count()


def total(forecasts: Sequence[Forecast]) -> Forecast:
    """Sums; None where a summand is None."""
    sums = {}
    for name in ("tokens_generated", "tokens_trained", "flops", "seconds"):
        values = [getattr(forecast, name) for forecast in forecasts if forecast.tokens_generated or forecast.tokens_trained]
        sums[name] = None if None in values else sum(values)
    return Forecast(**sums)


def bound_cells(forecast: Forecast | None) -> tuple[str, ...]:
    """Cells of a table: tokens generated and trained, FLOPs, seconds, memory in GiB; ? without a forecast, empty where unknown or 0."""
    if forecast is None:
        return ("?",) * 5
    tokens = (f"{count:,}" if count else "" for count in (forecast.tokens_generated, forecast.tokens_trained))
    flops = f"{forecast.flops:.2e}" if forecast.flops else ""
    seconds = f"{forecast.seconds:,.0f}" if forecast.seconds else ""
    return *tokens, flops, seconds, gib(forecast.memory.total) if forecast.memory else ""


def memory_rows(forecasts: dict[str, Forecast | None]) -> list[tuple[str, ...]]:
    """A table of what makes up the memory, by kind of stage; empty if none is known."""
    known = {kind: forecast for kind, forecast in forecasts.items() if forecast and forecast.memory}
    parts = [field.name for field in fields(Memory) if any(getattr(forecast.memory, field.name) for forecast in known.values())]
    rows = [
        (
            kind if forecast.processes == 1 else f"{kind}, each of {forecast.processes} GPUs",
            *(gib(size) for size in (*(getattr(forecast.memory, part) for part in parts), forecast.memory.total)),
        )
        for kind, forecast in known.items()
    ]
    return [("memory, GiB", *(part.replace("_", " ") for part in parts), "peak"), *rows] if rows else []


def actual_rows(forecasts: Sequence[tuple[StageSpec, Forecast | None]]) -> list[tuple[str, ...]]:
    """A table of what finished stages took, in numbers and in % of the forecast; empty if none has finished."""
    rows = []
    for spec, forecast in forecasts:
        record = finished(spec)
        if record and forecast:
            shares = (_actual(record.get(name), getattr(forecast, name)) for name in ("tokens_generated", "tokens_trained", "flops"))
            rows.append((spec.key, *shares, f"{record['seconds']:,.0f}", _peak(record)))
    return [("predicted against actual", "tokens generated", "trained", "FLOPs", "seconds", "peak GiB"), *rows] if rows else []


def gib(size: float) -> str:
    """Bytes in GiB, with two digits below 10."""
    return f"{size / GIB:.2g}" if size < 10 * GIB else f"{size / GIB:.1f}"


def _actual(value: float | None, bound: float | None) -> str:
    if not value:
        return ""
    shown = f"{value:.3g}" if value >= 1e7 else f"{value:,.0f}"
    return f"{shown} ({100 * value / bound:.0f} %)" if bound else shown


def _peak(record: dict[str, Any]) -> str:
    on_gpu, of_process = record.get("peak_gpu_gib"), record.get("peak_rss_gib")
    return f"{on_gpu:.2f} (GPU)" if on_gpu else f"{of_process:.2f} (process)" if of_process else ""
