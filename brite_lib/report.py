"""The report of a run: its tables, pictures and rationales, in a notebook and as one HTML file that opens without a network.

Everything is read from the finished stages below ``outputs/<run>``; nothing is computed that is not there. Rationales are
text that a model wrote, so they are escaped wherever they are shown.
"""

import base64
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from brite_lib import plots
from brite_lib.errors import InputError
from brite_lib.files import atomic_write_text
from brite_lib.params import is_toy, method_order, resolve_path
from brite_lib.pipeline_graph import draw, stage_graph
from brite_lib.records import finished_stages, read_metrics, read_record
from brite_lib.report_notes import FIGURE_NOTES, METHOD_NOTES
from brite_lib.results import collect
from brite_lib.run_tables import (
    cost_table,
    hash_table,
    learned_table,
    measured,
    one_answer_table,
    perplexities,
    sampling_table,
    stage_table,
    task_of,
    unfinished,
    written_table,
)
from brite_lib.stats import paired_difference
from brite_lib.tables import read_predictions

DIFFERENCES = (
    ("brite", "rs", "the whole gain"),
    ("posterior", "rs", "of it: problems that rs misses"),
    ("brite", "posterior", "of it: Qψ is not the posterior"),
    ("brite", "raft", "against all correct samples"),
    ("brite", "star", "against STaR"),
    ("brite", "rest_em", "against ReST-EM"),
    ("brite_round2", "brite", "the second EM round"),
    ("distil_brite", "distil_rs", "for a student"),
    ("distil_brite", "distil_sft", "for a student, against human rationales"),
    ("brite_dpo", "iterative_dpo", "pairs from Qψ instead of θ"),
    ("brite", "latro", "against LaTRO"),
    ("brite", "grpo", "against GRPO"),
    ("brite", "verifree", "against VeriFree"),
    ("brite_round2", "raft_round2", "two rounds each, against RAFT"),
    ("brite_round2", "star_round2", "two rounds each, against STaR"),
    ("brite_round2", "rest_em_round2", "two rounds each, against ReST-EM"),
)
SHOWN_METHODS = ("base", "rs", "brite_psi", "brite")
PSI_METRICS = ("elbo", "kl", "reward/answer_log_prob", "reward/verifier", "entropy", "rationale_length", "finished", "explained_variance")
_TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,  # all of it: model text, titles, paths
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_TEMPLATES.tests["numbers"] = lambda column: column.dtype.kind in "if" or column.astype(str).str.fullmatch(r"[−–]?[\d.,]*").all()


