"""Something that takes a while to open, of which the next one is opened ahead."""

import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from p2pinfer.core.errors import P2pinferError

_log = logging.getLogger("p2pinfer.path")

T = TypeVar("T")


@dataclass(eq=False)
class _Held(Generic[T]):
    opened: T
    released: trio.Event = field(default_factory=trio.Event)


class OneAhead(Generic[T]):
    """Opens one for each who asks, and keeps one more.

    Args:
        nursery: they are open in it; it outlives who takes them.
        opening: opens one.
    """

    def __init__(
        self, nursery: trio.Nursery, opening: Callable[[], AbstractAsyncContextManager[T]]
    ) -> None:
        self._nursery, self._opening = nursery, opening
        self._next: _Held[T] | None = None
        self._is_preparing = False

    def prepare(self) -> None:
        """Open the next one, unless that is done or under way; a failure is the taker's to see."""
        if self._next is None and not self._is_preparing:
            self._is_preparing = True
            self._nursery.start_soon(self._prepare)

    @asynccontextmanager
    async def take(self) -> AsyncGenerator[T, None]:
        """Give one to the block, and nobody else ever again; raises what opening it does."""
        held, self._next = self._next, None
        held = held or await self._nursery.start(self._hold)
        assert held
        try:
            self.prepare()
            yield held.opened
        finally:
            held.released.set()

    async def _prepare(self) -> None:
        try:
            self._next = await self._nursery.start(self._hold)
        except P2pinferError as error:
            _log.info("nothing is prepared for the next session: %s", error)
        finally:
            self._is_preparing = False

    async def _hold(self, *, task_status: trio.TaskStatus[_Held[T]]) -> None:
        async with self._opening() as opened:
            held = _Held(opened)
            task_status.started(held)
            await held.released.wait()
