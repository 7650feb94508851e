"""What t members open is the exact sum; what t - 1 of them know says nothing."""

import os
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.sums.chance import Draw, errors, expansion, smudging, ternary, uniform
from p2pinfer.core.sums.parameters import (
    ERROR_HALVES,
    MARGIN_BITS_MIN,
    MEMBERS_MAX,
    NUMBER_MAX,
    STANDARD,
    SumParameters,
)
from p2pinfer.core.sums.ring import Poly
from p2pinfer.core.sums.threshold import (
    Ciphertext,
    DoesNotOpen,
    PublicKey,
    Sharer,
    common,
    deal,
    draw_keys,
    lagrange,
    opened,
)
from tests.support.small_sums import SMALL, drawing

KEY = b"k" * 32


class Keys:
    """Keys of some members, as no one member sees them together."""

    def __init__(self, members: int, threshold: int, draw: Draw, parameters: SumParameters) -> None:
        self.parameters, self.threshold, self.draw = parameters, threshold, draw
        ring = parameters.ring
        a = common(parameters, KEY)
        pairs = [draw_keys(parameters, a, draw) for _ in range(members)]
        self.secret = np.sum([secret for secret, _ in pairs], axis=0)
        dealt = [list(deal(parameters, s, members, threshold, draw)) for s, _ in pairs]
        self.held = [ring.reduced(np.sum(of_all, axis=0)) for of_all in zip(*dealt, strict=True)]
        self.public = PublicKey(parameters, a, ring.reduced(np.sum([b for _, b in pairs], axis=0)))

    def noise(self, total: Ciphertext, plain: Poly) -> Poly:
        """Return the noise of a ciphertext whose scaled numbers are known, modulo each prime."""
        ring = self.parameters.ring
        under = ring.times(
            ring.halves(total[1]), ring.halves(ring.reduced(np.stack([self.secret] * len(ring))))
        )
        return ring.reduced(total[0] + under - plain)

    def scaled(self, numbers: np.ndarray) -> Poly:
        """Return numbers times Delta, as they are in a ciphertext."""
        ring, payload = self.parameters.ring, len(self.parameters.payload)
        plain = np.zeros((len(ring), ring.degree))
        plain[:payload] = numbers
        return ring.scaled(plain, [self.parameters.scale] * len(ring))

    def shares(self, total: Ciphertext, who: tuple[int, ...], *, masked: bool = True) -> list[Poly]:
        """Return what some members share."""
        found = []
        for member in who:
            masks = [
                (1 if member < other else -1, expansion(bytes(sorted((member, other)))))
                for other in who
                if other != member and masked
            ]
            sharer = Sharer(self.parameters, member, self.held[member], who)
            found.append(sharer.share(total[1], masks, self.draw))
        return found


def numbers(draw: Draw, parameters: SumParameters) -> np.ndarray:
    """Draw a ciphertext's worth of numbers over the whole range, its ends among them."""
    shape = len(parameters.payload), parameters.degree
    found = np.frombuffer(draw(2 * shape[0] * shape[1]), "<i2").astype(np.int64).reshape(shape)
    found[0, :2] = NUMBER_MAX, -NUMBER_MAX
    return np.clip(found, -NUMBER_MAX, NUMBER_MAX)


def check_sum(
    members: int, threshold: int, who: tuple[int, ...], adds: int, seed: int, of: SumParameters
) -> float:
    """Add up, open and compare; return the bits of margin that were left."""
    draw = drawing(seed)
    keys = Keys(members, threshold, draw, of)
    plain = [numbers(draw, of) for _ in range(adds)]
    total = of.ring.reduced(np.sum([keys.public.encrypt(each, draw) for each in plain], axis=0))
    shares = keys.shares(total, who)
    found, margin = opened(of, of.ring.reduced(total[0] + np.sum(shares, axis=0)))
    np.testing.assert_array_equal(found, np.sum(plain, axis=0))
    with pytest.raises(DoesNotOpen):  # without the last one's share
        opened(of, of.ring.reduced(total[0] + np.sum(shares[:-1], axis=0)))
    return margin


