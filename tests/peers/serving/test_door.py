"""Which sessions a stage admits, which wait, and what a refusal says."""

import pytest
import trio
from trio.testing import MockClock

from p2pinfer.core.ids import PeerId
from peers.serving.door import Door, Shut
from scheduler.admission import RETRY_MS_MIN, WAIT_S_MAX, WAITING_MAX, Ask
from tests.support.swarm import peer, session_id

CELLS = 100
SOMEBODY, OTHER = peer("somebody"), peer("other")


def ask(number: int, requester: PeerId = SOMEBODY, cells: int = CELLS) -> Ask:
    """Ask for a session now."""
    return Ask(session_id(number), requester, cells, trio.current_time())


async def hold(door: Door, asked: Ask, seconds: float, held: list[int]) -> None:
    """Hold a place for ``seconds``."""
    async with door.admit(asked):
        held.append(int.from_bytes(asked.session, "little"))
        await trio.sleep(seconds)


async def test_a_waiting_session_gets_the_next_free_place(autojump_clock: MockClock) -> None:
    """In turn, and no session keeps its place after its end."""
    door, held = Door(1, CELLS), list[int]()
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(hold, door, ask(number), 1.0, held)
            await trio.sleep(0.1)
    assert held == [0, 1, 2]
    assert door.admission.sessions_free == 1
    assert door.admission.waiting == 0


async def test_waiting_too_long_ends_with_a_retry_time(autojump_clock: MockClock) -> None:
    """Not before the wait is over, and the time is not zero."""
    door = Door(1, CELLS)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, door, ask(0), 100.0, [])
        await trio.sleep(0.1)
        asked_s = trio.current_time()
        with pytest.raises(Shut, match="try again in") as shut:
            async with door.admit(ask(1)):
                raise AssertionError
        assert trio.current_time() - asked_s == pytest.approx(WAIT_S_MAX)
        assert shut.value.retry_ms >= RETRY_MS_MIN
        nursery.cancel_scope.cancel()
    assert door.admission.sessions_free == 1


async def test_a_session_that_never_fits_is_refused_at_once(autojump_clock: MockClock) -> None:
    """There is no point in trying again."""
    with pytest.raises(Shut, match="exceeds this peer") as shut:
        async with Door(4, CELLS).admit(ask(0, cells=CELLS + 1)):
            raise AssertionError
    assert shut.value.retry_ms == 0
    assert trio.current_time() == 0


async def test_a_full_queue_refuses_a_requester_that_has_a_place(
    autojump_clock: MockClock,
) -> None:
    """Rather than one that has none."""
    door, held, shut = Door(1, CELLS), list[int](), list[int]()

    async def wait(number: int, requester: PeerId) -> None:
        try:
            await hold(door, ask(number, requester), 0.1, held)
        except Shut:
            shut.append(number)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, door, ask(0), 1.0, [])
        await trio.sleep(0.01)
        for number in range(1, WAITING_MAX + 1):
            nursery.start_soon(wait, number, SOMEBODY)
        await trio.sleep(0.01)
        nursery.start_soon(wait, 99, OTHER)
        await trio.sleep(0.01)
        assert len(shut) == 1
        assert shut != [99]
    assert 99 in held


async def test_a_session_asked_for_twice_is_refused(autojump_clock: MockClock) -> None:
    """The first one keeps its place."""
    door = Door(2, 2 * CELLS)
    async with door.admit(ask(0)):
        with pytest.raises(Shut):
            async with door.admit(ask(0)):
                raise AssertionError
        assert door.admission.sessions_free == 1
    assert door.admission.sessions_free == 2
