"""A training batch as a rationale table."""

import gzip
import json

import pytest

from brite_lib.models import load_policy, load_template
from brite_lib.params import PsiParams
from brite_lib.ppo import PosteriorPPOTrainer
from brite_lib.problems import load_problems
from brite_lib.rollouts import add_scores
from brite_lib.tables import RATIONALES, write_table
from brite_lib.viewer.pack import pack
from brite_lib.viewer.table import read_rows

SMALL = {"steps": 1, "prompts_per_step": 3, "rationales_per_prompt": 4, "unfinished_reward": -20.0}


def batch(**settings):
    params = PsiParams(**SMALL, **settings)
    template = load_template(params.model)
    trainer = PosteriorPPOTrainer(load_policy(params.model), template, load_problems("toy:easy", "train", 6).to_list(), params)
    trainer.train_step()
    return trainer, template, params


def test_a_batch_has_the_log_probs_of_a_rationale_table_and_its_own_rewards_and_advantages():
    trainer, template, params = batch(advantage="gae")
    rows = trainer.latest.rows(template, params)
    with trainer.reference.model() as theta:  # Q was still θ when the batch was drawn
        again = add_scores(rows, template, theta, theta)
    assert [row["sample"] for row in rows] == [0, 1, 2, 3] * 3 and len({row["id"] for row in rows}) == 3
    for i, (row, other) in enumerate(zip(rows, again, strict=True)):
        assert row["logp_theta"] == pytest.approx(other["logp_theta"], abs=1e-4)
        assert row["logp_psi"] == pytest.approx(other["logp_psi"], abs=1e-4)
        assert row.get("logp_answer") == pytest.approx(other["logp_answer"], abs=1e-4) if row["finished"] else row["reward"] == -20
        assert row["correct"] is None and row["answer_text"] is None  # no y was sampled
        assert row["advantage"] == trainer.latest.advantages[i, : len(row["tokens"])].tolist()
        assert len(row["value"]) == len(row["tokens"]) == row["num_tokens"]


def test_a_batch_is_shown_and_written_as_any_table(tmp_path):
    trainer, template, params = batch(advantage="gae", reward="verifier", beta=0.5)
    rows = trainer.latest.rows(template, params, problems=2)
    write_table(rows, RATIONALES, tmp_path / "batch.parquet")
    head = json.loads(gzip.decompress(pack(read_rows(rows)).blobs["rows"]))
    assert set(head["channels"]) == {"advantage", "value", "psi", "theta"}
    assert len(rows) == 8
    for row in rows:  # y was sampled and judged
        assert not row["finished"] or row["reward"] == (2.0 if row["correct"] else 0.0)
    assert any(row["answer_text"] for row in rows)


def test_a_boundary_that_is_no_action_has_no_advantage():
    trainer, template, params = batch(boundary_is_action=False)
    for row, completion in zip(trainer.latest.rows(template, params), trainer.latest.completions, strict=True):
        assert len(row["advantage"]) == len(row["tokens"]) == len(row["rationale_ids"])
        assert "value" not in row
        if completion.finished:
            assert len(row["tokens"]) < len(completion.rationale_ids)
