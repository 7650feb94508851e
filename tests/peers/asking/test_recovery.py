"""A peer dies in the middle of an answer, and the answer continues with the same tokens."""

from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.errors import NoReplacement, PeerUnavailable
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Hop
from peers.asking.repair import WAIT_S_MAX, Neighbours, Repair
from peers.asking.session import Session
from peers.asking.stage_handle import STILL_S_MAX
from peers.serving.stage_session import RELINKED_S_MAX
from peers.steps.history import Budget
from peers.steps.messaging import SESSION
from tests.support.fake_engines import FakeStage
from tests.support.oracle import Oracle
from tests.support.swarm import (
    CHAINS,
    CONTEXT,
    GREEDY,
    ME,
    PEERS,
    PROMPT,
    Swarm,
    answer,
    expected,
    peer,
    session_id,
    swarm,
)
from transports.base import Channel
from transports.identity import Identity

SPARES = [peer(f"spare{number}") for number in range(9)]


class Spares:
    """Peers that could replace another, and what the session reported meanwhile."""

    def __init__(self, made: Swarm) -> None:
        self.made, self.first = made, len(made.route)
        self.hops: list[Hop] = []
        self.waits: list[str] = []
        self.routes: list[list[str]] = []

    async def add(self, first: int, end: int, identity: Identity | None = None) -> FakeStage:
        """Start a spare peer that serves layers, with receipts if it has a key."""
        engine = FakeStage(first, end, context=CONTEXT)
        name = identity.peer_id if identity else SPARES[len(self.hops)]
        await self.made.nursery.start(self.made.add, name, engine, identity)
        self.hops.append(self.made.route.pop())
        return engine

    def repair(self) -> Repair:
        """Return a repair that uses the spares."""
        return Repair(
            self._choose,
            self.waits.append,
            on_route=lambda route: self.routes.append([hop.peer for hop in route]),
        )

    def open(self) -> AbstractAsyncContextManager[Session]:
        """Open a session that repairs itself."""
        made = self.made
        return made.requester.open(made.route, session_id(), CONTEXT, self.repair())

    def _choose(
        self, layers: LayerRange, between: Neighbours, without: Collection[str]
    ) -> Sequence[Hop]:
        found: list[Hop] = []
        at = layers.first
        for hop in sorted(self.hops, key=lambda hop: hop.first):
            if hop.first == at < layers.end and hop.peer not in without:
                at = min(hop.end, layers.end)
                found.append(Hop(hop.peer, hop.addresses, hop.first, at))
        if at != layers.end:
            raise LookupError(f"nobody serves layers {at}:{layers.end}")
        return found

    def leave(self, number: int) -> None:
        """Take a spare off the network."""
        self.made.leave[self.first + number]()


@asynccontextmanager
async def mended(
    bounds: Sequence[int] = CHAINS[3], *, evidence: bool = False, drafts: bool = False
) -> AsyncIterator[tuple[Swarm, Spares]]:
    """Run a chain over links of 10 ms."""
    async with swarm(bounds, evidence=evidence, drafts=drafts) as made:
        made.network.latency_s = lambda a, b: 0.01
        yield made, Spares(made)


async def harmed(spares: Spares, at: int, harm: Callable[[], object], count: int = 30) -> list[int]:
    """Return an answer in which harm is done after the token numbered ``at``."""
    found = []
    async with (
        spares.open() as session,
        aclosing(session.generate(PROMPT, GREEDY, count)) as tokens,
    ):
        async for token in tokens:
            found.append(token.id)
            if len(found) == at:
                harm()
    return found


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_a_lost_stage_is_replaced(lost: int, autojump_clock: MockClock) -> None:
    """First, middle or last: the others stay, and the tokens are the same."""
    async with mended() as (made, spares):
        bounds = CHAINS[3]
        await spares.add(bounds[lost], bounds[lost + 1])
        found = await harmed(spares, 5, made.leave[lost])
        assert found == await expected(PROMPT, 30, bounds)
        route = [*PEERS[:3]]
        assert spares.routes == [route, [*route[:lost], SPARES[0], *route[lost + 1 :]]]
        others = [stage.rows for n, stage in enumerate(made.stages[:3]) if n != lost]
        assert others == [len(PROMPT) + 29] * 2  # the remaining stages ran nothing again


