"""Pictures of the theorem, of EM and of what goes wrong; every function returns the figure."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from brite_lib.plots import GREY, PALETTE, finish, styled
from brite_lib.theory.em import EMTrace
from brite_lib.theory.instances import Instance
from brite_lib.theory.model import Array, Model, objective, partition_a, partition_b, posterior_of
from brite_lib.theory.theorem import Budget, TheoremCheck

SMALLEST = 1e-15  # nats; a gap below this is rounding and leaves the logarithmic picture


@styled()
def mirror_ascent(instance: Instance) -> Figure:
    """One parameter: B with its tangent at θ_1, A with the parallel one at θ_2; below them J and the whole run."""
    model, grid = instance.model, np.linspace(-3, 5, 300)
    trace = instance.run(4)
    start, after = trace.theta[0], trace.theta[1]
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(5.6, 5.4), sharex=True, layout="constrained", height_ratios=(3, 2))
    slope = float(model.mean_features(posterior_of(model, start))[0])
    for name, function, colour, at in (("A", partition_a, PALETTE[0], after), ("B", partition_b, PALETTE[1], start)):
        top.plot(grid, [function(model, np.array([t])) for t in grid], color=colour, label=f"{name}(θ)")
        top.plot(grid, function(model, at) + slope * (grid - at[0]), color=GREY, lw=1, ls="--", zorder=1)
        top.plot(at, function(model, at), "o", color=colour)
    top.annotate("θ₁", (start[0], partition_b(model, start)), (4, -12), textcoords="offset points")
    top.annotate("θ₂", (after[0], partition_a(model, after)), (-4, 8), textcoords="offset points", ha="right")
    bottom.plot(grid, [objective(model, np.array([t])) for t in grid], color="black")
    bottom.plot(trace.theta[:, 0], trace.log_marginal, "o-", color=PALETTE[3], ms=4, lw=1, label="EM")
    top.set(title="The M-step goes where A has the slope that B has now (dashed, parallel)", ylabel="nats")
    top.set_ylim(0, 1.05 * max(partition_a(model, grid[[end]]) for end in (0, -1)))
    bottom.set(title="J = B − A = log P(selected)", xlabel="θ", ylabel="nats")
    for ax in (top, bottom):
        ax.legend(frameon=False)
    return finish(figure)


@styled()
def gap_and_bound(checks: Mapping[str, TheoremCheck], rho: float | None = None) -> Figure:
    """Gap and bound of one run against T, doubly logarithmic, one colour per definition of θ* or convention."""
    figure, ax = plt.subplots(figsize=(5.6, 3.4), layout="constrained")
    _gaps(ax, checks, rho)
    return finish(figure)


@styled()
def budget_bars(budget: Budget) -> Figure:
    """The four terms of (*) after T iterations, stacked, against the divergence at the start that they share out."""
    figure, ax = plt.subplots(figsize=(6.6, 3.2), layout="constrained")
    _bars(ax, budget)
    return finish(figure)


@styled()
def run_overview(trace: EMTrace, checks: Mapping[str, TheoremCheck], budget: Budget, rho: float | None = None) -> Figure:
    """Three panels for the sliders: J, gap against bound, and the budget."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.1))
    figure.subplots_adjust(left=0.06, right=0.87, bottom=0.16, top=0.9, wspace=0.3)  # constrained layout would draw everything twice
    axes[0].plot(np.arange(trace.log_marginal.size), trace.log_marginal, color="black")
    axes[0].set(title="J(θ_t), never falling", xlabel="EM iterations", ylabel="nats")
    _gaps(axes[1], checks, rho)
    _bars(axes[2], budget)
    return finish(figure)


@styled()
def ratio_curves(ratios: Mapping[str, ArrayLike], title: str) -> Figure:
    """T·gap/D against T for several runs; above the line at 1 the bound fails."""
    figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    for colour, (label, values) in zip(PALETTE, ratios.items(), strict=False):
        values = np.asarray(values)
        ax.plot(np.arange(1, values.size + 1), values, color=colour, label=label)
    ax.axhline(1, color="black", lw=0.8, ls=":")
    ax.set(title=title, xlabel="T", ylabel="T · gap / D(θ*, θ₁)", xscale="log")
    ax.legend(frameon=False)
    return finish(figure)


@styled()
def objective_by_ridge(instance: Instance, ridges: Sequence[float]) -> Figure:
    """J of a one-parameter instance for several ridges, each shifted to a maximum of 0: basins merge."""
    figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    grid = np.linspace(-8, 8, 300)
    for colour, ridge in zip(PALETTE, ridges, strict=False):
        model = Model(instance.features, instance.evidence, instance.weights, ridge, instance.base)
        values = np.array([objective(model, np.array([t])) for t in grid])
        ax.plot(grid, values - values.max(), color=colour, label=f"λ = {ridge:g}")
    ax.set(title="A ridge merges the basins", xlabel="θ", ylabel="J(θ) − max J, nats", ylim=(-2.5, 0.1))
    ax.legend(frameon=False)
    return finish(figure)


