"""Relays that lie, stall, throttle, drop or change what passes: noticed, blamed and left.

Never the peer behind them, and never a relay for what a caller or a dead peer did.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio
from libp2p.peer.id import ID
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable
from p2pinfer.core.ids import PeerId
from tests.support.transport_contract import echo
from transports.base import Channel, Reach, Relaying
from transports.identity import ephemeral_identity
from transports.libp2p import circuit as circuit_module
from transports.libp2p import circuit_messages as messages
from transports.libp2p import circuit_watch, muxer
from transports.libp2p.circuit import circuit_address
from transports.libp2p.stream import Stream
from transports.libp2p.transport import Libp2pTransport, open_libp2p

HERE = ["/ip4/127.0.0.1/tcp/0"]
TEST_S_MAX = 30.0


@dataclass
class Ways:
    """A caller and a peer that echoes, a crooked relay between them, and perhaps an honest one."""

    crooked: Libp2pTransport
    honest: Libp2pTransport
    hidden: Libp2pTransport
    caller: Libp2pTransport
    doubted: list[str] = field(default_factory=list)
    """Relays that the caller doubts."""

    async def reserve(self, relay: Libp2pTransport) -> str:
        """Reserve by hand; return where the hidden peer is reached."""
        outer = await self.hidden.reach_directly(relay.peer_id, relay.own_addresses)
        assert (await self.hidden.circuits.reserve(outer)).status == 100
        return circuit_address(relay.own_addresses[0], self.hidden.peer_id)

    async def open(self) -> Channel:
        """Open a channel through the crooked relay; the honest one is known, too."""
        crooked, honest = [await self.reserve(each) for each in (self.crooked, self.honest)]
        channel = await self.caller.open(self.hidden.peer_id, "echo", [crooked])
        self.caller._remember(self.hidden.peer_id, [crooked, honest])
        return channel

    async def prove(self) -> None:
        """Have the hidden peer see whether the crooked relay brings callers."""
        (outer,) = self.hidden._connections(self.crooked.peer_id)
        await self.hidden.circuits.prove(outer)

    async def assert_left(self, channel: Channel) -> None:
        """The channel ends, another opens over the honest relay, and the crooked one is blamed."""
        with pytest.raises(ChannelClosed):
            await talk(channel, 1000)
        again = await self.caller.open(self.hidden.peer_id, "echo")
        await again.send(b"again")
        assert await again.receive() == b"again"
        (inner,) = self.caller._connections(self.hidden.peer_id)
        assert inner.relay == self.honest.peer_id
        while not self.doubted:  # noqa: ASYNC110 -- a blame is no event
            await trio.sleep(0.01)
        assert self.doubted == [self.crooked.peer_id]
        assert self.caller.circuits.watch.is_blamed(self.crooked.peer_id)
        assert not self.hidden.circuits.watch.is_blamed(self.crooked.peer_id)


@asynccontextmanager
async def ways(relay_mbit: float = 16.0) -> AsyncGenerator[Ways, None]:
    """Run them; the crooked relay is honest until a test makes it otherwise."""
    slow = Reach("test", relaying=Relaying.ALWAYS, relay_mbit=relay_mbit)
    fast = Reach("test", relaying=Relaying.ALWAYS)
    with trio.fail_after(TEST_S_MAX):
        async with (
            open_libp2p(None, HERE, slow) as crooked,
            open_libp2p(None, HERE, fast) as honest,
            open_libp2p(None, [], "test") as hidden,
            open_libp2p(None, [], "test") as caller,
        ):
            made = Ways(crooked, honest, hidden, caller)
            hidden.handle("echo", echo)
            hidden.circuits.serves = lambda _: True
            caller.circuits.watch.on_doubt = made.doubted.append
            yield made


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten all waits for what does not come."""
    monkeypatch.setattr(muxer, "SILENCE_S_MAX", 0.6)
    monkeypatch.setattr(muxer, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(circuit_module, "HANDSHAKE_S_MAX", 0.5)
    monkeypatch.setattr(circuit_module, "PROOF_S_MAX", 0.5)


async def talk(channel: Channel, size: int) -> None:
    """Send and receive until the channel ends."""
    while True:
        await channel.send(bytes(size))
        await channel.receive()


async def never(*_: object) -> int:
    """Let nothing pass."""
    return await trio.sleep_forever()


async def swallow(source: Stream, *_: object) -> None:
    """Take what comes, and pass on nothing."""
    while not source.ended and not source.dead:
        await source.wait_buffered(1)
        source.take(len(source.buffer))


def passing(relay: Libp2pTransport, wait: Callable[[ID, int], Awaitable[object]]) -> None:
    """Have a relay wait before it passes on a number of bytes that a peer sent."""
    crooked: Any = relay.relay
    allowed, pump = crooked._allowed, crooked._pump

    async def pump_named(source: Stream, target: Stream, rate: Any, *rest: Any) -> None:
        rate.sender = source.connection.peer_id
        await pump(source, target, rate, *rest)

    async def allow(rate: Any, wanted: int) -> int:
        await wait(rate.sender, wanted)
        size: int = await allowed(rate, wanted)
        return size

    crooked._pump, crooked._allowed = pump_named, allow


@pytest.mark.usefixtures("_impatient")
async def test_a_relay_that_stalls_is_left() -> None:
    """Its own connection lives, and nothing comes through."""
    async with ways() as made:
        channel = await made.open()
        stalled: Any = made.crooked.relay
        stalled._allowed = never
        await made.assert_left(channel)


async def test_a_silent_relay_is_left_before_its_circuits_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The peer is called another way meanwhile, and what it was called over is given up then."""
    monkeypatch.setattr(muxer, "SILENCE_S_MAX", 2 * TEST_S_MAX)
    async with ways() as made:
        channel = await made.open()
        stalled: Any = made.crooked.relay
        stalled._allowed = never
        with pytest.raises(ChannelClosed, match="its relay is silent"):
            await talk(channel, 1000)
        await made.assert_left(channel)


@dataclass(eq=False)
class Heard:
    """A connection, as far as it matters when something last came."""

    silent_s: float = 0.0
    idle: bool = False


async def test_circuits_of_a_silent_relay_are_left_together(autojump_clock: MockClock) -> None:
    """Not those of others, nor idle ones, nor what was heard a moment ago; and all of them once."""
    watch: Any = circuit_watch.CircuitWatch(never)
    one, other = Heard(), Heard()
    first, second, heard = Heard(0.95), Heard(0.5), Heard(0.1)
    outers = {first: one, second: one, heard: one, Heard(5.0, idle=True): one, Heard(0.5): other}
    for inner, outer in outers.items():
        watch._called[inner] = circuit_watch._Called(cast("Any", outer), PeerId("relay"))
    assert watch._silent(other) == []
    assert watch._silent(one) == [first, second]
    assert watch._silent(one) == []
    await trio.sleep(circuit_watch.STAYS_S)
    assert watch._silent(one) == [first, second]


async def test_a_relay_that_drops_circuits_is_left() -> None:
    """The peer behind it has said no goodbye, and answers elsewhere."""
    async with ways() as made:
        channel = await made.open()
        for connection in made.crooked._connections(made.caller.peer_id):
            for stream in list(connection._streams.values()):
                stream.abort()
        await made.assert_left(channel)


async def test_a_relay_that_changes_what_passes_is_left() -> None:
    """Every byte is authenticated: nothing that it changed is taken for the peer's."""
    async with ways() as made:
        channel = await made.open()
        changed: Any = made.crooked.relay
        allowed = changed._allowed

        async def flip(*args: Any) -> int:
            for connection in made.crooked._connections(made.caller.peer_id):
                for stream in connection._streams.values():
                    if stream.buffer:
                        stream.buffer[-1] ^= 1
            size: int = await allowed(*args)
            return size

        changed._allowed = flip
        await made.assert_left(channel)


async def test_a_relay_that_throttles_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 10 kB a second pings wait behind the rows, which is not the peer's fault."""
    monkeypatch.setattr(muxer, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(circuit_watch, "LATE_FOR_S", 0.5)
    monkeypatch.setattr(circuit_watch, "LOOK_S", 0.1)
    async with ways(relay_mbit=0.32) as made:
        channel = await made.open()
        await trio.sleep(0.3)  # for a ping or two
        with pytest.raises(ChannelClosed, match="its relay is slow"):
            await talk(channel, 50_000)
        await made.assert_left(channel)


async def say(channel: Channel) -> None:
    """Send a token's row now and then, as a requester does, until the channel ends."""
    while True:
        await channel.send(bytes(4000))
        await channel.receive()
        await trio.sleep(0.05)


@pytest.mark.parametrize("towards", ["the called peer", "both"])
async def test_a_relay_that_slows_tokens_alone_is_left(
    towards: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lets lone pings pass, which it knows by their size; those behind rows tell on it."""
    monkeypatch.setattr(muxer, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(circuit_watch, "LATE_FOR_S", 1.0)
    monkeypatch.setattr(circuit_watch, "LOOK_S", 0.1)
    async with ways() as made:
        slowed = [ID.from_string(made.caller.peer_id)]
        slowed += [ID.from_string(made.hidden.peer_id)] if towards == "both" else []
        is_slow = False

        async def wait(sender: ID, size: int) -> None:
            if is_slow and sender in slowed and size > 1000:
                await trio.sleep(0.5)

        passing(made.crooked, wait)
        channel = await made.open()
        await trio.sleep(0.3)  # for a ping or two
        is_slow = True
        with pytest.raises(ChannelClosed, match="its relay is slow"):
            await say(channel)
        await made.assert_left(channel)


async def test_a_relay_that_passes_tokens_at_once_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same conversation over an honest one goes on."""
    monkeypatch.setattr(muxer, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(circuit_watch, "LATE_FOR_S", 0.5)
    monkeypatch.setattr(circuit_watch, "LOOK_S", 0.1)
    async with ways() as made:
        channel = await made.open()
        with trio.move_on_after(2.0):
            await say(channel)
        (inner,) = made.caller._connections(made.hidden.peer_id)
        assert inner.relay == made.crooked.peer_id
        assert not made.doubted


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("deaf", [False, True])
async def test_a_relay_that_falls_silent_one_way_is_left(deaf: bool) -> None:
    """In the middle of a message, and to one side alone: the other one still hears the peer."""
    async with ways() as made:
        silenced = ID.from_string((made.hidden if deaf else made.caller).peer_id)
        passed = 0

        async def wait(sender: ID, size: int) -> None:
            nonlocal passed
            passed += size
            if sender == silenced and passed > 100_000:
                await trio.sleep_forever()

        passing(made.crooked, wait)
        channel = await made.open()
        await made.assert_left(channel)


async def test_a_slow_relay_is_kept_where_there_is_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address of another one is no proof that it leads anywhere."""
    monkeypatch.setattr(muxer, "PING_INTERVAL_S", 0.1)
    monkeypatch.setattr(circuit_watch, "LATE_FOR_S", 0.2)
    monkeypatch.setattr(circuit_watch, "LOOK_S", 0.05)
    async with ways(relay_mbit=0.32) as made:
        channel = await made.open()
        made.honest.relay._table._held.clear()
        tried, watch = trio.Event(), made.caller.circuits.watch
        dial = watch._dial

        async def dial_in_vain(address: str, peer: PeerId) -> None:
            try:
                await dial(address, peer)
            finally:
                tried.set()

        watch._dial = dial_in_vain
        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk, channel, 50_000)
            await tried.wait()
            await wait_all_tasks_blocked()
            (inner,) = made.caller._connections(made.hidden.peer_id)
            assert inner.relay == made.crooked.peer_id
            assert not made.doubted
            nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("_impatient")
async def test_a_relay_that_only_says_that_it_connects_is_blamed() -> None:
    """The peer behind it cannot have answered: the handshake shows that nothing passes."""
    async with ways() as made:
        address = await made.reserve(made.crooked)
        stalled: Any = made.crooked.relay
        stalled._pump = swallow
        with pytest.raises(PeerUnavailable, match="nothing comes through the relay"):
            await made.caller.open(made.hidden.peer_id, "echo", [address])
        assert made.doubted == [made.crooked.peer_id]


async def test_no_relay_is_blamed_for_a_peer_that_died() -> None:
    """It answers nowhere else."""
    async with ways() as made:
        channel = await made.open()
        for relay in (made.crooked, made.honest):
            for connection in made.hidden._connections(relay.peer_id):
                connection.abort("it died")
        with pytest.raises(ChannelClosed):
            await channel.receive()
        with pytest.raises(PeerUnavailable):
            await made.caller.open(made.hidden.peer_id, "echo")
        assert not made.doubted


@pytest.mark.usefixtures("_impatient")
async def test_no_relay_is_blamed_for_a_caller_that_froze() -> None:
    """Else any caller could have a peer leave all its relays."""
    async with ways() as made:
        doubted: list[str] = []
        made.hidden.circuits.watch.on_doubt = doubted.append
        await made.open()
        (inner,) = made.hidden._connections(made.caller.peer_id)
        (frozen,) = made.caller._connections(made.hidden.peer_id)
        silent: Any = frozen
        silent._pump = lambda: None
        await inner.event_closed.wait()
        assert "silent" in inner.fault
        assert not doubted


async def test_an_honest_relay_proves_itself() -> None:
    """Its peer's call of itself comes back."""
    async with ways() as made:
        await made.reserve(made.crooked)
        await made.prove()


@pytest.mark.usefixtures("_impatient")
async def test_a_relay_that_passes_nothing_on_fails_the_proof() -> None:
    """Though it says that it connects."""
    async with ways() as made:
        await made.reserve(made.crooked)
        stalled: Any = made.crooked.relay
        stalled._pump = swallow
        with pytest.raises(PeerUnavailable, match="passes nothing on"):
            await made.prove()


@pytest.mark.usefixtures("_impatient")
async def test_a_relay_that_lies_of_who_calls_fails_the_proof(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The call comes in another's name, and is not answered as one's own."""
    async with ways() as made:
        await made.reserve(made.crooked)
        true, stranger = messages.stop_request, ID.from_string(ephemeral_identity().peer_id)
        monkeypatch.setattr(messages, "stop_request", lambda _: true(stranger))
        with pytest.raises(PeerUnavailable, match="passes nothing on"):
            await made.prove()


async def test_a_relay_that_forgets_its_reservations_fails_the_proof() -> None:
    """It gave one, and tells callers that there is none."""
    async with ways() as made:
        await made.reserve(made.crooked)
        made.crooked.relay._table._held.clear()
        with pytest.raises(PeerUnavailable, match="no reservation"):
            await made.prove()
