"""Prompts, boundaries and answers in the tokens of each model family of the papers (tests/families.py)."""

import json

import pytest
import torch
from families import FAMILIES, build
from transformers import AutoModelForCausalLM

from brite_lib.errors import InputError
from brite_lib.models import load_policy, load_template, load_tokenizer, save_policy
from brite_lib.template import RationaleTemplate, TemplateFormats

QUESTION, RATIONALE, ANSWER = "Janet has 3 apples.", "She has 3 – all hers.", "42"
TEXTS = [f"{QUESTION}\n{RATIONALE}\n\nThe answer is: {ANSWER}\n", "0 1 2 3 4 5 6 7 8 9", "Let's think step by step, and end with a line."]
END_OF_TURN = {
    "mistral": "</s>", "gemma": "<end_of_turn>", "gemma2": "<end_of_turn>", "llama3": "<|eot_id|>", "qwen2": "<|im_end|>",
    "deepseek-coder": "<|EOT|>", "phi3": "<|end|>",
}  # fmt: skip
# What the last words of a prompt and the first of an assistant are, as each family's format has it.
AFTER_THE_QUESTION = {
    "mistral": " [/INST] She",
    "gemma": "<end_of_turn>\n<start_of_turn>model\nShe",
    "gemma2": "<end_of_turn>\n<start_of_turn>model\nShe",
    "llama3": "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nShe",
    "qwen2": "<|im_end|>\n<|im_start|>assistant\nShe",
    "deepseek-coder": "\n### Response:\nShe",
    "phi3": "<|end|> \n<|assistant|> \nShe",  # its tokenizer puts a space after a special token
}
each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {name: build(family, tmp_path_factory.mktemp(name), TEXTS) for name, family in FAMILIES.items()}


def written(template, ids):
    return template.tokenizer.convert_ids_to_tokens(ids)


@each_family
def test_the_text_of_a_whole_sequence_is_the_one_that_the_model_was_taught(directories, name):
    template = load_template(directories[name])
    ids = template.prompt_ids(QUESTION) + template.rationale_ids(RATIONALE) + template.answer_ids(ANSWER)
    text = template.decode(ids)
    assert text.partition('<answer>".')[2] == f"{AFTER_THE_QUESTION[name]} has 3 – all hers.\nThe answer is: 42{END_OF_TURN[name]}"
    bos = FAMILIES[name].special.get("bos_token")
    assert text.count(bos) == (name != "phi3") if bos else True  # Phi's template has none
    assert template.stop_ids == tuple(sorted({template.end_id, template.tokenizer.eos_token_id}))
    assert "".join(template.tokens(ids)).endswith(" has 3 – all hers.\nThe answer is: 42" + END_OF_TURN[name]) or "�" in text


@each_family
def test_an_answer_has_the_tokens_that_it_has_behind_the_boundary(directories, name):
    """SentencePiece puts a space before a text that stands alone: ' 42' alone would begin with two."""
    template = load_template(directories[name])
    answer = template.answer_ids(ANSWER)
    together = template.tokenizer(f"{RATIONALE}\nThe answer is: {ANSWER}", add_special_tokens=False)["input_ids"]
    assert together[-len(answer) + 1 :] == answer[:-1]
    assert "".join(written(template, answer[:-1])) in ("Ġ42", "▁42")
    cut = template.split(template.rationale_ids(RATIONALE) + answer)
    assert (cut.rationale.lstrip(), cut.answer, cut.finished, cut.ended) == (RATIONALE, ANSWER, True, True)
    assert cut.answer_ids == answer


@each_family
def test_a_saved_model_has_the_same_tokens_and_end(directories, name, tmp_path):
    template = load_template(directories[name])
    again = load_template(save_policy(load_policy(directories[name], device="cpu"), template, tmp_path / "model"))
    text = f"{QUESTION}\n{RATIONALE}"
    assert again.tokenizer(text)["input_ids"] == template.tokenizer(text)["input_ids"]
    assert again.prompt_ids(QUESTION) == template.prompt_ids(QUESTION) and again.answer_ids(ANSWER) == template.answer_ids(ANSWER)
    assert (again.end_id, again.stop_ids, again.pad_id) == (template.end_id, template.stop_ids, template.pad_id)


def test_a_tokenizer_of_another_class_than_its_files_say_keeps_its_spaces(directories):
    """DeepSeek-Coder's files name Llama's class; transformers 5 knows that of the hub's names, but not of a copy on disk."""
    directory = directories["deepseek-coder"]
    assert json.loads((directory / "tokenizer_config.json").read_text())["tokenizer_class"] == "LlamaTokenizerFast"
    tokenizer = load_tokenizer(directory)
    assert tokenizer.decode(tokenizer(QUESTION, add_special_tokens=False)["input_ids"]) == QUESTION


@pytest.mark.parametrize(("name", "reason"), [("gemma", "there is no system role"), ("mistral", "roles must alternate")])
def test_a_system_message_that_the_chat_template_refuses_is_one_sentence(directories, name, reason):
    with pytest.raises(InputError, match=f"^template.system: the tokenizer's chat template refuses it: {reason}"):
        RationaleTemplate(load_tokenizer(directories[name]), TemplateFormats(system="You are wise."))


def test_gemma2_is_computed_with_its_capped_attention(directories):
    """The default attention of transformers leaves the cap out, and silently computes another model."""
    template, directory = load_template(directories["gemma2"]), directories["gemma2"]
    ids = torch.tensor([template.prompt_ids(QUESTION)])

    def logits(model):
        with torch.no_grad():
            for layer in model.model.layers:  # large attention logits, so that the cap matters
                layer.self_attn.q_proj.weight.mul_(300)
            return model(input_ids=ids).logits

    exact = logits(AutoModelForCausalLM.from_pretrained(directory, attn_implementation="eager"))
    default = logits(AutoModelForCausalLM.from_pretrained(directory))
    assert (exact - default).abs().max() > 1e-3, "transformers caps by default now: load_policy need not choose"
    assert torch.equal(logits(load_policy(directory, device="cpu")), exact)
