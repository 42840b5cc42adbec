"""Pictures of training and of results. One style for all, colour-blind safe, the same colour for a method everywhere.

Every function returns the figure, which a notebook shows once, wherever in a cell the call stands. ``path`` also saves it as PNG.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, MultipleLocator, NullLocator, PercentFormatter

from brite_lib.files import atomic_path
from brite_lib.params import METHODS, STUDENT_METHODS, method_order
from brite_lib.problems.toy import STYLES, style_of
from brite_lib.records import read_metrics

STYLE = {
    **sns.axes_style("whitegrid", {"axes.edgecolor": "#9a9a9a", "grid.color": "#e6e6e6"}),
    **sns.plotting_context("paper", font_scale=1.1),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.5,
    "figure.titlesize": 10.5,
    "figure.dpi": 110,
    "lines.linewidth": 1.6,
    "savefig.dpi": 200,
}
PALETTE = sns.color_palette("colorblind")
GREY = "#8c8c8c"
STEPS_SEEN = 30  # more points than this in a small panel are a blur
# Of one hue that no method has, the more careful the darker: a method's colour would say that the style is the method's.
STYLE_COLOURS = dict(zip((*STYLES, "other", "unfinished"), ("#3f4b14", "#8a9a3c", "#ccd79a", "#9a9a9a", "#cccccc"), strict=True))
UNITS = {
    **dict.fromkeys(("elbo", "kl", "reward/answer_log_prob"), "nats"),
    "entropy": "nats per token",
    "rationale_length": "tokens",
    "finished": "share",
}


@contextmanager
def styled() -> Iterator[None]:
    """The style of all pictures, as a decorator or in a ``with``."""
    # Not plt.rc_context: the first figure loads Jupyter's backend, and that would be undone with the style.
    before = {name: plt.rcParams[name] for name in STYLE}
    plt.rcParams.update(STYLE)
    try:
        yield
    finally:
        plt.rcParams.update(before)


def colour_of(method: str) -> Any:
    """The colour of a method in every picture, also of its sampling and of a student's version; grey for base models, black for others."""
    main = [PALETTE[i] for i in (9, 9, 6, 1, 2, 4, 0)]
    others = [PALETTE[i] for i in (8, 3, 5)] + sns.color_palette("dark")[:7]
    own = [name for name in METHODS[1:] if name not in STUDENT_METHODS]
    colours = {"base": GREY, "student": GREY, **dict(zip(own, main + others, strict=True))}
    return colours.get(method.partition("_round")[0].removesuffix("_sampling").removeprefix("distil_"), "black")


