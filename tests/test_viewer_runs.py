import json
import os

import pytest

from brite_lib.errors import InputError
from brite_lib.viewer import pick_run
from brite_lib.viewer.runs import comparison


def write_record(directory, **changes):
    directory.mkdir(parents=True)
    record = {
        "stage": directory.name, "params": {"lr": 0.1, "seed": 0}, "seed": 0, "seconds": 2.0, "tokens_generated": 10, "tokens_trained": 0,
        "inputs": {}, "outputs": {}, "metrics": {"pass@1": 0.25, "note": "<b>"},
    }  # fmt: skip
    (directory / "stage.json").write_text(json.dumps(record | changes))
    return directory


def cells(table):
    rows = [row.split("</td>")[:-1] for row in table.split("<tr>")[1:]]
    return [[cell.rpartition(">")[2] for cell in row] for row in rows if row]


def test_metrics_of_two_stages_and_what_they_were_set_to(tmp_path):
    first = write_record(tmp_path / "a/seed0/brite")
    second = write_record(tmp_path / "b/seed0/rs", params={"lr": 0.2, "seed": 0}, metrics={"pass@1": 0.75, "other": None}, seconds=5.0)
    rows = {row[0]: row[1:] for row in cells(comparison(first, second))}
    assert rows["pass@1"] == ["0.25", "0.75", "-0.5"]
    assert rows["note"] == ["&lt;b&gt;", "–", ""] and rows["other"] == ["–", "–", ""]
    assert rows["seconds"] == ["2", "5", "-3"] and rows["lr"] == ["0.1", "0.2"]
    assert "seed" not in rows
    shown, _, folded = comparison(first, second).partition("<details>")
    assert "pass@1" in shown and "of one of them only: 2" in folded and "other" in folded and "other" not in shown


def test_the_picker_begins_with_two_stages_of_one_name(tmp_path):
    for number, name in enumerate(("a/seed0/brite", "b/seed0/rs", "a/seed0/rs", "b/seed0/brite")):
        os.utime(write_record(tmp_path / name) / "stage.json", (number, number))
    picker = pick_run(tmp_path)
    assert (picker.first.value, picker.second.value) == ("b/seed0/brite", "a/seed0/brite")
    alone = pick_run(tmp_path / "a/seed0/rs")
    assert alone.first.value == alone.second.value


def test_the_picker_follows_its_lists(tmp_path):
    with pytest.raises(InputError, match="has no finished stage"):
        pick_run(tmp_path)
    write_record(tmp_path / "a/seed0/brite")
    write_record(tmp_path / "b/seed0/rs", metrics={"pass@1": 0.5})
    picker = pick_run(tmp_path)
    assert repr(picker).startswith("RunPicker(")  # JupyterLab asks for it
    assert set(picker.stages) == {"a/seed0/brite", "b/seed0/rs"} == {picker.first.value, picker.second.value}
    picker.first.value, picker.second.value = "a/seed0/brite", "b/seed0/rs"
    assert picker.directory == tmp_path / "a/seed0/brite" and cells(picker.table.value)[0] == ["pass@1", "0.25", "0.5", "-0.25"]
    picker.second.value = "a/seed0/brite"
    assert cells(picker.table.value)[0] == ["pass@1", "0.25", "0.25", "0"]
    (tmp_path / "a/seed0/brite/stage.json").write_text("{")
    picker.second.value = "b/seed0/rs"
    assert "is no readable stage record" in picker.table.value
    picker.close()
