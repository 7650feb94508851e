"""Products of polynomials come out to the last digit, whatever the polynomials."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.sums.parameters import STANDARD
from p2pinfer.core.sums.ring import Poly, Ring
from tests.support.small_sums import SMALL

RING = SMALL.ring
EVERY = STANDARD.ring


def by_hand(ring: Ring, left: Poly, right: Poly) -> Poly:
    """Multiply as on paper, in whole numbers of any size."""
    rows = []
    for prime, a, b in zip(ring.primes, left, right, strict=True):
        row = [0] * ring.degree
        for i, x in enumerate(a.astype(int).tolist()):
            for j, y in enumerate(b.astype(int).tolist()):
                at = i + j
                row[at % ring.degree] += (-1 if at >= ring.degree else 1) * x * y
        rows.append([(value + prime // 2) % prime - prime // 2 for value in row])
    return np.array(rows, np.float64)


coefficients = st.lists(st.integers(-(1 << 40), 1 << 40), min_size=16, max_size=16)


@settings(max_examples=100)
@given(coefficients, coefficients)
def test_products_are_those_on_paper(left: list[int], right: list[int]) -> None:
    """Of any two polynomials, and with a ternary one."""
    a, b = (RING.reduced(np.array([row] * len(RING), np.float64)) for row in (left, right))
    np.testing.assert_array_equal(RING.times(RING.halves(a), RING.halves(b)), by_hand(RING, a, b))
    small = np.array([value % 3 - 1 for value in right], np.float64)
    found = RING.times_small(RING.spectrum(a), RING.spectrum(small))
    np.testing.assert_array_equal(found, by_hand(RING, a, np.stack([small] * len(RING))))


def test_the_largest_products_are_far_from_a_wrong_rounding() -> None:
    """With all coefficients at their ends a product is 1/32 from a whole number at most."""
    degree = EVERY.degree
    largest = np.repeat((EVERY.moduli - 1) / 2, degree, axis=1)
    twist = np.exp(1j * np.pi / degree * np.arange(degree // 2)).conj()
    upper, lower = EVERY.halves(largest)
    ones = EVERY.spectrum(np.ones(degree))
    pairs = [(EVERY.spectrum(largest), ones), (upper, upper), (upper, lower), (lower, lower)]
    for left, right in pairs:
        folded = np.fft.ifft(left * right) * twist
        values = np.concatenate((folded.real, folded.imag), axis=-1)
        assert np.abs(values - np.rint(values)).max() < 1 / 32
    sums = 2.0 * np.arange(1, degree + 1) - degree  # of ones times ones modulo X^N + 1
    found = EVERY.times_small(EVERY.spectrum(largest), ones)
    expected = [[int(each) * (prime - 1) // 2 % prime for each in sums] for prime in EVERY.primes]
    np.testing.assert_array_equal(found % EVERY.moduli, np.array(expected, np.float64))
    product = EVERY.times(EVERY.halves(largest), EVERY.halves(largest))
    squares = [
        [int(each) * ((prime - 1) // 2) ** 2 % prime for each in sums] for prime in EVERY.primes
    ]
    np.testing.assert_array_equal(product % EVERY.moduli, np.array(squares, np.float64))


@given(st.integers(-(1 << 300), 1 << 300))
def test_constants_of_any_size(value: int) -> None:
    """A constant is itself modulo each prime, and numbers are scaled by any."""
    found = RING.constant(value)
    assert [int(x) % p for [x], p in zip(found, RING.primes, strict=True)] == [
        value % p for p in RING.primes
    ]
    ones = np.ones((len(RING), RING.degree))
    scaled = RING.scaled(ones, [value] * len(RING))
    np.testing.assert_array_equal(scaled, np.broadcast_to(found, scaled.shape))


def test_parameters_that_do_not_hold_cannot_be_made() -> None:
    """Their primes are prime, and noise, security and the largest sum are looked at."""
    for prime in EVERY.primes:
        assert all(prime % low for low in range(2, int(prime**0.5) + 1)), prime
    with pytest.raises(AssertionError):
        type(STANDARD)(16, STANDARD.payload[:2], STANDARD.margin[:2], 218)  # no room for noise
    with pytest.raises(AssertionError):
        type(STANDARD)(16, STANDARD.payload, STANDARD.margin, 217)  # too large a modulus
    with pytest.raises(AssertionError):
        type(STANDARD)(16, (4_194_175,), STANDARD.margin, 218)  # too small for a sum's ends
