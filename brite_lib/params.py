"""Typed parameters: one pydantic model per stage, and the experiment file that fills them.

Nothing here imports torch: a wrong parameter must fail in a second, before a model is loaded. The field
descriptions are the reference documentation of the settings; ``params/*.yaml`` and the first cell of every
notebook use the same names. Symbols: ψ is the posterior Q(z|x), θ the language model (paper.md section 1).
"""

import difflib
import json
import types
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from brite_lib.errors import InputError

PROJECT_ROOT = Path(__file__).resolve().parent.parent


def _number(value: Any) -> Any:
    """``"1e-5"`` (papermill's YAML 1.1) is a number, ``true`` is none."""
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


Float = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
PositiveFloat = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, BeforeValidator(_number), Field(ge=0, allow_inf_nan=False)]
PositiveInt = Annotated[int, BeforeValidator(_number), Field(gt=0)]
NonNegativeInt = Annotated[int, BeforeValidator(_number), Field(ge=0)]


def resolve_path(path: str | Path) -> Path:
    """A path as given if it exists, else below the project root (a notebook's working directory varies)."""
    path = Path(path).expanduser()
    return path if path.is_absolute() or path.exists() else PROJECT_ROOT / path


class Strict(BaseModel):
    """Base of all parameters: unknown names are errors that suggest the nearest known one."""

    model_config = ConfigDict(extra="forbid", validate_default=True, protected_namespaces=())

    @classmethod
    def parse(cls, values: dict[str, Any], where: str = "") -> Self:
        """Validate ``values``.

        Raises:
            InputError: one sentence naming ``where``, the key and what is wrong with it.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(_sentence(cls, error, where)) from None

    def difference(self) -> dict[str, Any]:
        """The settings that are not the default, ready for JSON."""
        return self.model_dump(mode="json", exclude_defaults=True)


class LoraParams(Strict):
    """Low-rank adapters (PEFT). The paper's run: r = 32, alpha = 128 (paper.md section 1.6)."""

    r: PositiveInt = Field(32, description="rank")
    alpha: PositiveFloat = Field(128, description="scale; the update is multiplied by alpha / r")
    target_modules: str | list[str] = Field("all-linear", description="as in peft.LoraConfig")


class StageParams(Strict):
    """What every stage has."""

    kind: ClassVar[str] = ""

    stage: str = Field("", description="name of the stage in its record; empty: the notebook's own")
    output_dir: str = Field("", description="where the stage writes; empty: outputs/scratch/<stage>")
    seed: NonNegativeInt = Field(0, description="the one seed of the stage; sampling, shuffling and initialisation derive from it")
    threads: NonNegativeInt = Field(1, description="CPU threads of this process; 0: torch's own choice (busy cores make 2 slower than 1)")

    @model_validator(mode="after")
    def _fill_names(self) -> Self:
        self.stage = self.stage or self.kind
        self.output_dir = self.output_dir or f"outputs/scratch/{self.stage}"
        return self

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """The validated parameters of a running notebook.

        Call it as ``params = PsiParams.from_notebook(globals())`` in the cell after the one tagged ``parameters``
        and before any other import: every plain value in the namespace must then be a field of this class.
        Papermill only logs an injected name that the notebook does not know; here it is an error.

        Raises:
            InputError: one sentence naming the parameter.
        """
        hidden = {"In", "Out", "exit", "quit", "open"}
        if any(isinstance(value, cls) for value in namespace.values()):  # the cell is run again, among names of later cells
            return cls.parse({name: namespace[name] for name in cls.model_fields if name in namespace}, where="notebook parameter")
        values = {
            name: value
            for name, value in namespace.items()
            if not name.startswith("_") and name not in hidden and not isinstance(value, (type, types.ModuleType)) and not callable(value)
        }
        return cls.parse(values, where="notebook parameter")


