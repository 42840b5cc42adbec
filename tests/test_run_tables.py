"""Tables of costs and of the quality of rationales, from records worked by hand."""

import math

import matplotlib.pyplot as plt
import pytest
from test_report import extend_record, write_toy_run
from test_results import write_stage

from brite_lib import report
from brite_lib.params import PsiParams, RejectionParams, ThetaParams
from brite_lib.tables import RATIONALES, write_table

MEASURED = {
    "quality/rationales": 50, "quality/perplexity": 1.5, "quality/perplexity_per_rationale": 2.0, "quality/nats": 3.25,
    "quality/tokens": 8.0, "quality/words": 15.0, "quality/steps": 4.0, "quality/repeated_4grams": 0.25, "quality/answer_leak": 0.125,
    "quality/agreement": 0.9,
}  # fmt: skip
JUDGED = {"auroc": 0.75, "low": 0.5, "high": 1.0, "ece": 0.125, "judged": 18}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_costs_of_methods_against_sft(tmp_path):
    run = tmp_path / "run"
    write_toy_run(run)
    for stage, flops, hours in (
        ("sft", 2e12, 0.5),
        ("rs_sampling", 1e12, 0.25),
        ("rs", 4e12, 1.0),
        ("brite_psi", 11e12, 2.0),
        ("brite", 3e12, 1.0),
    ):
        extend_record(run / "seed0" / stage, flops=flops, gpu_hours=hours)
    table = report.cost_table(report.load_run(run)).set_index("method")
    assert table["TFLOP"].to_dict() == {"base": 0, "sft": 2, "rs": 5, "brite_psi": 11, "brite": 14}
    assert table["× sft"].to_dict() == {"base": 0, "sft": 1, "rs": 2.5, "brite_psi": 5.5, "brite": 7}
    assert table["GPU-hours"].to_dict() == {"base": 0, "sft": 0.5, "rs": 1.25, "brite_psi": 2, "brite": 3}
    values = {row["method"]: row["mean"] for row in report.load_run(run).rows if row["metric"] == "pass@1"}
    assert table["pass@1 %"].to_dict() == {name: round(100 * value, 1) for name, value in values.items()}


def test_columns_that_say_nothing_are_left_out(tmp_path):
    write_toy_run(tmp_path / "run", methods=("base", "rs"))
    table = report.cost_table(report.load_run(tmp_path / "run"))
    assert not {"× sft", "GPU-hours"} & set(table.columns)


def test_flops_that_no_record_has_are_unknown(tmp_path):
    write_toy_run(tmp_path / "run", methods=("base", "rs"))
    for record in (tmp_path / "run").glob("seed0/*/stage.json"):
        extend_record(record.parent, flops=0.0)
    run = report.load_run(tmp_path / "run")
    assert report.cost_table(run).set_index("method")["FLOPs"].to_dict() == {"base": "0", "rs": "unknown"}
    assert set(report.stage_table(run).set_index("stage").loc[["seed0/rs", "seed0/brite_psi"], "FLOPs"]) == {"unknown"}
    extend_record(tmp_path / "run" / "seed0" / "rs", flops=2e9)
    stages = report.stage_table(report.load_run(tmp_path / "run")).set_index("stage")["GFLOP"]
    assert stages["seed0/rs"] == 2 and math.isnan(stages["seed0/brite_psi"])


def test_the_perplexity_of_each_rationale_by_source(tmp_path):
    run = tmp_path / "run"
    write_toy_run(run, methods=("base", "rs"))
    row = {"id": "1", "question": "q", "gold": "1", "rationale": "z", "finished": True, "source": "psi", "round": 1, "sample": 0, "seed": 0}
    log_probs = ([math.log(0.5)] * 3, [math.log(0.1), math.log(0.4)], None, [])
    rows = [row | {"logp_theta": values} for values in log_probs] + [row | {"logp_theta": [-1.0], "finished": False}]
    write_table(rows, RATIONALES, run / "seed0" / "brite_psi" / "rationales.parquet")
    table = report.perplexities(report.load_run(run))
    assert table["source"].tolist() == ["brite_psi", "brite_psi"] and set(table["benchmark"]) == {""}
    assert table["perplexity"].tolist() == pytest.approx([2, 5])
    assert "Perplexity of the rationales of each source" in report.figures(report.load_run(run))


