"""Sliders over one instance: every change runs EM again and redraws."""

import math
import time
from typing import Any

import ipywidgets as widgets
from matplotlib.figure import Figure

from brite_lib.errors import InputError
from brite_lib.params import TheoryParams
from brite_lib.theory.figures import run_overview
from brite_lib.theory.instances import VERIFIERS, Instance, random_instance, sufficient_ridge
from brite_lib.theory.model import divergence_a
from brite_lib.theory.optimum import best_of_starts, comparator, missing_information, own_limit
from brite_lib.theory.theorem import budget, check_theorem

OPTIMA = ("own limit", "best of 12 starts", "finite comparator (the start of another seed)")
LIMIT_STEPS = 2000  # what a slider may wait for


def instance_of(params: TheoryParams, **changes: Any) -> Instance:
    """The random instance that the parameters describe, with some of them changed."""
    values = {
        name: getattr(params, name)
        for name in ("seed", "prompts", "rationales", "answers", "kernel", "rank", "length_scale", "verifier", "beta", "ridge")
    } | changes
    if values["kernel"] == "tabular":
        values["rank"] = None
    return random_instance(**values)


def overview(instance: Instance, steps: int, optimum: str = OPTIMA[0], index: str = "corrected") -> tuple[Figure, str]:
    """The three-panel figure of one run, and a sentence on what it shows.

    Raises:
        InputError: if an M-step has no solution in float64.
    """
    model, trace = instance.model, instance.run(steps)
    limit = own_limit(model, trace, LIMIT_STEPS)
    if optimum == OPTIMA[1]:
        star = best_of_starts(model, 12, also=limit)
    else:
        star = limit if optimum == OPTIMA[0] else comparator(model, -instance.theta0)
    check = check_theorem(
        trace, star.theta, instance.features, instance.evidence, instance.weights, instance.ridge, index=index, base=instance.base
    )
    terms = budget(trace, model, star.theta)
    rho = missing_information(model, limit.theta) if limit.attained else None
    enough = sufficient_ridge(instance.features, instance.evidence)
    sentence = [
        f"bound {'holds' if check.holds else 'FAILS'} for T ≤ {steps}: largest T·gap/D = {check.ratio.max():.3f}",
        f"condition (C) {'holds' if check.condition else 'fails'}, smallest slack {check.slack.min():.3g}",
        f"D = {check.divergence:.3g} nats (KL alone {check.kl:.3g}, the other KL {divergence_a(model, trace.theta[0], star.theta):.3g})",
        f"ridge is {instance.ridge / enough:.2g} of diam²/4" if enough > 0 else "diam is 0",
        f"θ* {'is a maximum' if star.attained else 'is no attained maximum'}" + (f", ρ = {rho:.3f}" if rho is not None else ""),
    ]
    return run_overview(trace, {optimum.split(" (")[0]: check}, terms, rho), "; ".join(sentence) + "."


def explorer(params: TheoryParams) -> widgets.Widget:
    """Sliders for the instance of ``params``, with the figure below them; λ = diam²/4 is marked in its label."""
    wide = {"layout": widgets.Layout(width="320px"), "style": {"description_width": "110px"}, "continuous_update": False}
    drop = {key: wide[key] for key in ("layout", "style")}
    controls = {
        "seed": widgets.IntSlider(params.seed, 0, 200, description="seed", **wide),
        "kernel": widgets.Dropdown(options=("rbf", "linear", "tabular"), value=params.kernel, description="kernel", **drop),
        "length_scale": widgets.FloatLogSlider(params.length_scale, min=-1, max=1, description="length scale", **wide),
        "rank": widgets.IntSlider(params.rank or 24, 1, 24, description="rank", **wide),
        "ridge": widgets.FloatLogSlider(max(params.ridge, 1e-4), min=-4, max=1, description="ridge λ", **wide),
        "verifier": widgets.Dropdown(options=VERIFIERS, value=params.verifier, description="verifier", **drop),
        "beta": widgets.FloatLogSlider(params.beta, min=-1, max=1, description="β (soft)", **wide),
        "steps": widgets.IntSlider(params.steps, 1, 300, description="T", **wide),
        "optimum": widgets.Dropdown(options=OPTIMA, description="θ*", **drop),
        "index": widgets.Dropdown(options=("corrected", "literal"), description="index", **drop),
    }
    picture, words = widgets.Output(), widgets.HTML()

    def redraw(_: object = None) -> None:
        chosen = {name: control.value for name, control in controls.items()}
        started = time.perf_counter()
        instance = instance_of(params, **{name: chosen[name] for name in controls if name not in ("steps", "optimum", "index")})
        enough = sufficient_ridge(instance.features, instance.evidence)
        controls["ridge"].description = f"λ (≥ {enough:.2g}: {'yes' if instance.ridge >= enough else 'no'})"
        picture.outputs = ()
        try:
            figure, sentence = overview(instance, chosen["steps"], chosen["optimum"], chosen["index"])
        except InputError as error:
            words.value = str(error)
            return
        picture.append_display_data(figure)
        words.value = f"{sentence} <small>({math.ceil(1e3 * (time.perf_counter() - started))} ms)</small>"

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    columns = [widgets.VBox(list(controls.values())[i : i + 5]) for i in (0, 5)]
    return widgets.VBox([widgets.HBox(columns), words, picture])
