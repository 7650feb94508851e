"""Noise that hides what a single contribution was, and what it promises: differential privacy.

Whatever somebody sees of the result, or does with it, without one contribution it would have been
seen with almost the same chance: at most e^epsilon times as likely, but for a chance of delta.

A contribution is scaled down to a norm C, and normal noise of the standard deviation z C is added
to what they add up to, where z is the *multiplier*. Seen once, that is (epsilon, delta)-private if
and only if

    delta >= Phi(m/2 - epsilon/m) - e^epsilon Phi(-m/2 - epsilon/m),    m = 1/z

(Balle and Wang, "Improving the Gaussian Mechanism for Differential Privacy", 2018, theorem 8). Seen
in several rounds, each of which may depend on those before, it is exactly as private as once with
m = sqrt(rounds)/z (Dong, Roth and Su, "Gaussian Differential Privacy", 2022, corollary 3.3). So an
accountant has nothing to add, and nothing is said about chance in who takes part.
"""

import math
from collections.abc import Callable

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

EPSILON_MAX = 500.0
"""Larger ones promise nothing, and e^epsilon would soon be too large to count with."""

DELTA_DEFAULT = 1e-5
"""Less than one in all the contributions there may be; the usual one."""

_FRACTION_BITS = 53
"""Of a float64."""


@frozen
class Noise:
    """What is done to each contribution."""

    norm: float
    """C: it is scaled down to this Euclidean norm, if it has a larger one."""
    multiplier: float
    """z: the noise's standard deviation, in norms."""


def delta(epsilon: float, multiplier: float, rounds: int = 1) -> float:
    """Return the least delta that goes with an epsilon of 0 to ``EPSILON_MAX``."""
    assert 0 <= epsilon <= EPSILON_MAX, epsilon
    m = math.sqrt(rounds) / multiplier
    return _below(m / 2 - epsilon / m) - math.exp(epsilon) * _below(-m / 2 - epsilon / m)


def epsilon(delta_: float, multiplier: float, rounds: int = 1) -> float:
    """Return the least epsilon that goes with a delta; infinity beyond ``EPSILON_MAX``."""
    assert 0 < delta_ < 1, delta_
    low, high = 0.0, EPSILON_MAX
    if delta(high, multiplier, rounds) > delta_:
        return math.inf
    if delta(low, multiplier, rounds) <= delta_:
        return low
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        if delta(middle, multiplier, rounds) > delta_:
            low = middle
        else:
            high = middle
    return high


def clipped(values: NDArray[np.floating], norm: float) -> NDArray[np.float64]:
    """Return a contribution, scaled down to a norm if it has a larger one."""
    wide = values.astype(np.float64)
    size = float(np.linalg.norm(wide))
    return wide * (norm / size) if size > norm else wide


def normal(draw: Callable[[int], bytes], count: int) -> NDArray[np.float64]:
    """Draw normal numbers of variance 1 from a source of bytes that nobody can guess.

    By Box and Muller; from 53 random bits each, so none is over 8.6.
    """
    pairs = -(-count // 2)
    words = np.frombuffer(draw(16 * pairs), "<u8").reshape(2, pairs) >> (64 - _FRACTION_BITS)
    first, second = (words + np.uint64(1)) * 2.0**-_FRACTION_BITS  # over 0, up to 1
    radius, angle = np.sqrt(-2 * np.log(first)), 2 * np.pi * second
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))[:count]


def _below(x: float) -> float:
    """Return the chance that a normal number is below x: Phi."""
    return math.erfc(-x / math.sqrt(2)) / 2
