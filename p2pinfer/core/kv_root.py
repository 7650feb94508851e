"""What a stage signs about its K and V rows before it knows which of its rows will be looked at.

Without that a cheat could invent, for each opened row, keys and values that fit any output. Each
layer has a chain of hashes over its positions, from the last one back to the first:

    tail(N)    32 zero bytes
    tail(p)    BLAKE3 keyed "cell", of p, the K row's size, K and V rows, tail(p + 1)
    root       BLAKE3 keyed "root", of N and every layer's tail(0)

So the rows up to a position are shown with one hash more, the tail behind them; and what is said of
one layer is shown with the other layers' hashes alone. Rows are as the cache holds them: float16,
or bfloat16 in V where a stage keeps them so.
"""

import struct
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from attrs import field, frozen
from blake3 import blake3

from p2pinfer.core.checks import blob, shown_size
from p2pinfer.core.merkle import HASH_BYTES
from p2pinfer.core.receipts import SIGNATURE_BYTES, BadReceipt

LAST_TAIL: Final = bytes(HASH_BYTES)

SIGNED_AS: Final = b"p2pinfer kv root 1\0"
"""Prepended to a statement before signing, so that no other signature passes for it."""

STATEMENT_BYTES: Final = 2 * HASH_BYTES

_CELL_KEY, _ROOT_KEY = (
    blake3(f"p2pinfer kv 1 {kind}".encode()).digest() for kind in ("cell", "root")
)
_COUNT = struct.Struct("<I")
_HASH: Any = blob(HASH_BYTES, HASH_BYTES)


def tails(keys: bytes, values: bytes, count: int, tail: bytes = LAST_TAIL) -> list[bytes]:
    """Return the hash before each of a layer's positions, and ``tail`` behind them at last.

    Args:
        keys: K rows from position 0 on.
        values: their V rows.
        count: of positions, at least one.
        tail: the hash behind them.
    """
    assert count > 0
    assert len(keys) % count == len(values) % count == 0
    heads = np.empty((count, 2), "<u4")
    heads[:, 0], heads[:, 1] = np.arange(count), len(keys) // count
    rows = [np.frombuffer(each, np.uint8).reshape(count, -1) for each in (keys, values)]
    room = np.empty((count, HASH_BYTES), np.uint8)
    cells = np.concatenate((heads.view(np.uint8), *rows, room), axis=1)
    size = cells.shape[1]
    # One hasher for all cells, which lie ready in memory: a quarter quicker than one for each.
    said, hasher, found = cells.reshape(-1).data, blake3(key=_CELL_KEY), [tail]
    for end in range(count * size, 0, -size):
        said[end - HASH_BYTES : end] = found[-1]
        hasher.update(said[end - size : end])
        found.append(hasher.digest())
        hasher.reset()
    found.reverse()
    return found


def kv_root(positions: int, layers: Sequence[bytes]) -> bytes:
    """Return the root over all layers, given the hash before each one's first position."""
    return blake3(_COUNT.pack(positions) + b"".join(layers), key=_ROOT_KEY).digest()


@frozen
class KvStatement:
    """A stage's K and V rows of a session's first positions: those of a receipt that it signed."""

    receipt: bytes = field(validator=_HASH, repr=shown_size)
    """BLAKE3 hash of the receipt's body."""
    root: bytes = field(validator=_HASH, repr=shown_size)

    def body(self) -> bytes:
        """Return the bytes that are signed, after ``SIGNED_AS``."""
        return self.receipt + self.root

    @classmethod
    def parse(cls, body: bytes) -> "KvStatement":
        """Parse what ``body`` wrote; raises BadReceipt."""
        if len(body) != STATEMENT_BYTES:
            raise BadReceipt(f"a statement has {STATEMENT_BYTES} bytes, not {len(body)}")
        return cls(body[:HASH_BYTES], body[HASH_BYTES:])


@frozen
class SignedKv:
    """A statement as it travels."""

    body: bytes = field(validator=blob(STATEMENT_BYTES, STATEMENT_BYTES), repr=shown_size)
    signature: bytes = field(validator=blob(SIGNATURE_BYTES, SIGNATURE_BYTES), repr=shown_size)
