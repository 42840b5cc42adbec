"""Plain values as JSON: what may cross between the program's sandbox and the tests'.

Only values of exactly these types cross as values, and the reader builds them itself, so that nothing of the sender's
code, no class and no overridden ``__eq__``, comes with them. Pickle cannot promise that: its REDUCE and BUILD can alter
the reader's classes even when the names that it may look up are restricted.
"""

import sys
from collections.abc import Callable
from typing import Any

ATOMS = {type(None), bool, int, float, str}
CLASSES = {c.__name__: c for c in (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, object, type(None))}

# type -> (to JSON or plain values, and back), by module and name: a module that nobody imported has no values here.
_pairs = (lambda mapping: [list(item) for item in mapping.items()], lambda cls: lambda pairs: cls((key, value) for key, value in pairs))
_text = (str, lambda cls: cls)
_iso = (lambda value: value.isoformat(), lambda cls: cls.fromisoformat)
CODES: dict[str, dict[str, tuple[Callable[[Any], Any], Callable[[type], Callable[[Any], Any]]]]] = {
    "builtins": {
        "tuple": (list, lambda cls: cls),
        "set": (list, lambda cls: cls),
        "frozenset": (list, lambda cls: cls),
        "dict": _pairs,
        "complex": (lambda value: [value.real, value.imag], lambda cls: lambda parts: cls(*parts)),
        "bytes": (lambda value: value.decode("latin-1"), lambda cls: lambda text: text.encode("latin-1")),
        "bytearray": (lambda value: value.decode("latin-1"), lambda cls: lambda text: cls(text.encode("latin-1"))),
        "range": (lambda value: [value.start, value.stop, value.step], lambda cls: lambda parts: cls(*parts)),
    },
    "collections": {
        "OrderedDict": _pairs,
        "Counter": (_pairs[0], lambda cls: lambda pairs: cls(dict(pairs))),
        "deque": (lambda value: [list(value), value.maxlen], lambda cls: lambda parts: cls(*parts)),
        "defaultdict": (
            lambda value: [value.default_factory, _pairs[0](value)],
            lambda cls: lambda parts: cls(parts[0], dict(parts[1])),
        ),
    },
    "decimal": {"Decimal": _text},
    "fractions": {"Fraction": _text},
    "datetime": {
        "datetime": _iso,
        "date": _iso,
        "time": _iso,
        "timedelta": (lambda value: [value.days, value.seconds, value.microseconds], lambda cls: lambda parts: cls(*parts)),
    },
    "numpy": {
        "ndarray": (
            lambda value: [value.dtype.str, list(value.shape), value.ravel().tolist()],
            lambda cls: lambda parts: sys.modules["numpy"].array(parts[2], dtype=parts[0]).reshape(parts[1]),
        ),
    },
}
_scalars = "bool bool_ int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 complex64 complex128 str_"
CODES["numpy"] |= {name: (lambda value: value.item(), lambda cls: cls) for name in _scalars.split()}


class Malformed(ValueError):
    """A message that this module's ``encode`` does not make."""


def encode(value: Any, reference: Callable[[Any], Any]) -> Any:
    """A JSON value; what is no plain value becomes ``reference(value)``."""
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is list:
        return value if all(type(item) in ATOMS for item in value) else [encode(item, reference) for item in value]
    if kind is type and CLASSES.get(value.__name__) is value:
        return {"class": value.__name__}
    module = kind.__module__.partition(".")[0]
    codes = CODES.get(module, {}).get(kind.__name__)
    if codes and getattr(sys.modules.get(module), kind.__name__, None) is kind:
        return {kind.__name__: encode(codes[0](value), reference), "of": module}
    return {"reference": reference(value)}


def decode(message: Any, dereference: Callable[[Any], Any]) -> Any:
    """The value that :func:`encode` was given.

    Raises:
        Malformed: for anything else.
    """
    if type(message) is list:
        return list(message) if all(type(item) in ATOMS for item in message) else [decode(item, dereference) for item in message]
    if type(message) is not dict:
        return message
    try:
        (name, content), *_ = message.items()
        if name == "reference":
            return dereference(content)
        if name == "class":
            return CLASSES[content]
        build = CODES[message["of"]][name][1](getattr(__import__(message["of"]), name))
        return build(decode(content, dereference))
    except Malformed:
        raise
    except Exception as error:
        raise Malformed(f"{type(error).__name__}: {error}") from None