class Html(str):
    """HTML that a notebook cell shows as such."""

    def _repr_html_(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Run:
    """The finished stages of a run.

    Attributes:
        dir: outputs/<run>.
        title: heading of the report.
        rows: of ``results.json``.
        records: ``stage.json`` by the stage's directory below the run, e.g. ``seed0/brite``.
    """

    dir: Path
    title: str
    rows: list[dict[str, Any]]
    records: dict[str, dict[str, Any]]

    @property
    def metric(self) -> str:
        """What pictures, costs and differences are about: pass@1 where something was sampled."""
        return "pass@1" if any(row["metric"] == "pass@1" for row in self.rows) else self.rows[0]["metric"]

    @property
    def evaluations(self) -> dict[str, dict[str, Any]]:
        """The records of the evaluations, in the order of seed, benchmark and result table."""
        found = {key: record for key, record in self.records.items() if {"method", "benchmark"} <= record["params"].keys()}
        order = {(row["benchmark"], row["method"]): place for place, row in enumerate(self.rows)}
        place = {key: (r["seed"], order[r["params"]["benchmark"], r["params"]["method"]]) for key, r in found.items()}
        return dict(sorted(found.items(), key=lambda item: place[item[0]]))


def load_run(run_dir: str | Path, title: str = "") -> Run:
    """Read the records and results of a run.

    Raises:
        InputError: one sentence naming the directory or file, if no evaluation has finished or a record is broken.
    """
    directory = resolve_path(run_dir)
    rows = collect(directory)
    if not rows:
        raise InputError(f"run_dir: {run_dir}: has no finished evaluation below seed*/, there is nothing to report")
    records = {path.parent.relative_to(directory).as_posix(): read_record(path) for path in finished_stages(directory)}
    return Run(directory, title or directory.resolve().name, rows, records)


def result_table(run: Run, metric: str | None = None) -> pd.DataFrame:
    """Accuracy in %, one row per benchmark, metric and method; ``interval is`` names the 95 % interval's kind."""
    chosen = [row for row in run.rows if metric in (None, row["metric"])]
    return pd.DataFrame(
        [
            {
                "benchmark": row["benchmark"],
                "method": row["method"],
                "metric": row["metric"],
                "accuracy %": round(100 * row["mean"], 1),
                "95 % interval": _interval(row["ci_low"], row["ci_high"]),
                "interval is": row["ci"] if row["ci_low"] is not None else "none",
                "per seed %": _list(row["values"]),
                "problems": row["n_problems"],
            }
            for row in chosen
        ]
    )


def difference_table(run: Run, metric: str = "pass@1", pairs: Sequence[tuple[str, str, str]] = DIFFERENCES) -> pd.DataFrame:
    """Paired per-seed differences a − b in percentage points with a t-interval over seeds.

    Args:
        run: the run.
        metric: the rows to compare.
        pairs: (a, b, what the difference tells); a pair of which a method is missing is left out.
    """
    rows = [row for row in run.rows if row["metric"] == metric]
    by_method = {(row["benchmark"], row["method"]): dict(zip(row["seeds"], row["values"], strict=True)) for row in rows}
    table = []
    for benchmark in dict.fromkeys(row["benchmark"] for row in rows):
        for a, b, meaning in pairs:
            first, second = by_method.get((benchmark, a), {}), by_method.get((benchmark, b), {})
            seeds = sorted(first.keys() & second.keys())
            if not seeds:
                continue
            difference = paired_difference([first[seed] for seed in seeds], [second[seed] for seed in seeds])
            table.append(
                {
                    "benchmark": benchmark,
                    "difference": f"{a} − {b}",
                    "what it is": meaning,
                    "points": round(100 * difference.mean, 1),
                    "95 % interval": _interval(difference.low, difference.high) if difference.n > 1 else "none (one seed)",
                    "per seed": _list(difference.values),
                }
            )
    return pd.DataFrame(table)


def monitor_table(run: Run) -> pd.DataFrame:
    """The EM monitor after every ψ- and θ-update that had one, in nats per problem, means over seeds; empty if none had.

    Does a round raise log P(y*|x, θ), as EM promises? ``gap`` is log P(y*|x) − ELBO, the KL of Q to the posterior.
    """
    table = _monitored(run)
    if table.empty:
        return table
    means = table.groupby(["task", "round", "after"], sort=False).mean(numeric_only=True).reset_index()
    shown = {"log_marginal": "log P(y*|x)", "log_marginal_se": "± problems", "elbo": "ELBO", "gap": "gap", "kl": "KL(Q‖θ)", "ess": "ESS"}
    columns = ["round", "after", *shown] if set(means["task"]) == {""} else ["task", "round", "after", *shown]
    means = means[columns].rename(columns=shown)
    return means.assign(**{name: means[name].map("{:.3f}".format) for name in shown.values()})


def provenance(run: Run) -> dict[str, str]:
    """When, from which commit and with which packages the stages ran; more than one value is shown as such."""
    starts = [datetime.fromisoformat(record["started"]) for record in run.records.values() if record.get("started")]
    versions: dict[str, list[str]] = {}
    for record in run.records.values():
        for name, version in (record.get("versions") or {}).items():
            versions.setdefault(name, []).append(version)
    facts = {
        "last stage started": f"{max(starts):%Y-%m-%d %H:%M} UTC" if starts else "unknown",
        "commit": ", ".join(dict.fromkeys(str(record.get("git_commit") or "unknown")[:12] for record in run.records.values())),
        "seeds": ", ".join(str(seed) for seed in sorted({record["seed"] for record in run.records.values()})),
    }
    return facts | {name: ", ".join(dict.fromkeys(values)) for name, values in versions.items()}


def sampled(run: Run) -> pd.DataFrame:
    """The sampled (not greedy) predictions of all evaluations: what the pictures of lengths and styles need."""
    columns = ["id", "question", "rationale", "finished", "num_tokens"]
    tables = []
    for record, rows in _predictions(run):
        params = record["params"]
        table = pd.DataFrame([row for row in rows if row["temperature"] > 0], columns=columns)
        tables.append(table.assign(source=params["method"], benchmark=params["benchmark"], toy=is_toy(str(params.get("data", "")))))
    return pd.concat(tables, ignore_index=True)


def figures(run: Run) -> dict[str, Figure]:
    """The pictures of the report by caption, for :func:`write_html`; PNG copies go to ``figures/`` in the run."""
    folder = run.dir / "figures"
    metric = run.metric
    pictures = {f"Accuracy ({metric}) of each method": plots.result_bars(run.rows, metric, folder / "results.png")}
    if len({row["benchmark"] for row in run.rows if row["metric"] == metric}) > 1:
        pictures[f"Heat map of {metric} by method and benchmark"] = plots.result_heatmap(run.rows, metric, folder / "heatmap.png")
    band = "; band: range of seeds" if len({record["seed"] for record in run.records.values()}) > 1 else ""
    for kind, setting, file, names in (("ψ-update", "kl_coef", "psi", PSI_METRICS), ("θ-update", "rationales", "theta", ("loss",))):
        for task, logs in _logged(run, setting).items():
            caption, name = (f"{kind}, {task}", f"{file}-{task}.png") if task else (kind, f"{file}.png")
            logged = {metric for paths in logs.values() for path in paths for line in read_metrics(path) for metric in line}
            pictures[caption] = plots.training_curves(logs, [n for n in names if n in logged], caption + band, folder / name)
    monitored = _monitored(run)
    for task, table in () if monitored.empty else monitored.groupby("task"):
        paths = table.groupby("method", sort=False).filter(lambda rows: rows["update"].nunique() > 1)  # one update is in the table only
        if not paths.empty:
            caption, name = (f"EM monitor, {task}", f"monitor-{task}.png") if task else ("EM monitor", "monitor.png")
            pictures[caption] = plots.monitor_path(paths, f"{caption}; bars: ±2 s.e. of the sampled rationales", folder / name)
    rows = sampled(run)
    if not rows["num_tokens"].dropna().empty:
        pictures["Length of sampled rationales and answers"] = plots.length_histogram(rows, folder / "lengths.png")
    scored = perplexities(run)
    if not scored.empty:
        pictures["Perplexity of the rationales of each source"] = plots.perplexity_histogram(scored, folder / "perplexity.png")
    if rows["toy"].any():
        pictures["Share of each style"] = plots.style_shares(rows[rows["toy"]], folder / "styles.png")
    return pictures


def rationales(run: Run, problems: int = 4, methods: Sequence[str] = SHOWN_METHODS) -> list[dict[str, Any]]:
    """Rationales of several methods side by side: the first sample for the first problems of each benchmark, not selected.

    Returns:
        one ``{benchmark, question, gold, samples: [prediction row, …]}`` per problem, samples in the order of ``methods``.
    """
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    seed = min(record["seed"] for record in run.evaluations.values())
    for record, rows in _predictions(run, seed=seed, methods=methods):
        warm = any(row["temperature"] > 0 for row in rows)
        kept = [row for row in rows if row["sample"] == 0 and (row["temperature"] > 0) == warm]
        for row in sorted(kept, key=lambda row: row["id"])[:problems]:
            found.setdefault((record["params"]["benchmark"], row["id"]), {})[record["params"]["method"]] = row
    table = []
    for (benchmark, _), by_method in found.items():
        samples = [by_method[method] | {"method": method} for method in methods if method in by_method]
        table.append({"benchmark": benchmark, "question": samples[0]["question"], "gold": samples[0]["gold"], "samples": samples})
    return table


def rationales_html(examples: Sequence[Mapping[str, Any]]) -> Html:
    """The rationales as HTML for a notebook."""
    return Html(_TEMPLATES.get_template("rationales.html.j2").render(examples=examples))


def pipeline_html(run: Run) -> Html:
    """Which stage reads which, with their seconds (means over seeds), for a notebook; shaded by share of the slowest stage's seconds."""
    return Html(_TEMPLATES.get_template("pipeline.svg.j2").render(drawing=draw(stage_graph(run))))


def write_html(run: Run, pictures: Mapping[str, Figure], path: str | Path, browser: str = "") -> Path:
    """Write the report as one HTML file that needs no other file and no network.

    Args:
        run: the run.
        pictures: figures by caption, shown in this order.
        path: of the file; written whole or not at all.
        browser: HTML of the rationale browser, which is not escaped (:func:`brite_lib.viewer.embedded`).
    """
    results = result_table(run)
    methods = dict.fromkeys(row["method"] for row in run.rows)
    page = _TEMPLATES.get_template("report.html.j2").render(
        run=run,
        facts=provenance(run),
        unfinished=unfinished(run),
        metric=run.metric,
        splits=" and ".join(sorted({record["params"]["split"] for record in run.evaluations.values()})),
        results=results[results["metric"] == run.metric].drop(columns="metric"),
        other_results=results[results["metric"] != run.metric],
        notes={method: METHOD_NOTES[method] for method in methods if method in METHOD_NOTES},
        monitored=monitor_table(run),
        differences=difference_table(run, run.metric),
        one_answer=one_answer_table(run, DIFFERENCES),
        pictures={caption: _image(figure) | {"note": _note(caption)} for caption, figure in pictures.items()},
        examples=rationales(run),
        browser=browser,
        learned=learned_table(run),
        written=written_table(run),
        costs=cost_table(run),
        sampling=sampling_table(run),
        drawing=draw(stage_graph(run)),
        stages=stage_table(run),
        hashes=hash_table(run),
    )
    atomic_write_text(path, page)
    return Path(path)


def _predictions(
    run: Run, seed: int | None = None, methods: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """The record and the rows of each evaluation, read one at a time."""
    for key, record in run.evaluations.items():
        if seed in (None, record["seed"]) and (methods is None or record["params"]["method"] in methods):
            yield record, read_predictions(run.dir / key / "predictions.parquet")


def _monitored(run: Run) -> pd.DataFrame:
    """What the EM monitor measured: a row per stage that had one, in the order of task, round and result table; empty if none had."""
    rows = []
    for key, record in run.records.items():
        if found := measured(record, "em/"):
            stage, number = record["stage"], record["params"]["round"]
            name = stage.partition("_round")[0]
            method, update = name.removesuffix("_psi"), f"{'ψ' if name.endswith('_psi') else 'θ'} {number}"
            rows.append({"task": task_of(key, record), "round": number, "after": stage, "method": method, "update": update, **found})
    rows.sort(key=lambda row: (row["task"], row["round"], method_order(row["after"])))
    return pd.DataFrame(rows)


def _logged(run: Run, setting: str) -> dict[str, dict[str, list[Path]]]:
    """The metrics files of stages that have a setting, by task (empty if the run has only one) and stage, one per seed."""
    found: dict[str, dict[str, list[Path]]] = {}
    for key, record in sorted(run.records.items(), key=lambda item: method_order(item[1]["stage"])[:2]):
        path, stage = run.dir / key / "metrics.jsonl", record["stage"]
        if setting in record["params"] and path.is_file():
            found.setdefault(task_of(key, record), {}).setdefault(stage, []).append(path)
    return dict(sorted(found.items()))


def _image(figure: Figure) -> dict[str, Any]:
    """A figure for an <img>: as an image of its own its ids cannot clash with another's."""
    buffer = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "brite"}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    source = "data:image/svg+xml;base64," + base64.b64encode(buffer.getvalue()).decode()
    return {"source": source, "wide": figure.get_figwidth() > 5}


def _note(caption: str) -> str:
    """What to look at in a figure; its caption may name a task behind that of the note."""
    return next((note for start, note in FIGURE_NOTES.items() if caption.startswith(start)), "")


def _interval(low: float | None, high: float | None) -> str:
    return "none" if low is None or math.isnan(low) else f"[{_points(low)}, {_points(high)}]"


def _list(values: Sequence[float]) -> str:
    return ", ".join(_points(value) for value in values)


def _points(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}".replace("-", "−")  # + 0.0: no minus zero