class ModelStageParams(StageParams):
    """What every stage with a language model has."""

    round: PositiveInt = Field(1, description="EM round t that the stage belongs to")
    model: str = Field("assets/tiny-base", description="θ: a Hugging Face model directory or hub name")
    template: str | dict[str, Any] = Field(
        "auto", description="how z and y are written: 'auto' (the model directory's own, else 'chat'), a preset's name, or its fields"
    )
    data: str = Field("toy:easy", description="problems: toy:<level>, a hub data set, or a .jsonl/.parquet path")
    split: str = Field("train", description="split of the data")
    limit: PositiveInt | None = Field(None, description="use only so many problems; null: all (1000 on the toy task)")
    answer_kind: Literal["exact", "number", "math", "choice"] = Field("exact", description="how answers are compared")
    max_rationale_tokens: PositiveInt = Field(32, description="longest rationale z, boundary included; longer ones are unfinished")
    max_answer_tokens: PositiveInt = Field(8, description="longest answer y, end token included")
    batch_size: PositiveInt = Field(512, description="sequences per forward pass without gradients, and per call of generate")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: bfloat16 on CUDA, else float32")


class SamplingStageParams(ModelStageParams):
    """A stage that makes ``rationales.parquet``."""

    temperature: NonNegativeFloat = Field(1.0, description="sampling temperature; the posterior needs 1")


class PsiParams(ModelStageParams):
    """ψ-update: learn Q_ψ(z|x) ≈ P(z|x, y*, o = 1; θ) by PPO (BRiTE section 3.4; design section 4)."""

    kind = "brite_psi"

    reward: Literal["answer_likelihood", "verifier"] = Field(
        "answer_likelihood", description="reward (i) log P(y*|x,z;θ), or (ii) R/β of a verifier on a sampled y"
    )
    beta: PositiveFloat = Field(1.0, description="β of reward (ii): a correct answer is worth 1/β nats")
    kl_coef: NonNegativeFloat = Field(1.0, description="c; only c = 1 has the posterior as its optimum")
    unfinished_reward: Float | None = Field(
        None, description="reward of a rationale without an end; null: calibrated once (reward i) or 0 (reward ii)"
    )
    unfinished_margin: NonNegativeFloat = Field(5.0, description="nats below the lowest of the first 256 finished rewards")
    advantage: Literal["gae", "rloo", "group"] = Field(
        "rloo", description="gae: learned critic (the paper's PPO); rloo: leave-one-out mean; group: group mean"
    )
    gae_lambda: Annotated[float, Field(ge=0, le=1)] = Field(0.95, description="λ of GAE (γ is 1)")
    scale_group_std: bool = Field(
        False, description="divide a group's advantages by their standard deviation (GRPO does; biases the posterior)"
    )
    whiten_advantages: bool = Field(False, description="standardise advantages over the batch")
    steps: PositiveInt = Field(112, description="policy updates: batches of fresh rationales")
    prompts_per_step: PositiveInt = Field(32, description="problems per batch")
    rationales_per_prompt: PositiveInt = Field(8, description="rationales sampled per problem")
    epochs: PositiveInt = Field(1, description="passes over a batch (the clipped objective matters from the second on)")
    minibatches: PositiveInt = Field(1, description="optimiser steps per pass")
    micro_batch_size: PositiveInt = Field(256, description="sequences per forward-backward pass")
    learning_rate: PositiveFloat = Field(2e-4, description="AdamW, policy")
    value_learning_rate: PositiveFloat = Field(1e-3, description="AdamW, value head (gae)")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("constant", description="after warm-up")
    warmup_steps: NonNegativeInt = Field(0, description="updates of linear warm-up")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW, policy")
    clip: PositiveFloat = Field(0.2, description="ε of the clipped objective")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient norm is clipped to this")
    lora: LoraParams | None = Field(None, description="train adapters; null: all weights")
    save_steps: PositiveInt = Field(25, description="checkpoint every so many updates")
    samples: PositiveInt = Field(1, description="rationales drawn from Q for every training problem at the end")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.advantage != "gae" and self.rationales_per_prompt < 2:
            raise ValueError(f"rationales_per_prompt must be at least 2 for advantage: {self.advantage}, or use advantage: gae")
        if self.minibatches > self.prompts_per_step * self.rationales_per_prompt:
            raise ValueError("minibatches must not exceed prompts_per_step × rationales_per_prompt")
        return self


class RejectionParams(SamplingStageParams):
    """Rejection sampling: N rationales per problem from θ, one random correct one kept (paper.md section 1.6)."""

    kind = "rs_sampling"

    samples: PositiveInt = Field(30, description="N, rationales per problem (the paper's 30)")
    until_hit: bool = Field(False, description="go on in rounds of N until every problem has a hit: draws from the posterior exactly")
    max_samples: PositiveInt = Field(3000, description="until_hit: give a problem up after so many draws, and report it")


