"""A judge of mathematical answers in a process of its own: ``python -m brite_lib.verify.worker``.

It reads the length of a message as eight digits and the message, JSON ``[number, gold, guess, seconds]``, and answers with the
line ``number verdict``. The pairs are judged by a forked child with the kernel's timer set, so that computing inside one C
call (a power with 10⁹ digits) ends too. A child that dies, whatever it died of, is reported as ``dead`` and replaced at once:
the fork has everything imported.
"""

import json
import os
import signal
import sys
from contextlib import suppress

MEMORY = 4 * 2**30  # bytes of address space of a child
# Parsed and compared once before the first fork: every child has the parser's tables from the start.
WARM_UP = ((r"\frac{\sqrt{3}}{2}x^2+1", r"1+\frac{\sqrt3 x^{2}}{2}"), (r"(1,2)\cup[3,4]", r"(1,2) \cup [3,4)"), ("y=2x+3", "2y=4x+6"))


def main() -> None:
    """Judge until the standard input ends."""
    replies = os.dup(1)
    os.dup2(2, 1)  # nothing that a library prints may be taken for a verdict
    _prepare()
    os.write(replies, b"ready\n")
    while True:
        child = os.fork()
        if child == 0:
            _judge(replies)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status == 0:
            return
        os.write(replies, b"dead\n")


def _prepare() -> None:
    import logging
    import resource

    from brite_lib.verify.equal import equal

    logging.disable(logging.WARNING)  # math-verify warns that its own timeout, useless here, is off
    sys.set_int_max_str_digits(0)
    with suppress(ValueError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    for gold, guess in WARM_UP:
        equal(gold, guess)


def _judge(replies: int) -> None:
    from brite_lib.verify.equal import equal

    while length := _read(8):
        number, gold, guess, seconds = json.loads(_read(int(length)))
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            verdict = equal(gold, guess)
        except Exception:  # whatever sympy trips over, MemoryError and RecursionError too: not judged
            verdict = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.write(replies, f"{number} {verdict}\n".encode())


def _read(size: int) -> bytes:
    """So many bytes of the standard input, fewer at its end; unbuffered, so that nothing read ahead dies with a child."""
    parts = b""
    while len(parts) < size and (part := os.read(0, size - len(parts))):
        parts += part
    return parts


if __name__ == "__main__":
    main()
