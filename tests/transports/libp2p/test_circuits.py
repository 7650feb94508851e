"""Circuits: the contract of a transport holds on them, and what relays and strangers may try."""

import gc
import os
import statistics
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress

import psutil
import pytest
import trio
from libp2p.peer.id import ID
from trio.testing import wait_all_tasks_blocked

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable
from tests.support.transport_contract import TransportContract, echo
from transports.base import Channel, GossipVerdict, Reach, Relaying, Transport
from transports.blocklist import GuardedTransport
from transports.identity import ephemeral_identity
from transports.libp2p import circuit_messages as messages
from transports.libp2p import protobuf
from transports.libp2p import relay as relay_module
from transports.libp2p.circuit import circuit_address
from transports.libp2p.circuit_messages import HOP, CircuitStatus, RelayAnswer
from transports.libp2p.host import connections
from transports.libp2p.negotiation import open_stream
from transports.libp2p.relay_limits import RelayLimits, RelayTable, site_of
from transports.libp2p.transport import Libp2pTransport, open_libp2p
from transports.libp2p.yamux import INITIAL_WINDOW_BYTES

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
            assert GuardedTransport(caller).relay_to(hidden.peer_id) == relay.peer_id
            assert GuardedTransport(caller).relay_to(relay.peer_id) is None
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
                peer.relays.is_needed = lambda: True
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


@asynccontextmanager
async def three(**more: float) -> AsyncGenerator[tuple[Libp2pTransport, ...], None]:
    """Run a relay, a hidden peer that echoes, and a caller."""
    reach = Reach("test", relaying=Relaying.ALWAYS, **more)  # type: ignore[arg-type]
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, reach) as relay,
            open_libp2p(None, [], "test") as hidden,
            open_libp2p(None, [], "test") as caller,
        ):
            hidden.handle("echo", echo)
            yield relay, hidden, caller


async def ask(peer: Libp2pTransport, relay: Libp2pTransport, request: bytes) -> RelayAnswer:
    """Send a relay a request as it is."""
    outer = await peer.reach_directly(relay.peer_id, relay.own_addresses)
    stream, answer = await peer.circuits._ask(outer, request)
    stream.abort()
    return answer


async def test_a_reservation_is_for_who_asks() -> None:
    """A RESERVE that names another peer gives that one nothing."""
    async with three() as (relay, hidden, caller):
        hidden_id = ID.from_string(hidden.peer_id)
        named = protobuf.data(2, protobuf.data(1, hidden_id.to_bytes()))
        request = protobuf.delimited(protobuf.number(1, 0) + named)
        assert (await ask(caller, relay, request)).status == CircuitStatus.OK
        answer = await ask(caller, relay, messages.connect_request(hidden_id))
        assert answer.status == CircuitStatus.NO_RESERVATION


async def test_a_reservation_ends_with_its_connection() -> None:
    """A relay that dialled a peer whose connection is gone would lead anywhere."""
    async with three() as (relay, hidden, caller):
        address = await hide(hidden, relay)
        for connection in hidden._connections(relay.peer_id):
            connection.leave()
        while relay.relay.statistics().reservations:  # noqa: ASYNC110 -- a socket's end is no event
            await trio.sleep(0.01)
        with pytest.raises(PeerUnavailable, match="no reservation"):
            await caller.open(hidden.peer_id, "echo", [address])


async def test_who_calls_in_another_name_is_not_served() -> None:
    """The handshake shows who it is. Relay or caller lied: the next proof tells."""
    async with three() as (relay, hidden, caller):
        address = await hide(hidden, relay)
        doubted: list[str] = []
        hidden.circuits.watch.on_doubt = doubted.append
        stranger = ID.from_string(ephemeral_identity().peer_id)
        with pytest.MonkeyPatch.context() as patch:
            true = messages.stop_request
            patch.setattr(messages, "stop_request", lambda _: true(stranger))
            with pytest.raises(PeerUnavailable):
                await caller.open(hidden.peer_id, "echo", [address])
        assert set(doubted) == {relay.peer_id}
        assert not hidden.circuits.watch.is_blamed(relay.peer_id)


