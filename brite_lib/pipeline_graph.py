"""The stages of a run as a graph: which stage reads which, and the seconds of each, laid out for ``pipeline.svg.j2``.

Stages that read each other's files, directly or not, form a band of rows. In a band a stage stands right of all that it reads, and what
goes on from a stage stays on its row if there is room, so that a chain of EM rounds is a straight line with its evaluations below.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from brite_lib.params import method_order

if TYPE_CHECKING:
    from brite_lib.report import Run

ROW, BOX = 27, 20  # px: from row to row, and the height of a stage
GAP, PADDING, CHARACTER = 24, 6, 6.35  # px: between columns, in a stage, and of a monospaced character of 10.5 px


@dataclass(frozen=True)
class Stage:
    """A stage of all seeds.

    Attributes:
        name: its directory below the seed's.
        seconds: mean over seeds.
        seeds: their number.
        reads: names of the stages whose files it read.
    """

    name: str
    seconds: float
    seeds: int
    reads: tuple[str, ...]

    @property
    def time(self) -> str:
        return f"{self.seconds:,.1f} s" if self.seconds < 100 else f"{self.seconds:,.0f} s"


@dataclass(frozen=True)
class Box:
    """A stage in the drawing: px from the top left corner; ``share`` of the slowest stage's seconds."""

    stage: Stage
    x: float
    y: float
    width: float
    share: float


@dataclass(frozen=True)
class Drawing:
    """Boxes, and the SVG path of each arrow by the stage that is read and the one that reads."""

    boxes: list[Box]
    arrows: dict[tuple[str, str], str]
    width: float
    height: float
    box_height: int = BOX


def stage_graph(run: "Run") -> dict[str, Stage]:
    """The stages of a run by name. Inputs are those of the records; one from outside the run is no stage."""
    directory = run.dir.resolve()
    project = directory.parents[1]  # paths in records are relative to it; the run may be another clone's
    seconds: dict[str, list[float]] = defaultdict(list)
    reads: dict[str, dict[str, None]] = defaultdict(dict)
    for key, record in run.records.items():
        name = _below_seed(key)
        seconds[name].append(record["seconds"])
        for path in record["inputs"]:
            made_in = (project / path).resolve().parent
            source = made_in.relative_to(directory).as_posix() if made_in.is_relative_to(directory) else ""
            if source in run.records and _below_seed(source) != name:
                reads[name][_below_seed(source)] = None
    return {name: Stage(name, fmean(values), len(values), tuple(reads[name])) for name, values in seconds.items()}


def draw(stages: Mapping[str, Stage]) -> Drawing:
    """Lay out a graph of stages.

    Raises:
        ValueError: if stages read each other in a circle.
    """
    columns = _columns(stages)
    rows: dict[tuple[str, int], int] = {}
    for band in _bands(stages):
        rows |= _rows(band, stages, columns, top=1 + max(rows.values(), default=-1))
    widths = [0.0] * (1 + max(columns.values()))
    for stage in stages.values():
        widths[columns[stage.name]] = max(widths[columns[stage.name]], CHARACTER * len(f"{stage.name}  {stage.time}") + 2 * PADDING)
    left = [sum(widths[:column]) + GAP * column for column in range(len(widths))]
    slowest = max(stage.seconds for stage in stages.values()) or 1.0
    boxes = []
    for name, stage in stages.items():
        column = columns[name]
        boxes.append(Box(stage, left[column], ROW * rows[name, column], widths[column], stage.seconds / slowest))
    arrows = {}
    for name, stage in stages.items():
        for source in stage.reads:
            first, last = columns[source], columns[name]
            at = [rows[source, first], *(rows[_arrow(source, name), column] for column in range(first + 1, last)), rows[name, last]]
            arrows[source, name] = _path([row * ROW + BOX / 2 for row in at], left[first : last + 1], widths[first : last + 1])
    return Drawing(boxes, arrows, left[-1] + widths[-1], ROW * (1 + max(rows.values())))


def _columns(stages: Mapping[str, Stage]) -> dict[str, int]:
    """One more than the largest column of what a stage reads."""
    columns: dict[str, int] = {}
    while len(columns) < len(stages):
        ready = [stage for stage in stages.values() if stage.name not in columns and all(source in columns for source in stage.reads)]
        if not ready:
            raise ValueError(f"stages read each other in a circle: {', '.join(name for name in stages if name not in columns)}")
        columns |= {stage.name: 1 + max((columns[source] for source in stage.reads), default=-1) for stage in ready}
    return columns


def _bands(stages: Mapping[str, Stage]) -> list[set[str]]:
    """Stages that are connected, by task and in the order of the result table."""
    bands: list[set[str]] = []
    for stage in stages.values():
        touched = [band for band in bands if band & {stage.name, *stage.reads}]
        bands = [band for band in bands if band not in touched] + [{stage.name, *stage.reads}.union(*touched)]
    return sorted(bands, key=lambda band: min(map(_order, band)))


def _rows(band: set[str], stages: Mapping[str, Stage], columns: Mapping[str, int], top: int) -> dict[tuple[str, int], int]:
    """The row of each stage, and of each arrow in the columns that it crosses, from ``top`` on."""
    read = {source for name in band for source in stages[name].reads}
    rows: dict[tuple[str, int], int] = {}
    for column in range(1 + max(columns[name] for name in band)):
        wanted = []  # (row wanted, rank, order, name): what others read goes first, then passing arrows, then what ends here
        for name in band:
            if columns[name] == column:
                wish = min((rows[_last(source, name, columns)] for source in stages[name].reads), default=top)
                wanted.append((wish, 0 if name in read else 2, _order(name), name))
            for source in stages[name].reads:
                if columns[source] < column < columns[name]:
                    before = source if columns[source] == column - 1 else _arrow(source, name)
                    wanted.append((rows[before, column - 1], 1, _order(name), _arrow(source, name)))
        free = top
        for wish, _, _, name in sorted(wanted):
            rows[name, column] = max(wish, free)
            free = rows[name, column] + 1
    return rows


def _last(source: str, name: str, columns: Mapping[str, int]) -> tuple[str, int]:
    """Where the arrow from a source arrives from: the column before the stage."""
    return (source, columns[source]) if columns[source] == columns[name] - 1 else (_arrow(source, name), columns[name] - 1)


def _arrow(source: str, name: str) -> str:
    return f"{source} → {name}"


def _path(ys: Sequence[float], left: Sequence[float], widths: Sequence[float]) -> str:
    """From the right edge of the first column to the left edge of the last, straight through the columns between."""
    parts = [f"M{left[0] + widths[0]:.1f},{ys[0]:g}"]
    for column in range(1, len(ys)):
        start, end = left[column] - GAP, left[column]
        parts.append(f"C{start + GAP / 2:.1f},{ys[column - 1]:g} {start + GAP / 2:.1f},{ys[column]:g} {end:.1f},{ys[column]:g}")
        if column < len(ys) - 1:
            parts.append(f"H{end + widths[column]:.1f}")
    return " ".join(parts)


def _order(name: str) -> tuple[str, tuple[int, int, str]]:
    task, _, stage = name.rpartition(".")
    return task, method_order(stage.removeprefix("eval_"))


def _below_seed(key: str) -> str:
    return Path(*Path(key).parts[1:]).as_posix()
