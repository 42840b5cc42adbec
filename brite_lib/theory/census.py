"""How often the bound of Theorem 3.3 holds where nothing guarantees it: a census over random instances.

:func:`census_settings` draws the settings of an instance from its seed, :func:`census_record` runs EM on it to its limit
and writes down one row (columns: ``COLUMNS``), :func:`run_census` does that for many seeds with several processes and
can be killed at any moment, :func:`summarise` and :func:`attainment` make the tables. A row depends on its seed and the two
limits ``max_steps`` and ``starts`` alone.

A bound is violated where T·gap/D exceeds 1 + ``VIOLATION`` for some T of the run. "own" compares with the maximum that the
run itself reaches, "best" with the highest found from many starts, a lower bound on the global one. Both use the
corrected index; "literal" reads the paper's index with the own maximum.
"""

import dataclasses
import functools
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import scipy.spatial.distance
import scipy.stats

from brite_lib.errors import InputError
from brite_lib.files import atomic_path, atomic_write_text
from brite_lib.lifeline import die_with_ancestors
from brite_lib.progress import progress
from brite_lib.theory.em import EMTrace, run_em_on
from brite_lib.theory.instances import VERIFIERS, Instance, random_instance, sufficient_ridge
from brite_lib.theory.model import Array, Model, check_counts, divergence_a, objective
from brite_lib.theory.optimum import Optimum, best_of_starts, m_step_attained, missing_information, own_limit
from brite_lib.theory.theorem import budget, check_theorem, identities, unconditional_bound

SIZES = ((1, 4, 3), (1, 6, 4), (2, 5, 4), (4, 5, 4), (6, 6, 5))  # (prompts, rationales, answers)
RANKS = (2, 3, 5, 8, None)  # None: full
RIDGES = (0.0, 0.0, 1e-3, 1e-2, 1e-1)
STARTS = (0.0, 1.0, 3.0)
VIOLATION = 1e-6
MISSED = 1e-6  # nats that the run's own maximum must lie below the best one found
CONVERGED = 1e-13
SHARD = 20  # seeds per file
SHORT_RUN = 60  # steps written down of a run without a maximum


def _laplace(a: Array, b: Array) -> Array:
    return np.exp(-scipy.spatial.distance.cdist(a, b))


def _polynomial(a: Array, b: Array) -> Array:
    return (1 + a @ b.T / a.shape[1]) ** 2


KERNELS: dict[str, str | Callable[[Array, Array], Array]] = {
    "rbf": "rbf",
    "laplace": _laplace,
    "poly": _polynomial,
    "gaussian": "linear",  # of as many Gaussian coordinates as the rank
    "tabular": "tabular",
}

_NUMBERS = (
    "ridge start sufficient_ridge largest_logit residual increase identity_f identity_p identity_r budget_error unconditional_ratio "
    "own_value curvature rho divergence kl gap_start gap_end own_ratio min_slack sum_slack literal_ratio literal_later_ratio "
    "reverse_ratio best_value best_ratio"
)
COLUMNS: dict[str, pa.DataType] = {
    "seed": pa.int64(),
    **dict.fromkeys(("prompts", "rationales", "answers", "rank", "columns", "steps", "own_at"), pa.int64()),
    **dict.fromkeys(("kernel", "verifier", "status", "error"), pa.string()),
    **dict.fromkeys(("one_answer", "condition", "explained", "converged", "best_attained"), pa.bool_()),
    **dict.fromkeys(_NUMBERS.split(), pa.float64()),
}
"""Columns of ``census.parquet``.

Settings: seed, prompts, rationales, answers, kernel, rank (null: full), verifier, one_answer, ridge, start; columns (d),
sufficient_ridge (diam²/4).
status: "attained", "saddle" (the run ends where J curves upwards, which symmetric starts do), "m_step_at_infinity" (ridge 0, the
first M-step has no maximiser), "at_infinity" (J has no maximum where the run goes, or a flat one), "undecided" (max_steps were
not enough) or "failed" (with ``error``).
The run (of 60 steps where it has no maximum): steps, largest_logit (size of f_θ along it), residual (largest M-step residual),
increase (smallest J_{t+1} − J_t), identity_f, identity_p, identity_r, budget_error (largest absolute errors; rounding is some
1e-16 of largest_logit, which grows without end when the maximum is at infinity), unconditional_ratio (largest
T·min step/(sup J − J_1); sup J is 0 unless attained).
Own maximum, null unless attained: own_value, curvature, rho, divergence (D), kl (without ridge), gap_start, gap_end, converged
(gap_end ≤ 1e-13), own_ratio = max_T T·gap_{T+1}/D at T = own_at, min_slack of the run, sum_slack up to own_at, condition ((C) at every
step), explained (the weak condition fails at own_at, as it must where own_ratio > 1), literal_ratio = max_T T·gap_T/D,
literal_later_ratio (the same from T = 2), reverse_ratio = max_T T·gap_T/D with the other KL.
Best maximum found: best_value, best_attained, best_ratio over the same run.
"""


