"""From an experiment to its stages: which notebook runs with which parameters after which other stages.

The Snakefile, ``make plan`` and the validation of an experiment file all read the list that :func:`plan` returns; what
the methods are made of stands in :mod:`brite_lib.pipelines`. Nothing here imports torch.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from brite_lib.errors import InputError
from brite_lib.files import portable
from brite_lib.params import (
    PROJECT_ROOT,
    STUDENT_METHODS,
    DpoParams,
    DrrParams,
    EvalParams,
    Experiment,
    HarnessParams,
    LatroParams,
    PsiParams,
    RejectionParams,
    StageParams,
    TaskParams,
    TheoryParams,
    ThetaParams,
    is_path,
    is_toy,
    resolve_path,
    suggestion,
)
from brite_lib.pipelines import HUMAN_STYLES, IN_PLACE, evaluated, steps_of

SECTIONS: dict[str, type[StageParams]] = {
    "psi": PsiParams,
    "theta": ThetaParams,
    "sft": ThetaParams,
    "rejection": RejectionParams,
    "evaluation": EvalParams,
    "harness": HarnessParams,
    "dpo": DpoParams,
    "drr": DrrParams,
    **dict.fromkeys(IN_PLACE, LatroParams),
}

NOTEBOOKS = {
    "psi": "02_psi_ppo.ipynb",
    "theta": "03_theta_sft.ipynb",
    "sft": "03_theta_sft.ipynb",
    "evaluation": "05_evaluation.ipynb",
    "rejection": "10_rejection_sampling.ipynb",
    "theory": "01_theory_rkhs.ipynb",
    "harness": "07_harness.ipynb",
    "dpo": "04_dpo.ipynb",
    "drr": "12_drr.ipynb",
    **dict.fromkeys(IN_PLACE, "11_latro.ipynb"),
}

# What the experiment's own fields decide; a section that sets one of these would break the plan.
OWNED = {
    "stage": "the plan",
    "output_dir": "name",
    "seed": "seeds",
    "round": "rounds",
    "model": "model",
    "reference_model": "model",
    "template": "template",
    "data": "tasks",
    "split": "tasks (train_split, test_split)",
    "limit": "tasks (train_limit, test_limit)",
    "test_data": "tasks",
    "test_split": "tasks",
    "test_limit": "tasks",
    "method": "methods",
    "benchmark": "tasks",
    "tasks": "harness_tasks",
    "rationales": "methods",
    "until_hit": "methods",
    "strategy": "methods",
    "reward_weighted": "methods",
    "sampler": "methods",
    "retokenise": "methods",
    "pairs": "methods",
}


@dataclass(frozen=True)
class StageSpec:
    """One stage of a run: one notebook, one kernel, one ``stage.json``."""

    key: str  # seed0/brite_psi, or seed0/toy-easy.brite_psi with several tasks: the directory below outputs/<run>
    kind: str
    notebook: Path
    params: StageParams
    directory: Path
    inputs: tuple[str, ...] = ()  # keys of the stages whose files it reads
    sources: tuple[Path, ...] = ()  # local files it reads that no stage makes: model and data


def plan(experiment: Experiment, where: str = "") -> list[StageSpec]:
    """All stages of an experiment, each after the stages it reads.

    Raises:
        InputError: one sentence naming the file, the section and the key.
    """
    _check_sections(experiment, where)
    model, model_files = _local_model(experiment.model, _join(where, "model")) if experiment.tasks else ("", ())
    if experiment.student:
        experiment = experiment.model_copy(update={"student": _local_model(experiment.student, _join(where, "student"))[0]})
    stages: list[StageSpec] = []
    for task in experiment.tasks:
        place = _join(where, f"tasks: {task.name}")
        data, data_files = _local_data(task.data, place)
        test_data, test_files = _local_data(task.test_data or task.data, place)
        task = task.model_copy(update={"data": data, "test_data": test_data})
        for method in experiment.methods:
            _check_style(method, data, place)
        for seed in experiment.seeds:
            stages += _task_stages(experiment, task, seed, model, model_files + data_files, model_files + test_files, where)
    return stages + _harness_stages(experiment, model, model_files, where) + _theory_stages(experiment, where)


def run_directory(experiment: Experiment) -> Path:
    """``outputs/<name>`` below the project."""
    return PROJECT_ROOT / "outputs" / experiment.name


def _task_stages(
    experiment: Experiment, task: TaskParams, seed: int, model: str, train_files: tuple[Path, ...], test_files: tuple[Path, ...], where: str
) -> list[StageSpec]:
    prefix, made_in = (f"{name}." if len(experiment.tasks) > 1 else "" for name in (task.name, task.models_of or task.name))
    run_dir = f"outputs/{experiment.name}"
    stages: list[StageSpec] = []

    def add(stage: str, section: str, sources: tuple[Path, ...], fields: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
        cls = SECTIONS[section]
        made = {name: value[1:].split("/", 1) for name, value in fields.items() if isinstance(value, str) and value.startswith("@")}
        key = f"seed{seed}/{prefix}{stage}"
        own = {"stage": stage, "output_dir": f"{run_dir}/{key}", "seed": seed, "template": experiment.template}
        own |= fields | {name: f"{run_dir}/seed{seed}/{made_in}{step}/{file}" for name, (step, file) in made.items()}
        of_task = task.evaluation if section == "evaluation" else {}
        values = (defaults or {}) | _known(experiment.common, cls) | _settings(experiment, section) | of_task | own
        stages.append(
            StageSpec(
                key=key,
                kind=cls.kind,
                notebook=PROJECT_ROOT / "notebooks" / NOTEBOOKS[section],
                params=cls.parse(values, where=_join(where, section)),
                directory=PROJECT_ROOT / run_dir / key,
                inputs=tuple(dict.fromkeys(f"seed{seed}/{made_in}{step}" for step, _ in made.values())),
                sources=sources,
            )
        )

    train = {"model": model, "data": task.data, "split": task.train_split, "limit": task.train_limit}
    answered = {"test_data": task.test_data, "test_split": task.test_split, "test_limit": task.test_limit, "benchmark": task.name}
    student_files = _student_files(experiment)
    steps = {step.name: step for method in experiment.methods for step in steps_of(method, experiment)}
    for step in () if task.models_of else steps.values():
        fields = train | step.fields | (answered if step.answers_itself else {})
        style = fields.pop("style", "")
        files = tuple(dict.fromkeys(train_files + test_files)) if step.answers_itself else train_files
        files += student_files if step.name in STUDENT_METHODS else ()
        add(step.name, step.section, files, fields | ({"data": f"{task.data}:{style}"} if style else {}), step.defaults)
    test = {"data": task.test_data, "split": task.test_split, "limit": task.test_limit, "reference_model": model, "benchmark": task.name}
    for name in dict.fromkeys(name for method in experiment.methods for name in evaluated(method, experiment)):
        fields = {**test, "method": name, "model": {"base": model, "student": experiment.student}.get(name, f"@{name}/model")}
        if name in STUDENT_METHODS:  # θ may not know its tokens
            fields["reference_model"] = experiment.student
        add(f"eval_{name}", "evaluation", test_files + (student_files if name in STUDENT_METHODS else ()), fields)
    return stages


def _harness_stages(experiment: Experiment, model: str, sources: tuple[Path, ...], where: str) -> list[StageSpec]:
    bases = {"base": (model, sources), "student": (experiment.student, _student_files(experiment))}
    names = dict.fromkeys(name for method in experiment.methods for name in evaluated(method, experiment))
    stages = []
    for seed in experiment.seeds if experiment.harness_tasks else ():
        for name in names:
            key = f"seed{seed}/harness_{name}"
            place = f"outputs/{experiment.name}/{key}"
            made_by, files = bases.get(name, (f"outputs/{experiment.name}/seed{seed}/{name}/model", sources))
            own = {"stage": f"harness_{name}", "output_dir": place, "seed": seed, "method": name, "model": made_by}
            values = _known(experiment.common, HarnessParams) | experiment.harness | own | {"tasks": experiment.harness_tasks}
            params = HarnessParams.parse(values, where=_join(where, "harness"))
            notebook = PROJECT_ROOT / "notebooks" / NOTEBOOKS["harness"]
            inputs = () if name in bases else (f"seed{seed}/{name}",)
            stages.append(StageSpec(key, HarnessParams.kind, notebook, params, PROJECT_ROOT / place, inputs, files))
    return stages


def _theory_stages(experiment: Experiment, where: str) -> list[StageSpec]:
    if experiment.theory is None:
        return []
    if owned := next((name for name in ("stage", "output_dir", "seed") if name in experiment.theory), None):
        raise InputError(f"{_join(where, 'theory')}: {owned}: is decided by the experiment's {OWNED[owned]}; set it there")
    stages = []
    for seed in experiment.seeds:
        place = f"outputs/{experiment.name}/seed{seed}/theory"
        values = experiment.theory | {"stage": "theory", "output_dir": place, "seed": seed}
        params = TheoryParams.parse(values, where=_join(where, "theory"))
        notebook = PROJECT_ROOT / "notebooks" / NOTEBOOKS["theory"]
        stages.append(StageSpec(f"seed{seed}/theory", TheoryParams.kind, notebook, params, PROJECT_ROOT / place))
    return stages


def _check_sections(experiment: Experiment, where: str) -> None:
    known = sorted({name for cls in SECTIONS.values() for name in cls.model_fields} - OWNED.keys())
    for name in experiment.common:
        if name not in known and name not in OWNED:
            raise InputError(f"{_join(where, 'common')}: {name}: is no parameter of any stage{suggestion(name, known)}")
    sections = {section: getattr(experiment, section) for section in ("common", *SECTIONS)}
    for section, settings in (sections | {f"tasks: {task.name}: evaluation": task.evaluation for task in experiment.tasks}).items():
        for name in settings:
            if name in OWNED:
                raise InputError(f"{_join(where, section)}: {name}: is decided by the experiment's {OWNED[name]}; set it there")
    for section, cls in SECTIONS.items():
        # Checked also if no method uses the section, and alone first, so that the sentence names the right one.
        shared = _known(experiment.common, cls)
        cls.parse(shared, where=_join(where, "common"))
        cls.parse(shared | _settings(experiment, section), where=_join(where, section))
    for task in experiment.tasks:
        values = _known(experiment.common, EvalParams) | experiment.evaluation | task.evaluation
        EvalParams.parse(values, where=_join(where, f"tasks: {task.name}: evaluation"))


def _check_style(method: str, data: str, where: str) -> None:
    style = HUMAN_STYLES.get(method, "")
    if style and not is_toy(data):
        raise InputError(f"{where}: method {method} needs the toy task, whose {style} rationales are known, not {data!r}; use sft")


def _local_model(name: str, where: str) -> tuple[str, tuple[Path, ...]]:
    """The model as stages name it, and its files if it is a directory here; a hub name has none."""
    if not is_path(name):
        return name, ()
    path = resolve_path(name)
    if not path.is_dir():
        near = suggestion(path.name, [p.name for p in path.parent.glob("*") if p.is_dir()]) if path.parent.is_dir() else ""
        raise InputError(f"{where}: {name}: no such model directory{near}")
    if not (path / "config.json").is_file():
        raise InputError(f"{where}: {name}: is no model directory, it has no config.json")
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        found = ", only .bin files, which can run code when they are loaded; convert it to safetensors" if any(path.glob("*.bin")) else ""
        raise InputError(f"{where}: {name}: has no *.safetensors weights{found}")
    return portable(path), tuple(Path(os.path.abspath(file)) for file in (path / "config.json", *weights))


def _student_files(experiment: Experiment) -> tuple[Path, ...]:
    return _local_model(experiment.student, "")[1] if experiment.student else ()


def _local_data(name: str, where: str) -> tuple[str, tuple[Path, ...]]:
    """The data as stages name it, and its files if it is on this disk."""
    if is_toy(name) or not is_path(name):
        return name, ()
    path = resolve_path(name)
    if not path.exists():
        near = suggestion(path.name, [p.name for p in path.parent.glob("*")]) if path.parent.is_dir() else ""
        raise InputError(f"{where}: {name}: no such data file or directory{near}")
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    return portable(path), tuple(Path(os.path.abspath(file)) for file in files)


def _known(settings: dict[str, Any], cls: type[StageParams]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in cls.model_fields}


def _settings(experiment: Experiment, section: str) -> dict[str, Any]:
    """What the file says about a section; sft has what theta has, but for what it sets itself."""
    return experiment.theta | experiment.sft if section == "sft" else getattr(experiment, section)


def _join(where: str, section: str) -> str:
    return f"{where}: {section}" if where else section
