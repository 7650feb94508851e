"""A relay is lost, and the peer behind it lives: its rows are not computed again."""

from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from itertools import pairwise

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.errors import ChannelClosed, PeerUnavailable
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Expect, Expecting, Hop, Opened, Step
from peers.serving.stage_session import REOPEN_PAUSE_S, REOPEN_S_MAX
from peers.steps.messaging import SESSION, RefusedError, receive, send
from tests.peers.asking.test_recovery import Spares, harmed
from tests.support.swarm import (
    CHAINS,
    GOOD_ROW,
    GREEDY,
    KEYS,
    ME,
    PEERS,
    PROMPT,
    Swarm,
    Talk,
    expected,
    opening_of,
    peer,
    swarm,
)

ROUND_TRIP_S = 0.02
RELAYS = [peer("relay0"), peer("relay1")]


def behind_relays(hop: Hop) -> Hop:
    """Return a hop that is called through either of two relays."""
    ways = tuple(f"/memory/0/p2p/{relay}/p2p-circuit/p2p/{hop.peer}" for relay in RELAYS)
    return Hop(hop.peer, ways, hop.first, hop.end)


@asynccontextmanager
async def hidden(stages: int = 3, *, evidence: bool = False) -> AsyncIterator[Swarm]:
    """Run a chain whose peers are all called through relays, with 10 ms one way."""
    async with swarm(CHAINS[stages], evidence=evidence) as made:
        made.network.latency_s = lambda a, b: ROUND_TRIP_S / 2
        made.route[:] = map(behind_relays, made.route)
        yield made


def cut_off(made: Swarm, *pairs: tuple[PeerId, PeerId]) -> Callable[[], None]:
    """Return what breaks all connections between some peers, as the end of their relay does."""
    cut = {frozenset(pair) for pair in pairs}
    return lambda: made.network.sever(lambda one, other: frozenset((one, other)) in cut)


WAYS = {
    "the first": [(ME, PEERS[0])],
    "the middle": [(ME, PEERS[1])],
    "the last": [(ME, PEERS[2])],
    "all of the requester's": [(ME, other) for other in PEERS[:3]],
    "all of the middle's": [(other, PEERS[1]) for other in (ME, PEERS[0], PEERS[2])],
    "every one": [
        *((ME, other) for other in PEERS[:3]), (PEERS[0], PEERS[1]), (PEERS[1], PEERS[2]),
    ],
}  # fmt: skip


@pytest.mark.parametrize("ways", WAYS)
async def test_a_lost_relay_costs_no_row(ways: str, autojump_clock: MockClock) -> None:
    """The tokens are the same, and no stage computes anything a second time."""
    async with hidden() as made:
        spares, began = Spares(made), trio.current_time()
        found = await harmed(spares, 5, cut_off(made, *WAYS[ways]))
        assert found == await expected(PROMPT, 30, CHAINS[3])
        assert [stage.rows for stage in made.stages] == [len(PROMPT) + 29] * 3
        assert spares.waits == []
        assert trio.current_time() - began < 10.0


async def test_a_lost_relay_costs_few_round_trips(autojump_clock: MockClock) -> None:
    """To open, to hear what each stage holds, and to have them linked: no question comes twice."""
    async with hidden() as made:
        lose, times = cut_off(made, *WAYS["every one"]), list[float]()
        async with (
            Spares(made).open() as session,
            aclosing(session.generate(PROMPT, GREEDY, 20)) as tokens,
        ):
            async for _ in tokens:
                times.append(trio.current_time())
                if len(times) == 5:
                    lose()
        gaps = [after - before for before, after in pairwise(times)]
        assert max(gaps) - min(gaps) < 5.5 * ROUND_TRIP_S


async def test_a_lost_relay_costs_no_row_of_two_stages(autojump_clock: MockClock) -> None:
    """The first one also loses its way to the last, and is asked for it again."""
    async with hidden(2) as made:
        lose = cut_off(made, (ME, PEERS[0]), (ME, PEERS[1]), (PEERS[0], PEERS[1]))
        found = await harmed(Spares(made), 5, lose)
        assert found == await expected(PROMPT, 30, CHAINS[2])
        assert [stage.rows for stage in made.stages] == [len(PROMPT) + 29] * 2


async def test_a_peer_that_began_again_computes_what_it_lacks(autojump_clock: MockClock) -> None:
    """Where the session is gone all the same, it is opened there again, as ever."""
    async with hidden() as made:
        stage = made.stages[1]

        def lose_it() -> None:
            cut_off(made, *WAYS["the middle"])()
            for session in stage._sessions.values():
                session._received = 0  # as if no step had come: it does not outlive its channel

        found = await harmed(Spares(made), 5, lose_it)
        assert found == await expected(PROMPT, 30, CHAINS[3])
        rows = [each.rows for each in made.stages]
        assert rows[::2] == [len(PROMPT) + 29] * 2
        assert rows[1] > len(PROMPT) + 29


