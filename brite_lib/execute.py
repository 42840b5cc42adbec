"""Run one notebook as one stage: ``python -m brite_lib.execute NOTEBOOK OUTPUT_NOTEBOOK PARAMS_JSON``.

Papermill in this process, one kernel of this very interpreter. While it runs the notebook is
``<output>.partial.ipynb``; success and failure both rename it, so a failed notebook can be opened and read.
A failure also leaves ``error.txt``, one sentence, beside it (unless the disk is full). Prints one line at the start and one at the end.
"""

import argparse
import json
import logging
import os
import socket
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from brite_lib.files import is_full
from brite_lib.lifeline import die_with_ancestors
from brite_lib.params import PROJECT_ROOT


class ThisInterpreter(AsyncKernelManager):
    """Starts ipykernel with ``sys.executable``, whatever kernels are installed on the machine."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The kernel of this environment."""
        # Parallel kernels would wait for each other's lock on the one history file.
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}", "--HistoryManager.enabled=False"]
        return KernelSpec(argv=argv, display_name="Python 3 (brite)", language="python")


def execute(notebook: Path, output: Path, params: dict) -> str | None:
    """Run ``notebook`` with ``params`` into ``output``.

    Returns:
        None, or one sentence that says what went wrong.
    """
    partial, error_file = output.with_suffix(".partial.ipynb"), output.with_name("error.txt")
    error = None
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        error_file.unlink(missing_ok=True)
        with tempfile.TemporaryDirectory(prefix="brite-kernel-") as sockets:
            papermill.execute_notebook(
                notebook,
                partial,
                parameters=params,
                kernel_name="python3",
                language="python",
                kernel_manager_class=ThisInterpreter,
                config=_connection(sockets),
                cwd=PROJECT_ROOT,
                progress_bar=False,
                start_timeout=300,  # importing ipykernel on a busy machine
            )
    except PapermillExecutionError as failure:
        error = _sentence(failure.ename, failure.evalue, output.parent)
    except Exception as failure:  # a dead kernel, an unreadable notebook: also a failed stage with a sentence
        error = _sentence(type(failure).__name__, str(failure), output.parent)
    with suppress(OSError):  # what could not be written has been said
        if partial.exists():
            partial.replace(output)
        if error is not None:
            error_file.write_text(error + "\n", encoding="utf-8")
    return error


def _connection(sockets: str) -> Config:
    """Files to talk to the kernel through: a TCP port is chosen before the kernel takes it, and another process may be faster."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.bind(f"{sockets}/kernel-ipc-0")
        transport = "ipc"
    except OSError:  # the path is too long, or its file system has no sockets
        transport = "tcp"
    return Config(ThisInterpreter={"transport": transport, "connection_file": f"{sockets}/kernel.json"})


def _sentence(name: str, message: str, directory: Path) -> str:
    """What went wrong, in one sentence; a full disk and exhausted memory look like anything else where they strike."""
    message = " ".join(message.split())
    if name == "InputError":
        return message
    if is_full(directory):
        return f"{directory}: the disk is full, free some space ({name}: {message})"
    if name in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in message:
        return f"out of memory; lower batch_size, micro_batch_size or the lengths ({name}: {message})"
    return f"{name}: {message}"


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m brite_lib.execute", description="Run one notebook as one stage.")
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path, help="the executed notebook")
    parser.add_argument("params", help="the notebook's parameters, JSON")
    arguments = parser.parse_args()

    os.environ["BRITE_BATCH"] = "1"
    os.environ["TQDM_DISABLE"] = "1"  # papermill would store the bars of transformers and datasets as they stood at 0 %
    os.environ.setdefault("BRITE_LAUNCHER_PID", str(os.getpid()))  # run by hand: the kernel still dies with this process
    os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    die_with_ancestors()
    logging.getLogger("papermill").setLevel(logging.ERROR)

    output = arguments.output.absolute()
    name = "/".join(output.parts[-3:-1]) if output.stem == "notebook" else output.stem
    _say(f"{name}: started")
    start = time.monotonic()
    error = execute(arguments.notebook, output, json.loads(arguments.params))
    if error:
        _say(f"{name}: FAILED: {error}")
        return 1
    _say(f"{name}: finished in {time.monotonic() - start:.0f} s")
    return 0


def _say(message: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')}  {message}\n")  # one write: stages that run at once share the terminal
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
