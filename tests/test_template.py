"""Boundaries worked by hand: one token, three tokens, a straddling token (design section 4)."""

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from brite_lib.errors import InputError
from brite_lib.template import RationaleTemplate, TemplateFormats


def make(words, boundary, **formats):
    """Tokens are exactly ``words``; longer ones win."""
    vocabulary = {word: i for i, word in enumerate([*words, "<e>"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    pattern = "|".join(sorted(vocabulary, key=len, reverse=True)).replace(".", r"\.")
    core.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    core.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>", pad_token="<e>")
    rules = RationaleTemplate(tokenizer, TemplateFormats(prompt="{question}", boundary=boundary, answer="{answer}", chat=False, **formats))
    return rules, vocabulary


def ids(vocabulary, *words):
    return [vocabulary[word] for word in words]


def test_a_one_token_boundary():
    rules, v = make(["a", "b", "7", "#"], "#")
    cut = rules.split(ids(v, "a", "b", "#", "7", "<e>", "a", "a"))
    assert cut.rationale_ids == ids(v, "a", "b", "#") and cut.answer_ids == ids(v, "7", "<e>")
    assert (cut.rationale, cut.answer, cut.finished, cut.ended) == ("ab", "7", True, True)


def test_a_three_token_boundary():
    rules, v = make(["a", "is", ":", "7", "."], "is:.")
    assert rules.boundary_ids == ids(v, "is", ":", ".")
    cut = rules.split(ids(v, "a", "is", "is", ":", ".", "7"))
    assert cut.rationale_ids == ids(v, "a", "is", "is", ":", ".") and cut.answer_ids == ids(v, "7")
    assert (cut.rationale, cut.answer, cut.finished, cut.ended) == ("ais", "7", True, False)
    part = rules.split(ids(v, "a", "is", ":"))
    assert (part.finished, part.answer, part.rationale_ids) == (False, None, ids(v, "a", "is", ":"))


def test_a_straddling_token_is_unfinished():
    rules, v = make(["a", "#", "#7", "7"], "#")
    cut = rules.split(ids(v, "a", "#7", "<e>"))
    assert not cut.finished and cut.answer is None and cut.rationale_ids == ids(v, "a", "#7", "<e>")


def test_a_boundary_may_begin_inside_a_token():
    rules, v = make(["ais", ":", "7"], "is:")
    cut = rules.split(ids(v, "ais", ":", "7", "<e>"))
    assert cut.finished and cut.rationale == "a" and cut.rationale_ids == ids(v, "ais", ":")


def test_where_the_boundary_begins():
    rules, v = make(["a", "is", ":", "7", "."], "is:.")
    assert rules.boundary_start(ids(v, "a", "is", "is", ":", ".")) == 2
    assert rules.boundary_start(ids(v, "is", ":", ".")) == 0
    rules, v = make(["ais", ":", "7"], "is:")
    assert rules.boundary_start(ids(v, "7", "7", "ais", ":")) == 2  # a token that straddles the beginning is the boundary's


def test_the_end_token_before_the_boundary_is_unfinished():
    rules, v = make(["a", "#", "7"], "#")
    cut = rules.split(ids(v, "a", "<e>", "#", "7"))
    assert not cut.finished and cut.rationale_ids == ids(v, "a", "<e>") and cut.rationale == "a"


def test_the_limit_counts_the_boundary():
    rules, v = make(["a", "#", "7"], "#")
    sampled = ids(v, "a", "a", "#", "7", "<e>")
    assert rules.split(sampled, 3).finished
    cut = rules.split(sampled, 2)
    assert not cut.finished and cut.rationale_ids == ids(v, "a", "a")


def test_the_answer_has_a_limit_of_its_own():
    rules, v = make(["a", "#", "7"], "#")
    sampled = ids(v, "#", "7", "7", "<e>")
    assert rules.split(sampled, 3, 3).ended
    cut = rules.split(sampled, 3, 2)
    assert cut.finished and not cut.ended and cut.answer_ids == ids(v, "7", "7") and cut.answer == "77"


def test_an_empty_answer_is_sampled_but_empty():
    rules, v = make(["a", "#", "7"], "#")
    cut = rules.split(ids(v, "a", "#", "<e>"))
    assert cut.finished and cut.ended and cut.answer == "" and cut.answer_ids == ids(v, "<e>")


def test_the_answer_is_tokenised_on_its_own():
    rules, v = make(["a", "#", "#7", "7"], "#")
    assert rules.rationale_ids("a") + rules.answer_ids("7") == ids(v, "a", "#", "7", "<e>")  # not "#7"


def test_a_written_rationale_ends_at_its_first_boundary_as_a_sampled_one_does():
    rules, v = make(["a", "b", "7", "#"], "#")
    assert rules.rationale_ids("ab") == ids(v, "a", "b", "#")
    assert rules.rationale_ids("ab#7") == ids(v, "a", "b", "#")


def test_a_chat_template_ends_the_turn_with_its_own_token():
    core = Tokenizer(models.WordLevel({"<e>": 0, "<turn>": 1, "x": 2, "u": 3}, unk_token="u"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("<turn>|<e>|."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<e>", additional_special_tokens=["<turn>"])
    tokenizer.chat_template = (
        "{% for m in messages %}<turn>{{ m['content'] }}<turn>{% endfor %}{% if add_generation_prompt %}<turn>{% endif %}"
    )
    rules = RationaleTemplate(tokenizer, TemplateFormats(prompt="{question}", boundary="x", answer="{answer}"))
    assert rules.end_id == 1 and rules.stop_ids == (0, 1)
    assert rules.prompt_ids("x") == [1, 2, 1, 1] and rules.answer_ids("x") == [2, 1]


def test_bad_formats_are_named():
    with pytest.raises(InputError, match=r"template: prompt: must contain \{question\}"):
        TemplateFormats.parse({"prompt": "no question"}, where="template")
    with pytest.raises(InputError, match="boundry.*did you mean 'boundary'"):
        TemplateFormats.parse({"boundry": "#"}, where="template")
    rules, _ = make(["a", "#"], "#")
    with pytest.raises(InputError, match="unknown"):
        RationaleTemplate.load(rules.tokenizer, "chatt", "nowhere")
