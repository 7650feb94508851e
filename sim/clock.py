"""Virtual time that jumps, and a deterministic scheduler: one seed gives one run.

trio shuffles each batch of tasks by a generator of its own. Here it sorts them by age first, as it
does for hypothesis, and the generator is seeded. Equal deadlines wake their tasks in
one batch, so their order does not matter. Nothing may wait for a thread, process or socket: while
all tasks sleep, the clock jumps to the next deadline at once.
"""

import heapq
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import trio

T = TypeVar("T")

_run: Any = trio._core._run


class JumpClock(trio.abc.Clock):
    """Seconds from 0; jumps to the next deadline whenever every task waits."""

    def __init__(self) -> None:
        self._now_s = 0.0
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0

    def start_clock(self) -> None:
        """Do nothing: it always begins at 0."""

    def current_time(self) -> float:
        """Return the virtual time in seconds."""
        return self._now_s

    def deadline_to_sleep_time(self, deadline: float) -> float:
        """Jump; trio asks only when no task can run."""
        due, runner = self._due, _run.GLOBAL_RUN_CONTEXT.runner
        while due and due[0][0] <= deadline:
            self._now_s = max(self._now_s, due[0][0])
            while due and due[0][0] <= self._now_s:
                heapq.heappop(due)[2]()
            if runner.runq:
                return 0.0
        if math.isinf(deadline):  # trio itself waits for its own wake-up call as it ends
            return deadline
        self._now_s = max(self._now_s, deadline)
        return 0.0

    def call_at(self, at_s: float, act: Callable[[], object]) -> None:
        """Call a function at a moment, once no task can run; it wakes tasks, and must not raise.

        This costs a third of a task that sleeps until then.
        """
        self._number += 1
        heapq.heappush(self._due, (at_s, self._number, act))


@contextmanager
def _pinned(seed: int) -> Iterator[None]:
    """Let trio order its tasks by age and by a seeded generator while the block lasts."""
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True
    _run._r.seed(seed)
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = before[0]
        _run._r.setstate(before[1])


def call_at(at_s: float, act: Callable[[], object]) -> None:
    """Call a function at a moment of the current run's clock."""
    clock = trio.lowlevel.current_clock()
    assert isinstance(clock, JumpClock)
    clock.call_at(at_s, act)


def run_virtual(main: Callable[[], Awaitable[T]], seed: int) -> T:
    """Run in virtual time, the same way each time for the same seed."""
    with _pinned(seed):
        return trio.run(main, clock=JumpClock())
