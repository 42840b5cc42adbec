"""The embedded base model: a tiny Llama trained from scratch on the toy task (notebooks/00_tiny_base.ipynb).

Two phases, as with large models. *Skills*: mostly careful rationales, so that it is right when it does think.
*Habits*: the mixture of styles it shall have, so that it seldom thinks where chains are long, with some of the first
phase's practice mixed in. In both, about one
sequence in eight is of a format for later work: the answer shown as a hint (STaR), rejected attempts before a retry
(DRR), a verdict on an answer (DRR). Loss on completions only.
"""

import random
from typing import Any, Literal

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from brite_lib.problems import toy
from brite_lib.rollouts import sample, sample_seed
from brite_lib.template import RationaleTemplate, TemplateFormats

SPECIAL = ["<pad>", "<bos>", "<eos>", "<unk>", "<hint>", "<retry>", "<judge>", "<accept>", "<reject>"]
FORMATS = TemplateFormats(
    prompt="{question}:",
    hint_prompt="{question}<hint>{answer}:",
    retry_prompt="{question}:{attempts}",
    attempt="{completion}<retry>",
    judge_prompt="{question}:{completion}<judge>",
    verdicts=("<accept>", "<reject>"),
    boundary="#",
    answer="{answer}",
    chat=False,
)
FORMAT_SHARE = 0.045  # of each of the three formats
SKILL_CAREFUL_SHARE = 0.9
REFRESHER_SHARE = 0.25  # of the second phase: long chains with one total, careful as in the first, so that the skill stays


