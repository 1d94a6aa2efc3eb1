"""Structures in Thrift's compact protocol, in which Parquet files describe themselves, as plain values.

Reference: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_TRUE, _FALSE, _BYTE, _SHORT, _INT, _LONG, _DOUBLE, _BINARY, _LIST, _SET, _STRUCT = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12
_DEEPEST = 16


def read_struct(content: bytes, position: int = 0, depth: int = 0) -> tuple[dict[int, Any], int]:
    """Return the fields of a structure by their number, and the position behind it.

    Args:
        content: bytes that hold it.
        position: where it begins.
        depth: the number of structures and lists around it.

    Raises:
        IndexError: the content ends before it does.
        ValueError: it is damaged.

    Example:
        >>> read_struct(bytes([0x15, 0x0E, 0x18, 0x02, 0x61, 0x62, 0x00]))
        ({1: 7, 2: b'ab'}, 7)
    """
    fields: dict[int, Any] = {}
    number = 0
    while (first := content[position]) != 0:
        position += 1
        if first >> 4:
            number += first >> 4
        else:
            number, position = _signed(content, position)
        kind = first & 15
        if kind in (_TRUE, _FALSE):
            fields[number] = kind == _TRUE
        else:
            fields[number], position = _value(content, position, kind, depth)
    return fields, position + 1


def _value(content: bytes, position: int, kind: int, depth: int) -> tuple[Any, int]:
    if depth > _DEEPEST:
        raise ValueError("a description that is nested too deep")
    if kind in (_LIST, _SET):
        return _list(content, position, depth + 1)
    if kind == _STRUCT:
        return read_struct(content, position, depth + 1)
    reader = _READERS.get(kind)
    if reader is None:
        raise ValueError(f"a description with a value of the kind {kind}")
    return reader(content, position)


def _list(content: bytes, position: int, depth: int) -> tuple[list[Any], int]:
    first, position = content[position], position + 1
    count, kind = first >> 4, first & 15
    if count == 15:
        count, position = varint(content, position)
    values = []
    for _ in range(count):
        value, position = _value(content, position, _BYTE if kind in (_TRUE, _FALSE) else kind, depth)
        values.append(value)
    return values, position


def _binary(content: bytes, position: int) -> tuple[bytes, int]:
    length, position = varint(content, position)
    if position + length > len(content):
        raise IndexError
    return content[position : position + length], position + length


def _byte(content: bytes, position: int) -> tuple[int, int]:
    return content[position], position + 1


def _double(content: bytes, position: int) -> tuple[bytes, int]:
    if position + 8 > len(content):
        raise IndexError
    return content[position : position + 8], position + 8


def _signed(content: bytes, position: int) -> tuple[int, int]:
    number, position = varint(content, position)
    return (number >> 1) ^ -(number & 1), position


def varint(content: bytes | memoryview, position: int) -> tuple[int, int]:
    """Return a number of seven bits a byte, without a sign, and the position behind it.

    Raises:
        IndexError: the content ends before it does.
        ValueError: it has more than 64 bits.
    """
    number = shift = 0
    while shift < 70:
        byte = content[position]
        number |= (byte & 127) << shift
        position, shift = position + 1, shift + 7
        if byte < 128:
            return number, position
    raise ValueError("a number has no end")


_READERS: dict[int, Callable[[bytes, int], tuple[Any, int]]] = {
    _BYTE: _byte,
    _SHORT: _signed,
    _INT: _signed,
    _LONG: _signed,
    _DOUBLE: _double,
    _BINARY: _binary,
}
