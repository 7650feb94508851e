"""Peers whose addresses change while they run, as on another Wi-Fi network."""

import trio
from trio.testing import MockClock

from peers.discovery.advertiser import PATIENCE_S_MIN
from peers.discovery.directory import LOOK_AGAIN_S
from tests.peers.discovery.test_dialled import PATIENCE_S, closed
from tests.support.directories import MODEL, Peer, directories, running


def told(by: Peer, of: Peer) -> tuple[str, ...]:
    """Return the addresses that a peer knows of another."""
    (found,) = [each for each in by.directory.peers() if each.peer == of.id]
    return found.addresses


async def test_others_are_told_of_a_new_address_at_once(autojump_clock: MockClock) -> None:
    """However far off the next renewal is; the rest of the advertisement does not change."""
    async with directories(3) as (_, made), running(made):
        a, b, c = made
        for peer in made:
            peer.advertise()
        await trio.sleep(200)
        assert told(b, a) == told(c, a) == (f"/memory/0/p2p/{a.id}",)
        a.transport.move()
        await trio.sleep(LOOK_AGAIN_S)
        assert told(b, a) == told(c, a) == (f"/memory/1/p2p/{a.id}",)
        assert (b.sees(), c.sees()) == ({a.id, c.id}, {a.id, b.id})


async def test_a_peer_that_serves_nothing_moves_silently(autojump_clock: MockClock) -> None:
    """A requester has nothing to advertise."""
    async with directories(2) as (_, made), running(made):
        a, b = made
        b.directory.follow(MODEL)
        a.transport.move()
        await trio.sleep(10)
        assert b.directory.peers() == []


async def test_a_moved_peer_is_hidden_only_if_not_dialled_at_its_new_address(
    autojump_clock: MockClock,
) -> None:
    """It was dialled at its old address, which proves nothing about the new one."""
    async with directories(3) as (network, made), running(made):
        a, b, _ = made
        for peer in made:
            peer.advertise()
        await trio.sleep(10 * PATIENCE_S)
        assert a.transport.was_dialled
        with closed(network, a.id):
            a.transport.move()
            assert not a.transport.was_dialled
            await trio.sleep(PATIENCE_S_MIN / 2)
            assert not a.directory.is_hidden
            await trio.sleep(2 * PATIENCE_S)
            assert a.directory.is_hidden
            assert told(b, a) == ()
        a.transport.move()
        await trio.sleep(PATIENCE_S)
        assert not a.directory.is_hidden
        assert told(b, a) == (f"/memory/2/p2p/{a.id}",)
