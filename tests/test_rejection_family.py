"""RS, RAFT, STaR and ReST-EM: what they train on is the objective of eq. (3.7), by enumeration; and their bookkeeping."""

import enumerable
import pytest
import torch
from datasets import Dataset
from trl import SFTConfig

from brite_lib import rejection, rollouts
from brite_lib.errors import InputError
from brite_lib.likelihood import make_batch, token_log_probs
from brite_lib.models import load_policy, load_template
from brite_lib.params import RejectionParams, ThetaParams
from brite_lib.problems import load_problems
from brite_lib.rejection import check_hint, reject
from brite_lib.rollouts import add_scores, sample
from brite_lib.sft import WeightedSFTTrainer, rationale_sft, training_rows
from brite_lib.tables import RATIONALES, read_rationales, write_table
from brite_lib.template import RationaleTemplate, TemplateFormats

LIMITS = {"max_rationale_tokens": enumerable.MAX_RATIONALE, "max_answer_tokens": 2}
RIGHT = [0, 3]  # tokens of the right answer, "a" and the end


def rules() -> RationaleTemplate:
    plain = enumerable.template()
    formats = {**plain.formats.model_dump(), "hint_prompt": "^{question}c{answer}"}
    return RationaleTemplate(plain.tokenizer, TemplateFormats(**formats))


class Enumeration:
    """Every draw of every question as a problem of its own, so that :func:`reject` sees each once; ``weight`` is its probability."""

    def __init__(self, theta, monkeypatch, hints=False):
        self.template, self.problems, self.plain, self.hinted, self.weight = rules(), [], {}, {}, {}
        sequences = enumerable.completions(self.template, with_answers=True, max_answer=2)
        right = [ids for ids in sequences if ids[-2:] == RIGHT and 2 in ids]
        self.sequences, self.right = sequences, [ids in right for ids in sequences]
        wrong = next(ids for ids in sequences if ids not in right)
        for question in enumerable.QUESTIONS:
            law = enumerable.law(theta, self.template.prompt_ids(question), sequences).exp()
            missed = sum(p.item() for p, hit in zip(law, self.right, strict=True) if not hit)
            for i, ids in enumerate(sequences):
                if not (hints and not self.right[i]):  # with hints, all misses are one: what counts is what comes after them
                    self._add(f"{question}/{i}", question, law[i].item(), ids, wrong)
            if hints:
                with_hint = enumerable.law(theta, self.template.prompt_ids(question, hint="a"), sequences).exp()
                for i, ids in enumerate(sequences):
                    self._add(f"{question}/hint/{i}", question, missed * with_hint[i].item(), wrong, ids)
        monkeypatch.setattr(rollouts, "sample", self.sample)

    def _add(self, name, question, weight, plain, hinted):
        self.problems.append({"id": name, "question": question, "answer": "a"})
        self.plain[name], self.hinted[name], self.weight[name] = plain, hinted, weight

    def sample(self, model, template, prompts, *_, **__):
        hint = 4 in prompts[0]  # the token c
        assert all((4 in prompt) == hint for prompt in prompts)
        return [next(self.queue[hint]) for _ in prompts]

    def kept(self, **settings):
        missed = [ids for name, ids in self.hinted.items() if self.plain[name][-2:] != RIGHT]
        self.queue = {False: iter(self.plain.values()), True: iter(missed)}
        params = RejectionParams.parse({**LIMITS, **settings, "samples": 1})
        return reject(enumerable.model(0), self.problems, self.template, params, "x")


def expected_gradient(model, enumeration, kept, tmp_path, reward_weighted=False):
    """Of the θ-update's loss over all draws, through its own sequences and its own trainer."""
    dataset = training_rows(kept, enumeration.template, reward_weighted=reward_weighted).to_list()
    for row, sampled in zip(dataset, kept, strict=True):
        row["weight"] = enumeration.weight[sampled["id"]] * row.get("weight", 1.0)
    config = SFTConfig(str(tmp_path), use_cpu=True, bf16=False, max_length=None, remove_unused_columns=False, report_to="none",
                       dataset_kwargs={"skip_prepare_dataset": True}, gradient_checkpointing=False)  # fmt: skip
    tokenizer = enumeration.template.tokenizer
    trainer = WeightedSFTTrainer(model=model, args=config, train_dataset=Dataset.from_list(dataset), processing_class=tokenizer)
    loss = trainer.compute_loss(model, trainer.data_collator(dataset), num_items_in_batch=1)
    return torch.autograd.grad(loss, list(model.parameters()))


