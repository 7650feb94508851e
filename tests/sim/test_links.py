"""Virtual links: which peers reach which."""

from random import Random

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import PeerUnavailable
from sim.links import GOSSIP, GOSSIP_BYTES, GOSSIP_MESH_MAX, HEADER_BYTES, AccessLink, WorldNetwork
from sim.nats import NatKind
from tests.support.swarm import peer
from transports.base import Channel
from transports.memory.network import REACH_S_MAX

HIDDEN, OPEN, STRANGER = peer("hidden"), peer("open"), peer("stranger")

SAY = "say"


async def greet(channel: Channel) -> None:
    """Send one message to every caller."""
    await channel.send(b"hello")


async def test_undialable_peer_is_reached_over_its_own_connections(
    autojump_clock: MockClock,
) -> None:
    """As behind NAT: by no peer; once it has dialled one, by that peer, until a cut."""
    network = WorldNetwork([[0.01]], 8, Random(1))
    for name in (HIDDEN, OPEN, STRANGER):
        network.admit(name, AccessLink(nat=NatKind.PORT_FILTER if name == HIDDEN else NatKind.NONE))
    async with (
        network.join(HIDDEN) as hidden,
        network.join(OPEN) as open_,
        network.join(STRANGER) as stranger,
    ):
        for transport in (hidden, open_, stranger):
            transport.handle(SAY, greet)
        started_s = trio.current_time()
        with pytest.raises(PeerUnavailable):
            await open_.open(HIDDEN, SAY)
        assert trio.current_time() - started_s == REACH_S_MAX
        assert await (await hidden.open(OPEN, SAY)).receive() == b"hello"
        assert await (await open_.open(HIDDEN, SAY)).receive() == b"hello"
        with pytest.raises(PeerUnavailable):
            await stranger.open(HIDDEN, SAY)
        assert network.round_trip_s(OPEN, HIDDEN) == network.round_trip_s(HIDDEN, OPEN) == 0.02
        assert network.round_trip_s(STRANGER, HIDDEN) is None
        network.cut(lambda one, other: {one, other} == {HIDDEN, OPEN})
        network.heal()
        with pytest.raises(PeerUnavailable):
            await open_.open(HIDDEN, SAY)


@pytest.mark.parametrize(("others", "copies"), [(6, 5), (30, 3.5)])
def test_gossip_costs_what_it_costs_among_hosts(others: int, copies: float) -> None:
    """In a small mesh each sends on to all but one; in a larger one, as many as were counted."""
    network = WorldNetwork([[0.01]], 8, Random(1))
    names = [peer(f"peer{number}") for number in range(1 + others)]
    for name in names:
        network.admit(name, AccessLink())
    network.spread(names[0], names[1:], bytes(900))
    once = HEADER_BYTES + GOSSIP_BYTES + 900
    assert network.sent(names[1])[GOSSIP] == round(copies * once)
    assert network.sent(names[0])[GOSSIP] == min(others, GOSSIP_MESH_MAX) * once


def test_undialable_peer_still_gossips() -> None:
    """Two such peers are never neighbours; a message is not sent back to its author."""
    network = WorldNetwork([[0.01]], 8, Random(1))
    for name in (HIDDEN, STRANGER):
        network.admit(name, AccessLink(nat=NatKind.PORT_FILTER))
    names = [peer(f"peer{number}") for number in range(3)]
    for name in names:
        network.admit(name, AccessLink())
    once = HEADER_BYTES + GOSSIP_BYTES + 900
    network.spread(names[0], [HIDDEN, STRANGER, *names[1:]], bytes(900))
    assert network.sent(HIDDEN)[GOSSIP] == 2 * once  # the two others that are open
    assert network.sent(names[1])[GOSSIP] == 3 * once
    network.spread(STRANGER, [HIDDEN, *names], bytes(900))
    assert network.sent(STRANGER)[GOSSIP] == (2 + 3) * once
    assert network.sent(HIDDEN)[GOSSIP] == (2 + 2) * once  # not to the one of three that sent it


def test_gossip_does_not_cross_a_cut() -> None:
    """No peer on the other side hears it, or passes it on."""
    network = WorldNetwork([[0.01]], 8, Random(1))
    near = peer("near")
    for name in (HIDDEN, OPEN, near, STRANGER):
        network.admit(name, AccessLink())
    network.cut(lambda one, other: STRANGER in (one, other))
    reached = network.spread(HIDDEN, [OPEN, near, STRANGER], bytes(900)).values()
    assert [peer for peers in reached for peer in peers] == [OPEN, near]
    assert network.sent(OPEN)[GOSSIP] > 0 == network.sent(STRANGER)[GOSSIP]
