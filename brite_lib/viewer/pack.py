"""A rationale table as few bytes as possible, for a page that unpacks it in the browser.

Every part ("blob") is gzip: ``rows`` (JSON: one array per column, texts by number into a list of different ones), ``vocab`` and
``ids`` (JSON: the token texts with their ids; prompts and answers as token ids, for exports), ``tokens`` (numbers into the vocabulary,
little-endian uint16 or uint32) and one blob per channel of per-token numbers.

A channel value x is stored as the integer nearest to c·(1 + sign(x)·√(|x|/m)), m the largest |x| and c half the range of the integer:
small numbers finely, large ones coarsely. Up to ``FINE_TOKENS`` tokens an integer has 16 bits, above it 8; ``error`` is the largest
difference that was measured. Both log-probabilities share m, so equal ones have a log-ratio of exactly 0. Sums over a rationale are
computed here, exactly, and never from the stored integers.
"""

import gzip
import hashlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from brite_lib.errors import InputError
from brite_lib.viewer.table import list_lengths

CHANNELS = {"psi": "logp_psi", "theta": "logp_theta", "advantage": "advantage", "value": "value"}
FINE_TOKENS = 1_000_000  # tokens of a table whose channels get 16 bits each
SAFE_INTEGER = 2**53 - 1  # larger ones would be rounded by JavaScript