def wanted_gradient(model, theta, enumeration, value, hints=False):
    """Of −Σ value(question, z, y) · log P_θ'(z, y | x); ``value`` gets the law of θ and whether y is right, (n,) each."""
    total, right = 0.0, torch.tensor(enumeration.right)
    sequences = enumeration.sequences
    for question in enumerable.QUESTIONS:
        prompt = enumeration.template.prompt_ids(question)
        laws = [enumerable.law(theta, prompt, sequences).exp()]
        laws += [enumerable.law(theta, enumeration.template.prompt_ids(question, hint="a"), sequences).exp()] if hints else []
        batch = make_batch([prompt] * len(sequences), sequences, torch.device("cpu"))
        log_prob = token_log_probs(model, batch)[0].split([len(ids) for ids in sequences])
        total = total - (value(*laws, right) * torch.stack([values.sum() for values in log_prob])).sum()
    return torch.autograd.grad(total, list(model.parameters()))


def assert_equal(model, got, wanted):
    assert max(gradient.abs().max() for gradient in wanted) > 0.01
    for (name, _), one, other in zip(model.named_parameters(), got, wanted, strict=True):
        assert torch.allclose(one, other, atol=1e-5), f"{name}: {(one - other).abs().max():.2e}"


def test_rejection_sampling_is_the_weighted_maximum_likelihood(monkeypatch, tmp_path):
    """Given a hit, Σ over draws = ∇Σ_z P_θ(z,y)·1[correct]·log P_θ'(z,y) / norm, at θ' ≠ θ."""
    theta, model = enumerable.model(0), enumerable.model(1)
    draws = Enumeration(theta, monkeypatch)
    kept, report = draws.kept(strategy="rs")
    assert report["hits"] == len(kept) == 3 * 21 and report["missed"] == 1 - len(kept) / len(draws.problems)
    hit = {q: sum(draws.weight[row["id"]] for row in kept if row["question"] == q) for q in enumerable.QUESTIONS}
    draws.weight = {p["id"]: draws.weight[p["id"]] / hit[p["question"]] for p in draws.problems}  # given a hit
    got = expected_gradient(model, draws, kept, tmp_path)
    assert_equal(model, got, wanted_gradient(model, theta, draws, lambda law, right: law * right / (law * right).sum()))


@pytest.mark.parametrize("beta", [None, 1.0, 0.3])
def test_rest_em_is_weighted_by_exp_of_the_reward(beta, monkeypatch, tmp_path):
    """Eq. (3.8) without a cap; problems count by their share of hits, which RS evens out."""
    theta, model = enumerable.model(0), enumerable.model(1)
    draws = Enumeration(theta, monkeypatch)
    kept, _ = draws.kept(strategy="rest_em", beta=beta)
    ended = torch.tensor([2 in ids and ids[-1] == 3 for ids in draws.sequences])  # only then is there an answer to be judged
    assert len(kept) == 3 * (21 if beta is None else int(ended.sum())) and {row["reward"] for row in kept} <= {1 / (beta or 1), 0.0}

    def value(law, right):
        return law * (right if beta is None else torch.exp((right.float() - 1) / beta) * ended)

    got = expected_gradient(model, draws, kept, tmp_path, reward_weighted=True)
    assert_equal(model, got, wanted_gradient(model, theta, draws, value))


def test_star_adds_what_the_hint_finds_and_learns_it_without_the_hint(monkeypatch, tmp_path):
    """Σ 1[correct]·(P_θ(z,y|x) + P_θ(no hit|x)·P_θ(z,y|x, hint))·log P_θ'(z,y|x)."""
    theta, model = enumerable.model(0), enumerable.model(1)
    draws = Enumeration(theta, monkeypatch, hints=True)
    kept, report = draws.kept(strategy="star")
    assert report["hits"] == report["rationalised"] == 3 * 21 and report["kept"] == 2 * 3 * 21
    assert {row["source"] for row in kept} == {"x", "x_hint"}

    def value(law, with_hint, right):
        return right * (law + (1 - (law * right).sum()) * with_hint)

    got = expected_gradient(model, draws, kept, tmp_path)
    assert_equal(model, got, wanted_gradient(model, theta, draws, value, hints=True))


class Sampler:
    """In place of ``generate``: correct samples of problem i are ``right[id]`` with (z, y) as given; hinted ones are all right."""

    def __init__(self, right):
        self.right, self.calls = right, []

    def __call__(self, model, problems, template, n, *_, first_sample, source, hint, **__):
        self.calls.append(([problem["id"] for problem in problems], first_sample, hint))
        rows = []
        for problem in problems:
            for k in range(first_sample, first_sample + n):
                z = None if hint else self.right[problem["id"]].get(k)
                rows.append({
                    "id": problem["id"], "question": problem["question"], "sample": k, "correct": hint or z is not None, "num_tokens": 3,
                    "source": source, "rationale_ids": z or [0, 2], "answer_ids": RIGHT if z or hint else [1, 3], "prompt_ids": [9],
                })  # fmt: skip
        return Dataset.from_list(rows)


