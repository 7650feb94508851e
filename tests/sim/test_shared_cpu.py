"""Cores that engines share."""

import pytest
import trio
from trio.testing import MockClock

from sim.shared_cpu import Cores


@pytest.mark.parametrize(
    ("count", "work_s", "done_s"),
    [
        (2, [1.0, 1.0], [1.0, 1.0]),
        (1, [1.0, 1.0], [2.0, 2.0]),
        (2, [1.0, 1.0, 1.0], [1.5, 1.5, 1.5]),
        (1, [1.0, 3.0], [2.0, 4.0]),
    ],
)
async def test_time_is_shared(
    count: int, work_s: list[float], done_s: list[float], autojump_clock: MockClock
) -> None:
    """No engine is faster than a core; with more at work each has its share until some are done."""
    cores, start_s, found = Cores(count), trio.current_time(), dict[int, float]()

    async def work(number: int) -> None:
        await cores.spend(work_s[number])
        found[number] = trio.current_time() - start_s

    async with trio.open_nursery() as nursery:
        for number in range(len(work_s)):
            nursery.start_soon(work, number)
    assert [found[number] for number in range(len(work_s))] == pytest.approx(done_s)


async def test_an_engine_that_stops_leaves_its_share(autojump_clock: MockClock) -> None:
    """A killed engine takes no more time from the others."""
    cores, start_s = Cores(1), trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cores.spend, 2.0)
        with trio.move_on_after(1.0):
            await cores.spend(5.0)
    assert trio.current_time() - start_s == pytest.approx(2.5)
