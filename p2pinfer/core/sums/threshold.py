"""Sums under a key that nobody holds: threshold BFV for additions alone.

Fan and Vercauteren's scheme (IACR ePrint 2012/144), shared out as by Mouchet et al. ("Multiparty
Homomorphic Encryption from Ring-Learning-with-Errors", 2021, and "An Efficient Threshold
Access-Structure for RLWE-Based Multiparty Homomorphic Encryption", 2023):

    a               from a hash: the same for all members, chosen by none
    s_i, b_i        each member's ternary secret, and b_i = e - a s_i, which it shows
    b               the sum of the b_i: a public key whose secret s is the sum of the s_i
    f_i             a polynomial of degree t - 1 over the ring with f_i(0) = s_i; member j gets
                    f_i(j + 1), and S_j is the sum of what it got
    c0, c1          b u + e0 + Delta m and a u + e1: m under the public key
    d_j             L_j c1 S_j + noise + masks, for t members whose Lagrange factors L_j make
                    the sum of L_j S_j equal to s; so c0 + the sum of the d_j is Delta m + noise

**Fewer than t members learn nothing of s.** Modulo each prime, the values of a polynomial of degree
t - 1 at 0 and at t - 1 other points are a linear map of its t coefficients. Its matrix is that of
Vandermonde; the points are different and below every prime, so it has an inverse. For each value
of s there is thus exactly one polynomial through what t - 1 members hold: their points say nothing.

**Why the masks.** With noise alone, a share of an honest member leaks. Where t - 1 members collude,
and one of them is not among the t that open the sum, two honest ones are. What these hold is known
up to s, so one's share is k (c1 s) + known + noise, where k comes from the L_j: a fraction, modulo
q a large number. The opened sum gives c1 s up to the noise of the sum, which has some 18 bits. So
the share tells that noise modulo the denominator of k, and with that, or with a few such shares,
the noise is found out, then c1 s, and then s. The masks are random polynomials that each two of
the t members agree on; one adds them, the other takes them off. So what honest members share is
random except for its sum, in which c1 s has the factor 1, and its noise is hidden by theirs. And a
share without the rest is random altogether: if a member dies, the others can share the same sum
again, among others.

Our own implementation of published work, but for the masks as above; unaudited, and not constant in
time. It holds against members that look; one that lies can spoil a sum.
"""

from collections.abc import Collection, Iterator

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.sums.chance import Draw, errors, expansion, smudging, ternary, uniform
from p2pinfer.core.sums.parameters import MARGIN_BITS_MIN, SumParameters
from p2pinfer.core.sums.ring import Poly, Spectrum

Ciphertext = NDArray[np.float64]
"""(2, primes, N): c0 and c1."""
Numbers = NDArray[np.int64]
"""What is added up."""


class DoesNotOpen(ValueError):
    """The noise is over what can be told from a sum: a share, or a ciphertext, is not right."""


def common(parameters: SumParameters, key: bytes) -> Poly:
    """Return a, which follows from a key that all members know."""
    return uniform(expansion(key), parameters.ring)


def draw_keys(parameters: SumParameters, a: Poly, draw: Draw) -> tuple[Poly, Poly]:
    """Draw a member's secret, (N,), and make its public key of it, (primes, N)."""
    ring = parameters.ring
    secret = ternary(draw, ring.degree)
    product = ring.times_small(ring.spectrum(a), ring.spectrum(secret))
    return secret, ring.reduced(errors(draw, ring.degree) - product)


def deal(
    parameters: SumParameters, secret: Poly, members: int, threshold: int, draw: Draw
) -> Iterator[Poly]:
    """Yield the share of a secret for each member in turn; any ``threshold`` give it back."""
    ring = parameters.ring
    higher = [uniform(draw, ring) for _ in range(threshold - 1)]
    for member in range(members):
        total = np.zeros((len(ring), ring.degree))
        for coefficient in reversed(higher):
            total = ring.reduced((total + coefficient) * (member + 1))
        yield ring.reduced(total + secret)


