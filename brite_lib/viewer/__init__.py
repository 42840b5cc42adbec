"""The rationale browser: filter, sort, compare and tag rationales and see every token's numbers (docs/viewer.md)."""

from brite_lib.viewer.widget import RationaleViewer, show, to_html

__all__ = ["RationaleViewer", "show", "to_html"]
