"""Who serves what, over the memory network and a mock clock: told, passed on, forgotten."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.errors import PeerUnavailable, RemoteProtocolError, UserError
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.messages import ADVERTISEMENTS_MAX, Advertisement, Attached, Heard, Known
from p2pinfer.core.wire import decode, encode
from peers.directory import EXCHANGE_S, EXCHANGE_S_MAX, EXPIRE_S, RENEW_S, Directory
from peers.talk import DIRECTORY, receive, send
from transports.base import Channel
from transports.identity import Identity
from transports.memory import MemoryNetwork, MemoryTransport

NO_ID = PeerId("1" * 52)
MODEL, OTHER = ModelId("ab" * 32), ModelId("cd" * 32)


def identity(number: int) -> Identity:
    """Make the same key for the same number."""
    return Identity(number.to_bytes(32, "big"))


def advertisement(of: Identity, model: ModelId = MODEL, sequence: int = 1) -> Advertisement:
    """Say that a peer serves a range."""
    return Advertisement(of.peer_id, ("/a",), model, model[:2], 30, 1, 10, 4096, "0" * 32, sequence)


def signed(said: Advertisement, by: Identity, age_ms: int = 0) -> Heard:
    """Sign an advertisement as its author, or as somebody else."""
    body = encode(said)
    return Heard(body, by.sign(body), age_ms)


class Peer:
    """A peer with a directory, numbered."""

    def __init__(self, number: int, transport: MemoryTransport) -> None:
        self.identity, self.transport = identity(number), transport
        self.id = transport.peer_id
        self.directory = Directory(transport, self.identity, random.Random(number))
        self.directory.listen()

    def advertise(self, model: ModelId = MODEL) -> None:
        """Serve something."""
        self.directory.advertise(advertisement(self.identity, model))

    def sees(self, model: ModelId = MODEL) -> set[PeerId]:
        """Who is known to serve a model."""
        return {found.peer for found in self.directory.serving(model)}


@asynccontextmanager
async def directories(count: int) -> AsyncIterator[tuple[MemoryNetwork, list[Peer]]]:
    """Run peers whose directories answer, and do nothing by themselves."""
    network = MemoryNetwork()
    async with AsyncExitStack() as stack:
        made = []
        for number in range(count):
            joined = network.join(identity(number).peer_id)
            made.append(Peer(number, await stack.enter_async_context(joined)))
        yield network, made


async def tell(asker: MemoryTransport, to: PeerId, *heard: Heard) -> Known:
    """Compare notes by hand."""
    channel = await asker.open(to, DIRECTORY)
    await send(channel, Known(heard))
    known = await receive(channel, Known)
    await channel.close()
    return known


async def test_both_sides_learn(autojump_clock: MockClock) -> None:
    """One exchange tells each what the other serves; nobody is in his own list."""
    async with directories(2) as (_, (a, b)):
        a.advertise()
        b.advertise(OTHER)
        await a.directory.exchange(b.id)
        assert (a.sees(MODEL), a.sees(OTHER)) == (set(), {b.id})
        assert (b.sees(MODEL), b.sees(OTHER)) == ({a.id}, set())
        assert a.directory.models() == {MODEL: "ab", OTHER: "cd"}


async def test_news_travels_without_meeting(autojump_clock: MockClock) -> None:
    """What one peer was told it passes on; the word stays its author's, and as old as it is."""
    async with directories(3) as (_, (a, b, c)):
        a.advertise()
        await a.directory.exchange(b.id)
        await trio.sleep(EXPIRE_S - 5)
        await b.directory.exchange(c.id)
        assert c.sees() == {a.id}
        await trio.sleep(6)
        assert c.sees() == set()


async def test_a_swarm_comes_to_know_itself(autojump_clock: MockClock) -> None:
    """Ten peers that each know one other all know all, and forget who falls silent."""
    async with directories(10) as (network, made), trio.open_nursery() as nursery:
        network.latency_s = lambda a, b: 0.02
        scopes = []
        for peer, before in zip(made, [made[0], *made], strict=False):
            peer.advertise()
            scope = trio.CancelScope()
            scopes.append(scope)
            nursery.start_soon(run_in, scope, peer, [*before.transport.addresses])
        await trio.sleep(60)
        everyone = {peer.id for peer in made}
        assert all(peer.sees() == everyone - {peer.id} for peer in made)
        scopes[4].cancel()
        made[4].transport.handle(DIRECTORY, silence)
        await trio.sleep(EXPIRE_S + RENEW_S)
        assert all(made[4].id not in peer.sees() for peer in made)
        assert all(len(peer.sees()) == 8 for peer in made[:4])
        nursery.cancel_scope.cancel()


async def run_in(scope: trio.CancelScope, peer: Peer, ways_in: Sequence[str]) -> None:
    """Run a directory until its scope is cancelled."""
    with scope:
        await peer.directory.run(ways_in)


async def silence(_: Channel) -> None:
    """Never answer."""
    await trio.sleep_forever()


