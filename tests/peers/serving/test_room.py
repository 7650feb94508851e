"""A peer whose places are all taken, and how many of them one requester may have."""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.limits import SESSIONS_PER_REQUESTER_DEFAULT
from p2pinfer.core.messages import Attach, Attached, Hop, Idle, Link, Linked, Open, Opened, Refusal
from peers.asking.session import Requester
from peers.serving.dispatcher import Dispatcher
from peers.serving.door import Door
from peers.serving.stage import Stage
from peers.serving.stage_session import QUIET_S, SILENT_S_MAX
from peers.steps.messaging import SESSION, RefusedError, receive, send
from tests.support.fake_engines import FakeEnds, FakeStage
from tests.support.swarm import (
    CONTEXT,
    GREEDY,
    ME,
    MODEL,
    PROMPT,
    answer,
    expected,
    peer,
    session_id,
)
from transports.base import Channel
from transports.memory.network import MemoryNetwork, MemoryTransport

NODE, MANY = peer("node"), peer("many")


@dataclass(frozen=True)
class Crowd:
    """A peer with few places, a requester that has taken several of them, and another."""

    stage: Stage
    hop: Hop
    greedy: MemoryTransport
    me: MemoryTransport
    nursery: trio.Nursery

    def requester(self, transport: MemoryTransport) -> Requester:
        """Make a requester on a transport."""
        return Requester(self.nursery, transport, FakeEnds(context=CONTEXT), MODEL)


@asynccontextmanager
async def crowd(places: int, most: int = SESSIONS_PER_REQUESTER_DEFAULT) -> AsyncIterator[Crowd]:
    """Run a peer with ``places`` places, ``most`` for one requester, while the block lasts."""
    network = MemoryNetwork()
    async with (
        network.join(NODE) as node,
        network.join(MANY) as greedy,
        network.join(ME) as me,
        trio.open_nursery() as nursery,
    ):
        stages, engine = Dispatcher(node), FakeStage(1, 29, sessions=places, context=CONTEXT)
        stage = Stage(node, engine, MODEL, sessions_per_requester=most)
        stages.add(stage, Door(places, places * CONTEXT))
        stages.listen()
        yield Crowd(stage, Hop(NODE, tuple(node.addresses), 1, 29), greedy, me, nursery)
        nursery.cancel_scope.cancel()


async def open_half(greedy: MemoryTransport, number: int) -> Channel:
    """Open a session, and report it as idle."""
    control = await greedy.open(NODE, SESSION)
    opened = Open(session_id(number), MODEL, MANY, MANY, 1, 29, CONTEXT)
    await send(control, opened)
    await receive(control, Opened)
    await send(control, Idle(0))
    return control


@pytest.mark.parametrize(
    ("places", "waited_s", "is_welcome"),
    [(4, QUIET_S + 1, True), (4, 1.0, False), (2, QUIET_S + 1, True), (1, QUIET_S + 1, False)],
)
async def test_quiet_sessions_of_the_greedy_make_room(
    places: int, waited_s: float, is_welcome: bool, autojump_clock: MockClock
) -> None:
    """A requester with several loses its quietest session to a requester that has none."""
    async with crowd(places) as made:
        first, *_ = [await open_half(made.greedy, number) for number in range(places)]
        await trio.sleep(waited_s)
        opening = made.requester(made.me).open([made.hop], session_id(99), CONTEXT)
        if is_welcome:
            async with opening as session:
                assert await answer(session, PROMPT) == await expected(PROMPT, 20, (1, 29))
            with pytest.raises(RefusedError, match="another requester needs the place") as caught:
                await receive(first)
            assert caught.value.refused.code is Refusal.IDLE
        else:
            with pytest.raises(RefusedError, match="all sessions are taken"):
                await opening.__aenter__()


async def test_no_room_is_made_in_anothers_name(autojump_clock: MockClock) -> None:
    """The greedy requester cannot replace its own quiet session under another's name."""
    async with crowd(3) as made:
        held = [await open_half(made.greedy, number) for number in range(3)]
        await trio.sleep(QUIET_S + 1)
        control = await made.greedy.open(NODE, SESSION)
        await send(control, Open(session_id(9), MODEL, ME, ME, 1, 29, CONTEXT))
        with pytest.raises(RefusedError, match="all sessions are taken"):
            await receive(control, Opened)
        assert made.stage.sessions == len(held)


async def test_an_answer_is_not_ended_however_long_its_next_step_takes(
    autojump_clock: MockClock,
) -> None:
    """A stage cannot see why no step comes; only the requester can report a pause."""
    whole = await expected(PROMPT, 20, (1, 29))
    async with crowd(2) as made:
        first, second = made.requester(made.greedy), made.requester(made.me)
        async with (
            first.open([made.hop], session_id(1), CONTEXT) as one,
            first.open([made.hop], session_id(2), CONTEXT) as other,
            aclosing(one.generate(PROMPT, GREEDY, 20)) as tokens,
            aclosing(other.generate(PROMPT, GREEDY, 20)) as others,
        ):
            found = [(await anext(each)).id for each in (tokens, others)]
            await trio.sleep(10 * QUIET_S)
            with pytest.raises(RefusedError, match="all sessions are taken"):
                await second.open([made.hop], session_id(3), CONTEXT).__aenter__()
            assert [found[0], *[token.id async for token in tokens]] == whole
            await trio.sleep(QUIET_S + 1)
            async with second.open([made.hop], session_id(4), CONTEXT) as session:
                assert await answer(session, PROMPT) == whole
            assert [found[1], *[token.id async for token in others]] == whole


@pytest.mark.parametrize("waited_s", [SILENT_S_MAX - 1, SILENT_S_MAX + 1])
async def test_a_silent_session_makes_room_in_the_end(
    waited_s: float, autojump_clock: MockClock
) -> None:
    """A requester that never reports an answer's end keeps its place for the slowest answer."""
    async with crowd(2) as made:
        held = []
        for number in range(2):
            for first, agrees in (
                (Open(session_id(number), MODEL, MANY, MANY, 1, 29, CONTEXT), Opened),
                (Link(session_id(number)), Linked),
                (Attach(session_id(number)), Attached),
            ):
                held.append(await made.greedy.open(NODE, SESSION))
                await send(held[-1], first)
                await receive(held[-1], agrees)
        await trio.sleep(waited_s)
        newcomer = await made.me.open(NODE, SESSION)
        await send(newcomer, Open(session_id(9), MODEL, ME, ME, 1, 29, CONTEXT))
        if waited_s > SILENT_S_MAX:
            await receive(newcomer, Opened)
        else:
            with pytest.raises(RefusedError, match="all sessions are taken"):
                await receive(newcomer, Opened)


@pytest.mark.parametrize("most", [SESSIONS_PER_REQUESTER_DEFAULT, 12])
async def test_one_requester_has_as_many_sessions_as_the_owner_lets_it(
    most: int, autojump_clock: MockClock
) -> None:
    """The next one is refused as busy, though there is room for others."""
    async with crowd(16, most) as made:
        for number in range(most):
            await open_half(made.greedy, number)
        with pytest.raises(RefusedError, match=f"may have {most} sessions") as caught:
            await open_half(made.greedy, most)
        assert caught.value.refused.code is Refusal.BUSY
        async with made.requester(made.me).open([made.hop], session_id(99), CONTEXT):
            assert made.stage.sessions == most + 1
