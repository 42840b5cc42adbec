"""DRR: the loop with answers that are known, its judges, the discriminator's training, and the notebook."""

import json
import math
import random

import enumerable
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from brite_lib import drr, results
from brite_lib.drr import (
    by_turns,
    collect_behaviour,
    final_answers,
    reason_with_feedback,
    train_discriminator,
)
from brite_lib.errors import InputError
from brite_lib.execute import execute
from brite_lib.judges import Discriminator, Judgement, SelfCritique, always_reject, attempt_text, by_rule
from brite_lib.likelihood import score
from brite_lib.models import load_policy, load_template
from brite_lib.params import PROJECT_ROOT, DrrParams
from brite_lib.problems import load_problems
from brite_lib.sft import trainer_settings
from brite_lib.tables import read_predictions, write_table
from brite_lib.template import RationaleTemplate, TemplateFormats

BASE = "assets/tiny-base"
FORMATS = TemplateFormats(
    prompt="^{question}", retry_prompt="^{question}^{attempts}", attempt="{completion}^", judge_prompt="^{question}c{completion}^",
    verdicts=("a", "b"), boundary="|", answer="{answer}", chat=False,
)  # fmt: skip
RULES = RationaleTemplate(enumerable.template().tokenizer, FORMATS)
SMALL = {"limit": 40, "chains": 1, "epochs": 1, "train_batch_size": 8, "micro_batch_size": 4, "save_steps": 3, "device": "cpu"}


class Sampler:
    """In place of ``sample``: ``write(question, rejected attempts, seed)`` is the text of the completion; every prompt is recorded."""

    def __init__(self, write):
        self.write, self.prompts = write, []

    def __call__(self, model, template, prompts, seeds, *_, **__):
        texts = [template.decode(prompt) for prompt in prompts]
        self.prompts.append(texts)
        parts = [[part for part in text.split("^") if part] for text in texts]
        written = [self.write(question, rejected, seed) for (question, *rejected), seed in zip(parts, seeds, strict=True)]
        return [template.tokenizer(text)["input_ids"] for text in written]


def stub(monkeypatch, write):
    sampler = Sampler(write)
    monkeypatch.setattr(drr, "sample", sampler)
    return sampler


def coin(p):
    """Right with probability p, whatever was tried before."""
    return lambda question, rejected, seed: "a|a." if random.Random(seed).random() < p else "b|b."


SCRIPT = {"a": ["a|b.", "b|a."], "bb": ["a|a."], "aba": ["ab.", "b|c.", "|b."]}


def follow(question, rejected, seed):
    return SCRIPT[question][len(rejected)]


def test_labels_are_by_the_final_answer_and_retries_carry_the_rejected_attempts(monkeypatch, tmp_path):
    sampler = stub(monkeypatch, follow)
    rows = collect_behaviour(None, enumerable.problems(), RULES, DrrParams.parse({"turns": 3, "chains": 2}))
    one = [row for row in rows if row["sample"] == 0]
    assert [(row["id"], row["turn"], row["accepted"], row["chosen"]) for row in one] == [
        ("q0", 1, False, False), ("q0", 2, True, True), ("q1", 1, True, True),
        ("q2", 1, False, False), ("q2", 2, False, False), ("q2", 3, False, True),
    ]  # fmt: skip
    assert [row["rejected"] for row in one] == [[], ["a|b"], [], [], ["ab"], ["ab", "b|c"]]
    assert sampler.prompts[2] == ["^aba^ab^b|c^"] * 2 and sampler.prompts[1] == ["^a^a|b^"] * 2 + ["^aba^ab^"] * 2
    assert all(row["prompt_ids"] == RULES.prompt_ids(row["question"], rejected=row["rejected"]) for row in rows)
    assert len(rows) == 12 and len({row["seed"] for row in rows}) == 12
    write_table(rows, drr.ATTEMPTS, tmp_path / "behaviour.parquet")
    assert [row["rejected"] for row in drr.read_attempts(tmp_path / "behaviour.parquet")] == [row["rejected"] for row in rows]


def test_tokens_are_counted_worked_by_hand(monkeypatch):
    stub(monkeypatch, follow)
    rows = reason_with_feedback(
        None,
        lambda rows: [Judgement(0.5, row["correct"], written=2, read=10) for row in rows],
        enumerable.problems(),
        RULES,
        DrrParams.parse({"turns": 3}),
    )
    table = by_turns(rows, 3)
    assert [row["accuracy"] for row in table] == pytest.approx([1 / 3, 2 / 3, 2 / 3])
    # written: 4, 4 and 3 tokens, then 4 and 4, then 3, and 2 for each verdict; read: prompts of 2, 3, 4, then 7 and 8, then 12
    assert [row["tokens_generated"] * 3 for row in table] == pytest.approx([11 + 6, 11 + 6 + 8 + 4, 29 + 3 + 2])
    assert [row["tokens_read"] * 3 for row in table] == pytest.approx([9 + 30, 39 + 15 + 20, 74 + 12 + 10])


