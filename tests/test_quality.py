"""Measures of rationales against values worked by hand."""

import math

import enumerable
import pytest

from brite_lib.likelihood import score
from brite_lib.problems import toy
from brite_lib.quality import agreement, answer_leak, perplexity, repeated_ngrams, self_evaluation, steps, summary, with_log_probs, words

GSM8K = "Natalia sold 48/2 = 24 clips in May.\nNatalia sold 48+24 = 72 clips altogether in April and May."
GSM8K_QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many in all?"


def test_perplexity_weighs_tokens_or_rationales():
    # two tokens of probability 1/2, and one of 1/8: 5 log 2 over 3 tokens; means of log 2 and 3 log 2
    half, eighth = math.log(1 / 2), math.log(1 / 8)
    found = perplexity([[half, half], [eighth]])
    assert found["perplexity"] == pytest.approx(2 ** (5 / 3))
    assert found["perplexity_per_rationale"] == pytest.approx(2**2)
    assert found["nats"] == pytest.approx(2.5 * math.log(2))
    assert perplexity([[half] * 7])["perplexity"] == pytest.approx(2)


def test_words_and_steps():
    assert words("+4=7-2=5") == ["+", "4", "=", "7", "-", "2", "=", "5"]
    assert words("She paid $1,234.50.") == ["She", "paid", "$", "1,234.50", "."]
    for text, count in [
        ("+4=7-2=5-9=6", 3), ("=6", 1), ("?", 1), ("", 0), (GSM8K, 2),
        ("First, a. Then b! So c?\n\nDone", 4), ("2 + 2 = 4 ; 4 + 1 = 5 ;", 2), ("It costs 3.50 today", 1), ("if x >= 2 and x == y", 1),
    ]:  # fmt: skip
        assert steps(text) == count, text


def test_repeated_ngrams():
    assert repeated_ngrams("a b c") == 0
    assert repeated_ngrams("a b c d e f") == 0
    assert repeated_ngrams("a a a a a a") == pytest.approx(2 / 3)  # three 4-grams, one kind
    assert repeated_ngrams("so it is so it is so it is") == 3 / 6  # six: three kinds, each twice
    assert repeated_ngrams("so it is so it is", n=3) == 1 / 4


@pytest.mark.parametrize(
    ("question", "rationale", "answer", "leaks"),
    [
        ("3+4-2-9", "=6", "6", True),
        ("3+4-2-9", "=4", "4", True),  # asserted, so it does not matter that the question has a 4
        ("3+4-2-9", "+4=7-2=5-9=6", "6", False),
        ("3+4-2-9", "+4=7-2=5-9=6", "4", False),  # mentioned, but copied from the question
        ("3+4-2-9", "?", "6", False),
        (GSM8K_QUESTION, GSM8K, "72", False),
        (GSM8K_QUESTION, "The answer is 72. " + GSM8K, "72", True),
        (GSM8K_QUESTION, "She sold 72 clips, since 48/2 = 24 and 48+24 = 72.", "72", True),
        (GSM8K_QUESTION, "She sold 48 clips in April.\n" + GSM8K, "48", False),
        (GSM8K_QUESTION, "\\boxed{48} because 40+8 = 48", "48", True),
        ("How much?", "$1,234 in all; 1000+234 = 1,234", "1234", True),
        ("How much?", "12.5 / 5 = 2.5", "2", False),  # neither 12.5 nor 2.5 mentions 2
        ("Solve.", "Let x = 7. Check: 2*7 = 14", "7", True),  # an equation without a calculation derives nothing
        ("Which?", "A bird can fly. So it is A.", "A", False),
        ("Which?", "The answer is A. Birds can fly.", "A", True),
        ("Capital?", "Paris is the capital. It is large.", "Paris", True),
        ("Is Paris large?", "Paris is the capital. It is large.", "Paris", False),
        ("x", "anything", None, None),
    ],
)
def test_answer_leak(question, rationale, answer, leaks):
    assert answer_leak(question, rationale, answer) is leaks


@pytest.mark.parametrize(
    ("rationale", "answer", "agrees"),
    [
        ("+4=7-2=5-9=6", "6", True),
        ("+4=7-2=5-9=6", "756", True),  # the last three totals
        ("+4=7-2=5-9=6", "56", True),
        ("+4=7-2=5-9=6", "75", False),
        ("=6", "5", False),
        ("?", "5", False),
        (GSM8K, "72", True),
        (GSM8K, "24", False),
        ("That is 48+24 = 72 clips in 2 months", "72.0", True),
        ("It costs $1,234.50", "1234.5", True),
        ("3 - 8 = −5", "-5", True),
        ("so 7-5", "-5", False),
        ("= \\boxed{12}", "12", True),
        ("so it flies", "B", None),
        ("3 = 3", "\\frac{1}{2}", None),
        ("3 = 3", None, None),
    ],
)
def test_agreement(rationale, answer, agrees):
    assert agreement(rationale, answer) is agrees


def row(rationale, prediction=None, **fields):
    return {"id": "p", "question": "3+4-2-9", "gold": "6", "rationale": rationale, "prediction": prediction, "finished": True, **fields}


