"""What strangers do to a hidden peer over a circuit, and that it and its relay survive.

``test_walls.py`` has the same on direct connections, and says what a plain libp2p host does then.
"""

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass

import pytest
import trio
from libp2p.abc import ISecureConn
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID

from p2pinfer.core.errors import ChannelClosed, PeerError, PeerUnavailable
from tests.support.hostile import frame, hostile_circuit, read_to_the_end, write_until_cut
from tests.support.transport_contract import echo
from transports.base import Channel, Reach, Relaying
from transports.libp2p import circuit_messages as messages
from transports.libp2p import host as host_module
from transports.libp2p import yamux
from transports.libp2p.circuit import circuit_address
from transports.libp2p.muxer import Connection
from transports.libp2p.stream import Stream
from transports.libp2p.transport import Libp2pTransport, open_libp2p

TEST_S_MAX = 30.0
HERE = ["/ip4/127.0.0.1/tcp/0"]
GREETING = b"\x13/multistream/1.0.0\n"


@dataclass
class Attacked:
    """A hidden peer that echoes, its relay, and a stranger with a relay connection of its own."""

    relay: Libp2pTransport
    victim: Libp2pTransport
    stranger: Libp2pTransport
    address: str

    async def hostile(self) -> ISecureConn:
        """Call it, and shake hands as a peer does."""
        return await hostile_circuit(self.stranger, self.relay, self.victim)

    async def assert_serves(self) -> None:
        """A newcomer reaches it over the same relay, which holds no circuit afterwards."""
        async with open_libp2p(None, [], "test") as newcomer:
            channel = await newcomer.open(self.victim.peer_id, "echo", [self.address])
            await channel.send(b"ping")
            assert await channel.receive() == b"ping"
        assert not self.victim._connections(self.relay.peer_id)[0].is_closed
        while self.relay.relay.statistics().circuits:  # noqa: ASYNC110 -- a socket's end is no event
            await trio.sleep(0.01)


@asynccontextmanager
async def attacked() -> AsyncGenerator[Attacked, None]:
    """Run them, for a bounded time."""
    reach = Reach("test", relaying=Relaying.ALWAYS, relay_mbit=10_000)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, reach) as relay,
            open_libp2p(None, [], "test") as victim,
            open_libp2p(None, [], "test") as stranger,
        ):
            victim.handle("echo", echo)
            victim.circuits.serves = lambda _: True
            outer = await victim.reach_directly(relay.peer_id, relay.own_addresses)
            assert (await victim.circuits.reserve(outer)).status == 100
            address = circuit_address(relay.own_addresses[0], victim.peer_id)
            yield Attacked(relay, victim, stranger, address)


async def test_a_name_that_is_not_utf8_ends_one_stream() -> None:
    """The circuit stays."""
    async with attacked() as made:
        conn = await made.hostile()
        line = GREETING + b"\x05\xff\xfe\xfd\xfc\n"
        await conn.write(frame(yamux.DATA, yamux.SYN, 1, len(line), line))
        answer = b""
        while not answer.endswith(frame(yamux.WINDOW, yamux.RST, 1, 0)):
            answer += await conn.read()
        await conn.close()
        await made.assert_serves()


async def test_a_sender_that_ignores_its_window_is_cut() -> None:
    """The window of the circuit itself is not the one that counts."""
    stuck = trio.Event()

    async def never_read(channel: Channel) -> None:
        stuck.set()
        await trio.sleep_forever()

    async with attacked() as made:
        made.victim.handle("stuck", never_read)
        conn = await made.hostile()
        name = b"/p2pinfer/test/stuck/1\n"
        line = GREETING + bytes([len(name)]) + name
        await conn.write(frame(yamux.DATA, yamux.SYN, 1, len(line), line))
        await stuck.wait()
        await write_until_cut(conn, frame(yamux.DATA, 0, 1, 50_000, bytes(50_000)))
        await made.assert_serves()


async def test_a_flood_of_streams_is_cut() -> None:
    """With the circuit, and not with the connection to the relay."""
    async with attacked() as made:
        conn = await made.hostile()
        with suppress(BaseLibp2pError):  # it is cut before it has written all
            for i in range(1, 20_000, 2):
                await conn.write(frame(yamux.WINDOW, yamux.SYN, i, 0))
        await read_to_the_end(conn)
        await made.assert_serves()


async def test_a_peer_that_asks_and_never_reads_is_cut() -> None:
    """Neither at the hidden peer nor at the relay do the answers pile up."""
    async with attacked() as made:
        conn = await made.hostile()
        pings = frame(yamux.PING, yamux.SYN, 0, 1) * 5000
        await write_until_cut(conn, pings)
        await made.assert_serves()


async def test_nonsense_instead_of_a_handshake_ends_the_call() -> None:
    """What comes over a relay is a stranger's until Noise is done."""
    async with attacked() as made:
        outer = await made.stranger.reach_directly(made.relay.peer_id, made.relay.own_addresses)
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", GREETING + bytes(70_000), b"\xff" * 100):
            stream = await call(made, outer)
            await stream.write(nonsense)
            stream.finish()
            await stream.wait_end()
            stream.abort()
        await made.assert_serves()


async def test_streams_of_one_peer_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A circuit brings no more of them than a connection."""
    monkeypatch.setattr(host_module, "STREAMS_PER_PEER_MAX", 3)
    async with attacked() as made:
        channels: list[Channel] = []
        with pytest.raises(PeerUnavailable):
            await open_many(made, channels)
        for channel in channels:
            channel.abort()


async def test_a_handler_ends_soon_after_its_circuit() -> None:
    """Also if the relay goes away, and with it all that it carried."""
    begun, ended = trio.Event(), trio.Event()

    async def wait_for_something_else(channel: Channel) -> None:
        begun.set()
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    async with attacked() as made:
        made.victim.handle("wait", wait_for_something_else)
        await made.stranger.open(made.victim.peer_id, "wait", [made.address])
        await begun.wait()
        (outer,) = made.victim._connections(made.relay.peer_id)
        outer.abort("the relay went away")
        await ended.wait()


async def test_what_a_caller_does_fills_no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Strangers may refuse, break protocols and leave as often as they like."""

    async def fail(channel: Channel) -> None:
        await channel.receive()
        raise PeerError(channel.remote, "it said no")

    async with attacked() as made:
        made.victim.handle("fail", fail)
        channel = await made.stranger.open(made.victim.peer_id, "fail", [made.address])
        await channel.send(b"no")
        with pytest.raises(ChannelClosed):
            await channel.receive()
        conn = await made.hostile()
        await conn.write(b"no frame at all" * 10)
        await read_to_the_end(conn)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def call(made: Attacked, outer: Connection) -> Stream:
    """Open a circuit, on which no handshake has begun."""
    request = messages.connect_request(ID.from_string(made.victim.peer_id))
    stream, answer = await made.stranger.circuits._ask(outer, request)
    assert answer.status == messages.CircuitStatus.OK
    return stream


async def open_many(made: Attacked, channels: list[Channel]) -> None:
    """Open more channels than one peer may have."""
    for _ in range(8):
        channel = await made.stranger.open(made.victim.peer_id, "echo", [made.address])
        channels.append(channel)
