"""A client of a swarm respects a refusal for the given time, and asks other peers meanwhile."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.errors import NobodyServes
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.messages import Refusal
from peers.asking.client import CALL_S_MAX, Asked, SwarmClient
from peers.serving.dispatcher import Dispatcher
from peers.serving.door import Door
from peers.serving.stage import Stage
from peers.steps.messaging import RefusedError
from scheduler.admission import WAIT_S_MAX
from tests.support.fake_engines import FakeEnds, FakeStage
from tests.support.oracle import Oracle
from tests.support.swarm import CONTEXT, ME, MODEL, PROMPT, answer, expected, peer
from transports.memory.network import MemoryNetwork

LENGTH = 60
"""Tokens of an answer."""


class Known:
    """A directory that knows every peer."""

    def __init__(self) -> None:
        self.offers: list[Advertisement] = []
        self.frozen: set[PeerId] = set()
        """Known peers that answer no calls."""
        self.refusing: set[PeerId] = set()

    def serving(self, _: ModelId) -> Sequence[Advertisement]:
        """Return the serving peers."""
        return self.offers

    holding = serving

    def models(self) -> dict[ModelId, str]:
        """Return the one model."""
        return {MODEL: "toy"}

    async def exchange(self, who: PeerId) -> None:
        """Compare views with a peer."""
        if who in self.frozen:
            await trio.sleep_forever()
        if who in self.refusing:
            raise RefusedError.of(who, Refusal.BUSY, "too often")

    async def enter(self, ways_in: Sequence[str]) -> list[Any]:
        """Learn nothing."""
        return []


@asynccontextmanager
async def asking(
    names: Sequence[PeerId], find_s_max: float = 120.0, *, drafts: bool = False
) -> AsyncIterator[tuple[SwarmClient, Known]]:
    """Run peers that have room for one session each, and a client."""
    network, known, counter = MemoryNetwork(), Known(), iter(range(1, 1000))
    async with AsyncExitStack() as stack:
        me = await stack.enter_async_context(network.join(ME))
        for name in names:
            transport = await stack.enter_async_context(network.join(name))
            stages = Dispatcher(transport)
            engine = FakeStage(1, 29, sessions=1, context=CONTEXT)
            stages.add(Stage(transport, engine, MODEL), Door(1, CONTEXT))
            stages.listen()
            offer = Advertisement(
                name, tuple(transport.addresses), MODEL, "toy", 30, 1, 29, CONTEXT, "0" * 32, 1
            )
            known.offers.append(offer)
        nursery = await stack.enter_async_context(trio.open_nursery())
        directory: Any = known
        yield (
            SwarmClient(
                nursery,
                me,
                directory,
                FakeEnds(context=CONTEXT, sessions=4),
                Asked(MODEL, "toy", (), find_s_max),
                lambda size: next(counter).to_bytes(size, "big"),
                drafts=drafts,
            ),
            known,
        )
        nursery.cancel_scope.cancel()


async def refusal(client: SwarmClient) -> RefusedError:
    """Ask again although no place is left; return the refusal."""
    route = await client.find_route(lambda _: None)
    with pytest.raises(RefusedError) as refused:
        async with client.open_session(route):
            pass
    return refused.value


async def test_client_waits_as_long_as_a_refusal_says(autojump_clock: MockClock) -> None:
    """It asks no peer before that; the person is told how long it takes; then it works."""
    told: list[str] = []
    async with asking([peer("a")]) as (client, _):
        route = await client.find_route(told.append)
        async with client.open_session(route) as session:
            assert await answer(session, PROMPT, 2)
            refused = await refusal(client)
            assert refused.refused.code is Refusal.BUSY
            retry_s = refused.refused.retry_ms / 1000
            assert retry_s > WAIT_S_MAX
        assert told == []
        refused_s = trio.current_time()
        route = await client.find_route(told.append)
        assert trio.current_time() - refused_s == pytest.approx(retry_s)
        assert told == [f"all sessions are taken; trying again in {retry_s:.1f} s …"]
        async with client.open_session(route) as session:
            assert await answer(session, PROMPT, 2)


async def test_another_peer_is_asked_meanwhile(autojump_clock: MockClock) -> None:
    """If another peer has room, a refusal costs no wait."""
    async with asking([peer("a"), peer("b")]) as (client, _):
        busy = await client.find_route(lambda _: None)
        async with client.open_session(busy):
            with pytest.raises(RefusedError):
                async with client.open_session(busy):
                    pass
            asked_s = trio.current_time()
            (other,) = await client.find_route(lambda _: None)
            assert other.peer != busy[0].peer
            assert trio.current_time() == asked_s
            async with client.open_session([other]) as session:
                assert await answer(session, PROMPT, 2)


async def test_own_sessions_count_at_once(autojump_clock: MockClock) -> None:
    """The next one goes elsewhere, although the first place is not advertised as taken yet."""
    async with asking([peer("a"), peer("b")]) as (client, _):
        for _ in range(10):
            route = await client.find_route(lambda _: None)
            async with client.open_session(route):
                (other,) = await client.find_route(lambda _: None)
                assert other.peer != route[0].peer


async def test_client_that_stops_waiting_says_why(autojump_clock: MockClock) -> None:
    """A client waits for ``find_s_max`` and no longer."""
    async with (
        asking([peer("a")], find_s_max=5.0) as (client, _),
        client.open_session(await client.find_route(lambda _: None)),
    ):
        await refusal(client)
        asked_s = trio.current_time()
        with pytest.raises(NobodyServes, match="all sessions are taken"):
            await client.find_route(lambda _: None)
        assert trio.current_time() - asked_s == pytest.approx(5)


async def test_failed_peer_is_avoided_until_it_is_heard_of_again(
    autojump_clock: MockClock,
) -> None:
    """Its advertisement must be newer than its failure."""
    async with asking([peer("a"), peer("b")]) as (client, known):
        failed = (await client.find_route(lambda _: None))[0].peer
        client._note_failed(RefusedError.of(failed, Refusal.ENGINE_FAILED, "it died"))
        assert client.failed() == {failed}
        for _ in range(20):
            assert (await client.find_route(lambda _: None))[0].peer != failed
        known.offers = [offer for offer in known.offers if offer.peer == failed]
        assert (await client.find_route(lambda _: None))[0].peer == failed


async def test_frozen_peer_is_trouble_if_no_other_holds_its_layers(
    autojump_clock: MockClock,
) -> None:
    """It has not left, so its advertisement still counts; a peer that refuses is alive."""
    one, two = peer("one"), peer("two")
    async with asking([one, two]) as (client, known):
        assert await client.trouble() == ""
        known.frozen = {one}
        known.refusing = {two}
        assert await client.trouble() == ""
        known.frozen = {one, two}
        before = trio.current_time()
        trouble = await client.trouble()
        assert trouble.startswith("nobody serves layers 1:29")
        assert trouble.endswith(" do not answer")
        assert one[-6:] in trouble
        assert two[-6:] in trouble
        assert trio.current_time() - before == 2 * CALL_S_MAX
        known.offers = []
        assert "nobody serves layers 1:29" in await client.trouble()


async def test_a_model_whose_peers_cannot_be_called_is_not_another(
    autojump_clock: MockClock,
) -> None:
    """They are hidden, or do not answer; the asker reads which layers are missing."""
    async with asking([peer("a")], find_s_max=5.0) as (client, known):
        known.offers.clear()
        with pytest.raises(NobodyServes, match="no chain of peers for toy: nobody serves"):
            await client.find_route(lambda _: None)


@pytest.mark.parametrize("drafts", [False, True])
async def test_who_drafts_weighs_the_slowest_stage(
    drafts: bool, oracle: type[Oracle], autojump_clock: MockClock
) -> None:
    """A longer chain of quicker stages is taken once tokens have come as they were drafted."""
    oracle.answer = await expected(PROMPT, LENGTH, [1, 29])
    async with asking([peer("a")], drafts=drafts) as (client, known):
        whole = evolve(known.offers[0], row_us=50_000)
        known.offers.clear()
        halves = [
            evolve(whole, peer=peer(name), first=first, end=end)
            for name, first, end in (("b", 1, 15), ("c", 15, 29))
        ]
        known.offers += [whole, *halves]
        route = await client.find_route(lambda _: None)
        assert [hop.peer for hop in route] == [whole.peer]
        for _ in range(3):
            async with client.open_session(route) as session:
                assert await answer(session, PROMPT, LENGTH) == oracle.answer
        route = await client.find_route(lambda _: None)
        assert [hop.end for hop in route] == ([15, 29] if drafts else [29])
