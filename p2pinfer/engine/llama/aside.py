"""Where prompts are read while others are answered: in cells aside, so that a decode may pause.

llama.cpp cannot stop a decode and begin another one in the same context. So a slice has a second
context with cells of its own. While somebody is answered here, a session whose prompt is read is
moved there, and the decode of that prompt pauses after each layer for the rows that wait. The first
row of its own answer moves it home again, where the rows of all sessions share decodes. Moving
takes a fraction of a block's time: per position it copies some kilobytes, and a block multiplies
as many numbers by 64 rows. Nobody is moved where nobody else is answered.

A session that is longer than usual has a context of its own from the beginning, made when it is
opened and freed when it ends: cells for all sessions to be so long would be more than most machines
have. Its rows are decoded alone, and pause as well.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Final

from p2pinfer.core.errors import EngineError
from p2pinfer.engine.llama.binding import Slice, Span
from p2pinfer.engine.llama.kv_state import KvState, Words

ANSWERED_NS: Final = 30 * 1_000_000_000
"""How long a session counts as being answered: a slow chain takes seconds for a token."""


class Aside:
    """Which sessions of a slice are where."""

    def __init__(self, home: Slice, aside: Slice | None) -> None:
        """Keep sessions at home, unless there are cells ``aside``, which share the weights."""
        self._home, self._aside = home, aside
        self._long: dict[int, Slice] = {}
        self._failed: dict[int, EngineError] = {}
        self._free = list(range(aside.sessions)) if aside else []
        self._moved: dict[int, int] = {}  # slots at home, and aside
        self._answered_ns: dict[int, int] = {}  # when each session had its last narrow rows

    @property
    def moved(self) -> Collection[int]:
        """The sessions aside, none of which may be decoded, or moved, in the pause of another."""
        return self._moved.keys()

    def lengthen(self, slot: int, load: Callable[[], Slice]) -> None:
        """Give a session that begins a context of its own; if that fails, its first rows say so."""
        self.forget(slot)
        try:
            self._long[slot] = load()
        except EngineError as error:
            self._failed[slot] = error

    def is_home(self, slot: int) -> bool:
        """Whether a session shares decodes with others once it is answered."""
        return slot not in self._long

    def slice_of(self, slot: int) -> Slice:
        """Return where a session's rows are decoded."""
        return self._long.get(slot, self._home)

    def check(self, span: Span) -> None:
        """Raise EngineError as ``Slice.check``, wherever the session is."""
        if span.slot in self._failed:
            raise self._failed[span.slot]
        part, there = self.find(span)
        part.check(there)

    def find(self, span: Span) -> tuple[Slice, Span]:
        """Return where a span is to be decoded, and what it is there."""
        part, slot = self._place_of(span.slot)
        return part, span if slot == span.slot else replace(span, slot=slot)

    def step_aside(self, slot: int, now_ns: int) -> None:
        """Move a session whose prompt is read, if others are answered and there is room.

        Raises:
            EngineError: it cannot be moved.
        """
        is_there = slot in self._moved or slot in self._long
        if self._free and not is_there and self._is_other_answered(slot, now_ns):
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
        """Begin a session that is not aside with a copy of what another one holds, wherever it is.

        Raises:
            EngineError: as ``Slice.inherit``, or there is no room for the session.
        """
        if slot in self._failed:
            raise self._failed[slot]
        to, to_slot = self._place_of(slot)
        held, held_slot = self._place_of(source)
        to.inherit(to_slot, held, held_slot, length)

    def _place_of(self, slot: int) -> tuple[Slice, int]:
        if slot in self._long:
            return self._long[slot], 0
        if slot in self._moved:
            assert self._aside
            return self._aside, self._moved[slot]
        return self._home, slot

    def size(self, slot: int, bytes_max: int) -> tuple[int, int]:
        """Return how many positions a session has, and their bytes in a copy.

        Raises:
            EngineError: as ``Slice.size``.
        """
        part, there = self._place_of(slot)
        return part.size(there, bytes_max)

    def cells(self, slot: int, bytes_max: int, room: Words) -> KvState:
        """Return a copy of a session's cells, for a slice of one session.

        Raises:
            EngineError: as ``Slice.cells``.
        """
        part, there = self._place_of(slot)
        return part.cells(there, bytes_max, streams=1, room=room)

    def forget(self, slot: int) -> None:
        """Free the cells of a session that is over."""
        self._home.truncate(slot, 0)
        self._answered_ns.pop(slot, None)
        self._failed.pop(slot, None)
        if slot in self._long:
            self._long.pop(slot).close()
        if slot in self._moved:
            assert self._aside
            self._aside.truncate(self._moved[slot], 0)
            self._free.append(self._moved.pop(slot))

    def _is_other_answered(self, slot: int, now_ns: int) -> bool:
        return any(
            other != slot and now_ns - at_ns < ANSWERED_NS
            for other, at_ns in self._answered_ns.items()
        )
