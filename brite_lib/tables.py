"""The tables that stages exchange or keep (design section 6), as parquet with a checked schema.

What a person picked in the rationale browser comes as JSON lines of the same columns: a name that ends in ``.jsonl`` is read so.
"""

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from brite_lib.errors import InputError
from brite_lib.files import atomic_path
from brite_lib.params import suggestion


def _column(name: str, kind: pa.DataType, nullable: bool = True) -> pa.Field:
    return pa.field(name, kind, nullable)


_IDS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())  # log-probabilities are float32 where they are computed

_SAMPLE = [
    _column("id", pa.string(), nullable=False),
    _column("question", pa.string(), nullable=False),
    _column("gold", pa.string(), nullable=False),
    _column("rationale", pa.string(), nullable=False),
    _column("answer_text", pa.string()),  # the sampled y; null: none was sampled
    _column("prediction", pa.string()),  # the answer extracted from it
    _column("correct", pa.bool_()),  # null: not judged
    _column("finished", pa.bool_(), nullable=False),
    _column("source", pa.string(), nullable=False),
    _column("round", pa.int32(), nullable=False),
    _column("sample", pa.int32(), nullable=False),
    _column("seed", pa.int64()),  # null: not sampled (human rationales)
    _column("num_tokens", pa.int32()),
]

RATIONALES = pa.schema(
    [
        *_SAMPLE,
        _column("prompt_ids", _IDS),
        _column("rationale_ids", _IDS),
        _column("answer_ids", _IDS),
        _column("tokens", pa.list_(pa.string())),  # for display
        _column("logp_theta", _FLOATS),
        _column("logp_psi", _FLOATS),
        _column("logp_answer", pa.float64()),
        _column("reward", pa.float64()),
        _column("advantage", _FLOATS),
        _column("value", _FLOATS),
    ]
)

PREDICTIONS = pa.schema(
    [
        *_SAMPLE,
        _column("benchmark", pa.string(), nullable=False),
        _column("temperature", pa.float64(), nullable=False),  # 0: greedy
        _column("logp_answer", pa.float64()),
    ]
)

PAIRS = pa.schema(
    [
        _column("id", pa.string(), nullable=False),
        _column("question", pa.string(), nullable=False),
        _column("gold", pa.string(), nullable=False),
        _column("source", pa.string(), nullable=False),  # who sampled both
        _column("round", pa.int32(), nullable=False),
        _column("num_samples", pa.int32(), nullable=False),  # drawn for this problem
        _column("num_correct", pa.int32(), nullable=False),  # of them
        _column("prompt_ids", _IDS, nullable=False),
        *(
            _column(f"{side}_{name}", kind, nullable)
            for side in ("chosen", "rejected")
            for name, kind, nullable in (
                ("rationale", pa.string(), False),
                ("answer_text", pa.string(), True),  # null: unfinished, no y was sampled
                ("finished", pa.bool_(), False),
                ("sample", pa.int32(), False),
                ("rationale_ids", _IDS, False),
                ("answer_ids", _IDS, False),
            )
        ),
    ]
)


def write_table(rows: Sequence[dict[str, Any]], schema: pa.Schema, path: str | Path) -> None:
    """Write rows as parquet, atomically; a nullable column that a row lacks becomes null.

    Raises:
        InputError: one sentence naming the file, the row (counted from 1) and the column: unknown column, missing
            value, wrong type.
    """
    columns = _columns(rows, schema, path)
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), temporary)


