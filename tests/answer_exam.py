"""The answer-equivalence exam: its cases, and what the verifier says of them.

    python tests/answer_exam.py          # the agreement and every disagreement, as docs/verifiers.md has them

``answer_exam.jsonl`` has a text or answer, the gold answer, the kind, the expected verdict and, where one may argue, why.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from brite_lib.verify import extract_answer, verify_batch

FILE = Path(__file__).with_name("answer_exam.jsonl")


def cases() -> list[dict[str, Any]]:
    """The rows of the exam: category, kind, prediction, gold, verdict, and in some choices and why."""
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]


def verdicts(rows: list[dict[str, Any]], timeout: float = 20.0) -> list[bool | None]:
    """The verifier's verdict on each row: the answer is extracted, then compared."""
    found: list[bool | None] = [None] * len(rows)
    for kind in dict.fromkeys(row["kind"] for row in rows):
        places = [i for i, row in enumerate(rows) if row["kind"] == kind]
        choices = [rows[i].get("choices") for i in places]
        answers = [extract_answer(rows[i]["prediction"], kind, options) for i, options in zip(places, choices, strict=True)]
        judged = verify_batch(answers, [rows[i]["gold"] for i in places], kind, workers=2, timeout=timeout, choices=choices)
        for i, verdict in zip(places, judged, strict=True):
            found[i] = verdict
    return found


def report(rows: list[dict[str, Any]], found: list[bool | None]) -> str:
    """The exam's result in Markdown."""
    right = [row["verdict"] is verdict for row, verdict in zip(rows, found, strict=True)]
    total, hits = Counter(row["category"] for row in rows), Counter(row["category"] for row, hit in zip(rows, right, strict=True) if hit)
    lines = [f"{sum(right)} of {len(rows)} verdicts agree ({100 * sum(right) / len(rows):.1f} %).", ""]
    lines += ["| category | cases | agree |", "|---|---|---|"]
    lines += [f"| {category} | {count} | {hits[category]} |" for category, count in total.items()]
    lines += ["", "Disagreements: " + ("none." if all(right) else ""), ""]
    for row, verdict, hit in zip(rows, found, right, strict=True):
        if not hit:
            why = f" ({row['why']})" if "why" in row else ""
            lines.append(f"- {row['kind']}: `{row['prediction']}` for `{row['gold']}`: {verdict}, expected {row['verdict']}{why}")
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    exam = cases()
    answer = verdicts(exam)
    print(report(exam, answer))
    sys.exit(sum(row["verdict"] is verdict for row, verdict in zip(exam, answer, strict=True)) < 0.98 * len(exam))