@st.composite
def groups(draw: st.DrawFn) -> tuple[int, int, tuple[int, ...], int, int]:
    """Draw members, a threshold, who opens the sum, how many add, and a seed."""
    members = draw(st.integers(2, 12))
    threshold = draw(st.integers(2, members))
    who = tuple(draw(st.permutations(range(members)))[:threshold])
    return members, threshold, who, draw(st.integers(1, MEMBERS_MAX)), draw(st.integers(0, 1 << 32))


@settings(max_examples=60)
@given(groups())
def test_sums_are_exact(case: tuple[int, int, tuple[int, ...], int, int]) -> None:
    """Any threshold, any that open, any that add: the sum is that of the numbers."""
    assert check_sum(*case, SMALL) >= MARGIN_BITS_MIN


@pytest.mark.long
@settings(max_examples=1000)
@given(groups())
def test_a_thousand_sums_are_exact(case: tuple[int, int, tuple[int, ...], int, int]) -> None:
    """The same, a thousand times."""
    assert check_sum(*case, SMALL) >= MARGIN_BITS_MIN


@pytest.mark.long
@settings(max_examples=30)
@given(groups())
def test_sums_in_the_ring_for_use_are_exact(
    case: tuple[int, int, tuple[int, ...], int, int],
) -> None:
    """The same with the parameters that are used."""
    assert check_sum(*case, STANDARD) >= MARGIN_BITS_MIN


def test_sixty_four_members_have_noise_to_spare() -> None:
    """With the parameters for use, all members and the largest numbers, and as computed."""
    margin = check_sum(3, 3, (2, 0, 1), MEMBERS_MAX, 7, STANDARD)
    assert STANDARD.margin_bits(3) < margin < STANDARD.margin_bits(3) + 3
    assert STANDARD.margin_bits(MEMBERS_MAX) > MARGIN_BITS_MIN + 3
    assert STANDARD.hidden_bits(MEMBERS_MAX) > 45


@pytest.mark.long
def test_sixty_four_sharers_leave_the_margin() -> None:
    """As many keys, as many additions and as many shares as there may be."""
    everybody = tuple(range(MEMBERS_MAX))
    margin = check_sum(MEMBERS_MAX, MEMBERS_MAX, everybody, MEMBERS_MAX, 8, STANDARD)
    assert margin >= STANDARD.margin_bits(MEMBERS_MAX) > MARGIN_BITS_MIN


def test_noise_is_as_large_as_computed() -> None:
    """The noise of a sum is below what its shares hide, and not far below."""
    draw = drawing(3)
    keys = Keys(MEMBERS_MAX, 2, draw, SMALL)
    none = np.zeros((len(SMALL.payload), SMALL.degree), np.int64)
    worst = 0.0
    for _ in range(20):
        parts = [keys.public.encrypt(none, draw) for _ in range(MEMBERS_MAX)]
        total = SMALL.ring.reduced(np.sum(parts, axis=0))
        worst = max(worst, np.abs(keys.noise(total, keys.scaled(none))[-1]).max())
    assert SMALL.sum_noise(MEMBERS_MAX) / 8 < worst < SMALL.sum_noise(MEMBERS_MAX)


def test_fewer_than_the_threshold_hold_shares_of_every_secret() -> None:
    """For any other secret there is a polynomial through what t - 1 members hold."""
    ring, threshold, draw = SMALL.ring, 4, drawing(5)
    secret = ternary(draw, ring.degree)
    held = list(deal(SMALL, secret, 7, threshold, draw))
    for few in combinations(range(7), threshold - 1):
        another = uniform(draw, ring)
        one_more = next(member for member in range(7) if member not in few)
        who = (*few, one_more)
        known = np.sum([ring.scaled(held[m], lagrange(SMALL, m, who)) for m in few], axis=0)
        back = [
            pow(factor, -1, p)
            for factor, p in zip(lagrange(SMALL, one_more, who), ring.primes, strict=True)
        ]
        theirs = ring.scaled(ring.reduced(another - known), back)  # what the one more would hold
        again = known + ring.scaled(theirs, lagrange(SMALL, one_more, who))
        np.testing.assert_array_equal(ring.reduced(again - another), 0)
    shares = [ring.scaled(held[m], lagrange(SMALL, m, (0, 1, 2))) for m in (0, 1, 2)]
    assert (ring.reduced(np.sum(shares, axis=0) - secret) != 0).mean() > 0.99  # too few


