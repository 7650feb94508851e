"""Floating-point numbers as the whole numbers that encrypted sums add up."""

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.sums.parameters import NUMBER_MAX


def fixed(values: NDArray[np.floating], clip: float) -> NDArray[np.int64]:
    """Return numbers of -``clip`` to ``clip`` as -32,767 to 32,767, rounded to the nearest.

    What is beyond the range is set to its end. Raises ValueError if a value is not a number.
    """
    wide = values.astype(np.float64)
    if np.isnan(wide).any():
        raise ValueError("an update has values that are not numbers")
    return np.rint(np.clip(wide / clip, -1, 1) * NUMBER_MAX).astype(np.int64)


def floats(total: NDArray[np.int64], clip: float, members: int) -> NDArray[np.float32]:
    """Return the mean of what ``members`` made ``fixed``, from their sum.

    Divisions and products are those of IEEE 754, so that all machines find the same bits.
    """
    return (total.astype(np.float64) * (clip / NUMBER_MAX) / members).astype(np.float32)
