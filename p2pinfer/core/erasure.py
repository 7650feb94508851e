"""A Reed-Solomon code: any ``k`` of ``k + m`` shares give back the other ``m``.

The code is systematic: the first ``k`` shares are the data itself, so that as long as they are
there nobody decodes. The others are sums of them over GF(2^8) with the coefficients of a Cauchy
matrix, of which every square part has an inverse (Blömer et al., "An XOR-based erasure-resilient
coding scheme", 1995). A share is cut into eighths, and a multiplication by a constant is then a
matrix of 8 x 8 bits that says which eighths are added to which (Plank and Xu, "Optimizing Cauchy
Reed-Solomon codes", 2006): the whole code is XORs of long rows, which numpy does as fast as memory
allows.

The coefficients are part of how models are stored, and stay as they are. Ours is an implementation
of published work, and unaudited; it hides nothing, and shows nothing to be right: hashes do that.
"""

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

SHARES_MAX = 256
"""A Cauchy matrix over 256 numbers has no more rows and columns than these together."""

BLOCK_BYTES = 64
"""Shares are padded to a multiple of this: eighths of whole 64-bit words."""

POLYNOMIAL = 0x11D
"""x^8 + x^4 + x^3 + x^2 + 1, which most Reed-Solomon codes count by."""

_BITS = 8

Bits = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]
Rows = tuple[tuple[int, ...], ...]


def _logarithms() -> tuple[list[int], list[int]]:
    powers, logarithms, value = [0] * 255, [0] * 256, 1
    for exponent in range(255):
        powers[exponent], logarithms[value] = value, exponent
        value <<= 1
        if value > 0xFF:
            value ^= POLYNOMIAL
    return powers, logarithms


_POWERS, _LOGARITHMS = _logarithms()


def multiply(a: int, b: int) -> int:
    """Return the product of two numbers of GF(2^8)."""
    return _POWERS[(_LOGARITHMS[a] + _LOGARITHMS[b]) % 255] if a and b else 0


def inverse(a: int) -> int:
    """Return the number that gives 1 with ``a``; raises ZeroDivisionError."""
    if not a:
        raise ZeroDivisionError
    return _POWERS[-_LOGARITHMS[a] % 255]


@lru_cache(256)
def _bits_of(factor: int) -> Bits:
    """Return the 8 x 8 bits of a multiplication: row i says which bits give bit i."""
    columns = [multiply(factor, 1 << bit) for bit in range(_BITS)]
    return np.array([[c >> bit & 1 for c in columns] for bit in range(_BITS)], np.uint8)


@lru_cache(64)
def cauchy(k: int, m: int) -> Rows:
    """Return the coefficients of the parity shares, a row for each, so that few bits are set.

    Rows and columns of a Cauchy matrix may be multiplied by anything: columns are divided by the
    first row, and each other row by that one of its numbers which leaves the fewest bits.
    """
    assert k >= 1, k
    assert m >= 1, m
    assert k + m <= SHARES_MAX, (k, m)
    rows = [[inverse((k + row) ^ column) for column in range(k)] for row in range(m)]
    firsts = [inverse(value) for value in rows[0]]
    rows = [[multiply(*pair) for pair in zip(row, firsts, strict=True)] for row in rows]

    def divided(row: list[int], by: int) -> list[int]:
        return [multiply(value, inverse(by)) for value in row]

    def ones(row: list[int]) -> int:
        return sum(int(_bits_of(value).sum()) for value in row)

    best = [min((divided(row, by) for by in row), key=lambda r: (ones(r), r)) for row in rows[1:]]
    return tuple(map(tuple, [rows[0], *best]))


def _inverted(rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the inverse of a square matrix, by Gauss and Jordan."""
    size = len(rows)
    work = [[*row, *(int(i == j) for j in range(size))] for i, row in enumerate(rows)]
    for column in range(size):
        pivot = next(row for row in range(column, size) if work[row][column])
        work[column], work[pivot] = work[pivot], work[column]
        factor = inverse(work[column][column])
        work[column] = [multiply(value, factor) for value in work[column]]
        for row in range(size):
            if row != column and (factor := work[row][column]):
                pairs = zip(work[row], work[column], strict=True)
                work[row] = [value ^ multiply(factor, base) for value, base in pairs]
    return [row[size:] for row in work]


@lru_cache(256)
def _mixing(k: int, m: int, given: tuple[int, ...], wanted: tuple[int, ...]) -> Rows:
    """Return by what each of ``k`` given shares enters each wanted one."""
    parity = cauchy(k, m)

    def of_data(share: int) -> Sequence[int]:
        return [int(share == c) for c in range(k)] if share < k else parity[share - k]

    back = _inverted([of_data(share) for share in given])

    def mixed(share: int) -> tuple[int, ...]:
        sums = [0] * k
        for factor, row in zip(of_data(share), back, strict=True):
            sums = [total ^ multiply(factor, value) for total, value in zip(sums, row, strict=True)]
        return tuple(sums)

    return tuple(map(mixed, wanted))


def share_bytes(sizes: Iterable[int]) -> int:
    """Return the bytes of a parity share of data shares with these sizes."""
    return -(-max(sizes) // BLOCK_BYTES) * BLOCK_BYTES


def add_up(factors: Sequence[Sequence[int]], blocks: Sequence[bytes], size: int) -> list[bytes]:
    """Return sums of blocks times factors, row by row; shorter blocks are padded with zeros."""
    assert size % BLOCK_BYTES == 0, size
    eighths = [_eighths(block, size) for block in blocks]
    sums = []
    for row in factors:
        total = np.zeros((_BITS, size // BLOCK_BYTES), np.uint64)
        for factor, source in zip(row, eighths, strict=True):
            if not factor:
                continue
            for bit, into in zip(_bits_of(factor), total, strict=True):
                for at in np.flatnonzero(bit):
                    np.bitwise_xor(into, source[at], out=into)
        sums.append(total.tobytes())
    return sums


def _eighths(block: bytes, size: int) -> Words:
    padded = block if len(block) == size else block.ljust(size, b"\0")
    return np.frombuffer(padded, np.uint64).reshape(_BITS, -1)


def encode(data: Sequence[bytes], m: int) -> list[bytes]:
    """Return the ``m`` parity shares of data shares, as long as the longest, padded."""
    return add_up(cauchy(len(data), m), data, share_bytes(map(len, data)))


def rebuild(
    k: int, m: int, shares: Mapping[int, bytes], wanted: Sequence[int], size: int
) -> dict[int, bytes]:
    """Return the wanted shares, each of ``size`` bytes, from any ``k`` others by their numbers.

    Data shares that were shorter come back with zeros behind. Raises ValueError if there are fewer.
    """
    given = tuple(sorted(shares)[:k])
    if len(given) < k:
        raise ValueError(f"{len(given)} shares do not give back {k}")
    factors = _mixing(k, m, given, tuple(wanted))
    sums = add_up(factors, [shares[share] for share in given], size)
    return dict(zip(wanted, sums, strict=True))