@pytest.mark.parametrize("p", [0.2, 0.5])
def test_an_oracle_reaches_one_minus_the_chance_of_failing_every_turn(monkeypatch, p):
    stub(monkeypatch, coin(p))
    problems = [{"id": f"q{i}", "question": "a", "answer": "a"} for i in range(2000)]
    rows = reason_with_feedback(None, by_rule, problems, RULES, DrrParams.parse({"turns": 4}))
    for row in by_turns(rows, 4):
        expected = 1 - (1 - p) ** row["turns"]
        assert row["accuracy"] == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000))


def test_two_turns_of_a_real_model_equal_their_enumeration():
    model, prompt = enumerable.model(1), RULES.prompt_ids("a")
    settings = {"turns": 2, "chains": 2000, "max_rationale_tokens": 3, "max_answer_tokens": 2}
    completions = enumerable.completions(RULES, with_answers=True, max_answer=2)
    right = [ids for ids in completions if ids[-3:] == [2, 0, 3]]
    chances = enumerable.law(model, prompt, completions).exp()
    first = sum(float(chance) for ids, chance in zip(completions, chances, strict=True) if ids in right)
    wrong = [(RULES.split(ids, 3, 2), chance) for ids, chance in zip(completions, chances.tolist(), strict=True) if ids not in right]
    texts = [attempt_text({"rationale_ids": cut.rationale_ids, "answer_ids": cut.answer_ids}, RULES) for cut, _ in wrong]
    prompts = [RULES.prompt_ids("a", rejected=[text]) for text in texts for _ in right]
    hits = score(model, prompts, right * len(wrong), [[]] * len(prompts), batch_size=1000).rationale
    retried = torch.stack([part.sum() for part in hits]).exp().view(len(wrong), len(right)).sum(1).tolist()
    second = sum(chance * again for (_, chance), again in zip(wrong, retried, strict=True))
    problems = [{"id": "q", "question": "a", "answer": "a"}]
    table = by_turns(collect_behaviour(model, problems, RULES, DrrParams.parse(settings)), 2)
    for row, expected in zip(table, (first, first + second), strict=True):
        assert 0.002 < expected < 0.998
        assert row["accuracy"] == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / 2000))
    assert second > 0.01


def test_the_highest_scored_attempt_wins_at_the_cap(monkeypatch):
    stub(monkeypatch, coin(0.5))
    scores = [0.2, 0.4, 0.3, 0.4]
    judge = lambda rows: [Judgement(scores[row["turn"] - 1], False) for row in rows]  # noqa: E731
    rows = reason_with_feedback(None, judge, enumerable.problems(), RULES, DrrParams.parse({"turns": 4}))
    assert [[row["turn"] for row in final_answers(rows, cap)] for cap in (1, 2, 3, 4)] == [[1] * 3, [2] * 3, [2] * 3, [4] * 3]
    assert [row["turn"] for row in rows if row["chosen"]] == [4] * 3
    last = reason_with_feedback(None, always_reject, enumerable.problems(), RULES, DrrParams.parse({"turns": 3}))
    assert [row["turn"] for row in last if row["chosen"]] == [3] * 3


def test_votes_at_a_budget_worked_by_hand():
    def row(name, prediction, tokens):
        return {"id": name, "prediction": prediction, "correct": prediction == "1", "num_tokens": tokens, "prompt_ids": [0] * 5}

    of_q = [row("q", "2", 4), row("q", "2", 4), row("q", "1", 2)]
    table = drr.vote_by_samples([row("p", "1", 2), row("p", "2", 2), row("p", "1", 6), *of_q])
    assert [(r["samples"], r["accuracy"], r["tokens_generated"], r["tokens_read"]) for r in table] == [
        (1, 0.5, 3, 5), (2, 0.25, 6, 5), (3, 0.5, 10, 5),
    ]  # fmt: skip
    values, samples = drr.vote_at_budget(table, 4.5)
    assert values.tolist() == [0.75, 0.0] and samples == 1.5
    assert drr.vote_at_budget(table, 9.5, with_reading=True)[0].tolist() == [0.75, 0.0]
    assert drr.vote_at_budget(table, 99)[1] == 3 and drr.vote_at_budget(table, 1)[1] == 1


