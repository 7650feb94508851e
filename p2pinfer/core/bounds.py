"""How far apart rows of the same layers may lie on machines with different arithmetic."""

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from p2pinfer.core.receipts import CHECKPOINT_POSITIONS


@frozen
class Bounds:
    """Limits on the relative distance of rows, ``|a - b| / |b|``."""

    median: float
    """Median over a checkpoint's rows: the usual noise, with margin."""
    row: float
    """Any single row."""


DEFAULT_BOUNDS = Bounds(median=0.05, row=0.35)
"""Between classes rows lie 1.4 to 4 % apart, whatever the cause; a slice of the next lower
quantisation 10 % or more, a skipped layer 20 % or more."""


def distances(found: bytes, expected: bytes, count: int) -> NDArray[np.float64]:
    """Return the relative distance of each of ``count`` rows from the expected ones."""
    a, b = (
        np.frombuffer(rows, "<f4").astype(np.float64).reshape(count, -1)
        for rows in (found, expected)
    )
    norms = np.maximum(np.linalg.norm(b, axis=1), np.finfo(np.float32).tiny)
    apart: NDArray[np.float64] = np.linalg.norm(a - b, axis=1) / norms
    return np.where(np.isfinite(apart), apart, np.inf)


def first_outside(apart: NDArray[np.float64], bounds: Bounds) -> int | None:
    """Return the first position of the first checkpoint that is out of bounds, or None."""
    for start in range(0, len(apart), CHECKPOINT_POSITIONS):
        rows = apart[start : start + CHECKPOINT_POSITIONS]
        if (beyond := np.flatnonzero(rows > bounds.row)).size:
            return start + int(beyond[0])
        if np.median(rows) > bounds.median:
            return start
    return None
