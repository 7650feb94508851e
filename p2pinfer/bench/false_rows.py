"""Which rows of a cheat's answer are false: a measure of what openings could have caught.

The rows that the cheat received are run again as they should have been, by an engine of its own
numerics class, where honest rows have the same bits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.regimes import Regime
from p2pinfer.core.witness import OpenedRows
from p2pinfer.engine.base import StageEngine
from peers.audits.inspector import parts_of
from peers.audits.replay import by_engine, cut
from peers.receipts.signer import SessionRecord

FALSE_FROM: Final = 1e-4
"""Relative to a row: what is less is as small as what honest kernels differ by."""


@dataclass(frozen=True)
class FalseRows:
    """The false rows of an answer."""

    rows: int
    """Of the whole answer."""
    false: int
    missed: float
    """The chance that none of the rows that are opened, one of each quarter, is false."""
    apart: float
    """How far the false rows are apart, relative to what they should be: the median; 0 if none."""


async def find_false(
    record: SessionRecord, before: SessionRecord, engine: StageEngine, count: int
) -> FalseRows:
    """Compare what a stage sent with what its layers give.

    Args:
        record: the stage's, of a session that goes on.
        before: of the same session, the stage's before it.
        engine: has the same layers.
        count: how many positions.
    """
    regimes, received = SessionRecord.open(before, 0, count)
    _, sent = SessionRecord.open(record, 0, count)  # whatever it opens to others
    opened, made = OpenedRows(tuple(map(Regime, regimes)), received), list[bytes]()
    async with by_engine(engine, record.opened.end)(count) as replay:
        for position, rows, regime in cut(opened, 0):
            many = len(rows) * count // len(received)
            made.append(await replay.run(position, many, rows, regime=regime))
    width = len(received) // (4 * count)
    return compare(
        *(np.frombuffer(each, "<f4").reshape(-1, width) for each in (sent, b"".join(made)))
    )


def compare(sent: NDArray[np.float32], true: NDArray[np.float32]) -> FalseRows:
    """Compare all rows of an answer with what they should be, each by its length."""
    wide = true.astype(np.float64)
    apart = np.linalg.norm(sent - wide, axis=1) / np.linalg.norm(wide, axis=1)
    is_false = apart > FALSE_FROM
    middle = float(np.median(apart[is_false])) if is_false.any() else 0.0
    return FalseRows(len(true), int(is_false.sum()), chance_missed(is_false.tolist()), middle)


def chance_missed(is_false: Sequence[bool]) -> float:
    """Return the chance that no false row is among those that are opened; see ``choose_rows``."""
    parts = parts_of(len(is_false))
    return prod(1 - sum(is_false[at] for at in part) / len(part) for part in parts)
