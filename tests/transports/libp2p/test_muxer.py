"""The muxer's shell: it notices silence, blames no peer for its own, and works with libp2p's."""

from typing import Any

import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.network.stream.exceptions import StreamError
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr  # type: ignore[import-untyped]  # it ships no types
from trio.testing import MockClock, wait_all_tasks_blocked

from transports.base import Channel
from transports.libp2p import host as host_module
from transports.libp2p import muxer, yamux
from transports.libp2p.host import connections, protocol_id
from transports.libp2p.muxer import (
    IDLE_PING_INTERVAL_S,
    IDLE_SILENCE_S_MAX,
    PING_INTERVAL_S,
    SILENCE_S_MAX,
    STALL_S,
    Connection,
)
from transports.libp2p.noise_records import SessionWire
from transports.libp2p.stream import Stream
from transports.libp2p.transport import open_libp2p

TEST_S_MAX = 20.0
HERE = ["/ip4/127.0.0.1/tcp/0"]


class FakeWire:
    """A wire whose other end is the test."""

    def __init__(self) -> None:
        self._say, self.said = trio.open_memory_channel[bytes](100)
        self.deliver, self._arriving = trio.open_memory_channel[bytes](100)

    def seal(self, frames: list[bytes]) -> bytes:
        """Join."""
        return b"".join(frames)

    def send_now(self, sealed: bytes) -> int:
        """Take everything."""
        self._say.send_nowait(sealed)
        return len(sealed)

    async def send(self, sealed: bytearray) -> int:
        """Never needed."""
        raise AssertionError

    async def receive(self) -> bytes:
        """Wait for the test to provide something."""
        return await self._arriving.receive()

    def abort(self) -> None:
        """Do nothing."""

    async def aclose(self) -> None:
        """Do nothing."""


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> FakeWire:
    """Put a fake under the next connection."""
    fake = FakeWire()
    monkeypatch.setattr(muxer, "open_wire", lambda _conn: fake)
    return fake


def connection(wire: FakeWire, *, idle: bool = False) -> Connection:
    """Make a connection on the fake, with a channel unless it is to be idle."""
    nothing: Any = None
    conn = Connection(nothing, ID(b"peer"), is_initiator=True)
    if not idle:
        conn.watch(Stream(conn, 1))
    return conn


def answer(ping: bytes) -> bytes:
    """Return what a peer answers to a ping."""
    _, kind, flags, _, value = yamux.HEADER.unpack(ping)
    assert (kind, flags) == (yamux.PING, yamux.SYN)
    return yamux.HEADER.pack(0, yamux.PING, yamux.ACK, 0, value)


