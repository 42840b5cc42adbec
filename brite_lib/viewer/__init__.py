"""What a person looks at in a notebook: the rationale browser, a picker of runs, a form of parameters (docs/viewer.md)."""

from brite_lib.viewer.forms import edit
from brite_lib.viewer.runs import pick_run
from brite_lib.viewer.widget import RationaleViewer, embedded, show, to_html

__all__ = ["RationaleViewer", "edit", "embedded", "pick_run", "show", "to_html"]
