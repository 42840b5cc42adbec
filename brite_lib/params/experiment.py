"""The experiment file: methods × tasks × seeds, and the settings of each stage."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from brite_lib.errors import InputError
from brite_lib.params.base import NonNegativeInt, PositiveInt, Strict, read_mapping, suggestion

STUDENT_METHODS = ("student", "distil_sft", "distil_rs", "distil_brite")  # of the experiment's other base model
METHODS = (
    *("base", "sft", "sft_careless", "sft_careful"),
    *("rs", "posterior", "brite_psi", "brite"),
    *("raft", "star", "rest_em", "iterative_dpo", "brite_dpo", "latro", "grpo", "rloo", "verifree", "drr"),
    *STUDENT_METHODS,
)


def method_order(name: str) -> tuple[int, int, str]:
    """Sort key of a row of the result table: the order of ``METHODS``, ``x_round2`` after ``x``, unknown ones last."""
    method, _, number = name.partition("_round")
    return METHODS.index(method) if method in METHODS else len(METHODS), int(number) if number.isdigit() else 1, name


class TaskParams(Strict):
    """One benchmark of an experiment: where it trains and where it is evaluated."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="benchmark in results.json")
    data: str = Field(description="training problems, as in the stages")
    train_split: str = "train"
    train_limit: PositiveInt | None = None
    test_data: str = Field("", description="empty: the same data")
    test_split: str = "test"
    test_limit: PositiveInt | None = None
    models_of: str = Field("", description="train nothing on this task: evaluate here what that task trains; empty: train on data")
    evaluation: dict[str, Any] = Field({}, description="settings of evaluation for this benchmark alone (samples, temperature, …)")


class Experiment(Strict):
    """A whole experiment file: methods × tasks × seeds, and the settings of each stage."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="outputs/<name>")
    title: str = ""
    model: str = "assets/tiny-base"
    student: str = Field("", description="another base model, for distil_*: it learns from the rationales that `model` made")
    template: str | dict[str, Any] = "auto"
    tasks: list[TaskParams] = Field([], description="benchmarks")
    seeds: list[NonNegativeInt] = Field([0], min_length=1)
    methods: list[str] = Field([], description="rows of the result table")
    rounds: PositiveInt = Field(1, description="EM rounds T of the methods that have them: θ_t → Q_t → θ_{t+1} → …")
    theta_from: Literal["previous", "base"] = Field(
        "previous", description="what the θ-update of round t starts from: θ_t, or the base model (the paper does not say)"
    )
    dpo_iterations: PositiveInt = Field(3, description="iterations of iterative_dpo and brite_dpo (the paper's 3)")
    common: dict[str, Any] = Field({}, description="settings of every stage (device, answer_kind, max_rationale_tokens, …)")
    psi: dict[str, Any] = Field({}, description="settings of ψ-PPO")
    theta: dict[str, Any] = Field({}, description="settings of θ-SFT")
    sft: dict[str, Any] = Field({}, description="settings of θ-SFT on human rationales where they differ from theta's")
    rejection: dict[str, Any] = Field({}, description="settings of rejection sampling")
    evaluation: dict[str, Any] = Field({}, description="settings of evaluation")
    dpo: dict[str, Any] = Field({}, description="settings of DPO")
    latro: dict[str, Any] = Field({}, description="settings of LaTRO")
    grpo: dict[str, Any] = Field({}, description="settings of GRPO (RLVR)")
    rloo: dict[str, Any] = Field({}, description="settings of RLOO")
    verifree: dict[str, Any] = Field({}, description="settings of VeriFree")
    drr: dict[str, Any] = Field({}, description="settings of DRR")
    harness_tasks: list[str] = Field([], description="tasks of lm-evaluation-harness that every row is evaluated on too (bbh, mmlu, …)")
    harness: dict[str, Any] = Field({}, description="settings of lm-evaluation-harness")
    theory: dict[str, Any] | None = Field(None, description="run the theory notebook with these settings; {}: its defaults")

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.theory is None or self.methods or self.tasks:
            for field in ("methods", "tasks"):
                if not getattr(self, field):
                    raise ValueError(f"{field}: at least one is needed")
        for method in self.methods:
            if method not in METHODS:
                known = "; its row comes with rounds" if "_round" in method else suggestion(method, METHODS)
                raise ValueError(f"methods: {method!r} is unknown{known}")
            if method in STUDENT_METHODS and not self.student:
                raise ValueError(f"student: method {method} needs another base model to train, a directory or hub name")
        for field in ("methods", "seeds"):
            if len(set(getattr(self, field))) != len(getattr(self, field)):
                raise ValueError(f"{field}: a value is listed twice")
        if len({task.name for task in self.tasks}) != len(self.tasks):
            raise ValueError("tasks: two have the same name")
        trained = [task.name for task in self.tasks if not task.models_of]
        if self.harness_tasks and len(self.tasks) > 1 and set(self.methods) != {"base"}:
            raise ValueError("harness_tasks: with trained methods there must be one task, else a row would have several models")
        for task in self.tasks:
            if task.models_of and task.models_of not in trained:
                raise ValueError(f"tasks: {task.name}: models_of: {task.models_of!r} trains nothing{suggestion(task.models_of, trained)}")
            if task.models_of and "drr" in self.methods:
                raise ValueError(f"tasks: {task.name}: models_of: method drr answers while it trains and has no model to evaluate here")
        return self


def load_experiment(path: str | Path) -> Experiment:
    """Read and validate an experiment file (YAML 1.2, so ``1e-5`` is a number), all its stages included.

    ``extends: base/x.yaml``, relative to the file, takes that file's settings where this one has none of its own.

    Raises:
        InputError: one sentence naming the file and the key.
    """
    from brite_lib.stages import plan

    path = Path(path)
    values = _read_experiment(path)
    if (extended := values.pop("extends", None)) is not None:
        if not isinstance(extended, str):
            raise InputError(f"{path}: extends: must name one file (got {extended!r})")
        base = _read_experiment(path.parent / extended)
        if "extends" in base:
            raise InputError(f"{path}: extends: {extended} extends another file itself; one level is all there is")
        values = _merged(base, values)
    experiment = Experiment.parse(values, where=str(path))
    plan(experiment, where=str(path))  # the stage settings fail here, not after an hour
    return experiment


def _read_experiment(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise InputError(f"{path}: is a directory, not an experiment file")
    if not path.is_file():
        near = suggestion(path.name, [p.name for p in path.parent.glob("*.yaml")])
        raise InputError(f"{path}: no such experiment file{near}")
    return read_mapping(path, "settings")


def _merged(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """``own`` over ``base``: mappings key by key, anything else replaced as a whole."""
    both = {key: _merged(base[key], value) for key, value in own.items() if isinstance(value, dict) and isinstance(base.get(key), dict)}
    return base | own | both
