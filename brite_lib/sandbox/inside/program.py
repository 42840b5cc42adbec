"""The program's process: runs the untrusted program, then does what the tests' process asks of it."""

from __future__ import annotations

import os
import sys
import types

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from confine import begin
from remote import Ended, Forged, Peer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def main() -> None:
    """Serve until the tests' process is gone."""
    job = begin()
    peer = Peer(job["connection"], allows=lambda *_: True)
    peer.send(["ready"])
    peer.receive()
    module = sys.modules["program"] = types.ModuleType("program")
    try:
        exec(compile(job["source"], "<program>", "exec"), module.__dict__)
        reply = peer.encoded(["gave", _names(module), None])
    except BaseException as error:
        sys.__excepthook__(type(error), error.with_traceback(error.__traceback__.tb_next), None)
        reply = peer.encoded(["raised", peer.describe(error), None])
    peer.write(reply)
    while True:
        peer.answer(peer.receive())


def _names(module: types.ModuleType) -> list[list[Any]]:
    """What the program defined: name, and either the name of a module or a value."""
    return [
        [name, value.__name__, None] if isinstance(value, types.ModuleType) else [name, None, value]
        for name, value in vars(module).items()
        if not name.startswith("__")
    ]


if __name__ == "__main__":
    try:
        main()
    except (Ended, Forged):
        os._exit(0)
