"""What peers tell each other about the swarm, which peers they believe, and when they forget."""

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.advertisement import KNOWN_MAX, Heard, Known, State
from p2pinfer.core.errors import PeerUnavailable, RemoteProtocolError, UserError
from p2pinfer.core.exchange import Compare
from p2pinfer.core.wire import encode
from peers.discovery.anti_entropy import MESSAGES_MAX, OFFENCES_MAX, TOLD_MAX
from peers.discovery.directory import COMPARE_S, EXCHANGE_S_MAX, PATIENCE_S
from peers.discovery.model_index import CALLS_MISSED_MAX, parse
from peers.steps.messaging import DIRECTORY, receive, send
from tests.support.directories import (
    MODEL,
    OTHER,
    Peer,
    advertisement,
    directories,
    fill,
    identity,
    running,
    signed,
    silence,
)
from transports.base import Channel
from transports.memory.network import MemoryChannel, MemoryNetwork

PERIOD_S, EXPIRE_S = 10.0, 35.0
"""Of a small swarm."""


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the size of every message on a channel."""
    sizes: list[int] = []
    plain = MemoryChannel.send

    async def counted(self: MemoryChannel, message: bytes) -> None:
        sizes.append(len(message))
        await plain(self, message)

    monkeypatch.setattr(MemoryChannel, "send", counted)
    return sizes


async def test_both_sides_learn(autojump_clock: MockClock) -> None:
    """One exchange tells each what the other serves; no peer is in its own list."""
    async with directories(2) as (_, (a, b)):
        a.advertise()
        b.advertise(OTHER)
        await a.directory.exchange(b.id)
        assert (a.sees(MODEL), a.sees(OTHER)) == (set(), {b.id})
        assert (b.sees(MODEL), b.sees(OTHER)) == ({a.id}, set())
        assert a.directory.models() == {MODEL: "ab", OTHER: "cd"}
        assert {found.peer for found in a.directory.peers()} == {a.id, b.id}


async def test_a_peer_that_serves_nothing_learns_which_models_exist(
    autojump_clock: MockClock,
) -> None:
    """Before it chooses a model it learns a few peers of each, and then all of the chosen one."""
    async with directories(4) as (_, (a, b, c, newcomer)):
        fill(a, range(100, 150))
        b.advertise(OTHER)
        c.advertise()
        await b.directory.exchange(a.id)
        await a.directory.exchange(c.id)
        await newcomer.directory.exchange(a.id)
        assert newcomer.directory.models() == {MODEL: "ab", OTHER: "cd"}
        assert 0 < len(newcomer.directory.peers()) < 20
        newcomer.directory.follow(MODEL)
        await newcomer.directory.exchange(a.id)
        assert len(newcomer.sees()) == 51


async def test_news_is_heard_at_once(autojump_clock: MockClock) -> None:
    """A change of state reaches all peers in a moment; changed figures wait for the renewal."""
    async with directories(5) as (network, made), running(made):
        network.latency_s = lambda a, b: 0.02
        for peer in made:
            peer.advertise()
        await trio.sleep(30)
        first = made[0]
        said = advertisement(first.identity, layers=(10, 20))
        first.directory.advertise(said)
        await trio.sleep(0.1)
        for peer in made[1:]:
            (found,) = [a for a in peer.directory.serving(MODEL) if a.peer == first.id]
            assert (found.first, found.end) == (10, 20)
        first.directory.advertise(advertisement(first.identity, layers=(10, 20), period_ms=9999))
        before = found.sequence
        await trio.sleep(0.1)
        (found,) = [a for a in made[1].directory.serving(MODEL) if a.peer == first.id]
        assert found.sequence == before
        await trio.sleep(PERIOD_S)
        (found,) = [a for a in made[1].directory.serving(MODEL) if a.peer == first.id]
        assert found.sequence > before


async def test_all_peers_come_to_know_all_others(autojump_clock: MockClock) -> None:
    """Ten peers that each know one other come to know all, and forget one that falls silent."""
    async with directories(10) as (network, made), running(made) as scopes:
        network.latency_s = lambda a, b: 0.02
        for peer in made:
            peer.advertise()
        await trio.sleep(2 * PERIOD_S)
        everyone = {peer.id for peer in made}
        assert all(peer.sees() == everyone - {peer.id} for peer in made)
        scopes[made[4].id].cancel()
        made[4].transport.handle(DIRECTORY, silence)
        await trio.sleep(EXPIRE_S + 1)
        assert all(made[4].id not in peer.sees() for peer in made)
        assert all(len(peer.sees()) == 8 for peer in made[:4])


async def test_a_peer_that_leaves_is_forgotten_at_once(autojump_clock: MockClock) -> None:
    """All peers drop it, and an old advertisement does not bring it back."""
    async with directories(4) as (_, made), running(made):
        for peer in made:
            peer.advertise()
        await trio.sleep(2 * PERIOD_S)
        left = made[3]
        (old,) = [e.heard for e in made[1].directory.view.of(MODEL) if left.id in str(e.parsed)]
        left.directory.leave()
        await trio.sleep(0.1)
        assert all(left.id not in peer.sees() for peer in made[:3])
        made[0].directory.view.take(old, trio.current_time())
        assert left.id not in made[0].sees()
        assert left.directory.peers()
        assert left.id not in {found.peer for found in left.directory.peers()}
        assert all(a.state is not State.LEFT for a in made[0].directory.peers())


async def test_a_swarm_that_was_cut_agrees_again(autojump_clock: MockClock) -> None:
    """Two halves that forgot each other are one swarm again two periods after they reconnect."""
    async with directories(10) as (network, made), running(made):
        for peer in made:
            peer.advertise()
        await trio.sleep(2 * PERIOD_S)
        half = {peer.id for peer in made[:5]}
        network.latency_s = lambda a, b: 0.0 if (a in half) == (b in half) else float("inf")
        await trio.sleep(60)
        assert all(len(peer.sees()) == 4 for peer in made)
        network.latency_s = lambda a, b: 0.0
        await trio.sleep(2 * PERIOD_S)
        assert all(len(peer.sees()) == 9 for peer in made)


async def test_a_newcomer_knows_all_peers_at_once(autojump_clock: MockClock) -> None:
    """One exchange gives a newcomer the full view, in several messages if necessary."""
    async with directories(2) as (_, (old, newcomer)):
        fill(old, range(100, 1300))
        newcomer.advertise()
        await newcomer.directory.exchange(old.id)
        assert len(newcomer.sees()) == 1200
        assert len(old.sees()) == 1201


@pytest.mark.parametrize("count", [10, 1000])
async def test_equal_views_cost_few_bytes(
    count: int, sent: list[int], autojump_clock: MockClock
) -> None:
    """Comparing costs a few hundred bytes when nothing differs, however many peers there are."""
    async with directories(2) as (_, (a, b)):
        for peer in (a, b):
            fill(peer, range(100, 100 + count))
        await a.directory.exchange(b.id)
        assert sum(sent) < 400


async def test_only_what_differs_is_sent(sent: list[int], autojump_clock: MockClock) -> None:
    """Each side lacks three of a thousand: both learn them for a few kilobytes."""
    async with directories(2) as (_, (a, b)):
        fill(a, range(100, 1100))
        fill(b, range(103, 1103))
        await a.directory.exchange(b.id)
        assert len(a.sees()) == len(b.sees()) == 1003
        assert sum(sent) < 8000


async def test_a_newcomer_with_several_ways_in_gets_one_full_view(
    sent: list[int], autojump_clock: MockClock
) -> None:
    """From the first of them; the others add what the first did not know."""
    async with directories(4) as (_, (*old, newcomer)):
        for number, peer in enumerate(old):
            fill(peer, range(100 + number, 300 + number))
        newcomer.directory.follow(MODEL)
        ways_in = [f"/memory/0/p2p/{peer.id}" for peer in old]
        assert not await newcomer.directory.enter(ways_in)
        assert len(newcomer.sees()) == 202
        one = len(encode(next(iter(old[0].directory.view.of(MODEL))).heard))
        assert 200 * one < sum(sent) < 230 * one


async def test_a_frozen_way_in_delays_a_newcomer_only_briefly(autojump_clock: MockClock) -> None:
    """It is reached first and sends nothing: soon the others are asked anyway."""
    async with directories(3) as (network, (frozen, old, newcomer)):
        network.latency_s = lambda one, other: 0.01 if old.id in (one, other) else 0.0
        frozen.transport.handle(DIRECTORY, silence)
        fill(old, range(100, 110))
        newcomer.directory.follow(MODEL)
        ways_in = [f"/memory/0/p2p/{peer.id}" for peer in (frozen, old)]
        with trio.move_on_after(2 * PATIENCE_S):
            await newcomer.directory.enter(ways_in)
        assert len(newcomer.sees()) == 10


async def test_an_earlier_run_is_superseded(autojump_clock: MockClock) -> None:
    """A peer whose clock went back hears its own old advertisement, and is believed anyway."""
    async with directories(3) as (_, made), running(made):
        a, b, c = made
        old = signed(advertisement(a.identity, OTHER, sequence=1 << 60), a.identity)
        b.directory.view.take(old, trio.current_time())
        for peer in made:
            peer.advertise()
        await trio.sleep(3 * PERIOD_S)
        assert b.sees(MODEL) == {a.id, c.id}
        assert b.sees(OTHER) == set()


@pytest.mark.parametrize("hidden", [False, True])
async def test_own_view_holds_what_others_read(hidden: bool, autojump_clock: MockClock) -> None:
    """A peer's parsed copy of its own advertisement equals the bytes that it signed."""
    async with directories(1) as (_, (a,)):
        a.directory.advertiser.is_hidden = hidden
        a.advertise()
        entry = a.directory.view.get(a.id)
        assert entry
        assert entry.parsed == parse(entry.heard.body)
        assert bool(entry.parsed.advertisement.addresses) is not hidden


