"""Merkle trees over rows of activations, one leaf a position: commitments that can be opened.

A leaf binds the row's position and regime, so that equal roots mean the same rows, at the same
positions, computed by the same kernels, in any session. The root of every prefix is known:
trees grow at the end, and drop positions from the end when a session goes back.

    leaf(p)    BLAKE3 keyed "leaf", of position, regime and row
    node       BLAKE3 keyed "node", of the left and the right child
    root(n)    BLAKE3 keyed "root", of n and the perfect subtrees of the first n leaves, those on
               the right joined first (the shape of RFC 6962)
"""

import struct
from collections.abc import Sequence

from blake3 import blake3

HASH_BYTES = 32

_LEAF_KEY, _NODE_KEY, _ROOT_KEY = (
    blake3(f"p2pinfer rows 1 {kind}".encode()).digest() for kind in ("leaf", "node", "root")
)
_PLACE = struct.Struct("<I?")
_COUNT = struct.Struct("<I")


class WrongProof(ValueError):
    """The path does not lead from a leaf to a root of a tree of that size."""


def leaf(position: int, row: bytes, *, wide: bool) -> bytes:
    """Return the hash of a row, float32 or float16 as on the wire, at a position."""
    return blake3(_PLACE.pack(position, wide) + row, key=_LEAF_KEY).digest()


def root_through(found: bytes, position: int, count: int, path: Sequence[bytes]) -> bytes:
    """Return the root of a tree of ``count`` leaves that a path from one of them leads to.

    Raises:
        WrongProof: the position is not in such a tree, or the path has the wrong length.
    """
    if not 0 <= position < count:
        raise WrongProof(f"position {position} is not in a tree of {count}")
    heights = _heights(count)
    start = 0
    for mine, height in enumerate(heights):  # noqa: B007 -- both are used after the loop
        if position < start + (1 << height):
            break
        start += 1 << height
    is_last = mine == len(heights) - 1
    if len(path) != height + (not is_last) + mine or any(len(each) != HASH_BYTES for each in path):
        raise WrongProof(f"a path of {len(path)} hashes does not lead through a tree of {count}")
    for level in range(height):
        on_left = (position - start) >> level & 1
        found = _node(path[level], found) if on_left else _node(found, path[level])
    rest = list(path[height:])
    if not is_last:
        found = _node(found, rest.pop(0))
    for left in rest:
        found = _node(left, found)
    return _root(count, found)


class Tree:
    """A tree over rows; a row costs one hash of it and, on average, one node."""

    def __init__(self) -> None:
        self._levels: list[list[bytes]] = [[]]
        """Hashes of all perfect subtrees, by height; level 0 holds the leaves."""

    def __len__(self) -> int:
        """How many positions it holds."""
        return len(self._levels[0])

    def append(self, row: bytes, *, wide: bool) -> None:
        """Add the row at the next position."""
        found = leaf(len(self), row, wide=wide)
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

    def root(self, count: int) -> bytes:
        """Return the root of the first ``count`` positions, which may be 0."""
        assert 0 <= count <= len(self)
        return _root(count, _join(self._peaks(count)))

    def path(self, position: int, count: int) -> list[bytes]:
        """Return the hashes that lead from a position to the root of the first ``count``."""
        assert 0 <= position < count <= len(self)
        peaks, start = self._peaks(count), 0
        for mine, height in enumerate(_heights(count)):  # noqa: B007
            if position < start + (1 << height):
                break
            start += 1 << height
        path = [self._levels[level][position >> level ^ 1] for level in range(height)]
        if mine < len(peaks) - 1:
            path.append(_join(peaks[mine + 1 :]))
        return path + peaks[:mine][::-1]

    def _peaks(self, count: int) -> list[bytes]:
        found, start = [], 0
        for height in _heights(count):
            found.append(self._levels[height][start >> height])
            start += 1 << height
        return found


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