def run(monkeypatch, right, **settings):
    sampler = Sampler(right)
    monkeypatch.setattr(rejection, "generate", sampler)
    problems = [{"id": name, "question": "a", "answer": "a"} for name in right]
    return *reject(None, problems, rules(), RejectionParams.parse(settings), "x"), sampler


RIGHT_ONES = {"a": {0: [0, 2], 1: [1, 2], 3: [0, 2]}, "b": {}, "c": {2: [2]}}


def test_raft_keeps_every_different_one_once(monkeypatch):
    kept, report, _ = run(monkeypatch, RIGHT_ONES, strategy="raft", samples=4)
    assert [(row["id"], row["sample"]) for row in kept] == [("a", 0), ("a", 1), ("c", 2)]
    assert (report["hits"], report["kept"], report["duplicates"], report["rationalised"]) == (2, 3, 1, 0)
    assert report["missed"] == pytest.approx(1 / 3) and report["correct"] == 4 / 12


def test_the_same_rationale_with_another_answer_is_another(monkeypatch):
    """Of kinds other than exact, 7 and 7.0 are both right; (z, y) is what is learned."""
    rows = [{"id": "a", "rationale_ids": [0, 2], "answer_ids": y, "correct": True} for y in ([0, 3], [4, 3], [0, 3])]
    assert rejection._keep(rows, RejectionParams(strategy="raft"), rules()) == rows[:2]


def test_star_tries_only_the_missed_problems_again(monkeypatch):
    kept, report, sampler = run(monkeypatch, RIGHT_ONES, strategy="star", samples=4)
    assert sampler.calls == [(["a", "b", "c"], 0, False), (["b"], 4, True)]  # with seeds of their own
    assert [(row["id"], row["source"]) for row in kept] == [("a", "x"), ("c", "x"), ("b", "x_hint")]
    assert kept[-1]["prompt_ids"] == rules().prompt_ids("a") and 4 <= kept[-1]["sample"] < 8
    assert (report["hits"], report["rationalised"], report["missed"], report["kept"]) == (2, 1, 0, 3)
    assert (report["draws"], report["tokens"], report["correct"]) == (16, 48, 4 / 12)  # the hinted draws cost, but are no accuracy
    rs, _, _ = run(monkeypatch, RIGHT_ONES, samples=4)
    assert kept[:2] == rs


def test_rest_em_caps_each_problem_at_random(monkeypatch):
    right = {f"q{i}": {k: [0, 2] for k in range(i % 5)} for i in range(400)}
    kept, report, _ = run(monkeypatch, right, strategy="rest_em", samples=4, max_per_problem=2)
    assert report["kept"] == sum(min(2, len(hits)) for hits in right.values()) and report["duplicates"] == 0
    of_four = [row["sample"] for row in kept if len(right[row["id"]]) == 4]
    assert all(of_four.count(k) == pytest.approx(40, abs=15) for k in range(4))
    assert all(row["correct"] and row["reward"] == 1 for row in kept)
    weighted, _, _ = run(monkeypatch, right, strategy="rest_em", samples=4, beta=0.5, max_per_problem=4)
    assert len(weighted) == 1600 and {(row["correct"], row["reward"]) for row in weighted} == {(True, 2.0), (False, 0.0)}


def test_a_template_without_a_hint_format_is_refused_for_star():
    tokenizer = enumerable.template().tokenizer
    plain = RationaleTemplate(tokenizer, TemplateFormats(prompt="^{question}", boundary="|", chat=False))
    with pytest.raises(InputError, match="strategy star shows the answer as a hint, but this template has no hint_prompt"):
        check_hint(plain, RejectionParams(strategy="star"))
    for strategy in ("rs", "raft", "rest_em"):
        check_hint(plain, RejectionParams(strategy=strategy))
    check_hint(rules(), RejectionParams(strategy="star"))
    check_hint(load_template("assets/tiny-base"), RejectionParams(strategy="star"))


def test_until_hit_is_for_rejection_sampling_alone():
    with pytest.raises(InputError, match="until_hit draws one rationale from the posterior; it needs strategy: rs, not raft"):
        RejectionParams.parse({"strategy": "raft", "until_hit": True})
    with pytest.raises(InputError, match="strategy"):
        RejectionParams.parse({"strategy": "ref"})


