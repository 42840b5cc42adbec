"""The tests' process: runs the tests on what the program defined, and alone reports how they went."""

from __future__ import annotations

import builtins
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
    """One verdict's status, on the descriptor that only this process has."""
    job = begin()
    peer = Peer(job["connection"], _allows)
    report = os.fdopen(job["report"], "wb", buffering=0)
    peer.receive()  # the program's process is ready
    report.write(b"ready\n")
    peer.send(["ready"])
    status = judge(peer, job["source"])
    report.write(f"{status}\n".encode())
    os._exit(0)


def judge(peer: Peer, source: str) -> str:
    """The verdict's status."""
    module = sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        code = compile(source, "<tests>", "exec")
        outcome, content, _ = peer.receive()
        if outcome == "raised":
            raise peer.exception(content)
        vars(module).update(_names(content, _used(code)))
        exec(code, vars(module))
    except SystemExit as end:  # the tests' own: unittest.main() ends so
        if end.code not in (None, 0):
            return "failed"
    except Ended:
        return "exited"
    except Forged:
        return "forged"
    except MemoryError:
        return "memory"
    except BaseException as error:
        sys.__excepthook__(type(error), error.with_traceback(error.__traceback__.tb_next), None)
        return "failed"
    return peer.fault or "passed"


def _names(names: Any, used: set[str]) -> dict[str, Any]:
    """The program's names that the tests see.

    Modules are imported here, not the program's. A program that defines what the tests ask for cannot also replace the
    built-in functions that they compare with; only where they use no other name of it, its ``sum`` is what they test.
    """
    defined = {name: (module, value) for name, module, value in names if not name.startswith("__")}  # no __builtins__
    if any(module is None and name in used and not hasattr(builtins, name) for name, (module, _) in defined.items()):
        defined = {name: value for name, value in defined.items() if not hasattr(builtins, name)}
    found = {}
    for name, (module, value) in defined.items():
        if module is None:
            found[name] = value
        elif name in used:
            try:
                __import__(module)
            except ImportError:
                continue
            found[name] = sys.modules[module]
    return found


def _used(code: types.CodeType) -> set[str]:
    """The names that tests read, attributes among them."""
    return set(code.co_names).union(*(_used(inner) for inner in code.co_consts if isinstance(inner, types.CodeType)))


def _allows(operation: str, target: Any, args: list[Any]) -> bool:
    """A program may use the tests' objects that it was given, but reach no further: attributes only of the tests' own classes."""
    if operation not in ("getattr", "setattr", "delattr"):
        return True
    return type(target).__module__ == "__main__" and type(args[0]) is str and not args[0].startswith("_")


if __name__ == "__main__":
    main()