def test_hashes_of_what_came_from_outside_and_of_what_each_stage_made(tmp_path):
    run = tmp_path / "run"
    write_toy_run(run, methods=("base", "rs"))
    rationales, model = str(run / "seed0/rs_sampling/rationales.parquet"), str(tmp_path / "assets" / "base")
    for record in run.glob("seed0/*/stage.json"):
        extend_record(record.parent, inputs={})
    extend_record(run / "seed0" / "rs_sampling", inputs={model: "a" * 64}, outputs={rationales: "b" * 64})
    extend_record(run / "seed0" / "rs", inputs={model: "a" * 64, rationales: "b" * 64}, outputs={str(run / "seed0/rs/model"): "c" * 64})
    assert report.hash_table(report.load_run(run)).to_dict("records") == [
        {"of": "outside the run", "file": model, "SHA-256": "a" * 12},
        {"of": "seed0/rs", "file": "model", "SHA-256": "c" * 12},
        {"of": "seed0/rs_sampling", "file": "rationales.parquet", "SHA-256": "b" * 12},
    ]
    page = report.write_html(report.load_run(run), {}, tmp_path / "report.html").read_text()
    assert f"<td>{'a' * 12}</td>" in page


def test_stages_beside_their_plan(tmp_path):
    run = tmp_path / "run"
    write_toy_run(run)
    lengths = {"max_rationale_tokens": 10, "max_answer_tokens": 2, "limit": 100}
    sampling = RejectionParams(**lengths, samples=7, strategy="raft")
    learning = ThetaParams(**lengths, epochs=1, rationales=str(run / "seed0/rs_sampling/rationales.parquet"))
    old = PsiParams(**lengths).model_dump(mode="json") | {"of an old version": 1}
    dumps = {"rs_sampling": sampling.model_dump(mode="json"), "rs": learning.model_dump(mode="json"), "brite_psi": old}
    for stage, params in dumps.items():
        extend_record(run / "seed0" / stage, params=params, tokens_generated=2100 * (stage != "rs"), tokens_trained=2100 * (stage == "rs"))
    table = report.stage_table(report.load_run(run)).set_index("stage")
    assert table.loc["seed0/rs_sampling", "% of plan"] == 25  # of 7 samples of 100 problems with 12 tokens
    assert table.loc["seed0/rs", "% of its plan"] == 25  # RAFT keeps all 7
    assert math.isnan(table.loc["seed0/brite_psi", "% of plan"])


def test_the_quality_of_what_was_learned_from_and_of_what_is_written(tmp_path):
    run = tmp_path / "run"
    write_toy_run(run, seeds=2)
    assert report.learned_table(report.load_run(run)).empty and report.written_table(report.load_run(run)).empty
    for seed, scale in ((0, 1), (1, 3)):
        source = str(run / f"seed{seed}" / "brite_psi" / "rationales.parquet")
        for stage, rationales in (("sft", "human"), ("brite", source)):
            write_stage(run / f"seed{seed}" / stage, seed=seed, rationales=rationales)
            extend_record(run / f"seed{seed}" / stage, metrics=MEASURED | {"quality/perplexity": scale * 1.5})
        judged = {f"self_evaluation/{name}": value for name, value in JUDGED.items()}
        extend_record(run / f"seed{seed}" / "eval_brite", metrics=MEASURED | judged)
    table = report.learned_table(report.load_run(run)).set_index("learned by")
    assert table["written by"].to_dict() == {"sft": "people", "brite": "brite_psi"}
    assert table.loc["brite"].tolist()[1:] == [50, "3.00", "2.00", "3.25", "8.00", "4.00", 25.0, 12.5, 90.0]
    written = report.written_table(report.load_run(run)).set_index("method")
    assert written.loc["brite", ["words", "steps", "leaks %", "AUROC", "calibration error"]].tolist() == [
        "15.00",
        "4.00",
        12.5,
        "0.750",
        "0.125",
    ]
    assert "95 % interval" not in written  # a bootstrap over problems says nothing about seeds
    page = report.write_html(report.load_run(run), {}, tmp_path / "report.html").read_text()
    assert "Quality of rationales" in page and "brite_psi" in page
