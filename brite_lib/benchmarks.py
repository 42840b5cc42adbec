"""The benchmarks: where the hub has them, how many rows they have, how their rows become problems and answers are compared.

A light module (no ``datasets``, no torch): the parameters read it too. docs/benchmarks.md says which entries were
checked against real rows, and which against rows written by hand in the hub's layout only.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

AnswerKind = Literal["exact", "number", "math", "choice", "code"]
Row = dict[str, Any]


class Layout(NamedTuple):
    """A way to write rows: the columns that tell it, and how such a row becomes the columns of a Problem."""

    columns: tuple[str, ...]
    to_problem: Callable[[Row], Row]


class Benchmark(NamedTuple):
    """One benchmark.

    Attributes:
        repository: on the Hugging Face hub.
        splits: our name of a split -> (the hub's name, published number of rows).
        answer_kind: how answers are compared (:mod:`brite_lib.verify`).
        layout: of the hub's rows.
        configurations: of the repository; the rows of several follow each other.
        gated: whether the hub asks for a login and a consent to its terms.
        advice: what to say when a split is asked for that is not here.
    """

    repository: str
    splits: dict[str, tuple[str, int]]
    answer_kind: AnswerKind
    layout: Layout
    configurations: tuple[str | None, ...] = (None,)
    gated: bool = False
    advice: str = ""


def benchmark_of(source: str) -> Benchmark | None:
    """The benchmark that a data source names: by our name, by its hub repository, or by a path whose last part is our name."""
    from brite_lib.params import is_path  # here, because params import this module

    name = Path(source).name if is_path(source) else source
    return BENCHMARKS.get(name) or next((entry for entry in BENCHMARKS.values() if entry.repository == source), None)


def published_split(source: str, split: str) -> tuple[str, int] | None:
    """The hub's name of a benchmark's split and its published number of rows; None if the source is no benchmark or lacks it."""
    benchmark = benchmark_of(source)
    return benchmark.splits.get({"dev": "validation"}.get(split, split)) if benchmark else None


def answer_kind_of(source: str) -> AnswerKind:
    """What ``answer_kind: auto`` means: the benchmark's own kind, ``exact`` on the toy task, ``math`` for other data."""
    from brite_lib.params import is_toy

    benchmark = benchmark_of(source)
    return "exact" if is_toy(source) else benchmark.answer_kind if benchmark else "math"


def layout_of(row: Row, benchmark: Benchmark | None = None) -> Layout | None:
    """The first layout whose columns a row has: the benchmark's own, then the known ones; None if none fits."""
    candidates = ((benchmark.layout,) if benchmark else ()) + (OURS, PROGRAMS)
    return next((layout for layout in candidates if all(row.get(column) is not None for column in layout.columns)), None)


def with_options(question: str, options: Sequence[str], right: int) -> Row:
    """The columns of a multiple-choice problem: options printed below the question as ``A. …``, the answer a letter."""
    letters = "ABCDEFGHIJ"[: len(options)]
    printed = "\n".join(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))
    return {"question": f"{question}\n{printed}", "answer": letters[right], "choices": list(options)}


def _ours(row: Row) -> Row:
    return row


def _solved(row: Row) -> Row:
    """MATH and its relatives: the answer, where no column has it, is the last box of the solution."""
    level = row.get("level")
    box = last_box(row["solution"])
    empty = box == ""  # two training solutions of MATH end in "there are \boxed{} primes": none
    return {
        "id": row.get("unique_id", row.get("id")),
        "question": row["problem"],
        "answer": _text(row["answer"]) if "answer" in row else "0" if empty else box,
        "rationale": row["solution"],
        "level": f"Level {level}" if type(level) is int else level,
    }


def last_box(text: str) -> str | None:
    r"""What stands in the last ``\boxed{…}`` (or ``\boxed 2``) of a text, braces balanced; None without one that is closed."""
    _, found, rest = text.rpartition("\\boxed")
    if not found or not rest.startswith("{"):
        return rest.split()[0].rstrip("$.") if found and rest.split() else None
    depth = 0
    for place, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[1:place].strip()
    return None


def _number(row: Row) -> Row:
    return row | {"answer": _text(row["answer"])}