@pytest.mark.parametrize("right", [0.5, 1.0])
@pytest.mark.parametrize("at", [12, 15, 19])
async def test_a_stage_is_lost_while_drafts_are_under_way(
    at: int, right: float, oracle: type[Oracle], autojump_clock: MockClock
) -> None:
    """Its replacement gets the rows that count, and those on their way; the tokens are the same."""
    bounds, count = CHAINS[3], 40
    oracle.right, oracle.answer = right, await expected(PROMPT, count, bounds)
    async with mended(drafts=True) as (made, spares):
        for _ in range(3):
            await spares.add(1, 29)
        found = []
        async with (
            spares.open() as session,
            aclosing(session.generate(PROMPT, GREEDY, count)) as tokens,
        ):
            async for token in tokens:
                found.append(token.id)
                if len(found) == at:
                    made.leave[at % 3]()
            assert session.drafts.kept
        assert found == oracle.answer


async def test_several_lost_at_once_are_replaced(autojump_clock: MockClock) -> None:
    """Neighbours or not; one peer may replace several, or several one."""
    bounds = CHAINS[5]
    for lost, places in [
        ((1, 2), [(2, 10)]),
        ((0, 3), [(1, 2), (10, 20), (20, 28)]),
        ((0, 1, 2, 3, 4), [(1, 29)]),
        ((3, 4), [(10, 28), (28, 29)]),
    ]:
        async with mended(bounds) as (made, spares):
            for place in places:
                await spares.add(*place)
            found = await harmed(spares, 7, lambda: [made.leave[n]() for n in lost])  # noqa: B023
            assert found == await expected(PROMPT, 30, bounds)


async def test_a_long_chain_is_mended_as_fast_as_a_short_one(autojump_clock: MockClock) -> None:
    """All are opened at once, then all linked at once: a repair is a fixed number of messages."""
    pauses: dict[int, float] = {}
    for stages in (2, 5):
        bounds = CHAINS[stages]
        async with mended(bounds) as (made, spares):
            made.network.latency_s = lambda a, b: 0.01 if ME in (a, b) else 0.0
            for first, end in pairwise(bounds):
                await spares.add(first, end)
            times = []
            async with (
                spares.open() as session,
                aclosing(session.generate(PROMPT, GREEDY, 20)) as tokens,
            ):
                async for _ in tokens:
                    times.append(trio.current_time())
                    if len(times) == 5:
                        for leave in made.leave[:stages]:
                            leave()
            pauses[stages] = max(after - before for before, after in pairwise(times))
    assert pauses[5] == pytest.approx(pauses[2])


async def test_a_replacement_stops_where_the_next_stage_begins(autojump_clock: MockClock) -> None:
    """A replacement that holds more layers than were lost runs only those."""
    async with mended() as (made, spares):
        await spares.add(10, 25)
        found = await harmed(spares, 3, made.leave[1])
        assert found == await expected(PROMPT, 30, CHAINS[3])


@pytest.mark.parametrize(
    ("places", "route"),
    [
        ([(1, 20)], [SPARES[0], PEERS[2]]),
        ([(1, 15), (15, 29)], [*SPARES[:2], PEERS[2]]),
        ([(1, 15), (15, 29), (10, 20)], [PEERS[0], SPARES[2], PEERS[2]]),
    ],
)
async def test_replacements_may_be_cut_at_other_layers(
    places: list[tuple[int, int]], route: list[str], autojump_clock: MockClock
) -> None:
    """If no peer holds exactly the lost layers, the stages before are replaced as well."""
    async with mended() as (made, spares):
        for place in places:
            await spares.add(*place)
        found = await harmed(spares, 7, made.leave[1])
        assert found == await expected(PROMPT, 30, CHAINS[3])
        assert spares.routes[-1] == route
        assert not spares.waits


async def test_session_ends_when_its_history_was_dropped(autojump_clock: MockClock) -> None:
    """The requester's own history is bounded too; beyond that a session ends and says why."""
    async with mended() as (made, spares):
        made.requester._budget = Budget(memory_bytes_max=0, disk_bytes_max=0)
        await spares.add(1, 10)
        with pytest.raises(PeerUnavailable, match="no longer kept"):
            await harmed(spares, 25, made.leave[0])


@pytest.mark.parametrize("moment", range(10, 50))
async def test_stage_lost_during_the_prompt_is_replaced(
    moment: int, autojump_clock: MockClock
) -> None:
    """At any moment, and then another stage is lost while the session is being repaired."""
    bounds = CHAINS[3]
    async with mended() as (made, spares):
        for engine in made.engines:
            engine.machine.decode_s = 0.02
        for first, end in [(10, 20), (10, 20), (1, 10), (20, 29)]:
            await spares.add(first, end)
        found: list[int] = []

        async def ask() -> None:
            async with spares.open() as session:
                found.extend(await answer(session, PROMPT, 8))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await trio.sleep(0.01 * moment)
            made.leave[1]()
            await trio.sleep(0.007 * moment)
            spares.leave(0)
            made.leave[2 * (moment % 2)]()
        assert found == await expected(PROMPT, 8, bounds)


