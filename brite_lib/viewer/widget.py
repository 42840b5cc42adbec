"""The rationale browser in a notebook: ``RationaleViewer``, ``show`` and ``to_html``."""

import os
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from brite_lib.params import resolve_path
from brite_lib.viewer.annotations import read_annotations, write_annotations
from brite_lib.viewer.pack import pack
from brite_lib.viewer.page import fragment, plain_text, script, static_table, style, write_page
from brite_lib.viewer.table import Rows, read_rows

NOTEBOOK_MB = 10.0  # of one output in an executed notebook
REPORT_MB = 2.0  # of a report that is sent by mail
FALLBACK_MB = 1.0  # of the copy beside a live widget: Jupyter drops outputs of more than some megabytes per second


class RationaleViewer(anywidget.AnyWidget):
    """The browser, live: what a person selects, tags and filters is here, and what is set here shows in the page.

    Args:
        table: parquet path (or several), Dataset, DataFrame or list of rows with the columns of ``rationales.parquet`` or
            ``predictions.parquet``; others of one value per row are kept.
        title: heading.
        annotations_path: ``annotations.jsonl`` that tags and notes are read from and saved to at once; None: beside the table,
            where that is one file, else kept in memory only.
        max_mb: above this many megabytes a random sample of whole problems is shown.

    Attributes:
        query: the filter (docs/viewer.md).
        selection: numbers of the selected rows in ``packed.table``, from 0.
        annotations: records as in ``annotations.jsonl``.
        packed: what is shown; ``packed.table`` has all rows unless ``packed.note`` says otherwise.

    Raises:
        InputError: one sentence about what is wrong with the table.
    """

    _esm = script()
    _style = traitlets.Unicode(style()).tag(sync=True)
    _blobs = traitlets.Dict().tag(sync=True)
    query = traitlets.Unicode("").tag(sync=True)
    selection = traitlets.List(traitlets.Int()).tag(sync=True)
    annotations = traitlets.List(traitlets.Dict()).tag(sync=True)

    def __init__(self, table: Rows, title: str = "", annotations_path: str | Path | None = None, max_mb: float = 50.0, **kwargs: Any):
        self.packed, self.title = pack(read_rows(table), title, max_mb), title
        if annotations_path is None and isinstance(table, str | Path):
            annotations_path = resolve_path(table).with_name("annotations.jsonl")
        known = read_annotations(annotations_path) if annotations_path else []
        super().__init__(_blobs=self.packed.blobs, annotations=known, **kwargs)
        if annotations_path:
            self.observe(lambda change: write_annotations(change["new"], annotations_path), "annotations")

    def selected_rows(self) -> list[dict[str, Any]]:
        """The selected rows of the table, with exact numbers."""
        return self.packed.table.take(self.selection).to_pylist() if self.selection else []

    def to_html(self, path: str | Path) -> Path:
        """Write what is shown as a page, see :func:`to_html`."""
        return write_page(self.packed, path, self.title or "Rationales")

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        data, metadata = bundle if isinstance(bundle, tuple) else (bundle, {})
        whole = self.packed.size <= FALLBACK_MB * 1e6
        still = {"text/html": fragment(self.packed) if whole else static_table(self.packed), "text/plain": plain_text(self.packed)}
        return {**(data or {}), **still}, metadata


class StaticRationales:
    """The browser as an output without a kernel: HTML that holds everything, and plain text."""

    def __init__(self, table: Rows, title: str = "", max_mb: float = NOTEBOOK_MB):
        self.packed = pack(read_rows(table), title, max_mb)

    def _repr_mimebundle_(self, **kwargs: Any) -> dict[str, str]:
        return {"text/html": fragment(self.packed), "text/plain": plain_text(self.packed)}


def show(table: Rows, title: str = "", annotations_path: str | Path | None = None) -> RationaleViewer | StaticRationales:
    """The browser as a cell's last expression: live with a kernel, else (``BRITE_BATCH``, set when a stage runs) self-contained.

    A widget's state is saved only when a notebook ends well and is drawn only when it is trusted; HTML survives both.

    Args:
        table, title, annotations_path: as in :class:`RationaleViewer`.
    """
    if os.environ.get("BRITE_BATCH"):
        return StaticRationales(table, title)
    return RationaleViewer(table, title, annotations_path)


def to_html(table: Rows, path: str | Path, title: str = "Rationales", max_mb: float = 50.0) -> Path:
    """Write the browser as one HTML file that opens without a network; tags stay in the reader's browser and can be downloaded.

    Args:
        table: as in :class:`RationaleViewer`.
        path: of the file; written whole or not at all.
        title: heading.
        max_mb: above it a random sample of whole problems is written, and the page says so.

    Raises:
        InputError: one sentence about what is wrong with the table.
    """
    return write_page(pack(read_rows(table), title, max_mb), path, title)


def embedded(table: Rows, title: str = "", max_mb: float = REPORT_MB) -> str:
    """The browser as a piece of HTML for a page of one's own, which must allow inline scripts; arguments as in :func:`to_html`."""
    return fragment(pack(read_rows(table), title, max_mb))
