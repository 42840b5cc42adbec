"""The embedded task and base model: what it writes by hand, what the base model is trained on, what is committed."""

import json
import random
from collections import Counter

import pytest
from transformers import AutoTokenizer

from brite_lib import tiny_base
from brite_lib.execute import execute
from brite_lib.models import load_policy
from brite_lib.params import PROJECT_ROOT, TinyBaseParams
from brite_lib.problems import toy
from brite_lib.template import RationaleTemplate

COMMITTED = PROJECT_ROOT / "assets" / "tiny-base"
EVERY_TOKEN = "3+4-2-9@3:+4=7-2=5-9=6#756<hint><retry><judge><accept><reject>?=0"


@pytest.fixture(scope="module")
def template():
    return tiny_base.make_template()


@pytest.fixture(scope="module", params=["skills", "habits"])
def sequences(request, template):
    rows = tiny_base.training_sequences(template, 4000, request.param, seed=1)
    return [(row["input_ids"], row["labels"]) for row in rows]


def text(template, ids):
    return "".join(template.tokens(ids))


def test_answers_and_rationales_worked_by_hand():
    assert toy.totals("3+4-2-9") == [7, 5, 6]
    assert (toy.answer_of("3+4-2-9"), toy.answer_of("3+4-2-9@3")) == ("6", "756")
    assert (toy.answer_of("0-1-9+0"), toy.answer_of("9+9+9-8-1@3")) == ("0", "798")
    assert toy.write_rationale("3+4-2-9", "careful") == "+4=7-2=5-9=6"
    assert toy.write_rationale("3+4-2-9@3", "careful") == "+4=7-2=5-9=6"
    assert toy.write_rationale("3+4-2-9", "skipping") == "=6"
    assert toy.write_rationale("3+4-2-9", "guessing") == "?"


@pytest.mark.parametrize(
    ("rationale", "style"),
    [
        ("+4=7-2=5-9=6", "careful"),
        ("+4=1-2=2-9=3", "careful"),  # wrong, but written out
        ("+4=7-2=5", "other"),  # a step is missing
        ("+4=7-2=5-9=6-0=6", "other"),
        ("+4=7-2=5-9=6?", "other"),
        ("=6", "skipping"),
        ("=66", "other"),
        ("?", "guessing"),
        ("", "other"),
    ],
)
def test_a_style_is_told_by_its_shape(rationale, style):
    assert toy.style_of("3+4-2-9", rationale) == style


@pytest.mark.parametrize("level", toy.LEVELS)
def test_levels_splits_and_careful_share(level):
    chosen = toy.LEVELS[level]
    problems = {split: toy.toy_problems(level, split, limit=300) for split in toy.SPLITS}
    questions = {split: {problem.question for problem in rows} for split, rows in problems.items()}
    assert not questions["train"] & questions["validation"] and not questions["test"] & (questions["train"] | questions["validation"])
    for split, rows in problems.items():
        assert len(questions[split]) == len({problem.id for problem in rows}) == 300
        for problem in rows:
            assert toy.split_of(problem.question) == split
            assert chosen.shortest <= len(toy.totals(problem.question)) <= chosen.longest
            assert len(problem.answer) == chosen.report and problem.answer == toy.answer_of(problem.question)
    assert toy.careful_share(3) == toy.careful_share(5) == 0.5 > toy.careful_share(6) > toy.careful_share(9)


def test_bad_names_and_limits_are_refused():
    for arguments in (("esay", "train"), ("easy", "dev"), ("easy", "train", 10, "nobody"), ("easy", "train", 5001)):
        with pytest.raises(ValueError, match="unknown|at most 5000"):
            toy.toy_problems(*arguments)


def test_one_answer_in_twenty_is_noise():
    rng, n = random.Random(0), 20_000
    wrong = [answer for _ in range(n) if (answer := tiny_base.noisy_answer("3+4-2-9", rng)) != "6"]
    assert len(wrong) / n == pytest.approx(toy.ANSWER_NOISE, abs=0.006)
    assert set(wrong) == set("012345789")
    assert all(len(tiny_base.wrong_answer("756", rng)) == 3 for _ in range(10))


def test_formats_for_later_work_are_ten_to_fifteen_percent(template, sequences):
    prompts = [text(template, [i for i, label in zip(ids, labels, strict=True) if label == -100]) for ids, labels in sequences]
    marks = Counter(next((mark for mark in ("<hint>", "<retry>", "<judge>") if mark in prompt), "plain") for prompt in prompts)
    shares = {mark: count / len(prompts) for mark, count in marks.items()}
    assert 0.10 <= 1 - shares["plain"] <= 0.15
    assert all(shares[mark] == pytest.approx(tiny_base.FORMAT_SHARE, abs=0.012) for mark in ("<hint>", "<retry>", "<judge>"))


