"""Circuits: the contract of a transport holds on them, and what relays and strangers may try."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio

from p2pinfer.core.errors import PeerUnavailable
from tests.support.transport_contract import TransportContract, echo
from transports.base import Channel, Reach, Reachability, Relaying, Transport
from transports.identity import ephemeral_identity
from transports.libp2p.circuit import circuit_address
from transports.libp2p.transport import Libp2pTransport, open_libp2p

HERE = ["/ip4/127.0.0.1/tcp/0"]
TEST_S_MAX = 20.0


async def hide(hidden: Libp2pTransport, relay: Libp2pTransport) -> str:
    """Reserve by hand; return where the hidden peer is reached."""
    relay._relaying = Relaying.ALWAYS
    hidden.circuits.serves = lambda peer: peer == relay.peer_id
    outer = await hidden.reach_directly(relay.peer_id, relay.own_addresses)
    answer = await hidden.circuits.reserve(outer)
    assert answer.status == 100, answer
    return circuit_address(relay.own_addresses[0], hidden.peer_id)


async def test_a_hidden_peer_is_reached_through_a_relay() -> None:
    """A channel opens over the circuit, and the relay counts what it carries."""
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, "test") as relay,
            open_libp2p(None, [], "test") as hidden,
            open_libp2p(None, [], "test") as caller,
        ):
            hidden.handle("echo", echo)
            address = await hide(hidden, relay)
            channel = await caller.open(hidden.peer_id, "echo", [address])
            await channel.send(b"hello")
            assert await channel.receive() == b"hello"
            (inner,) = caller._connections(hidden.peer_id)
            assert inner.relay == relay.peer_id
            assert relay.relay.statistics().circuits == 1
            assert not hidden.was_dialled
            inner.leave()
            await trio.sleep(0.2)
            assert relay.relay.statistics().circuits == 0


class TestCircuit(TransportContract):
    """Two peers that know each other through a relay alone."""

    @asynccontextmanager
    async def peers(self) -> AsyncGenerator[tuple[Transport, Transport], None]:
        """Hide both behind a relay that limits nothing worth a test's patience."""
        reach = Reach("test", relaying=Relaying.ALWAYS, relay_mbit=10_000)
        async with (
            open_libp2p(None, HERE, reach) as relay,
            open_libp2p(ephemeral_identity(), [], "test") as alice,
            open_libp2p(ephemeral_identity(), [], "test") as bob,
        ):
            for peer in (alice, bob):
                await peer.connect(relay.addresses[0])
                peer.reachability = Reachability.HIDDEN
                peer.relays.look()
                while not peer.addresses:
                    await peer.wait_moved()
            yield alice, bob

    async def test_it_knows_whether_it_was_dialled(self) -> None:
        """Who is called through a relay cannot be dialled for that."""
        async with self.linked() as (alice, bob):
            served = trio.Event()

            async def serve(_: Channel) -> None:
                served.set()

            bob.handle("test", serve)
            await alice.open(bob.peer_id, "test")
            await served.wait()
            assert (alice.was_dialled, bob.was_dialled) == (False, False)
