"""Which waiting rows go into the next decode: continuous batching as a plain data structure.

Each session's jobs keep their order. Decode steps of different sessions share a decode; prompts
and decode steps take turns, so that neither waits long for the other.
"""

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from p2pinfer.core.limits import BLOCK_ROWS, NARROW_ROWS_MAX, WIDE_ROWS_MAX
from p2pinfer.core.regimes import Regime


class Job(Protocol):
    """What the batcher needs to know of a job."""

    @property
    def slot(self) -> int:
        """Which session it belongs to."""
        ...

    @property
    def position(self) -> int:
        """Of its first row in the session."""
        ...

    @property
    def regime(self) -> Regime:
        """Which kernels its rows are to run in."""
        ...

    @property
    def layers(self) -> int | None:
        """How many layers it runs; the same for all jobs of a decode."""
        ...

    def __len__(self) -> int:
        """How many rows the job decodes."""
        ...


J = TypeVar("J", bound=Job)


@dataclass(frozen=True)
class Regimes:
    """What the probe found out about the regimes."""

    agree: bool
    """A row has the same bits narrow and wide, so as many single rows may share a decode as a wide
    one holds."""
    fixed: bool = False
    """Decodes have one row, or one fixed number of them."""

    @property
    def single_rows_max(self) -> int:
        """How many sessions' single rows one decode may hold."""
        if self.fixed:
            return 1
        return WIDE_ROWS_MAX if self.agree else NARROW_ROWS_MAX

    def pad_to(self, regime: Regime) -> int:
        """The fewest rows a decode must have to run in a regime's kernels."""
        if regime is Regime.BLOCK:
            return BLOCK_ROWS
        if self.fixed:
            return WIDE_ROWS_MAX if regime is Regime.WIDE else 0
        return NARROW_ROWS_MAX + 1 if regime is Regime.WIDE and not self.agree else 0


def is_span(job: Job) -> bool:
    """Whether a job must have a decode of its own."""
    return len(job) > 1 or job.regime is not Regime.NARROW


class Batcher(Generic[J]):
    """Waiting jobs by slot; ``next`` takes the jobs of the next decode."""

    def __init__(self, regimes: Regimes) -> None:
        self._regimes = regimes
        self._waiting: dict[int, deque[J]] = {}
        self._prompt_is_next = False
        """What ran last were single rows. A row that comes while a prompt's span runs waits for
        that one alone, at every stage."""

    def __bool__(self) -> bool:
        """Whether any job is waiting."""
        return bool(self._waiting)

    def add(self, job: J) -> None:
        """Queue a job after the others of its session."""
        self._waiting.setdefault(job.slot, deque()).append(job)

    def drop(self, slot: int) -> list[J]:
        """Remove and return all jobs that wait for a slot."""
        return list(self._waiting.pop(slot, ()))

    def supersede(self, slot: int, position: int) -> list[J]:
        """Remove and return the jobs of a slot all of whose rows the next job will overwrite.

        ``position``: of its first row.
        """
        jobs, found = self._waiting.get(slot), []
        while jobs and jobs[-1].position >= position:
            found.append(jobs.pop())
        if jobs is not None and not jobs:
            del self._waiting[slot]
        return found

    def next(self) -> list[J]:
        """Take one longer span, or single rows of sessions in adjacent slots, in slot order."""
        if len(self._waiting) == 1:  # the usual case, on the path of every token
            job = self._take(next(iter(self._waiting)))
            self._prompt_is_next = not is_span(job)
            return [job]
        heads = {slot: jobs[0] for slot, jobs in self._waiting.items()}
        spans = [slot for slot, job in heads.items() if is_span(job)]
        singles = [slot for slot in heads if slot not in spans]
        if spans and (self._prompt_is_next or not singles):
            chosen, self._prompt_is_next = spans[:1], False
        elif singles:
            self._prompt_is_next = True
            alike = {slot for slot in singles if heads[slot].layers == heads[singles[0]].layers}
            chosen = self._run_around(singles[0], alike)
        else:
            return []
        return [self._take(slot) for slot in chosen]

    def narrow(self, besides: Collection[int]) -> list[J]:
        """Take what is short: narrow rows of one session, or one row each of several in a row.

        Args:
            besides: slots to leave as they are.
        """
        heads = {
            slot: jobs[0]
            for slot, jobs in self._waiting.items()
            if slot not in besides and jobs[0].regime is Regime.NARROW
        }
        if not heads:
            return []
        slot, first = next(iter(heads.items()))
        if is_span(first):
            return [self._take(slot)]
        alike = {n for n, job in heads.items() if not is_span(job) and job.layers == first.layers}
        return [self._take(each) for each in self._run_around(slot, alike)]

    def _run_around(self, slot: int, waiting: set[int]) -> list[int]:
        """The longest run of adjacent waiting slots around the one that has waited longest."""
        first = last = slot
        limit = self._regimes.single_rows_max
        while last + 1 in waiting and last - first + 1 < limit:
            last += 1
        while first - 1 in waiting and last - first + 1 < limit:
            first -= 1
        return list(range(first, last + 1))

    def _take(self, slot: int) -> J:
        jobs = self._waiting.pop(slot)
        job = jobs.popleft()
        if jobs:
            self._waiting[slot] = jobs  # after the others: dicts keep insertion order
        return job
