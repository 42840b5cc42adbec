"""Objects of another process: two peers that call each other's functions over a socket.

The tests run in one sandbox and the program in another. Plain values cross as copies (:mod:`wire`), everything else as a
:class:`Remote` that forwards what is done with it. What the tests compare is decided on their side: an operator between an
object of the program and plain data is never the program's own (an object that claims to equal everything does not).
"""

from __future__ import annotations

import builtins
import operator
import os
import struct
from _thread import RLock

from wire import Malformed, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from wire import Reference

LARGEST_MESSAGE = 2**30
PLAIN_BASES = (int, float, complex, str, bytes, tuple, list, dict, set, frozenset)


class Ended(BaseException):
    """The other process is gone, or its code asked to exit."""


class Forged(BaseException):
    """The other process sent what this protocol has not."""


def _plain_value(obj: Any) -> tuple[bool, Any]:
    """(True, value) of an object whose class derives from a plain type, an IntEnum say; a view of a dict counts as a set."""
    if isinstance(obj, type({}.keys()) | type({}.items())):
        return True, set(obj)
    base = next((base for base in PLAIN_BASES if isinstance(obj, base)), None)
    return base is not None, base and (str.__str__(obj) if base is str else base(obj))


COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "lshift", "rshift", "and_", "or_", "xor")
OPERATIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, /, *args, **kwargs: function(*args, **kwargs),
    "plain_value": _plain_value,
    "isinstance": lambda cls, obj: isinstance(obj, cls),
    "enter": lambda manager: type(manager).__enter__(manager),
    "exit": lambda manager, kind, value, trace: type(manager).__exit__(manager, None, None, None),
    "invert": operator.invert, "neg": operator.neg, "pos": operator.pos, "index": operator.index,
    "getitem": operator.getitem, "setitem": operator.setitem, "delitem": operator.delitem,
    **{f.__name__: f for f in (len, iter, next, str, repr, hash, bool, int, float, complex, abs, round, reversed)},
    **{f.__name__: f for f in (getattr, setattr, delattr)},
    **{name: getattr(operator, name) for name in (*COMPARISONS, *ARITHMETIC)},
}  # fmt: skip


