"""A swarm asked from asyncio, whose own loop is trio's, in a thread."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from p2pinfer import connect
from p2pinfer.client.joining import AsyncioSwarm
from p2pinfer.client.library import Swarm
from p2pinfer.core.errors import UserError
from p2pinfer.engine.gpu import Search
from p2pinfer.engine.llama import devices
from p2pinfer.engine.template import Prompt
from tests.support.fake_gateway import FakeClient, fake_swarm
from tests.support.gpus import CARD

SAY: Any = [{"role": "user", "content": "one two three"}]
WAIT_S_MAX = 60.0


@pytest.fixture
def clients(monkeypatch: pytest.MonkeyPatch) -> list[FakeClient]:
    """Let ``connect`` join a swarm of fakes; provide what it opened."""
    made: list[FakeClient] = []

    @asynccontextmanager
    async def opened(_: connect) -> AsyncIterator[Swarm]:
        with trio.CancelScope() as scope:
            async with fake_swarm() as (swarm, client):
                made.append(client)
                yield swarm
                scope.cancel()  # its peers' stages wait for a mock clock, which is not there

    async def render(_: Swarm, messages: Any, **_more: object) -> Prompt:
        return Prompt(" ".join(each["content"] for each in messages))

    monkeypatch.setattr(connect, "_open", opened)
    monkeypatch.setattr(Swarm, "render", render)
    return made


def run(main: Callable[[], Any]) -> None:
    """Run under asyncio, and not for ever."""
    asyncio.run(asyncio.wait_for(main(), WAIT_S_MAX))


def stall(client: FakeClient) -> asyncio.Event:
    """Let the model take an hour for a token; returns what tells that it has begun."""
    machine, loop, begun = client.made.ends.machine, asyncio.get_running_loop(), asyncio.Event()
    line_up = machine.line_up

    def tell(waiting: Any) -> None:
        loop.call_soon_threadsafe(begun.set)
        line_up(waiting)

    machine.decode_s = 3600.0
    machine.line_up = tell  # type: ignore[method-assign]
    return begun


async def said(swarm: Swarm | AsyncioSwarm, tokens: int = 5) -> str:
    """Ask, and return the whole answer."""
    return "".join([piece async for piece in swarm.chat(SAY, max_tokens=tokens)])


def test_tasks_of_asyncio_ask_at_once(clients: list[FakeClient]) -> None:
    """Each gets its answer; the swarm has gone once the block is left."""

    async def main() -> None:
        async with connect() as swarm:
            assert isinstance(swarm, AsyncioSwarm)
            assert swarm.model_name == "Toy Model"
            clients[0].made.ends.script[:] = ["a tree"] * 3
            assert await asyncio.gather(*(said(swarm) for _ in range(3))) == ["a tree"] * 3
        with pytest.raises(trio.RunFinishedError):
            await said(swarm)

    run(main)


def test_cancelled_task_stops_its_answer(clients: list[FakeClient]) -> None:
    """Its session is free at once, for the next question."""

    async def main() -> None:
        async with connect() as swarm:
            assert isinstance(swarm, AsyncioSwarm)
            begun = stall(clients[0])
            task = asyncio.create_task(said(swarm))
            await begun.wait()
            assert swarm._swarm.pool.running == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert swarm._swarm.pool.running == 0

    run(main)


def test_who_leaves_ends_what_waits(clients: list[FakeClient]) -> None:
    """It is told so, and hangs nowhere."""

    async def main() -> None:
        async with connect() as swarm:
            begun = stall(clients[0])
            task = asyncio.create_task(said(swarm))
            await begun.wait()
        with pytest.raises(trio.RunFinishedError):
            await task

    run(main)


def test_abandoned_answer_is_closed(clients: list[FakeClient]) -> None:
    """The next one is made in its session."""

    async def main() -> None:
        async with connect() as swarm:
            pieces = swarm.chat(SAY, max_tokens=50)
            assert await anext(pieces)
            await pieces.aclose()
            assert await said(swarm)
            assert clients[0].opened == 1

    run(main)


def test_errors_are_raised_where_they_are_awaited(clients: list[FakeClient]) -> None:
    """Those of a question; the swarm goes on."""

    async def main() -> None:
        async with connect() as swarm:
            with pytest.raises(UserError):
                async for _ in swarm.chat([{"role": "user", "content": "x " * 999}]):
                    pass
            assert await said(swarm)

    run(main)


def test_errors_of_joining_are_raised_in_asyncio() -> None:
    """As they are elsewhere."""

    async def main() -> None:
        with pytest.raises(UserError, match="no swarm is known"):
            async with connect(mdns=False, dht=False):
                pass

    run(main)


def test_a_gpu_that_is_not_here_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With those that are; before anybody is asked for anything."""
    monkeypatch.setattr(devices, "search", lambda: Search((CARD,)))
    with pytest.raises(UserError, match=r"cuda7 is not here; found: CUDA0 \(A card\)"):
        connect(gpu="cuda7")


async def test_trio_has_the_swarm_itself(clients: list[FakeClient]) -> None:
    """Without a thread between."""
    async with connect() as swarm:
        assert isinstance(swarm, Swarm)
        assert await said(swarm)