async def test_numbers_rise_whatever_the_clock_says(autojump_clock: MockClock) -> None:
    """A peer may advertise twice in a millisecond, or after its clock went back."""
    clock = iter((5000, 5000, 4000, 9000))
    async with directories(1) as (_, (a,)):
        a.directory.advertiser._clock_ms = lambda: next(clock)
        numbers: list[int] = []
        for end in range(10, 14):
            a.advertise(layers=(1, end))
            entry = a.directory.view.get(a.id)
            assert entry
            numbers.append(entry.parsed.advertisement.sequence)
    assert numbers == [5000, 5001, 5002, 9000]


async def test_sequence_numbers_show_the_clock(autojump_clock: MockClock) -> None:
    """Advertisements are numbered by the clock, so that others see whether it is right."""
    async with directories(2) as (_, (a, b)):
        now_ms = 1_800_000_000_000
        a.directory.advertiser._clock_ms = lambda: now_ms + round(1000 * trio.current_time())
        async with running([b, a]):
            a.advertise()
            b.advertise()
            await trio.sleep(20 * PERIOD_S)
            entry = b.directory.view.get(a.id)
            assert entry
            told_ms = entry.parsed.advertisement.sequence
            assert told_ms == pytest.approx(now_ms + 1000 * entry.made_at, abs=1000)


