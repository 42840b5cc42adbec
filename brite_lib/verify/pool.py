"""Worker processes that judge pairs of answers, kept for the next call.

Plain subprocesses and not multiprocessing's: they work from any thread, notebook, test worker or unguarded script, do not
inherit torch's threads by fork or import the main module again, and share no lock with a sibling that was killed.
"""

import atexit
import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

GRACE = 0.25  # share of the timeout after which a worker is killed that has not killed its own child
STARTING = 120.0  # seconds that imports may take on a busy machine

Pair = tuple[str, str]


class Worker:
    """One process of :mod:`brite_lib.verify.worker`, in a process group of its own (Ctrl-C does not reach it)."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "brite_lib.verify.worker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
            start_new_session=True, bufsize=0,
        )  # fmt: skip
        self.buffer = b""
        self.number = 0
        self.pair: Pair | None = None
        self.deadline = time.monotonic() + STARTING
        self.ready = self.ended = False

    def ask(self, pair: Pair, timeout: float) -> None:
        """Send a pair; its reply comes by :meth:`read`."""
        self.number += 1
        self.pair, self.deadline = pair, time.monotonic() + timeout * (1 + GRACE)
        message = json.dumps([self.number, *pair, timeout]).encode()
        with suppress(BrokenPipeError):  # it has died, which read() will tell
            self.process.stdin.write(b"%08d" % len(message) + message)

    @property
    def working(self) -> bool:
        """Whether something is to come from it before its deadline."""
        return self.pair is not None or not self.ready

    def read(self, verdicts: dict[Pair, bool | None]) -> None:
        """Take in the lines that have arrived."""
        part = os.read(self.process.stdout.fileno(), 65536)
        self.ended = not part
        *lines, self.buffer = (self.buffer + part).split(b"\n")
        for line in lines:
            number, _, verdict = line.decode().partition(" ")
            if number == "ready":
                self.ready = True
            elif self.pair and number in ("dead", str(self.number)):
                verdicts[self.pair] = {"True": True, "False": False}.get(verdict)
                self.pair = None

    def kill(self) -> None:
        """End the process and its child."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


_workers: list[Worker] = []
_owner = os.getpid()
_lock = threading.Lock()


def judge(pairs: Sequence[Pair], workers: int, timeout: float) -> dict[Pair, bool | None]:
    """The verdict on each (gold, guess), None for what was not judged within ``timeout`` seconds, or broke the judge."""
    global _workers, _owner
    with _lock:
        if _owner != os.getpid():  # a fork: the workers are its parent's
            _workers, _owner = [], os.getpid()
        try:
            return _judge(pairs, min(workers, len(pairs)), timeout)
        except BaseException:
            stop()
            raise


def stop() -> None:
    """End all workers; the next call starts new ones."""
    while _workers and _owner == os.getpid():
        _workers.pop().kill()


atexit.register(stop)


def _judge(pairs: Sequence[Pair], count: int, timeout: float) -> dict[Pair, bool | None]:
    verdicts: dict[Pair, bool | None] = {}
    waiting = list(reversed(pairs))
    with selectors.DefaultSelector() as selector:
        for i in range(count):
            if i == len(_workers):
                _workers.append(Worker())
            selector.register(_workers[i].process.stdout, selectors.EVENT_READ, i)
        while len(verdicts) < len(pairs):
            for worker in _workers[:count]:
                if waiting and worker.ready and worker.pair is None:
                    worker.ask(waiting.pop(), timeout)
            rest = min(worker.deadline for worker in _workers[:count] if worker.working) - time.monotonic()
            for key, _ in selector.select(max(0.0, rest)):
                _workers[key.data].read(verdicts)
            for i, worker in enumerate(_workers[:count]):
                if worker.ended or (worker.working and worker.deadline < time.monotonic()):
                    if not worker.ready:
                        raise RuntimeError(f"the verifier's worker does not start: {sys.executable} -m brite_lib.verify.worker")
                    if worker.pair:
                        verdicts[worker.pair] = None
                    selector.unregister(worker.process.stdout)
                    worker.kill()
                    _workers[i] = Worker()
                    selector.register(_workers[i].process.stdout, selectors.EVENT_READ, i)
    return verdicts
