"""Polynomials to bytes and back: each coefficient in as many whole bytes as its prime needs."""

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.sums.ring import Poly, Ring


class BadSum(ValueError):
    """What another member sent is not what it should be; the text says what is wrong."""

    member: int | None = None
    """Who sent it, where that is known."""


def _widths(ring: Ring) -> list[int]:
    return [-(-prime.bit_length() // 8) for prime in ring.primes]


def poly_bytes(ring: Ring) -> int:
    """Return the size of a polynomial."""
    return ring.degree * sum(_widths(ring))


def poly_to_bytes(ring: Ring, values: Poly) -> bytes:
    """Return a polynomial's bytes: one sequence for each."""
    whole = np.where(values < 0, values + ring.moduli, values).astype("<u4")
    rows = whole.view(np.uint8).reshape(len(ring), ring.degree, 4)
    return b"".join(
        row[:, :width].tobytes() for row, width in zip(rows, _widths(ring), strict=True)
    )


def poly_of_bytes(ring: Ring, data: bytes | memoryview) -> Poly:
    """Return the polynomial of some bytes; raises BadSum if they are none."""
    if len(data) != poly_bytes(ring):
        raise BadSum(f"{len(data):,} bytes are no polynomial")
    whole: NDArray[np.uint8] = np.zeros((len(ring), ring.degree, 4), np.uint8)
    at = 0
    for row, width in zip(whole, _widths(ring), strict=True):
        size = ring.degree * width
        row[:, :width] = np.frombuffer(data[at : at + size], np.uint8).reshape(-1, width)
        at += size
    values = whole.view("<u4")[..., 0].astype(np.float64)
    if not (values < ring.moduli).all():
        raise BadSum("a coefficient is over its prime")
    return ring.reduced(values)
