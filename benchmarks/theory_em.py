"""Cost of one EM iteration against the number of (prompt, pair) rows, on one thread (target: 0.5 s at 1e5 rows, d = 32; linear growth).

    python benchmarks/theory_em.py [--rows 10000 100000 300000 1000000] [--features 32] [--iterations 5]

An iteration is an exact E-step and a Newton M-step to the residual of ``brite_lib.theory.m_step``. Seconds are medians over
the iterations of one run; "to linear" is the time per row over that of the first size. "run_em" is the wall-clock of a whole
call, input checks and divergences included, per iteration.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy loads its BLAS

import statistics
import time

import numpy as np

from brite_lib.theory.em import em_step, run_em, visible_directions
from brite_lib.theory.model import Model


def problem(rows: int, size: int, pairs: int, ridge: float, seed: int) -> Model:
    """Random cosine features of an RBF kernel and a verifier that accepts a tenth of the pairs."""
    rng = np.random.default_rng(seed)
    prompts = max(1, rows // pairs)
    points = rng.normal(size=(prompts * pairs, 3))
    features = np.sqrt(2 / size) * np.cos(points @ rng.normal(size=(3, size)) + rng.uniform(0, 2 * np.pi, size))
    evidence = (rng.random((prompts, pairs)) < 0.1).astype(np.float64)
    evidence[:, 0] = 1
    return Model(features.reshape(prompts, pairs, size), evidence, np.full(prompts, 1 / prompts), ridge)


def measure(model: Model, iterations: int) -> tuple[float, float, float]:
    """Median seconds of an iteration after a warm-up, Newton steps of one, and seconds per iteration of a whole run_em."""
    theta = np.zeros(model.features.shape[2])
    basis, seconds, newton = visible_directions(model), [], []
    em_step(model, theta, basis)  # warm-up: pages and caches
    for _ in range(iterations):
        start = time.perf_counter()
        step = em_step(model, theta, basis)
        seconds.append(time.perf_counter() - start)
        theta = step.theta
        newton.append(step.steps)
    start = time.perf_counter()
    run_em(model.features, model.evidence, model.weights, np.zeros_like(theta), iterations, model.ridge)
    return statistics.median(seconds), statistics.fmean(newton), (time.perf_counter() - start) / iterations


def main() -> None:
    """Print one line per size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 300_000, 1_000_000], help="|X|·|S|")
    parser.add_argument("--features", type=int, default=32, help="d")
    parser.add_argument("--pairs", type=int, default=1000, help="|S|, pairs of one prompt")
    parser.add_argument("--ridge", type=float, default=1e-3, help="0 adds the search for null directions")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(f"d = {options.features}, |S| = {options.pairs}, ridge = {options.ridge:g}, OMP_NUM_THREADS = {os.environ['OMP_NUM_THREADS']}")
    print(f"{'rows':>10} {'s/iteration':>12} {'newton':>7} {'µs/row':>8} {'to linear':>10} {'run_em s/it':>12}")
    first = None
    for rows in options.rows:
        model = problem(rows, options.features, options.pairs, options.ridge, options.seed)
        count = model.features.shape[0] * model.features.shape[1]
        seconds, newton, whole = measure(model, options.iterations)
        first = first or seconds / count
        per_row = f"{1e6 * seconds / count:8.3f} {seconds / count / first:10.2f}"
        print(f"{count:10d} {seconds:12.4f} {newton:7.1f} {per_row} {whole:12.4f}", flush=True)


if __name__ == "__main__":
    main()
