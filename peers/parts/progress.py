"""Progress of a transfer of parts, as shown to people."""

import math
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from p2pinfer.core.ids import PartHash
from scheduler.fetching import Fetching

TICK_S = 0.25
"""How often progress is reported."""

WAITING_S_MIN = 1.0
"""Without any chunk on its way before we report that we are waiting."""

RATE_WINDOW_S = 5.0
"""Window over which the displayed rate is measured."""


@dataclass(frozen=True)
class Progress:
    """How far a transfer is."""

    done_bytes: int
    """Including what was there before."""
    total_bytes: int
    bytes_per_s: float
    holders: int
    """Peers that hold something still missing."""
    waiting: str = ""
    """A text about what no peer online holds, while nothing arrives."""

    @property
    def left_s(self) -> float | None:
        """Seconds left at this rate; None while nothing arrives."""
        left = self.total_bytes - self.done_bytes
        return left / self.bytes_per_s if self.bytes_per_s else None


class Meter:
    """Turns a plan's state into progress."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._seen: deque[tuple[float, int]] = deque(maxlen=round(RATE_WINDOW_S / TICK_S) + 1)
        self._busy_at = -math.inf

    def read(
        self, now: float, plan: Fetching, name: Callable[[Collection[PartHash]], str]
    ) -> Progress:
        """Return how far a transfer is."""
        done = self._total - plan.bytes_left
        self._seen.append((now, done))
        (then, before) = self._seen[0]
        rate = (done - before) / (now - then) if now > then else 0.0
        if plan.in_flight or self._busy_at == -math.inf:
            self._busy_at = now
        waiting = ""
        if now - self._busy_at >= WAITING_S_MIN and (parts := plan.nobody_holds()):
            waiting = f"no peer online holds {name(parts)}; waiting"
        return Progress(done, self._total, rate, plan.givers, waiting)
