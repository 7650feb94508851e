"""The Reed-Solomon code: any k shares give the rest, as other implementations have it."""

import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core import erasure

ZFEC_FACTORS = ((15, 8, 6), (45, 48, 28))
"""Of zfec 1.6.0.0, 3 of 5: what it gives for one 1 and else zeros."""
ZFEC_PARITY = (
    (
        "ab3172ea6094c801394029f618e6a9171cd59f1a9ee34b367a598a88efb84de9"
        "31389cad7a0ec1efc4dabdcbf61b331e6fdc6280970db616d4506475752c7007"
    ),
    (
        "4221221d6c35b2f4d13c9a6a1d5cbfa8136ee86376c3e125b85367f06b7b19a1"
        "7e5e3b323909cded0b00b699048683d759f8325f09da3bec082c7e2a5757eab8"
    ),
)
"""Of the blocks below."""


def as_bits(symbols: bytes) -> bytes:
    """Turn symbols of a byte each, 64 of them, into eighths: bit ``i`` of all in the i-th."""
    bits = np.unpackbits(np.frombuffer(symbols, np.uint8), bitorder="little").reshape(64, 8)
    return np.packbits(bits.T, bitorder="little").tobytes()


def test_sums_are_those_of_zfec() -> None:
    """Another implementation's parity, with its coefficients, comes out of our XORs."""
    blocks = [bytes((i * 37 + s * 101 + 7) % 256 for s in range(64)) for i in range(3)]
    found = erasure.add_up(ZFEC_FACTORS, [as_bits(block) for block in blocks], 64)
    assert found == [as_bits(bytes.fromhex(parity)) for parity in ZFEC_PARITY]


def test_coefficients_stay_as_they_are() -> None:
    """Models are stored with them; the first row is plain XOR."""
    assert erasure.cauchy(4, 2) == ((1, 1, 1, 1), (1, 217, 92, 172))
    assert erasure.cauchy(8, 8)[0] == (1,) * 8
    assert erasure.cauchy(8, 8)[7] == (1, 217, 90, 24, 248, 51, 70, 168)


def test_every_square_part_has_an_inverse() -> None:
    """Any 4 of 8 shares give back all, whichever are lost."""
    chance = random.Random(1)
    data = [chance.randbytes(64) for _ in range(4)]
    shares = dict(enumerate([*data, *erasure.encode(data, 4)]))
    for some in combinations(range(8), 4):
        got = erasure.rebuild(4, 4, {n: shares[n] for n in some}, range(8), 64)
        assert got == shares


@given(
    k=st.integers(1, 20),
    m=st.integers(1, 20),
    sizes=st.lists(st.integers(1, 300), min_size=20, max_size=20),
    chance=st.randoms(use_true_random=False),
)
def test_sampled_subsets_give_back_all(
    k: int, m: int, sizes: list[int], chance: random.Random
) -> None:
    """Of any shape, with data shares of unlike lengths."""
    data = [chance.randbytes(size) for size in sizes[:k]]
    parity = erasure.encode(data, m)
    size = erasure.share_bytes(map(len, data))
    assert {len(each) for each in parity} == {size}
    shares = dict(enumerate([*data, *parity]))
    left = {n: shares[n] for n in chance.sample(range(k + m), k)}
    lost = [n for n in shares if n not in left]
    got = erasure.rebuild(k, m, left, lost, size)
    assert got == {n: shares[n].ljust(size, b"\0") for n in lost}


def test_too_few_shares_are_refused() -> None:
    """One less than k tells nothing."""
    with pytest.raises(ValueError, match="1 shares do not give back 2"):
        erasure.rebuild(2, 1, {0: bytes(64)}, [1], 64)


def test_one_is_never_divided_by_nothing() -> None:
    """Every other number has an inverse."""
    assert all(erasure.multiply(a, erasure.inverse(a)) == 1 for a in range(1, 256))
    with pytest.raises(ZeroDivisionError):
        erasure.inverse(0)