def test_the_loss_is_on_completions_only_and_on_training_questions_only(template, sequences):
    for ids, labels in sequences[:500]:
        cut = next(i for i, label in enumerate(labels) if label != -100)
        assert labels == [-100] * cut + ids[cut:]
        assert ids[0] == template.tokenizer.bos_token_id and ids[-1] == template.end_id
        assert template.tokenizer.unk_token_id not in ids
        prompt, completion = text(template, ids[1:cut]), text(template, ids[cut:-1])
        question = prompt.partition("<hint>")[0].partition(":")[0]
        assert toy.split_of(question) == "train"
        if "<judge>" in prompt:
            assert completion in ("<accept>", "<reject>")
            shown = prompt.partition("#")[2].removesuffix("<judge>")
            assert (completion == "<accept>") == (shown == toy.answer_of(question))
        else:
            rationale, _, answer = completion.partition("#")
            assert rationale == toy.write_rationale(question, toy.style_of(question, rationale))
            assert len(answer) == len(toy.answer_of(question))
            assert "<hint>" not in prompt or prompt == f"{question}<hint>{toy.answer_of(question)}:"


def test_training_sequences_depend_on_the_seed_and_the_phase(template):
    first, again, other, phase = (
        list(tiny_base.training_sequences(template, 20, phase, seed)["input_ids"])
        for phase, seed in (("skills", 0), ("skills", 0), ("skills", 1), ("habits", 0))
    )
    assert first == again and first != other and first != phase


def test_an_operation_and_a_result_are_one_token_each(template):
    assert template.tokens(template.prompt_ids("3+4-2-9@3")) == ["<bos>", "3", "+4", "-2", "-9", "@3", ":"]
    assert template.tokens(template.rationale_ids("+4=7-2=5")) == ["+4", "=7", "-2", "=5", "#"]
    assert template.tokens(template.answer_ids("756")) == ["7", "5", "6", "<eos>"]
    assert template.tokens(template.prompt_ids("3+4", hint="7")) == ["<bos>", "3", "+4", "<hint>", "7", ":"]
    assert template.tokens(template.prompt_ids("3+4", rejected=["?#1"])) == ["<bos>", "3", "+4", ":", "?", "#", "1", "<retry>"]


def test_accuracy_by_style():
    rows = [
        {"question": "3+4", "rationale": rationale, "finished": finished, "correct": correct}
        for rationale, finished, correct in (("?", True, False), ("?", True, True), ("+4=7", True, True), ("+4", False, False))
    ]
    assert tiny_base.accuracy_by_style(rows) == {
        "careful": {"share": 0.25, "correct": 1.0},
        "guessing": {"share": 0.5, "correct": 0.5},
        "unfinished": {"share": 0.25, "correct": 0.0},
    }


def test_the_committed_tokenizer_is_the_one_that_the_code_makes(template):
    tokenizer = AutoTokenizer.from_pretrained(COMMITTED)
    assert tokenizer(EVERY_TOKEN)["input_ids"] == template.tokenizer(EVERY_TOKEN)["input_ids"]
    assert tokenizer.get_vocab() == template.tokenizer.get_vocab() and tokenizer.unk_token_id not in tokenizer(EVERY_TOKEN)["input_ids"]
    assert tokenizer.decode(tokenizer(EVERY_TOKEN)["input_ids"][1:]) == EVERY_TOKEN
    assert RationaleTemplate.load(tokenizer, "auto", COMMITTED).formats == RationaleTemplate(tokenizer).formats == tiny_base.FORMATS


def test_the_committed_model_is_small_safe_and_as_its_record_says():
    files = [file for file in COMMITTED.rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 2 * 2**20
    assert {file.suffix for file in files} == {".safetensors", ".json"}
    model = load_policy(COMMITTED)
    assert type(model).__name__ == "LlamaForCausalLM"
    assert sum(parameter.numel() for parameter in model.parameters()) < 1_000_000
    metrics = json.loads((PROJECT_ROOT / "docs" / "results" / "tiny-base.json").read_text())["metrics"]
    assert metrics["easy/careful/correct"] >= 0.85 and 0.35 <= metrics["easy/pass@1"] <= 0.60


def test_the_notebook_itself(tmp_path):
    assert TinyBaseParams.parse({"fast": True}).skill_steps < TinyBaseParams.parse({}).skill_steps
    notebook = PROJECT_ROOT / "notebooks" / "00_tiny_base.ipynb"
    error = execute(notebook, tmp_path / "notebook.ipynb", {"fast": True, "output_dir": str(tmp_path)})
    assert error is None
    record = json.loads((tmp_path / "stage.json").read_text())
    assert record["status"] == "finished" and record["tokens_trained"] > 0 and 0 <= record["metrics"]["easy/pass@1"] <= 1
    assert load_policy(tmp_path / "model").config.hidden_size == record["params"]["hidden_size"] == 48
    losses = [json.loads(line)["loss"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 200 and sum(losses[-20:]) < 0.7 * sum(losses[:20])
