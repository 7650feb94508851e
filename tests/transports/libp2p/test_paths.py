"""Paths: the contract of a transport holds on them, and what each peer on one gets to see."""

import os
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
import trio
from libp2p.network.exceptions import SwarmException
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStoreError
from libp2p.stream_muxer.exceptions import MuxedStreamReset
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types
from trio.testing import wait_all_tasks_blocked

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable
from p2pinfer.core.ids import PeerId
from p2pinfer.core.limits import WIDE_ROWS_MAX
from tests.support.gossip_contract import GossipContract
from tests.support.transport_contract import echo
from transports.base import Channel, Reach, Relaying, Transport
from transports.identity import ephemeral_identity
from transports.libp2p import circuit_messages as messages
from transports.libp2p import extension
from transports.libp2p.circuit import ask_relay
from transports.libp2p.circuit_messages import CircuitStatus
from transports.libp2p.extension import EXTEND, SocketEnd
from transports.libp2p.host import connections, protocol_id
from transports.libp2p.negotiation import open_stream
from transports.libp2p.noise_records import TAG_BYTES
from transports.libp2p.padded import PADDED
from transports.libp2p.padding import CellShape
from transports.libp2p.path import Extension
from transports.libp2p.transport import Libp2pTransport, open_libp2p

ROW_BYTES = 2304
HERE = ["/ip4/127.0.0.1/tcp/0"]
TEST_S_MAX = 20.0
RELAYING = Reach("test", relaying=Relaying.ALWAYS, relay_mbit=10_000)


def place(peer: Libp2pTransport) -> tuple[Any, tuple[str, ...]]:
    """Return who a peer is, and where."""
    return peer.peer_id, tuple(peer.own_addresses)


def path_of(peer: Libp2pTransport) -> tuple[PeerId, ...]:
    """Return the relays that a peer hides behind."""
    assert peer.via
    return peer.via.path


@asynccontextmanager
async def over(
    *relays: list[Libp2pTransport], shape: CellShape | None = None
) -> AsyncGenerator[Libp2pTransport, None]:
    """Run a requester whose path leads through one relay of each list, in their order."""
    async with AsyncExitStack() as stack:
        top = await stack.enter_async_context(open_libp2p(None, [], "test"))
        for each in relays:
            places, is_last = [place(relay) for relay in each], each is relays[-1]
            pace_ms = shape.pace_ms if shape else 0
            via = Extension(top, "test", places, shape if is_last else None, pace_ms=pace_ms)
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
        known = dict(map(place, [*found, *serving]))
        for relay in found:
            relay.punches.addresses_of = lambda peer: known.get(peer, ())
        yield found


class TestOneRelay(GossipContract):
    """A requester that hides behind one relay, and a peer that serves."""

    hops = 1
    shape: CellShape | None = None

    @asynccontextmanager
    async def peers(self) -> AsyncGenerator[tuple[Transport, Transport], None]:
        """Run a path to the second peer."""
        async with (
            open_libp2p(ephemeral_identity(), HERE, "test") as bob,
            relays(self.hops, bob) as found,
            over(*([relay] for relay in found), shape=self.shape) as alice,
        ):
            yield alice, bob


@pytest.mark.long  # what TestOneRelay runs, twice as deep
class TestTwoRelays(TestOneRelay):
    """A requester that hides behind two."""

    hops = 2


@pytest.mark.long  # what TestOneRelay runs; what is special about it has tests of its own
class TestPadded(TestOneRelay):
    """A requester that fills up what it says."""

    shape = CellShape.for_rows(64)  # with more, what the contract sends unread would fill windows


@asynccontextmanager
async def one_relay() -> AsyncGenerator[tuple[Libp2pTransport, Libp2pTransport]]:
    """Run a relay that knows a peer which echoes."""
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, "test") as bob, relays(1, bob) as (relay,):
            bob.handle("echo", echo)
            yield relay, bob


async def ask(peer: Libp2pTransport, relay: Libp2pTransport, request: bytes) -> CircuitStatus:
    """Send a relay a request as it is; return what it says."""
    outer = await peer.reach_directly(relay.peer_id, relay.own_addresses)
    stream, answer = await ask_relay(outer, protocol_id("test", EXTEND), request)
    stream.abort()
    return CircuitStatus(answer.status)


def all_ids(peer: Libp2pTransport) -> set[str]:
    """Return the ids that a peer is connected with."""
    return {str(each.peer_id) for each in connections(peer._host)}


