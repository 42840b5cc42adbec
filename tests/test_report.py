import base64
import json
import random
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
import scipy.stats
from test_results import write_stage

from brite_lib import report
from brite_lib.errors import InputError
from brite_lib.params import PROJECT_ROOT
from brite_lib.problems import toy
from brite_lib.tables import PREDICTIONS, write_table

HOSTILE = '<script src="https://evil.example/x.js"></script>&<img src=x onerror=alert(1)>'
CAREFUL = {"base": 0.4, "sft": 0.3, "rs": 0.75, "posterior": 0.85, "brite_psi": 0.85, "brite": 0.8}


def write_toy_run(run: Path, methods: tuple[str, ...] = ("base", "sft", "rs", "brite_psi", "brite"), levels=("easy",), seeds=1, problems=6):
    """A run that looks like a real one: toy rationales, logs of ψ and θ, costs."""
    base = run.parent / "assets" / "tiny-base"
    base.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for level in levels:
            prefix, benchmark = (f"toy-{level}.", f"toy-{level}") if len(levels) > 1 else ("", "toy")
            stages = run / f"seed{seed}"
            sampling = {"problems": 1000, "hits": 930, "missed": 0.07, "draws": 30000}
            write_stage(stages / f"{prefix}rs_sampling", (base,), seed, seconds=41.2, generated=512_000)
            write_stage(stages / f"{prefix}brite_psi", (base,), seed, seconds=150.0, generated=498_000, trained=498_000, kl_coef=1.0)
            extend_record(stages / f"{prefix}rs_sampling", metrics=sampling)
            extend_record(stages / f"{prefix}brite_psi")
            write_log(stages / f"{prefix}brite_psi", 30, seed, elbo=-2.0, kl=0.1, entropy=0.9, finished=0.99, rationale_length=6.0)
            sources = {"rs": "rs_sampling", "brite": "brite_psi", "sft": None, "posterior": None}
            for method in methods:
                model = base
                if method != "base":
                    model = stages / f"{prefix}{method}" / "model"
                if method in sources:
                    inputs = (base, *([stages / f"{prefix}{sources[method]}" / "rationales.parquet"] if sources[method] else []))
                    write_stage(stages / f"{prefix}{method}", inputs, seed, seconds=22.0, trained=80_000, rationales="human")
                    extend_record(stages / f"{prefix}{method}")
                    write_log(stages / f"{prefix}{method}", 12, seed, loss=1.0)
                write_toy_evaluation(stages / f"{prefix}eval_{method}", method, level, benchmark, model, seed, problems)


def write_toy_evaluation(directory: Path, method: str, level: str, benchmark: str, model: Path, seed: int, problems: int):
    task = {"benchmark": benchmark, "data": f"toy:{level}", "split": "test"}
    write_stage(directory, (model,), seed, seconds=9.0, method=method, model=str(model), **task)
    versions = {"python": "3.12.1", "torch": "2.13.0"}
    extend_record(directory, started="2026-01-02T03:04:05+00:00", git_commit="0123456789abcdef", versions=versions, peak_rss_gib=0.8)
    rng, rows = random.Random(f"{method}{seed}{level}"), []
    for problem in toy.toy_problems(level, "test", limit=problems):
        for sample in range(-1, 3):
            style = "careful" if rng.random() < CAREFUL[method] else rng.choice(("skipping", "guessing"))
            correct = style == "careful" and rng.random() < 0.92
            rationale = toy.write_rationale(problem.question, style)
            if problem.id.endswith("00002") and method == "brite":
                rationale = HOSTILE
            rows.append(
                {
                    "id": problem.id, "question": problem.question, "gold": problem.answer, "rationale": rationale,
                    "prediction": problem.answer if correct else "0", "correct": correct, "finished": rng.random() < 0.97, "source": method,
                    "round": 1, "sample": max(0, sample), "num_tokens": 3 + len(rationale) // 2, "benchmark": benchmark,
                    "temperature": 0.0 if sample < 0 else 1.0,
                }
            )  # fmt: skip
    write_table(rows, PREDICTIONS, directory / "predictions.parquet")


def extend_record(directory: Path, **fields):
    path = directory / "stage.json"
    stage = directory.name.rpartition(".")[2]  # a record's stage has no task in front
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stage": stage} | fields))


