"""A peer whose owner needs the machine: it accepts no sessions, and later serves again."""

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.advertisement import State
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Refusal
from peers.asking.session import Requester
from peers.steps.messaging import RefusedError
from scheduler.placement import CHECK_S
from tests.support.fake_engines import FakeEnds
from tests.support.servers import BOUNDS, SETTLE_S, World, decide, hops
from tests.support.swarm import CONTEXT, ME, MODEL, PROMPT, answer, session_id


async def test_a_resting_peer_accepts_no_session_and_hands_over_its_own(
    world: World, autojump_clock: MockClock
) -> None:
    """A session that can go nowhere else continues; the engine stays, and serves again later."""
    machine = await world.join(28)
    await trio.sleep(SETTLE_S / 4)
    (offer,) = world.board.serving()
    requester = Requester(world.nursery, world.me, FakeEnds(context=CONTEXT), MODEL)
    async with requester.open(hops([offer]), session_id(), CONTEXT) as session:
        whole = await answer(session, PROMPT, 4)
        machine.server.rest("on battery")
        assert world.board.said[machine.transport.peer_id].state is State.DRAINING
        with pytest.raises(RefusedError, match="rests: on battery") as refused:
            async with requester.open(hops([offer]), session_id(1), CONTEXT):
                pass
        assert refused.value.refused.code is Refusal.BUSY
        assert await answer(session, PROMPT, 4) == whole
        now = machine.server.statistics()
        assert (now.resting, len(now.sessions)) == ("on battery", 1)
        assert now.rows == now.sessions[0].rows > len(PROMPT)
        assert (now.sessions[0].requester, now.sessions[0].first) == (ME, 1)
        await trio.sleep(2 * CHECK_S)
        machine.server.rest("busy")
        machine.server.rest("")
        (offer,) = world.board.serving()
        async with requester.open(hops([offer]), session_id(2), CONTEXT) as second:
            assert await answer(second, PROMPT, 4) == whole
    assert machine.served == [BOUNDS]
    assert machine.told == ["resting: on battery", "resting: busy", "serving again"]


async def test_others_take_over_the_layers_of_a_resting_peer(
    world: World, autojump_clock: MockClock
) -> None:
    """They see that it accepts no sessions; and it does not move while it rests."""
    machine, other = await world.join(28), await world.join(28)
    await trio.sleep(SETTLE_S)
    decide(machine, LayerRange(1, 15))
    decide(other, LayerRange(15, 29))
    with trio.fail_after(4 * CHECK_S):
        while machine.served[-1] != LayerRange(1, 15) or other.served[-1] != LayerRange(15, 29):  # noqa: ASYNC110
            await trio.sleep(0.1)
    del machine.server._choose, other.server._choose  # as it really chooses, from now on
    machine.server.rest("on battery")
    with trio.fail_after(4 * CHECK_S):
        while not world.board.covered():  # noqa: ASYNC110 -- on a mock clock
            await trio.sleep(0.1)
    assert {a.peer for a in world.board.serving()} == {other.transport.peer_id}
    assert machine.served[-1] == LayerRange(1, 15)


async def test_a_peer_that_rests_from_the_start_loads_nothing(
    world: World, autojump_clock: MockClock
) -> None:
    """Until its owner no longer needs the machine; and it may leave meanwhile."""
    machine, other = await world.join(28, "on battery"), await world.join(28, "on battery")
    await trio.sleep(SETTLE_S)
    assert not world.board.said
    assert not machine.engines
    machine.server.rest("")
    other.leaving.set()
    await trio.sleep(SETTLE_S)
    assert machine.engines
    assert list(world.board.said) == [machine.transport.peer_id]


async def test_rest_that_ends_in_a_move_does_not_offer_the_old_layers(
    world: World, autojump_clock: MockClock
) -> None:
    """They drain to make room for others, and peers must not rely on them any more."""
    machine = await world.join(10)
    await trio.sleep(SETTLE_S / 4)
    old = machine.served[-1]
    decide(machine, LayerRange(5, 15) if old != LayerRange(5, 15) else LayerRange(1, 11))
    said = world.board.said
    with trio.fail_after(2 * CHECK_S):
        while said[machine.transport.peer_id].state is not State.DRAINING:  # noqa: ASYNC110
            await trio.sleep(0.1)
    machine.server.rest("busy")
    machine.server.rest("")
    now = said[machine.transport.peer_id]
    assert (now.state, LayerRange(now.first, now.end)) == (State.DRAINING, old)
    await trio.sleep(SETTLE_S)
    assert said[machine.transport.peer_id].state is State.SERVING
    assert machine.served[-1] != old
