"""What each method is made of: its rationale sources and learners, round by round (design section 1).

This is the only place that knows the methods. A step is one stage of one method; ``@name/file`` in its fields is a file
of another step, which is also how the order of the steps is known. Nothing here imports torch.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from brite_lib.params import Experiment
from brite_lib.params.latro import SPECIAL_CASES

# method -> its name among the special cases of the ψ-trainer
IN_PLACE = {"latro": "LaTRO, paper", "grpo": "GRPO / RLVR", "rloo": "RLOO", "verifree": "VeriFree"}
HUMAN_STYLES = {"sft": "", "sft_careless": "careless", "sft_careful": "careful"}


@dataclass(frozen=True)
class Step:
    """One stage of a method: its name, the section of the experiment file that sets it, and what the method decides of it."""

    name: str
    section: str
    fields: dict[str, Any] = field(default_factory=dict)
    defaults: dict[str, Any] = field(default_factory=dict)  # of the method, which the experiment file may change
    answers_itself: bool = False  # it also answers the test problems: there is no model that an evaluation could load


def steps_of(method: str, experiment: Experiment) -> list[Step]:
    """The steps that make a method's models, each after the steps it reads; none for the base models."""
    if method in HUMAN_STYLES:
        return [Step(method, "sft", {"rationales": "human", "style": HUMAN_STYLES[method]})]
    return MAKERS[method](experiment) if method in MAKERS else []


def evaluated(method: str, experiment: Experiment) -> list[str]:
    """The steps whose models are rows of the result table for a method; the base models are their own."""
    if method in ("base", "student"):
        return [method]
    steps = [step for step in steps_of(method, experiment) if not step.answers_itself]
    return [step.name for step in steps if step.name == method or step.name.startswith(f"{method}_round")]


def _bootstrapped(
    name: str, theta_from: str, source: dict[str, Any], learner: dict[str, Any] | None = None
) -> Callable[[Experiment], list[Step]]:
    """A member of the rejection family, in rounds: its sampling, and θ from what that keeps."""
    return lambda experiment: _rounds(name, f"{name}_sampling", "rejection", experiment.rounds, theta_from, source, learner)


def _once(name: str, **fields: Any) -> Callable[[Experiment], list[Step]]:
    return lambda experiment: _rounds(name, f"{name}_sampling", "rejection", 1, "base", fields)


def _in_place(name: str) -> Callable[[Experiment], list[Step]]:
    """A special case of the ψ-trainer, whose result is the model itself."""
    defaults = {"scorer": "frozen", "answer_nll_weight": 0.0} | SPECIAL_CASES[IN_PLACE[name]].settings
    return lambda experiment: [Step(name, name, {}, defaults)]


def _dpo(name: str, with_posterior: bool) -> Callable[[Experiment], list[Step]]:
    """Iterations of DPO: each learns from the last one's model, on pairs of that model or of a Q learned from it."""

    def steps(experiment: Experiment) -> list[Step]:
        found: list[Step] = []
        model: dict[str, Any] = {}
        for t in range(1, experiment.dpo_iterations + 1):
            learner = name if t == experiment.dpo_iterations else f"{name}_round{t}"
            sampler = {"sampler": f"@{name}_psi_round{t}/model"} if with_posterior else {}
            if with_posterior:
                found.append(Step(f"{name}_psi_round{t}", "psi", {**model, "round": t}))
            found.append(Step(learner, "dpo", {**model, **sampler, "round": t}))
            model = {"model": f"@{learner}/model"}
        return found

    return steps


def _distil(method: str) -> Callable[[Experiment], list[Step]]:
    """The student's θ-update on what a method's last one learns from."""

    def steps(experiment: Experiment) -> list[Step]:
        *sources, last = steps_of(method, experiment)
        learned = {name: last.fields[name] for name in ("rationales", "style") if name in last.fields}
        return [*sources, Step(f"distil_{method}", "theta", {**learned, "model": experiment.student, "retokenise": True})]

    return steps


def _brite(experiment: Experiment) -> list[Step]:
    return _rounds("brite", "brite_psi", "psi", experiment.rounds, experiment.theta_from, {})


def _brite_psi(experiment: Experiment) -> list[Step]:
    return _brite(experiment)[:-1]  # the last θ is not needed for the last Q


def _rounds(
    method: str,
    source: str,
    section: str,
    rounds: int,
    theta_from: str,
    fields: dict[str, Any],
    learner: dict[str, Any] | None = None,
) -> list[Step]:
    """EM rounds: round t's source starts from θ_t, its learner from the base or from θ_t."""
    steps: list[Step] = []
    model: dict[str, Any] = {}
    for t in range(1, rounds + 1):
        suffix = "" if t == 1 else f"_round{t}"
        steps.append(Step(source + suffix, section, {**fields, **model, "round": t}))
        start = model if theta_from == "previous" else {}
        rationales = {"rationales": f"@{source}{suffix}/rationales.parquet"}
        steps.append(Step(method + suffix, "theta", {**rationales, **(learner or {}), **start, "round": t}))
        model = {"model": f"@{method}{suffix}/model"}
    return steps


MAKERS: dict[str, Callable[[Experiment], list[Step]]] = {
    "rs": _once("rs", until_hit=False),
    "posterior": _once("posterior", until_hit=True),
    "raft": _bootstrapped("raft", "previous", {"strategy": "raft"}),
    "star": _bootstrapped("star", "base", {"strategy": "star"}),  # each round trains from the base, as in STaR
    "rest_em": _bootstrapped("rest_em", "base", {"strategy": "rest_em"}, {"reward_weighted": True}),
    "brite_psi": _brite_psi,
    "brite": _brite,
    "iterative_dpo": _dpo("iterative_dpo", with_posterior=False),
    "brite_dpo": _dpo("brite_dpo", with_posterior=True),
    **{name: _in_place(name) for name in IN_PLACE},
    **{f"distil_{method}": _distil(method) for method in ("sft", "rs", "brite")},
    "drr": lambda experiment: [Step("drr", "drr", {"method": "drr"}, answers_itself=True)],
}
