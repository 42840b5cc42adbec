"""Distillation: another base model learns from rationales that it did not sample, in its own tokens and never in theirs."""

import enumerable
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_model import build_qwen2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from brite_lib import tiny_base
from brite_lib.errors import InputError
from brite_lib.models import check_vocabulary, load_policy, load_template, save_policy
from brite_lib.params import Experiment, ThetaParams
from brite_lib.problems import load_problems
from brite_lib.rollouts import generate
from brite_lib.sft import rationale_sft, texts_only, training_rows
from brite_lib.stages import plan
from brite_lib.template import RationaleTemplate

BASE, STUDENT = "assets/tiny-base", "assets/tiny-student"
RULES = enumerable.template()
SAMPLED = {"id": "q", "question": "ab", "gold": "a", "finished": True, "correct": True, "answer_text": "a"}
ROW = {**SAMPLED, "rationale": "ba", "prompt_ids": [5, 0, 1], "rationale_ids": [1, 0, 2]}


def permuted(order):
    """The enumerable task's template with its vocabulary in another order."""
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate(order)}, unk_token="^"))
    core.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    core.decoder = decoders.Fuse()
    return RationaleTemplate(PreTrainedTokenizerFast(tokenizer_object=core, eos_token=".", pad_token="^"), RULES.formats)


@settings(deadline=None, derandomize=True)
@given(st.permutations(enumerable.VOCABULARY))
def test_ids_of_another_vocabulary_are_refused_and_texts_are_its_own(order):
    """Whichever tokens changed places: trained on as they are only if they say the same, else one sentence."""
    rules = permuted(order)
    moved = {token for i, token in enumerate(order) if enumerable.VOCABULARY[i] != token}
    if moved & set("ab"):
        with pytest.raises(InputError, match="rationales: row 1: its token ids say .* in the model's tokenizer, not .*retokenise: true"):
            training_rows([ROW], rules)
    (row,) = training_rows(texts_only([ROW]), rules)
    assert rules.decode(row["input_ids"]) == "^abba|a."
    assert [rules.decode([token]) for token, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100] == list("ba|a.")


def test_a_swap_that_no_rationale_shows_is_seen_in_the_question():
    order = ["b", "a", *enumerable.VOCABULARY[2:]]
    row = ROW | {"rationale": "c", "rationale_ids": [4, 2]}
    with pytest.raises(InputError, match="row 2: its token ids say '.ba' in the model's tokenizer, not 'ab'"):
        training_rows([{**row, "prompt_ids": None}, row], permuted(order))


def test_ids_count_where_they_say_the_text():
    """Sampled tokens need not be those that the tokenizer would write, and a text may have been trimmed."""
    assert training_rows([ROW | {"rationale": " b a\n"}], RULES)[0]["input_ids"] == [5, 0, 1, 1, 0, 2, 0, 3]


def test_a_text_that_the_student_cannot_write_is_refused():
    tokenizer = tiny_base.make_template()
    row = {"question": "3+4", "rationale": "three and four", "gold": "7"}
    with pytest.raises(InputError, match="row 1: the model's tokenizer has no tokens for 'three and four'"):
        training_rows([row], tokenizer)


def test_sampled_answers_cannot_be_retokenised():
    with pytest.raises(InputError, match="retokenise trains on y.*, reward_weighted on the tokens of the sampled y"):
        ThetaParams.parse({"retokenise": True, "reward_weighted": True})


def test_a_byte_level_student_learns_from_the_tiny_base_s_samples(tmp_path):
    teacher = load_template(BASE)
    problems = load_problems("toy:easy", "train", 16).to_list()
    rows = generate(load_policy(BASE, device="cpu"), problems, teacher, max_rationale_tokens=32, max_answer_tokens=8).to_list()
    build_qwen2(tmp_path / "qwen2", ["3+4-2-9:+4=7-2=5-9=6 The answer is: 6"], vocabulary=300)
    rules, student = load_template(tmp_path / "qwen2"), load_policy(tmp_path / "qwen2", device="cpu")
    with pytest.raises(InputError, match="retokenise: true"):
        training_rows(rows, rules)
    dataset = training_rows(texts_only(rows), rules)
    finished = [row for row in rows if row["finished"]]
    assert len(dataset) == len(finished) > 0
    for sequence, row in zip(dataset, finished, strict=True):
        cut = sequence["labels"].count(-100)
        assert row["question"] in rules.decode(sequence["input_ids"][:cut])
        assert rules.decode(sequence["input_ids"][cut:]) == rules.completion_text(row["rationale"], row["gold"]) + "<|im_end|>"
    losses = []
    params = ThetaParams.parse({"epochs": 3, "train_batch_size": 8, "learning_rate": 3e-3, "device": "cpu"})
    rationale_sft(student, dataset, rules, params, tmp_path / "checkpoints", lambda step, loss, **_: losses.append(loss))
    assert losses[-1] < losses[0]


