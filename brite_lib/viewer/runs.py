"""Browse what runs left behind: ``pick_run("outputs")`` shows the metrics of any two stages of any two runs side by side."""

import html
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from brite_lib.errors import InputError
from brite_lib.params import resolve_path
from brite_lib.records import read_record, readable


class RunPicker(widgets.VBox):
    """Two stages chosen from lists, and their metrics with the difference; to begin with the newest and the last one of its name.

    Attributes:
        stages: directories of finished stages by name, ``<run>/seed<k>/<stage>``.
        first, second: the lists; ``first.value`` is the name of a stage.
        table: the comparison, as HTML.
    """

    def __init__(self, stages: dict[str, Path]):
        self.stages = stages
        newest, *older = stages
        like_it = [name for name in older if Path(name).name == Path(newest).name]
        look = {"options": list(stages), "style": {"description_width": "4em"}, "layout": widgets.Layout(width="auto")}
        self.first = widgets.Dropdown(value=newest, description="stage", **look)
        self.second = widgets.Dropdown(value=[*like_it, *older, newest][0], description="against", **look)
        self.table = widgets.HTML()
        for choice in (self.first, self.second):
            choice.observe(lambda _: self._refresh(), "value")
        self._refresh()
        super().__init__([self.first, self.second, self.table])

    @property
    def directory(self) -> Path:
        """Of the first stage."""
        return self.stages[self.first.value]

    def _refresh(self) -> None:
        try:
            self.table.value = comparison(self.stages[self.first.value], self.stages[self.second.value])
        except InputError as error:  # a record that was broken or removed since the list was made
            self.table.value = f"<p>{html.escape(str(error))}</p>"


def pick_run(root: str | Path = "outputs") -> RunPicker:
    """A picker of the finished stages below ``root``, newest first.

    Raises:
        InputError: one sentence naming the directory, if no stage has finished there.
    """
    directory = resolve_path(root)
    found = sorted(directory.glob("**/stage.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    if not found:
        raise InputError(f"root: {root}: has no finished stage (no stage.json below it)")
    return RunPicker({path.parent.relative_to(directory).as_posix(): path.parent for path in found})


def comparison(first: Path, second: Path) -> str:
    """The metrics of two stages and their difference, as an HTML table; below it costs and settings that differ, and folded what one has.

    Raises:
        InputError: one sentence naming a record that is missing or broken.
    """
    a, b = (read_record(directory / "stage.json") for directory in (first, second))
    names = dict.fromkeys([*a["metrics"], *b["metrics"]])
    both = a["metrics"].keys() & b["metrics"].keys()
    metrics, of_one = ([_row(name, a["metrics"].get(name), b["metrics"].get(name)) for name in names if (name in both) == wanted]
                       for wanted in (True, False))  # fmt: skip
    costs = [_row(name, a.get(name), b.get(name)) for name in ("seconds", "tokens_generated", "tokens_trained", "peak_rss_gib")]
    settings = [
        _row(name, a["params"].get(name), b["params"].get(name))[:3]
        for name in dict.fromkeys([*a["params"], *b["params"]])
        if a["params"].get(name) != b["params"].get(name)
    ]
    parts = (("metric", metrics), ("cost", costs), ("setting that differs", settings))
    folded = f"<details><summary>of one of them only: {len(of_one)}</summary>{_table('metric', of_one)}</details>" if of_one else ""
    return "".join(_table(title, part) for title, part in parts if part) + folded


def _row(name: str, a: Any, b: Any) -> tuple[str, ...]:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return name, readable(a)[:120], readable(b)[:120], readable(a - b) if numbers else ""


def _table(title: str, rows: list[tuple[str, ...]]) -> str:
    cells = "\n".join("<tr>" + "".join(_cell(text, place) for place, text in enumerate(row)) + "</tr>" for row in rows)
    heads = "".join(f'<th style="text-align:{"right" if place else "left"};padding:0 1em 0 0">{head}</th>'
                    for place, head in enumerate((title, "stage", "against", "stage − against")[: len(rows[0])]))  # fmt: skip
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{cells}</tbody></table>"


def _cell(text: str, place: int) -> str:
    return f'<td style="text-align:{"right" if place else "left"};padding:0 1em 0 0">{html.escape(text)}</td>'
