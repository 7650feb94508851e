"""The contract of a transport, kept by all three."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from tests.support.gossip_contract import GossipContract
from tests.support.transport_contract import TransportContract
from transports.base import Transport
from transports.identity import Identity, ephemeral_identity
from transports.libp2p.transport import open_libp2p
from transports.memory.network import MemoryNetwork
from transports.tcp import open_tcp

ALICE, BOB = Identity(b"A" * 32), Identity(b"B" * 32)


class TestMemory(GossipContract):
    """Peers in one process."""

    @asynccontextmanager
    async def peers(self) -> AsyncGenerator[tuple[Transport, Transport], None]:
        """Join two peers to a network."""
        network = MemoryNetwork()
        async with network.join(ALICE.peer_id) as alice, network.join(BOB.peer_id) as bob:
            yield alice, bob


class TestTcp(TransportContract):
    """Bare TCP on this machine."""

    @asynccontextmanager
    async def peers(self) -> AsyncGenerator[tuple[Transport, Transport], None]:
        """Listen on two ports."""
        async with open_tcp(ALICE.peer_id) as alice, open_tcp(BOB.peer_id) as bob:
            yield alice, bob


class TestLibp2p(GossipContract):
    """Libp2p on this machine."""

    @asynccontextmanager
    async def peers(self) -> AsyncGenerator[tuple[Transport, Transport], None]:
        """Run two hosts."""
        here = ["/ip4/127.0.0.1/tcp/0"]
        async with (
            open_libp2p(ephemeral_identity(), here, "test") as alice,
            open_libp2p(ephemeral_identity(), here, "test") as bob,
        ):
            yield alice, bob
