"""annotations.jsonl: what a person said about rationales, one line per annotated row.

``{"id", "source", "round", "sample", "tags": [...], "note": "..."}`` names the row by what it is, not by where it stands; where
several rows have the same four, ``copy`` counts them from 1 after the first.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from brite_lib.errors import InputError
from brite_lib.files import atomic_write_text

NEEDED = {"id": str, "source": str, "round": int, "sample": int, "tags": list, "note": str}


def read_annotations(path: str | Path) -> list[dict[str, Any]]:
    """The annotations in a file; none if there is no such file.

    Raises:
        InputError: one sentence naming the file and line that is no annotation.
    """
    if not Path(path).is_file():
        return []
    records = []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            wrong = next((name for name, kind in NEEDED.items() if not isinstance(record[name], kind)), None)
        except (ValueError, KeyError, TypeError) as error:
            wrong = str(error)
        if wrong:
            raise InputError(f"{path}: line {number}: is no annotation ({wrong}); it needs {', '.join(NEEDED)}")
        records.append(record)
    return records


def write_annotations(records: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Write annotations, whole or not at all."""
    atomic_write_text(path, "".join(json.dumps(record) + "\n" for record in records))
