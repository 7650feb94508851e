"""Rows that a session sent on, kept to be sent again: to a replacement, or to an auditor.

Rows are kept by position, each with its regime and the number of the step that it went out with.
Sending a position again drops what was kept from there on. Rows of old steps move to a temporary
file once a peer's sessions exceed their memory limit; beyond the disk limit the oldest are dropped,
and then the session cannot be replayed.
"""

import os
import tempfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from operator import itemgetter
from typing import IO, NamedTuple

import trio

from p2pinfer.core.limits import NARROW_ROWS_MAX
from p2pinfer.core.regimes import Regime

HISTORY_MEMORY_BYTES_MAX = 128 * 1024 * 1024
"""For all sessions of a peer: eight full ones of the default model take 72 MiB."""

HISTORY_DISK_BYTES_MAX = 4 * 1024 * 1024 * 1024
"""For all sessions of a peer: eight sessions of 16,384 positions, 8,192 numbers wide."""

SPILL_BYTES = 1024 * 1024
"""Moved to the file at a time; it takes about as long as one token does."""

KEPT_STEPS_MIN = 16
"""A session's newest steps always stay in memory: they may not have been sent yet."""


class Kept(NamedTuple):
    """Rows at consecutive positions that went out together."""

    number: int
    """The step's number."""
    position: int
    count: int  # type: ignore[assignment] # a tuple has a method of that name, unused here
    regime: Regime
    times: tuple[int, ...]
    """Decoding time of each stage up to here, in microseconds."""
    rows: bytes | None
    """None if they are in the file."""


_number, _position = itemgetter(0), itemgetter(1)


class Budget:
    """How many bytes the sessions of one peer may keep."""

    def __init__(
        self,
        memory_bytes_max: int = HISTORY_MEMORY_BYTES_MAX,
        disk_bytes_max: int = HISTORY_DISK_BYTES_MAX,
    ) -> None:
        self.memory_left, self.disk_left = memory_bytes_max, disk_bytes_max


