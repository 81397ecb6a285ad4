"""The wire format of protobuf, as much of it as reading a graph takes; no package that knows ONNX is needed."""

from __future__ import annotations

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, int, int]
"""Number, wire type, then the value of a varint and where it ends, or where the field's bytes begin and end."""


def fields(data: bytes, start: int, end: int) -> list[Field]:
    """The fields of the message in ``data[start:end]``, which lies inside the data.

    Raises:
        ValueError: the bytes are no message.
    """
    found: list[Field] = []
    position = start
    while position < end:
        key = data[position]
        position += 1
        if key >= 0x80:
            key, position = varint(data, position - 1, end)
        kind = key & 7
        if kind == BYTES and position < end:
            length = data[position]
            position += 1
            if length >= 0x80:
                length, position = varint(data, position - 1, end)
            found.append((key >> 3, BYTES, position, position + length))
            position += length
        elif kind == VARINT:
            value, position = varint(data, position, end)
            found.append((key >> 3, VARINT, value, position))
        elif kind in (FIXED32, FIXED64):
            width = 4 if kind == FIXED32 else 8
            found.append((key >> 3, kind, position, position + width))
            position += width
        else:
            raise ValueError("it is no protobuf message")
    if position > end:
        raise ValueError("a field of it reaches beyond its end")
    return found


def varint(data: bytes, position: int, end: int) -> tuple[int, int]:
    """Reads a number of seven bits a byte, the least significant first; returns it and where it ends."""
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        if byte < 0x80:
            return value | byte << shift, position
        value |= (byte & 0x7F) << shift
        shift += 7
    raise ValueError("a number in it has no end")


def signed(value: int) -> int:
    """An int64 as protobuf's varints write it."""
    return value - (1 << 64) if value >= 1 << 63 else value


def integers(data: bytes, field: Field) -> list[int]:
    """The values of a repeated int64: one, or packed."""
    _, kind, start, end = field
    if kind == VARINT:
        return [signed(start)]
    found = []
    while start < end:
        value, start = varint(data, start, end)
        found.append(signed(value))
    return found
