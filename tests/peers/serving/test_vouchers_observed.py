"""What a stage's logs tell of who vouches: no more than that it is one of the ring.

Not covered, and told in docs/security.md: addresses and times of requests, a requester that asks in
several epochs, and peers of a ring that work together with the stage.
"""

from collections.abc import Sequence
from typing import Any

import pytest
from nacl.bindings import crypto_scalarmult_ed25519_base_noclamp

from p2pinfer.core.voucher import RingVoucher, vouch
from tests.support.observer import GUESSES, STAGE, Logged, by_chance, hits, logs

SESSIONS = 1000
ADVANTAGE_MAX = 0.02


@pytest.fixture(scope="module")
def logged() -> list[Logged]:
    """Provide the logs of a thousand sessions."""
    return logs(SESSIONS, 23)


def test_rings_are_large_and_views_differ(logged: Sequence[Logged]) -> None:
    """So that the guesses below have something to go by."""
    sizes = [len(log.voucher.ring) for log in logged]
    assert min(sizes) >= 8
    assert 1 / 17 < by_chance(logged) < 1 / 8
    assert len({log.voucher.keys for log in logged}) > 50
    assert any(not log.up.issuperset(log.voucher.ring) for log in logged)
    assert all(log.voucher.holds(log.requester, STAGE, "main") for log in logged[:5])


@pytest.mark.parametrize("name", GUESSES)
def test_a_stage_guesses_no_better_than_by_chance(name: str, logged: Sequence[Logged]) -> None:
    """By what it was shown, who was there and since when, and all that went before."""
    assert hits(logged, GUESSES[name], 1) <= by_chance(logged) + ADVANTAGE_MAX


def test_a_signer_with_a_place_of_its_own_would_be_seen() -> None:
    """So that the measure shows something: one that puts its own key first."""

    def careless(secret: bytes, ring: list[bytes], *rest: Any) -> RingVoucher:
        me = crypto_scalarmult_ed25519_base_noclamp(secret)
        return vouch(secret, sorted(ring, key=lambda key: key != me), *rest)

    assert hits(logs(50, 5, careless), GUESSES["the first"], 1) == 1.0