def make_template(tokens: Literal["operations", "characters"] = "operations") -> RationaleTemplate:
    """Tokenizer with the toy's formats: an operation such as ``+4`` and a result such as ``=7`` are one token, or two characters."""
    signed = [f"{sign}{digit}" for sign in "+-=" for digit in range(10)] + ["@3"]
    words = [*"0123456789", *(signed if tokens == "operations" else "+-=@"), "?", "#", ":"]
    core = Tokenizer(models.WordLevel({token: i for i, token in enumerate([*SPECIAL, *words])}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[+\-=@]?\d|." if tokens == "operations" else "."), "isolated")
    core.decoder = decoders.Fuse()  # no spaces between tokens
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", SPECIAL.index("<bos>"))])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=SPECIAL[4:], clean_up_tokenization_spaces=False,
    )  # fmt: skip
    return RationaleTemplate(tokenizer, FORMATS)


def make_model(template: RationaleTemplate, hidden_size: int, layers: int, seed: int) -> LlamaForCausalLM:
    """A randomly initialised Llama of the embedded shape."""
    torch.manual_seed(seed)
    tokenizer = template.tokenizer
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=hidden_size, intermediate_size=2 * hidden_size, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4,
            attention_bias=True, max_position_embeddings=128, tie_word_embeddings=True, initializer_range=0.05,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def training_sequences(template: RationaleTemplate, count: int, phase: str, seed: int) -> Dataset:
    """``count`` sequences of a phase (``skills`` or ``habits``) with ``input_ids`` and ``labels`` (-100 on prompts)."""
    rng = random.Random(f"tiny-base-{phase}-{seed}")
    rows = [_sequence(template, rng, phase) for _ in range(count)]
    return Dataset.from_list([{"input_ids": prompt + ids, "labels": [-100] * len(prompt) + ids} for prompt, ids in rows])


def noisy_answer(question: str, rng: random.Random) -> str:
    """The right answer, except for a share of :data:`toy.ANSWER_NOISE` replaced at random."""
    answer = toy.answer_of(question)
    return wrong_answer(answer, rng) if rng.random() < toy.ANSWER_NOISE else answer


def wrong_answer(answer: str, rng: random.Random) -> str:
    """A random answer of the same length that is not the given one."""
    while (drawn := "".join(rng.choice("0123456789") for _ in answer)) == answer:
        pass
    return drawn


def _sequence(template: RationaleTemplate, rng: random.Random, phase: str) -> tuple[list[int], list[int]]:
    if phase == "habits" and rng.random() < REFRESHER_SHARE:
        phase = "refresher"
    question = _training_question(rng, phase)
    format_number = int(rng.random() / FORMAT_SHARE)  # 0, 1, 2: a format for later work; else a plain problem
    style = _style(rng, len(toy.totals(question)), phase if format_number > 2 else "formats")
    rationale, answer = toy.write_rationale(question, style), noisy_answer(question, rng)
    if format_number == 2:
        right = rng.random() < 0.5
        shown = toy.answer_of(question) if right else wrong_answer(toy.answer_of(question), rng)
        return template.judge_prompt_ids(question, template.completion_text(rationale, shown)), template.verdict_ids(right)
    completion = template.rationale_ids(rationale) + template.answer_ids(answer)
    if format_number == 0:
        return template.prompt_ids(question, hint=toy.answer_of(question)), completion
    if format_number == 1:
        return template.prompt_ids(question, rejected=_rejected(template, question, rng)), completion
    return template.prompt_ids(question), completion


def _rejected(template: RationaleTemplate, question: str, rng: random.Random) -> list[str]:
    attempts: list[str] = []
    for _ in range(rng.randint(1, 2)):
        style: toy.Style = rng.choice(("skipping", "guessing"))
        wrong = wrong_answer(toy.answer_of(question), rng)
        attempts.append(template.completion_text(f"={wrong[-1]}" if style == "skipping" else "?", wrong))
    return attempts


def _training_question(rng: random.Random, phase: str) -> str:
    while True:
        if phase == "skills":
            question = toy.make_question(rng, rng.randint(3, toy.LONGEST), rng.choice((1, 3)))
        elif phase == "refresher":
            question = toy.make_question(rng, rng.randint(6, toy.LONGEST), 1)
        else:
            question = toy.random_question(rng, rng.choice(list(toy.LEVELS)))
        if toy.split_of(question) == "train":
            return question


def _style(rng: random.Random, steps: int, phase: str) -> toy.Style:
    careful = {"habits": toy.careful_share(steps), "formats": 1.0}.get(phase, SKILL_CAREFUL_SHARE)
    return rng.choices(toy.STYLES, [careful, (1 - careful) / 2, (1 - careful) / 2])[0]


def accuracy_by_style(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Share and accuracy of each style among sampled rows of a rationale table."""
    groups: dict[str, list[bool]] = {}
    for row in rows:
        groups.setdefault(toy.style_of(row["question"], row["rationale"]) if row["finished"] else "unfinished", []).append(row["correct"])
    return {style: {"share": len(group) / len(rows), "correct": sum(group) / len(group)} for style, group in sorted(groups.items())}


def accuracy_by_format(model: nn.Module, template: RationaleTemplate, problems: list[dict[str, Any]], seed: int = 0) -> dict[str, float]:
    """Accuracy at temperature 1 of the formats for later work: with a hint, after rejected attempts, of verdicts.

    Half of the answers to be judged are right; chance is 0.5 there.
    """
    rng = random.Random(seed)
    prompts, wanted = {"hint": [], "retry": [], "judge": []}, []
    for problem in problems:
        question, right = problem["question"], rng.random() < 0.5
        prompts["hint"].append(template.prompt_ids(question, hint=problem["answer"]))
        prompts["retry"].append(template.prompt_ids(question, rejected=_rejected(template, question, rng)))
        shown = problem["answer"] if right else wrong_answer(problem["answer"], rng)
        prompts["judge"].append(
            template.judge_prompt_ids(question, template.completion_text(toy.write_rationale(question, "careful"), shown))
        )
        wanted.append(template.verdict_ids(right))
    accuracy = {}
    for name, texts in prompts.items():
        ids = sample(model, template, texts, [sample_seed(seed, name, i) for i in range(len(texts))], 1.0, 2 * toy.LONGEST + 6)
        if name == "judge":
            right_ones = [got == want for got, want in zip(ids, wanted, strict=True)]
        else:
            right_ones = [template.split(got).answer == problem["answer"] for got, problem in zip(ids, problems, strict=True)]
        accuracy[name] = sum(right_ones) / len(right_ones)
    return accuracy