class History:
    """One session's rows, ordered by position and, equally, by step number."""

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._steps: list[Kept] = []
        self._spilt = 0  # how many of the first steps are in the file
        self._file: IO[bytes] | None = None
        self._row_bytes = 0
        self.end = 0
        """One past the last position kept."""
        self.forgotten = 0
        """The highest number of a step that was dropped for lack of room."""

    @property
    def start(self) -> int:
        """The first position kept; if it is not 0, the session cannot be replayed."""
        return self._steps[0].position if self._steps else self.end

    def add(
        self,
        number: int,
        position: int,
        count: int,
        regime: Regime,
        times: tuple[int, ...],
        rows: bytes,
    ) -> None:
        """Keep rows; rows kept before from ``position`` on are dropped."""
        if position != self.end:
            self._drop_from(position)
        self._steps.append(Kept(number, position, count, regime, times, rows))
        self.end = position + count
        budget = self._budget
        budget.memory_left -= len(rows)
        if budget.memory_left < 0:
            self._spill(len(rows) // count)

    def count_after(self, number: int) -> int:
        """Return how many steps with a higher number are kept."""
        return len(self._steps) - bisect_right(self._steps, number, key=_number)

    def following(self, number: int, known: int) -> Kept | None:
        """Return what to send after the step of that number, if there is anything.

        Narrow steps up to the one numbered ``known``, whose answers are not awaited, are joined, as
        many as one narrow decode may hold; they bear the last one's number.
        """
        at = bisect_right(self._steps, number, key=_number)
        if at == len(self._steps):
            return None
        first = self._steps[at]
        run, count = [first], first.count
        if first.regime is Regime.NARROW and first.number <= known:
            for each in self._steps[at + 1 : at + NARROW_ROWS_MAX]:
                if (
                    each.regime is not Regime.NARROW
                    or each.number > known
                    or count + each.count > NARROW_ROWS_MAX
                ):
                    break
                run.append(each)
                count += each.count
        last = run[-1]
        return Kept(last.number, first.position, count, first.regime, last.times, self._rows(run))

    def read(self, position: int, end: int) -> Iterator[Kept]:
        """Yield the steps that hold positions from ``position`` up to ``end``, cut to these.

        Raises:
            LookupError: some are no longer kept, or not yet.
        """
        if not self.start <= position <= end <= self.end:
            raise LookupError(f"positions {position} to {end} are not kept")
        for step in self._steps:
            first, last = max(position, step.position), min(end, step.position + step.count)
            if first < last:
                row = self._row_bytes_of(step)
                rows = self._rows([step])
                cut = rows[(first - step.position) * row : (last - step.position) * row]
                yield step._replace(position=first, count=last - first, rows=cut)

    async def inherit(self, parent: "History", end: int, number: int) -> None:
        """Keep another session's rows up to a position too, while nothing is kept here.

        Rows in memory are shared; those in its file are copied, with pauses, in which the other
        session may go on behind ``end``.

        Raises:
            LookupError: it does not keep them all, or some went out with a later step than
                ``number``.
        """
        assert not self._steps
        if parent.start or parent.end < end:
            raise LookupError(f"the first {end} positions are not kept")
        steps = parent._steps[: bisect_left(parent._steps, end, key=_position)]
        if steps and steps[-1].number > number:
            raise LookupError("they went out with a later step")
        try:
            copied = 0
            for step in steps:
                rows = parent._rows([step])
                count = min(step.count, end - step.position)
                rows = rows if count == step.count else rows[: len(rows) // step.count * count]
                self.add(step.number, step.position, count, step.regime, step.times, rows)
                copied += len(rows) if step.rows is None else 0
                if copied > SPILL_BYTES:
                    copied = 0
                    await trio.lowlevel.checkpoint()
                    if parent.start or parent.end < end:
                        raise LookupError("they were dropped meanwhile")
        except BaseException:
            self.clear()
            raise

    def clear(self) -> None:
        """Forget everything, and go on."""
        self._drop_from(0)

    def close(self) -> None:
        """Forget everything."""
        self.clear()
        if self._file:
            self._file.close()
            self._file = None

    def _row_bytes_of(self, step: Kept) -> int:
        return self._row_bytes if step.rows is None else len(step.rows) // step.count

    def _rows(self, run: list[Kept]) -> bytes:
        if len(run) == 1 and run[0].rows is not None:
            return run[0].rows
        return b"".join(self._stored(each) if each.rows is None else each.rows for each in run)

    def _stored(self, step: Kept) -> bytes:
        assert self._file
        size = self._row_bytes
        return os.pread(self._file.fileno(), step.count * size, step.position * size)

    def _drop_from(self, position: int) -> None:
        """Forget positions from ``position`` on; a step that begins before keeps its first rows."""
        steps = self._steps
        while steps and steps[-1].position + steps[-1].count > position:
            last = steps.pop()
            size = self._row_bytes_of(last)
            self._give_back(last, last.count * size)
            self._spilt = min(self._spilt, len(steps))
            if last.position < position:
                self._cut(last, position - last.position, size)
        self.end = position
        if not steps:
            self.forgotten = 0 if position == 0 else self.forgotten

    def _cut(self, step: Kept, count: int, size: int) -> None:
        rows = self._rows([step])[: count * size]
        self._steps.append(step._replace(count=count, rows=rows))
        self._budget.memory_left -= len(rows)

    def _give_back(self, step: Kept, size: int) -> None:
        if step.rows is None:
            self._budget.disk_left += size
        else:
            self._budget.memory_left += size

    def _spill(self, row_bytes: int) -> None:
        """Move old steps to the file, or forget them if it is full."""
        moved = 0
        self._row_bytes = row_bytes
        while moved < SPILL_BYTES and self._spilt < len(self._steps) - KEPT_STEPS_MIN:
            step = self._steps[self._spilt]
            assert step.rows is not None
            size = len(step.rows)
            if size > self._budget.disk_left or not self._store(step.position, step.rows):
                self._forget_oldest()
                continue
            self._budget.memory_left += size
            self._budget.disk_left -= size
            self._steps[self._spilt] = step._replace(rows=None)
            self._spilt += 1
            moved += size

    def _store(self, position: int, rows: bytes) -> bool:
        """Write rows to the file; False if the disk is full."""
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="p2pinfer-", buffering=0)  # noqa: SIM115 -- closed with the session
            at = position * self._row_bytes
            return os.pwrite(self._file.fileno(), rows, at) == len(rows)
        except OSError:
            return False

    def _forget_oldest(self) -> None:
        """Drop all but the newest steps: a history without its beginning cannot be replayed."""
        for step in self._steps[:-KEPT_STEPS_MIN]:
            self.forgotten = step.number
            self._give_back(step, step.count * self._row_bytes_of(step))
        del self._steps[:-KEPT_STEPS_MIN]
        self._spilt = 0
