"""Tables of a run: greedy answers compared, what it cost and how good its rationales are, from what its stages left."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from brite_lib.forecast import number_of_problems, passes, rationales_per_problem, token_bounds
from brite_lib.params import StageParams, method_order
from brite_lib.quality import perplexity
from brite_lib.records import stage_directories
from brite_lib.stages import SECTIONS
from brite_lib.stats import mcnemar
from brite_lib.tables import read_predictions, read_rationales

if TYPE_CHECKING:
    from brite_lib.report import Run

UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"))
SHARES = {"repeated_4grams": "repeated %", "answer_leak": "leaks %", "agreement": "agrees %"}


def one_answer_table(run: "Run", pairs: Sequence[tuple[str, str, str]]) -> pd.DataFrame:
    """Greedy answers of two methods to the same problems by McNemar's exact test, where the run has one seed; empty if it has several.

    The test is over problems and knows nothing of training again; for that there is :func:`brite_lib.report.difference_table`.

    Args:
        run: the run.
        pairs: (a, b, what the difference tells); a pair of which a method is missing is left out.
    """
    table: list[dict[str, Any]] = []
    if len({record["seed"] for record in run.records.values()}) > 1:
        return pd.DataFrame(table)
    verdicts: dict[tuple[str, str], dict[str, bool]] = {}
    for key, record in run.evaluations.items():
        rows = read_predictions(run.dir / key / "predictions.parquet")
        greedy = {row["id"]: row["correct"] is True for row in rows if row["temperature"] == 0}
        verdicts[record["params"]["benchmark"], record["params"]["method"]] = greedy
    for benchmark in dict.fromkeys(benchmark for benchmark, _ in verdicts):
        for a, b, meaning in pairs:
            first, second = verdicts.get((benchmark, a), {}), verdicts.get((benchmark, b), {})
            if not (both := sorted(first.keys() & second.keys())):
                continue
            test = mcnemar([first[name] for name in both], [second[name] for name in both])
            row = {"benchmark": benchmark, "difference": f"{a} − {b}", "what it is": meaning}
            row |= {"points": round(100 * (test.only_a - test.only_b) / len(both), 1), "problems": len(both)}
            table.append(row | {"right only by the first": test.only_a, "only by the second": test.only_b, "p": round(test.p_value, 4)})
    return pd.DataFrame(table)


def cost_table(run: "Run") -> pd.DataFrame:
    """What it took to make each method, sampling of its rationales included, evaluation excluded; means over seeds.

    ``× sft`` is the ratio of FLOPs to supervised fine-tuning on human rationales, where the run has it.
    """
    metric = run.metric
    rows = [row for row in run.rows if row["metric"] == metric]
    title, flops_of = _flops(run)
    of_sft = {row["benchmark"]: row["flops"] for row in rows if row["method"] == "sft"}
    table = []
    for row in rows:
        flops, sft = row["flops"], of_sft.get(row["benchmark"])
        found = {"benchmark": row["benchmark"], "method": row["method"], "tokens generated": round(row["tokens_generated"])}
        found |= {"tokens trained": round(row["tokens_trained"]), title: flops_of(row), "× sft": _ratio(flops, sft)}
        found |= {"seconds": round(row["seconds"], 1), "GPU-hours": row["gpu_hours"], f"{metric} %": round(100 * row["mean"], 1)}
        table.append(found)
    return _without_empty(pd.DataFrame(table))


def stage_table(run: "Run") -> pd.DataFrame:
    """Seconds, tokens (also in % of the plan's upper bounds), FLOPs and peak memory of every stage."""
    title, flops_of = _flops(run)
    table = []
    for key, record in run.records.items():
        generated, trained = _planned(run, record) or (None, None)
        row = {"stage": key, "seconds": round(record["seconds"], 1)}
        row |= {"tokens generated": record["tokens_generated"], "% of plan": _percent(record["tokens_generated"], generated)}
        row |= {"tokens trained": record["tokens_trained"], "% of its plan": _percent(record["tokens_trained"], trained)}
        row |= {title: flops_of(record), "memory GiB": record.get("peak_rss_gib")}
        table.append(row | {"GPU GiB": record.get("peak_gpu_gib"), "GPU-hours": record.get("gpu_hours")})
    return _without_empty(pd.DataFrame(table))


def sampling_table(run: "Run") -> pd.DataFrame:
    """How many problems rejection sampling missed, from the records of the stages that did it; empty if none did."""
    table = []
    for key, record in run.records.items():
        if isinstance(record["metrics"].get("missed"), int | float):
            metrics = record["metrics"]
            row = {"stage": key, "draws": metrics.get("draws"), "problems": metrics.get("problems"), "with a hit": metrics.get("hits")}
            table.append(row | {"missed %": round(100 * metrics["missed"], 1)})
    return pd.DataFrame(table)


def learned_table(run: "Run") -> pd.DataFrame:
    """The rationales that each θ-update learned from (:mod:`brite_lib.quality`), means over seeds; empty if none was measured.

    Perplexity is that under frozen θ: the base model in the first round. It weighs tokens alike, ``per z`` rationales (``n`` of them).
    """
    rows = []
    for key, record in sorted(run.records.items(), key=lambda item: method_order(item[1]["stage"])):
        found = measured(record, "quality/")
        if "rationales" in record["params"] and found.get("rationales"):
            path = Path(record["params"]["rationales"])
            source = "people" if str(path) == "human" else path.parent.name
            rows.append({"learned by": _place(key), "written by": source, **found})
    shown = {"perplexity": "perplexity", "perplexity_per_rationale": "per z", "nats": "nats", "tokens": "tokens", "steps": "steps"}
    table, means = _means(rows, ["learned by", "written by"], shown)
    if rows:
        table.insert(2, "n", means["rationales"].round().astype(int))
    return table


def written_table(run: "Run") -> pd.DataFrame:
    """The sampled rationales of each method in its evaluation, and how well log P(y*|x,z) tells its right ones; means over seeds."""
    rows = []
    for record in run.evaluations.values():
        if measured(record, "quality/").get("rationales"):
            params = record["params"]
            found = measured(record, "quality/") | measured(record, "self_evaluation/")
            rows.append({"benchmark": params["benchmark"], "method": params["method"], **found})
    table, means = _means(rows, ["benchmark", "method"], {"words": "words", "steps": "steps"})
    if "auroc" in means:
        table["AUROC"] = means["auroc"].map("{:.3f}".format)
        if len({record["seed"] for record in run.evaluations.values()}) == 1:
            table["95 % interval"] = [f"[{low:.3f}, {high:.3f}]" for low, high in zip(means["low"], means["high"], strict=True)]
        table["calibration error"] = means["ece"].map("{:.3f}".format)
    return table.replace({"nan": "–", "[nan, nan]": "–"})


def perplexities(run: "Run") -> pd.DataFrame:
    """``source``, ``benchmark`` and ``perplexity`` of every finished rationale that a stage wrote, under the frozen θ that scored it."""
    tables = []
    for key, record in run.records.items():
        path = run.dir / key / "rationales.parquet"
        rows = read_rationales(path) if path.is_file() else []
        values = [perplexity([row["logp_theta"]])["perplexity"] for row in rows if row["finished"] and row["logp_theta"]]
        tables.append(pd.DataFrame({"source": record["stage"], "benchmark": task_of(key, record), "perplexity": values}))
    return pd.concat(tables, ignore_index=True)


def hash_table(run: "Run") -> pd.DataFrame:
    """The first twelve digits of SHA-256 of what came from outside the run (a model's or data's files), and of what each stage made."""
    made = {path for record in run.records.values() for path in record["outputs"]}
    outside: dict[tuple[str, str], None] = {}
    for record in run.records.values():
        outside |= {(path, digest): None for path, digest in record["inputs"].items() if path not in made}
    rows = [{"of": "outside the run", "file": path, "SHA-256": digest[:12]} for path, digest in outside]
    for key, record in run.records.items():
        rows += [{"of": key, "file": Path(path).name, "SHA-256": digest[:12]} for path, digest in record["outputs"].items()]
    return pd.DataFrame(rows)


def unfinished(run: "Run") -> dict[str, str]:
    """Why a stage that was started is not in the run: the sentence that it failed with, if it could leave one."""
    found = {}
    for directory in stage_directories(run.dir):
        if not (directory / "stage.json").is_file():
            error = directory / "error.txt"
            reason = error.read_text(encoding="utf-8").strip() if error.is_file() else "not finished"
            found[directory.relative_to(run.dir).as_posix()] = reason
    return found


def task_of(key: str, record: dict[str, Any]) -> str:
    """The task in the name of a stage's directory; empty if the run has only one."""
    return Path(key).name.removesuffix(record["stage"]).rstrip(".")


def _means(rows: list[dict[str, Any]], keys: list[str], shown: dict[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Means over seeds, under the names to be shown and as they are; the shares in %."""
    if not rows:
        return pd.DataFrame(), pd.DataFrame()
    means = pd.DataFrame(rows).groupby(keys, sort=False).mean(numeric_only=True).reset_index()
    table = means[keys].copy()
    for name, title in {**shown, **SHARES}.items():
        if name in means:
            table[title] = (100 * means[name]).round(1) if name in SHARES else means[name].map("{:.2f}".format)
    return table, means


def measured(record: dict[str, Any], prefix: str) -> dict[str, float]:
    """The metrics of a stage whose names begin with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in record["metrics"].items() if name.startswith(prefix)}


def _planned(run: "Run", record: dict[str, Any]) -> tuple[int, int] | None:
    """The upper bounds that the plan had for a stage; None if its parameters are of another version or its data is not known."""
    params = _params_of(record)
    problems = number_of_problems(params) if params else None
    if problems is None:
        return None
    path = Path(str(record["params"].get("rationales", "human")))
    source = next((other for key, other in run.records.items() if f"/{key}/" in f"/{path.as_posix()}"), None)
    return token_bounds(passes(params, problems, rationales_per_problem(_params_of(source) if source else None)))


def _params_of(record: dict[str, Any]) -> StageParams | None:
    cls = next((cls for cls in SECTIONS.values() if cls.model_fields.keys() == record["params"].keys()), None)
    return cls.parse(record["params"]) if cls else None


def _place(key: str) -> str:
    return key.partition("/")[2]


def _flops(run: "Run") -> tuple[str, Callable[[dict[str, Any]], float | str | None]]:
    """The title of a column of FLOPs, in the unit that suits the run, and its cell for a record or row of results.

    Where tokens cost no FLOPs, a version of this project made them that did not count FLOPs: unknown, not 0.
    """
    most = max((cost.get("flops") or 0.0 for cost in (*run.records.values(), *run.rows)), default=0.0)
    if not most:
        return "FLOPs", lambda cost: "unknown" if _has_tokens(cost) else "0"
    size, unit = next(((size, unit) for size, unit in UNITS if most >= size), UNITS[-1])
    return unit, lambda cost: None if _has_tokens(cost) and not cost.get("flops") else _ratio(cost.get("flops"), size)


def _has_tokens(cost: dict[str, Any]) -> bool:
    return bool(cost["tokens_generated"] or cost["tokens_trained"])


def _ratio(value: float | None, to: float | None) -> float | None:
    return None if value is None or not to else round(value / to, 2 if value < 10 * to else 1)


def _percent(value: float, bound: int | None) -> float | None:
    return round(100 * value / bound, 1) if bound else None


def _without_empty(table: pd.DataFrame) -> pd.DataFrame:
    """Without the columns of GPUs, ratios and plans that say nothing in this run."""
    optional = ("× sft", "GPU-hours", "GPU GiB", "% of plan", "% of its plan")
    return table.drop(columns=[name for name in optional if name in table and not table[name].fillna(0).any()])
