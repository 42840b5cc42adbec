import json
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from brite_lib import plots
from brite_lib.params import METHODS, STUDENT_METHODS


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def write_log(path, values):
    path.write_text("".join(json.dumps({"step": step, "loss": value}) + "\n" for step, value in enumerate(values)))
    return path


def row(method, benchmark="toy", values=(0.5,), interval=(0.4, 0.6), metric="pass@1"):
    low, high = interval
    kind = "t over seeds" if len(values) > 1 else "bootstrap over problems"
    mean = sum(values) / len(values)
    row = {"method": method, "benchmark": benchmark, "metric": metric, "values": list(values), "mean": mean}
    return row | {"ci_low": low, "ci_high": high, "ci": kind}


def sample(source, rationale="?", tokens=3, finished=True, **more):
    return {"source": source, "question": "3+4-2-9", "rationale": rationale, "num_tokens": tokens, "finished": finished, **more}


def test_training_curves_of_one_file(tmp_path):
    log = write_log(tmp_path / "metrics.jsonl", [3.0, None, 1.0])
    figure = plots.training_curves(log, ["loss", "kl"], title="a title", path=tmp_path / "figures" / "curve.png")
    loss, kl = figure.axes
    assert loss.lines[0].get_xydata().tolist() == [[0, 3], [2, 1]]
    assert [text.get_text() for text in kl.texts] == ["not logged"]
    assert figure.get_suptitle() == "a title"
    assert (tmp_path / "figures" / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_the_panels_of_metrics_say_their_units(tmp_path):
    log = write_log(tmp_path / "metrics.jsonl", [3.0, 1.0])
    figure = plots.training_curves(log, ["loss", "kl", "reward/answer_log_prob"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["loss", "kl (nats)", "answer_log_prob (nats)"]


def test_a_style_has_no_colour_of_a_method():
    methods = {to_rgb(plots.colour_of(method)) for method in METHODS}
    assert not methods & {to_rgb(colour) for colour in plots.STYLE_COLOURS.values()}


def test_training_curves_of_seeds_have_mean_and_range(tmp_path):
    logs = [write_log(tmp_path / f"{seed}.jsonl", [1.0 + seed, 2.0 + seed]) for seed in range(3)]
    (ax,) = plots.training_curves(logs, ["loss"]).axes
    assert ax.lines[0].get_ydata().tolist() == [2, 3]
    band = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == (1, 4)


def test_long_training_curves_have_a_bold_mean_of_neighbouring_steps(tmp_path):
    log = write_log(tmp_path / "metrics.jsonl", [0.0, 3.0, 6.0] * 30)  # 90 steps, 3 of them to a mean
    figure = plots.training_curves(log, ["loss"], title="a title")
    each, mean = figure.axes[0].lines
    assert each.get_ydata().tolist() == [0, 3, 6] * 30 and each.get_alpha() < 0.5
    assert mean.get_ydata().tolist() == pytest.approx([1.5, *[3] * 88, 4.5]) and mean.get_xdata().tolist() == list(range(90))
    assert figure.get_suptitle() == "a title; bold: mean of 3 steps"


def test_the_path_of_the_monitor_by_hand():
    """Two seeds, two updates: lines through the means, bars of ±2 standard errors, the gap shaded between the lines."""
    names = ("method", "update", "log_marginal", "log_marginal_sampling_se", "elbo", "elbo_sampling_se")
    rows = [("brite", "ψ 1", -2.0, 0.1, -2.5, 0.2), ("brite", "ψ 1", -1.0, 0.1, -1.5, 0.2), ("brite", "θ 1", -0.5, 0.1, -1.0, 0.2)]
    (ax,) = plots.monitor_path(pd.DataFrame(rows, columns=names)).axes
    likelihood, bound = (line.get_ydata().tolist() for line in ax.lines if line.get_linestyle() == "-" and len(line.get_ydata()) == 2)
    assert (likelihood, bound) == ([-1.5, -0.5], [-2.0, -1.0])
    gap, *bars = ax.collections
    assert (gap.get_paths()[0].vertices[:, 1].min(), gap.get_paths()[0].vertices[:, 1].max()) == (-2.0, -0.5)
    ends = [sorted(round(float(y), 6) for y in segment[:, 1]) for bar in bars for segment in bar.get_segments()]
    assert ends == [[-2.2, -1.8], [-1.2, -0.8], [-0.7, -0.3], [-2.9, -2.1], [-1.9, -1.1], [-1.4, -0.6]]


def test_training_curves_of_methods_have_their_colours(tmp_path):
    logs = {"rs": [write_log(tmp_path / "a", [1.0, 2.0])], "brite": [write_log(tmp_path / "b", [2.0, 1.0])]}
    figure = plots.training_curves(logs, ["loss"])
    assert [to_rgb(line.get_color()) for line in figure.axes[0].lines] == [to_rgb(plots.colour_of(name)) for name in logs]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["rs", "brite"]


def test_result_bars(tmp_path):
    rows = [row("base", values=(0.4, 0.6)), row("brite", values=(0.8, 1.0)), row("base", "gsm8k", interval=(None, None))]
    rows.append(row("base", metric="greedy"))
    figure = plots.result_bars(rows, "pass@1", path=tmp_path / "bars.png")
    toy, gsm8k = figure.axes
    assert [bar.get_width() for bar in toy.patches] == pytest.approx([0.5, 0.9])
    assert [label.get_text() for label in toy.get_yticklabels()] == ["base", "brite"]
    assert len(toy.collections) == 2 and not gsm8k.collections  # dots only where there are several seeds
    assert len(toy.lines) == 2 and not gsm8k.lines
    assert "t over seeds" in figure.get_suptitle()
    with pytest.raises(ValueError, match=r"maj@8"):
        plots.result_bars(rows, "maj@8")


def test_length_histogram():
    rows = [sample("brite", tokens=4), *(sample("base", tokens=tokens) for tokens in (2, 2, 3, None))]
    base, brite = plots.length_histogram(rows).axes
    assert (base.get_ylabel(), brite.get_ylabel()) == ("base", "brite")
    assert [bar.get_height() for bar in base.patches] == pytest.approx([2 / 3, 1 / 3])
    long = plots.length_histogram([sample("base", tokens=n, benchmark=b) for n in range(0, 900, 30) for b in ("a", "b")])
    assert len(long.axes) == 2


def test_style_shares():
    careful = "+4=7-2=5-9=6"
    rows = [sample("base"), sample("base", "=6"), sample("base", careful), sample("base", finished=False), sample("brite", careful)]
    (ax,) = plots.style_shares(rows).axes
    shares = {colour: [] for colour in plots.STYLE_COLOURS.values()}
    for bar, colour in zip(ax.patches, [c for c in shares for _ in range(2)], strict=True):
        shares[colour].append(bar.get_width())
    assert dict(zip(plots.STYLE_COLOURS, shares.values(), strict=True)) == {
        "careful": [0.25, 1], "skipping": [0.25, 0], "guessing": [0.25, 0], "other": [0, 0], "unfinished": [0.25, 0],
    }  # fmt: skip


def test_a_notebook_shows_a_figure_once(tmp_path):
    call = "plots.length_histogram([{'source': 'base', 'num_tokens': 3}])"
    sources = [f"from brite_lib import plots\n{call}", f"{call};", f"if True:\n    {call}", f"figure = {call}"]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, tmp_path / "in.ipynb")
    subprocess.run(
        [sys.executable, "-m", "brite_lib.execute", tmp_path / "in.ipynb", tmp_path / "out.ipynb", "{}"], check=True, timeout=300
    )
    cells = [cell for cell in nbformat.read(tmp_path / "out.ipynb", as_version=4).cells if cell.source in sources]
    for cell in cells:
        assert ["image/png" in output.get("data", {}) for output in cell.outputs] == [True], cell.source
    assert len(cells) == len(sources)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        plots.length_histogram([])


def test_every_method_has_a_colour_of_its_own():
    own = [method for method in METHODS if method not in STUDENT_METHODS]
    colours = [to_rgb(plots.colour_of(method)) for method in own]
    assert len(set(colours) - {to_rgb("black")}) >= len(own) - 1  # the two annotators may share one
    assert all(plots.colour_of(f"distil_{method}") == plots.colour_of(method) for method in ("sft", "rs", "brite"))


def test_a_heat_map_of_methods_and_benchmarks():
    rows = [
        row("brite", "toy-easy", (0.9,)),
        row("base", "toy-easy", (0.25,)),
        row("brite", "toy-hard", (0.5,)),
        row("rs", metric="greedy"),
    ]
    (ax,) = plots.result_heatmap(rows).axes
    assert [label.get_text() for label in ax.get_yticklabels()] == ["base", "brite"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["toy-easy", "toy-hard"]
    assert [text.get_text() for text in ax.texts] == ["25.0", "90.0", "50.0"]  # base was not evaluated on toy-hard
    assert ax.collections[0].get_clim() == (0, 100)
    with pytest.raises(ValueError, match="no row has the metric 'maj@8'"):
        plots.result_heatmap(rows, "maj@8")


def test_perplexities_share_their_bins_and_outliers_stay_at_the_edge():
    rows = [{"source": source, "perplexity": value} for source, value in [("rs_sampling", 2.0)] * 999 + [("brite_psi", 3.0)] * 999]
    figure = plots.perplexity_histogram([*rows, {"source": "rs_sampling", "perplexity": 1e6}])
    first, second = figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("brite_psi", "rs_sampling") and first.get_xscale() == "linear"
    heights = [bar.get_height() for bar in second.patches]
    assert heights[0] == pytest.approx(0.999) and heights[-1] == pytest.approx(0.001) and sum(heights) == pytest.approx(1)
    assert second.patches[-1].get_x() + second.patches[-1].get_width() == pytest.approx(3)
    wide = plots.perplexity_histogram([{"source": "rs_sampling", "perplexity": value} for value in (1.0, 40.0)] * 5)
    assert wide.axes[0].get_xscale() == "log"
    assert plots.perplexity_histogram(rows[:3]).axes  # all alike


def test_rounds_of_a_method_are_told_apart(tmp_path):
    logs = {name: [write_log(tmp_path / f"{name}.jsonl", [1.0, 0.5])] for name in ("brite", "brite_round2", "brite_round3", "rs")}
    figure = plots.training_curves(logs, ["loss"])
    lines = [line for line in figure.axes[0].lines if len(line.get_xdata())]
    assert len({to_rgb(line.get_color()) for line in lines}) == 4
    assert [line.is_dashed() for line in lines] == [False, True, True, False]
    assert to_rgb(lines[0].get_color()) == to_rgb(plots.colour_of("brite"))
    assert [line.is_dashed() for line in figure.legends[0].get_lines()] == [False, True, True, False]


def test_one_metric_of_many_methods_has_a_panel_for_each(tmp_path):
    logs = {name: [write_log(tmp_path / f"{name}.jsonl", [1.0, 0.5])] for name in ("sft", "rs", "raft", "brite", "brite_round2")}
    figure = plots.training_curves(logs, ["loss"])
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["loss, sft", "loss, rs", "loss, raft", "loss, brite"]
    assert [len([line for line in ax.lines if len(line.get_xdata())]) for ax in figure.axes] == [1, 1, 1, 2]
    figure.canvas.draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.width