async def test_each_peer_sees_its_neighbours_alone() -> None:
    """No peer has two ends of a path in its tables, nor an id that is used elsewhere on it."""
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, "test") as bob,
            relays(2, bob) as (first, second),
            open_libp2p(None, [], "test") as bottom,
        ):
            bob.handle("echo", echo)
            near = Extension(bottom, "test", [place(first)])
            async with open_libp2p(None, [], "test", via=near) as middle:
                far = Extension(middle, "test", [place(second)])
                async with open_libp2p(None, [], "test", via=far) as top:
                    channel = await top.open(bob.peer_id, "echo", bob.addresses)
                    await channel.send(b"hello")
                    assert await channel.receive() == b"hello"
                    assert far.path == (first.peer_id, second.peer_id)
                    assert all_ids(first) == {bottom.peer_id, second.peer_id}
                    assert all_ids(second) == {middle.peer_id, first.peer_id, bob.peer_id}
                    assert all_ids(bob) == {top.peer_id, second.peer_id}
                    assert all_ids(bottom) == {first.peer_id}
                    (from_top,) = connections(bob._host, ID.from_string(top.peer_id))
                    assert from_top.relay is None
                    for each in (top, middle):  # neither has a place that it could tell
                        assert not each.addresses
                        assert not each.own_addresses


async def test_what_a_host_on_a_path_tells_has_no_address() -> None:
    """Identify, which tells others where one listens, and where they are seen."""
    async with one_relay() as (relay, bob), open_libp2p(None, [], "test") as below:
        via = Extension(below, "test", [place(relay)])
        async with open_libp2p(None, [], "test", via=via) as alice:
            await alice.open(bob.peer_id, "echo", bob.addresses)
            host, alice_id = bob._host, ID.from_string(alice.peer_id)
            while alice_id not in host._identified_peers:  # type: ignore[attr-defined]  # noqa: ASYNC110 -- it tells nobody
                await trio.sleep(0.01)
            (outer,) = connections(below._host)
            assert outer.own_port
            told = [str(each) for each in alice._host.get_addrs()]
            heard: list[str] = []
            with suppress(PeerStoreError):  # it has told no place at all
                heard = [str(each) for each in host.get_network().peerstore.addrs(alice_id)]
            assert not [each for each in (*told, *heard) if f"/{outer.own_port}" in each]


async def test_nobody_is_dialled_where_no_relay_answers() -> None:
    """Not even one that is right here; and libp2p's own dials go the same way."""
    async with one_relay() as (relay, bob):
        async with open_libp2p(None, HERE, "test") as gone:
            nowhere = place(gone)
        async with open_libp2p(None, [], "test") as below:
            via = Extension(below, "test", [nowhere])
            async with open_libp2p(None, [], "test", via=via) as alice:
                with pytest.raises(PeerUnavailable, match="no relay of the path answers"):
                    await alice.open(bob.peer_id, "echo", bob.addresses)
                network = alice._host.get_network()
                network.peerstore.add_addrs(
                    ID.from_string(bob.peer_id), [Multiaddr(bob.addresses[0])], 60
                )
                with pytest.raises(SwarmException):
                    await network.dial_peer(ID.from_string(bob.peer_id))
                assert not connections(alice._host)
                assert all_ids(bob) <= {relay.peer_id}


async def test_another_relay_takes_the_place_of_one_that_has_gone() -> None:
    """What was open ends; what is opened next goes on elsewhere, under the same id."""
    first: list[Libp2pTransport] = []

    async with one_relay() as (stays, bob), trio.open_nursery() as nursery:

        async def relay(*, task_status: trio.TaskStatus[trio.CancelScope]) -> None:
            with trio.CancelScope() as scope:
                async with relays(1, bob) as (found,):
                    first.append(found)
                    task_status.started(scope)
                    await trio.sleep_forever()

        scope = await nursery.start(relay)
        async with over([*first, stays]) as alice:
            channel = await alice.open(bob.peer_id, "echo", bob.addresses)
            assert path_of(alice) == (first[0].peer_id,)
            scope.cancel()
            with pytest.raises(ChannelClosed):
                await channel.receive()
            again = await alice.open(bob.peer_id, "echo", bob.addresses)
            await again.send(b"hello")
            assert await again.receive() == b"hello"
            assert path_of(alice) == (stays.peer_id,)


async def test_a_relay_goes_only_where_its_directory_leads() -> None:
    """It is no open proxy: neither to a stranger, nor to an address that another has told."""
    async with one_relay() as (relay, bob), open_libp2p(None, [], "test") as caller:
        stranger = ephemeral_identity().peer_id
        request = messages.connect_request(ID.from_string(stranger))
        assert await ask(caller, relay, request) is CircuitStatus.NO_RESERVATION
        relay.punches.addresses_of = lambda _: bob.addresses  # as a liar advertises
        assert await ask(caller, relay, request) is CircuitStatus.CONNECTION_FAILED
        relay._relaying = Relaying.NEVER
        request = messages.connect_request(ID.from_string(bob.peer_id))
        assert await ask(caller, relay, request) is CircuitStatus.PERMISSION_DENIED