class ThetaParams(ModelStageParams):
    """θ-update: SFT of θ on (x, z, y*), loss on z and y only (BRiTE eq. 3.5)."""

    kind = "theta_sft"

    rationales: str = Field("human", description="a rationales.parquet, or 'human' for the data's own rationales")
    correct_only: bool = Field(False, description="leave out rationales whose sampled answer was judged wrong")
    epochs: PositiveFloat = Field(4, description="passes over the rationales")
    train_batch_size: PositiveInt = Field(32, description="sequences per optimiser step")
    micro_batch_size: PositiveInt = Field(32, description="sequences per forward-backward pass")
    learning_rate: PositiveFloat = Field(5e-4, description="AdamW")
    lr_schedule: Literal["constant", "linear", "cosine"] = Field("cosine", description="after warm-up")
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = Field(0.05, description="share of the steps used for warm-up")
    weight_decay: NonNegativeFloat = Field(0.0, description="AdamW")
    max_grad_norm: PositiveFloat = Field(1.0, description="gradient norm is clipped to this")
    lora: LoraParams | None = Field(None, description="train adapters; null: all weights")
    save_steps: PositiveInt = Field(50, description="checkpoint every so many optimiser steps")


class EvalParams(SamplingStageParams):
    """Evaluation of a model directory on one benchmark."""

    kind = "evaluation"

    split: str = Field("test", description="split of the data")
    method: str = Field("base", description="row of the result table")
    benchmark: str = Field("toy", description="column of the result table")
    samples: PositiveInt = Field(4, description="k samples per problem for pass@1 and maj@k")
    greedy: bool = Field(True, description="also decode greedily")
    bootstrap: PositiveInt = Field(2000, description="resamples of the problems for the intervals")
    reference_model: str = Field("", description="θ that scores log P(y*|x,z); empty: the evaluated model itself")


class TinyBaseParams(ModelStageParams):
    """The embedded base model, trained from scratch on the toy task."""

    kind = "tiny_base"

    model_dir: str = Field(
        "", description="where the model directory is written; empty: <output_dir>/model (assets/tiny-base is the committed one)"
    )
    fast: bool = Field(False, description="a smaller model in about a minute, for the test of the notebook itself")
    hidden_size: PositiveInt = Field(96, description="width of the transformer")
    layers: PositiveInt = Field(3, description="depth of the transformer")
    skill_steps: PositiveInt = Field(5000, description="optimiser steps of the first phase")
    habit_steps: PositiveInt = Field(800, description="optimiser steps of the second phase")
    train_batch_size: PositiveInt = Field(64, description="sequences per optimiser step")
    learning_rate: PositiveFloat = Field(2e-3, description="AdamW, first phase; 0.15 of it in the second")

    @model_validator(mode="after")
    def _shrink(self) -> Self:
        if self.fast:
            self.hidden_size, self.layers, self.skill_steps, self.habit_steps = 48, 2, 150, 50
        return self


class LimitsParams(ModelStageParams):
    """The trial in which the base is not competent (docs/limits.md)."""

    kind = "limits"

    problems: PositiveInt = Field(1000, description="training problems, and half as many test problems")
    base_steps: PositiveInt = Field(400, description="optimiser steps (64 sequences each) that teach the base the two readings")
    psi_steps: PositiveInt = Field(112, description="policy updates of each ψ-PPO")
    beta: PositiveFloat = Field(0.1, description="β of reward (ii): a correct answer is worth 1/β nats")


