"""What is opened ahead: each taker has its own, and the next one is open already."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from p2pinfer.core.errors import NoPath
from p2pinfer.node.one_ahead import OneAhead

OPENING_S = 2.0


class Things:
    """Numbered things that take a while to open."""

    def __init__(self) -> None:
        self.opened = self.fails = 0
        self.open: set[int] = set()

    @asynccontextmanager
    async def one(self) -> AsyncGenerator[int, None]:
        """Open the next one."""
        await trio.sleep(OPENING_S)
        if self.fails:
            self.fails -= 1
            raise NoPath("no relay answers")
        self.opened += 1
        number = self.opened
        self.open.add(number)
        try:
            yield number
        finally:
            self.open.remove(number)


async def test_the_next_one_is_open_already(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """So only the first taker waits, and nobody gets what another one had."""
    things = Things()
    ahead = OneAhead(nursery, things.one)
    began = trio.current_time()
    async with ahead.take() as first:
        assert trio.current_time() - began == OPENING_S
        await trio.sleep(2 * OPENING_S)
        waited = trio.current_time()
        async with ahead.take() as second:
            assert trio.current_time() == waited
            assert (first, second) == (1, 2)
    await trio.sleep(2 * OPENING_S)
    assert things.open == {3}
    async with ahead.take() as third:
        assert third == 3


async def test_one_is_prepared_at_a_time(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """However often that is asked for."""
    things = Things()
    ahead = OneAhead(nursery, things.one)
    for _ in range(3):
        ahead.prepare()
    await trio.sleep(3 * OPENING_S)
    ahead.prepare()
    await wait_all_tasks_blocked()
    assert things.opened == 1


async def test_several_takers_at_once(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Each gets one, though only one was prepared; all are closed again."""
    things = Things()
    ahead = OneAhead(nursery, things.one)
    ahead.prepare()
    found: list[int] = []

    async def take() -> None:
        async with ahead.take() as number:
            found.append(number)
            await trio.sleep(1.0)

    async with trio.open_nursery() as takers:
        for _ in range(4):
            takers.start_soon(take)
    assert len(set(found)) == 4
    await trio.sleep(3 * OPENING_S)
    assert len(things.open) == 1


async def test_a_failure_is_the_takers_who_tries_again(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """One in preparing ahead is nobody's."""
    things = Things()
    ahead = OneAhead(nursery, things.one)
    things.fails = 2
    ahead.prepare()
    await trio.sleep(2 * OPENING_S)
    with pytest.raises(NoPath):
        async with ahead.take():
            raise AssertionError
    async with ahead.take() as number:
        assert number == 1
