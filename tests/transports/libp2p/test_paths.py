"""Paths: the contract of a transport holds on them, and what each peer on one gets to see."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from libp2p.peer.id import ID

from p2pinfer.core.errors import PeerUnavailable
from tests.support.gossip_contract import GossipContract
from tests.support.transport_contract import echo
from transports.base import Reach, Relaying, Transport
from transports.identity import ephemeral_identity
from transports.libp2p import circuit_messages as messages
from transports.libp2p.circuit import ask_relay
from transports.libp2p.circuit_messages import CircuitStatus
from transports.libp2p.host import connections
from transports.libp2p.path import Extension
from transports.libp2p.transport import Libp2pTransport, open_libp2p

HERE = ["/ip4/127.0.0.1/tcp/0"]
TEST_S_MAX = 20.0
RELAYING = Reach("test", relaying=Relaying.ALWAYS, relay_mbit=10_000)


def place(peer: Libp2pTransport) -> tuple[Any, tuple[str, ...]]:
    """Return who a peer is, and where."""
    return peer.peer_id, tuple(peer.own_addresses)


@asynccontextmanager
async def over(*relays: list[Libp2pTransport]) -> AsyncGenerator[Libp2pTransport, None]:
    """Run a requester whose path leads through one relay of each list, in their order."""
    async with AsyncExitStack() as stack:
        top = await stack.enter_async_context(open_libp2p(None, [], "test"))
        for each in relays:
            via = Extension(top, "test", [place(relay) for relay in each])
            top = await stack.enter_async_context(open_libp2p(None, [], "test", via=via))
        yield top


@asynccontextmanager
async def relays(
    count: int, *serving: Libp2pTransport
) -> AsyncGenerator[list[Libp2pTransport], None]:
    """Run relays that know each other, and the peers that serve."""
    async with AsyncExitStack() as stack:
        found = [
            await stack.enter_async_context(open_libp2p(None, HERE, RELAYING)) for _ in range(count)
        ]
        for relay in found:
            known = dict(map(place, [*found, *serving]))
            relay.punches.addresses_of = lambda peer, known=known: known.get(peer, ())
        yield found


class TestOneRelay(GossipContract):
    """A requester that hides behind one relay, and a peer that serves."""

    hops = 1

    @asynccontextmanager
    async def peers(self) -> AsyncGenerator[tuple[Transport, Transport], None]:
        """Run a path to the second peer."""
        async with (
            open_libp2p(ephemeral_identity(), HERE, "test") as bob,
            relays(self.hops, bob) as found,
            over(*([relay] for relay in found)) as alice,
        ):
            yield alice, bob


class TestTwoRelays(TestOneRelay):
    """A requester that hides behind two."""

    hops = 2
