"""``load_problems``: one table of problems from any source, every row checked before anything is computed."""

import json
import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value, load_dataset
from datasets.exceptions import DatasetsError
from pydantic import ValidationError

from brite_lib.benchmarks import BENCHMARKS, Benchmark, benchmark_of, layout_of, published_split
from brite_lib.errors import InputError
from brite_lib.params import is_path, is_toy, resolve_path, suggestion
from brite_lib.problems.problem import Problem
from brite_lib.problems.toy import HUMANS, LEVELS, SPLITS, toy_problems
from brite_lib.tables import read_json_lines, read_parquet

FEATURES = Features({name: List(Value("string")) if name == "choices" else Value("string") for name in Problem.model_fields})
FILE_ENDINGS = (".jsonl", ".jsonl.gz", ".parquet")

# GSM8K's calculator annotations, <<16-3-4=9>>: the result follows as text anyway, and no model here has a calculator.
CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
FINAL_LINE = re.compile(r"\s*^####[ \t]*(.*?)\s*\Z", re.MULTILINE)


def load_problems(source: str | Path, split: str, limit: int | None = None, seed: int = 0) -> Dataset:
    """Problems with the columns of :class:`Problem`, all of them validated.

    Args:
        source: one of

            - ``toy:<level>`` or ``toy:<level>:<careful|careless>``: the embedded task, with human rationales of that
              kind (default careless); ``toy`` alone is its easy level;
            - a ``.jsonl``, ``.jsonl.gz`` or ``.parquet`` file (``split`` is then not used), or a directory that holds
              ``<split>`` with one of these endings;
            - a benchmark's name (:data:`brite_lib.benchmarks.BENCHMARKS`), or a directory of that name that holds a copy of
              the hub's repository (``hf download --repo-type dataset``), known by its ``README.md``;
            - any other ``org/name`` of the hub.

            Rows need ``question`` and ``answer``, and may have the other columns of :class:`Problem`; further columns
            are ignored. Code rows have ``task_id``, ``prompt``, ``canonical_solution``, ``test`` and ``entry_point``; the
            answer is then a whole program that passes ``tests``. A benchmark, and a directory with a benchmark's name,
            may have the hub's columns instead. A row without ``id`` gets ``<name>/<split>/<row>`` (a file:
            ``<name>/<row>``), counted from 0. A text in GSM8K's format is split: what follows ``####`` in the last line
            is the answer (if the row has no other), the rationale ends before it, and calculator marks ``<<…>>`` are
            removed.
        split: name of the split.
        limit: at least 1: with ``seed`` 0 the first rows, else the head of a shuffle with that seed; None: all. On the toy task
            always the first problems, 1000 by default.
        seed: of the shuffle.

    Raises:
        InputError: one sentence naming the file or data set, the row (counted from 1; a line of a JSONL file) and the
            column: missing or empty question or answer, wrong type, duplicate id, broken JSON, truncated file, unknown
            source or split, hub out of reach, a gated benchmark without a login; or a limit below 1.

    A benchmark whose whole split has another number of rows than published says so in a printed line.
    """
    source = str(source)
    if limit is not None and limit < 1:
        raise InputError(f"limit: must be at least 1 (got {limit})")
    if is_toy(source):
        return Dataset.from_list([problem.model_dump() for problem in _toy(source, split, limit)], features=FEATURES)
    benchmark = benchmark_of(source)
    if benchmark and _is_copy_of_the_hub(resolve_path(source), split):
        place, rows = f"{source} ({split})", enumerate(_of_benchmark(benchmark, source, split, str(resolve_path(source))), start=1)
        name = f"{Path(source).name}/{split}"
    elif is_path(source) or source.endswith(FILE_ENDINGS):
        path = _find_file(resolve_path(source), split)
        place, rows = str(path), _read(path)
        name = path.name.removesuffix(_ending(path)) if resolve_path(source).is_file() else f"{path.parent.resolve().name}/{split}"
    else:
        place, rows = f"{source} ({split})", enumerate(_from_hub(source, split), start=1)
        name = f"{source}/{split}"
    problems = Dataset.from_list([problem.model_dump() for problem in _validated(rows, name, place, benchmark)], features=FEATURES)
    published = published_split(source, split)
    if limit is None and published and len(problems) != published[1]:
        print(f"note: {place}: {len(problems):,} rows, where {published[1]:,} are published")
    if limit is not None and seed > 0:
        problems = problems.shuffle(seed=seed)
    return problems if limit is None else problems.select(range(min(limit, len(problems))))


def has_split(source: str, split: str) -> bool:
    """Whether a source has a split of this name; a single file has none, as :func:`load_problems` takes it under any.

    Raises:
        InputError: one sentence, if the hub is out of reach or has no such data set.
    """
    if is_toy(source):
        return split in SPLITS
    if is_path(source) or source.endswith(FILE_ENDINGS):
        path = resolve_path(source)
        return bool(_split_file(path, split) or (_is_copy_of_the_hub(path, split) and published_split(source, split)))
    benchmark = benchmark_of(source)
    return split in (benchmark.splits if benchmark else _load_dataset(source, None, None))


def _toy(source: str, split: str, limit: int | None) -> list[Problem]:
    _, _, which = source.partition(":")
    level, _, human = (which or "easy").partition(":")
    if level not in LEVELS:
        raise InputError(f"data: {source}: name a level as in toy:easy{suggestion(level, LEVELS)}")
    if human not in (*HUMANS, ""):
        raise InputError(f"data: {source}: unknown rationales {human!r}{suggestion(human, HUMANS)}")
    try:
        return toy_problems(level, split, limit or 1000, human or "careless")
    except ValueError as error:
        raise InputError(f"data: {source}: {error}") from None


