"""Sampling is exact, seeded per sample, and blind to a model's own generation defaults."""

import enumerable
import pytest
import torch
from datasets import Dataset

from brite_lib.errors import InputError
from brite_lib.ppo import PosteriorPPOConfig, PosteriorPPOTrainer
from brite_lib.problems import Problem
from brite_lib.rollouts import add_scores, generate, sample, sample_seed
from brite_lib.tables import RATIONALES, read_rationales, write_table
from brite_lib.template import RationaleTemplate, TemplateFormats


def test_samples_follow_the_models_law_whatever_its_generation_config_says():
    """A hub model may ship repetition_penalty or top_k; they would make every log-probability wrong."""
    rules, model = enumerable.template(), enumerable.model(0)
    model.generation_config.repetition_penalty, model.generation_config.top_k, model.generation_config.do_sample = 1.7, 2, True
    prompt, n = rules.prompt_ids("aba"), 20_000
    drawn = sample(model, rules, [prompt] * n, range(n), 1.0, enumerable.MAX_RATIONALE, stop_at_boundary=True, batch_size=4096)
    assert model.generation_config.repetition_penalty == 1.7  # put back
    sequences = enumerable.completions(rules)
    counts = torch.tensor([drawn.count(ids) for ids in sequences], dtype=torch.float)
    assert counts.sum() == n
    probabilities = enumerable.law(model, prompt, sequences).exp()
    chi_squared = ((counts - n * probabilities) ** 2 / (n * probabilities)).sum().item()
    freedom = len(sequences) - 1
    assert chi_squared < freedom + 5 * (2 * freedom) ** 0.5


def test_a_sample_depends_on_its_seed_and_not_on_its_batch():
    rules, model = enumerable.template(), enumerable.model(1)
    prompts = [rules.prompt_ids(question) for question in ("a", "bb", "aba", "a", "bb")]
    seeds = [sample_seed(7, i) for i in range(5)]
    together = sample(model, rules, prompts, seeds, 1.0, 6)
    alone = [sample(model, rules, [prompt], [seed], 1.0, 6)[0] for prompt, seed in zip(prompts, seeds, strict=True)]
    assert together == alone
    assert sample(model, rules, prompts, seeds, 1.0, 6, batch_size=2) == together
    assert sample(model, rules, prompts, [seed + 1 for seed in seeds], 1.0, 6) != together


def test_seeds_are_the_same_on_every_machine():
    assert sample_seed(0, "toy-easy-train-00000", 3) == 2056179965857515656
    assert len({sample_seed(0, name, k) for name in ("a", "b") for k in range(100)}) == 200


def test_greedy_takes_the_likeliest_token():
    rules, model = enumerable.template(), enumerable.model(2)
    prompt = rules.prompt_ids("bb")
    first = sample(model, rules, [prompt], [0], 0.0, 1)[0][0]
    with torch.no_grad():
        assert first == model(input_ids=torch.tensor([prompt])).logits[0, -1].argmax().item()


def test_sampling_stops_where_a_boundary_of_several_tokens_is_complete():
    rules = RationaleTemplate(
        enumerable.template().tokenizer, TemplateFormats(prompt="^{question}", boundary="ab", answer="{answer}", chat=False)
    )
    drawn = sample(enumerable.model(0), rules, [rules.prompt_ids("a")] * 400, range(400), 1.0, 12, stop_at_boundary=True)
    ended = [ids for ids in drawn if rules.split(ids).finished]
    assert len(ended) > 20
    assert all(ids[-2:] == [0, 1] and rules.decode(ids).count("ab") == 1 for ids in ended)
    others = [ids for ids in drawn if not rules.split(ids).finished]
    assert all(ids[-1] == rules.end_id or len(ids) == 12 for ids in others)


def test_rows_carry_what_the_table_promises():
    rules, model = enumerable.template(), enumerable.model(0)
    problems = enumerable.problems()
    rows = generate(model, problems, rules, n=5, max_new_tokens=5, seed=3, max_rationale_tokens=3, max_answer_tokens=2, source="test")
    assert [row["id"] for row in rows] == [problem["id"] for problem in problems for _ in range(5)]
    assert [row["sample"] for row in rows][:6] == [0, 1, 2, 3, 4, 0]
    scored = add_scores(rows.to_list(), rules, model, model)
    for row in scored:
        assert row["logp_theta"] == pytest.approx(row["logp_psi"])
        assert len(row["logp_theta"]) == len(row["rationale_ids"]) == len(row["tokens"])
        assert (row["logp_answer"] is None) == (not row["finished"])
        assert row["correct"] == (row["answer_text"] == "a" and row["answer_ids"][-1] == rules.end_id)
    more = generate(model, problems, rules, n=5, max_new_tokens=5, seed=3, first_sample=5)
    assert set(rows["seed"]).isdisjoint(more["seed"])


def test_rows_are_a_rationale_table_whatever_the_problems_are_written_as(tmp_path):
    rules, model = enumerable.template(), enumerable.model(0)
    rows = enumerable.problems()
    problems = [Problem(**row) for row in rows]
    drawn = generate(model, problems, rules, 2, 1.0, 5, "hf", 3)
    assert drawn.column_names == RATIONALES.names
    assert drawn.to_list() == generate(model, Dataset.from_list(rows), rules, n=2, max_new_tokens=5, seed=3).to_list()
    assert generate(model, [], rules).column_names == RATIONALES.names
    trainer = PosteriorPPOTrainer(model, rules, problems, PosteriorPPOConfig())
    assert trainer.problems == [problem.model_dump() for problem in problems]
    write_table(drawn.to_list(), RATIONALES, tmp_path / "rationales.parquet")
    assert read_rationales(tmp_path / "rationales.parquet") == drawn.to_list()


def test_impossible_settings_are_refused():
    for settings in ({"n": 0}, {"temperature": -1.0}, {"max_new_tokens": 0}):
        with pytest.raises(InputError, match="n: .* max_new_tokens: .* temperature: "):
            generate(enumerable.model(0), enumerable.problems(), enumerable.template(), **settings)


def test_an_unknown_engine_is_refused():
    with pytest.raises(InputError, match="engine: 'vlm'"):
        generate(enumerable.model(0), enumerable.problems(), enumerable.template(), engine="vlm")
