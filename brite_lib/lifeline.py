"""No orphans: every process of a run ends when one of its ancestors dies, however it dies.

SIGKILL gives a process no chance to stop its children, so the children watch (design section 9). A process of a
run knows its launcher (``BRITE_LAUNCHER_PID``, the ``brite_lib.run`` process) and its run (``BRITE_RUN_DIR``).
"""

import functools
import os
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil

POLL_SECONDS = 0.5


@functools.cache  # one watcher per process, however many stages a kernel starts
def die_with_ancestors() -> None:
    """Watch all ancestors up to the launcher and end this process, its children first, when one of them dies.

    Does nothing outside a run (no ``BRITE_LAUNCHER_PID``).
    """
    launcher = os.environ.get("BRITE_LAUNCHER_PID")
    if launcher is None or int(launcher) == os.getpid():
        return
    watched: list[psutil.Process] = []
    for ancestor in psutil.Process().parents():
        watched.append(ancestor)
        if ancestor.pid == int(launcher):
            break
    else:
        _end_this_process()  # the launcher died before the watch began
    threading.Thread(target=_watch, args=(watched,), name="lifeline", daemon=True).start()


def end_processes(run_dir: Path) -> None:
    """Kill every process of the run in ``run_dir`` except the caller; only the holder of the run's lock may call this."""
    for _ in range(20):  # a dying process may start another in the meantime
        leftovers = [process for process in psutil.process_iter() if process.pid != os.getpid() and _belongs_to(process, run_dir)]
        if not leftovers:
            return
        for process in leftovers:
            _kill(process)
        psutil.wait_procs(leftovers, timeout=2)


def is_alive(process: psutil.Process) -> bool:
    """Whether this very process (pid and creation time) still runs; a zombie does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _watch(ancestors: list[psutil.Process]) -> None:
    while all(map(is_alive, ancestors)):
        time.sleep(POLL_SECONDS)
    _end_this_process()


def _end_this_process() -> None:
    for child in psutil.Process().children(recursive=True):
        _kill(child)
    os._exit(1)


def _belongs_to(process: psutil.Process, run_dir: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and process.environ().get("BRITE_RUN_DIR") == str(run_dir)
    except (psutil.Error, OSError):  # gone, or another user's
        return False


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()
