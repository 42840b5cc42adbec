"""Answers of kind ``code``: a program cut out of a text, and many programs judged at once."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from brite_lib.sandbox.isolation import best_way
from brite_lib.sandbox.run import run_tests

# A fenced block, closed or the text's last; the language decides whether it is one of ours.
FENCED = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)", re.MULTILINE)
MEMORY_MB = 4096  # as EvalPlus allows


@dataclass
class Settings:
    """How this process judges programs where nobody says it; a stage sets them when it starts."""

    seconds: float = 10.0
    i_understand_the_risk: bool = False


SETTINGS = Settings()


def prepare(seconds: float, i_understand_the_risk: bool) -> None:
    """Set how this process judges programs.

    Raises:
        InputError: if it cannot, because nothing isolates them here.
    """
    SETTINGS.seconds, SETTINGS.i_understand_the_risk = seconds, i_understand_the_risk
    best_way(i_understand_the_risk)


def extract_program(text: str) -> str | None:
    """The last block fenced as Python, else the last one without a language, else the whole text; None if that is blank.

    Without a block fenced as Python, a first bare fence of an odd number closes a block that the text began in (a template's boundary
    opened it): then the program stands before it.
    """
    blocks = [(language.lower(), code) for language, code in FENCED.findall(text)]
    ours = [code for language, code in blocks if language in ("python", "py", "python3")]
    fences = list(FENCE.finditer(text))
    if not ours and len(fences) % 2 and not fences[0][1]:
        ours = [text[: fences[0].start()]]
    ours = ours or [code for language, code in blocks if not language]
    program = ours[-1] if ours else text
    return program if program.strip() else None


def whole_program(program: str, question: str, tests: str) -> str:
    """The program, or question and program where the question is code that it continues.

    It is if the tests end in ``check(function)``, the question defines that function and the program does not (HumanEval). A
    body that lost the indentation of its first line gets it back.
    """
    called = re.search(r"^check\((\w+)\)\s*\Z", tests, re.MULTILINE)
    defines = re.compile(rf"^(?:async[ \t]+)?def[ \t]+{called[1]}\b|^{called[1]}[ \t]*=", re.MULTILINE) if called else None
    if defines is None or defines.search(program) or not defines.search(question):
        return program
    body = program.lstrip("\r\n")
    return f"{question.rstrip()}\n{body if body[:1] in (' ', chr(9)) else '    ' + body}"


def judge_programs(pairs: Sequence[tuple[str, str]], workers: int, timeout: float) -> dict[tuple[str, str], bool | None]:
    """The verdict on each (program, tests), ``workers`` at a time: None where the sandbox broke.

    Raises:
        InputError: if nothing isolates programs here, or tests are empty.
    """

    def judged(pair: tuple[str, str]) -> bool | None:
        verdict = run_tests(*pair, timeout, MEMORY_MB, SETTINGS.i_understand_the_risk)
        return None if verdict.status == "broken" else verdict.passed

    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(pairs, pool.map(judged, pairs), strict=True))