def _olympiad(row: Row) -> Row:
    context = row.get("context")
    return {
        "id": row.get("id"),
        "question": f"{context}\n{row['question']}" if context else row["question"],
        "answer": ", ".join(row["final_answer"]),
        "rationale": row["solution"][0] if row.get("solution") else None,
    }


def _svamp(row: Row) -> Row:
    return {"id": row.get("ID"), "question": f"{row['Body']} {row['Question']}", "answer": _text(row["Answer"])}


def _lettered(row: Row) -> Row:
    """ARC and CommonsenseQA, whose options have labels (A to E, in some rows 1 to 4)."""
    options = row["choices"]
    return {"id": row.get("id")} | with_options(row["question"], options["text"], options["label"].index(row["answerKey"]))


def _mmlu(row: Row) -> Row:
    return with_options(row["question"], row["choices"], row["answer"]) if type(row["answer"]) is int else row


GPQA_OPTIONS = ("Correct Answer", "Incorrect Answer 1", "Incorrect Answer 2", "Incorrect Answer 3")


def _gpqa(row: Row) -> Row:
    """The right option stands first in the data: a shuffle by the question gives it the same place in every run."""
    options = list(GPQA_OPTIONS)
    random.Random(f"gpqa: {row['Question']}").shuffle(options)
    problem = with_options(row["Question"], [row[name].strip() for name in options], options.index(GPQA_OPTIONS[0]))
    return problem | {"id": row.get("Record ID"), "rationale": row.get("Explanation")}


def _program(row: Row) -> Row:
    """HumanEval(+), and all code rows of our own layout: tests in the style ``check(function)``, or plain asserts."""
    prompt, tests = row["prompt"], row["test"]
    if row.get("test_style") == "asserts":
        question = prompt if "assert" in prompt else with_tests(prompt, tests)
        return {"id": row["task_id"], "question": question, "answer": row["canonical_solution"], "tests": tests}
    tests = f"{tests}\ncheck({row['entry_point']})\n"
    return {"id": row["task_id"], "question": prompt, "answer": prompt + row["canonical_solution"], "tests": tests}


def with_tests(text: str, tests: str) -> str:
    """A task with the tests that its program must pass, as MBPP shows them: they are the only place that names the function."""
    return f"{text}\nYour code should pass these tests:\n{tests}"


def _mbpp(row: Row) -> Row:
    tests = "\n".join([row.get("test_setup_code") or "", *row["test_list"]]).strip()
    return {"id": row["task_id"], "question": with_tests(row["text"], tests), "answer": row["code"], "tests": tests}


def _taught(row: Row) -> Row:
    """OpenCoder's teaching examples, to learn from: a task, a program and its asserts."""
    return {"id": row["seq_id"], "question": row["instruction"], "answer": row["code"], "tests": "\n".join(row["testcase"])}


def _mbpp_plus(row: Row) -> Row:
    """One assert is shown, as in EvalPlus; the many others are in ``test``."""
    tests = "\n".join([*(row.get("test_imports") or []), row["test"]])
    return {"id": row["task_id"], "question": with_tests(row["prompt"], row["test_list"][0]), "answer": row["code"], "tests": tests}


RUN_UNITTEST = """
import io, unittest
outcome = unittest.TextTestRunner(io.StringIO()).run(unittest.defaultTestLoader.loadTestsFromTestCase(TestCases))
if not (outcome.testsRun and outcome.wasSuccessful()):
    raise AssertionError(str(outcome.failures + outcome.errors))
"""


def _big_code(row: Row) -> Row:
    """BigCodeBench-Instruct: the task in words, unittest cases."""
    answer = row["code_prompt"] + row["canonical_solution"]
    return {"id": row["task_id"], "question": row["instruct_prompt"], "answer": answer, "tests": row["test"] + "\n" + RUN_UNITTEST}


def _text(answer: Any) -> str:
    """27.0 as the hub's numbers come, ``27`` as people write it."""
    return str(int(answer) if isinstance(answer, float) and answer.is_integer() else answer)


OURS = Layout(("question", "answer"), _ours)
PROGRAMS = Layout(("task_id", "prompt", "canonical_solution", "test", "entry_point"), _program)
SOLVED = Layout(("problem", "solution"), _solved)
LETTERED = Layout(("question", "choices", "answerKey"), _lettered)