def lagrange(parameters: SumParameters, member: int, who: Collection[int]) -> list[int]:
    """Return by what a member's share counts among those of ``who``, modulo each prime."""
    factors = []
    for prime in parameters.ring.primes:
        factor = 1
        for other in who:
            if other != member:
                factor = factor * (other + 1) * pow(other - member, -1, prime) % prime
        factors.append(factor)
    return factors


class PublicKey:
    """What anybody encrypts with.

    Args:
        parameters: of the sum.
        a: what is common to all keys.
        b: the sum of the members' public keys.
    """

    def __init__(self, parameters: SumParameters, a: Poly, b: Poly) -> None:
        self._parameters = parameters
        self._key: Spectrum = parameters.ring.spectrum(np.stack((b, a)))
        margin = parameters.scale
        self._scales = np.array([[margin % p] for p in parameters.payload], np.float64)

    def encrypt(self, numbers: NDArray[np.int64], draw: Draw) -> Ciphertext:
        """Encrypt (payload primes, N) numbers."""
        ring, payload = self._parameters.ring, len(self._parameters.payload)
        assert numbers.shape == (payload, ring.degree), numbers.shape
        found = ring.times_small(self._key, ring.spectrum(ternary(draw, ring.degree)))
        found += np.stack([errors(draw, ring.degree) for _ in range(2)])[:, None]
        found[0, :payload] += ring.reduced(numbers * self._scales, ring.moduli[:payload])
        return ring.reduced(found)


class Sharer:
    """A member's part in opening sums among ``who``, itself one of them.

    Args:
        parameters: of the sum.
        member: its number.
        held: S_j, the sum of the shares of secrets that it was dealt.
        who: as many members as the threshold says.
    """

    def __init__(
        self, parameters: SumParameters, member: int, held: Poly, who: Collection[int]
    ) -> None:
        self._ring = parameters.ring
        factors = lagrange(parameters, member, who)
        self._held = self._ring.halves(self._ring.scaled(held, factors))

    def share(self, c1: Poly, masks: Collection[tuple[int, Draw]], draw: Draw) -> Poly:
        """Return this member's share of a ciphertext.

        Args:
            c1: of the ciphertext.
            masks: with each other of ``who``: 1 to add it or -1 to take it off, and what it is
                expanded from.
            draw: of the noise.
        """
        ring = self._ring
        total = ring.times(ring.halves(c1), self._held) + smudging(draw, ring)
        for sign, agreed in masks:
            total += sign * uniform(agreed, ring)
        return ring.reduced(total)


def opened(parameters: SumParameters, total: Poly) -> tuple[Numbers, float]:
    """Return the (payload primes, N) numbers of c0 plus all shares, and the bits of margin left.

    The noise is what is left modulo Delta, the product of the margin primes, as long as it is
    smaller than Delta / 2: then the rest is a multiple of Delta, whose factor modulo each payload
    prime is a number.

    Raises:
        DoesNotOpen: there is less margin than honest members leave.
    """
    ring, payload, scale = parameters.ring, parameters.payload, parameters.scale
    number = len(payload)
    cofactors = [scale // prime for prime in parameters.margin]
    inverses = [
        pow(cofactor, -1, prime)
        for cofactor, prime in zip(cofactors, parameters.margin, strict=True)
    ]
    digits = ring.scaled(total, [1] * number + inverses)[number:]
    share = (digits / ring.moduli[number:]).sum(axis=0)  # of the noise in Delta, and some wholes
    wraps = np.rint(share)
    worst = max(float(np.abs(share - wraps).max()), 2.0**-52)
    margin = -1 - float(np.log2(worst))
    if margin < MARGIN_BITS_MIN:
        raise DoesNotOpen(f"the noise leaves {margin:.1f} bits of margin")
    moduli = ring.moduli[:number]

    def constants(value: int) -> Poly:
        return ring.reduced(np.array([[value % p] for p in payload], np.float64), moduli)

    noise = -wraps * constants(scale)
    for digit, cofactor in zip(digits, cofactors, strict=True):
        noise += digit * constants(cofactor)
    clean = ring.reduced(total[:number] - ring.reduced(noise, moduli), moduli)
    back = np.array([[pow(scale, -1, p)] for p in payload], np.float64)
    return ring.reduced(clean * back, moduli).astype(np.int64), margin