async def test_strangers_from_afar_do_not_reach_into_a_home(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Private addresses are for callers that are private, too."""
    monkeypatch.setattr(extension, "_is_far", lambda _: True)
    async with one_relay() as (relay, bob), open_libp2p(None, [], "test") as caller:
        request = messages.connect_request(ID.from_string(bob.peer_id))
        assert await ask(caller, relay, request) is CircuitStatus.PERMISSION_DENIED


async def test_what_a_relay_carries_is_limited() -> None:
    """One caller has its share, and gets it back when it ends what it has."""
    async with one_relay() as (relay, bob), open_libp2p(None, [], "test") as caller:
        table = relay.extender._table
        table.limits = replace(table.limits, circuits_per_peer_max=2)
        request = messages.connect_request(ID.from_string(bob.peer_id))
        outer = await caller.reach_directly(relay.peer_id, relay.own_addresses)
        held = [await ask_relay(outer, protocol_id("test", EXTEND), request) for _ in range(2)]
        assert await ask(caller, relay, request) is CircuitStatus.RESOURCE_LIMIT_EXCEEDED
        for stream, _ in held:
            stream.abort()
        for _ in range(1000):
            if not relay.extender.statistics().circuits:
                break
            await trio.sleep(0.01)
        assert not relay.extender.statistics().circuits


async def test_junk_on_a_path_ends_that_alone() -> None:
    """A caller that sends nonsense, or half a message; and one that floods, and vanishes."""
    async with one_relay() as (relay, bob), over([relay]) as alice:
        async with open_libp2p(None, [], "test") as caller:
            outer = await caller.reach_directly(relay.peer_id, relay.own_addresses)
            name = protocol_id("test", EXTEND)
            for junk in (b"\xff" * 9, b"\x05ab", bytes(4000), b"\x01\x00"):
                with suppress(ChannelClosed):
                    (await open_stream(outer, relay.peer_id, name, first=junk)).abort()
            request = messages.connect_request(ID.from_string(bob.peer_id))
            stream, _ = await ask_relay(outer, name, request)
            with suppress(MuxedStreamReset), trio.move_on_after(2.0):
                await stream.write(os.urandom(2_000_000))
        channel = await alice.open(bob.peer_id, "echo", bob.addresses)
        await channel.send(b"still there")
        assert await channel.receive() == b"still there"


async def test_a_hidden_peer_is_reached_over_a_path() -> None:
    """Its own relay is called over the path, and the circuit leads through that."""
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, RELAYING) as holder,
            open_libp2p(None, [], "test") as behind,
            relays(1, holder) as (relay,),
            over([relay]) as alice,
        ):
            behind.handle("echo", echo)
            await behind.connect(holder.addresses[0])
            behind.relays.is_needed = lambda: True
            behind.relays.look()
            while not behind.addresses:
                await behind.wait_moved()
            channel = await alice.open(behind.peer_id, "echo", behind.addresses)
            await channel.send(b"hello")
            assert await channel.receive() == b"hello"
            assert alice.relay_to(behind.peer_id) == holder.peer_id
            assert all_ids(holder) == {alice.peer_id, behind.peer_id, relay.peer_id}


class Tap:
    """What an observer sees of the line from a relay to a peer: the lengths of records."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._raw = bytearray()
        send = SocketEnd.send_now

        def seen(end: SocketEnd, data: bytes) -> int:
            self._raw += data
            return send(end, data)

        monkeypatch.setattr(SocketEnd, "send_now", seen)

    def forget(self) -> None:
        """Look away until now."""
        self._raw.clear()

    def records(self) -> list[int]:
        """Return the records seen since, and forget them."""
        found, at = [], 0
        while at < len(self._raw):
            size = int.from_bytes(self._raw[at : at + 2], "big")
            found.append(size)
            at += 2 + size
        assert at == len(self._raw)
        self.forget()
        return found


@pytest.mark.parametrize("pace_ms", [0, 5])
async def test_a_relay_sees_whole_cells_and_chunks(
    monkeypatch: pytest.MonkeyPatch, pace_ms: int
) -> None:
    """Whatever the message, where nothing is agreed on its length shows; and it comes whole."""
    shape = CellShape.for_rows(ROW_BYTES, pace_ms)
    row = shape.cell_bytes + TAG_BYTES
    tap = Tap(monkeypatch)

    async def show(channel: Channel, size: int) -> list[int]:
        message = os.urandom(size)
        tap.forget()
        await channel.send(message)
        assert await channel.receive() == message
        return [each for each in tap.records() if each != row or size < ROW_BYTES + 50]

    async with one_relay() as (relay, bob):
        async with over([relay], shape=shape) as alice:
            channel = await alice.open(bob.peer_id, "echo", bob.addresses)
            rows = [await show(channel, ROW_BYTES + head) for head in (20, 30, 40)]
            assert {size for each in rows for size in each} == {row}
            chunks = [await show(channel, count * ROW_BYTES + 30) for count in (2, 20, 29, 47, 48)]
            assert all(sorted(each) == sorted(chunks[0]) for each in chunks)
            assert sum(chunks[0]) >= WIDE_ROWS_MAX * ROW_BYTES
            blocks = [await show(channel, count * ROW_BYTES + 30) for count in (49, 64)]
            assert sorted(blocks[0]) == sorted(blocks[1])
        async with over([relay]) as plain:
            channel = await plain.open(bob.peer_id, "echo", bob.addresses)
            assert await show(channel, 2 * ROW_BYTES) != await show(channel, 3 * ROW_BYTES)


async def test_a_rhythm_over_two_relays_changes_no_message() -> None:
    """Short ones, long ones, and several at once arrive whole and in order."""
    shape = CellShape.for_rows(ROW_BYTES, 5)
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, "test") as bob, relays(2, bob) as (first, second):
            bob.handle("echo", echo)
            async with over([first], [second], shape=shape) as alice:
                channel = await alice.open(bob.peer_id, "echo", bob.addresses)
                sent = [os.urandom(size) for size in (9, ROW_BYTES, 300_000, ROW_BYTES, 60_000, 1)]
                for message in sent:
                    await channel.send(message)
                assert [await channel.receive() for _ in sent] == sent