OUTSIDE, WHO = 63, (0, 62)


def noise_seen(keys: Keys, total: Ciphertext, plain: Poly, share: Poly) -> list[int]:
    """Look for a sum's noise with the share of member 0 and what 63 holds; 0 and 62 open it.

    What 0 holds is x s + y S63 with known x and y, where S63 is what 63 holds. So the share, less
    what is known, is k (c1 s) + noise; and c1 s is what the opened sum gives, but for the noise.
    Return each value of the first coefficient's noise that leaves the share's noise as small as it
    must be.
    """
    ring, modulus, both = SMALL.ring, SMALL.modulus, (0, OUTSIDE)
    by, own, other = (
        lagrange(SMALL, 0, WHO),
        lagrange(SMALL, 0, both),
        lagrange(SMALL, OUTSIDE, both),
    )
    k = [x * pow(y, -1, p) % p for x, y, p in zip(by, own, ring.primes, strict=True)]
    back = [x * -y for x, y in zip(k, other, strict=True)]
    known = ring.times(ring.halves(total[1]), ring.halves(ring.scaled(keys.held[OUTSIDE], back)))
    rest = ring.reduced(share - known - ring.scaled(ring.reduced(plain - total[0]), k))

    def lifted(residues: list[int]) -> int:
        parts = zip(residues, ring.primes, strict=True)
        found = sum(r * (modulus // p) * pow(modulus // p, -1, p) for r, p in parts) % modulus
        return found - modulus if found > modulus // 2 else found

    first, factor = lifted([int(x) for x in rest[:, 0]]), lifted(k)
    bound = int(SMALL.sum_noise(OUTSIDE + 1) / 8)  # of one ciphertext instead of 64
    return [
        noise
        for noise in range(-bound, bound + 1)
        if abs((first - factor * noise + modulus // 2) % modulus - modulus // 2) <= 1 << 63
    ]


def test_masks_keep_colluders_outside_from_the_noise() -> None:
    """Without masks one colluder reads the noise of a sum, which leads to the key; with them not.

    Its share holds the noise times a fraction, of which the denominator is 3,968 here.
    """
    draw = drawing(11)
    keys = Keys(OUTSIDE + 1, len(WHO), draw, SMALL)
    plain = numbers(draw, SMALL)
    total, scaled = keys.public.encrypt(plain, draw), keys.scaled(plain)
    truth = int(keys.noise(total, scaled)[-1, 0])
    bare = keys.shares(total, WHO, masked=False)
    assert noise_seen(keys, total, scaled, bare[0]) == [truth]
    masked = keys.shares(total, WHO)
    assert noise_seen(keys, total, scaled, masked[0]) == []


def test_what_is_drawn_is_spread_as_it_should() -> None:
    """Secrets, errors, noise and masks have the means and variances of their distributions."""
    size = 1 << 16
    secret = ternary(os.urandom, size)
    assert set(np.unique(secret)) == {-1, 0, 1}
    assert abs(secret.mean()) < 0.02
    assert abs(secret.var() - 2 / 3) < 0.02
    error = errors(os.urandom, size)
    assert abs(error.mean()) < 0.1
    assert abs(error.var() - ERROR_HALVES / 2) < 0.5
    assert np.abs(error).max() <= ERROR_HALVES
    ring = STANDARD.ring
    spread = uniform(os.urandom, ring) / ring.moduli
    assert np.abs(spread.mean(axis=1)).max() < 0.03
    assert np.abs(spread.var(axis=1) - 1 / 12).max() < 0.01
    noise = smudging(lambda count: b"\xff" * count, ring)
    np.testing.assert_array_equal(noise, -1)
    ends = smudging(lambda count: bytes(7) + b"\x80" + bytes(count - 8), ring)
    np.testing.assert_array_equal(ends[:, :1], ring.constant(-(1 << 63)))
    np.testing.assert_array_equal(ends[:, 1:], 0)