@styled()
def training_curves(
    paths: str | Path | Sequence[str | Path] | Mapping[str, Sequence[str | Path]],
    names: Sequence[str],
    title: str = "",
    path: str | Path | None = None,
) -> Figure:
    """One small panel per metric, training steps to the right; of a single metric and over three methods, one per method.

    Args:
        paths: a ``metrics.jsonl``; several ones, of training seeds: their mean, and their range as a band; or such a list
            for each label, one colour per label.
        names: metrics; one that was never logged has an empty panel that says so.
        title: above the panels.
        path: also save a PNG there.

    A later round of a method has the colour of the first, darker and dashed. Of long runs a faint line has every step, and a
    bold one the mean of so many as the title says: single batches are noise.
    """
    groups = paths if isinstance(paths, Mapping) else {"": [paths] if isinstance(paths, str | Path) else paths}
    logs = [(label, read_metrics(file)) for label, files in groups.items() for file in files]
    window = max(1, max((len(log) for _, log in logs), default=0) // STEPS_SEEN)
    lines = [(label, number, line) for number, (label, log) in enumerate(logs) for line in log]
    methods = list(dict.fromkeys(label.partition("_round")[0] for label in groups))
    apart = len(names) == 1 and len(methods) > 3  # in one panel they would hide each other
    panels = [(names[0], method) for method in methods] if apart else [(name, "") for name in names]
    figure, axes = _panels(len(panels), columns=3, height=1.9)
    colours = {label: _of_round(label, PALETTE[i % 10]) for i, label in enumerate(groups)}
    dashes = {label: ("", (4, 1.5), (1, 1))[min(method_order(label)[1], 3) - 1] for label in groups}
    for ax, (name, method) in zip(axes, panels, strict=True):
        here = [one for one in lines if one[2].get(name) is not None and method in ("", one[0].partition("_round")[0])]
        logged = [{"run": label, "file": number, "step": line["step"], "value": line[name]} for label, number, line in here]
        heading = f"{name.removeprefix('reward/')} ({UNITS[name]})" if name in UNITS else name
        ax.set_title(f"{heading}, {method}" if method else heading)
        if logged:
            table = pd.DataFrame(logged)
            style = {"hue": "run", "palette": colours, "style": "run", "dashes": dashes, "legend": False, "ax": ax}
            if window > 1:
                sns.lineplot(table, x="step", y="value", **style, errorbar=None, alpha=0.3, linewidth=0.8)
                means = table.groupby("file")["value"].rolling(window, min_periods=1, center=True).mean()
                table["value"] = means.droplevel("file")
            sns.lineplot(table, x="step", y="value", **style, errorbar=("pi", 100))
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        else:
            ax.text(0.5, 0.5, "not logged", color=GREY, ha="center", va="center", transform=ax.transAxes)
            ax.set(xticks=[], yticks=[])
        ax.set(xlabel="step" if ax.get_subplotspec().is_last_row() else "", ylabel="")
    if len(groups) > 1:
        _legend(figure, {label: Line2D([], [], color=colours[label], dashes=dashes[label] or (None, None)) for label in groups})
    return finish(figure, f"{title}; bold: mean of {window} steps" if title and window > 1 else title, path)


@styled()
def result_bars(rows: Sequence[Mapping[str, Any]], metric: str = "pass@1", path: str | Path | None = None) -> Figure:
    """Accuracy of each method, one panel per benchmark: a bar, its 95 % interval, and with several seeds a dot for each.

    Args:
        rows: of ``results.json``.
        metric: the rows to show.
        path: also save a PNG there.
    """
    rows = [row for row in rows if row["metric"] == metric]
    if not rows:
        raise ValueError(f"no row has the metric {metric!r}")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    benchmarks = list(dict.fromkeys(row["benchmark"] for row in rows))
    figure, axes = _panels(len(benchmarks), columns=3, height=0.7 + 0.32 * len(methods), sharey=True)
    for ax, benchmark in zip(axes, benchmarks, strict=True):
        for row in (row for row in rows if row["benchmark"] == benchmark):
            y = methods.index(row["method"])
            ax.barh(y, row["mean"], height=0.66, color=colour_of(row["method"]), alpha=0.75)
            if row["ci_low"] is not None:
                ax.plot([row["ci_low"], row["ci_high"]], [y, y], color="#222222", linewidth=1.3, solid_capstyle="butt")
            if len(row["values"]) > 1:
                ax.scatter(row["values"], [y] * len(row["values"]), s=11, color="white", edgecolor="#222222", linewidth=0.7, zorder=3)
        ax.set(title=benchmark, yticks=range(len(methods)), yticklabels=methods, xlim=(0, 1), ylim=(len(methods) - 0.4, -0.6))
        _percent(ax, sparse=len(benchmarks) > 1)
        ax.grid(visible=False, axis="y")
    intervals = " or ".join(dict.fromkeys(row["ci"] for row in rows if row["ci_low"] is not None))
    return finish(figure, f"{metric}; line: 95 % interval ({intervals})" if intervals else metric, path)


@styled()
def result_heatmap(rows: Sequence[Mapping[str, Any]], metric: str = "pass@1", path: str | Path | None = None) -> Figure:
    """Accuracy in % of each method (row) on each benchmark (column), on one scale from 0 to 100; blank where it was not evaluated.

    Args:
        rows: of ``results.json``.
        metric: the rows to show.
        path: also save a PNG there.
    """
    shown = pd.DataFrame([{name: row[name] for name in ("method", "benchmark", "mean")} for row in rows if row["metric"] == metric])
    if shown.empty:
        raise ValueError(f"no row has the metric {metric!r}")
    table = 100 * shown.pivot(index="method", columns="benchmark", values="mean")
    table = table.loc[sorted(table.index, key=method_order), list(dict.fromkeys(shown["benchmark"]))]
    size = (min(7.2, 1.6 + 0.95 * len(table.columns)), 0.9 + 0.28 * len(table))
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    colours = sns.light_palette("#74b3da", as_cmap=True)  # light to the end: black numbers stay legible, also when a dark page inverts it
    numbers = {"annot": True, "fmt": ".1f", "annot_kws": {"size": 8.5, "color": "#222222"}}
    sns.heatmap(table, vmin=0, vmax=100, cmap=colours, cbar=False, linewidths=1.5, ax=ax, **numbers)
    ax.set(xlabel="", ylabel="")
    ax.tick_params(length=0)
    ax.tick_params(axis="y", rotation=0)
    return finish(figure, f"{metric}, %", path)


@styled()
def monitor_path(table: pd.DataFrame, title: str = "", path: str | Path | None = None) -> Figure:
    """log P(y*|x, θ) and the ELBO after every ψ- and θ-update, one panel per method: does a round raise the likelihood?

    Lines are means over seeds; each seed is a dot with ±2 standard errors of its sampled rationales (the problems are the
    same in every round); the shaded gap is KL(Q‖posterior), where Q is the model itself after a θ-update.

    Args:
        table: a row per seed and update, in order: ``method``, ``update`` (its label), and ``log_marginal`` and ``elbo``, each
            also with ``_sampling_se``, in nats per problem.
        title: above the panels.
        path: also save a PNG there.
    """
    methods = list(dict.fromkeys(table["method"]))
    figure, axes = _panels(len(methods), columns=3, height=2.3, sharey=True)
    colours = {"log P(y*|x)": PALETTE[0], "ELBO": PALETTE[1]}
    for ax, method in zip(axes, methods, strict=True):
        here = table[table["method"] == method]
        updates = list(dict.fromkeys(here["update"]))
        means = here.groupby("update")[["log_marginal", "elbo"]].mean().loc[updates]
        ax.fill_between(range(len(updates)), means["elbo"], means["log_marginal"], color=GREY, alpha=0.2, linewidth=0)
        for column, colour in zip(("log_marginal", "elbo"), colours.values(), strict=True):
            ax.plot(range(len(updates)), means[column], color=colour)
            at = [updates.index(update) for update in here["update"]]
            ax.errorbar(at, here[column], 2 * here[f"{column}_sampling_se"], fmt="o", markersize=3, color=colour, elinewidth=1, alpha=0.7)
        ax.set(title=method, xticks=range(len(updates)), xticklabels=updates)
        ax.set_ylabel("nats per problem" if ax.get_subplotspec().is_first_col() else "")
    _legend(figure, {**colours, "gap: KL(Q‖posterior)": (*to_rgb(GREY), 0.2)})
    return finish(figure, title, path)


@styled()
def length_histogram(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, path: str | Path | None = None) -> Figure:
    """Lengths in tokens (``num_tokens``: rationale and answer), one line of panels per source, one column per benchmark (if rows have one).

    Args:
        rows: of a rationale or prediction table.
        path: also save a PNG there.
    """
    table = _table(rows, "num_tokens").dropna(subset="num_tokens")
    wide = table["num_tokens"].max() - table["num_tokens"].min() > 60
    bins = (lambda lengths: {"bins": 40, "binrange": (lengths.min(), lengths.max())}) if wide else (lambda _: {"discrete": True})
    figure = _histograms(table, "num_tokens", "tokens of rationale and answer", bins)
    return finish(figure, "Length of the rationales", path)


@styled()
def perplexity_histogram(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, path: str | Path | None = None) -> Figure:
    """Perplexities of single rationales (``perplexity``: exp of the mean −log P of a token), panels as in :func:`length_histogram`.

    The bins span the inner 95 % of every source; what lies outside is in the first or last bin.

    Args:
        rows: a rationale each.
        path: also save a PNG there.
    """
    table = _table(rows, "perplexity")
    inner = table.groupby(["source", "benchmark"])["perplexity"].quantile([0.025, 0.975])
    low, high = inner.min(), max(inner.max(), 1.01 * inner.min())
    log = high > 3 * low
    edges = np.geomspace(low, high, 41) if log else np.linspace(low, high, 41)
    table["perplexity"] = table["perplexity"].clip(low, high)
    label = f"perplexity of a rationale under frozen θ{' (log scale)' if log else ''}; the edges hold what lies outside"
    figure = _histograms(table, "perplexity", label, lambda _: {"bins": edges})
    for ax in figure.axes if log else ():
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_locator(NullLocator())
    return finish(figure, "Perplexity of the rationales that each source wrote", path)


@styled()
def style_shares(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, path: str | Path | None = None) -> Figure:
    """Share of each rationale style by source, one panel per benchmark. Only the embedded task has styles.

    Args:
        rows: of a rationale or prediction table of the toy task.
        path: also save a PNG there.
    """
    table = _table(rows, "question", "rationale", "finished")
    samples = zip(table["question"], table["rationale"], table["finished"], strict=True)
    table["style"] = [style_of(question, rationale) if finished else "unfinished" for question, rationale, finished in samples]
    sources, benchmarks = _ordered(table["source"]), list(table["benchmark"].unique())
    figure, axes = _panels(len(benchmarks), columns=3, height=0.7 + 0.32 * len(sources), sharey=True)
    for ax, benchmark in zip(axes, benchmarks, strict=True):
        here = table[table["benchmark"] == benchmark]
        shares = pd.crosstab(here["source"], here["style"], normalize="index").reindex(index=sources, columns=list(STYLE_COLOURS)).fillna(0)
        left = pd.Series(0.0, index=sources)
        for style, colour in STYLE_COLOURS.items():
            ax.barh(range(len(sources)), shares[style], left=left, height=0.66, color=colour, alpha=0.85)
            left += shares[style]
        ax.set(title=benchmark, yticks=range(len(sources)), yticklabels=sources, xlim=(0, 1), ylim=(len(sources) - 0.4, -0.6))
        _percent(ax, sparse=len(benchmarks) > 1)
        ax.grid(visible=False)
    shown = set(table["style"])
    _legend(figure, {style: colour for style, colour in STYLE_COLOURS.items() if style in shown})
    return finish(figure, "Styles of the rationales", path)


def _of_round(label: str, other: Any) -> Any:
    """The colour of a method, darker by a third in every round after the first; ``other`` for what is no method."""
    place, number, _ = method_order(label)
    return tuple((2 / 3) ** (number - 1) * part for part in to_rgb(colour_of(label) if place < len(METHODS) else other))


def _histograms(table: pd.DataFrame, column: str, label: str, bins: Callable[[pd.Series], dict[str, Any]]) -> Figure:
    """A line of panels per source, a column of them per benchmark; ``bins`` gives seaborn's settings for a benchmark's values."""
    sources, benchmarks = _ordered(table["source"]), list(table["benchmark"].unique())
    size = (7.2, 0.6 + 0.62 * len(sources))
    figure, grid = plt.subplots(len(sources), len(benchmarks), figsize=size, sharex="col", squeeze=False, layout="constrained")
    for place, benchmark in enumerate(benchmarks):
        here = table[table["benchmark"] == benchmark]
        style = {"stat": "probability", "alpha": 0.75, "linewidth": 0, **bins(here[column])}
        for ax, source in zip(grid[:, place], sources, strict=True):
            values = here.loc[here["source"] == source, column]
            sns.histplot(x=values, color=colour_of(source), ax=ax, **style)
            ax.set(xlabel="", ylabel="", yticks=[])
            ax.spines["left"].set_visible(False)
            if place == 0:
                ax.set_ylabel(source, rotation=0, ha="right", va="center")
        grid[0, place].set_title(benchmark)
    figure.supxlabel(label, fontsize=9)
    return figure


def _panels(count: int, columns: int, height: float, sharey: bool = False) -> tuple[Figure, list[Axes]]:
    columns = min(count, columns)
    rows = -(-count // columns)
    width = 7.2 if columns > 1 else 4.6
    figure, grid = plt.subplots(rows, columns, figsize=(width, 0.4 + height * rows), sharey=sharey, squeeze=False, layout="constrained")
    for ax in grid.flat[count:]:
        ax.remove()
    return figure, list(grid.flat[:count])


def _percent(ax: Axes, sparse: bool) -> None:
    ax.xaxis.set_major_locator(MultipleLocator(0.5 if sparse else 0.2))  # small panels stand side by side
    ax.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _table(rows: Iterable[Mapping[str, Any]] | pd.DataFrame, *columns: str) -> pd.DataFrame:
    table = rows if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows))
    if table.empty:
        raise ValueError("there are no rows to draw")
    return table[["source", *columns]].assign(benchmark=table.get("benchmark", ""))