async def test_silence_expires(autojump_clock: MockClock) -> None:
    """An advertisement that is not renewed is forgotten, and not passed on."""
    async with directories(3) as (_, (a, b, c)):
        b.advertise()
        await a.directory.exchange(b.id)
        await trio.sleep(EXPIRE_S - 1)
        assert a.sees() == {b.id}
        await c.directory.exchange(a.id)
        assert c.sees() == {b.id}
        await trio.sleep(2)
        assert (a.sees(), c.sees()) == (set(), set())


async def test_a_way_in_that_is_down_is_tried_again(autojump_clock: MockClock) -> None:
    """A peer that finds none at first finds one once it is up, and again after it was away."""
    network = MemoryNetwork()
    me, other = identity(1), identity(2)
    way_in = f"/memory/0/p2p/{other.peer_id}"
    async with network.join(me.peer_id) as transport, trio.open_nursery() as nursery:
        peer = Peer(1, transport)
        failures = await peer.directory.enter([way_in])
        assert [type(failure) for failure in failures] == [PeerUnavailable]
        nursery.start_soon(peer.directory.run, [way_in])
        for _ in range(2):
            await trio.sleep(2 * COMPARE_S)
            assert peer.sees() == set()
            async with network.join(other.peer_id) as theirs:
                Peer(2, theirs).advertise()
                await trio.sleep(2 * PERIOD_S)
                assert peer.sees() == {other.peer_id}
            await trio.sleep(EXPIRE_S)
        nursery.cancel_scope.cancel()


async def test_a_way_in_that_is_not_an_address_is_the_users_error(
    autojump_clock: MockClock,
) -> None:
    """It is raised for the person who typed it, and not returned among the failures."""
    async with directories(1) as (_, (a,)):
        with pytest.raises(UserError, match="not an address"):
            await a.directory.enter(["nonsense", "/memory/0/p2p/nobody"])