@styled()
def decay(gaps: Mapping[str, ArrayLike], guides: Mapping[str, ArrayLike] | None = None) -> Figure:
    """Gap against T, doubly logarithmic, for several families, with dotted guides."""
    figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    for colour, (label, values) in zip(PALETTE, gaps.items(), strict=False):
        _line(ax, np.asarray(values), color=colour, label=label)
    for label, values in (guides or {}).items():
        _line(ax, np.asarray(values), color="black", lw=0.8, ls=":", label=label)
    ax.set(title="How fast", xlabel="T", ylabel="gap, nats", xscale="log", yscale="log", ylim=(1e-8, None))
    ax.legend(frameon=False)
    return finish(figure)


@styled()
def floors(table: pd.DataFrame) -> Figure:
    """Last gap against KL(Q̂‖Q) of the E-step (columns ``method``, ``kl``, ``gap``), with a line of slope 1."""
    figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    for colour, (method, rows) in zip(PALETTE, table.groupby("method", sort=False), strict=False):
        ax.plot(rows["kl"], rows["gap"], "o", color=colour, label=method)
    ends = np.array([table["kl"].min(), table["kl"].max()])
    ax.plot(ends, np.median(table["gap"] / table["kl"]) * ends, color="black", lw=0.8, ls=":", label="slope 1")
    ax.set(title="What an E-step that is only learned costs", xlabel="KL(Q̂ ‖ Q) = gap of the ELBO, nats", ylabel="gap that stays, nats")
    ax.set(xscale="log", yscale="log")
    ax.legend(frameon=False)
    return finish(figure)


@styled()
def temperature(coefficients: ArrayLike, distance: ArrayLike, kl: ArrayLike) -> Figure:
    """Total variation and KL of the tempered optimum to the posterior, against the KL coefficient c."""
    figure, ax = plt.subplots(figsize=(5.6, 3.0), layout="constrained")
    ax.plot(coefficients, distance, color=PALETTE[0], label="total variation")
    ax.plot(coefficients, kl, color=PALETTE[1], label="KL, nats")
    ax.axvline(1, color="black", lw=0.8, ls=":")
    ax.set(title="Only c = 1 has the posterior as its optimum", xlabel="c", xscale="log")
    ax.legend(frameon=False)
    return finish(figure)


@styled()
def ratio_against_slack(table: pd.DataFrame) -> Figure:
    """Census rows: largest T·gap/D against the sum of the slack; violations lie above 1, and all to the left of 0."""
    rows = table[(table["status"] == "attained") & table["own_ratio"].notna()]
    bad = rows["own_ratio"] > 1
    figure, ax = plt.subplots(figsize=(5.6, 3.2), layout="constrained")
    for part, colour, label in ((rows[~bad], PALETTE[0], "bound holds"), (rows[bad], PALETTE[3], "bound fails")):
        relative = part["sum_slack"] / part["divergence"]
        ax.plot(relative, part["own_ratio"], "o", ms=3, color=colour, label=f"{label} ({len(part)})")
    ax.axhline(1, color="black", lw=0.8, ls=":")
    ax.axvline(0, color="black", lw=0.8, ls=":")
    ax.set(title="A violation needs negative slack", xlabel="Σ slack / D", ylabel="max T·gap/D", yscale="log")
    ax.legend(frameon=False)
    return finish(figure)


def _gaps(ax: Axes, checks: Mapping[str, TheoremCheck], rho: float | None) -> None:
    for colour, (label, check) in zip(PALETTE, checks.items(), strict=False):
        _line(ax, check.gap, color=colour, label=f"gap, {label}")
        _line(ax, check.bound, color=colour, ls="--", lw=1, label=f"bound D/T, {label}")
    if rho is not None and len(checks):
        gap = next(iter(checks.values())).gap
        anchor = int(np.argmin(np.abs(gap - max(1e-3 * gap[0], SMALLEST))))
        _line(ax, gap[anchor] * rho ** (2.0 * (np.arange(gap.size) - anchor)), color="black", lw=0.8, ls=":", label=f"ρ²ᵀ, ρ = {rho:.3f}")
    smallest = min((check.gap[check.gap > SMALLEST].min(initial=1.0) for check in checks.values()), default=1e-6)
    ax.set(title="Gap and bound", xlabel="T", ylabel="nats", xscale="log", yscale="log", ylim=(smallest / 3, None))
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=7)


def _bars(ax: Axes, budget: Budget) -> None:
    at = [t for t in (1, 3, 10, 30) if t <= budget.gap.size]
    terms = {"Σ gap": budget.gap, "Σ slack": budget.slack, "Σ D_B of the steps": budget.posterior, "D_A left": budget.remaining}
    above, below = np.zeros(len(at)), np.zeros(len(at))
    for colour, (label, values) in zip(PALETTE, terms.items(), strict=False):
        height = np.array([values[t - 1] for t in at])
        ax.bar([str(t) for t in at], height, bottom=np.where(height >= 0, above, below), color=colour, label=label, width=0.6)
        above, below = above + np.maximum(height, 0), below + np.minimum(height, 0)
    ax.axhline(budget.start, color="black", lw=0.8, ls=":", label="D_A at the start")
    top = 1.08 * max(above.max(), budget.start)  # the dotted line is to be seen above the bars
    ax.set(title="Who gets the budget", xlabel="T", ylabel="nats", ylim=(None, top))
    ax.legend(frameon=False, fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))


def _line(ax: Axes, values: Array, **style: object) -> None:
    shown = values > SMALLEST
    ax.plot(np.arange(1, values.size + 1)[shown], values[shown], **style)