def census_settings(seed: int) -> dict[str, Any]:
    """Arguments of :func:`random_instance` for a seed, a uniform draw from the module's lists; kernel is a name of ``KERNELS``."""
    rng = np.random.default_rng([seed, 3])

    def pick(options: Sequence[Any]) -> Any:
        return options[int(rng.integers(len(options)))]

    prompts, rationales, answers = pick(SIZES)
    settings = {
        "prompts": prompts,
        "rationales": rationales,
        "answers": answers,
        "kernel": pick(list(KERNELS)),
        "rank": pick(RANKS),
        "verifier": pick(VERIFIERS),
        "one_answer": pick((False, True)),
        "ridge": pick(RIDGES),
        "start": pick(STARTS),
    }
    if settings["kernel"] == "tabular":
        settings["rank"] = None  # fewer columns would leave pairs without any
    return settings


def census_instance(seed: int) -> Instance:
    """The instance of a seed."""
    settings = census_settings(seed)
    name = settings.pop("kernel")
    pairs = settings["prompts"] * settings["rationales"] * settings["answers"]
    dimensions = (settings["rank"] or pairs) if name == "gaussian" else 2
    return random_instance(seed, kernel=KERNELS[name], dimensions=dimensions, **settings)


def census_record(seed: int, max_steps: int = 3000, starts: int = 24) -> dict[str, Any]:
    """One row of the census, by the names of ``COLUMNS``; what does not apply is None.

    Args:
        seed: of the instance.
        max_steps: EM iterations at most, both to find the limit and to check the bound.
        starts: Newton ascents of the best-found maximum.
    """
    record: dict[str, Any] = dict.fromkeys(COLUMNS) | census_settings(seed) | {"seed": seed}
    try:
        instance = census_instance(seed)
        record["columns"] = instance.features.shape[2]
        record["sufficient_ridge"] = sufficient_ridge(instance.features, instance.evidence)
        record |= _measured(instance, seed, max_steps, starts)
    except (InputError, np.linalg.LinAlgError) as error:
        record |= {"status": "failed", "error": str(error)}
    return record


def _measured(instance: Instance, seed: int, max_steps: int, starts: int) -> dict[str, Any]:
    model = instance.model
    selected = instance.evidence / instance.evidence.sum(1, keepdims=True)  # the support of every posterior
    if not m_step_attained(selected, instance.features, instance.weights, instance.ridge):
        return {"status": "m_step_at_infinity"}
    limit = own_limit(model, instance.theta0, max_steps)
    if not limit.attained:
        trace = run_em_on(model, instance.theta0, min(SHORT_RUN, max_steps))
        return {"status": _why_not(model, limit)} | _run_columns(model, trace, trace.theta[-1], 0.0)
    trace = _run_to(model, instance.theta0, limit.value, max_steps)
    best = best_of_starts(model, starts, seed, also=limit)
    record = {"status": "attained"} | _run_columns(model, trace, limit.theta, best.value)
    record["identity_r"] = float(identities(trace, model, limit.theta).reverse.max())
    return record | _own_columns(model, trace, limit) | _best_columns(model, trace, best)


def _why_not(model: Model, limit: Optimum) -> str:
    if limit.gradient_norm > 1e-9 * max(1.0, float(np.abs(model.features).max())):
        return "undecided"
    return "saddle" if limit.curvature < -1e-6 * float(model.features.var(1).mean()) else "at_infinity"


def _run_to(model: Model, theta: Array, top: float, max_steps: int) -> EMTrace:
    """EM until J is within rounding of ``top``, or for ``max_steps``."""
    trace = run_em_on(model, theta, min(32, max_steps))
    while top - trace.log_marginal[-1] > CONVERGED * max(1.0, abs(top)) and trace.residual.size < max_steps:
        more = run_em_on(model, trace.theta[-1], min(trace.residual.size, max_steps - trace.residual.size))
        joined = {}
        for field in dataclasses.fields(EMTrace):
            first, second = getattr(trace, field.name), getattr(more, field.name)
            overlap = 1 if field.name in ("theta", "log_marginal") else 0
            joined[field.name] = np.concatenate([first, second[overlap:]])
        trace = EMTrace(**joined)
    return trace


