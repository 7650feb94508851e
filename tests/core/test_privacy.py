"""What noise promises is what others compute; and the noise is what it is said to be."""

import math
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.privacy import (
    clipped,
    delta,
    epsilon,
    normal,
)

KNOWN = [
    (1.0, 1, 1e-5, 4.377178),
    (4.0, 50, 1e-5, 8.595866),
    (0.6, 3, 1e-6, 17.299988),
    (20.0, 8, 1e-5, 0.496976),
    (1.1, 100, 1e-5, 79.27550),
]
"""Multiplier, rounds, delta, and epsilon by dp-accounting 0.6.0's privacy loss distributions."""


@pytest.mark.parametrize(("multiplier", "rounds", "chance", "known"), KNOWN)
def test_epsilon_is_that_of_an_accountant(
    multiplier: float, rounds: int, chance: float, known: float
) -> None:
    """Of Google's accountant, which adds up privacy losses in small steps."""
    found = epsilon(chance, multiplier, rounds)
    assert math.isclose(found, known, rel_tol=2e-6)
    assert math.isclose(delta(found, multiplier, rounds), chance, rel_tol=1e-6)


def test_rounds_and_noise_trade_off() -> None:
    """Four rounds with twice the noise are as one; no noise to speak of promises nothing."""
    assert epsilon(1e-5, 2.0, 4) == pytest.approx(epsilon(1e-5, 1.0, 1))
    assert epsilon(1e-5, 1e-3) == math.inf
    assert epsilon(1e-5, 1e9) == 0


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(1e-3, 1e3))
def test_norms_are_clipped(values: list[float], norm: float) -> None:
    """A larger norm is scaled down to the limit, and a smaller one stays."""
    array = np.array(values, np.float32)
    found = clipped(array, norm)
    assert np.linalg.norm(found) <= norm * (1 + 1e-9)
    if np.linalg.norm(array.astype(np.float64)) <= norm:
        np.testing.assert_array_equal(found, array)


def test_noise_is_normal() -> None:
    """Its mean, variance and tails are those of the normal distribution; no bytes break it."""
    count = 200_001
    drawn = normal(os.urandom, count)
    assert drawn.shape == (count,)
    assert abs(drawn.mean()) < 0.02
    assert abs(drawn.std() - 1) < 0.02
    for bound, share in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert abs((np.abs(drawn) < bound).mean() - share) < 0.01
    assert abs(np.corrcoef(drawn[: count // 2], drawn[-(count // 2) :])[0, 1]) < 0.02
    assert np.isfinite(normal(lambda size: bytes(size), 5)).all()
    assert np.isfinite(normal(lambda size: b"\xff" * size, 5)).all()