@dataclass(frozen=True)
class Packed:
    """A packed table.

    Attributes:
        table: the rows that are in it.
        blobs: gzip bytes by name.
        note: one sentence if rows were left out, else empty.
    """

    table: pa.Table
    blobs: dict[str, bytes]
    note: str

    @property
    def size(self) -> int:
        """Bytes in a page, where blobs are base64."""
        return sum(-(-len(blob) // 3) * 4 for blob in self.blobs.values())


def pack(table: pa.Table, title: str = "", max_mb: float = 50.0) -> Packed:
    """Pack a checked table; above ``max_mb`` megabytes (10⁶ bytes) a sample of whole problems, the same one for the same table.

    Raises:
        InputError: if not even one problem fits.
    """
    packed = _packed(table, title, "")
    names = sorted(pc.unique(table["id"]).to_pylist(), key=lambda name: hashlib.sha256(name.encode()).digest())
    kept = len(names)
    while packed.size > max_mb * 1e6:
        kept = int(0.97 * kept * max_mb * 1e6 / packed.size)
        if kept < 1:
            raise InputError(f"max_mb: one problem alone is larger than {max_mb:g} MB; raise it")
        chosen = table.filter(pc.is_in(table["id"], pa.array(names[:kept], table["id"].type)))
        shown = f"{kept:,} of {len(names):,} problems ({chosen.num_rows:,} of {table.num_rows:,} rationales)"
        note = f"A random {shown}: all would exceed {max_mb:g} MB."
        packed = _packed(chosen, title, note)
    return packed


def _packed(table: pa.Table, title: str, note: str) -> Packed:
    counts = list_lengths(table, "tokens").to_numpy()
    channels, blobs = _channels(table, counts)
    sums = _sums(table, counts)
    lists = ("tokens", "prompt_ids", "rationale_ids", "answer_ids", *CHANNELS.values())
    columns = {name: _column(table[name]) for name in table.column_names if name not in (*lists, "rationale")}
    columns["num_tokens"] = _numbers(_lengths(table, counts))
    columns |= {name: _numbers(values) for name, values in sums.items()}
    head = {
        "title": title,
        "note": note,
        "count": table.num_rows,
        "columns": columns,
        "token_counts": counts.tolist(),
        "channels": channels,
        "text": _texts(table),
    }
    vocabulary, tokens = _tokens(table)
    blobs |= {"vocab": _json(vocabulary), "tokens": gzip.compress(tokens, 6, mtime=0), "ids": _json(_ids(table))}
    key = hashlib.sha256(_json(head)).hexdigest()[:16]  # of what a page keeps in the browser's storage
    return Packed(table, {"rows": _json(head | {"key": key}), **blobs}, note)


def _column(column: pa.ChunkedArray) -> dict[str, Any]:
    if pa.types.is_boolean(column.type):
        return {"kind": "bool", "values": [None if value is None else int(value) for value in column.to_pylist()]}
    if pa.types.is_integer(column.type):
        values = column.to_pylist()
        if all(value is None or abs(value) <= SAFE_INTEGER for value in values):
            return {"kind": "number", "values": values}
        return _dictionary(column.cast(pa.string()))
    if pa.types.is_floating(column.type):
        return _numbers(column.cast(pa.float64()).to_numpy())
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        column = pa.chunked_array([pa.array([None if value is None else str(value) for value in column.to_pylist()], pa.string())])
    return _dictionary(column)


def _dictionary(column: pa.ChunkedArray) -> dict[str, Any]:
    encoded = column.combine_chunks().dictionary_encode()
    encoded = encoded.chunk(0) if isinstance(encoded, pa.ChunkedArray) else encoded
    return {"kind": "text", "texts": encoded.dictionary.to_pylist(), "values": encoded.indices.to_pylist()}


def _numbers(values: NDArray[np.float64]) -> dict[str, Any]:
    whole = np.isfinite(values)
    return {"kind": "number", "values": [value if good else None for value, good in zip(values.tolist(), whole.tolist(), strict=True)]}


def _lengths(table: pa.Table, counts: NDArray[np.int32]) -> NDArray[np.float64]:
    """num_tokens where the table has it, else the number of tokens shown."""
    shown = np.where(counts > 0, counts.astype(np.float64), np.nan)
    if "num_tokens" not in table.column_names:
        return shown
    told = table["num_tokens"].cast(pa.float64()).to_numpy()
    return np.where(np.isnan(told), shown, told)


def _sums(table: pa.Table, counts: NDArray[np.int32]) -> dict[str, NDArray[np.float64]]:
    """Per rationale: Σ log P_ψ, Σ log P_θ, Σ log-ratio, Σ KL (k3 estimate), and the one-sample ELBO; nan where unknown."""
    sums, flat = {}, {}
    for name in ("psi", "theta"):
        if (column := CHANNELS[name]) in table.column_names and table[column].null_count < table.num_rows:
            flat[name] = _flat(table, column, counts)
            sums[name] = _row_sums(flat[name], counts)
    if len(flat) == 2:
        with np.errstate(over="ignore", invalid="ignore"):  # of a token with probability 0: what is not finite is shown as unknown
            ratio = flat["psi"] - flat["theta"]
            sums["ratio"] = _row_sums(ratio, counts)
            sums["kl"] = _row_sums(np.exp(-ratio) - 1 + ratio, counts)
        if "logp_answer" in table.column_names:
            sums["elbo"] = table["logp_answer"].cast(pa.float64()).to_numpy() - sums["ratio"]
    return sums


def _row_sums(values: NDArray[np.float64], counts: NDArray[np.int32]) -> NDArray[np.float64]:
    row = np.repeat(np.arange(len(counts)), counts)
    sums = np.bincount(row, weights=values, minlength=len(counts))
    return np.where(counts > 0, sums, np.nan)


def _flat(table: pa.Table, name: str, counts: NDArray[np.int32]) -> NDArray[np.float64]:
    """All values of a per-token column one after the other, (tokens,) float64; nan for rows where the list is null."""
    column = table[name].combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    present = np.repeat(column.is_valid().to_numpy(zero_copy_only=False), counts)
    values = np.full(int(counts.sum()), np.nan)
    values[present] = column.flatten().cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values


def _channels(table: pa.Table, counts: NDArray[np.int32]) -> tuple[dict[str, Any], dict[str, bytes]]:
    given = {key: name for key, name in CHANNELS.items() if name in table.column_names and table[name].null_count < table.num_rows}
    flat = {key: _flat(table, name, counts) for key, name in given.items()}
    largest = {key: float(np.max(np.abs(values), initial=0.0, where=np.isfinite(values))) or 1.0 for key, values in flat.items()}
    shared = max((largest[key] for key in ("psi", "theta") if key in largest), default=1.0)
    channels, blobs = {}, {}
    for key, values in flat.items():
        scale = shared if key in ("psi", "theta") else largest[key]
        kind = np.uint16 if len(values) <= FINE_TOKENS else np.uint8
        codes, error = quantise(values, scale, kind)
        channels[key] = {"bits": 8 * codes.itemsize, "scale": scale, "error": float(f"{error:.2g}")}
        blobs[key] = gzip.compress(codes.tobytes(), 6, mtime=0)
    return channels, blobs


def quantise(values: NDArray[np.float64], scale: float, kind: type[np.unsignedinteger]) -> tuple[NDArray[Any], float]:
    """Integers for numbers within ±scale, and the largest error; the highest integer stands for "no number".

    Args:
        values: (tokens,), nan and ±inf are no numbers.
        scale: m of the module's formula.
        kind: uint8 or uint16; stored little-endian.
    """
    centre = np.iinfo(kind).max // 2
    good = np.isfinite(values)
    finite = np.where(good, values, 0.0)
    steps = np.round(centre * np.sign(finite) * np.sqrt(np.abs(finite) / scale))
    back = np.sign(steps) * scale * (steps / centre) ** 2
    codes = np.where(good, centre + steps, np.iinfo(kind).max).astype(np.dtype(kind).newbyteorder("<"))
    return codes, float(np.max(np.abs(back - finite), initial=0.0))


def _tokens(table: pa.Table) -> tuple[dict[str, Any], bytes]:
    """Different (text, id) pairs of all tokens, and for each token the number of its pair."""
    if "tokens" not in table.column_names or not (texts := _flatten(table["tokens"])):
        return {"texts": [], "ids": None}, b""
    codes = texts.dictionary_encode()
    if codes.null_count:
        raise InputError("table: tokens: a token is null, it must be text")
    ids = _token_ids(table)
    names, places = codes.dictionary.to_pylist(), codes.indices.to_numpy()
    if ids is not None:
        pairs, places = np.unique(places.astype(np.int64) << 32 | ids, return_inverse=True)
        names, ids = [names[pair >> 32] for pair in pairs.tolist()], (pairs & 0xFFFFFFFF).tolist()
    return {"texts": names, "ids": ids}, places.astype("<u2" if len(names) <= 2**16 else "<u4").tobytes()


def _token_ids(table: pa.Table) -> NDArray[np.int64] | None:
    """The id of every token shown, if each row with tokens has them."""
    if "rationale_ids" not in table.column_names:
        return None
    if not list_lengths(table, "tokens").equals(list_lengths(table, "rationale_ids")):
        return None
    return _flatten(table["rationale_ids"]).to_numpy(zero_copy_only=False).astype(np.int64)


def _flatten(column: pa.ChunkedArray) -> pa.Array:
    column = column.combine_chunks()
    return (column.chunk(0) if isinstance(column, pa.ChunkedArray) else column).flatten()


def _ids(table: pa.Table) -> dict[str, Any]:
    """Prompts and answers as token ids, each different one once."""
    result = {}
    for name in ("prompt_ids", "answer_ids"):
        values = table[name].to_pylist() if name in table.column_names else [None] * table.num_rows
        different: dict[tuple[int, ...], int] = {}
        places = [None if value is None else different.setdefault(tuple(value), len(different)) for value in values]
        result[name] = {"lists": [list(value) for value in different], "values": places}
    return result


def _texts(table: pa.Table) -> dict[str, Any]:
    """Where each rationale lies in its joined tokens (start, length in characters of JavaScript), or the text itself."""
    starts, lengths, others = [], [], {}
    tokens = table["tokens"].combine_chunks() if "tokens" in table.column_names else None
    joined = pc.binary_join(tokens, "").to_pylist() if tokens is not None else [None] * table.num_rows
    for number, (text, whole) in enumerate(zip(table["rationale"].to_pylist(), joined, strict=True)):
        start = whole.find(text) if whole else -1
        if start < 0:
            others[number] = text
        starts.append(_utf16(whole[:start]) if start > 0 else start)
        lengths.append(_utf16(text) if start >= 0 else 0)
    return {"starts": starts, "lengths": lengths, "others": others}


def _utf16(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-16-le")) // 2


def _json(value: Any) -> bytes:
    return gzip.compress(json.dumps(value, separators=(",", ":")).encode("ascii"), 6, mtime=0)