class Remote:
    """An object that lives in the other process."""

    __slots__ = ("_remote_number", "_remote_peer")

    def __init__(self, peer: Peer, number: int):
        object.__setattr__(self, "_remote_peer", peer)
        object.__setattr__(self, "_remote_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__name__":  # numpy's hooks among them would let the object judge itself
            raise AttributeError(name)
        return self._remote_peer.request("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._remote_peer.request("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._remote_peer.request("delattr", self, name)

    def __instancecheck__(self, obj: Any) -> bool:
        return isinstance(obj, Remote) and self._remote_peer.request("isinstance", self, obj)


def _forward(operation: str) -> Callable[..., Any]:
    return lambda self, /, *args, **kwargs: self._remote_peer.request(operation, self, *args, **kwargs)


def _binary(operation: str, swap: bool = False) -> Callable[[Remote, Any], Any]:
    function = OPERATIONS[operation]

    def method(self: Remote, other: Any) -> Any:
        if isinstance(other, Remote):
            return self._remote_peer.request(operation, self, other)
        has_value, value = self._remote_peer.request("plain_value", self)
        if not has_value:
            return NotImplemented
        return function(other, value) if swap else function(value, other)

    return method


for _name in OPERATIONS.keys() - {"plain_value", "isinstance", "getattr", "setattr", "delattr", *COMPARISONS, *ARITHMETIC}:
    setattr(Remote, f"__{_name}__", _forward(_name))
for _name in COMPARISONS:
    setattr(Remote, f"__{_name}__", _binary(_name))
for _name in ARITHMETIC:
    setattr(Remote, f"__{_name.rstrip('_')}__", _binary(_name))
    setattr(Remote, f"__r{_name.rstrip('_')}__", _binary(_name, swap=True))


class Peer:
    """One end of the connection. ``allows(operation, object, args)`` says what the other may do with this end's objects."""

    def __init__(self, connection: int, allows: Callable[[str, Any, list[Any]], bool]):
        self.incoming, self.outgoing = os.fdopen(connection, "rb"), os.fdopen(connection, "wb", closefd=False)
        self.allows = allows
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.exceptions: dict[int, type[Exception]] = {}  # local stand-ins of the other's exception classes, by its number
        self.lock = RLock()
        self.fault = ""  # exited or forged, once that happened: no "except:" of the tests can hide it

    def request(self, operation: str, target: Remote, /, *args: Any, **kwargs: Any) -> Any:
        """Do it in the other process, answering its requests in the meantime.

        A list, dict, set or bytearray among ``args`` follows changes in place if the result is None, as Python's own
        functions that work in place return; what a function with a result does to its arguments stays there.
        """
        with self.lock:
            try:
                outcome, result = self._exchange(operation, target, args, kwargs)
            except (Ended, Forged) as fault:
                self.fault = "exited" if isinstance(fault, Ended) else "forged"
                raise
        if outcome == "raised":
            raise result
        return result

    def _exchange(self, operation: str, target: Remote, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, Any]:
        self.send(["do", operation, target, self.encoded(list(args)), kwargs])
        while (message := self.receive())[0] == "do":
            self.answer(message)
        try:
            outcome, result, changed = message
            if outcome == "raised":
                result = self.exception(result)
            for old, new in zip(args, self.decoded(changed) if changed else (), strict=False):
                _follow(old, new)
        except Exception as error:
            raise Forged(f"no reply: {type(error).__name__}: {error}") from None
        if isinstance(result, Ended) and outcome == "raised":
            raise result
        return outcome, result

    def answer(self, message: list[Any]) -> None:
        """Do what the other asks for and send what came of it."""
        try:
            _, operation, target, sent, kwargs = message
            args = self.decoded(sent)
            if not self.allows(operation, target, args):
                raise PermissionError(f"{operation} of a {type(target).__name__} of the tests")
            result = OPERATIONS[operation](target, *args, **kwargs)
            after = self.encoded(args) if result is None else sent
            reply = self.encoded(["gave", result, after if after != sent else None])
        except (Ended, Forged):
            raise
        except BaseException as error:
            reply = self.encoded(["raised", self.describe(error), None])
        self.write(reply)

    def describe(self, error: BaseException) -> list[Any]:
        """An exception as its class, see :meth:`describe_class`, and plain arguments."""
        return [self.describe_class(type(error)), [arg if type(arg) in (str, int, float) else str(arg) for arg in error.args]]

    def describe_class(self, kind: type[BaseException]) -> list[Any]:
        """An exception class as the nearest built-in one, its name, and a number if it is not built-in itself."""
        known = next(base for base in kind.__mro__ if getattr(builtins, base.__name__, None) is base)
        return [known.__name__, kind.__name__, None if kind is known else self.number(kind)]

    def exception(self, description: Any) -> BaseException:
        """The exception to raise here for one there; what is no Exception, as SystemExit, ends the other process only."""
        described, args = description
        kind = self.exception_class(described)
        try:
            return kind(*args) if issubclass(kind, Exception) else Ended(f"{kind.__name__}{tuple(args)}")
        except TypeError:  # UnicodeDecodeError and others want arguments of certain types
            return Exception(kind.__name__, *args)

    def exception_class(self, description: Any) -> type[BaseException]:
        """The built-in class, or this end's stand-in of the other's own class."""
        known, name, number = description
        base = getattr(builtins, known)
        if not issubclass(base, BaseException):
            raise Malformed(f"{known} is no exception")
        return base if number is None else self.exceptions.setdefault(number, type(name, (base,), {}))

    def number(self, obj: Any) -> int:
        """The number of an object of this end, which is kept alive for it."""
        number = self.numbers.setdefault(id(obj), len(self.objects))
        if number == len(self.objects):
            self.objects.append(obj)
        return number

    def reference(self, obj: Any) -> Reference:
        """How an object that is no plain value is named in a message."""
        if isinstance(obj, Remote):
            return "yours", obj._remote_number
        if isinstance(obj, type) and issubclass(obj, Exception):
            return "exception", self.describe_class(obj)
        return "mine", self.number(obj)

    def dereference(self, owner: str, content: Any) -> Any:
        """The object that a reference names."""
        if owner == "exception":
            return self.exception_class(content)
        return self.objects[content] if owner == "yours" else Remote(self, content)

    def encoded(self, value: Any) -> bytes:
        """See :func:`wire.encode`."""
        return encode(value, self.reference)

    def decoded(self, data: bytes) -> Any:
        """See :func:`wire.decode`."""
        return decode(data, self.dereference)

    def send(self, message: list[Any]) -> None:
        """Encode and write one message."""
        self.write(self.encoded(message))

    def write(self, data: bytes) -> None:
        """One encoded message, after its length."""
        try:
            self.outgoing.write(struct.pack("!Q", len(data)) + data)
            self.outgoing.flush()
        except OSError:
            raise Ended("the program's process has ended") from None

    def receive(self) -> list[Any]:
        """One message.

        Raises:
            Ended: the other process is gone.
            Forged: what came is no message.
        """
        try:
            head = self.incoming.read(8)
            if len(head) < 8:
                raise Ended("the program's process has ended")
            (length,) = struct.unpack("!Q", head)
            if length > LARGEST_MESSAGE:
                raise Forged(f"a message of {length} bytes")
            message = self.decoded(self.incoming.read(length))
        except OSError:
            raise Ended("the program's process has ended") from None
        except Malformed as error:
            raise Forged(f"no message: {error}") from None
        if not (type(message) is list and message and message[0] in ("do", "gave", "raised", "ready")):
            raise Forged("no message")
        return message


def _follow(old: Any, new: Any) -> None:
    if type(old) in (list, bytearray) and type(new) is type(old):
        old[:] = new
    elif type(old) in (dict, set) and type(new) is type(old):
        old.clear()
        old.update(new)
