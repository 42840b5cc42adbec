"""Untrusted programs: run, tested and judged where they can do no harm and cannot judge themselves (docs/sandbox.md)."""

from brite_lib.sandbox.run import Verdict, run_tests

__all__ = ["Verdict", "run_tests"]