async def test_replacements_may_be_lost_too(autojump_clock: MockClock) -> None:
    """One after another; the tokens stay the same."""
    async with mended() as (made, spares):
        for _ in range(4):
            await spares.add(10, 20)
        found = []
        harm = [made.leave[1], *(lambda n=n: spares.leave(n) for n in range(3))]
        async with (
            spares.open() as session,
            aclosing(session.generate(PROMPT, GREEDY, 40)) as tokens,
        ):
            async for token in tokens:
                found.append(token.id)
                if len(found) % 9 == 0 and harm:
                    harm.pop(0)()
        assert found == await expected(PROMPT, 40, CHAINS[3])
        assert spares.routes[-1] == [PEERS[0], SPARES[3], PEERS[2]]


async def test_a_repaired_session_serves_another_turn(autojump_clock: MockClock) -> None:
    """Rows dropped before a loss stay dropped, and rows kept are not run again."""
    async with mended() as (made, spares), spares.open() as session:
        await spares.add(10, 20)
        await answer(session, PROMPT)
        other = [*PROMPT[:50], 7, 8, 9]
        await answer(session, other, 9)
        made.leave[1]()
        await trio.sleep(1)
        before = [made.stages[n].rows for n in (0, 2)]
        again = [*other, 5]
        assert await answer(session, again, 9) == await expected_after(PROMPT, other, again)
        assert [made.stages[n].rows - rows for n, rows in zip((0, 2), before, strict=True)] == [
            9,
            9,
        ]


async def expected_after(*turns: list[int]) -> list[int]:
    """Return the last answer of the same turns in an undisturbed session."""
    async with swarm() as made, made.open() as session:
        found = []
        for turn, count in zip(turns, (20, 9, 9), strict=True):
            found = await answer(session, turn, count)
        return found


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_an_engine_that_dies_is_replaced(lost: int, autojump_clock: MockClock) -> None:
    """Its peer lives, reports it, and may continue to serve when no other peer can."""
    for has_spare in (True, False):
        async with mended() as (made, spares):
            if has_spare:
                await spares.add(CHAINS[3][lost], CHAINS[3][lost + 1])
            else:
                spares.hops = [made.route[lost]]
            found = await harmed(spares, 5, made.engines[lost].machine.die)
            assert found == await expected(PROMPT, 30, CHAINS[3])
            assert spares.routes[-1][lost] == (SPARES[0] if has_spare else PEERS[lost])


async def test_a_peer_that_failed_once_is_asked_again(autojump_clock: MockClock) -> None:
    """Its engine was restarted; when its replacement dies, it takes over at once."""
    async with mended() as (made, spares), spares.open() as session:
        await spares.add(10, 20)
        spares.hops.append(made.route[1])  # after the spare that will be gone but still advertised
        first = await answer(session, PROMPT)
        made.engines[1].machine.die()
        assert await answer(session, PROMPT) == first
        spares.leave(0)
        since = trio.current_time()
        right = await expected([*PROMPT, 7], 20, CHAINS[3], held=len(PROMPT))
        assert await answer(session, [*PROMPT, 7]) == right
        assert trio.current_time() - since < 3
        assert spares.routes[-1] == PEERS[:3]
        assert [row[1] for row in spares.routes] == [PEERS[1], SPARES[0], PEERS[1]]


async def test_answer_waits_for_a_replacement(autojump_clock: MockClock) -> None:
    """Without a replacement the answer waits, says why, and goes on when one comes."""
    async with mended() as (made, spares), trio.open_nursery() as nursery:
        found: list[int] = []

        async def ask() -> None:
            found.extend(await harmed(spares, 5, made.leave[1]))

        nursery.start_soon(ask)
        await trio.sleep(WAIT_S_MAX / 2)
        assert not found
        assert spares.waits == [f"{PEERS[1]} went away, and nobody serves layers 10:20; waiting …"]
        await spares.add(10, 20)
        await trio.sleep(3)
        assert found == await expected(PROMPT, 30, CHAINS[3])