class TheoryParams(StageParams):
    """The theorem on exact instances, and a census of random ones (theory.md; no language model)."""

    kind = "theory"

    prompts: PositiveInt = Field(4, description="|X| of the instance that is looked at")
    rationales: PositiveInt = Field(6, description="|Z|")
    answers: Annotated[int, Field(ge=2)] = Field(4, description="|Y|")
    kernel: Literal["rbf", "linear", "tabular"] = Field("rbf", description="how the logits of points share information")
    rank: PositiveInt | None = Field(8, description="features kept; null: all")
    length_scale: PositiveFloat = Field(1.0, description="of the RBF kernel")
    verifier: Literal["answer", "pair", "noisy", "soft"] = Field("answer", description="0/1 on y, 0/1 on (z, y), 5 % wrong, exp(R/β)")
    beta: PositiveFloat = Field(1.0, description="β of the soft verifier")
    ridge: NonNegativeFloat = Field(1e-2, description="λ of the penalty λ/2·‖θ‖²")
    steps: PositiveInt = Field(60, description="EM iterations")
    starts: PositiveInt = Field(12, description="Newton ascents when the best maximum is looked for")
    guaranteed: PositiveInt = Field(40, description="instances per family on which the bound is asserted")
    census: PositiveInt = Field(20, description="random instances on which it is only counted")
    census_steps: PositiveInt = Field(3000, description="EM iterations at most for one of them")
    processes: PositiveInt = Field(1, description="processes of the census")


class ReportParams(Strict):
    """Report over all finished stages of a run."""

    run_dir: str = Field("outputs/tiny", description="outputs/<run>")
    title: str = Field("", description="heading; empty: the run's name")

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """As :meth:`StageParams.from_notebook`."""
        return StageParams.from_notebook.__func__(cls, namespace)


METHODS = ("base", "sft", "sft_careless", "sft_careful", "rs", "posterior", "brite_psi", "brite")


class TaskParams(Strict):
    """One benchmark of an experiment: where it trains and where it is evaluated."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="benchmark in results.json")
    data: str = Field(description="training problems, as in the stages")
    train_split: str = "train"
    train_limit: PositiveInt | None = None
    test_data: str = Field("", description="empty: the same data")
    test_split: str = "test"
    test_limit: PositiveInt | None = None


class Experiment(Strict):
    """A whole experiment file: methods × tasks × seeds, and the settings of each stage."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="outputs/<name>")
    title: str = ""
    model: str = "assets/tiny-base"
    template: str | dict[str, Any] = "auto"
    tasks: list[TaskParams] = []
    seeds: list[NonNegativeInt] = Field([0], min_length=1)
    methods: list[str] = []
    common: dict[str, Any] = Field({}, description="settings of every stage (device, answer_kind, max_rationale_tokens, …)")
    psi: dict[str, Any] = {}
    theta: dict[str, Any] = {}
    rejection: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}
    theory: dict[str, Any] | None = Field(None, description="run the theory notebook with these settings; {}: its defaults")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.theory is None or self.methods or self.tasks:
            for field in ("methods", "tasks"):
                if not getattr(self, field):
                    raise ValueError(f"{field}: at least one is needed")
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"methods: {method!r} is unknown{suggestion(method, METHODS)}")
        for field in ("methods", "seeds"):
            if len(set(getattr(self, field))) != len(getattr(self, field)):
                raise ValueError(f"{field}: a value is listed twice")
        if len({task.name for task in self.tasks}) != len(self.tasks):
            raise ValueError("tasks: two have the same name")
        return self


def load_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment file (YAML 1.2, so ``1e-5`` is a number), all its stages included.

    Raises:
        InputError: one sentence naming the file and the key.
    """
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    from brite_lib.stages import plan

    path = Path(path)
    if not path.is_file():
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise InputError(f"{path}: no such experiment file{near}")
    try:
        values = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: must be a mapping of settings, found {type(values).__name__}")
    experiment = Experiment.parse(values, where=str(path))
    plan(experiment, where=str(path))  # the stage settings fail here, not after an hour
    return experiment


def suggestion(name: str, known: Any) -> str:
    """``"; did you mean 'steps'?"`` when a known name is near, else the known names."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else (f"; known: {', '.join(known)}" if known else "")


def _sentence(cls: type[Strict], error: ValidationError, where: str) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        fields = cls.model_fields
        for part in first["loc"][:-1]:
            annotation = str(fields[part].annotation) if part in fields else ""
            for nested in (LoraParams, TaskParams):
                fields = nested.model_fields if nested.__name__ in annotation else fields
        problem = f"is no parameter of {cls.__name__}{suggestion(str(first['loc'][-1]), fields)}"
    elif first["type"] == "missing":
        problem = "is missing"
    else:
        problem = first["msg"].removeprefix("Value error, ")
        if key:
            problem += f" (got {json.dumps(first['input'], default=str)[:80]})"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return ": ".join(part for part in (where, key, problem) if part) + more
