"""How large the polynomials of encrypted sums are, how much noise they hold, and why.

Security rests on ring learning with errors. For N = 8,192 and a ternary secret the table of the
homomorphic encryption standard (homomorphicencryption.org, "Homomorphic Encryption Security
Standard", November 2018, table 1) allows a modulus of at most 218 bits for 128 bits of security
against classical attacks; ours has 216.

The modulus is the product of two groups of primes. Each *payload* prime carries one number per
coefficient, so the plaintext space is the numbers modulo their product T; the *margin* primes
multiply to Delta = q / T, by which plaintexts are scaled, and which is the room for noise.
"""

import math
from functools import cached_property

from attrs import frozen

from p2pinfer.core.sums.ring import Ring

MEMBERS_MAX = 64
"""Of one sum. More would take wider primes, and every member's key share travels to every other."""

NUMBER_MAX = 32_767
"""The largest number that one member adds: 16 bits with a sign."""

ERROR_HALVES = 21
"""Errors are centred binomial: the ones among 21 bits less those among 21 others. Their standard
deviation is 3.24, as in SEAL; the standard's table assumes 3.2."""

SMUDGING_BITS = 63
"""A share's noise is uniform from -2^63 to 2^63: it hides the noise of the sum, which depends on
secrets, 2^45 times over (`SumParameters.hidden_bits`); 40 is the usual statistical parameter."""

MARGIN_BITS_MIN = 10
"""What is left of the room for noise with all members and the largest noise."""

_TAIL = 9
"""Standard deviations that no coefficient's noise exceeds, but with a chance under 2^-59."""


@frozen
class SumParameters:
    """A set of parameters. Those for use are ``STANDARD``; tests have smaller ones."""

    degree: int
    """N: coefficients of a polynomial, a power of two."""
    payload: tuple[int, ...]
    """Primes over twice the largest sum; each carries a number per coefficient."""
    margin: tuple[int, ...]
    """Primes whose product is the room for noise."""
    modulus_bits_max: float
    """Of the security level; see above."""

    def __attrs_post_init__(self) -> None:
        """Assert that sums of all members come out, and that the standard allows the modulus."""
        assert len({*self.payload, *self.margin}) == len(self.payload) + len(self.margin)
        assert min(self.payload) > 2 * MEMBERS_MAX * NUMBER_MAX, self.payload
        assert math.log2(self.modulus) <= self.modulus_bits_max, math.log2(self.modulus)
        assert self.margin_bits(MEMBERS_MAX) >= MARGIN_BITS_MIN, self.margin_bits(MEMBERS_MAX)

    @cached_property
    def ring(self) -> Ring:
        """Return the ring modulo q; payload primes first."""
        return Ring(self.degree, (*self.payload, *self.margin))

    @property
    def modulus(self) -> int:
        """Return q."""
        return math.prod(self.payload) * self.scale

    @property
    def scale(self) -> int:
        """Return Delta = q / T."""
        return math.prod(self.margin)

    @property
    def numbers(self) -> int:
        """Return how many numbers one ciphertext carries."""
        return self.degree * len(self.payload)

    def ciphertexts(self, count: int) -> int:
        """Return how many ciphertexts carry ``count`` numbers."""
        return -(-count // self.numbers)

    def sum_noise(self, members: int) -> float:
        """Return what the noise of a sum of as many members' ciphertexts exceeds hardly ever.

        A ciphertext's noise is e u + e0 + s e1, where e and s add up all members' errors and
        secrets. Given the ternary u, e u is subgaussian with the variance of e times |u|^2 <= N,
        and that of s e1 is the same.
        """
        variance = ERROR_HALVES / 2
        one = 2 * self.degree * members * variance + variance
        return _TAIL * math.sqrt(members * one)

    def noise(self, members: int) -> float:
        """Return the largest noise of an opened sum: that of the sum, and a share of every one."""
        return self.sum_noise(members) + members * 2.0**SMUDGING_BITS

    def margin_bits(self, members: int) -> float:
        """Return how many more bits of noise would do no harm."""
        return math.log2(self.scale / 2) - math.log2(self.noise(members))

    def hidden_bits(self, members: int) -> float:
        """Return by how many bits one share's noise exceeds that of the sum."""
        return SMUDGING_BITS - math.log2(self.sum_noise(members))


STANDARD = SumParameters(
    degree=8192,
    payload=(4_423_681, 4_620_289, 4_816_897, 4_866_049, 4_882_433, 5_308_417),
    margin=(268_369_921, 268_271_617, 268_238_849),
    modulus_bits_max=218,
)
"""128 bits of security, 49,152 numbers in a ciphertext of 480 KiB: five times their size."""
