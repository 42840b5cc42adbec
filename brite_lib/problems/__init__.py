"""Problem sets: the embedded toy task, hub data sets and local files, all as rows of :class:`Problem`."""

from brite_lib.problems.load import has_split, load_problems
from brite_lib.problems.problem import Problem
from brite_lib.problems.toy import LEVELS, STYLES, style_of, toy_problems, write_rationale

__all__ = ["LEVELS", "STYLES", "Problem", "has_split", "load_problems", "style_of", "toy_problems", "write_rationale"]
