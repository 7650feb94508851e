"""What is drawn at random for encrypted sums, and what is expanded from a key.

Secrets come from a ``Draw``, which in a process that means it is ``os.urandom``.
"""

from collections.abc import Callable

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from p2pinfer.core.sums.parameters import ERROR_HALVES, SMUDGING_BITS
from p2pinfer.core.sums.ring import Poly, Ring

Draw = Callable[[int], bytes]
"""Returns as many random bytes."""

KEY_BYTES = 32
_TRITS = 5
"""Ternary digits in a byte; 3^5 = 243."""
_TRITS_OF_BYTE = np.array(
    [[byte // 3**digit % 3 - 1 for digit in range(_TRITS)] for byte in range(3**_TRITS)], np.int8
)
_SPARE = 64
"""Words drawn beyond those needed: of some bytes one in twenty is thrown away."""


def expansion(key: bytes) -> Draw:
    """Return a ``Draw`` whose bytes follow from a key: BLAKE3's output, read from its beginning."""
    stream, at = blake3(key), 0

    def draw(count: int) -> bytes:
        nonlocal at
        found = stream.digest(length=count, seek=at)
        at += count
        return found

    return draw


def _accepted(
    draw: Draw, count: int, kind: str, below: int, spare: float
) -> NDArray[np.unsignedinteger]:
    """Draw ``count`` words under a bound: those over it are thrown away."""
    width, found = np.dtype(kind).itemsize, np.empty(0, kind)
    while len(found) < count:
        want = int((count - len(found)) * (1 + spare)) + _SPARE
        words = np.frombuffer(draw(want * width), kind)
        found = np.concatenate((found, words[words < below]))
    return found[:count]


def ternary(draw: Draw, degree: int) -> Poly:
    """Draw coefficients -1, 0 and 1, each as likely: a secret."""
    packed = _accepted(draw, -(-degree // _TRITS), "u1", len(_TRITS_OF_BYTE), 0.06)
    found: Poly = _TRITS_OF_BYTE[packed].reshape(-1)[:degree].astype(np.float64)
    return found


def errors(draw: Draw, degree: int) -> Poly:
    """Draw coefficients from the centred binomial distribution: the noise of keys and sums."""
    words = np.frombuffer(draw(8 * degree), "<u8")
    mask = np.uint64((1 << ERROR_HALVES) - 1)
    ones = np.bitwise_count(words & mask).astype(np.float64)
    found: Poly = ones - np.bitwise_count((words >> np.uint64(ERROR_HALVES)) & mask)
    return found


def uniform(draw: Draw, ring: Ring) -> Poly:
    """Draw any polynomial of the ring, each as likely."""
    rows = []
    for prime in ring.primes:
        words = _accepted(draw, ring.degree, "<u4", (1 << 32) // prime * prime, 0.005)
        rows.append(words.astype(np.float64))
    return ring.reduced(np.stack(rows))


def smudging(draw: Draw, ring: Ring) -> Poly:
    """Draw the noise that hides another one: uniform from -2^63 to 2^63."""
    words = np.frombuffer(draw(8 * ring.degree), "<i8")
    upper = (words >> 32).astype(np.float64)
    lower = (words & 0xFFFF_FFFF).astype(np.float64)
    assert 8 * words.itemsize - 1 == SMUDGING_BITS
    total = ring.reduced(upper) * ring.constant(1 << 32) + ring.reduced(lower)
    return ring.reduced(total)