async def test_the_newest_word_wins(autojump_clock: MockClock) -> None:
    """A later advertisement replaces an earlier one, never the other way round."""
    async with directories(2) as (_, (a, b)):
        for sequence, model in ((5, MODEL), (6, OTHER), (4, MODEL), (6, MODEL)):
            said = advertisement(b.identity, model, sequence)
            await tell(b.transport, a.id, signed(said, b.identity))
        assert (a.sees(MODEL), a.sees(OTHER)) == (set(), {b.id})


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda h: evolve(h, signature=bytes(64)), id="no signature"),
        pytest.param(lambda h: evolve(h, body=h.body[:-1] + b"\x02"), id="changed"),
        pytest.param(lambda h: signed(advertisement(identity(7)), identity(8)), id="another's key"),
        pytest.param(lambda h: evolve(h, body=b"garbage"), id="garbage"),
        pytest.param(lambda h: evolve(h, body=encode(Attached())), id="another message"),
        pytest.param(lambda h: evolve(h, age_ms=int(1000 * EXPIRE_S) + 1), id="too old"),
        pytest.param(
            lambda h: signed(evolve(decode(h.body, Advertisement), peer=NO_ID), identity(7)),
            id="no peer id",
        ),
    ],
)
async def test_what_is_not_genuine_is_dropped(
    spoil: Callable[[Heard], Heard], autojump_clock: MockClock
) -> None:
    """A forged, damaged or stale advertisement is ignored, and the good one beside it is kept."""
    async with directories(2) as (_, (a, b)):
        good = signed(advertisement(b.identity), b.identity)
        bad = spoil(signed(advertisement(identity(7)), identity(7)))
        known = await tell(b.transport, a.id, bad, good)
        assert a.sees() == {b.id}
        assert known.heard == (good,)


async def test_nobody_tells_a_peer_about_itself(autojump_clock: MockClock) -> None:
    """An old word of its own, with a high number, does not come back to a peer that restarted."""
    async with directories(2) as (_, (a, b)):
        old = signed(advertisement(a.identity, OTHER, sequence=1 << 60), a.identity)
        a.advertise()
        await tell(b.transport, a.id, old)
        await b.directory.exchange(a.id)
        assert b.sees(MODEL) == {a.id}


async def test_silence_expires(autojump_clock: MockClock) -> None:
    """An advertisement that is not renewed is forgotten, and not passed on."""
    async with directories(2) as (_, (a, b)):
        b.advertise()
        await a.directory.exchange(b.id)
        await trio.sleep(EXPIRE_S - 1)
        assert a.sees() == {b.id}
        await trio.sleep(2)
        assert a.sees() == set()
        assert (await tell(b.transport, a.id)).heard == ()


async def test_a_way_in_that_is_down_is_tried_again(autojump_clock: MockClock) -> None:
    """Who finds nobody at first finds them once they are up, and again after they were away."""
    network = MemoryNetwork()
    me, other = identity(1), identity(2)
    way_in = f"/memory/0/p2p/{other.peer_id}"
    async with network.join(me.peer_id) as transport, trio.open_nursery() as nursery:
        peer = Peer(1, transport)
        failures = await peer.directory.enter([way_in])
        assert [type(failure) for failure in failures] == [PeerUnavailable]
        nursery.start_soon(peer.directory.run, [way_in])
        for _ in range(2):
            await trio.sleep(4 * EXCHANGE_S)
            assert peer.sees() == set()
            async with network.join(other.peer_id) as theirs:
                Peer(2, theirs).advertise()
                await trio.sleep(2 * EXCHANGE_S)
                assert peer.sees() == {other.peer_id}
            await trio.sleep(EXPIRE_S)
        nursery.cancel_scope.cancel()


async def test_a_way_in_that_is_no_address_is_the_users_error(autojump_clock: MockClock) -> None:
    """It is raised as it is, for the person who typed it, and not counted among failures."""
    async with directories(1) as (_, (a,)):
        with pytest.raises(UserError, match="not an address"):
            await a.directory.enter(["nonsense", "/memory/0/p2p/nobody"])


async def test_a_silent_peer_is_left(autojump_clock: MockClock) -> None:
    """An exchange takes its time at most, on both sides."""
    async with directories(2) as (_, (a, b)):
        b.transport.handle(DIRECTORY, silence)
        start = trio.current_time()
        with pytest.raises(PeerUnavailable, match="did not answer"):
            await a.directory.exchange(b.id)
        assert trio.current_time() - start == pytest.approx(EXCHANGE_S_MAX)
        channel = await b.transport.open(a.id, DIRECTORY)
        with trio.fail_after(EXCHANGE_S_MAX + 1), pytest.raises(PeerUnavailable):
            await receive(channel)


async def test_nonsense_does_not_stop_the_rounds(autojump_clock: MockClock) -> None:
    """A peer that answers with something else is blamed, and others are still asked."""

    async def babble(channel: Channel) -> None:
        await channel.send(b"garbage")

    async with directories(3) as (_, (a, b, c)), trio.open_nursery() as nursery:
        b.advertise()
        c.advertise()
        await a.directory.exchange(b.id)
        await a.directory.exchange(c.id)
        b.transport.handle(DIRECTORY, babble)
        with pytest.raises(RemoteProtocolError):
            await a.directory.exchange(b.id)
        nursery.start_soon(a.directory.run, [])
        nursery.start_soon(c.directory.run, [])
        await trio.sleep(2 * EXPIRE_S)
        assert a.sees() == {c.id}
        nursery.cancel_scope.cancel()


async def test_memory_is_bounded(autojump_clock: MockClock) -> None:
    """Past the limit no new peer is learnt, those known are renewed, and an exchange still fits."""
    async with directories(2) as (_, (a, b)):
        a.advertise()
        many = [identity(1000 + number) for number in range(ADVERTISEMENTS_MAX + 10)]
        heard = [signed(advertisement(each), each) for each in many]
        await tell(b.transport, a.id, *heard[:300])
        known = await tell(b.transport, a.id, *heard[300:])
        assert len(known.heard) == ADVERTISEMENTS_MAX
        assert len(a.sees()) == ADVERTISEMENTS_MAX - 1
        renewed = signed(advertisement(many[0], OTHER, sequence=2), many[0])
        await tell(b.transport, a.id, renewed)
        assert a.sees(OTHER) == {many[0].peer_id}
