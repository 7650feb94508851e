"""The little of Protocol Buffers that libp2p's own protocols need: varints, bytes and fixed64.

A pure codec in a page (https://protobuf.dev/programming-guides/encoding): what a stranger sends is
either understood or a ValueError, and unknown fields are skipped.
"""

from collections.abc import Mapping

FIELDS_MAX = 256
"""In one message: none of those protocols has a tenth of them."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

_UINT64_MAX = (1 << 64) - 1

Fields = Mapping[int, list[int | bytes]]
"""The values of each field of a message, in their order."""


def varint(value: int) -> bytes:
    """Encode a number that is not negative."""
    assert 0 <= value <= _UINT64_MAX
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def delimited(message: bytes) -> bytes:
    """Put a message's length before it."""
    return varint(len(message)) + message


def number(field: int, value: int) -> bytes:
    """Encode a field that is a varint."""
    return varint(field << 3 | VARINT) + varint(value)


def fixed64(field: int, value: int) -> bytes:
    """Encode a field of eight bytes."""
    return varint(field << 3 | FIXED64) + value.to_bytes(8, "little")


def data(field: int, value: bytes) -> bytes:
    """Encode a field of bytes: a string, or a message."""
    return varint(field << 3 | BYTES) + delimited(value)


def parse(message: bytes) -> Fields:
    """Return a message's fields.

    Raises:
        ValueError: it is none, or has more than `FIELDS_MAX`.
    """
    fields: dict[int, list[int | bytes]] = {}
    at = count = 0
    while at < len(message):
        count += 1
        if count > FIELDS_MAX:
            raise ValueError(f"more than {FIELDS_MAX} fields")
        key, at = _varint(message, at)
        value: int | bytes
        match key & 7:
            case 0:
                value, at = _varint(message, at)
            case 1:
                value, at = int.from_bytes(_cut(message, at, 8), "little"), at + 8
            case 5:
                value, at = int.from_bytes(_cut(message, at, 4), "little"), at + 4
            case 2:
                size, at = _varint(message, at)
                value, at = _cut(message, at, size), at + size
            case kind:
                raise ValueError(f"a field of the unknown kind {kind}")
        if not key >> 3:
            raise ValueError("a field without a number")
        fields.setdefault(key >> 3, []).append(value)
    return fields


def number_of(fields: Fields, field: int) -> int:
    """Return a field that is a number, 0 where it is not there; the last one counts.

    Raises:
        ValueError: it holds bytes.
    """
    value = fields.get(field, [0])[-1]
    if isinstance(value, int):
        return value
    raise ValueError(f"field {field} is no number")


def data_of(fields: Fields, field: int) -> bytes | None:
    """Return a field that holds bytes, None where it is not there; the last one counts.

    Raises:
        ValueError: it is a number.
    """
    found = all_data_of(fields, field)
    return found[-1] if found else None


def all_data_of(fields: Fields, field: int) -> list[bytes]:
    """Return all values of a field that holds bytes.

    Raises:
        ValueError: one is a number.
    """
    values = fields.get(field, [])
    found = [value for value in values if isinstance(value, bytes)]
    if len(found) < len(values):
        raise ValueError(f"field {field} is a number")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number and where the rest begins."""
    value = 0
    for shift in range(0, 70, 7):
        byte = _cut(message, at, 1)[0]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value > _UINT64_MAX:
                break
            return value, at
    raise ValueError("a number of more than 64 bits")


def _cut(message: bytes, at: int, size: int) -> bytes:
    if at + size > len(message):
        raise ValueError("the message ends too soon")
    return message[at : at + size]
