"""What a person exports in the page is what the notebooks train on."""

import pytest

from brite_lib.execute import execute
from brite_lib.models import load_policy, load_template
from brite_lib.params import PROJECT_ROOT
from brite_lib.problems import load_problems
from brite_lib.records import read_record
from brite_lib.rollouts import add_scores, generate
from brite_lib.tables import read_pairs, read_rationales

BASE = "assets/tiny-base"


@pytest.fixture(scope="module")
def sampled():
    """Real samples of the small model: 24 problems with eight rationales each, half of them right."""
    template, model = load_template(BASE), load_policy(BASE)
    lengths = {"max_rationale_tokens": 32, "max_answer_tokens": 8}
    rows = generate(model, load_problems("toy:easy", "train", limit=24), template, n=8, seed=0, source="θ", **lengths)
    return add_scores(rows.to_list(), template, model)


def exported(page, format_name, path):
    page.locator(".list").focus()
    page.keyboard.press("e")
    page.get_by_text(format_name, exact=True).click()
    page.get_by_role("button", name="Download")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    page.keyboard.press("Escape")
    download.value.save_as(path)


def test_sft_rows_train_theta(browse, sampled, tmp_path):
    page = browse(sampled)
    page.locator(".filter").fill("correct:true logp_answer>-1")
    page.wait_for_timeout(300)
    exported(page, "SFT rows", tmp_path / "rationales.jsonl")
    rows = read_rationales(tmp_path / "rationales.jsonl")
    wanted = [row for row in sampled if row["correct"] and row["logp_answer"] > -1]
    names = set(wanted[0]) - {"tokens", "logp_theta", "logp_psi"}  # what the page holds only rounded is left out
    assert [{name: row[name] for name in names} for row in rows] == [{name: row[name] for name in names} for row in wanted]

    values = {"rationales": str(tmp_path / "rationales.jsonl"), "epochs": 1, "output_dir": str(tmp_path / "sft")}
    assert execute(PROJECT_ROOT / "notebooks/03_theta_sft.ipynb", tmp_path / "sft/notebook.ipynb", values) is None
    assert read_record(tmp_path / "sft/stage.json")["metrics"]["rationales"] == len(wanted)


def test_dpo_pairs_train_theta(browse, sampled, tmp_path):
    page = browse(sampled)
    page.locator(".filter").fill("correct:true")  # one row is tagged to be preferred
    page.wait_for_timeout(300)
    page.locator(".list").focus()
    page.keyboard.press("End")
    page.keyboard.press("t")
    page.keyboard.type("chosen")
    page.keyboard.press("Escape")
    page.locator(".filter").fill("")
    page.wait_for_timeout(300)
    exported(page, "DPO pairs", tmp_path / "pairs.jsonl")
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    by_name = {(row["id"], row["sample"]): row for row in sampled}
    verdicts = {problem: [row["correct"] for row in sampled if row["id"] == problem] for problem in {row["id"] for row in sampled}}
    assert {pair["id"] for pair in pairs} == {problem for problem, right in verdicts.items() if 0 < sum(right) < len(right)}
    for pair in pairs:
        assert (pair["num_samples"], pair["num_correct"]) == (8, sum(verdicts[pair["id"]]))
        for side, right in (("chosen", True), ("rejected", False)):
            row = by_name[pair["id"], pair[f"{side}_sample"]]
            assert row["correct"] is right and pair["prompt_ids"] == row["prompt_ids"]
            for name in ("rationale", "answer_text", "finished", "rationale_ids", "answer_ids"):
                assert pair[f"{side}_{name}"] == row[name], name
    tagged = [row for row in sampled if row["correct"]][-1]
    assert [pair["chosen_sample"] for pair in pairs if pair["id"] == tagged["id"]] in ([tagged["sample"]], [])

    values = {"pairs": str(tmp_path / "pairs.jsonl"), "epochs": 1, "limit": 4, "output_dir": str(tmp_path / "dpo")}
    assert execute(PROJECT_ROOT / "notebooks/04_dpo.ipynb", tmp_path / "dpo/notebook.ipynb", values) is None
    record = read_record(tmp_path / "dpo/stage.json")
    assert record["metrics"]["pairs"] == len(pairs) and record["tokens_generated"] == 0
    assert any(path.endswith("pairs.jsonl") for path in record["inputs"])