def _run_columns(model: Model, trace: EMTrace, u: Array, top: float) -> dict[str, Any]:
    """What must hold for every run, whatever it is compared with."""
    errors, terms = identities(trace, model, u), budget(trace, model, u)
    smallest, bound = unconditional_bound(trace, model.ridge, top)
    return {
        "steps": trace.residual.size,
        "largest_logit": max(float(np.abs(model.logits(theta)).max()) for theta in (*trace.theta, u)),
        "residual": float(trace.residual.max()),
        "increase": float(np.diff(trace.log_marginal).min()),
        "identity_f": float(errors.first.max()),
        "identity_p": float(errors.progress.max()),
        "budget_error": float(np.abs(terms.error).max()),
        # a start at the top has 0/0
        "unconditional_ratio": float((smallest / np.maximum(bound, 1e-300)).max()) if bound[0] > 1e-12 else None,
    }


def _own_columns(model: Model, trace: EMTrace, limit: Optimum) -> dict[str, Any]:
    arrays = (model.features, model.evidence, model.weights, model.ridge)
    check = check_theorem(trace, limit.theta, *arrays, base=model.base)
    literal = check_theorem(trace, limit.theta, *arrays, index="literal", base=model.base)
    at = int(check.ratio.argmax())
    other = divergence_a(model, trace.theta[0], limit.theta)
    trivial = check.divergence <= 1e-12  # the start is the maximum: 0/0
    return {
        "own_value": limit.value,
        "curvature": limit.curvature,
        "rho": missing_information(model, limit.theta),
        "divergence": check.divergence,
        "kl": check.kl,
        "gap_start": float(literal.gap[0]),
        "gap_end": float(check.gap[-1]),
        "converged": bool(check.gap[-1] <= CONVERGED * max(1.0, abs(limit.value))),
        "own_ratio": None if trivial else float(check.ratio[at]),
        "own_at": at + 1,
        "min_slack": float(check.slack.min()),
        "sum_slack": float(check.slack[: at + 1].sum()),
        "condition": check.condition,
        "explained": bool(not check.weak_condition[at]),
        "literal_ratio": None if trivial else float(literal.ratio.max()),
        "literal_later_ratio": None if trivial else float(literal.ratio[1:].max()) if literal.ratio.size > 1 else None,
        "reverse_ratio": None if other <= 1e-12 else float((np.arange(1, literal.gap.size + 1) * literal.gap).max() / other),
    }


def _best_columns(model: Model, trace: EMTrace, best: Optimum) -> dict[str, Any]:
    divergence = divergence_a(model, best.theta, trace.theta[0])
    gap = objective(model, best.theta) - trace.log_marginal[1:]
    ratio = float((np.arange(1, gap.size + 1) * gap).max() / divergence) if divergence > 1e-12 else None
    return {"best_value": best.value, "best_attained": best.attained, "best_ratio": ratio}


def run_census(
    path: str | Path, count: int, first_seed: int = 0, processes: int = 1, max_steps: int = 3000, starts: int = 24
) -> pd.DataFrame:
    """Rows of ``count`` seeds in ``path`` (a parquet file), and returned, ordered by seed.

    The work is done in shards of 20 seeds, files in ``<path>.parts/`` that appear whole or not at all; a census that is
    started again makes the missing ones only. The rows do not depend on ``processes``.

    Raises:
        InputError: for a count or number of processes below 1, or if ``<path>.parts`` belongs to other limits.
    """
    check_counts(1, count=count, processes=processes, max_steps=max_steps, starts=starts)
    path = Path(path)
    parts = path.with_name(path.name + ".parts")
    _claim(parts, {"max_steps": max_steps, "starts": starts})
    shards = {}
    for begin in range(first_seed, first_seed + count, SHARD):
        seeds = range(begin, min(begin + SHARD, first_seed + count))
        shards[parts / f"{seeds.start:07d}-{seeds.stop - 1:07d}.parquet"] = seeds
    missing = [(file, seeds) for file, seeds in shards.items() if not _is_whole(file, seeds)]
    work = functools.partial(_make_shard, max_steps=max_steps, starts=starts)
    for _ in progress(_done(work, missing, processes), total=len(missing), desc=f"census, shards of {SHARD}"):
        pass
    table = pa.concat_tables([pq.read_table(file) for file in shards])
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)
    return table.to_pandas()