def write_log(directory: Path, steps: int, seed: int, **start: float):
    rng = random.Random(seed)
    lines = [
        {"step": step} | {name: value * (1 + 0.3 * step / steps) + 0.05 * rng.gauss(0, 1) for name, value in start.items()}
        for step in range(steps)
    ]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_result_and_difference_tables(tmp_path):
    methods = ("base", "rs", "posterior", "brite")
    write_toy_run(tmp_path / "run", methods, seeds=3)
    run = report.load_run(tmp_path / "run")
    rows = {row["method"]: row for row in run.rows if row["metric"] == "pass@1"}
    table = report.result_table(run, "pass@1").set_index("method")
    assert list(table.index) == list(methods)
    assert table.loc["brite", "accuracy %"] == round(100 * rows["brite"]["mean"], 1)
    assert table.loc["base", "interval is"] == "t over seeds"
    assert len(table.loc["rs", "per seed %"].split()) == 3
    differences = report.difference_table(run).set_index("difference")
    assert list(differences.index) == ["brite − rs", "posterior − rs", "brite − posterior"]
    points = [rows["brite"]["values"][i] - rows["rs"]["values"][i] for i in range(3)]
    assert differences.loc["brite − rs", "points"] == pytest.approx(100 * sum(points) / 3, abs=0.051)
    whole, missed, approximation = differences["points"]
    assert whole == pytest.approx(missed + approximation, abs=0.11)


def test_one_seed_has_no_interval_of_differences(tmp_path):
    write_toy_run(tmp_path / "run")
    run = report.load_run(tmp_path / "run")
    assert set(report.result_table(run)["interval is"]) == {"bootstrap over problems", "Wilson over problems"}
    assert report.difference_table(run)["95 % interval"].tolist() == ["none (one seed)"]
    assert report.difference_table(run, pairs=[("brite", "grpo", "")]).empty


