"""Processors shared by several engines, as when a whole swarm runs on one machine.

They need not be a whole number: two that share caches and execution units, as the two threads of
one core do, run two engines together as fast as about 1.3 would.
"""

import trio

DONE_S = 1e-9
"""Less work than this counts as none: the remainder is rounding."""


class Cores:
    """Shared cores: if more engines work, each gets its share of the time, as from a kernel."""

    def __init__(self, count: float) -> None:
        self._count = count
        self._working = 0
        self._changed = trio.lowlevel.ParkingLot()

    async def spend(self, work_s: float) -> None:
        """Work for as long as a core of its own would take, longer if others work too."""
        self._working += 1
        self._changed.unpark_all()
        try:
            while work_s > DONE_S:
                share = min(1.0, self._count / self._working)
                since_s = trio.current_time()
                with trio.move_on_after(work_s / share):
                    await self._changed.park()
                work_s -= share * (trio.current_time() - since_s)
        finally:
            self._working -= 1
            self._changed.unpark_all()