def _claim(parts: Path, limits: dict[str, int]) -> None:
    """Shards made with other limits must not be mixed in."""
    note = parts / "limits.json"
    if note.exists():
        if json.loads(note.read_text(encoding="utf-8")) != limits:
            raise InputError(f"{parts} holds a census with other limits than {limits}: delete it, or use the same")
        return
    atomic_write_text(note, json.dumps(limits))


def _is_whole(file: Path, seeds: range) -> bool:
    try:
        return pq.read_table(file, columns=["seed"])["seed"].to_pylist() == list(seeds)
    except (OSError, pa.ArrowException):
        return False


def _make_shard(job: tuple[Path, range], max_steps: int, starts: int) -> None:
    file, seeds = job
    rows = [census_record(seed, max_steps, starts) for seed in seeds]
    with atomic_path(file) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(list(COLUMNS.items()))), temporary)


def _done(work: Callable[[tuple[Path, range]], None], jobs: list[tuple[Path, range]], processes: int) -> Iterable[None]:
    """One item per finished job."""
    if processes == 1 or len(jobs) < 2:
        yield from map(work, jobs)
        return
    # Inherited, and forced, as Snakemake sets them to the stage's cores: processes × BLAS threads would wait for each other.
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"))
    context = multiprocessing.get_context("spawn")  # a notebook's kernel has threads, which do not survive a fork
    with ProcessPoolExecutor(min(processes, len(jobs)), mp_context=context, initializer=die_with_ancestors) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            for future in as_completed(futures):
                yield future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def share(hits: int, count: int) -> tuple[float, float, float]:
    """hits/count with the exact (Clopper-Pearson) 95 % interval; nan without a case."""
    if count == 0:
        return math.nan, math.nan, math.nan
    interval = scipy.stats.binomtest(hits, count).proportion_ci(0.95, method="exact")
    return hits / count, float(interval.low), float(interval.high)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Violations by subset, over the rows whose run has a maximum that differs from its start.

    Columns: subset, n; own, own_share with own_low and own_high (95 %), own_max and own_median of the ratio; explained (those
    among own with the sum of slack negative enough); slack (runs with a negative slack); literal, literal_later (T ≥ 2), reverse,
    best (each the number of violations), best_max; missed (runs that end below the best maximum found).
    """
    table = table[(table["status"] == "attained") & table["own_ratio"].notna()]
    rank = table["rank"].map(lambda value: "full" if pd.isna(value) else str(int(value)))
    one_answer = table["one_answer"].map({True: "y* only", False: "all that pass"})
    subsets = [("all", table)]
    for name in ("ridge", "verifier", "kernel", "rank", "start", "prompts", "one_answer"):
        keys = {"rank": rank, "one_answer": one_answer}.get(name, table[name])
        subsets += [(f"{name} {key}", table[keys == key]) for key in sorted(keys.unique())]
    return pd.DataFrame([{"subset": name} | _counts(rows) for name, rows in subsets])


def _counts(rows: pd.DataFrame) -> dict[str, Any]:
    def over(column: str) -> pd.Series:
        return rows[column].astype(float) > 1 + VIOLATION

    own = over("own_ratio")
    fraction, low, high = share(int(own.sum()), len(rows))
    return {
        "n": len(rows),
        "own": int(own.sum()),
        "own_share": fraction,
        "own_low": low,
        "own_high": high,
        "own_max": float(rows["own_ratio"].max()),
        "own_median": float(rows["own_ratio"].median()),
        "explained": int((own & rows["explained"].astype(bool)).sum()),
        "slack": int((~rows["condition"].astype(bool)).sum()),
        "literal": int(over("literal_ratio").sum()),
        "literal_later": int(over("literal_later_ratio").sum()),
        "reverse": int(over("reverse_ratio").sum()),
        "best": int(over("best_ratio").sum()),
        "best_max": float(rows["best_ratio"].astype(float).max()),
        "missed": int((rows["best_value"] - rows["own_value"] > MISSED).sum()),
    }


def attainment(table: pd.DataFrame) -> pd.DataFrame:
    """How many instances have a maximum at all: rows ridge zero or positive × verifier × full or low rank, columns the statuses."""
    ridge = np.where(table["ridge"] > 0, "ridge > 0", "ridge = 0")
    rank = np.where(table["rank"].isna(), "full", "low")
    counts = pd.crosstab([ridge, table["verifier"], rank], table["status"], rownames=["ridge", "verifier", "rank"])
    statuses = ["attained", "saddle", "m_step_at_infinity", "at_infinity", "undecided", "failed"]
    return counts.reindex(columns=statuses, fill_value=0).rename_axis(columns=None).reset_index()