async def test_only_own_relays_bring_callers() -> None:
    """Any peer could open circuits to any other else."""
    async with three() as (relay, hidden, caller):
        address = await hide(hidden, relay)
        hidden.circuits.serves = lambda _: False
        with pytest.raises(PeerUnavailable, match="connection failed"):
            await caller.open(hidden.peer_id, "echo", [address])


async def test_one_caller_has_its_share_of_circuits() -> None:
    """More than the limit are refused, and those that ended make room."""
    limits = RelayLimits(circuits_per_peer_max=3, openings_per_minute=0)
    table: RelayTable[str, str] = RelayTable(limits)
    assert [table.connect("a", f"{i}", 0.0) for i in range(4)] == [True, True, True, False]
    assert table.connect("b", "0", 0.0)
    table.ended("a", "0")
    assert not table.connect("a", "0", 1.0)  # its openings are used up, too


async def test_one_house_has_its_share_of_reservations() -> None:
    """A thousand keys at one address are one stranger."""
    table: RelayTable[int, str] = RelayTable(RelayLimits(reservations_per_site_max=2))
    sites = [site_of(f"2001:db8:0:1{i}::1") for i in range(3)]
    assert [table.reserve(i, "c", site, 0.0) for i, site in enumerate(sites)] == [True, True, False]
    assert table.reserve(1, "c", sites[1], 0.0)
    assert table.reserve(9, "c", sites[2], 3601.0)


async def test_half_open_requests_are_bounded() -> None:
    """Streams that say nothing are reset at once beyond a few, and the relay goes on."""
    async with three() as (relay, hidden, caller):
        address = await hide(hidden, relay)
        outer = await caller.reach_directly(relay.peer_id, relay.own_addresses)
        streams = []
        for _ in range(40):
            with suppress(ChannelClosed):
                streams.append(await open_stream(outer, relay.peer_id, HOP, watched=False))
        await wait_all_tasks_blocked(0.05)
        assert sum(1 for each in streams if not each.dead) <= relay_module.ASKING_PER_PEER_MAX
        for each in streams:
            each.abort()
        await wait_all_tasks_blocked(0.05)
        await caller.open(hidden.peer_id, "echo", [address])


async def test_a_flood_waits_at_the_relay() -> None:
    """Over the rate a relay reads no further; what it holds stays bounded, small messages pass."""
    stuck = trio.Event()

    async def never_read(_: Channel) -> None:
        await stuck.wait()

    async with three(relay_mbit=8.0) as (relay, hidden, caller):
        hidden.handle("stuck", never_read)
        address = await hide(hidden, relay)
        channel = await caller.open(hidden.peer_id, "stuck", [address])
        with trio.move_on_after(0.5):
            while True:
                await channel.send(bytes(500_000))
        held = sum(
            len(stream.buffer)
            for connection in connections(relay._host)
            for stream in connection._streams.values()
        )
        assert held <= 2 * INITIAL_WINDOW_BYTES
        talk = await caller.open(hidden.peer_id, "echo", [address])
        await talk.send(b"still here")
        assert await talk.receive() == b"still here"
        stuck.set()


async def test_a_lost_relay_is_replaced() -> None:
    """The addresses follow at once, and a caller gets through by the other one."""
    reach = Reach("test", relaying=Relaying.ALWAYS)
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, reach) as stays, open_libp2p(None, [], "test") as hidden:
            hidden.handle("echo", echo)
            async with open_libp2p(None, HERE, reach) as goes:
                for relay in (goes, stays):
                    await hidden.connect(relay.addresses[0])
                hidden.relays.is_needed = lambda: True
                hidden.relays.look()
                while len(hidden.addresses) < 2:
                    await hidden.wait_moved()
                async with open_libp2p(None, [], "test") as caller:
                    before = list(hidden.addresses)
                    await caller.open(hidden.peer_id, "echo", before)
            while len(hidden.addresses) > 1:
                await hidden.wait_moved()
            async with open_libp2p(None, [], "test") as caller:
                channel = await caller.open(hidden.peer_id, "echo", before)
                await channel.send(b"again")
                assert await channel.receive() == b"again"