async def test_a_silent_peer_is_given_up(autojump_clock: MockClock) -> None:
    """An exchange takes no longer than its limit, on both sides."""
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
        await trio.sleep_forever()

    async with directories(3) as (_, made):
        a, b, c = made
        b.advertise()
        await a.directory.exchange(b.id)
        b.transport.handle(DIRECTORY, babble)
        with pytest.raises(RemoteProtocolError):
            await a.directory.exchange(b.id)
        async with running([a, c]):
            c.advertise()
            await trio.sleep(2 * EXPIRE_S)
            assert a.sees() == {c.id}


@pytest.mark.parametrize("lies", [OFFENCES_MAX, OFFENCES_MAX + 1])
async def test_too_many_forgeries_end_an_exchange(lies: int, autojump_clock: MockClock) -> None:
    """A few forged advertisements are skipped; one more ends the exchange."""
    author = identity(9)
    true = signed(advertisement(author), author)

    async def tell(channel: Channel) -> None:
        await receive(channel, Compare)
        await receive(channel, Known)
        await send(channel, Known((*[evolve(true, signature=bytes(64))] * lies, true)))

    async with directories(2) as (_, (a, b)):
        b.transport.handle(DIRECTORY, tell)
        a.directory.follow(MODEL)
        if lies > OFFENCES_MAX:
            with pytest.raises(RemoteProtocolError, match="sends invalid advertisements"):
                await a.directory.exchange(b.id)
        else:
            await a.directory.exchange(b.id)
        assert a.sees() == ({author.peer_id} if lies == OFFENCES_MAX else set())


async def test_only_peers_that_answer_are_relied_on(autojump_clock: MockClock) -> None:
    """An advertisement of a peer that is gone, or never existed, may be repeated by others.

    But no peer relies on it for longer than a few rounds, however often it is renewed.
    """
    async with directories(3) as (_, made), running(made):
        for peer in made:
            peer.advertise()
        await trio.sleep(2 * PERIOD_S)
        ghost = identity(99)
        for sequence in range(1, 20):
            word = signed(advertisement(ghost, sequence=sequence), ghost)
            for peer in made:
                peer.directory.view.take(word, trio.current_time(), MODEL)
            await trio.sleep(PERIOD_S / 2)
        for peer in made:
            assert peer.directory.view.get(ghost.peer_id), "it was believed to speak"
            assert peer.sees() == {each.id for each in made} - {peer.id}
            assert ghost.peer_id not in {a.peer for a in peer.directory.holding(MODEL)}


async def test_a_peer_that_answers_again_is_relied_on_again(autojump_clock: MockClock) -> None:
    """A peer may be too busy for a while; its first sign of life is enough."""
    async with directories(2) as (_, (a, b)):
        b.advertise()
        await a.directory.exchange(b.id)
        b.transport.handle(DIRECTORY, silence)
        for _ in range(CALLS_MISSED_MAX - 1):
            with pytest.raises(PeerUnavailable):
                await a.directory.exchange(b.id)
            assert a.sees() == {b.id}
        with pytest.raises(PeerUnavailable):
            await a.directory.exchange(b.id)
        assert a.sees() == set()
        await b.directory.exchange(a.id)
        assert a.sees() == {b.id}


async def test_endless_news_is_cut_off(autojump_clock: MockClock) -> None:
    """A peer that never stops sending news is blamed, and its cost is bounded."""
    identities = [identity(number) for number in range(100, 102)]
    told = 0

    async def babble(channel: Channel) -> None:
        nonlocal told
        for _ in range(MESSAGES_MAX):
            heard = [
                Heard(encode(advertisement(identities[n % 2], sequence=told + n)), bytes(64), 0)
                for n in range(KNOWN_MAX)
            ]
            told += KNOWN_MAX
            await send(channel, Known(tuple(heard), more=True))
        await trio.sleep_forever()

    async with directories(2) as (_, (a, b)):
        b.advertise()
        await a.directory.exchange(b.id)
        a.directory.view._verify = lambda *_: True
        b.transport.handle(DIRECTORY, babble)
        a.directory.follow(OTHER)  # of which it asks for everything
        for _ in range(3):
            with pytest.raises(RemoteProtocolError, match=r"never stops sending|sends too many"):
                await a.directory.exchange(b.id)
        before = a.directory.view.get(identities[0].peer_id)
        assert before
        assert before.parsed.advertisement.sequence < TOLD_MAX
