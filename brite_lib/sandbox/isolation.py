"""How a process is shut off from the machine: by bubblewrap, by namespaces of its own, or, if the user insists, not at all."""

import compileall
import functools
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Literal

from brite_lib.errors import InputError
from brite_lib.sandbox.inside.confine import FILE_BYTES

Way = Literal["bubblewrap", "namespaces", "none"]
WAYS: tuple[Way, ...] = ("bubblewrap", "namespaces")  # best first

INSIDE = Path(__file__).parent / "inside"
SCRATCH = "/scratch"
ENVIRONMENT = {"LANG": "C.UTF-8", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PYTHON_FLAGS = ("-s", "-S", "-P", "-B", "-u")


def best_way(i_understand_the_risk: bool = False) -> Way:
    """What this machine offers; checked once per process by running something.

    Raises:
        InputError: it offers nothing, and the user has not accepted that.
    """
    failures = {}
    for way in WAYS:
        failure = failure_of(way)
        if failure is None:
            return way
        failures[way] = failure
    if i_understand_the_risk:
        return "none"
    tried = "; ".join(f"{way}: {failure}" for way, failure in failures.items())
    raise InputError(
        f"sandbox: this machine cannot isolate generated programs ({tried}); on Linux install bubblewrap 0.7 or newer (Debian, Ubuntu: "
        "apt-get install bubblewrap) and allow user namespaces, or set i_understand_the_risk: true to run them with your rights"
    )


def command(way: Way, script: str, scratch: str) -> list[str]:
    """The command line that runs one of the scripts of ``inside``; ``scratch`` is its directory if nothing isolates it."""
    if way == "none":
        return [sys.executable, *PYTHON_FLAGS, str(INSIDE / script)]
    inner = ["/python/bin/python3", *PYTHON_FLAGS, f"/inside/{script}"]
    if way == "namespaces":
        paths = [part for bind in _binds() for part in bind]
        return [sys.executable, *PYTHON_FLAGS, str(INSIDE / "enter.py"), SCRATCH, str(FILE_BYTES), *paths, "--", *inner]
    binds = [part for source, target in _binds() for part in ("--dev-bind" if target.startswith("/dev/") else "--ro-bind", source, target)]
    options = ["--unshare-all", "--cap-drop", "ALL", "--die-with-parent"]
    files = [*binds, "--size", str(FILE_BYTES), "--tmpfs", SCRATCH, "--remount-ro", "/", "--chdir", SCRATCH]
    return [shutil.which("bwrap") or "bwrap", *options, *files, "--", *inner]


def environment(way: Way, scratch: str) -> dict[str, str]:
    """All environment variables of a sandboxed process."""
    if way == "none":
        return ENVIRONMENT | {"TMPDIR": scratch}
    return ENVIRONMENT | {"TMPDIR": SCRATCH, "LD_LIBRARY_PATH": "/python/lib"}


def packages(way: Way) -> list[str]:
    """Where a sandboxed process finds NumPy and what else is installed beside it."""
    return ["/packages"] if way != "none" else [sysconfig.get_path("purelib")]


@functools.cache
def _binds() -> list[tuple[str, str]]:
    """(source, target) of all that a sandbox sees, read-only: the interpreter, its libraries, packages and our scripts."""
    base = Path(sys.base_prefix)
    python = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
    wanted = [
        *((path, path) for path in ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/dev/null", "/dev/zero", "/dev/urandom")),
        (python, "/python/bin/python3"),
        (str(base / "lib"), "/python/lib"),
        (str(base / "lib64"), "/python/lib64"),
        (sysconfig.get_path("purelib"), "/packages"),
        (str(INSIDE), "/inside"),
    ]
    return [(os.path.realpath(source), target) for source, target in wanted if os.path.exists(source)]


@functools.cache
def failure_of(way: Way) -> str | None:
    """Why isolation does not work here, None if it does."""
    if sys.platform != "linux":
        return f"not on {sys.platform}"
    if way == "bubblewrap" and shutil.which("bwrap") is None:
        return "not installed"
    compileall.compile_dir(INSIDE, quiet=2)  # once, where they may be written; without, every program waits for it
    try:
        argv = command(way, "confine.py", "")
        done = subprocess.run(argv, env=environment(way, ""), stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    return None if done.returncode == 0 else last_line or f"exit status {done.returncode}"
