"""Untrusted programs: run, tested and judged where they can do no harm and cannot judge themselves (docs/sandbox.md)."""

from brite_lib.sandbox.programs import extract_program, judge_programs, prepare, whole_program
from brite_lib.sandbox.run import Verdict, run_tests

__all__ = ["Verdict", "extract_program", "judge_programs", "prepare", "run_tests", "whole_program"]
