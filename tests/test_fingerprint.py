"""Which edits of the library rerun which stages: those of the code that a stage's notebook imports, and no others."""

import shutil

import pytest

from brite_lib import fingerprint
from brite_lib.params import PROJECT_ROOT
from brite_lib.stages import NOTEBOOKS

STAGES = {**NOTEBOOKS, "report": "06_report.ipynb"}
OF_THE_MODEL = {"psi", "theta", "sft", "evaluation", "rejection", "dpo", "drr", "latro", "grpo", "rloo", "verifree", "harness"}
IN_PLACE = {"latro", "grpo", "rloo", "verifree"}


def hashes(root):
    for function in (fingerprint.code_fingerprint, fingerprint._imports_of, fingerprint._tree, fingerprint._meaning):
        function.cache_clear()
    return {stage: fingerprint.code_fingerprint(root / "notebooks" / file, stage == "report") for stage, file in STAGES.items()}


@pytest.fixture(scope="module")
def before():
    return hashes(PROJECT_ROOT)


@pytest.fixture
def edited(before, tmp_path, monkeypatch):
    """The stages whose hash changes by an edit of one file, in a clone at another place."""
    for name in ("brite_lib", "notebooks"):
        shutil.copytree(PROJECT_ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "py"))
    monkeypatch.setattr(fingerprint, "PROJECT_ROOT", tmp_path)

    def edit(file, change):
        path = tmp_path / file
        path.write_text(change(path.read_text(encoding="utf-8")), encoding="utf-8")
        return {stage for stage, digest in hashes(tmp_path).items() if digest != before[stage]}

    yield edit
    fingerprint.code_fingerprint.cache_clear()


def with_code(text):
    return text + "\nA_NEW_CONSTANT = 1\n"


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("brite_lib/template.py", OF_THE_MODEL),
        ("brite_lib/ppo.py", {"psi"} | IN_PLACE),
        ("brite_lib/dpo.py", {"dpo"}),
        ("brite_lib/report.py", {"report"}),
        ("brite_lib/plots.py", {"report"}),
        ("brite_lib/params/dpo.py", {"dpo"}),
        ("brite_lib/pipelines.py", set()),
    ],
)
def test_an_edit_changes_what_uses_it(edited, file, stages):
    changed = edited(file, with_code)
    optional = {"report", "drr", "theta", "sft", "harness", "distillation"}  # they share more: parameters to show, a learner's settings
    assert stages <= changed <= stages | optional, changed


def test_comments_docstrings_and_layout_change_nothing(edited):
    def reword(text):
        assert text.startswith('"""')
        return "# a remark\n" + text.replace('"""', '"""More words. ', 1).replace("\n\n\n", "\n\n\n\n")

    assert edited("brite_lib/template.py", reword) == set()


def test_a_module_behind_another_one_counts(edited):
    """likelihood.py is imported by ppo.py, not by the notebook."""
    assert edited("brite_lib/likelihood.py", with_code) >= OF_THE_MODEL - {"theta", "drr", "harness"}