MATH_SUBJECTS = ("algebra", "counting_and_probability", "geometry", "intermediate_algebra", "number_theory", "prealgebra", "precalculus")
# The 18 that Qwen2.5-Math's evaluation counts; others add anatomy.
STEM_SUBJECTS = (
    *("abstract_algebra", "astronomy", "college_biology", "college_chemistry", "college_computer_science", "college_mathematics"),
    *("college_physics", "computer_security", "conceptual_physics", "electrical_engineering", "elementary_mathematics"),
    *("high_school_biology", "high_school_chemistry", "high_school_computer_science", "high_school_mathematics"),
    *("high_school_physics", "high_school_statistics", "machine_learning"),
)

BENCHMARKS = {
    "gsm8k": Benchmark("openai/gsm8k", {"train": ("train", 7473), "test": ("test", 1319)}, "number", OURS, ("main",)),
    "math": Benchmark("EleutherAI/hendrycks_math", {"train": ("train", 7500), "test": ("test", 5000)}, "math", SOLVED, MATH_SUBJECTS),
    "math500": Benchmark("HuggingFaceH4/MATH-500", {"test": ("test", 500)}, "math", SOLVED),
    "minerva_math": Benchmark("math-ai/minervamath", {"test": ("test", 272)}, "math", OURS),
    "olympiadbench": Benchmark(
        "Hothan/OlympiadBench",
        {"test": ("train", 674)},
        "math",
        Layout(("question", "final_answer"), _olympiad),
        ("OE_TO_maths_en_COMP",),
    ),
    "aime24": Benchmark("HuggingFaceH4/aime_2024", {"test": ("train", 30)}, "math", SOLVED),
    "amc23": Benchmark("math-ai/amc23", {"test": ("test", 40)}, "math", Layout(OURS.columns, _number)),
    "svamp": Benchmark(  # the whole challenge set, as it was published
        "ChilleD/SVAMP", {"test": ("train+test", 1000)}, "number", Layout(("Body", "Question", "Answer"), _svamp)
    ),
    "gpqa_diamond": Benchmark(
        "Idavidrein/gpqa",
        {"test": ("train", 198)},
        "choice",
        Layout(("Question", *GPQA_OPTIONS), _gpqa),
        ("gpqa_diamond",),
        gated=True,
    ),
    "arc_challenge": Benchmark(
        "allenai/ai2_arc",
        {"train": ("train", 1119), "validation": ("validation", 299), "test": ("test", 1172)},
        "choice",
        LETTERED,
        ("ARC-Challenge",),
    ),
    "commonsenseqa": Benchmark(
        "tau/commonsense_qa",
        {"train": ("train", 9741), "validation": ("validation", 1221)},
        "choice",
        LETTERED,
        advice="; the published test rows have no answers, so papers report validation",
    ),
    "mmlu_stem": Benchmark(
        "cais/mmlu", {"test": ("test", 3018)}, "choice", Layout(("question", "choices", "answer"), _mmlu), STEM_SUBJECTS
    ),
    "humaneval": Benchmark("openai/openai_humaneval", {"test": ("test", 164)}, "code", PROGRAMS),
    "humaneval_plus": Benchmark("evalplus/humanevalplus", {"test": ("test", 164)}, "code", PROGRAMS),
    "mbpp": Benchmark(
        "google-research-datasets/mbpp",
        {"train": ("train", 374), "validation": ("validation", 90), "test": ("test", 500)},
        "code",
        Layout(("task_id", "text", "code", "test_list"), _mbpp),
        ("full",),
    ),
    "mbpp_plus": Benchmark(
        "evalplus/mbppplus", {"test": ("test", 378)}, "code", Layout(("task_id", "prompt", "code", "test_list", "test"), _mbpp_plus)
    ),
    "opc_educational": Benchmark(
        "OpenCoder-LLM/opc-sft-stage2",
        {"train": ("train", 118278)},
        "code",
        Layout(("seq_id", "instruction", "code", "testcase"), _taught),
        ("educational_instruct",),
    ),
    **{
        name: Benchmark(
            repository,
            {"test": ("v0.1.4", rows)},
            "code",
            Layout(("task_id", "instruct_prompt", "code_prompt", "canonical_solution", "test"), _big_code),
        )
        for name, repository, rows in (
            ("bigcodebench", "bigcode/bigcodebench", 1140),
            ("bigcodebench_hard", "bigcode/bigcodebench-hard", 148),
        )
    },
}