def test_models_with_other_tokens_do_not_score_each_other(tmp_path):
    rules = permuted(["b", "a", *enumerable.VOCABULARY[2:]])
    save_policy(enumerable.model(), rules, tmp_path / "other")
    with pytest.raises(InputError, match="reference_model: .*other has another vocabulary than here"):
        check_vocabulary("reference_model", tmp_path / "other", RULES, "here")
    check_vocabulary("reference_model", tmp_path / "other", rules, "here")


def test_the_committed_student_has_tokens_of_its_own():
    student, base = load_template(STUDENT), load_template(BASE)
    assert student.tokenizer.get_vocab() == tiny_base.make_template("characters").tokenizer.get_vocab() != base.tokenizer.get_vocab()
    assert student.tokens(student.rationale_ids("+4=7")) == ["+", "4", "=", "7", "#"]
    assert student.decode(student.prompt_ids("3+4-2-9@3")) == base.decode(base.prompt_ids("3+4-2-9@3"))


def make(**changes):
    values = {"name": "x", "model": "org/model", "student": "org/student", "tasks": [{"name": "toy", "data": "toy:easy"}]}
    return Experiment.parse(values | {"methods": ["student", "distil_sft", "distil_rs", "distil_brite"]} | changes)


def test_the_student_learns_what_theta_would_and_is_scored_by_itself():
    stages = {spec.key.removeprefix("seed0/"): spec for spec in plan(make())}
    evaluations = {f"eval_{name}" for name in ("student", "distil_sft", "distil_rs", "distil_brite")}
    assert set(stages) == {"distil_sft", "rs_sampling", "distil_rs", "brite_psi", "distil_brite", *evaluations}
    for name, source in (("distil_rs", "rs_sampling"), ("distil_brite", "brite_psi")):
        assert stages[name].params.rationales == f"outputs/x/seed0/{source}/rationales.parquet"
        assert stages[source].params.model == "org/model"
    for name in ("distil_sft", "distil_rs", "distil_brite"):
        assert (stages[name].params.model, stages[name].params.retokenise) == ("org/student", True)
        assert stages[f"eval_{name}"].params.model == f"outputs/x/seed0/{name}/model"
    assert {stages[name].params.reference_model for name in evaluations} == {"org/student"}
    assert stages["eval_student"].params.model == "org/student"


def test_with_rounds_the_student_learns_from_the_last_q():
    stages = {spec.key.removeprefix("seed0/"): spec for spec in plan(make(rounds=2, methods=["distil_brite"]))}
    assert set(stages) == {"brite_psi", "brite", "brite_psi_round2", "distil_brite", "eval_distil_brite"}
    assert stages["distil_brite"].params.rationales == "outputs/x/seed0/brite_psi_round2/rationales.parquet"


def test_the_student_s_files_are_sources_of_its_stages_alone():
    stages = {spec.key.removeprefix("seed0/"): spec for spec in plan(make(model=BASE, student=STUDENT))}
    of_student = {key for key, spec in stages.items() if any("tiny-student" in str(path) for path in spec.sources)}
    assert of_student == {key for key in stages if "distil" in key or "student" in key}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"student": ""}, "student: method student needs another base model to train, a directory or hub name"),
        ({"student": "assets/tiny-studnet"}, "student: assets/tiny-studnet: no such model directory"),
        ({"theta": {"retokenise": True}}, "theta: retokenise: is decided by the experiment's methods"),
    ],
)
def test_bad_students_are_one_sentence(changes, sentence):
    with pytest.raises(InputError) as error:
        plan(make(**changes))
    assert sentence in str(error.value) and "\n" not in str(error.value)