async def test_peers_of_before_are_spoken_to_as_ever() -> None:
    """They know nothing of shapes."""
    async with one_relay() as (relay, bob):
        bob._host.remove_stream_handler(protocol_id("test", PADDED))
        async with over([relay], shape=CellShape.for_rows(ROW_BYTES)) as alice:
            channel = await alice.open(bob.peer_id, "echo", bob.addresses)
            await channel.send(b"hello")
            assert await channel.receive() == b"hello"
            (muxed,) = connections(alice._host, ID.from_string(bob.peer_id))
            assert muxed.padder is None


async def test_what_a_stranger_proposes_is_judged() -> None:
    """Nonsense, or a second shape, ends that stream alone."""
    async with one_relay() as (_, bob), open_libp2p(None, [], "test") as caller:
        muxed = await caller.reach_directly(bob.peer_id, bob.addresses)
        name, good = protocol_id("test", PADDED), CellShape.for_rows(ROW_BYTES).encode()
        (there,) = connections(bob._host, ID.from_string(caller.peer_id))
        for proposal, is_taken in ((bytes(14), False), (b"xx", False), (good, True), (good, True)):
            with suppress(ChannelClosed):
                stream = await open_stream(muxed, bob.peer_id, name, first=proposal)
                if len(proposal) == len(good):
                    await stream.wait_buffered(1)
                stream.abort()
            assert (there.padder is not None) is is_taken
        first = there.padder
        assert there.padder is first
        channel = await caller.open(bob.peer_id, "echo", bob.addresses)
        await channel.close()


class TestSocketEnd:
    """A socket in the place of a stream."""

    async def test_what_the_socket_does_not_take_is_kept_in_order(self) -> None:
        """There is no room meanwhile; the end comes behind it."""
        async with one_socket() as (near, far):
            sent = bytearray()
            while near.room():
                piece = os.urandom(60_000)
                sent += piece
                assert near.send_now(piece) == len(piece)
            got = bytearray()

            async def read() -> None:
                async for data in far:
                    got.extend(data)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(read)
                await near.wait_room()
                near.finish()
            assert got == sent

    async def test_one_that_is_gone_wakes_who_waits(self) -> None:
        """Neither side waits for ever."""
        async with one_socket() as (near, far):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.wait_buffered, 1)
                await wait_all_tasks_blocked()
                near.abort()
            assert not near.room()
            near.send_now(b"into the void")
            await far.aclose()


@asynccontextmanager
async def one_socket() -> AsyncGenerator[tuple[SocketEnd, trio.SocketStream]]:
    """Connect a socket of a relay's with one of the test's."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        dialled = await trio.open_tcp_stream("127.0.0.1", listener.socket.getsockname()[1])
        far = await listener.accept()
        near = SocketEnd(dialled)
        try:
            yield near, far
        finally:
            near.abort()
            await far.aclose()
