"""The parts that compute, against Python and by hand: each file without imports is loaded as a module of its own."""

import base64
import json
import random

import pytest

from brite_lib.params import PROJECT_ROOT
from brite_lib.stats import pass_at_k

SOURCES = PROJECT_ROOT / "brite_lib" / "viewer" / "js"
FIELDS = """new Map(Object.entries({
  num_tokens: {kind: "number", get: (row) => row.len}, kl: {kind: "number", get: (row) => row.kl},
  correct: {kind: "bool", get: (row) => row.correct}, source: {kind: "text", get: (row) => row.source},
  text: {kind: "text", get: (row) => row.text}, tags: {kind: "list", get: (row) => row.tags},
  reward: {kind: "empty", get: () => null}, status: {kind: "text", get: (row) => row.correct ? "correct" : "wrong"},
}))"""
ROWS = [
    {"len": 10, "kl": 0.5, "correct": True, "source": "psi", "text": 'so "far" so Good', "tags": ["done", "odd one"]},
    {"len": 300, "kl": None, "correct": False, "source": "brite_psi", "text": "therefore", "tags": []},
    {"len": 301, "kl": 3.0, "correct": None, "source": "", "text": "", "tags": ["odd"]},
]


@pytest.fixture(scope="module")
def module(chromium):
    page = chromium.new_page()

    def call(name, expression):
        encoded = base64.b64encode((SOURCES / f"{name}.js").read_bytes()).decode()
        return page.evaluate(f'async () => {{ const m = await import("data:text/javascript;base64,{encoded}"); return {expression}; }}')

    yield call
    page.close()


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ("", [0, 1, 2]), ("len>300", [2]), ("len>=300", [1, 2]), ("len:100..300", [1]), ("len:..300 len!=10", [1]), ("kl<=0.5", [0]),
        ("kl:null", [1]), ("kl!=null", [0, 2]), ("-kl>1", [0, 1]), ("correct:true", [0]), ("correct:null", [2]), ("-correct:false", [0, 2]),
        ("correct!=true", [1, 2]), ("source:psi", [0]), ("source:*psi", [0, 1]), ("source:psi,brite_psi", [0, 1]), ("source!=psi", [1, 2]),
        ("source:null", [2]), ('"so good"', [0]), ('text:"\\"far\\""', [0]), ("text:there,good", [0, 1]), ("tag:done", [0]),
        ('tag:"odd one"', [0]), ("tag:odd*", [0, 2]), ("tag:null", [1]), ("correct:true kl<1 text:far", [0]), ("len>300 kl<1", []),
        ("a:b", "There is no column"), ("lenn>3", 'did you mean "len"?'), ("len>", 'A value is missing after "len>"'),
        ("len>many", '"len" is a number, and "many" is none'), ("correct:maybe", '"correct" is true, false or null'),
        ("len > 300", "without spaces, as in len>5"), ("kl <1", "without spaces"), ("so > far", []), ('"or" so', []), ("SO", [0]),
        ("correct:true or kl>1", 'a comma is "or"'), ("NOT correct:true", 'a minus is "not"'), ("is:wrongg", 'There is no status "wrongg"'),
        ("is:Wrong,correct", [0, 1, 2]), ("is:wro*", [1, 2]), ("reward:null", [0, 1, 2]), ("reward>1", 'The column "reward" is empty'),
        ("source>3", '"source" is text'), ('"open', "A closing quote is missing"), ("-", "There is nothing after"),
    ],
)  # fmt: skip
def test_queries(module, query, rows):
    found = module(
        "query",
        f"(() => {{ try {{ const test = m.parseQuery({json.dumps(query)}, {FIELDS}); "
        f"return {json.dumps(ROWS)}.flatMap((row, i) => test(row) ? [i] : []); }} catch (error) {{ return error.message; }} }})()",
    )
    assert found == rows if isinstance(rows, list) else rows in found


def test_differences_give_both_texts_back_and_are_shortest(module):
    rng = random.Random(0)
    pairs = [[" ".join(rng.choices("abcde", k=rng.randrange(12))) for _ in "ab"] for _ in range(300)]
    for (a, b), parts in zip(pairs, module("diff", f"{json.dumps(pairs)}.map(([a, b]) => m.wordDiff(a, b))"), strict=True):
        assert "".join(part["text"] for part in parts if part["kind"] != "b") == a
        assert "".join(part["text"] for part in parts if part["kind"] != "a") == b
    assert module("diff", "m.wordDiff('So 3 plus 4 is 7.', 'So 3 + 4 is 8.')") == [
        {"kind": "same", "text": "So 3 "}, {"kind": "a", "text": "plus"}, {"kind": "b", "text": "+"}, {"kind": "same", "text": " 4 is "},
        {"kind": "a", "text": "7"}, {"kind": "b", "text": "8"}, {"kind": "same", "text": "."},
    ]  # fmt: skip


def test_pass_at_k_is_that_of_stats(module):
    cases = [(n, c, k) for n in (1, 2, 5, 64, 1000) for c in {0, 1, n // 2, n} if c <= n for k in {1, 2, n} if k <= n]
    for (n, c, k), value in zip(cases, module("data", f"{json.dumps(cases)}.map((x) => m.passAtK(...x))"), strict=True):
        assert value == pytest.approx(float(pass_at_k(n, c, k)), abs=1e-9), (n, c, k)
