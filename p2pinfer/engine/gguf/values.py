"""GGUF metadata values, kept as raw file bytes so that they are written back unchanged."""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

_LENGTH = struct.Struct("<Q")


class ValueType(IntEnum):
    """The type of a metadata value, by its number in the file."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


STRUCT_CODES = {
    ValueType.UINT8: "B",
    ValueType.INT8: "b",
    ValueType.UINT16: "H",
    ValueType.INT16: "h",
    ValueType.UINT32: "I",
    ValueType.INT32: "i",
    ValueType.FLOAT32: "f",
    ValueType.BOOL: "?",
    ValueType.UINT64: "Q",
    ValueType.INT64: "q",
    ValueType.FLOAT64: "d",
}
"""The ``struct`` code of every type of fixed size."""

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Value:
    """One metadata value, kept as raw file bytes so that it is written back unchanged."""

    type: ValueType
    raw: bytes

    @classmethod
    def of(cls, value_type: ValueType, value: Scalar) -> "Value":
        """Encode ``value``, which must fit ``value_type``."""
        if isinstance(value, str):
            return cls(value_type, encode_string(value))
        return cls(value_type, struct.pack(f"<{STRUCT_CODES[value_type]}", value))

    def decode(self) -> Scalar:
        """Return the value."""
        if self.type is ValueType.STRING:
            return self.raw[_LENGTH.size :].decode()
        scalar: Scalar = struct.unpack(f"<{STRUCT_CODES[self.type]}", self.raw)[0]
        return scalar


@dataclass(frozen=True, slots=True)
class Array:
    """A metadata array of ``count`` values of one type, kept as raw file bytes."""

    element: ValueType
    count: int
    raw: bytes

    @classmethod
    def of(cls, element: ValueType, items: Sequence[Scalar]) -> "Array":
        """Encode ``items``, each of which must fit ``element``."""
        raw = b"".join(Value.of(element, item).raw for item in items)
        return cls(element, len(items), raw)

    def decode(self) -> list[Scalar]:
        """Return the items; bytes of a string that are not UTF-8 become U+FFFD."""
        if self.element is not ValueType.STRING:
            return list(struct.unpack(f"<{self.count}{STRUCT_CODES[self.element]}", self.raw))
        items: list[Scalar] = []
        at = 0
        for _ in range(self.count):
            (length,) = _LENGTH.unpack_from(self.raw, at)
            at += _LENGTH.size + length
            items.append(self.raw[at - length : at].decode(errors="replace"))
        return items


def encode_string(text: str) -> bytes:
    """Encode a string with its length in front."""
    raw = text.encode()
    return _LENGTH.pack(len(raw)) + raw


Metadata = Mapping[str, Value | Array]