@pytest.mark.parametrize("strategy", ["rs", "raft", "star", "rest_em"])
def test_the_embedded_model_with_each_strategy(strategy, tmp_path):
    model, template = load_policy("assets/tiny-base"), load_template("assets/tiny-base")
    problems = load_problems("toy:hard", "validation", limit=24).to_list()
    params = RejectionParams.parse({"strategy": strategy, "samples": 4, "seed": 3, "beta": 0.5 if strategy == "rest_em" else None})
    kept, report = reject(model, problems, template, params, strategy)
    assert reject(model, problems, template, params, strategy) == (kept, report)
    assert report["kept"] == len(kept) and report["problems"] == 24
    assert round(report["hits"] + report["rationalised"] + 24 * report["missed"]) == 24
    assert all(row["prompt_ids"] == template.prompt_ids(row["question"]) for row in kept)
    hinted = [row for row in kept if row["source"] == "star_hint"]
    assert bool(hinted) == (strategy == "star") and report["rationalised"] == len(hinted)
    prompts = [template.prompt_ids(row["question"], hint=row["gold"]) for row in hinted]
    drawn = sample(model, template, prompts, [row["seed"] for row in hinted], 1.0, 40) if hinted else []
    assert drawn == [row["rationale_ids"] + row["answer_ids"] for row in hinted]  # they did see the hint
    write_table(add_scores(kept, template, model), RATIONALES, tmp_path / "rationales.parquet")
    sequences = training_rows(read_rationales(tmp_path / "rationales.parquet"), template, reward_weighted=strategy == "rest_em")
    assert len(sequences) == len(kept)
    hint = template.tokenizer.convert_tokens_to_ids("<hint>")
    assert not any(hint in ids for ids in sequences["input_ids"])


def test_weights_reach_the_training(tmp_path):
    """Equal rewards change nothing; a far lower one takes a rationale out; the sampled y is what is learned."""
    template, params = rules(), ThetaParams.parse({"epochs": 2, "train_batch_size": 4, "micro_batch_size": 2, "device": "cpu"})
    row = {"id": "q", "question": "a", "gold": "a", "prompt_ids": [5, 0], "finished": True, "answer_ids": RIGHT}
    sampled = {"a": [0, 2], "b": [1, 2], "ab": [0, 1, 2], "bb": [1, 1, 2]}
    rows = [{**row, "rationale": text, "rationale_ids": ids, "reward": 1.0} for text, ids in sampled.items()]
    wrong = {**row, "rationale": "aa", "rationale_ids": [0, 0, 2], "answer_ids": [1, 3], "reward": 0.0}
    weighted = training_rows([*rows, wrong], template, reward_weighted=True)
    assert weighted["weight"][:] == [1, 1, 1, 1, pytest.approx(0.36788, abs=1e-5)]
    assert weighted[4]["labels"] == [-100, -100, 0, 0, 2, 1, 3]

    def trained(rows, name, **settings):
        model, metrics = rationale_sft(enumerable.model(0), training_rows(rows, template, **settings), template, params, tmp_path / name)
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), metrics

    plain, metrics = trained(rows, "plain")
    equal, weighted_metrics = trained(rows, "equal", reward_weighted=True)
    assert torch.allclose(plain, equal, atol=1e-6) and metrics["tokens_trained"] == weighted_metrics["tokens_trained"]
    assert metrics["loss"] == pytest.approx(weighted_metrics["loss"], abs=1e-3)
    other, _ = trained([*rows[:3], {**rows[3], "reward": 0.0}], "other", reward_weighted=True)
    assert not torch.allclose(plain, other, atol=1e-4)
    for bad in ({"reward": None}, {"answer_ids": None}):
        with pytest.raises(InputError, match="row 2 has no reward or no sampled answer"):
            training_rows([rows[0], {**rows[1], **bad}], template, reward_weighted=True)


def test_a_later_round_draws_anew_and_the_first_as_ever():
    """Bootstrapping would otherwise meet the same misses with the same noise in every round."""
    first, second = (RejectionParams.parse({"seed": 7, "round": t}) for t in (1, 2))
    assert first.noise_seed == 7 and second.noise_seed != 7
    rules, theta = enumerable.template(), enumerable.model(0)
    rows = [{"seed": p.noise_seed, **p.generation} for p in (first, second, first)]
    one, other, again = (rollouts.generate(theta, enumerable.problems(), rules, n=20, **options)["rationale_ids"][:] for options in rows)
    assert one == again == rollouts.generate(theta, enumerable.problems(), rules, n=20, seed=7, **first.generation)["rationale_ids"][:]
    assert one != other