async def test_answer_ends_if_no_replacement_comes(autojump_clock: MockClock) -> None:
    """After a while, with an error that names the missing layers; all cells are free."""
    async with mended() as (made, spares), spares.open() as session:
        await answer(session, PROMPT, 3)
        made.leave[1]()
        with pytest.raises(NoReplacement, match="nobody serves layers 10:20") as caught:
            await answer(session, PROMPT)
        assert caught.value.peer == PEERS[1]
        await trio.sleep(1)
        assert [made.stages[n].sessions for n in (0, 2)] == [0, 0]
        assert WAIT_S_MAX < RELINKED_S_MAX


async def ignore(_: Channel) -> None:
    """Never answer."""
    await trio.sleep_forever()


async def test_a_replacement_that_refuses_is_passed_over(autojump_clock: MockClock) -> None:
    """Busy, gone, or silent: the next one is asked."""
    async with mended() as (made, spares):
        (await spares.add(10, 20)).machine.sessions = 0
        await spares.add(10, 20)
        spares.leave(1)
        await spares.add(10, 20)
        made.network.peers[SPARES[2]].handle(SESSION, ignore)
        await spares.add(10, 20)
        found = await harmed(spares, 5, made.leave[1])
        assert found == await expected(PROMPT, 30, CHAINS[3])
        assert spares.routes[-1][1] == SPARES[3]


async def test_a_requester_that_dies_frees_its_replacements_too(autojump_clock: MockClock) -> None:
    """Replacement peers free their cells like the others."""
    async with mended() as (made, spares):
        await spares.add(10, 20)
        async with spares.open() as session:
            await answer(session, PROMPT, 3)
            made.leave[1]()
            await answer(session, PROMPT, 3)
            assert [made.stages[n].sessions for n in (0, 2, 3)] == [1, 1, 1]
        await trio.sleep(1)
        assert [made.stages[n].sessions for n in (0, 2, 3)] == [0, 0, 0]


@pytest.mark.parametrize("leaving", [0, 1, 2])
async def test_a_stage_that_leaves_hands_over(leaving: int, autojump_clock: MockClock) -> None:
    """It is replaced while it still works; if no other peer can serve, it continues to the end."""
    for has_spare in (True, False):
        async with mended() as (made, spares):
            if has_spare:
                await spares.add(CHAINS[3][leaving], CHAINS[3][leaving + 1])
            found = await harmed(spares, 5, made.stages[leaving].hand_over)
            assert found == await expected(PROMPT, 30, CHAINS[3])
            assert spares.routes[-1][leaving] == (SPARES[0] if has_spare else PEERS[leaving])
            assert not spares.waits


@pytest.mark.parametrize("slow", [0, 1, 2])
async def test_a_slow_stage_is_replaced(slow: int, autojump_clock: MockClock) -> None:
    """In the middle of an answer, if another peer would be faster; only once."""
    async with mended() as (made, spares):
        await spares.add(CHAINS[3][slow], CHAINS[3][slow + 1])
        offers = [(slow, spares.hops)]
        repair = replace(spares.repair(), better=lambda: offers.pop() if offers else (0, ()))
        session = made.requester.open(made.route, session_id(), CONTEXT, repair)
        async with session as opened:
            assert await answer(opened, PROMPT, 60) == await expected(PROMPT, 60, CHAINS[3])
        assert spares.routes[-1][slow] == SPARES[0]
        assert not offers


async def test_a_stage_whose_engine_hangs_ends_the_session(autojump_clock: MockClock) -> None:
    """Its peer is alive, so no error is reported; the requester notices in the end."""
    async with mended() as (made, spares):

        def hang() -> None:
            made.engines[1].machine.line_up = lambda waiting: None  # type: ignore[method-assign]

        with pytest.raises(PeerUnavailable, match="no stage sent anything"):
            await harmed(spares, 5, hang)
        assert trio.current_time() < 1.5 * STILL_S_MAX


async def test_an_unused_session_is_not_taken_for_hung(autojump_clock: MockClock) -> None:
    """A person may think for a while between two questions."""
    async with mended() as (_, spares), spares.open() as session:
        before = await answer(session, PROMPT)
        await trio.sleep(3 * STILL_S_MAX)
        assert await answer(session, PROMPT) == before


async def test_a_caller_that_takes_its_time_blames_nobody(autojump_clock: MockClock) -> None:
    """A page that stops reading, or a person who pauses an answer: the rows wait here."""
    async with mended() as (_, spares), spares.open() as session:
        tokens = session.generate(PROMPT, GREEDY, 20)
        found = [(await anext(tokens)).id for _ in range(3)]
        await trio.sleep(3 * STILL_S_MAX)
        found += [token.id async for token in tokens]
        assert found == await answer(session, PROMPT, 20)
