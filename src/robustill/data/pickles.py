"""A reader of pickles of lists, strings, numbers and byte arrays, which runs nothing that the pickle requests."""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from robustill.core.errors import DataError

LARGEST_PICKLE = 256 * 2**20
"""Bytes; the largest official file, one of CIFAR-100, has 155 MB."""

_MARK: Final = object()
_CONSTANTS: Final = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NEW: Final[dict[str, Callable[[], Any]]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_LITERALS: Final = frozenset(
    [
        *("BININT", "BININT1", "BININT2", "LONG1"),
        *("BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE"),
        *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    ]
)
_TUPLES: Final = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PUT: Final = frozenset(["BINPUT", "LONG_BINPUT", "MEMOIZE"])
_GET: Final = frozenset(["BINGET", "LONG_BINGET"])
_NO_EFFECT: Final = frozenset(["PROTO", "FRAME", "STOP"])
_RECONSTRUCT: Final = frozenset(["numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct"])
_ALLOWED_NAMES: Final = _RECONSTRUCT | {"numpy ndarray", "numpy dtype", "_codecs encode"}


@dataclass
class _Name:
    """The name of a function or class in the pickle; the function or class itself is never imported."""

    name: str


@dataclass
class _Dtype:
    """The name of a dtype."""

    name: str


@dataclass
class _Array:
    """An array; its value is None until the operation that sets its state."""

    value: np.ndarray | None = None


def read_pickle(data: bytes) -> dict[str, Any]:
    """Read the dictionary in a pickle.

    The operations are interpreted on a stack of plain values. Nothing is imported or called: the names that a byte
    array needs are recognised as text, any other name is refused.

    Args:
        data: protocol 2 to 4, at most LARGEST_PICKLE bytes.

    Returns:
        The entries of the dictionary, arrays as uint8 ndarray.

    Raises:
        DataError: the pickle has another operation, name or type of array, or is not a dictionary. If the bytes are not
            a pickle, the error is that of `pickletools`, of any type.
    """
    if len(data) > LARGEST_PICKLE:
        raise DataError(f"a pickle of {len(data)} bytes, expected at most {LARGEST_PICKLE}")
    interpreter = _Interpreter()
    for operation, argument, _ in pickletools.genops(data):
        interpreter.run(operation.name, argument)
    (result,) = interpreter.stack
    if not isinstance(result, dict):
        raise DataError(f"a pickle of a {type(result).__name__}, expected a dictionary")
    names = [key.decode("latin-1") if isinstance(key, bytes) else key for key in result]
    values = [value.value if isinstance(value, _Array) else value for value in result.values()]
    return dict(zip(names, values, strict=True))


class _Interpreter:
    """The stack and memo of a pickle, and the operations on them."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.array_bytes = 0

    def run(self, operation: str, argument: Any) -> None:
        """Run one operation."""
        if operation in _LITERALS:
            self.stack.append(argument)
        elif operation in _PUT:
            self.memo[len(self.memo) if argument is None else argument] = self.stack[-1]
        elif operation in _GET:
            self.stack.append(self.memo[argument])
        elif operation in _CONSTANTS:
            self.stack.append(_CONSTANTS[operation])
        elif operation in _NEW:
            self.stack.append(_NEW[operation]())
        elif operation in _TUPLES:
            items = [self.stack.pop() for _ in range(_TUPLES[operation])]
            self.stack.append(tuple(reversed(items)))
        elif operation == "MARK":
            self.stack.append(_MARK)
        elif operation == "TUPLE":
            self.stack.append(tuple(self._pop_to_mark()))
        elif operation in ("APPEND", "APPENDS"):
            items = self._pop_to_mark() if operation == "APPENDS" else [self.stack.pop()]
            self._top(list).extend(items)
        elif operation in ("SETITEM", "SETITEMS"):
            items = self._pop_to_mark() if operation == "SETITEMS" else [self.stack.pop(-2), self.stack.pop()]
            # Tuples nested through the memo would take practically forever to hash or print.
            if not all(isinstance(key, str | bytes) for key in items[::2]):
                raise DataError("refused: the pickle has a dictionary with keys that are not text")
            self._top(dict).update(zip(items[::2], items[1::2], strict=True))
        elif operation in ("GLOBAL", "STACK_GLOBAL"):
            if operation == "STACK_GLOBAL":
                argument = " ".join([self.stack.pop(-2), self.stack.pop()])
            self.stack.append(_allowed_name(argument))
        elif operation == "REDUCE":
            arguments, function = self.stack.pop(), self.stack.pop()
            self.stack.append(_call(function, arguments))
        elif operation == "BUILD":
            state = self.stack.pop()
            if isinstance(self.stack[-1], _Array):
                self.stack[-1].value = self._array(state)
            elif not isinstance(self.stack[-1], _Dtype):
                raise DataError("refused: the pickle sets the state of something that is not an array")
        elif operation not in _NO_EFFECT:
            raise DataError(f"refused: the pickle uses the operation {operation}, which no data file needs")

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise DataError(f"a damaged pickle: found {type(self.stack[-1]).__name__}, expected {kind.__name__}")
        return self.stack[-1]

    def _pop_to_mark(self) -> list[Any]:
        """Remove the last mark and all values after it, and return the values."""
        position = len(self.stack) - 1
        while self.stack[position] is not _MARK:
            position -= 1
            if position < 0:
                raise DataError("a damaged pickle: a mark is missing")
        items = self.stack[position + 1 :]
        del self.stack[position:]
        return items

    def _array(self, state: Any) -> np.ndarray:
        _, shape, dtype, fortran_order, raw = state
        if not isinstance(dtype, _Dtype) or dtype.name not in ("u1", "|u1"):
            raise DataError("a pickled array of another type than uint8")
        # Many arrays may share one long string of the file, so the size of the file is no bound.
        self.array_bytes += len(raw)
        if self.array_bytes > LARGEST_PICKLE:
            raise DataError(f"refused: the pickle's arrays have more than {LARGEST_PICKLE} bytes together")
        content = raw.encode("latin-1") if isinstance(raw, str) else raw
        return np.frombuffer(content, dtype=np.uint8).reshape(shape, order="F" if fortran_order else "C")


def _allowed_name(name: str) -> _Name:
    if name not in _ALLOWED_NAMES:
        raise DataError(f"refused: the pickle asks for {name.replace(' ', '.')[:80]!r}, which no data file needs")
    return _Name(name)


def _call(function: Any, arguments: Any) -> Any:
    """Return what the call would return, for the three calls that a pickled array makes."""
    if isinstance(function, _Name) and isinstance(arguments, tuple):
        if function.name in _RECONSTRUCT:
            return _Array()
        if function.name == "numpy dtype" and isinstance(arguments[0], str):
            return _Dtype(arguments[0])
        if function.name == "_codecs encode" and isinstance(arguments[0], str):
            # It stays text until an array needs its bytes.
            return arguments[0]
    raise DataError("refused: the pickle makes a call that no data file needs")
