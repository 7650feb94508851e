"""Where prompts are read while others are answered: in cells aside, so that a decode may pause.

llama.cpp cannot stop a decode and begin another one in the same context. So a slice has a second
context with cells of its own. While somebody is answered here, a session whose prompt is read is
moved there, and the decode of that prompt pauses after each layer for the rows that wait. The first
row of its own answer moves it home again, where the rows of all sessions share decodes. Moving
takes a fraction of a block's time: per position it copies some kilobytes, and a block multiplies
as many numbers by 64 rows. Nobody is moved where nobody else is answered.
"""

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Final

from p2pinfer.engine.llama.binding import Slice, Span
from p2pinfer.engine.llama.kv_state import KvState

ANSWERED_NS: Final = 30 * 1_000_000_000
"""How long a session counts as being answered: a slow chain takes seconds for a token."""


class Aside:
    """Which sessions of a slice are where."""

    def __init__(self, home: Slice, aside: Slice | None) -> None:
        """Keep sessions at home, unless there are cells ``aside``, which share the weights."""
        self._home, self._aside = home, aside
        self._free = list(range(aside.sessions)) if aside else []
        self._moved: dict[int, int] = {}  # slots at home, and aside
        self._answered_ns: dict[int, int] = {}  # when each session had its last narrow rows

    @property
    def moved(self) -> Collection[int]:
        """The sessions aside, none of which may be decoded, or moved, in the pause of another."""
        return self._moved.keys()

    def check(self, span: Span) -> None:
        """Raise EngineError as ``Slice.check``, wherever the session is."""
        part, there = self.find(span)
        part.check(there)

    def find(self, span: Span) -> tuple[Slice, Span]:
        """Return where a span is to be decoded, and what it is there."""
        if span.slot not in self._moved:
            return self._home, span
        assert self._aside
        return self._aside, replace(span, slot=self._moved[span.slot])

    def step_aside(self, slot: int, now_ns: int) -> None:
        """Move a session whose prompt is read, if others are answered and there is room.

        Raises:
            EngineError: it cannot be moved.
        """
        if self._free and slot not in self._moved and self._is_other_answered(slot, now_ns):
            assert self._aside
            self._home.move(slot, self._aside, self._free[-1])
            self._moved[slot] = self._free.pop()

    def come_home(self, slots: Iterable[int], now_ns: int) -> None:
        """Have these sessions' narrow rows decoded with those of others; raises as above."""
        for slot in slots:
            self._answered_ns[slot] = now_ns
            if slot in self._moved:
                assert self._aside
                self._aside.move(self._moved[slot], self._home, slot)
                self._free.append(self._moved.pop(slot))

    def inherit(self, slot: int, source: int, length: int) -> None:
        """Begin a session at home with a copy of what another one holds, wherever that is.

        Raises:
            EngineError: as ``Slice.inherit``.
        """
        if source in self._moved:
            assert self._aside
            self._home.inherit(slot, self._aside, self._moved[source], length)
        else:
            self._home.inherit(slot, self._home, source, length)

    def borrow(self) -> tuple[Slice, int] | None:
        """Return a free slot aside for something else, until ``give_back``; None if none is."""
        if self._aside is None or not self._free:
            return None
        return self._aside, self._free.pop()

    def give_back(self, slot: int) -> None:
        """Take a slot back, and free its cells."""
        assert self._aside
        self._aside.truncate(slot, 0)
        self._free.append(slot)

    def cells(self, slot: int, bytes_max: int) -> KvState:
        """Return a copy of a session's cells, wherever they are; raises as ``Slice.cells``."""
        assert self._aside
        streams = self._aside.sessions
        if slot in self._moved:
            return self._aside.cells(self._moved[slot], bytes_max, streams)
        return self._home.cells(slot, bytes_max, streams)

    def forget(self, slot: int) -> None:
        """Free the cells of a session that is over."""
        self._home.truncate(slot, 0)
        self._answered_ns.pop(slot, None)
        if slot in self._moved:
            assert self._aside
            self._aside.truncate(self._moved[slot], 0)
            self._free.append(self._moved.pop(slot))

    def _is_other_answered(self, slot: int, now_ns: int) -> bool:
        return any(
            other != slot and now_ns - at_ns < ANSWERED_NS
            for other, at_ns in self._answered_ns.items()
        )