def _is_copy_of_the_hub(path: Path, split: str) -> bool:
    return (path / "README.md").is_file() and not _split_file(path, split)


def _split_file(path: Path, split: str) -> Path | None:
    return next((file for ending in FILE_ENDINGS if (file := path / f"{split}{ending}").is_file()), None)


def _find_file(path: Path, split: str) -> Path:
    if path.is_dir():
        if file := _split_file(path, split):
            return file
        splits = sorted(p.name.removesuffix(_ending(p)) for p in path.iterdir() if _ending(p))
        raise InputError(f"{path}: has no split {split!r}{suggestion(split, splits)}")
    if not path.is_file():
        raise InputError(f"{path}: no such data file or directory")
    if not _ending(path):
        raise InputError(f"{path}: is no {', '.join(FILE_ENDINGS)} file")
    return path


def _ending(path: Path) -> str:
    return next((ending for ending in FILE_ENDINGS if path.name.endswith(ending)), "")


def _read(path: Path) -> Iterator[tuple[int, Any]]:
    return enumerate(read_parquet(path).to_pylist(), start=1) if path.suffix == ".parquet" else read_json_lines(path)


def _from_hub(source: str, split: str) -> Iterable[dict[str, Any]]:
    benchmark = benchmark_of(source)
    return _of_benchmark(benchmark, source, split, benchmark.repository) if benchmark else _load_dataset(source, None, split)


def _of_benchmark(benchmark: Benchmark, source: str, split: str, repository: str) -> Iterable[dict[str, Any]]:
    """The rows of all its configurations, from the hub or from a downloaded copy of the repository."""
    published = published_split(source, split)
    if not published:
        raise InputError(f"data: {source}: has no split {split!r}; known: {', '.join(benchmark.splits)}{benchmark.advice}")
    parts = [_load_dataset(repository, configuration, published[0]) for configuration in benchmark.configurations]
    return chain.from_iterable(parts)


def _load_dataset(repository: str, configuration: str | None, split: str | None) -> Any:
    """The rows of a split; None: all splits by name."""
    if repository.count("/") != 1 and not is_path(repository):
        known = suggestion(repository, BENCHMARKS)
        raise InputError(f"data: {repository!r} is no toy:<level>, path, benchmark or org/name of the hub{known}")
    try:
        return load_dataset(repository, configuration, split=split)
    except (OSError, ValueError, DatasetsError) as error:  # no network, no such data set or split, no login, broken download
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        place = f"data: {repository} ({split or 'its splits'})"
        if is_path(repository):
            raise InputError(f"{place}: is no whole copy of the hub's repository ({reason})") from None
        way_out = "offline, give a local path"
        if (benchmark := benchmark_of(repository)) and benchmark.gated:
            consent = f"accept its terms at https://huggingface.co/datasets/{repository}, then hf auth login (or the variable HF_TOKEN)"
            way_out = f"it is gated: {consent}; {way_out}"
        raise InputError(f"{place}: cannot be loaded from the hub ({reason}); {way_out}") from None


def _validated(rows: Iterable[tuple[int, Any]], name: str, place: str, benchmark: Benchmark | None) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, (number, row) in enumerate(rows):
        where = f"{place}: row {number}"
        if not isinstance(row, dict):
            raise InputError(f"{where}: must be an object with question and answer, found {type(row).__name__}")
        row = _in_our_columns(row, benchmark, where)
        row.setdefault("id", f"{name}/{index}")
        if type(row["id"]) is int:  # hub data sets number their rows
            row["id"] = str(row["id"])
        for key in ("question", "answer"):
            if key in row and isinstance(row[key], str) and not row[key].strip():
                raise InputError(f"{where}: {key}: is empty")
        try:
            problem = Problem.model_validate(_without_final_line(row), strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            reason = "is missing" if first["type"] == "missing" else first["msg"]
            if first["type"] == "string_type":
                reason = f"must be a string, found {json.dumps(first['input'], default=str)[:60]}; write it in quotes"
            raise InputError(f"{where}: {'.'.join(map(str, first['loc']))}: {reason}") from None
        if problem.id in seen:
            raise InputError(f"{where}: id: {problem.id!r} is already in row {seen[problem.id]}")
        seen[problem.id] = number
        yield problem
    if not seen:
        raise InputError(f"{place}: has no rows")


def _in_our_columns(row: dict[str, Any], benchmark: Benchmark | None, where: str) -> dict[str, Any]:
    """The row with the columns of :class:`Problem`, from whichever layout it is written in; nulls are left out."""
    row = {key: value for key, value in row.items() if value is not None}
    layout = layout_of(row, benchmark)
    if layout:
        try:
            row = layout.to_problem(row)
        except (TypeError, ValueError, IndexError, KeyError, AttributeError):  # a column holds something else than in this layout
            raise InputError(f"{where}: {', '.join(layout.columns)}: one of them does not hold what it should in this layout") from None
    elif benchmark:
        columns = benchmark.layout.columns
        missing = next(column for column in columns if column not in row)
        raise InputError(f"{where}: {missing}: is missing; this benchmark has {', '.join(columns)}, or question and answer")
    return {key: value for key, value in row.items() if key in Problem.model_fields and value is not None}


def _without_final_line(row: dict[str, Any]) -> dict[str, Any]:
    """The row with a GSM8K text, ``rationale #### answer`` in either column, taken apart."""
    column = "rationale" if "rationale" in row else "answer"
    if not isinstance(text := row.get(column), str) or not (final := FINAL_LINE.search(text)):
        return row
    row["rationale"] = CALCULATOR_MARK.sub("", text[: final.start()]).strip() or None
    if column == "answer":
        row["answer"] = final[1].replace(",", "")
    return row
