"""Progress for both readers of a notebook: a live bar in JupyterLab, a few lines under papermill."""

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm.auto import tqdm

Item = TypeVar("Item")
SECONDS_BETWEEN_LINES = 5.0
SECONDS_BEFORE_A_BAR = 1.0  # what is done sooner needs none; short ones, one after the other, would pile up


def in_jupyter() -> bool:
    """Whether an output can be updated in place: in a kernel, not in a batch run."""
    shell = sys.modules.get("IPython")  # without which there is no kernel
    return not os.environ.get("BRITE_BATCH") and shell is not None and shell.get_ipython() is not None


def updating_output() -> Callable[[str], None]:
    """A function that shows HTML in one output of the cell, each time in the place of the last."""
    from IPython.display import HTML, display

    handle = display(HTML(""), display_id=True)
    return lambda html: handle.update(HTML(html))


def pause(elapsed: float) -> float:
    """Seconds until the next line of a batch run: a few at first, minutes after hours, so that days are hundreds of lines."""
    return max(SECONDS_BETWEEN_LINES, min(elapsed / 50, 300.0))


def progress(iterable: Iterable[Item], total: int | None = None, desc: str = "") -> Iterator[Item]:
    """Iterate and show how far it is.

    A bar of tqdm; in a batch run (environment variable ``BRITE_BATCH``) one line every few seconds (:func:`pause`) and one at
    the end, because papermill stores every update of a bar. What takes less than a second shows neither.

    Args:
        iterable: what to iterate.
        total: its length; None: ``len(iterable)`` where it has one.
        desc: shown in front.
    """
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    if not os.environ.get("BRITE_BATCH"):
        yield from tqdm(iterable, total=total, desc=desc, delay=SECONDS_BEFORE_A_BAR)
        return
    done, start = 0, time.monotonic()
    due = start + SECONDS_BEFORE_A_BAR

    def line() -> None:
        print(tqdm.format_meter(done, total, time.monotonic() - start, prefix=desc, ncols=0), flush=True)

    try:
        for item in iterable:
            yield item
            done += 1
            if time.monotonic() >= due and done != total:
                due = time.monotonic() + pause(time.monotonic() - start)
                line()
    finally:
        if time.monotonic() - start >= SECONDS_BEFORE_A_BAR:
            line()
