"""What the other end of a circuit may try when holes are punched, and what nobody waits for."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest
import trio
from libp2p.connection_types import ConnectionType

from p2pinfer.core.errors import ChannelClosed
from p2pinfer.core.ids import PeerId
from tests.support.transport_contract import echo
from tests.transports.libp2p.test_circuits import hide
from transports.identity import ephemeral_identity
from transports.libp2p import circuit_watch, punching
from transports.libp2p.host import connections
from transports.libp2p.muxer import Connection
from transports.libp2p.negotiation import open_stream
from transports.libp2p.protobuf import delimited
from transports.libp2p.punching_rules import (
    CONNECT,
    DCUTR,
    DIALS_PER_ADDRESS_MAX,
    SYNC,
    TRIES_MAX,
    HolePunch,
    Place,
    encode,
)
from transports.libp2p.transport import Libp2pTransport, open_libp2p

HERE = ["/ip4/127.0.0.1/tcp/0"]
TEST_S_MAX = 20.0
THIRD_PARTY = "/ip4/9.9.9.9/tcp/443"
OWN = "/ip4/5.5.5.11/tcp/4100"


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[Place]:
    """Refuse whatever is dialled to punch, quickly, and list it."""
    found: list[Place] = []

    async def refuse(_: Place, place: Place) -> NoReturn:
        found.append(place)
        raise ConnectionRefusedError

    monkeypatch.setattr(punching, "connect_from", refuse)
    monkeypatch.setattr(punching, "TRY_S", 0.1)
    monkeypatch.setattr(punching, "REDIAL_S_MIN", 0.001)
    monkeypatch.setattr(punching, "REDIAL_S_MAX", 0.001)
    return found


@asynccontextmanager
async def circuit() -> AsyncGenerator[tuple[Libp2pTransport, Libp2pTransport], None]:
    """Have one peer call another through a relay; the called one begins nothing by itself."""
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, "test") as relay,
            open_libp2p(None, [], "test") as called,
            open_libp2p(None, [], "test") as caller,
        ):
            called.circuits.on_call = lambda _: None
            called.handle("echo", echo)
            caller.punches._own = lambda: [OWN]
            await caller.open(called.peer_id, "echo", [await hide(called, relay)])
            yield called, caller


async def say(called: Libp2pTransport, caller: Libp2pTransport, *messages: bytes) -> bool:
    """Say this to the caller over the circuit; return whether it answered."""
    (inner,) = called._connections(caller.peer_id)
    assert inner.relay
    return await say_on(inner, *messages)


async def say_on(connection: Connection, *messages: bytes) -> bool:
    """Say this on a connection; return whether there was an answer."""
    peer, first = PeerId(str(connection.peer_id)), b"".join(map(delimited, messages))
    try:
        stream = await open_stream(connection, peer, DCUTR, watched=False, first=first)
    except ChannelClosed:
        return False  # it was reset at once
    await stream.wait_buffered(2)
    answered = len(stream.buffer) > 1
    while not (stream.ended or stream.dead):
        await stream.wait_buffered(len(stream.buffer) + 1)
    stream.abort()
    return answered


def begins(*addresses: str) -> tuple[bytes, bytes]:
    """Return what makes a caller dial."""
    return encode(HolePunch(CONNECT, addresses)), encode(HolePunch(SYNC))


async def test_a_third_party_is_dialled_seldom(dialled: list[Place]) -> None:
    """A called peer names any address, as often as it likes."""
    async with circuit() as (called, caller):
        for _ in range(TRIES_MAX + 3):
            await say(called, caller, *begins(THIRD_PARTY))
        assert set(dialled) == {("9.9.9.9", 443)}
        assert len(dialled) <= TRIES_MAX * DIALS_PER_ADDRESS_MAX
        assert caller._connections(called.peer_id)


async def test_a_caller_sends_nobody_to_a_third_party_often(dialled: list[Place]) -> None:
    """The same the other way round: a caller says where it is to be dialled."""
    async with circuit() as (called, caller):
        caller.punches._own = lambda: [THIRD_PARTY, "/ip4/10.0.0.8/tcp/4100"]
        called.punches._own = lambda: [OWN]
        (inner,) = called._connections(caller.peer_id)
        for _ in range(3):
            await called.punches._replace(inner)
        named = [place for place in dialled if place != ("5.5.5.11", 4100)]
        assert set(named) == {("9.9.9.9", 443)}
        assert len(named) <= TRIES_MAX * DIALS_PER_ADDRESS_MAX
        assert called.punches.statistics.in_vain == 3


async def test_no_private_network_is_scanned(dialled: list[Place]) -> None:
    """Nor this machine, nor the services of its own router."""
    async with circuit() as (called, caller):
        near = [f"/ip4/{host}/tcp/4100" for host in ("192.168.1.7", "10.0.0.1", "127.0.0.1")]
        await say(called, caller, *begins(*near))
        assert not dialled


@pytest.mark.parametrize(
    "messages",
    [
        [b""],
        [b"\xff" * 20],
        [encode(HolePunch(SYNC))],
        [bytes(5000)],
        [encode(HolePunch(CONNECT, (THIRD_PARTY,))), b"\x08\x07"],
    ],
    ids=["nothing", "noise", "out of turn", "too long", "no SYNC"],
)
async def test_what_breaks_the_protocol_ends_its_stream_alone(
    dialled: list[Place], messages: list[bytes]
) -> None:
    """The circuit goes on, and nobody is dialled."""
    async with circuit() as (called, caller):
        await say(called, caller, *messages)
        assert not dialled
        channel = await caller.open(called.peer_id, "echo")
        await channel.send(b"still here")
        assert await channel.receive() == b"still here"


async def test_only_who_was_called_over_a_circuit_may_begin(dialled: list[Place]) -> None:
    """Otherwise any neighbour could; and of two ends of a circuit each would."""
    async with circuit() as (called, caller):
        called.punches._own = lambda: [OWN]
        for connection in connections(caller._host):
            assert not await say_on(connection, *begins(THIRD_PARTY))
        assert not dialled
        assert await say(called, caller, *begins(THIRD_PARTY))


async def test_on_a_local_network_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A relay at a private address leads to nobody who could be punched."""
    monkeypatch.setattr(punching, "DIRECT_S_MAX", TEST_S_MAX)
    async with circuit() as (called, caller):
        caller.punches.patient = {"echo"}
        await caller.open(called.peer_id, "echo")


