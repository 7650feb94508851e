"""Merkle trees over rows, one leaf per position: commitments to what was computed.

A leaf binds the row's position and regime, so that equal roots mean the same rows, at the same
positions, computed by the same kernels, in any session. Every prefix has a root: trees grow at the
end, and drop positions from the end when a session goes back.

    leaf(p)    BLAKE3 keyed "leaf", of position, regime and row
    node       BLAKE3 keyed "node", of the left and the right child
    root(n)    BLAKE3 keyed "root", of n and the perfect subtrees of the first n leaves, joined
               from the right (the shape of RFC 6962)
"""

import struct
from collections.abc import Sequence

from blake3 import blake3

from p2pinfer.core.regimes import Regime

HASH_BYTES = 32

_LEAF_KEY, _NODE_KEY, _ROOT_KEY = (
    blake3(f"p2pinfer rows 1 {kind}".encode()).digest() for kind in ("leaf", "node", "root")
)
_PLACE = struct.Struct("<IB")
_COUNT = struct.Struct("<I")


def leaf(position: int, row: bytes, *, regime: Regime) -> bytes:
    """Return the hash of a row, float32 or float16 as on the wire, at a position."""
    return blake3(_PLACE.pack(position, regime) + row, key=_LEAF_KEY).digest()


class Tree:
    """A tree over rows; each row costs its own hash and, on average, one node."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]
        """Hashes of all perfect subtrees, by height; level 0 holds the leaves."""

    def __len__(self) -> int:
        """How many positions it holds."""
        return len(self._levels[0])

    def append(self, row: bytes, *, regime: Regime) -> None:
        """Add the row at the next position."""
        found = leaf(len(self), row, regime=regime)
        for level in self._levels:
            level.append(found)
            if len(level) & 1:
                return
            found = _node(level[-2], level[-1])
        self._levels.append([found])

    def truncate(self, length: int) -> None:
        """Drop the positions from ``length`` on."""
        for height, level in enumerate(self._levels):
            del level[length >> height :]

    def fork(self, count: int) -> "Tree":
        """Return a tree of its own over the first ``count`` positions."""
        found = Tree()
        found._levels = [level[: count >> height] for height, level in enumerate(self._levels)]
        return found

    def root(self, count: int) -> bytes:
        """Return the root of the first ``count`` positions, which may be 0."""
        assert 0 <= count <= len(self)
        return _root(count, _join(self._peaks(count)))

    def leaf(self, position: int) -> bytes:
        """Return the hash of the row at a position."""
        return self._levels[0][position]

    def path(self, position: int, count: int) -> tuple[bytes, ...]:
        """Return the hashes that lead from the leaf at a position to the root of ``count``.

        See ``root_by_path``.
        """
        assert 0 <= position < count <= len(self)
        number, height = _peak_of(position, count)
        found = [self._levels[low][position >> low ^ 1] for low in range(height)]
        peaks = self._peaks(count)
        if right := _join(peaks[number + 1 :]):
            found.append(right)
        return (*found, *reversed(peaks[:number]))

    def _peaks(self, count: int) -> list[bytes]:
        found, start = [], 0
        for height in _heights(count):
            found.append(self._levels[height][start >> height])
            start += 1 << height
        return found


def root_by_path(position: int, count: int, leaf: bytes, path: Sequence[bytes]) -> bytes:
    """Return the root of ``count`` positions to which a path leads from a leaf.

    Empty if the path is of another length. The order of the hashes: siblings in the leaf's perfect
    subtree, from below; what is right of that one, joined, if anything is; the perfect subtrees
    left of it, from the right.
    """
    assert 0 <= position < count
    number, height = _peak_of(position, count)
    is_last = number == count.bit_count() - 1
    if len(path) != height + (not is_last) + number:
        return b""
    top = leaf
    for low, sibling in enumerate(path[:height]):
        top = _node(sibling, top) if position >> low & 1 else _node(top, sibling)
    if not is_last:
        top = _node(top, path[height])
    for left in path[len(path) - number :]:
        top = _node(left, top)
    return _root(count, top)


def _peak_of(position: int, count: int) -> tuple[int, int]:
    """Return which perfect subtree holds a leaf, from the left, and its height."""
    start = 0
    for number, height in enumerate(_heights(count)):
        if position < start + (1 << height):
            return number, height
        start += 1 << height
    raise AssertionError(position)


def _heights(count: int) -> list[int]:
    """Return the heights of the perfect subtrees that ``count`` leaves make, left to right."""
    return [height for height in reversed(range(count.bit_length())) if count >> height & 1]


def _join(peaks: Sequence[bytes]) -> bytes:
    found = b""
    for peak in reversed(peaks):
        found = _node(peak, found) if found else peak
    return found


def _node(left: bytes, right: bytes) -> bytes:
    return blake3(left + right, key=_NODE_KEY).digest()


def _root(count: int, top: bytes) -> bytes:
    return blake3(_COUNT.pack(count) + top, key=_ROOT_KEY).digest()
