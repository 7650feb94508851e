"""A peer whose places are all taken, and who must give one back."""

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.messages import Hop, Open, Opened, Refusal
from peers.door import Door
from peers.requester import Requester
from peers.served import QUIET_S
from peers.stage import Stage
from peers.stages import Stages
from peers.talk import SESSION, RefusedError, receive, send
from tests.engine.fakes import FakeEnds, FakeStage
from tests.peers.swarm import CONTEXT, ME, MODEL, PROMPT, answer, expected, peer, session_id
from transports.base import Channel
from transports.memory import MemoryNetwork, MemoryTransport

NODE, GREEDY = peer("node"), peer("greedy")


async def open_half(greedy: MemoryTransport, number: int) -> Channel:
    """Open a session, and do nothing with it."""
    control = await greedy.open(NODE, SESSION)
    opened = Open(session_id(number), MODEL, GREEDY, GREEDY, 1, 29, CONTEXT)
    await send(control, opened)
    await receive(control, Opened)
    return control


@pytest.mark.parametrize(
    ("places", "waited_s", "is_welcome"),
    [(4, QUIET_S + 1, True), (4, 1.0, False), (2, QUIET_S + 1, True), (1, QUIET_S + 1, False)],
)
async def test_quiet_sessions_of_the_greedy_make_room(
    places: int, waited_s: float, is_welcome: bool, autojump_clock: MockClock
) -> None:
    """Whoever has several loses the one that was quiet for longest to whoever has none."""
    network = MemoryNetwork()
    async with (
        network.join(NODE) as node,
        network.join(GREEDY) as greedy,
        network.join(ME) as me,
        trio.open_nursery() as nursery,
    ):
        stages = Stages(node)
        engine = FakeStage(1, 29, sessions=places, context=CONTEXT)
        stages.add(Stage(node, engine, MODEL), Door(places, places * CONTEXT))
        stages.listen()
        first, *_ = [await open_half(greedy, number) for number in range(places)]
        await trio.sleep(waited_s)
        requester = Requester(nursery, me, FakeEnds(context=CONTEXT), MODEL)
        hop = Hop(NODE, tuple(node.addresses), 1, 29)
        opening = requester.open([hop], session_id(99), CONTEXT)
        if is_welcome:
            async with opening as session:
                assert await answer(session, PROMPT) == await expected(PROMPT, 20, (1, 29))
            with pytest.raises(RefusedError, match="somebody else needs the place") as caught:
                await receive(first)
            assert caught.value.refused.code is Refusal.IDLE
        else:
            with pytest.raises(RefusedError, match="all sessions are taken"):
                await opening.__aenter__()
        nursery.cancel_scope.cancel()


async def test_nobody_makes_room_in_anothers_name(autojump_clock: MockClock) -> None:
    """The greedy one loses no quiet session to itself, whoever it says that it is."""
    network = MemoryNetwork()
    async with network.join(NODE) as node, network.join(GREEDY) as greedy:
        stages, engine = Stages(node), FakeStage(1, 29, sessions=3, context=CONTEXT)
        stage = Stage(node, engine, MODEL)
        stages.add(stage, Door(3, 3 * CONTEXT))
        stages.listen()
        held = [await open_half(greedy, number) for number in range(3)]
        await trio.sleep(QUIET_S + 1)
        control = await greedy.open(NODE, SESSION)
        await send(control, Open(session_id(9), MODEL, ME, ME, 1, 29, CONTEXT))
        with pytest.raises(RefusedError, match="all sessions are taken"):
            await receive(control, Opened)
        assert stage.sessions == len(held)
