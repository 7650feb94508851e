"""Rows with numbers that are none are found, wherever they lie; large numbers are numbers."""

import numpy as np
import pytest

from peers.steps.limits import ROW_TYPE
from peers.steps.numbers import all_finite

WIDTHS = (1, 7, 576, 40_000)


@pytest.mark.parametrize("width", WIDTHS)
def test_one_bad_number_is_enough(width: int) -> None:
    """At the start, in the middle, at the end; also infinities that cancel each other."""
    numbers = np.random.default_rng(1).standard_normal(width).astype(ROW_TYPE)
    assert all_finite(numbers.tobytes())
    for at in {0, width // 2, width - 1}:
        for bad in (np.nan, np.inf, -np.inf):
            spoilt = numbers.copy()
            spoilt[at] = bad
            assert not all_finite(spoilt.tobytes())
            spoilt[0] = -bad
            assert not all_finite(spoilt.tobytes())


@pytest.mark.parametrize("width", WIDTHS)
def test_the_largest_numbers_are_numbers(width: int) -> None:
    """Without a warning."""
    most = np.full(width, np.finfo(np.float32).max, ROW_TYPE)
    assert all_finite(most.tobytes())
    assert all_finite((-most).tobytes())
    most[-1] = np.nan
    assert not all_finite(most.tobytes())
