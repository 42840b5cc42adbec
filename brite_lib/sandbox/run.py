"""``run_tests``: starts the two sandboxes of a program and its tests, waits, and kills them."""

import os
import pickle
import selectors
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from brite_lib.errors import InputError
from brite_lib.sandbox.isolation import Way, best_way, command, environment, packages

Status = Literal["passed", "failed", "exited", "timeout", "memory", "output", "forged", "broken"]

STARTUP_SECONDS = 60.0  # until both interpreters run; the program's time starts then
LARGEST_OUTPUT = 2**23  # bytes that program and tests may print
TAIL = 2000  # characters of it that a verdict keeps
TESTS_MEMORY_MB = 8192  # tests may need more than the program: a reference's result beside the program's


@dataclass(frozen=True)
class Verdict:
    """What came of a program and its tests.

    ``status``: ``passed``; ``failed``, the program or a test raised; ``exited``, the program's process ended before the tests
    did; ``timeout``; ``memory``; ``output``, it printed more than 8 MiB; ``forged``, its process did not keep to the protocol;
    ``broken``, the sandbox did not work, which says nothing about the program. ``stdout`` and ``stderr`` are the last 2,000
    characters, control characters escaped; still, it is text from an untrusted program. ``seconds``: wall clock without start-up.
    """

    passed: bool
    status: Status
    stdout: str
    stderr: str
    seconds: float


def run_tests(program: str, tests: str, timeout: float = 10.0, memory_mb: int = 1024, i_understand_the_risk: bool = False) -> Verdict:
    """Run an untrusted program, then its tests, which raise if it is wrong.

    Args:
        program: Python source.
        tests: Python source that sees the program's names. It runs in another sandbox (docs/sandbox.md says why, and what that
            means for a test).
        timeout: seconds of wall clock for both together.
        memory_mb: MiB of address space for the program.
        i_understand_the_risk: where the machine offers no isolation, run the program nevertheless, with the rights of the user.

    Raises:
        InputError: one sentence: no isolation here, no tests, or an impossible limit.
    """
    if not tests.strip():
        raise InputError("tests: are empty, so that every program would pass")
    if not timeout > 0 or memory_mb < 1:
        raise InputError(f"timeout: {timeout} and memory_mb: {memory_mb} must be positive")
    way = best_way(i_understand_the_risk)
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="brite-sandbox-")) if way == "none" else ""
        ends = [stack.enter_context(end) for end in socket.socketpair()]
        (report, report_in), (stdout, stdout_in), (stderr, stderr_in) = (_pipe(stack) for _ in range(3))
        limits = {"cpu_seconds": int(timeout) + 2, "isolated": way != "none", "packages": packages(way)}
        jobs = [
            ("program.py", {"source": program, "memory_bytes": memory_mb * 2**20}, [ends[0]]),
            ("tests.py", {"source": tests, "memory_bytes": max(memory_mb, TESTS_MEMORY_MB) * 2**20}, [ends[1], report_in]),
        ]
        processes = []
        for script, job, (connection, *rest) in jobs:
            descriptors = [connection.fileno(), *(file.fileno() for file in rest)]
            job |= limits | {"connection": descriptors[0], "report": descriptors[-1]}
            processes.append(_start(way, script, job, descriptors, (stdout_in, stderr_in), scratch))
            stack.callback(_kill, processes[-1])
        for ours in (*ends, report_in, stdout_in, stderr_in):
            ours.close()
        return _watch(report, stdout, stderr, timeout, processes)


def _pipe(stack: ExitStack) -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe()
    return stack.enter_context(os.fdopen(read, "rb", buffering=0)), stack.enter_context(os.fdopen(write, "wb", buffering=0))


def _start(
    way: Way, script: str, job: dict[str, object], descriptors: list[int], outputs: tuple[IO[bytes], IO[bytes]], scratch: str
) -> subprocess.Popen[bytes]:
    with tempfile.TemporaryFile() as stdin:
        stdin.write(pickle.dumps(job))
        stdin.seek(0)
        return subprocess.Popen(
            command(way, script, scratch),
            stdin=stdin,
            stdout=outputs[0],
            stderr=outputs[1],
            pass_fds=descriptors,
            env=environment(way, scratch),
            cwd=scratch or "/",
            start_new_session=True,
        )


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a sandbox and wait until nothing of it runs.

    Its outer process waits for the first one of the namespace, with which the kernel ends all others before it lets it go.
    """
    if process.returncode is not None:  # its number may be another process's by now
        return
    with suppress(OSError):  # it has ended, or this is no Linux
        for first in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            os.kill(int(first), signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _watch(report: IO[bytes], stdout: IO[bytes], stderr: IO[bytes], timeout: float, processes: list[subprocess.Popen[bytes]]) -> Verdict:
    """Read until the tests' process has reported, the time is over or too much was printed."""
    texts = {report: b"", stdout: b"", stderr: b""}
    printed, status, start, deadline = 0, "", None, time.monotonic() + STARTUP_SECONDS
    with selectors.DefaultSelector() as selector:
        for pipe in texts:
            os.set_blocking(pipe.fileno(), False)
            selector.register(pipe, selectors.EVENT_READ)
        while not status:
            events = selector.select(max(0.0, deadline - time.monotonic()))
            if not events and time.monotonic() >= deadline:
                status = "timeout" if start else "broken"
            for pipe in [key.fileobj for key, _ in events]:
                data = pipe.read(2**16) or b""
                if not data:
                    selector.unregister(pipe)
                if pipe is report:
                    texts[report] += data
                    start = start or time.monotonic()
                    deadline = start + timeout
                    if not data or texts[report].count(b"\n") == 2:
                        status = (texts[report].split(b"\n")[1:2] or [b""])[0].decode() or "broken"
                else:
                    printed += len(data)
                    texts[pipe] = (texts[pipe] + data)[-4 * TAIL :]
            if printed > LARGEST_OUTPUT:
                status = "output"
    seconds = time.monotonic() - (start or deadline)
    for process in processes:
        _kill(process)
    for pipe in (stdout, stderr):
        texts[pipe] += pipe.read(2**16) or b""  # what was still on its way
    return Verdict(status == "passed", status, _shown(texts[stdout]), _shown(texts[stderr]), max(0.0, seconds))


def _shown(data: bytes) -> str:
    text = data.decode(errors="backslashreplace")[-TAIL:]
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)
