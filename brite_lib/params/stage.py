"""Parameters of the stages that neither learn from rationales nor make them, and what all stages share."""

import importlib.util
import types
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from brite_lib.benchmarks import answer_kind_of
from brite_lib.errors import InputError
from brite_lib.params.base import PROJECT_ROOT, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Strict


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
    answer_kind: Literal["auto", "exact", "number", "math", "choice", "code"] = Field(
        "auto", description="how answers are compared; auto: as the benchmark wants it, exact on the toy task, math for other data"
    )
    program_seconds: PositiveFloat = Field(10.0, description="answer_kind code: time for one program and its tests")
    i_understand_the_risk: bool = Field(False, description="answer_kind code: run programs with your rights where nothing isolates them")
    max_rationale_tokens: PositiveInt = Field(32, description="longest rationale z, boundary included; longer ones are unfinished")
    max_answer_tokens: PositiveInt = Field(8, description="longest answer y, end token included")
    batch_size: PositiveInt = Field(512, description="sequences per forward pass without gradients, and per call of generate")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: bfloat16 on CUDA, else float32")

    @model_validator(mode="after")
    def _resolve_answer_kind(self) -> Self:
        if self.answer_kind == "auto":
            self.answer_kind = answer_kind_of(self.data)
        return self

    @property
    def generation(self) -> dict[str, Any]:
        """Arguments that every call of :func:`brite_lib.rollouts.generate` in a stage has in common."""
        return {
            "max_new_tokens": self.max_rationale_tokens + self.max_answer_tokens,
            "max_rationale_tokens": self.max_rationale_tokens,
            "max_answer_tokens": self.max_answer_tokens,
            "answer_kind": self.answer_kind,
            "round": self.round,
            "batch_size": self.batch_size,
        }

    @property
    def noise_seed(self) -> int:
        """Seed of the samples: the stage's own, and a new one in every later EM round, so that a missed problem gets new draws."""
        return self.seed + 1_000_003 * (self.round - 1)


def check_engine(engine: str, parameter: str = "engine") -> None:
    """Ask for vLLM where it is wanted, before anything is loaded.

    Raises:
        InputError: one sentence with the command that installs it.
    """
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        raise InputError(
            f"{parameter}: vllm is not installed here: pip install -e '.[vllm]' on a machine with an NVIDIA GPU, "
            f"see docs/vllm.md for a CPU, or set {parameter}: hf"
        )


class EngineStageParams(ModelStageParams):
    """A stage that draws many samples from a model as it lies on disk, or as it was trained."""

    engine: Literal["hf", "vllm"] = Field(
        "hf", description="who draws the samples: hf (Hugging Face's generate), or vllm, for large models on GPUs (docs/vllm.md)"
    )

    @classmethod
    def from_notebook(cls, namespace: dict[str, Any]) -> Self:
        """As :meth:`StageParams.from_notebook`; the engine must be installed."""
        params = super().from_notebook(namespace)
        check_engine(params.engine)
        return params

    @property
    def drawing(self) -> dict[str, Any]:
        """Arguments that every call of :func:`brite_lib.rollouts.open_sampler` in a stage has in common."""
        directory = PROJECT_ROOT / Path(self.output_dir).expanduser()
        return {"engine": self.engine, "device": self.device, "dtype": self.dtype, "directory": directory}


class SamplingStageParams(EngineStageParams):
    """A stage that samples at a temperature of choice."""

    temperature: NonNegativeFloat = Field(1.0, description="sampling temperature; the posterior needs 1")


class EvalParams(SamplingStageParams):
    """Evaluation of a model directory on one benchmark."""

    kind = "evaluation"

    split: str = Field("test", description="split of the data")
    method: str = Field("base", description="row of the result table")
    benchmark: str = Field("toy", description="column of the result table")
    samples: NonNegativeInt = Field(4, description="k samples per problem for pass@1 and maj@k; 0: only greedily")
    greedy: bool = Field(True, description="also decode greedily")
    answer_from: Literal["answer", "completion"] = Field(
        "answer",
        description="where the answer is looked for: in y, after the boundary, or in all that was sampled, as evaluators of papers do",
    )
    bootstrap: PositiveInt = Field(2000, description="resamples of the problems for the intervals")
    reference_model: str = Field("", description="θ that scores log P(y*|x,z); empty: the evaluated model itself")

    @model_validator(mode="after")
    def _decodes(self) -> Self:
        if not (self.samples or self.greedy):
            raise ValueError("samples must be above 0, or greedy true: there is nothing to evaluate")
        # Not in an experiment file's section, whose data the tasks decide.
        if self.answer_from == "completion" and self.answer_kind == "exact" and "data" in self.model_fields_set:
            raise ValueError("answer_from: completion needs an answer_kind that can be found in a text, not exact")
        return self


class HarnessParams(StageParams):
    """Tasks of lm-evaluation-harness, for benchmarks that are not here (brite_lib.harness)."""

    kind = "harness"

    model: str = Field("assets/tiny-base", description="θ: a Hugging Face model directory or hub name")
    method: str = Field("base", description="row of the result table")
    tasks: list[str] = Field([], description="tasks or groups of lm-evaluation-harness, as in bbh or mmlu")
    include_path: str = Field("", description="directory with task files of one's own")
    num_fewshot: NonNegativeInt | None = Field(None, description="examples in the prompt; null: as the task has it")
    documents: PositiveInt | None = Field(None, description="only so many documents of each task, for a trial; null: all")
    apply_chat_template: bool = Field(False, description="write prompts as the tokenizer's chat template wants them")
    batch_size: PositiveInt = Field(8, description="sequences per forward pass")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field("auto", description="auto: bfloat16 on CUDA, else float32")


class TinyBaseParams(ModelStageParams):
    """The embedded base model, trained from scratch on the toy task."""

    kind = "tiny_base"

    model_dir: str = Field(
        "", description="where the model directory is written; empty: <output_dir>/model (assets/tiny-base is the committed one)"
    )
    fast: bool = Field(False, description="a smaller model in about a minute, for the test of the notebook itself")
    tokens: Literal["operations", "characters"] = Field(
        "operations", description="an operation such as +4 is one token, or two characters (assets/tiny-student)"
    )
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