async def test_receipts_join_up_after_a_lost_relay(autojump_clock: MockClock) -> None:
    """The stage goes on with the record that it has: one chain of receipts, without a gap."""
    async with hidden(evidence=True) as made:
        me, names = KEYS[0].peer_id, [key.peer_id for key in KEYS[1:4]]
        spares, found = Spares(made), list[int]()
        async with spares.open() as session:
            async for token in session.generate(PROMPT, GREEDY, 20):
                found.append(token.id)
                if len(found) == 5:
                    cut_off(made, (me, names[1]))()
            assert session.evidence
            assert await session.evidence.settle(len(session.tokens)) is None
        assert found == await expected(PROMPT, 20, CHAINS[3])


async def began(made: Swarm) -> Talk:
    """Open a session by hand, and run a row through it."""
    talk = await Talk.open(made)
    await talk.send_step(0, GOOD_ROW, 1)
    await receive(talk.exit, Step)
    return talk


async def test_an_abandoned_session_is_freed_after_a_moment(autojump_clock: MockClock) -> None:
    """It holds its cells for as long as its requester may take to come another way."""
    async with swarm() as made:
        await began(made)
        cut_off(made, *WAYS["every one"])()
        await trio.sleep(REOPEN_S_MAX - 0.1)
        assert [stage.sessions for stage in made.stages] == [1, 1, 1]
        await trio.sleep(0.2)
        assert [stage.sessions for stage in made.stages] == [0, 0, 0]


async def test_a_session_that_was_closed_is_freed_at_once(autojump_clock: MockClock) -> None:
    """A requester that ends its channel needs the cells no more; nor does one that ran nothing."""
    async with swarm() as made:
        talk = await began(made)
        await talk.close()
        await trio.sleep(0.1)
        assert [stage.sessions for stage in made.stages] == [0, 0, 0]
        await Talk.open(made, 98)
        cut_off(made, *WAYS["every one"])()
        await trio.sleep(0.1)
        assert [stage.sessions for stage in made.stages] == [0, 0, 0]


async def test_the_newest_channel_counts(autojump_clock: MockClock) -> None:
    """A requester may notice first that a relay is gone: the old channel seems to live here."""
    async with swarm() as made:
        talk = await began(made)
        control = await made.me.open(PEERS[0], SESSION)
        await send(control, opening_of(made, 0))
        await receive(control, Opened)
        await send(control, Expect(1, ME))
        assert (await receive(control, Expecting)).received == 1
        with pytest.raises(ChannelClosed):
            await receive(talk.controls[0])
        await talk.send_step(1, GOOD_ROW, 1)
        await receive(talk.exit, Step)
        await control.close()
        await talk.close()


async def test_nobody_reopens_anothers_session(autojump_clock: MockClock) -> None:
    """Nor does its owner as another one, or again and again: each is refused, and it goes on."""
    async with swarm() as made:
        talk = await began(made)
        opened = opening_of(made, 0)
        async with made.network.join(peer("stranger")) as stranger:
            theirs = evolve(opened, requester=stranger.peer_id)
            for first in (theirs, opened):
                channel = await stranger.open(PEERS[0], SESSION)
                await send(channel, first)
                with pytest.raises(RefusedError, match="bad-request"):
                    await receive(channel)
        for wrong in (evolve(opened, context=10), evolve(opened, end=opened.end - 1)):
            channel = await made.me.open(PEERS[0], SESSION)
            await send(channel, wrong)
            with pytest.raises(RefusedError, match="as another one"):
                await receive(channel)
        assert made.stages[0].sessions == 1
        kept = await made.me.open(PEERS[0], SESSION)
        await send(kept, opened)
        await receive(kept, Opened)
        for _ in range(20):
            channel = await made.me.open(PEERS[0], SESSION)
            await send(channel, opened)
            with pytest.raises(RefusedError, match="again and again"):
                await receive(channel)
        await trio.sleep(REOPEN_PAUSE_S)
        again = await made.me.open(PEERS[0], SESSION)
        await send(again, opened)
        await receive(again, Opened)
        with pytest.raises(PeerUnavailable):
            await receive(kept)
        await talk.send_step(1, GOOD_ROW, 1)
        await receive(talk.exit, Step)
        await again.close()
        await talk.close()
