"""What the rationale browser can show: any table with the columns of design section 6, checked in one place.

A table is the path of a parquet file (a relative one may start at the project), an arrow table, a Dataset, a DataFrame, a list of row
dicts, or a list of paths that belong together (several methods on the same problems). Unknown columns of one value per row are kept,
to be sorted and filtered by.
"""

import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from brite_lib.errors import InputError
from brite_lib.params import resolve_path, suggestion
from brite_lib.tables import PREDICTIONS, RATIONALES, read_parquet

if TYPE_CHECKING:
    from datasets import Dataset

Rows = Union[str, Path, pa.Table, "Dataset", pd.DataFrame, Sequence[Mapping[str, Any]], Sequence[str | Path]]

KNOWN = {field.name: field.type for schema in (PREDICTIONS, RATIONALES) for field in schema}
REQUIRED = ("id", "question", "gold", "rationale", "correct", "finished", "source")
MAY_BE_NULL = ("correct",)
DEFAULTS = {"round": 1, "sample": 0}
PER_TOKEN = ("logp_psi", "logp_theta", "advantage", "value", "rationale_ids")
SURROGATE = re.compile("[\ud800-\udfff]")


def read_rows(table: Rows) -> pa.Table:
    """The table in arrow, its known columns in the types of the schema.

    Raises:
        InputError: one sentence naming the file, row (counted from 1) and column: no such file, no row, a missing column or value,
            a wrong type, tokens and per-token values of different lengths.
    """
    if isinstance(table, str | Path):
        return _checked(read_parquet(resolve_path(table)), f"{table}: ")
    loaded = sys.modules.get("datasets")  # who has a Dataset has loaded it, which takes seconds
    if loaded and isinstance(table, loaded.Dataset):
        table = table.with_format("arrow")[:]
    if isinstance(table, pa.Table):
        return _checked(table, "")
    if isinstance(table, pd.DataFrame):
        return _checked(_from_rows(table.astype(object).where(table.notna(), None).to_dict("records")), "")
    if not isinstance(table, Sequence):
        raise InputError(f"table: must be a parquet path, a Dataset, a DataFrame or a list of rows, not {type(table).__name__}")
    if table and all(isinstance(item, str | Path) for item in table):
        files = {path: read_parquet(resolve_path(path)) for path in table}
        full = {path: rows for path, rows in files.items() if rows.num_rows} or files  # one may have found nothing
        return pa.concat_tables([_checked(rows, f"{path}: ") for path, rows in full.items()], promote_options="permissive")
    return _checked(_from_rows(table), "")


def _from_rows(rows: Sequence[Any]) -> pa.Table:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InputError(f"table: row {number}: must be a mapping of column to value, not {type(row).__name__}")
    columns = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [_encodable(row.get(name)) for row in rows]
        try:
            columns[name] = pa.array(values, KNOWN.get(name))
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            number, error = _first_misfit(values, KNOWN.get(name))
            raise InputError(f"table: row {number}: {name}: {error}") from None
    return pa.table(columns)


def _first_misfit(values: list[Any], kind: pa.DataType | None) -> tuple[int, str]:
    for number, value in enumerate(values, start=1):
        try:
            pa.array([value], kind)
        except (pa.ArrowException, TypeError, OverflowError, ValueError):
            return number, f"must be {kind or 'text, a number or a list'}, not {textwrap.shorten(repr(value), 80)}"
    return 1, "the rows have values of different types"


def _encodable(value: Any) -> Any:
    """Text without lone surrogates, which no file can hold; lists one level deep."""
    if isinstance(value, str):
        return SURROGATE.sub("\ufffd", value)
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value


def _checked(table: pa.Table, where: str) -> pa.Table:
    where = where or "table: "
    if table.num_rows == 0:
        raise InputError(f"{where}has no row, there is nothing to show")
    for name in REQUIRED:
        if name not in table.column_names:
            close = suggestion(name, [column for column in table.column_names if column not in KNOWN])
            raise InputError(f"{where}column {name} is missing{close}; it needs {', '.join(REQUIRED)}")
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks() if table[name].num_chunks != 1 else table[name].chunk(0)
        if name in KNOWN:
            try:
                column = column.cast(KNOWN[name])
            except pa.ArrowException:
                raise InputError(f"{where}column {name} must be {KNOWN[name]}, not {column.type}") from None
        if name in DEFAULTS:
            column = pc.fill_null(column, DEFAULTS[name])
        if name in REQUIRED and name not in MAY_BE_NULL and column.null_count:
            raise InputError(f"{where}row {_first(pc.is_null(column))}: {name}: is missing")
        if name in KNOWN or not pa.types.is_nested(column.type):
            columns[name] = column
    for name, value in DEFAULTS.items():
        columns.setdefault(name, pa.array([value] * table.num_rows, KNOWN[name]))
    checked = pa.table(columns)
    _check_lengths(checked, where)
    return checked


def _check_lengths(table: pa.Table, where: str) -> None:
    tokens = list_lengths(table, "tokens")
    for name in PER_TOKEN:
        if name not in table.column_names:
            continue
        present, lengths = table[name].is_valid(), list_lengths(table, name)
        wrong = pc.and_(present, pc.not_equal(tokens, lengths))
        if name == "rationale_ids":  # ids without texts are no error: nothing is shown by them
            wrong = pc.and_(wrong, pc.greater(tokens, 0))
        if pc.any(wrong).as_py():
            row = _first(wrong)
            raise InputError(f"{where}row {row}: {name} has {lengths[row - 1]} values for {tokens[row - 1]} tokens")


def list_lengths(table: pa.Table, name: str) -> pa.Array:
    """How many items each row's list has, 0 for null or where the column is missing; (rows,) int32."""
    if name not in table.column_names:
        return pa.array([0] * table.num_rows, pa.int32())
    return pc.fill_null(pc.list_value_length(table[name]), 0).combine_chunks().cast(pa.int32())


def _first(mask: Any) -> int:
    return pc.index(mask, pa.scalar(True)).as_py() + 1