def test_self_critique_is_the_models_own_verdict():
    model = enumerable.model(2)
    rows = [{"id": "q", "question": "a", "rationale_ids": [0, 2], "answer_ids": [1, 3], "sample": k, "turn": 1} for k in range(400)]
    judgements = SelfCritique(model, RULES, seed=0)(rows)
    prompt = RULES.judge_prompt_ids("a", "a|b")
    assert RULES.decode(prompt) == "^aca|b^"
    accept, reject = enumerable.law(model, prompt, [RULES.verdict_ids(True), RULES.verdict_ids(False)]).exp().tolist()
    chance = accept / (accept + reject)
    assert {round(judgement.score, 5) for judgement in judgements} == {round(chance, 5)}
    accepted = sum(judgement.accepted for judgement in judgements) / 400
    assert accepted == pytest.approx(chance, abs=4 * math.sqrt(chance * (1 - chance) / 400)) and 0 < accepted < 1
    assert judgements[0].read == len(prompt) and judgements[0].written == 2
    assert SelfCritique(model, RULES, seed=0)(rows) == judgements != SelfCritique(model, RULES, seed=1)(rows)


@pytest.mark.parametrize(
    ("p", "rows", "sentence"),
    [
        (1.0, 9, "behaviour: all 7 attempts to learn from are right, but a discriminator needs both"),
        (0.0, 9, "behaviour: all 14 attempts to learn from are wrong"),
        (0.5, 1, "behaviour: there are no attempts held out to choose the threshold on"),
    ],
)
def test_one_class_only_is_refused_before_any_training(monkeypatch, tmp_path, p, rows, sentence):
    stub(monkeypatch, coin(p))
    monkeypatch.setattr(Discriminator, "load", None)
    params = DrrParams.parse({"turns": 2, "chains": 1 if rows > 1 else 20})
    behaviour = collect_behaviour(None, [{"id": f"q{i}", "question": "a", "answer": "a"} for i in range(rows)], RULES, params)
    with pytest.raises(InputError, match=sentence):
        train_discriminator(behaviour, BASE, RULES, params, tmp_path)
    assert not any(tmp_path.iterdir())


@pytest.fixture(scope="module")
def base():
    return load_policy(BASE, device="cpu"), load_template(BASE)


@pytest.fixture(scope="module")
def behaviour(base):
    return collect_behaviour(base[0], load_problems("toy:easy", "train", 40).to_list(), base[1], DrrParams.parse(SMALL))


@pytest.fixture(scope="module")
def trained(base, behaviour, tmp_path_factory):
    logged = []
    checkpoints = tmp_path_factory.mktemp("checkpoints")
    discriminator, metrics = train_discriminator(
        behaviour, BASE, base[1], DrrParams.parse(SMALL), checkpoints, lambda step, **more: logged.append((step, more["loss"]))
    )
    return discriminator, metrics, logged


def test_the_discriminator_starts_from_the_reasoner_and_is_trained_with_equal_classes(base, behaviour, trained):
    discriminator, metrics, logged = trained
    assert type(discriminator.model).__name__ == "LlamaForSequenceClassification"
    assert [step for step, _ in logged] == list(range(1, metrics["steps"] + 1))
    share = metrics["accept_share"]
    assert discriminator.log_weight_ratio == pytest.approx(math.log(share / (1 - share)), abs=1e-5)  # equal logits mean P(right) = share
    assert 0 <= metrics["validation/auroc"] <= 1 and metrics["threshold"] == discriminator.threshold
    row = next(row for row in behaviour if row["turn"] == 2)
    text = base[1].decode(discriminator.input_ids(row))
    assert text == f"<bos>{row['question']}:{row['rejected'][0]}<retry>{row['rationale']}#{row['answer_text']}<eos>"


def test_one_process_takes_one_of_several_gpus(base, behaviour, trained, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(drr, "trainer_settings", lambda *arguments: trainer_settings(*arguments) | {"use_cpu": False})
    assert train_discriminator(behaviour, BASE, base[1], DrrParams.parse(SMALL), tmp_path)[1]["steps"] == trained[1]["steps"]


def test_loss_worked_by_hand():
    class Outputs:
        logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])

    loss = drr._weighted_loss(Outputs, torch.tensor([0, 1]), torch.tensor([2.0, 0.5]), None)
    assert loss.item() == pytest.approx((2 * math.log(2) + 0.5 * math.log(4 / 3)) / 2)
    assert drr._weighted_loss(Outputs, torch.tensor([0, 1]), torch.tensor([2.0, 0.5]), 4).item() == pytest.approx(loss.item() / 2)


