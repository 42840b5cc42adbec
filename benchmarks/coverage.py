"""How often the intervals of brite_lib.stats hold the truth: over problems, over a few training seeds; and the power of McNemar's test.

    python benchmarks/coverage.py [--simulations 400] [--seed 0]

Prints the tables of docs/results/coverage.md, which was made with 4,000 simulations. With one sample per problem nothing is simulated:
the interval for every number of right answers is weighed with its binomial probability.
"""

import argparse
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy loads its BLAS

from collections.abc import Callable

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from brite_lib.stats import bootstrap_ci, mcnemar, minimum_detectable_difference, paired_difference


def one_sample(problems: int, accuracy: float) -> tuple[float, float]:
    """Exact coverage of the bootstrap, and of Wilson's score interval, for one right or wrong answer per problem."""
    share = scipy.stats.binom.pmf(np.arange(problems + 1), problems, accuracy)
    covered = np.zeros(2)
    for right in np.flatnonzero(share > 1e-6):
        _, low, high = bootstrap_ci([1] * right + [0] * (problems - right))
        wilson = scipy.stats.binomtest(right, problems).proportion_ci(method="wilson")
        covered += share[right] * np.array([low <= accuracy <= high, wilson.low <= accuracy <= wilson.high])
    return covered[0], covered[1]


def several_samples(problems: int, accuracy: float, samples: int, simulations: int, rng: np.random.Generator) -> float:
    """Coverage of the bootstrap for means of k samples, where problems differ much: their chances are Beta(accuracy, 1 − accuracy)."""
    chances = rng.beta(accuracy, 1 - accuracy, (simulations, problems))
    means = rng.binomial(samples, chances) / samples
    return float(np.mean([low <= accuracy <= high for _, low, high in map(bootstrap_ci, means)]))


def shifts(spread: float, collapses: float = 0.0) -> Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]]:
    """What training with another seed does to a method: a normal shift; with a share of runs that lose 30 points."""

    def draw(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
        fallen = rng.random(shape) < collapses
        return rng.normal(0, spread, shape) - 0.3 * (fallen - collapses)

    return draw


def few_seeds(
    seeds: int, draw: Callable[[np.random.Generator, tuple[int, int]], NDArray[np.float64]], simulations: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Coverage of the paired t-interval for a true difference of 4 points on 1,000 problems, its mean width, and a bootstrap over seeds."""
    common = rng.normal(0, 0.03, (simulations, seeds))  # the seed moves both methods alike, which pairing takes out
    chances = [np.clip(mean + common + draw(rng, common.shape), 0, 1) for mean in (0.62, 0.58)]
    a, b = (rng.binomial(1000, chance) / 1000 for chance in chances)
    found = [paired_difference(x, y) for x, y in zip(a, b, strict=True)]
    covered = np.mean([result.low <= 0.04 <= result.high for result in found])
    by_bootstrap = np.mean([low <= 0.04 <= high for _, low, high in (bootstrap_ci(x, resamples=500) for x in (a - b)[:1000])])
    return float(covered), float(np.mean([result.high - result.low for result in found])), float(by_bootstrap)


def power(problems: int, discordant: float, simulations: int, rng: np.random.Generator) -> tuple[float, float, float]:
    """The minimum detectable difference, how often McNemar's test finds it, and how often it finds one where none is."""
    difference = minimum_detectable_difference(problems, discordant)
    discordant = max(discordant, difference)
    found = []
    for true in (difference, 0.0):
        counts = rng.multinomial(problems, [(discordant + true) / 2, (discordant - true) / 2, 1 - discordant], simulations)
        found.append(np.mean([p_value(only_a, only_b) < 0.05 for only_a, only_b, _ in counts]))
    return difference, float(found[0]), float(found[1])


def p_value(only_a: int, only_b: int) -> float:
    """Of McNemar's test on the problems that only one model gets right, and one that both miss."""
    return mcnemar([1] * only_a + [0] * (only_b + 1), [0] * only_a + [1] * only_b + [0]).p_value


def main() -> None:
    """Print the four tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    simulations, rng = options.simulations, np.random.default_rng(options.seed)

    print("| problems | accuracy | bootstrap | Wilson |\n|---|---|---|---|")
    for problems in (30, 40, 200, 500, 1319):
        for accuracy in (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 0.95):
            bootstrap, wilson = one_sample(problems, accuracy)
            print(f"| {problems:,} | {accuracy} | {bootstrap:.3f} | {wilson:.3f} |", flush=True)
    print("\n| problems | samples | accuracy | bootstrap |\n|---|---|---|---|")
    for problems, samples, accuracy in ((30, 64, 0.01), (30, 64, 0.15), (40, 64, 0.5), (200, 8, 0.1), (200, 8, 0.5), (500, 8, 0.8)):
        covered = several_samples(problems, accuracy, samples, simulations, rng)
        print(f"| {problems:,} | {samples} | {accuracy} | {covered:.3f} |", flush=True)
    print("\n| seeds | effect of the seed | paired t-interval | its mean width | bootstrap over seeds |\n|---|---|---|---|---|")
    effects = {"0.5 points": shifts(0.005), "5 points": shifts(0.05), "0.5 points, one run in ten loses 30": shifts(0.005, 0.1)}
    for seeds in (3, 5):
        for name, draw in effects.items():
            covered, width, by_bootstrap = few_seeds(seeds, draw, simulations, rng)
            print(f"| {seeds} | {name} | {covered:.3f} | {100 * width:.1f} points | {by_bootstrap:.3f} |", flush=True)
    print("\n| problems | discordant | minimum detectable difference | found | found where none is |\n|---|---|---|---|---|")
    for problems, discordant in ((30, 0.2), (164, 0.2), (500, 0.1), (500, 0.2), (1319, 0.1), (1319, 0.2), (5000, 0.2)):
        difference, found, false = power(problems, discordant, simulations, rng)
        print(f"| {problems:,} | {discordant} | {100 * difference:.1f} points | {found:.3f} | {false:.3f} |", flush=True)


if __name__ == "__main__":
    main()
