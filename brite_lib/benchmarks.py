"""The benchmarks by name: where the hub has them, how many rows they have, how their answers are compared.

A light table, read by the parameters and by :func:`brite_lib.problems.load_problems`; docs/benchmarks.md says which
entries were checked against real rows. How the rows of each become problems stands in :mod:`brite_lib.problems.layouts`.
"""

from pathlib import Path
from typing import Literal, NamedTuple

AnswerKind = Literal["exact", "number", "math", "choice", "code"]


class Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
        repository: on the Hugging Face hub.
        splits: our name of a split -> (the hub's name, published number of rows).
        answer_kind: how answers are compared (:mod:`brite_lib.verify`).
        configurations: of the repository; the rows of several follow each other.
        gated: whether the hub asks for a login and a consent to its terms.
        advice: what to say when a split is asked for that is not here.
    """

    repository: str
    splits: dict[str, tuple[str, int]]
    answer_kind: AnswerKind
    configurations: tuple[str | None, ...] = (None,)
    gated: bool = False
    advice: str = ""


MATH_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")
# The 18 that Qwen2.5-Math's evaluation counts; others add anatomy.
STEM_SUBJECTS = (
    *("abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science", "college_mathematics"),
    *("college_physics", "computer_security", "conceptual_physics", "electrical_engineering", "elementary_mathematics"),
    *("high_school_biology", "high_school_chemistry", "high_school_computer_science", "high_school_mathematics"),
    *("high_school_physics", "high_school_statistics", "machine_learning"),
)

BENCHMARKS = {
    "gsm8k": Benchmark("openai/gsm8k", {"train": ("train", 7473), "test": ("test", 1319)}, "number", ("main",)),
    "math": Benchmark("EleutherAI/hendrycks_math", {"train": ("train", 7500), "test": ("test", 5000)}, "math", MATH_SUBJECTS),
    "math500": Benchmark("HuggingFaceH4/MATH-500", {"test": ("test", 500)}, "math"),
    "minerva_math": Benchmark("math-ai/minervamath", {"test": ("test", 272)}, "math"),
    "olympiadbench": Benchmark("Hothan/OlympiadBench", {"test": ("train", 674)}, "math", ("OE_TO_maths_en_COMP",)),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", {"test": ("train", 30)}, "math"),
    "amc23": Benchmark("math-ai/amc23", {"test": ("test", 40)}, "math"),
    "svamp": Benchmark("ChilleD/SVAMP", {"test": ("train+test", 1000)}, "number"),  # the challenge set as it was published
    "gpqa_diamond": Benchmark("Idavidrein/gpqa", {"test": ("train", 198)}, "choice", ("gpqa_diamond",), gated=True),
    "arc_challenge": Benchmark(
        "allenai/ai2_arc",
        {"train": ("train", 1119), "validation": ("validation", 299), "test": ("test", 1172)},
        "choice",
        ("ARC-Challenge",),
    ),
    "commonsenseqa": Benchmark(
        "tau/commonsense_qa",
        {"train": ("train", 9741), "validation": ("validation", 1221)},
        "choice",
        advice="its published test rows have no answers, so papers report validation",
    ),
    "mmlu_stem": Benchmark("cais/mmlu", {"test": ("test", 3018)}, "choice", STEM_SUBJECTS),
}


def benchmark_of(source: str) -> Benchmark | None:
    """The benchmark that a data source names: by our name, by its hub repository, or by a path whose last part is our name."""
    return BENCHMARKS.get(Path(source).name) or next((entry for entry in BENCHMARKS.values() if entry.repository == source), None)


def answer_kind_of(source: str) -> AnswerKind:
    """What ``answer_kind: auto`` means: the benchmark's own kind, ``exact`` on the toy task, ``math`` for other data."""
    if source == "toy" or source.startswith("toy:"):
        return "exact"
    benchmark = benchmark_of(source)
    return benchmark.answer_kind if benchmark else "math"
