"""Work that several processes share: each does its part of the rows, and all of them then know all results.

Nothing here catches an error: it ends its process, and the launcher ends the others, which may be waiting for it.
"""

import math
from collections.abc import Callable
from typing import TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object

Result = TypeVar("Result")


def in_shares(accelerator: Accelerator, count: int, work: Callable[[list[int]], list[Result]]) -> list[Result]:
    """``work(rows)`` on this process's share of the rows 0 … count − 1, which are consecutive; returns the results of all rows.

    Every process has as many rows as the others, so that forward passes of sharded weights meet: where ``count`` can't be divided
    evenly, the last row is done several times.
    """
    size = math.ceil(count / accelerator.num_processes)
    first = accelerator.process_index * size
    rows = [min(row, count - 1) for row in range(first, first + size)]
    return gather_object(work(rows))[:count]


def totals(numbers: dict[str, float]) -> dict[str, float]:
    """Each number's sum over the processes, on all of them."""
    parts = gather_object([numbers])
    return {name: sum(part[name] for part in parts) for name in numbers}
