"""Plain values as bytes: what may cross between the program's sandbox and the tests'.

Values of exactly these types cross as values, and the reader builds them itself, so that nothing of the sender's code, no
class and no overridden ``__eq__``, comes with them. The bytes are a pickle in which the reader may look up only ``tuple``
and ``Ellipsis``, two built-in objects that cannot be changed: there is nothing that REDUCE could call or BUILD could alter.
What pickle has no opcodes for is a tuple ``(Ellipsis, name, content)``.
"""

from __future__ import annotations

import io
import sys
from _pickle import Pickler, Unpickler  # what pickle itself imports takes twice as long

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Reference = tuple[str, Any]  # (mine, number), (yours, number) or (exception, its description)

CLASSES = {c.__name__: c for c in (bool, int, float, complex, str, bytes, list, dict, set, frozenset, object, type(None))}

# module -> class -> (to simpler values, the class's way back from them); a module that nobody imported has no values here.
_pairs = (lambda value: list(value.items()), lambda cls: lambda pairs: cls(dict(pairs)))
_text = (str, lambda cls: cls)
_iso = (lambda value: value.isoformat(), lambda cls: cls.fromisoformat)
_item = (lambda value: value.item(), lambda cls: cls)
CODES: dict[str, dict[str, tuple[Callable[[Any], Any], Callable[[Any], Callable[[Any], Any]]]]] = {
    "builtins": {
        "complex": (lambda value: (value.real, value.imag), lambda cls: lambda parts: cls(*parts)),
        "range": (lambda value: (value.start, value.stop, value.step), lambda cls: lambda parts: cls(*parts)),
    },
    "collections": {
        "OrderedDict": _pairs,
        "Counter": _pairs,
        "deque": (lambda value: (list(value), value.maxlen), lambda cls: lambda parts: cls(*parts)),
        "defaultdict": (lambda value: (value.default_factory, dict(value)), lambda cls: lambda parts: cls(*parts)),
    },
    "decimal": {"Decimal": _text},
    "fractions": {"Fraction": _text},
    "datetime": {
        "datetime": _iso,
        "date": _iso,
        "time": _iso,
        "timedelta": (lambda value: (value.days, value.seconds, value.microseconds), lambda cls: lambda parts: cls(*parts)),
    },
    "numpy": {
        "ndarray": (
            lambda value: (value.dtype.str, value.shape, value.ravel().tolist()),
            lambda cls: lambda parts: sys.modules["numpy"].array(parts[2], dtype=parts[0]).reshape(parts[1]),
        ),
        **dict.fromkeys(("bool", "bool_", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"), _item),
        **dict.fromkeys(("float16", "float32", "float64", "complex64", "complex128", "str_"), _item),
    },
}


class Malformed(ValueError):
    """Bytes that :func:`encode` does not make."""


class _Writer(Pickler):
    def __init__(self, file: io.BytesIO, reference: Callable[[Any], Reference]):
        super().__init__(file, protocol=5)
        self.reference = reference

    def reducer_override(self, value: Any) -> Any:  # called for all that has no opcode of its own
        if value is tuple or value is Ellipsis:
            return NotImplemented
        return tuple, ((..., *self._described(value)),)

    def _described(self, value: Any) -> Reference:
        kind = type(value)
        if kind is type and CLASSES.get(value.__name__) is value:
            return "class", value.__name__
        codes = CODES.get(kind.__module__, {}).get(kind.__name__)
        if codes and getattr(sys.modules[kind.__module__], kind.__name__, None) is kind:
            return f"{kind.__module__}.{kind.__name__}", codes[0](value)
        return self.reference(value)


class _Reader(Unpickler):
    described = False  # whether anything but values with opcodes of their own may be in it

    def find_class(self, module: str, name: str) -> Any:
        self.described = True
        if module != "builtins" or name not in ("tuple", "Ellipsis"):
            raise Malformed(f"{module}.{name}")
        return tuple if name == "tuple" else Ellipsis


def encode(value: Any, reference: Callable[[Any], Reference]) -> bytes:
    """Bytes of a value; what is no plain value becomes ``reference(value)``."""
    file = io.BytesIO()
    _Writer(file, reference).dump(value)
    return file.getvalue()


def decode(data: bytes, dereference: Callable[[str, Any], Any]) -> Any:
    """The value that :func:`encode` was given.

    Raises:
        Malformed: for any other bytes.
    """
    try:
        reader = _Reader(io.BytesIO(data))
        value = reader.load()
        return _restored(value, dereference) if reader.described else value
    except Malformed:
        raise
    except Exception as error:
        raise Malformed(f"{type(error).__name__}: {error}") from None


def _restored(value: Any, dereference: Callable[[str, Any], Any]) -> Any:
    kind = type(value)
    if kind is dict:
        return {_restored(key, dereference): _restored(content, dereference) for key, content in value.items()}
    if kind not in (list, tuple, set, frozenset):
        return value
    items = [_restored(item, dereference) for item in value]
    if kind is list or not (kind is tuple and items and items[0] is Ellipsis):
        return items if kind is list else kind(items)
    _, name, content = items
    if name in ("mine", "yours", "exception"):
        return dereference(name, content)
    if name == "class":
        return CLASSES[content]
    module, _, name = name.partition(".")
    return CODES[module][name][1](getattr(__import__(module), name))(content)
