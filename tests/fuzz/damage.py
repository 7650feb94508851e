"""Ways to damage valid data: in its bytes, and in the values that they encode."""

from random import Random
from typing import Any

import msgpack

ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 255, 1 << 31, 1 << 32, (1 << 62) + 1, (1 << 64) - 1, -(1 << 63)),
    *(0.0, 1.5, float("nan"), float("inf"), "", "x", "0" * 32, "ab" * 32, "x" * 52, "x" * 3000),
    *(b"", b"\0", bytes(16), bytes(32), bytes(64), bytes(5000), (), ((),), (((), ()),), {}),
)
"""Of every type, and at the edges of most limits."""


def damage(chance: Random, data: bytes) -> bytes:
    """Return the bytes with some changed, lost, inserted or repeated."""
    found = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(found) + 1)
        match chance.randrange(4):
            case 0 if found:
                found[at % len(found)] ^= 1 << chance.randrange(8)
            case 1:
                del found[at : at + chance.randint(1, 8)]
            case 2:
                found[at:at] = found[at : at + chance.randint(1, 40)]
            case _:
                found[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(5))
    return bytes(found)


def spoil(chance: Random, value: Any) -> Any:
    """Return a value with one change, at any depth."""
    if isinstance(value, list | tuple) and value and chance.random() < 0.9:
        items = list(value)
        at = chance.randrange(len(items))
        match chance.randrange(8):
            case 0:
                del items[at]
            case 1:
                items.insert(at, chance.choice(ODD))
            case _:
                items[at] = spoil(chance, items[at])
        return tuple(items)
    if chance.random() < 0.5:
        if type(value) is bytes:
            return damage(chance, value)
        if type(value) is str:
            return damage(chance, value.encode()).decode("utf-8", "replace")
        if type(value) is int and abs(value) < 1 << 62:
            return value + chance.choice((-1, 1, 1 << 31))
    return chance.choice(ODD)


def packed(chance: Random, values: Any) -> bytes:
    """Return msgpack of spoilt values, or damaged msgpack of good ones, or noise."""
    lot = chance.random()
    if lot < 0.05:
        return chance.randbytes(chance.randrange(120))
    if lot < 0.4:
        return damage(chance, msgpack.packb(values))
    for _ in range(chance.randint(1, 2)):
        values = spoil(chance, values)
    found: bytes = msgpack.packb(values)
    return found
