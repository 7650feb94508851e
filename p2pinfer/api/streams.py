"""Sending events to a client for as long as it listens."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import trio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from p2pinfer.api.problems import Problem, problem_of
from p2pinfer.core.errors import P2pinferError, lone_errors

PING_S = 15.0
"""How long a stream is silent before a comment shows that it lives: proxies close silent ones."""

PING = b": ping\n\n"

CONTENT_TYPE = "text/event-stream; charset=utf-8"

HEADERS = {
    "content-type": CONTENT_TYPE,
    "cache-control": "no-cache",
    "x-accel-buffering": "no",
}


def event(data: Any, name: str | None = None) -> bytes:
    """Encode one event; of a text, its very characters."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {text}\n\n".encode()


@asynccontextmanager
async def while_client_stays(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block when the client leaves."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        nursery.cancel_scope.cancel()

    with lone_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()


class Worked(Response):
    """A reply that takes a while to make; the work stops when the client leaves.

    Raises:
        Problem: of the work.
    """

    def __init__(self, work: Callable[[], Awaitable[Response]]) -> None:
        super().__init__()
        self._work = work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make the reply, and send it."""
        async with while_client_stays(receive):
            try:
                reply = await self._work()
            except P2pinferError as error:
                raise problem_of(error) from error
            await reply(scope, receive, send)


class EventStream(Response):
    """Events as they come; what means nothing (a comment) while none do.

    What goes wrong before the first event has a status code of its own, and is an event later.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes],
        headers: dict[str, str] | None = None,
        failed: Callable[[Problem], bytes] = lambda problem: event(problem.body),
        ping: bytes = PING,
    ) -> None:
        super().__init__(headers={**HEADERS, **(headers or {})})
        del self.headers["content-length"]
        self._events, self._failed, self._ping = events, failed, ping

    async def __call__(self, _: Scope, receive: Receive, send: Send) -> None:
        """Send all events."""
        async with while_client_stays(receive), trio.open_nursery() as nursery:
            sender, events = trio.open_memory_channel[bytes | Problem](0)
            nursery.start_soon(self._produce, sender)
            started = False
            while True:
                item: bytes | Problem | None = None
                with trio.move_on_after(PING_S):
                    item = await anext(events, b"")
                match item:
                    case Problem() if not started:
                        raise item
                    case Problem():
                        item = self._failed(item)
                    case None:
                        item = self._ping
                if not started:
                    started = True
                    start = {"status": self.status_code, "headers": self.raw_headers}
                    await send({"type": "http.response.start", **start})
                more = item != b""
                await send({"type": "http.response.body", "body": item, "more_body": more})
                if not more:
                    return

    async def _produce(self, sender: trio.MemorySendChannel[bytes | Problem]) -> None:
        async with sender, aclosing(self._events):
            try:
                async for item in self._events:
                    await sender.send(item)
            except Problem as problem:
                await sender.send(problem)
            except P2pinferError as error:
                await sender.send(problem_of(error))
