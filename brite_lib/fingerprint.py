"""What a stage's results depend on in code: the notebook's imports, followed through ``brite_lib``, as one hash.

Snakemake keeps the hash beside the stage's parameters, so changed code reruns the stages that use it and no others. Comments,
docstrings and layout do not count, and neither do :data:`SHOWS_ONLY`: hours of training are not repeated for them. The notebook
itself is an input file of its stage. Versions of other packages are recorded in ``stage.json``, and rerun nothing.
"""

import ast
import hashlib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from brite_lib.params import PROJECT_ROOT

PACKAGE = "brite_lib"
SHOWS_ONLY = ("launch", "live", "lifeline", "plots", "progress", "viewer")  # pictures, progress, processes: no result is theirs


@cache
def code_fingerprint(notebook: Path, pictures_count: bool = False) -> str:
    """Hash of the library code that a notebook uses; ``pictures_count`` for a notebook whose results are what it shows."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    ignored = set() if pictures_count else {_file(f"{PACKAGE}.{name}") for name in SHOWS_ONLY}
    found: set[Path] = set()
    waiting = set(_imports(ast.parse(source))) - ignored
    while waiting:
        found |= waiting
        waiting = {file for known in waiting for file in _imports_of(known)} - found - ignored
    digest = hashlib.sha256()
    for file in sorted(found):
        digest.update(f"{file.relative_to(PROJECT_ROOT)}\n{_meaning(file)}\n".encode())
    return digest.hexdigest()[:16]


@cache
def _imports_of(file: Path) -> frozenset[Path]:
    return frozenset(_imports(_tree(file)))


@cache
def _tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _imports(tree: ast.Module) -> Iterator[Path]:
    """The files of the package that a module imports when it runs, wherever in it the import stands."""
    for_types = (node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    never_run = {inner for node in for_types for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in never_run:
            continue
        if isinstance(node, ast.Import):
            yield from (_file(alias.name) for alias in node.names if alias.name.split(".")[0] == PACKAGE)
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == PACKAGE:
            yield from (_defined_in(node.module, alias.name) for alias in node.names)


def _defined_in(module: str, name: str) -> Path:
    """The file that ``from module import name`` means; what a package's ``__init__`` only hands on counts where it is defined."""
    if (submodule := _file(f"{module}.{name}")).is_file():
        return submodule
    file = _file(module)
    if file.name == "__init__.py":
        for node in _tree(file).body:
            if isinstance(node, ast.ImportFrom) and name in (alias.asname or alias.name for alias in node.names):
                return _defined_in(node.module, name)
    return file


def _file(module: str) -> Path:
    path = PROJECT_ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


@cache
def _meaning(file: Path) -> str:
    """The source without comments, docstrings and layout."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)