def test_summary_of_a_table_by_hand():
    rows = [
        row("+4=7-2=5-9=6", "6", logp_theta=[math.log(1 / 2)] * 4),
        row("=6", "6", logp_theta=[math.log(1 / 4)]),
        row("?", None, answer_text="no number", logp_theta=[math.log(1 / 8)]),  # no answer was found: not judged
        row("+4=7-2", None, finished=False, logp_theta=[]),
    ]
    assert summary(rows) == {
        "quality/rationales": 3, "quality/words": pytest.approx((12 + 2 + 1) / 3), "quality/steps": pytest.approx(5 / 3),
        "quality/repeated_4grams": 0, "quality/answer_leak": 0.5, "quality/answer_leak_judged": 2, "quality/agreement": 1,
        "quality/agreement_judged": 2, "quality/tokens": 2, "quality/perplexity": pytest.approx(2 ** (9 / 6)),
        "quality/perplexity_per_rationale": pytest.approx(2 ** (6 / 3)), "quality/nats": pytest.approx(3 * math.log(2)),
    }  # fmt: skip


def test_rationales_of_people_have_the_gold_answer_and_no_tokens():
    problems = toy.toy_problems("medium", "train", limit=200)
    rows = [{"id": p.id, "question": p.question, "gold": p.answer, "rationale": p.rationale} for p in problems]
    found = summary(rows)
    careful = sum(toy.style_of(p.question, p.rationale) == "careful" for p in problems) / 200
    assert 0.3 < careful < 0.7 and found["quality/rationales"] == 200
    # a skipping one says one total of three; this is no answer, and agrees with none
    agrees = sum(toy.style_of(p.question, p.rationale) == "careful" or int(p.answer) < 10 for p in problems) / 200  # 001 is 1
    assert (found["quality/answer_leak"], found["quality/agreement"]) == (0, agrees)
    assert found["quality/steps"] == pytest.approx(1 + 7 * careful)  # eight totals, or one
    assert "quality/perplexity" not in found
    easy = toy.toy_problems("easy", "train", limit=200)
    found = summary([{"id": p.id, "question": p.question, "gold": p.answer, "rationale": p.rationale} for p in easy])
    skipping = sum(toy.style_of(p.question, p.rationale) == "skipping" for p in easy) / 200
    assert found["quality/answer_leak"] == skipping > 0.3 and found["quality/agreement"] == 1


def test_an_empty_table_says_so():
    assert summary([]) == summary([row("x", finished=False)]) == {"quality/rationales": 0}
    assert self_evaluation([row("x", correct=None, logp_answer=-1.0)]) == {"self_evaluation/judged": 0}


def test_written_rationales_are_scored_with_their_boundary():
    theta, template = enumerable.model(), enumerable.template()
    rows = [{"question": "a", "gold": "a", "rationale": "ab", "rationale_ids": None}, {"question": "bb", "gold": "a", "rationale": "b"}]
    scored = with_log_probs(rows, template, theta)
    expected = score(theta, [template.prompt_ids("a"), template.prompt_ids("bb")], [[0, 1, 2], [1, 2]], [[], []]).rationale
    assert [row["logp_theta"] for row in scored] == [pytest.approx(values.tolist()) for values in expected]
    assert summary(scored)["quality/tokens"] == 2.5
    stored = [{**row, "logp_theta": [-1.0]} for row in rows]
    assert with_log_probs(stored, template, theta) == stored


def test_self_evaluation_by_hand():
    likelihoods = [(True, 0.9), (True, 0.3), (False, 0.3), (False, 0.1)]
    rows = [row("z", id=f"p{i}", correct=correct, logp_answer=math.log(p)) for i, (correct, p) in enumerate(likelihoods)]
    rows += [row("z", correct=None, logp_answer=-1.0), row("z", correct=False, logp_answer=None), row("z", correct=False, finished=False)]
    found = self_evaluation(rows, resamples=200)
    assert found["self_evaluation/auroc"] == 3.5 / 4  # one pair of the four is a tie
    assert found["self_evaluation/low"] <= 3.5 / 4 <= found["self_evaluation/high"] == 1
    # bins: 0.9 with 1 of 1 right, 0.3 with 1 of 2, 0.1 with 0 of 1
    assert found["self_evaluation/ece"] == pytest.approx((0.1 + 2 * 0.2 + 0.1) / 4)
    assert found["self_evaluation/judged"] == 4


@pytest.mark.parametrize("text", ["= 7 " * 25_000, "1=" * 50_000, "x = " * 25_000, "####" * 25_000, "answer " * 15_000, "1. " * 30_000])
def test_a_model_that_repeats_itself_is_judged_in_linear_time(text):
    """100,000 characters, of which each measure takes milliseconds; quadratic ones took minutes, and the test would not end."""
    assert isinstance(answer_leak("q", text, "7"), bool) and isinstance(agreement(text, "7"), bool)
    assert steps(text) > 0 and repeated_ngrams(text) > 0.99