async def test_a_silent_peer_is_pinged_and_dropped(
    wire: FakeWire, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A peer that says nothing, though pinged three times, is presumed dead in time."""
    conn = connection(wire)
    begun = trio.current_time()
    nursery.start_soon(conn.start)
    await conn.event_closed.wait()
    assert trio.current_time() - begun == pytest.approx(SILENCE_S_MAX)
    assert wire.said.statistics().current_buffer_used == 1 + int(SILENCE_S_MAX / PING_INTERVAL_S)
    assert "silent" in conn.fault


async def test_an_idle_connection_is_pinged_seldom(
    wire: FakeWire, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Without a channel a peer is pinged as often before it is presumed dead, but slowly."""
    conn = connection(wire, idle=True)
    begun = trio.current_time()
    nursery.start_soon(conn.start)
    await conn.event_closed.wait()
    assert trio.current_time() - begun == pytest.approx(IDLE_SILENCE_S_MAX)
    pings = 1 + int(IDLE_SILENCE_S_MAX / IDLE_PING_INTERVAL_S)
    assert wire.said.statistics().current_buffer_used == pings


async def test_a_channel_makes_an_idle_connection_alert(
    wire: FakeWire, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """A peer that died while idle is noticed in a session's time; then pings slow down."""
    conn = connection(wire, idle=True)
    nursery.start_soon(conn.start)
    await wire.said.receive()
    await trio.sleep(0.9 * IDLE_PING_INTERVAL_S)
    stream = conn.open_now()
    conn.watch(stream)
    await wire.said.receive()
    await wire.deliver.send(yamux.HEADER.pack(0, yamux.PING, yamux.SYN, 0, 1))
    stream.abort()
    assert conn.idle
    await trio.sleep(2 * SILENCE_S_MAX)
    assert not conn.is_closed
    conn.watch(conn.open_now())
    begun = trio.current_time()
    await conn.event_closed.wait()
    assert trio.current_time() - begun == pytest.approx(SILENCE_S_MAX)


async def test_a_peer_that_answers_stays_and_is_measured(
    wire: FakeWire, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Answers keep a connection, and their delay is its round trip time."""
    conn = connection(wire)
    nursery.start_soon(conn.start)
    for _ in range(40):
        ping = await wire.said.receive()
        await trio.sleep(0.1)
        await wire.deliver.send(answer(ping))
    await wire.said.receive()
    assert not conn.is_closed
    assert conn.rtt_s == pytest.approx(0.1)
    conn.abort("over")


async def test_a_peer_that_talks_need_not_answer(
    wire: FakeWire, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """Anything heard is a sign of life: a peer's answers may wait behind its bulk."""
    conn = connection(wire)
    nursery.start_soon(conn.start)
    for _ in range(10):  # too few for the unread pings to fill their channel
        await trio.sleep(SILENCE_S_MAX * 0.9)
        await wire.deliver.send(yamux.HEADER.pack(0, yamux.PING, yamux.SYN, 0, 1))
    assert not conn.is_closed
    conn.abort("over")


async def test_our_own_stall_is_not_the_peers(
    wire: FakeWire, mock_clock: MockClock, nursery: trio.Nursery
) -> None:
    """After a long stall of ours the peer has its full time again, and no more than that."""
    conn = connection(wire)
    nursery.start_soon(conn.start)
    await wait_all_tasks_blocked()
    mock_clock.jump(100 * SILENCE_S_MAX)
    await wait_all_tasks_blocked()
    assert not conn.is_closed
    for _ in range(100):
        mock_clock.jump(STALL_S / 2)
        await wait_all_tasks_blocked()
        if conn.is_closed:
            break
    assert conn.is_closed


async def talk(stream: INetStream, message: bytes) -> None:
    """Send a message on a plain libp2p stream and expect it back."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, len(message).to_bytes(4, "big") + message)
        assert await exactly(stream, 4 + len(message)) == len(message).to_bytes(4, "big") + message


async def exactly(stream: INetStream, size: int) -> bytes:
    """Read ``size`` bytes from a plain libp2p stream."""
    got = b""
    while len(got) < size:
        got += await stream.read(size - len(got))
    return got


async def echo_stream(stream: INetStream) -> None:
    """Serve a plain libp2p stream."""
    try:
        while True:
            head = await exactly(stream, 4)
            await stream.write(head + await exactly(stream, int.from_bytes(head, "big")))
    except StreamError:
        await stream.close()


async def echo(channel: Channel) -> None:
    """Serve a channel."""
    while True:
        await channel.send(await channel.receive())


MESSAGES = [b"", b"hello", bytes(range(256)) * 10_000]


def info(address: str, peer: str) -> PeerInfo:
    """Return a peer's address in libp2p's form."""
    return PeerInfo(ID.from_string(peer), [Multiaddr(address)])


async def test_an_unchanged_libp2p_host_is_served() -> None:
    """A host with libp2p's own muxer opens a stream to us and talks, small and large."""
    plain = new_host()
    with trio.fail_after(TEST_S_MAX):
        async with open_libp2p(None, HERE, "test") as ours, plain.run(listen_addrs=[]):
            ours.handle("echo", echo)
            await plain.connect(info(ours.addresses[0], ours.peer_id))
            peer = ID.from_string(ours.peer_id)
            stream = await plain.new_stream(peer, [protocol_id("test", "echo")])
            for message in MESSAGES:
                await talk(stream, message)
            await stream.reset()
            await plain.disconnect(peer)


async def test_an_unchanged_libp2p_host_serves_us() -> None:
    """We open a channel to a host with libp2p's own muxer and talk, small and large."""
    plain = new_host()
    with trio.fail_after(TEST_S_MAX):
        here = [Multiaddr(HERE[0])]
        async with open_libp2p(None, [], "test") as ours, plain.run(listen_addrs=here):
            plain.set_stream_handler(protocol_id("test", "echo"), echo_stream)
            channel = await ours.open(await ours.connect(str(plain.get_addrs()[0])), "echo")
            for message in MESSAGES:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(channel.send, message)
                    assert await channel.receive() == message
            await channel.close()
            await plain.disconnect(ID.from_string(ours.peer_id))


def private_host() -> IHost:
    """Make a host with our muxer on a network with a pre-shared key."""
    host = new_host(psk="42" * 32)
    swarm: Any = host.get_network()
    host_module._use_own_muxer(swarm)
    return host


async def test_other_wires_than_plain_sockets_work_too() -> None:
    """With a pre-shared key the muxer goes through the session's own read and write."""
    a, b = private_host(), private_host()
    with trio.fail_after(TEST_S_MAX):
        async with a.run(listen_addrs=[]), b.run(listen_addrs=[Multiaddr(HERE[0])]):
            b.set_stream_handler(protocol_id("test", "echo"), echo_stream)
            await a.connect(PeerInfo(b.get_id(), b.get_addrs()))
            (conn,) = connections(a)
            assert isinstance(conn._wire, SessionWire)
            stream = await a.new_stream(b.get_id(), [protocol_id("test", "echo")])
            for message in MESSAGES:
                await talk(stream, message)
            conn.leave()
            await a.disconnect(b.get_id())
            await b.disconnect(a.get_id())
