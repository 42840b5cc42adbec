"""Numbers that a page quotes from a page of results are the ones that stand there, so that a new run can't leave them behind."""

import re

import pytest

from brite_lib.params import PROJECT_ROOT

DOCS = PROJECT_ROOT / "docs"
NUMBER = re.compile(r"\d+\.\d+")


def section(page: str, heading: str) -> str:
    return re.search(rf"^## {re.escape(heading)}.*?(?=^## |\Z)", (DOCS / page).read_text(encoding="utf-8"), re.M | re.S)[0]


@pytest.mark.parametrize(
    ("text", "source"),
    [
        (section("tour.md", "7 ·"), "results/tiny-all.md"),
        (section("tour.md", "8 ·"), "limits.md"),
        *(
            (sentence, "results/tiny.md")
            for sentence in re.split(r"(?<=\.)\s", section("tour.md", "2 ·"))
            if "results/tiny.md)" in sentence
        ),
    ],
    ids=lambda value: value.split("\n")[0][:40],
)
def test_quoted_numbers_stand_in_the_page_of_results(text, source):
    quoted = set(NUMBER.findall(text))
    assert quoted and not quoted - set(NUMBER.findall((DOCS / source).read_text(encoding="utf-8")))
