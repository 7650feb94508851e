"""Regimes: the families of kernels that rows may run in, and how a prompt is split among them.

In one regime a row comes out the same to the last bit however it is batched; between regimes it
does not. So every row's regime is stated, signed for, and kept whenever the row is run again.

    narrow    1 to 7 rows: decoding, in matrix kernels of their own
    wide      8 to 48 rows: short prompts; attention still goes row by row over the whole cache
    block     padded to 64 rows, from which on llama.cpp's attention is tiled: long prompts
"""

from enum import IntEnum
from typing import Any, Final, NamedTuple

from p2pinfer.core.limits import BLOCK_ROWS, NARROW_ROWS_MAX, WIDE_ROWS_MAX


class Regime(IntEnum):
    """A family of kernels; the numbers stand in Merkle leaves and on the wire."""

    NARROW = 0
    WIDE = 1
    BLOCK = 2

    @property
    def rows_max(self) -> int:
        """How many rows one decode may hold."""
        return _ROWS_MAX[self]


_ROWS_MAX: Final = (NARROW_ROWS_MAX, WIDE_ROWS_MAX, BLOCK_ROWS)

LONG_ROWS_MIN: Final = 8 * BLOCK_ROWS
"""A turn of so many rows is read in blocks to its end: padding costs it an eighth at most, and wide
rows cost the more the further in they are. In a shorter one the rest runs wide."""


def on_wire(regime: Regime) -> int | bool:
    """Return how a regime is sent: as peers understand it who know no blocks, where they can."""
    return regime if regime is Regime.BLOCK else bool(regime)


def from_wire(value: Any) -> Regime:
    """Return the regime that was sent so; raises ValueError."""
    if type(value) is int and value == Regime.BLOCK:
        return Regime.BLOCK
    if type(value) not in (bool, Regime):
        raise ValueError(f"{value!r:.40} is no regime")
    return Regime(value)


class RegimeChunk(NamedTuple):
    """Consecutive positions of a prompt that run in one decode."""

    start: int
    end: int
    regime: Regime


def split(start: int, end: int, *, blocks: bool) -> list[RegimeChunk]:
    """Split a turn's new positions into decodes: blocks while they pay, and the rest wide.

    Args:
        start: the first position that is new.
        end: the position behind the last.
        blocks: whether everybody who runs them knows blocks.
    """
    found, is_long = [], end - start >= LONG_ROWS_MIN
    while start < end:
        left = end - start
        regime = Regime.BLOCK if blocks and (left > WIDE_ROWS_MAX or is_long) else Regime.WIDE
        after = min(end, start + regime.rows_max)
        found.append(RegimeChunk(start, after, regime))
        start = after
    return found