def _ordered(sources: pd.Series) -> list[str]:
    """Methods in the order of the result table, then the others as they come."""
    return sorted(sources.unique(), key=lambda name: method_order(name)[:2])


def _legend(figure: Figure, keys: Mapping[str, Any]) -> None:
    """By label a line, or a colour for a patch of it."""
    handles = [key if isinstance(key, Line2D) else plt.Rectangle((0, 0), 1, 1, color=key) for key in keys.values()]
    length = 1.8 if any(isinstance(key, Line2D) for key in keys.values()) else 1
    columns = int(figure.get_figwidth() / (0.5 + 0.08 * max(map(len, keys))))  # inches, of 9 pt
    figure.legend(
        handles,
        list(keys),
        loc="outside lower center",
        ncols=max(1, min(len(keys), 6, columns)),
        frameon=False,
        handlelength=length,
        fontsize=9,
    )


def finish(figure: Figure, title: str = "", path: str | Path | None = None) -> Figure:
    """Title and save a figure, and see to it that a notebook shows it once."""
    if title:
        figure.suptitle(title, x=0.01, ha="left", wrap=True)
    if path is not None:
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png")
    figure._ipython_display_ = lambda: _close(figure)
    return figure


def _close(figure: Figure) -> None:
    plt.close(figure)  # a cell that ends with the figure would show it as its value and again as an open figure
    raise NotImplementedError  # IPython then shows the figure as it always does
