"""How many chunks of a prompt are under way: as many as the chain's length and links can hold.

With too few, a long link is empty for most of the time; more than the slowest stage or link can
take only wait in front of it. How many the chain holds is what it brings back per second times what
one chunk's way takes where nothing waits. Brakmo & Peterson, "TCP Vegas", 1995, count bytes so.
"""

import math
from collections import deque

from p2pinfer.core.limits import STEPS_IN_FLIGHT_MAX

CHUNKS_MIN = STEPS_IN_FLIGHT_MAX
"""Enough on a local network, where each stage should have the next chunk at hand."""

CHUNKS_MAX = 48
"""7 MB of the default model, 50 MB of one that is 4,096 numbers wide: a quarter of a second at 200
Mbit/s and more, and more chunks than most prompts have."""

WAITING_MIN = 4.0
"""Chunks that wait somewhere; with fewer, more are sent, and fewer with twice as many."""

GROWTH_MAX = 2
"""More at a time, for each that comes back: that triples them while a chunk goes its way."""

RECENT = 8
"""Chunks by which the chain's rate is measured: they come in bursts as they were sent."""


class PromptWindow:
    """The window of one session's prompts."""

    def __init__(self) -> None:
        self.limit = CHUNKS_MIN
        """How many chunks may be under way."""
        self._least_s = math.inf
        self._recent: deque[float] = deque(maxlen=RECENT)

    def begin(self) -> None:
        """Begin another prompt: the chain may have changed, and what it brings back stood still."""
        self._least_s = math.inf
        self._recent.clear()

    def came_back(self, took_s: float, now_s: float) -> int:
        """Note how long a chunk was under way; return how many may be sent in its place."""
        self._least_s = min(self._least_s, took_s)
        self._recent.append(now_s)
        if len(self._recent) < 2:
            return 1
        gap_s = (self._recent[-1] - self._recent[0]) / (len(self._recent) - 1)
        waiting = self.limit - self._least_s / gap_s if gap_s else 0.0
        more = 0
        if waiting < WAITING_MIN:
            more = min(math.ceil(WAITING_MIN - waiting), GROWTH_MAX, CHUNKS_MAX - self.limit)
        elif waiting > 2 * WAITING_MIN and self.limit > CHUNKS_MIN:
            more = -1
        self.limit += more
        return 1 + more
