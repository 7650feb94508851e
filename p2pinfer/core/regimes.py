"""Regimes: the families of kernels that rows may run in, and how a prompt is split among them.

Within one regime a row has the same bits however it is batched; between regimes it does not. So
every row's regime is stated, signed for, and kept whenever the row is run again.

    narrow    1 to 7 rows: decoding, in matrix kernels of their own
    wide      8 to 48 rows: short prompts; attention still goes row by row over the whole cache
    block     padded to 64 rows, where llama.cpp's tiled attention begins: long prompts
"""

from enum import IntEnum
from typing import Any, Final, NamedTuple

from p2pinfer.core.limits import BLOCK_ROWS, NARROW_ROWS_MAX, WIDE_ROWS_MAX


class Regime(IntEnum):
    """A family of kernels; its number is part of Merkle leaves and of messages."""

    NARROW = 0
    WIDE = 1
    BLOCK = 2

    @property
    def rows_max(self) -> int:
        """How many rows one decode may hold."""
        return _ROWS_MAX[self]


_ROWS_MAX: Final = (NARROW_ROWS_MAX, WIDE_ROWS_MAX, BLOCK_ROWS)

LONG_ROWS_MIN: Final = 8 * BLOCK_ROWS
"""A turn of at least this many rows is read in blocks to its end: padding costs it at most an
eighth, and wide rows cost more the further into a session they are. A shorter turn's rest runs
wide."""


def on_wire(regime: Regime) -> int | bool:
    """Return how a regime is sent; narrow and wide as peers that know no blocks expect them."""
    return regime if regime is Regime.BLOCK else bool(regime)


def from_wire(value: Any) -> Regime:
    """Return the regime that a sent value stands for; raises ValueError."""
    if type(value) is Regime:
        return value
    if type(value) is bool:
        return Regime.WIDE if value else Regime.NARROW
    if type(value) is int and value == Regime.BLOCK:
        return Regime.BLOCK
    raise ValueError(f"{value!r:.40} is no regime")


class RegimeChunk(NamedTuple):
    """Consecutive positions of a prompt that run in one decode."""

    start: int
    end: int
    regime: Regime


def split(start: int, end: int, *, blocks: bool) -> list[RegimeChunk]:
    """Split a turn's new positions into decodes: blocks while they pay, and the rest wide.

    Args:
        start: the first position that is new.
        end: the position after the last.
        blocks: whether all that run them know blocks.
    """
    found, is_long = [], end - start >= LONG_ROWS_MIN
    while start < end:
        left = end - start
        regime = Regime.BLOCK if blocks and (left > WIDE_ROWS_MAX or is_long) else Regime.WIDE
        after = min(end, start + regime.rows_max)
        found.append(RegimeChunk(start, after, regime))
        start = after
    return found