async def test_what_was_in_vain_is_not_waited_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first channel of a session waits; the next ones know, until it may be tried again."""
    monkeypatch.setattr(punching, "DIRECT_S_MAX", 0.05)
    monkeypatch.setattr(punching, "is_global", lambda _: True)
    async with circuit() as (called, caller):
        caller.punches.patient = {"echo"}
        await caller.open(called.peer_id, "echo")
        monkeypatch.setattr(punching, "DIRECT_S_MAX", TEST_S_MAX)
        await caller.open(called.peer_id, "echo")
        caller.punches._in_vain[called.peer_id] = trio.current_time()
        with trio.move_on_after(0.05) as scope:
            await caller.open(called.peer_id, "echo")
        assert scope.cancelled_caught


@dataclass
class Neighbour:
    """A direct connection that this peer has made, as it looks to who asks for dials."""

    host: str
    peer_id: str = ephemeral_identity().peer_id
    is_initiator: bool = True
    own_port: int = 50_000

    def get_remote_address(self) -> tuple[str, int]:
        """Return where it leads."""
        return self.host, 4001

    def get_connection_type(self) -> ConnectionType:
        """Return that it is direct."""
        return ConnectionType.DIRECT


async def test_who_was_dialled_from_the_listening_port_proves_nothing(
    dialled: list[Place],
) -> None:
    """A NAT lets it in for that: it is not asked to dial back, and its dial does not count."""
    async with circuit() as (called, caller):
        given: Any = [Neighbour("9.9.9.9"), Neighbour("8.8.8.8")]
        asked = caller.reach._servers(given)
        assert {each.host for each in asked} == {"9.9.9.9", "8.8.8.8"}
        await say(called, caller, *begins(THIRD_PARTY))
        assert dialled
        asked = caller.reach._servers(given)
        assert {each.host for each in asked} == {"8.8.8.8"}
        met: list[Any] = [Neighbour(each.host, is_initiator=False) for each in given]
        assert [caller._shows_dialable(each) for each in met] == [False, True]


async def test_a_circuit_that_was_replaced_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon after it fell idle; until then what was open goes on."""
    monkeypatch.setattr(circuit_watch, "LOOK_S", 0.02)
    monkeypatch.setattr(circuit_watch, "REPLACED_IDLE_S", 0.02)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, "test") as relay,
            open_libp2p(None, HERE, "test") as called,
            open_libp2p(None, [], "test") as caller,
        ):
            called.handle("echo", echo)
            channel = await caller.open(called.peer_id, "echo", [await hide(called, relay)])
            (inner,) = caller._connections(called.peer_id)
            direct = await caller.reach_directly(called.peer_id, called.own_addresses)
            await trio.sleep(0.1)
            await channel.send(b"still here")
            assert await channel.receive() == b"still here"
            await channel.close()
            await inner.event_closed.wait()
            assert not direct.is_closed
