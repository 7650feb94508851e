"""One direction of an in-memory channel, whose messages take time."""

import math
from collections import deque
from collections.abc import Callable

import trio

CallAt = Callable[[float, Callable[[], object]], None]
"""Runs a function at a moment of trio's clock."""


def in_a_task(at_s: float, act: Callable[[], object]) -> None:
    """Wait in a task of its own, whatever trio's clock is."""

    async def wait() -> None:
        await trio.sleep_until(at_s)
        act()

    trio.lowlevel.spawn_system_task(wait)


class Pipe:
    """One direction of a channel: messages, each with the time when it arrives; None is the end."""

    def __init__(self, delay_s: Callable[[bytes], float], call_at: CallAt) -> None:
        self.queue: deque[tuple[float, bytes | None]] = deque()
        self.unread = 0  # bytes
        self.deaf = False  # the receiver takes no more
        self.moved = trio.lowlevel.ParkingLot()
        self._delay_s, self._call_at = delay_s, call_at
        self._last = 0.0
        self.severed = False

    def put(self, message: bytes | None) -> None:
        """Send a message; it cannot overtake earlier ones."""
        if self.severed:
            return
        content, now = message or b"", trio.current_time()
        self._last = max(self._last, now + self._delay_s(content))
        self.queue.append((self._last, message))
        self.unread += len(content)
        if self._last <= now:
            self.moved.unpark_all()
        elif self._last < math.inf:
            self._call_at(self._last, self.moved.unpark_all)

    def sever(self) -> None:
        """End for good, without a word from the other side."""
        self.shut()
        self.severed = True

    def shut(self) -> None:
        """Take no more, and wake any task that waits for a message."""
        self.clear()
        self.deaf = True
        self.queue.append((trio.current_time(), None))
        self.moved.unpark_all()

    def clear(self) -> None:
        """Lose everything in transit."""
        if self.severed:
            return
        self.queue.clear()
        self.unread = 0

    async def get(self) -> bytes | None:
        """Wait for the next message; once the end is reached, it stays None."""
        if self._has_arrived():
            await trio.lowlevel.checkpoint()
        while not self._has_arrived():  # messages in transit may be lost
            await self.moved.park()
        message = self.queue[0][1]
        if message is not None:
            self.queue.popleft()
            self.unread -= len(message)
            self.moved.unpark_all()
        return message

    def _has_arrived(self) -> bool:
        return bool(self.queue) and self.queue[0][0] <= trio.current_time()
