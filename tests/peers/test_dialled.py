"""Peers that dial others, and that nobody can dial."""

import math

import pytest
from trio.testing import MockClock

from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import PeerId
from peers.shelf import CALLS_MISSED_MAX
from tests.peers.directories import directories


async def test_who_dials_and_cannot_be_dialled_is_not_counted_on(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may call as often as it likes: requesters would not reach it."""
    async with directories(2) as (network, (a, b)):
        reach_s = network.reach_s

        def reach_but_b_s(sender: PeerId, receiver: PeerId, *, own: bool) -> float:
            is_open = receiver != b.id or not own
            return reach_s(sender, receiver, own=own) if is_open else math.inf

        monkeypatch.setattr(network, "reach_s", reach_but_b_s)
        b.advertise()
        for _ in range(CALLS_MISSED_MAX):
            await b.directory.exchange(a.id)
            assert a.sees() == {b.id}
            with pytest.raises(PeerUnavailable):
                await a.directory.exchange(b.id)
        assert a.sees() == set()
        await b.directory.exchange(a.id)
        assert a.sees() == set()
        monkeypatch.undo()
        await a.directory.exchange(b.id)
        assert a.sees() == {b.id}