def test_scores_do_not_depend_on_the_batch_and_survive_saving(base, behaviour, trained, tmp_path):
    discriminator = trained[0]
    scores = discriminator.scores(behaviour)
    discriminator.save(tmp_path / "discriminator")
    assert sorted(path.suffix for path in (tmp_path / "discriminator").iterdir()).count(".safetensors") == 1
    loaded = Discriminator.load(tmp_path / "discriminator", base[1], "cpu", batch_size=3)
    assert loaded.scores(behaviour) == pytest.approx(scores, abs=1e-6)
    assert (loaded.threshold, loaded.log_weight_ratio, loaded.tokenizer) == (discriminator.threshold, discriminator.log_weight_ratio, None)
    one, other = (reason_with_feedback(base[0], judge, TEST, base[1], DrrParams.parse(SMALL)) for judge in (discriminator, discriminator))
    assert one == other and [row["accepted"] for row in one] == [row["score"] >= discriminator.threshold for row in one]


TEST = [{"id": "x", "question": "3+4-2", "answer": "5"}, {"id": "y", "question": "1+1+1+1", "answer": "4"}]


def test_an_interrupted_training_ends_with_the_same_discriminator(base, behaviour, trained, tmp_path):
    class Interrupted(RuntimeError):
        pass

    def stop(step, **_):
        if step == 5:
            raise Interrupted

    params = DrrParams.parse(SMALL)
    with pytest.raises(Interrupted):
        train_discriminator(behaviour, BASE, base[1], params, tmp_path, stop)
    assert (tmp_path / "checkpoint-3").is_dir()
    resumed, metrics = train_discriminator(behaviour, BASE, base[1], params, tmp_path)
    for one, other in zip(trained[0].model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert metrics == trained[1]


def test_a_discriminator_with_tokens_of_its_own(base, behaviour, tmp_path):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=enumerable.template().tokenizer.backend_tokenizer, eos_token=".", pad_token="^")
    torch.manual_seed(0)
    config = BertConfig(vocab_size=6, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertForSequenceClassification(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    discriminator, metrics = train_discriminator(behaviour, tmp_path / "encoder", base[1], DrrParams.parse(SMALL), tmp_path / "checkpoints")
    assert metrics["steps"] > 3 and discriminator.tokenizer is not None
    assert max(max(discriminator.input_ids(row)) for row in behaviour) < 6
    loaded = Discriminator.load(discriminator.save(tmp_path / "saved"), base[1], "cpu")
    assert loaded.scores(behaviour) == pytest.approx(discriminator.scores(behaviour), abs=1e-6)
    loaded.tokenizer.model_max_length = 4
    assert [loaded.input_ids(row) for row in behaviour] == [discriminator.input_ids(row)[-4:] for row in behaviour]  # of y, not of x


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="temperature must be above 0: votes and new attempts would repeat the first one"):
        DrrParams.parse({"temperature": 0})
    with pytest.raises(InputError, match="validation_share: Input should be greater than 0"):
        DrrParams.parse({"validation_share": 0})
    with pytest.raises(InputError, match="discriminator: .* could not be loaded|there is no directory"):
        Discriminator.load("./nowhere", RULES)


def test_the_notebook_itself(tmp_path):
    directory = tmp_path / "seed0" / "drr"
    values = {"limit": 60, "test_split": "validation", "test_limit": 16, "chains": 1, "turns": 3, "epochs": 1, "vote_samples": 4}
    values |= {"bootstrap": 200, "output_dir": str(directory)}
    assert execute(PROJECT_ROOT / "notebooks" / "12_drr.ipynb", directory / "notebook.ipynb", values) is None
    record = json.loads((directory / "stage.json").read_text())
    names = {"behaviour.parquet", "attempts.parquet", "predictions.parquet", "discriminator"}
    assert {path.rpartition("/")[2] for path in record["outputs"]} == names
    metrics = record["metrics"]
    assert set(metrics["judgement"]["drr"]) == {"auroc", "auroc/low", "auroc/high", "ece", "false_accept", "false_reject"}
    assert len(metrics["curves"]["drr"]) == 3 and len(metrics["curves"]["vote"]) == 4
    predictions = read_predictions(directory / "predictions.parquet")
    assert len(predictions) == 16 and all(row["logp_answer"] is not None for row in predictions if row["finished"])
    (row,) = results.collect(tmp_path)
    assert (row["method"], row["benchmark"], row["metric"], row["n_problems"]) == ("drr", "toy", "pass@1", 16)
    assert row["mean"] == pytest.approx(metrics["pass@1"]) == pytest.approx(metrics["results"]["drr"]["accuracy"])
    assert sum(row["accepted"] for row in drr.read_attempts(directory / "behaviour.parquet")) <= 60
