"""The rationale browser: filter, sort, compare and tag rationales and see every token's numbers (docs/viewer.md)."""

from brite_lib.viewer.runs import pick_run
from brite_lib.viewer.widget import RationaleViewer, embedded, show, to_html

__all__ = ["RationaleViewer", "embedded", "pick_run", "show", "to_html"]