async def test_a_circuit_in_use_is_replaced_unasked() -> None:
    """Who opens a channel after its relay went finds another circuit, made or being made."""
    reach = Reach("test", relaying=Relaying.ALWAYS)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, reach) as stays,
            open_libp2p(None, [], "test") as hidden,
            open_libp2p(None, [], "test") as caller,
        ):
            hidden.handle("echo", echo)
            async with open_libp2p(None, HERE, reach) as goes:
                at = [await hide(hidden, goes), await hide(hidden, stays)]
                hidden.circuits.serves = lambda _: True
                await caller.open(hidden.peer_id, "echo", at[:1])
                caller._remember(hidden.peer_id, at)
            while not caller._connections(hidden.peer_id):  # noqa: ASYNC110 -- it is no event
                await trio.sleep(0.01)
            (inner,) = caller._connections(hidden.peer_id)
            assert inner.relay == stays.peer_id


async def test_relayed_peers_are_no_neighbours_of_gossip() -> None:
    """What one publishes goes directly, or over others, and never through a relay."""

    def drop(_: str, __: bytes) -> GossipVerdict:
        return GossipVerdict.DROP

    async with three() as (relay, hidden, caller):
        address = await hide(hidden, relay)
        async with hidden.join_topic("t", drop) as one, caller.join_topic("t", drop) as other:
            await caller.open(hidden.peer_id, "echo", [address])
            for _ in range(6):  # a watch over circuits looks every 0.1 s
                await wait_all_tasks_blocked(0.05)
            assert (one.neighbours, other.neighbours) == (0, 0)


RENEWED_S = 1200.0
"""A reservation by hand is renewed by hand, in time."""

LATE_SHARE_MAX = 0.01
"""Of the circuits, that other programs may starve for longer than any peer is waited for."""


@pytest.mark.long
async def test_a_relay_does_not_grow() -> None:
    """Circuits that come and go for minutes, or hours, leave nothing behind."""
    seconds = float(os.environ.get("P2PINFER_SOAK_S", "120"))
    pause = float(os.environ.get("P2PINFER_SOAK_PAUSE_S", "0"))  # leaves the core to others
    own = psutil.Process()
    sizes: list[int] = []
    late = 0
    reach = Reach("test", relaying=Relaying.ALWAYS, relay_mbit=10_000)
    async with open_libp2p(None, HERE, reach) as relay, open_libp2p(None, [], "test") as hidden:
        hidden.handle("echo", echo)
        address = await hide(hidden, relay)
        until = trio.current_time() + seconds
        renewed_at = trio.current_time()
        while trio.current_time() < until:
            if trio.current_time() > renewed_at + RENEWED_S:
                await hide(hidden, relay)
                renewed_at = trio.current_time()
            for _ in range(20):
                async with open_libp2p(None, [], "test") as caller:
                    try:
                        channel = await caller.open(hidden.peer_id, "echo", [address])
                        await channel.send(bytes(100_000))
                        assert len(await channel.receive()) == 100_000
                    except PeerUnavailable:
                        late += 1
                        await hide(hidden, relay)
            gc.collect()
            sizes.append(own.memory_info().rss)
            await trio.sleep(pause)
        while relay.relay.statistics().circuits:  # noqa: ASYNC110 -- a socket's end is no event
            await trio.sleep(0.1)
        assert len(hidden._host.get_network().get_connections()) == 1
    third = len(sizes) // 3
    before, after = statistics.median(sizes[third : 2 * third]), statistics.median(sizes[-third:])
    sys.stderr.write(
        f"{len(sizes)} rounds of 20 circuits, {late} of which broke; "
        f"from {before / 1e6:.1f} to {after / 1e6:.1f} MB\n"
    )
    assert after - before < 20_000_000, sizes
    assert late <= LATE_SHARE_MAX * 20 * len(sizes)
