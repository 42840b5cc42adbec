"""Which stage reads which, and the drawing of it, worked by hand."""

import re

import pytest
from test_report import write_toy_run
from test_results import write_stage

from brite_lib import report
from brite_lib.pipeline_graph import BOX, ROW, Drawing, Stage, draw, stage_graph

ROUNDS = {  # two EM rounds with their evaluations, and a method that nothing else reads
    "eval_base": (),
    "brite_psi": (),
    "eval_brite_psi": ("brite_psi",),
    "brite": ("brite_psi",),
    "eval_brite": ("brite",),
    "brite_psi_round2": ("brite",),
    "brite_round2": ("brite", "brite_psi_round2"),
}


def drawing_of(reads: dict[str, tuple[str, ...]], seconds: float = 1.0) -> Drawing:
    return draw({name: Stage(name, seconds, 1, sources) for name, sources in reads.items()})


def test_the_graph_is_that_of_the_records_inputs_with_mean_seconds(tmp_path):
    run = tmp_path / "runs" / "run"
    for seed in (0, 1):
        stages = run / f"seed{seed}"
        write_stage(stages / "brite_psi", (tmp_path / "model",), seed, seconds=100.0 + seed)
        elsewhere = tmp_path / "runs" / "another" / f"seed{seed}" / "rs_sampling" / "rationales.parquet"
        inputs = (stages / "brite_psi" / "rationales.parquet", stages / "brite_psi" / "model", elsewhere)
        write_stage(stages / "brite", inputs, seed, seconds=20.0 + 2 * seed)
    write_stage(run / "seed0" / "sft", ("runs/run/seed0/brite/model",), seconds=3.0)  # as a record inside the project has it
    records = {path.parent.relative_to(run).as_posix(): report.read_record(path) for path in sorted(run.glob("seed*/*/stage.json"))}
    graph = stage_graph(report.Run(run, "", [], records))
    assert graph == {
        "brite": Stage("brite", 21.0, 2, ("brite_psi",)),
        "brite_psi": Stage("brite_psi", 100.5, 2, ()),
        "sft": Stage("sft", 3.0, 1, ("brite",)),
    }
    assert [stage.time for stage in graph.values()] == ["21.0 s", "100 s", "3.0 s"]


def test_a_chain_is_a_straight_line_with_its_evaluations_below():
    boxes = {box.stage.name: box for box in drawing_of(ROUNDS).boxes}
    row = {name: box.y / ROW for name, box in boxes.items()}
    assert row == {
        "eval_base": 0, "brite_psi": 1, "brite": 1, "eval_brite_psi": 2, "brite_psi_round2": 1, "brite_round2": 1, "eval_brite": 3
    }  # fmt: skip
    assert boxes["eval_base"].x == boxes["brite_psi"].x == 0
    assert boxes["brite_psi"].width < boxes["brite"].x == boxes["eval_brite_psi"].x < boxes["brite_psi_round2"].x < boxes["brite_round2"].x


def test_arrows_join_their_boxes_and_pass_others_in_a_row_of_their_own():
    drawing = drawing_of(ROUNDS)
    boxes = {box.stage.name: box for box in drawing.boxes}
    assert set(drawing.arrows) == {(source, name) for name, sources in ROUNDS.items() for source in sources}
    for (source, name), path in drawing.arrows.items():
        numbers = [float(number) for number in re.findall(r"[\d.]+", path)]
        assert numbers[:2] == pytest.approx([boxes[source].x + boxes[source].width, boxes[source].y + BOX / 2], abs=0.06)
        assert numbers[-2:] == pytest.approx([boxes[name].x, boxes[name].y + BOX / 2], abs=0.06)
    assert f",{2 * ROW + BOX / 2:g} H" in drawing.arrows["brite", "brite_round2"]  # between brite_psi_round2 and eval_brite


def test_no_two_stages_share_a_place_in_a_large_plan():
    reads: dict[str, tuple[str, ...]] = {}
    for task in ("a", "b"):
        for number in range(1, 8):
            before = (f"{task}.brite_round{number - 1}",) if number > 1 else ()
            reads[f"{task}.brite_psi_round{number}"] = before
            reads[f"{task}.brite_round{number}"] = (*before, f"{task}.brite_psi_round{number}")
            reads[f"{task}.eval_brite_round{number}"] = (f"{task}.brite_round{number}",)
            reads[f"{task}.eval_brite_psi_round{number}"] = (f"{task}.brite_psi_round{number}",)
    drawing = drawing_of(reads)
    places = {(box.x, box.y) for box in drawing.boxes}
    assert len(places) == len(reads) == 56
    assert all(box.x + box.width <= drawing.width and box.y + BOX <= drawing.height for box in drawing.boxes)
    lowest_of_a = max(box.y for box in drawing.boxes if box.stage.name.startswith("a."))
    assert lowest_of_a < min(box.y for box in drawing.boxes if box.stage.name.startswith("b."))


def test_a_circle_is_refused_and_stages_without_seconds_are_drawn():
    with pytest.raises(ValueError, match="read each other in a circle: rs, sft"):
        drawing_of({"rs": ("sft",), "sft": ("rs",)})
    assert [box.share for box in drawing_of({"rs": ()}, seconds=0.0).boxes] == [0.0]


def test_the_drawing_stands_in_the_report_and_in_a_notebook(tmp_path):
    write_toy_run(tmp_path / "run", seeds=2)
    run = report.load_run(tmp_path / "run")
    drawn = report.pipeline_html(run)._repr_html_()
    assert "<title>brite: 22.0 s, mean over 2 seeds; reads brite_psi</title>" in drawn
    assert drawn.strip() in report.write_html(run, {}, tmp_path / "report.html").read_text()
