"""Finding in recorded bytes what should not be there: texts, tokens, and rows of numbers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
from numpy.typing import NDArray

from scheduler.judging import UNIT

WINDOW = 8
"""Characters, tokens or numbers in a row that would give them away."""

KEY_BYTES = 8
"""Of which something is looked up; less would be found by chance among megabytes of random ones."""

PLACES = 256
"""Of a vector that are looked for."""

DIFFERENT = 6
"""Numbers of a window that differ, at least: zeros stand everywhere."""


def texts(said: Iterable[str]) -> Iterator[bytes]:
    """Yield what parts of texts would look like."""
    for text in said:
        for at in range(0, max(1, len(text) - WINDOW + 1), WINDOW // 2):
            part = text[at : at + WINDOW]
            yield from (part.encode(kind) for kind in ("utf-8", "utf-16-le", "utf-16-be"))
            yield part.encode().hex().encode()


def varint(number: int) -> bytes:
    """Encode as protocol buffers do."""
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*found, number])


def tokens(said: Iterable[Sequence[int]]) -> Iterator[bytes]:
    """Yield what parts of rows of tokens would look like."""
    for row in said:
        for at in range(max(1, len(row) - WINDOW + 1)):
            part = [int(each) for each in row[at : at + WINDOW]]
            for kind in ("<u2", ">u2", "<u4", ">u4", "<u8", ">u8"):
                yield np.array(part, np.int64).astype(kind).tobytes()
            yield b"".join(map(msgpack.packb, part))
            yield b"".join(map(varint, part))
            yield ",".join(map(str, part)).encode()
            yield ", ".join(map(str, part)).encode()


def _windows(numbers: NDArray[Any]) -> Iterator[NDArray[Any]]:
    flat = numbers.reshape(-1)
    last = len(flat) - WINDOW
    for at in {*range(0, last, max(WINDOW, last // PLACES)), last}:
        part = flat[at : at + WINDOW]
        if len(np.unique(part)) >= DIFFERENT:
            yield part


def update(units: NDArray[np.int32]) -> Iterator[bytes]:
    """Yield what parts of an update, in units of `scheduler.judging`, would look like."""
    for part in _windows(units):
        for kind in ("<i2", ">i2", "<i4", ">i4", "<i8", ">i8"):
            yield part.astype(kind).tobytes()
        yield b"".join(msgpack.packb(int(each)) for each in part)
        yield from _floats(part)
        yield from _floats(part * UNIT)


def floats(numbers: NDArray[np.float32]) -> Iterator[bytes]:
    """Yield what parts of rows of activations, or of a change of weights, would look like."""
    for part in _windows(numbers):
        yield from _floats(part)


def _floats(part: NDArray[Any]) -> Iterator[bytes]:
    for kind in ("<f2", ">f2", "<f4", ">f4", "<f8", ">f8"):
        yield part.astype(kind).tobytes()


@dataclass
class Secrets:
    """What no other member may see of one."""

    said: Sequence[str]
    tokens: Sequence[Sequence[int]] = ()
    rows: Sequence[NDArray[np.float32]] = ()
    """In front of the trained layers."""
    changes: list[NDArray[np.float32]] = field(default_factory=list)
    """Of the weights, in each round."""
    updates: list[NDArray[np.int32]] = field(default_factory=list)
    """The same in units, as it is encrypted."""

    def needles(self) -> Iterator[bytes]:
        """Yield what parts of all that would look like."""
        yield from texts(self.said)
        yield from tokens(self.tokens)
        for numbers in (*self.rows, *self.changes):
            yield from floats(numbers)
        for units in self.updates:
            yield from update(units)


def found_in(wire: bytes, needles: Iterable[bytes]) -> set[bytes]:
    """Return those needles that are in recorded bytes; none is shorter than ``KEY_BYTES``."""
    by_key: dict[int, list[bytes]] = {}
    for needle in needles:
        assert len(needle) >= KEY_BYTES, needle
        by_key.setdefault(int.from_bytes(needle[:KEY_BYTES], "little"), []).append(needle)
    keys = np.array(sorted(by_key), np.uint64)
    found: set[bytes] = set()
    for shift in range(min(KEY_BYTES, len(wire))):
        words = np.frombuffer(wire, "<u8", (len(wire) - shift) // KEY_BYTES, shift)
        places = np.searchsorted(keys, words)
        hits = np.flatnonzero(keys[np.minimum(places, len(keys) - 1)] == words)
        for at in hits.tolist():
            place = shift + KEY_BYTES * at
            found |= {each for each in by_key[int(words[at])] if wire.startswith(each, place)}
    return found
