"""Atomic writes and content hashes: nothing is ever half-written."""

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from brite_lib.params import PROJECT_ROOT


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; renamed to it when the block ends well, removed otherwise."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """As :func:`atomic_path` for a directory; an older directory of that name is replaced."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def portable(path: str | Path) -> str:
    """A path for records and parameters: relative to the project where it lies inside, so that a moved clone stays valid, else absolute."""
    absolute = Path(os.path.abspath(path))
    return absolute.relative_to(PROJECT_ROOT).as_posix() if absolute.is_relative_to(PROJECT_ROOT) else str(absolute)


def remove_temporary(directory: str | Path) -> None:
    """Delete what killed processes left half-written below a directory; only where no process writes any more."""
    for path in Path(directory).rglob(".*.tmp"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_full(directory: str | Path) -> bool:
    """Whether the disk of a directory (of its nearest existing parent) has less than 1 MiB left."""
    directory = Path(directory).absolute()
    while not directory.is_dir():
        directory = directory.parent
    return shutil.disk_usage(directory).free < 2**20


def sha256_of(path: str | Path) -> str:
    """Hash of a file, or of a directory's relative names and contents."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()):
        if file != path:
            digest.update(f"{file.relative_to(path).as_posix()}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def atomic_write_text(path: str | Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
