"""Polynomials modulo X^N + 1 and a product of primes, as rows of numpy.

A polynomial is an array (…, primes, N): for each prime its coefficients modulo it (the residue
number system), as whole numbers in float64, from about -p/2 to p/2. numpy's arithmetic and its FFT
run fastest on these, and every sum and product below stays under 2^53, so nothing is ever rounded.

Products go through a complex FFT of N/2 points that is twisted by an odd root of -1, so that it
multiplies modulo X^N + 1. Its error for polynomials x and y is at most 2^-45.7 |x| |y| for N up to
8,192, with Euclidean norms (Percival, "Rapid multiplication modulo the sum and difference of highly
composite numbers", 2003, theorem 5.1); `SMALL_MAX` and `_HALF_BITS` keep that under 1/32, and what
is whole is then found by rounding.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Poly = NDArray[np.float64]
"""(…, primes, N), see above."""
Spectrum = NDArray[np.complex128]
"""(…, primes, N/2): a polynomial at half of the odd roots of -1; the rest are conjugates."""

PRIME_BITS_MAX = 28
"""Two such numbers, one of them in halves, multiply without rounding; see above."""
SMALL_MAX = 1
"""The largest coefficient of a small polynomial."""
_HALF_BITS = PRIME_BITS_MAX // 2


class Ring:
    """The polynomials modulo X^N + 1 and the product of some primes.

    Args:
        degree: N, a power of two.
        primes: different ones, of at most ``PRIME_BITS_MAX`` bits.
    """

    def __init__(self, degree: int, primes: Sequence[int]) -> None:
        assert degree & (degree - 1) == 0, degree
        assert all(p % 2 and p.bit_length() <= PRIME_BITS_MAX for p in primes), primes
        self.degree, self.primes = degree, tuple(primes)
        self.moduli: Poly = np.array(primes, np.float64)[:, None]
        """(primes, 1)."""
        self._twist = np.exp(1j * np.pi / degree * np.arange(degree // 2))

    def __len__(self) -> int:
        return len(self.primes)

    def reduced(self, values: Poly, moduli: Poly | None = None) -> Poly:
        """Return whole numbers under 2^53 modulo each prime, nearest to zero."""
        by = self.moduli if moduli is None else moduli
        quotients = values / by
        np.rint(quotients, out=quotients)
        quotients *= by
        return np.subtract(values, quotients, out=quotients)

    def constant(self, value: int) -> Poly:
        """Return a whole number of any size modulo each prime, (primes, 1)."""
        return self.reduced(np.array([[value % p] for p in self.primes], np.float64))

    def spectrum(self, values: Poly) -> Spectrum:
        """Return what products are made of; ``values`` is (…, N), whole numbers."""
        half = self.degree // 2
        found: Spectrum = np.fft.fft((values[..., :half] + 1j * values[..., half:]) * self._twist)
        return found

    def product(self, spectrum: Spectrum) -> Poly:
        """Return the polynomials of spectra, reduced."""
        folded = np.fft.ifft(spectrum)
        folded *= self._twist.conj()
        values = np.concatenate((folded.real, folded.imag), axis=-1)
        return self.reduced(np.rint(values, out=values))

    def times_small(self, factor: Spectrum, small: Spectrum) -> Poly:
        """Return the product of a polynomial and a small one: (…, primes, N).

        Args:
            factor: spectrum of any polynomial.
            small: of one whose coefficients are at most ``SMALL_MAX``; it needs no axis of primes.
        """
        return self.product(factor * small)

    def halves(self, values: Poly) -> tuple[Spectrum, Spectrum]:
        """Return the spectra of the upper and the lower half of each coefficient's digits."""
        upper = np.rint(values / (1 << _HALF_BITS))
        return self.spectrum(upper), self.spectrum(values - upper * (1 << _HALF_BITS))

    def times(self, left: tuple[Spectrum, Spectrum], right: tuple[Spectrum, Spectrum]) -> Poly:
        """Return the product of any two polynomials by their ``halves``."""
        total = self.product(left[0] * right[0])
        for spectrum in (left[0] * right[1] + left[1] * right[0], left[1] * right[1]):
            total *= 1 << _HALF_BITS
            total += self.product(spectrum)
            total = self.reduced(total)
        return total

    def scaled(self, values: Poly, factors: Sequence[int]) -> Poly:
        """Return polynomials times a number for each prime, whatever its size."""
        whole = values.astype(np.int64)  # products of 2^54: floats would round them
        by = np.array([f % p for f, p in zip(factors, self.primes, strict=True)], np.int64)[:, None]
        return self.reduced((whole * by % self.moduli.astype(np.int64)).astype(np.float64))
