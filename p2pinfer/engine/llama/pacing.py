"""How a trace makes way: it runs in small steps, and whatever waits goes first.

A trace is nobody's answer, so it lets others decode between any two of its steps. They owe it
little: after each of their decodes it runs for a tenth of the time that this one took. So a trace
ends even where somebody always waits, in eleven times its own time; and what waits then is put off
by a tenth of what was decoded before it, or by one step of a layer.

A trace that is late, because the model is large and its stage never rests, goes on at half the
speed that it would have alone, as far as nobody then waits for it longer than a moment.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Final, TypeVar

T = TypeVar("T")

OTHERS_SHARE: Final = 10
"""How many times the trace's own time others may decode while it goes on. Seven prompts of 64 rows
that wait for the eighth are put off by 45 ms in all, at 60 ms a decode of them."""

LATE_NS: Final = 8_000_000_000
"""After which a trace is late: a requester waits a minute for four."""

MOMENT_NS: Final = 25_000_000
"""That a late trace may run after others have decoded for as long, with a step behind it that may
take as long again."""

LOOK_S: Final = 0.001
"""How long those who come wait at most, while others' work goes on in a thread."""


def beside(work: Callable[[], T], let_others: Callable[[], bool]) -> T:
    """Return or raise what ``work`` does in a thread, in which it calls what takes long in C.

    Args:
        work: for nobody's answer.
        let_others: decodes once what waits, and says whether anything did.
    """
    with ThreadPoolExecutor(1) as threads:
        done = threads.submit(work)
        while not done.done():
            if not let_others():
                wait([done], LOOK_S)
        return done.result()


class Pacing:
    """Decides in a trace's pauses whether others decode.

    Args:
        let_others: decodes once what waits, and says whether anything did.
        now_ns: a clock.
    """

    def __init__(
        self, let_others: Callable[[], bool], now_ns: Callable[[], int] = time.perf_counter_ns
    ) -> None:
        self._let_others, self._now_ns = let_others, now_ns
        self._began_ns = self._since_ns = now_ns()
        self._owed_ns = 0
        """That the trace may run before others decode again."""

    def pause(self) -> None:
        """Let others decode once, if they may and anything waits."""
        now_ns = self._now_ns()
        self._owed_ns -= now_ns - self._since_ns
        self._since_ns = now_ns
        if self._owed_ns <= 0 and self._let_others():
            self._since_ns = self._now_ns()
            taken_ns = self._since_ns - now_ns
            self._owed_ns = taken_ns // OTHERS_SHARE
            if self._since_ns - self._began_ns > LATE_NS:
                self._owed_ns = max(self._owed_ns, min(taken_ns, MOMENT_NS))
