"""Peers that dial others but cannot be dialled."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import PeerUnavailable
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from peers.discovery.advertiser import HIDDEN_S, PATIENCE_ROUNDS, PATIENCE_S_MIN
from peers.discovery.model_index import CALLS_MISSED_MAX
from peers.discovery.view import PERIOD_RATIO_MAX, SHORTEST_S
from tests.support.directories import MODEL, Peer, directories, running
from transports.base import Reachability
from transports.memory.network import MemoryNetwork


@contextmanager
def closed(network: MemoryNetwork, peer: PeerId) -> Iterator[None]:
    """Make a peer undialable meanwhile; it can still dial others."""
    reach_s = network.reach_s

    def reach_others_s(sender: PeerId, receiver: PeerId, *, own: bool) -> float:
        return math.inf if receiver == peer else reach_s(sender, receiver, own=own)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "reach_s", reach_others_s)
        yield


async def test_a_peer_that_dials_but_cannot_be_dialled_is_not_relied_on(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often it calls: requesters would not reach it."""
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


PATIENCE_S = max(PATIENCE_S_MIN, PATIENCE_ROUNDS * SHORTEST_S)


def said_of(peer: Peer, by: Peer) -> tuple[tuple[str, ...], int]:
    """Return the addresses and the period that one peer knows of another."""
    entry = by.directory.view.get(peer.id)
    assert entry
    return entry.parsed.advertisement.addresses, entry.parsed.advertisement.period_ms


async def test_a_peer_that_is_not_dialled_in_time_hides(autojump_clock: MockClock) -> None:
    """It advertises no address, renews rarely and is not relied on; dialled peers do not change."""
    async with directories(3) as (network, (a, b, c)):
        told: list[bool] = []
        b.directory.advertiser.on_hidden = told.append
        with closed(network, b.id):
            async with running([a, b, c]):
                for peer in (a, b, c):
                    peer.advertise()
                await trio.sleep(PATIENCE_S / 2)
                assert not b.directory.advertiser.is_hidden
                await trio.sleep(PATIENCE_S / 2 + 2 * SHORTEST_S)
                assert told == [True]
                assert said_of(b, by=a) == ((), 1000 * PERIOD_RATIO_MAX * SHORTEST_S)
                assert a.sees() == {c.id}
                assert b.sees() == {a.id, c.id}
                assert c.sees() == {a.id}
                assert b.directory.view.missing(MODEL, LayerRange(1, 10)) == []
                await trio.sleep(HIDDEN_S / 2)
                assert (a.sees(), c.sees()) == ({c.id}, {a.id})
                assert b.id in {found.peer for found in a.directory.peers()}


async def test_a_peer_that_knows_to_be_hidden_hides_at_once(autojump_clock: MockClock) -> None:
    """Even if a neighbour has dialled it: others were asked, and could not."""
    async with directories(2) as (_, (a, b)), running([a, b]):
        a.advertise()
        b.advertise()
        await trio.sleep(5)
        assert a.sees() == {b.id}
        assert b.transport.was_dialled
        b.transport.learn(Reachability.HIDDEN)
        await trio.sleep(5)
        assert b.directory.is_hidden
        assert a.sees() == set()
        await a.directory.exchange(b.id)
        await trio.sleep(5)
        assert a.sees() == set()
        b.transport.learn(Reachability.PUBLIC)
        await trio.sleep(5)
        assert not b.directory.is_hidden
        assert a.sees() == {b.id}


async def test_a_peer_that_knows_to_be_public_never_hides(autojump_clock: MockClock) -> None:
    """Even if nobody has dialled it so far."""
    async with directories(2) as (network, (a, b)), running([a, b]):
        with closed(network, b.id):
            a.advertise()
            b.advertise()
            b.transport.learn(Reachability.PUBLIC)
            await trio.sleep(2 * PATIENCE_S)
            assert not b.directory.is_hidden


async def test_a_hidden_peer_tries_again(autojump_clock: MockClock) -> None:
    """Its owner may have opened a port since."""
    async with directories(2) as (network, (a, b)), running([a, b]):
        a.advertise()
        b.advertise()
        with closed(network, b.id):
            await trio.sleep(PATIENCE_S + 2 * SHORTEST_S)
            assert b.directory.advertiser.is_hidden
        await trio.sleep(HIDDEN_S + 5 * SHORTEST_S)
        assert not b.directory.advertiser.is_hidden
        assert a.sees() == {b.id}
        await trio.sleep(2 * HIDDEN_S)
        assert a.sees() == {b.id}


async def test_a_hidden_peer_that_is_dialled_advertises_at_once(
    autojump_clock: MockClock,
) -> None:
    """Another peer may know its address from elsewhere."""
    async with directories(2) as (network, (a, b)), running([a, b]):
        a.advertise()
        b.advertise()
        with closed(network, b.id):
            await trio.sleep(PATIENCE_S + 2 * SHORTEST_S)
            assert a.sees() == set()
        await a.directory.exchange(b.id)
        await trio.sleep(1)
        assert a.sees() == {b.id}


async def test_a_restarted_peer_is_dialled_although_it_is_connected(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a peer that was restarted, and has called all others, would hide."""
    async with directories(2) as (network, (a, b)):
        monkeypatch.setattr(network, "dials", lambda _from, _to, *, own: own)  # all are connected
        b.advertise()
        await b.directory.exchange(a.id)
        for _ in range(2):
            await a.directory.exchange(b.id)
            assert b.transport.was_dialled
            b.transport.was_dialled = False