def test_greedy_answers_of_one_seed_are_compared_problem_by_problem(tmp_path):
    write_toy_run(tmp_path / "run", problems=40)
    run = report.load_run(tmp_path / "run")
    greedy = {row["method"]: row["mean"] for row in run.rows if row["metric"] == "greedy"}
    (row,) = report.one_answer_table(run, report.DIFFERENCES).to_dict("records")
    first, second = row["right only by the first"], row["only by the second"]
    assert (row["difference"], row["problems"]) == ("brite − rs", 40) and first + second > 0
    assert row["points"] == pytest.approx(100 * (greedy["brite"] - greedy["rs"])) == 100 * (first - second) / 40
    assert row["p"] == pytest.approx(scipy.stats.binomtest(first, first + second).pvalue, abs=1e-4)
    page = report.write_html(run, {}, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "McNemar" in page and f">{row['p']}</td>" in page  # not rounded to one digit
    write_toy_run(tmp_path / "several", seeds=2)
    assert report.one_answer_table(report.load_run(tmp_path / "several"), report.DIFFERENCES).empty


def test_costs_sampling_and_provenance(tmp_path):
    write_toy_run(tmp_path / "run")
    run = report.load_run(tmp_path / "run", title="A title")
    costs = report.cost_table(run).set_index("method")
    assert list(costs.index) == ["base", "sft", "rs", "brite_psi", "brite"]
    assert costs.loc["brite", ["tokens generated", "tokens trained", "seconds"]].tolist() == [498_000, 578_000, 172.0]
    assert costs.loc["base", "seconds"] == 0
    assert report.sampling_table(run)["missed %"].tolist() == [7.0]
    assert report.stage_table(run)["stage"].tolist()[0] == "seed0/brite"
    facts = report.provenance(run)
    assert (facts["commit"], facts["torch"]) == ("unknown, 0123456789ab", "2.13.0")
    assert facts["last stage started"] == "2026-01-02 03:04 UTC"
    assert run.title == "A title"


def test_the_monitor_shows_every_round_in_the_order_of_the_stages(tmp_path):
    write_toy_run(tmp_path / "run", seeds=2)
    assert report.monitor_table(report.load_run(tmp_path / "run")).empty
    for seed in (0, 1):
        for place, (stage, number) in enumerate((("brite_psi", 1), ("brite", 1), ("brite_psi_round2", 2), ("brite_round2", 2))):
            directory = tmp_path / "run" / f"seed{seed}" / stage
            write_stage(directory, seed=seed, round=number)
            names = ("elbo", "elbo_sampling_se", "log_marginal", "log_marginal_sampling_se", "log_marginal_se", "gap", "kl", "ess")
            value = {"elbo_sampling_se": 0.1, "log_marginal_sampling_se": 0.2}
            extend_record(directory, metrics={f"em/{name}": value.get(name, -place + 0.5 * seed) for name in names} | {"loss": 1.0})
        rs = tmp_path / "run" / f"seed{seed}" / "rs"
        write_stage(rs, seed=seed, round=1)
        extend_record(rs, metrics={f"em/{name}": 1.0 for name in names})
    table = report.monitor_table(report.load_run(tmp_path / "run"))
    assert table["after"].tolist() == ["rs", "brite_psi", "brite", "brite_psi_round2", "brite_round2"]
    assert table["round"].tolist() == [1, 1, 1, 2, 2]
    assert table["log P(y*|x)"].tolist() == ["1.000", "0.250", "-0.750", "-1.750", "-2.750"]  # means over the two seeds
    page = report.write_html(report.load_run(tmp_path / "run"), {}, tmp_path / "report.html").read_text()
    assert "EM monitor" in page and "-1.750" in page
    (path,) = report.figures(report.load_run(tmp_path / "run"))["EM monitor"].axes  # rs has one update: no path to draw
    assert path.get_title(loc="left") == "brite" and [label.get_text() for label in path.get_xticklabels()] == ["ψ 1", "θ 1", "ψ 2", "θ 2"]
    assert (tmp_path / "run" / "figures" / "monitor.png").is_file()


def test_rationales_are_the_first_of_each_method(tmp_path):
    write_toy_run(tmp_path / "run", levels=("easy", "hard"))
    examples = report.rationales(report.load_run(tmp_path / "run"), problems=2)
    assert [example["benchmark"] for example in examples] == ["toy-easy"] * 2 + ["toy-hard"] * 2
    assert [sample["method"] for sample in examples[0]["samples"]] == ["base", "rs", "brite_psi", "brite"]
    first = toy.toy_problems("easy", "test", limit=1)[0]
    assert (examples[0]["question"], examples[0]["gold"]) == (first.question, first.answer)
    assert all(sample["temperature"] == 1.0 and sample["sample"] == 0 for sample in examples[0]["samples"])


def test_the_file_is_whole_without_a_network_and_text_is_escaped(tmp_path):
    write_toy_run(tmp_path / "run", levels=("easy", "medium"), seeds=2)
    run = report.load_run(tmp_path / "run", title="<b>bold</b>")
    pictures = report.figures(run)
    assert len(pictures) == 8  # ψ and θ for each level
    page = report.write_html(run, pictures, tmp_path / "run" / "report.html").read_text()
    addresses = re.findall(r"\b(?:src|href|srcset|data)\s*=\s*[\"']([^\"']+)", page.replace("&#34;", ""))
    assert len(addresses) == 8 and all(address.startswith("data:image/svg+xml;base64,") for address in addresses)
    assert "@import" not in page and "url(" not in page
    assert not re.search(r"<(script|link|iframe|object|base)\b", page) and "<img src=x" not in page
    assert "&lt;script src=" in page and "&lt;b&gt;bold" in page
    for svg in (base64.b64decode(address.partition(",")[2]).decode() for address in addresses):
        assert svg.lstrip().startswith("<?xml") and not re.search(r"(href|src)=\"http", svg)
    saved = {path.stem for path in (tmp_path / "run" / "figures").iterdir()}
    assert saved == {"results", "heatmap", "psi-toy-easy", "psi-toy-medium", "theta-toy-easy", "theta-toy-medium", "lengths", "styles"}
    plt.close("all")
    again = report.write_html(run, report.figures(run), tmp_path / "again.html").read_text()
    assert again == page


def test_a_run_without_evaluations_is_named(tmp_path):
    with pytest.raises(InputError, match="has no finished evaluation"):
        report.load_run(tmp_path)


def test_the_notebook_writes_all_three_files(tmp_path):
    run = tmp_path / "run"
    write_toy_run(run)
    cells = [cell for cell in nbformat.read(PROJECT_ROOT / "notebooks" / "06_report.ipynb", as_version=4).cells if cell.cell_type == "code"]
    namespace: dict = {}
    for cell in cells:
        source = cell.source
        if "parameters" in cell.metadata.get("tags", []):
            source += f"\nrun_dir = {str(run)!r}\n"
        exec(compile(source, "06_report", "exec"), namespace)
    assert {"report.html", "results.json", "results.csv"} <= {path.name for path in run.iterdir()}
    assert len(json.loads((run / "results.json").read_text())) == 15


def test_a_half_finished_run_says_what_is_missing(tmp_path):
    write_toy_run(tmp_path / "run")
    for stage in ("brite", "eval_brite"):
        (tmp_path / "run/seed0" / stage / "stage.json").unlink()
    (tmp_path / "run/seed0/brite/error.txt").write_text("rows.jsonl: row 3: <b>answer: is missing\n")
    run = report.load_run(tmp_path / "run")
    assert report.unfinished(run) == {"seed0/brite": "rows.jsonl: row 3: <b>answer: is missing", "seed0/eval_brite": "not finished"}
    page = report.write_html(run, {}, tmp_path / "report.html").read_text()
    assert "<dt>seed0/brite</dt><dd>rows.jsonl: row 3: &lt;b&gt;answer" in page
    write_toy_run(tmp_path / "whole")
    assert "Not finished" not in report.write_html(report.load_run(tmp_path / "whole"), {}, tmp_path / "report.html").read_text()


def test_every_picture_says_what_to_look_at(tmp_path):
    write_toy_run(tmp_path / "run", levels=("easy", "hard"))
    run = report.load_run(tmp_path / "run")
    captions = report.figures(run)
    page = report.write_html(run, captions, tmp_path / "report.html").read_text()
    notes = [report._note(caption) for caption in captions]
    assert len(captions) >= 7 and all(notes)
    assert page.count("<figcaption>") == len(set(notes)) < len(notes)  # what two pictures share is said at the first