def read_rationales(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``rationales.parquet``, or of JSON lines; a nullable column that is not there is null.

    Raises:
        InputError: one sentence naming the file and the column or row, if it is missing, truncated or another table.
    """
    return _read(path, RATIONALES)


def read_predictions(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``predictions.parquet``; errors as in :func:`read_rationales`."""
    return _read(path, PREDICTIONS)


def read_pairs(path: str | Path) -> list[dict[str, Any]]:
    """The rows of a ``pairs.parquet``; errors as in :func:`read_rationales`."""
    return _read(path, PAIRS)


def by_problem(rows: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The rows of each problem, in the order in which the problems come first."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(row["id"], []).append(row)
    return list(groups.values())


def read_parquet(path: str | Path) -> pa.Table:
    """Any parquet file.

    Raises:
        InputError: one sentence, if it is missing, truncated or another kind of file.
    """
    if Path(path).is_dir():
        raise InputError(f"{path}: is a directory; name a file in it, such as {Path(path) / 'rationales.parquet'}")
    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    try:
        with pq.ParquetFile(path) as file:
            return file.read()
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: is no whole parquet file, it may be truncated: {' '.join(str(error).split())}") from None


def read_json_lines(path: str | Path) -> Iterator[tuple[int, Any]]:
    """(line number, value) of a ``.jsonl`` or ``.jsonl.gz`` file; no library names the bad line.

    Raises:
        InputError: one sentence, if it is missing or truncated, or names the line that is no JSON in UTF-8.
    """
    number = 0
    try:
        with (gzip.open if Path(path).suffix == ".gz" else open)(path, "rb") as lines:  # decoded one by one: text is read ahead in blocks
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, json.loads(line.rstrip().decode("utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: row {number}: is no JSON object: {error.msg} at column {error.colno}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: row {number}: is not UTF-8 text") from None
    except (EOFError, OSError, zlib.error) as error:
        raise InputError(f"{path}: breaks off after row {number}, it may be truncated: {error}") from None


def _columns(rows: Sequence[dict[str, Any]], schema: pa.Schema, path: str | Path) -> list[pa.Array]:
    for number, row in enumerate(rows, start=1):
        for name in row.keys() - set(schema.names):
            raise InputError(f"{path}: row {number}: {name}: is no column of this table{suggestion(name, schema.names)}")
    columns = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        if not field.nullable and None in values:
            raise InputError(f"{path}: row {values.index(None) + 1}: {field.name}: is missing")
        try:
            columns.append(pa.array(values, field.type))
        except (pa.ArrowException, TypeError, OverflowError):
            number, error = next((i, e) for i, value in enumerate(values, start=1) if (e := _misfit(value, field.type)))
            raise InputError(f"{path}: row {number}: {field.name}: must be {field.type}: {error}") from None
    return columns


def _read(path: str | Path, schema: pa.Schema) -> list[dict[str, Any]]:
    if Path(path).suffix == ".jsonl":
        rows = dict(read_json_lines(path))
        if none := [number for number, row in rows.items() if not isinstance(row, dict)]:
            raise InputError(f"{path}: row {none[0]}: is no JSON object")
        return pa.Table.from_arrays(_columns(list(rows.values()), schema, path), schema=schema).to_pylist()
    table = read_parquet(path)
    for name in table.column_names:
        if name not in schema.names:
            raise InputError(f"{path}: {name}: is no column of this table{suggestion(name, schema.names)}")
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            if not field.nullable:
                raise InputError(f"{path}: column {field.name} is missing")
            columns.append(pa.nulls(table.num_rows, field.type))  # as in JSON lines: a table from elsewhere has no token ids
            continue
        column = table[field.name]
        try:
            columns.append(column.cast(field.type))  # pandas and others write large_string, int64 or float64 lists
        except pa.ArrowException:
            raise InputError(f"{path}: column {field.name} must be {field.type}, not {column.type}") from None
        if not field.nullable and column.null_count:
            raise InputError(f"{path}: row {column.is_valid().index(False).as_py() + 1}: {field.name}: is missing")
    return pa.Table.from_arrays(columns, names=schema.names).to_pylist()


def _misfit(value: Any, kind: pa.DataType) -> str:
    try:
        pa.array([value], kind)
    except (pa.ArrowException, TypeError, OverflowError) as error:
        return str(error).split("\n")[0]
    return ""
