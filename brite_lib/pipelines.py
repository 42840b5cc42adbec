"""What each method is made of: its rationale sources and learners, round by round (design section 1).

This is the only place that knows the methods. A step is one stage of one method; ``@name/file`` in its fields is a file
of another step, which is also how the order of the steps is known. Nothing here imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from brite_lib.params import Experiment

HUMAN_STYLES = {"sft": "", "sft_careless": "careless", "sft_careful": "careful"}


@dataclass(frozen=True)
class Step:
    """One stage of a method: its name, the section of the experiment file that sets it, and what the method decides of it."""

    name: str
    section: str
    fields: dict[str, Any] = field(default_factory=dict)


def steps_of(method: str, experiment: Experiment) -> list[Step]:
    """The steps that make a method's models, each after the steps it reads; none for the base model."""
    if method in HUMAN_STYLES:
        return [Step(method, "theta", {"rationales": "human", "style": HUMAN_STYLES[method]})]
    return MAKERS[method](experiment) if method in MAKERS else []


def evaluated(method: str, experiment: Experiment) -> list[str]:
    """The steps whose models are rows of the result table for a method; the base model is its own."""
    if method == "base":
        return ["base"]
    last = [step.name for step in steps_of(method, experiment) if step.name == method or step.name.startswith(f"{method}_round")]
    return last


def _rejection(name: str, **fields: Any) -> Callable[[Experiment], list[Step]]:
    """Rejection sampling from the base, and θ from what it keeps."""
    return lambda experiment: _rounds(name, f"{name}_sampling", "rejection", 1, "base", fields)


def _brite(experiment: Experiment) -> list[Step]:
    return _rounds("brite", "brite_psi", "psi", experiment.rounds, experiment.theta_from, {})


def _brite_psi(experiment: Experiment) -> list[Step]:
    return _brite(experiment)[:-1]  # the last θ is not needed for the last Q


def _rounds(method: str, source: str, section: str, rounds: int, theta_from: str, fields: dict[str, Any]) -> list[Step]:
    """EM rounds: round t's source starts from θ_t, its learner from the base or from θ_t."""
    steps: list[Step] = []
    model: dict[str, Any] = {}
    for t in range(1, rounds + 1):
        suffix = "" if t == 1 else f"_round{t}"
        steps.append(Step(source + suffix, section, {**fields, **model, "round": t}))
        start = model if theta_from == "previous" else {}
        steps.append(Step(method + suffix, "theta", {"rationales": f"@{source}{suffix}/rationales.parquet", **start, "round": t}))
        model = {"model": f"@{method}{suffix}/model"}
    return steps


MAKERS: dict[str, Callable[[Experiment], list[Step]]] = {
    "rs": _rejection("rs", until_hit=False),
    "posterior": _rejection("posterior", until_hit=True),
    "brite_psi": _brite_psi,
    "brite": _brite,
}
