"""One slice in a worker: how it computes here, and the rows that wait for it."""

import ctypes
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.errors import EngineError, UnsupportedModel
from p2pinfer.core.exits import NEEDS_LESS
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.base import CannotCopy, EngineBusy
from p2pinfer.engine.cores import thread_counts
from p2pinfer.engine.frames import (
    PartConfig,
    PartReady,
    WorkerConfig,
)
from p2pinfer.engine.llama.aside import Aside
from p2pinfer.engine.llama.batching import Batcher, Regimes
from p2pinfer.engine.llama.binding import Slice, Span
from p2pinfer.engine.llama.core_shares import CoreShares, Threads
from p2pinfer.engine.llama.kv_state import KvState, Words
from p2pinfer.engine.llama.memory import aside_sessions
from p2pinfer.engine.llama.pacing import Pacing, beside
from p2pinfer.engine.llama.probed import probed
from p2pinfer.engine.llama.tracing import Trace
from p2pinfer.engine.llama.zero_pages import give_back_zeros

COPIED_BYTES_MAX = 48 << 20
"""Of a session's cells, which others wait for: some 6 ms, in memory that was made ready before.
That is 4,096 positions of 16 layers of the default model, and 1,500 of 8 layers of an 8B one. An
opening holds them, and steps besides."""

GROWTH_POSITIONS = 256
"""That a session may read while the memory for its copy is made ready: some decodes."""


@dataclass(slots=True)
class WorkerRequest:
    """A numbered question of the node."""

    number: int
    decoding_ns: int = 0


@dataclass(slots=True)
class WorkerJob:
    """A span that waits for its decode, and what to do with what comes out."""

    request: WorkerRequest
    span: Span
    regime: Regime
    done: Callable[["WorkerJob", NDArray[np.float32]], None]
    last_row: int = 0
    """Where its last row lay in the decode."""

    @property
    def slot(self) -> int:
        """The session."""
        return self.span.slot

    @property
    def position(self) -> int:
        """Where it begins."""
        return self.span.position

    @property
    def layers(self) -> int | None:
        """How many layers it goes through; None: all."""
        return self.span.layers

    def __len__(self) -> int:
        return len(self.span)


Fail = Callable[[WorkerRequest, EngineError], None]


@dataclass(slots=True)
class _Copy:
    """The cells of one session as they were, and a context of its own to run rows behind them."""

    cells: KvState
    part: Slice


class LoadedPart:
    """One slice, how it computes here, and the jobs that wait for it."""

    def __init__(self, part: PartConfig, config: WorkerConfig, shares: CoreShares) -> None:
        try:
            self._probe = probed(part, config.threads, shares.count, config.gpu)
        except EngineError as error:
            raise EngineError(f"{Path(part.path).name}: {error}") from error
        counts = thread_counts(self._probe.settings.threads)
        self._threads = Threads(counts, None if config.threads else shares)
        settings = self._probe.settings
        self._regimes = Regimes(self._probe.regimes_agree, settings.fixed)
        load = partial(
            Slice,
            Path(part.path),
            logits=part.logits,
            settings=self._probe.settings,
            context=config.context,
        )
        self._load = load
        self.slice, aside = load(sessions=config.sessions), None
        give_back_zeros()  # cells that no session has written to yet
        is_stage = not (part.tokens or part.logits)  # an end is a few layers
        # On a GPU a decode must not pause: between layers it computes in other steps then.
        can_pause = self.slice.can_move and not settings.device
        if is_stage and aside_sessions(config.sessions) and can_pause:
            aside = load(sessions=aside_sessions(config.sessions), like=self.slice)
            give_back_zeros()
        self._places = Aside(self.slice, aside)
        self._copy: _Copy | None = None
        self.closed = _why_closed(self.slice, is_stage=is_stage)
        self.waiting: Batcher[WorkerJob] = Batcher(self._regimes)
        self._paused_ns = 0

    @property
    def threads_max(self) -> int:
        """How many threads pay here."""
        return self._probe.settings.threads

    def lengthen(self, slot: int, context: int) -> None:
        """Make room for a session that is longer than usual."""
        load = partial(self._load, sessions=1, context=context, like=self.slice)
        self._places.lengthen(slot, load)

    def slice_of(self, slot: int) -> Slice:
        """Return where a session's rows are decoded."""
        return self._places.slice_of(slot)

    def inherit(self, slot: int, source: int, length: int) -> None:
        """Begin a session with a copy of another's first positions; raises EngineError."""
        self._places.inherit(slot, source, length)

    def forget(self, slot: int) -> None:
        """Free a session's cells."""
        self._places.forget(slot)

    def describe(self) -> PartReady:
        """Return what the node is told of it."""
        return PartReady(
            layers=self.slice.kept_layers,
            width=self.slice.width,
            vocabulary=self.slice.vocabulary,
            regimes_agree=self._regimes.agree,
            blocks=self._probe.blocks,
            numerics_class=self._probe.numerics_class,
            repack=self._probe.settings.repack,
            flash_attention=self._probe.settings.flash_attention,
            device=self._probe.settings.device,
            closed=self.closed,
        )

    def copy(self, slot: int, positions: int, let_others: Callable[[], bool]) -> str:
        """Keep a copy of a session's first positions; return how attention is computed over it.

        Args:
            slot: of the session.
            positions: it must hold as many.
            let_others: as for ``trace``.

        Raises as ``EngineSession.copy``; then nothing is kept.
        """
        self.drop()
        if self.closed:
            raise CannotCopy(self.closed)
        held, size = self._places.size(slot, COPIED_BYTES_MAX)
        context = held + GROWTH_POSITIONS
        # The system may take long to find so much memory, when others use nearly all of it.
        room, part = beside(partial(self._make_room, size * context // held, context), let_others)
        try:
            cells = self._places.cells(slot, COPIED_BYTES_MAX, room)
            if cells.positions < positions:
                raise EngineError(f"the session holds {cells.positions} positions")
            if cells.positions > context:
                raise EngineBusy("the session is reading a prompt")
        except EngineError:
            part.close()
            raise
        self._copy = _Copy(cells, part)
        return cells.attention

    def _make_room(self, size: int, context: int) -> tuple[Words, Slice]:
        """Return memory for a copy, which is zero, and a context to run rows behind it.

        It is made for this copy: others' sessions keep all their cells, and go on in its pauses.
        """
        try:
            room = np.empty(size // 4, np.uint32)
        except MemoryError as error:
            raise EngineError(f"memory ran out for a copy: {NEEDS_LESS}") from error
        ctypes.memset(room.ctypes.data, 0, room.nbytes)  # the system gives it only now
        return room, self._load(sessions=1, context=context, like=self.slice)

    def read(self, layer: int, first: int, end: int) -> tuple[bytes, bytes]:
        """Return K and V rows of the copy; raises EngineError if there is none."""
        return self._copied().cells.rows(layer, first, end)

    def trace(self, span: Span, regime: Regime, let_others: Callable[[], bool]) -> Trace:
        """Trace one row behind the copy's positions before it.

        Args:
            span: the row, of slot 0.
            regime: that it ran in.
            let_others: called between steps; decodes once what waits, and says whether it did.

        Raises:
            EngineError: there is no copy, or llama.cpp failed.
        """
        copy = self._copied()
        copy.part.restore(0, copy.cells, span.position)
        pacing = Pacing(let_others)
        with self._threads.held() as threads:
            copy.part.use_threads(threads)
            return copy.part.trace(span, pad_to=self._regimes.pad_to(regime), pause=pacing.pause)

    def drop(self) -> None:
        """Forget the copy, if there is one."""
        if self._copy:
            self._copy.part.close()
            self._copy = None

    def _copied(self) -> _Copy:
        if self._copy is None:
            raise EngineError("no session's cells are copied")
        return self._copy

    def step(self, fail: Fail, look: Callable[[], None]) -> None:
        """Run the next decode; ``look`` takes requests that came since, while it pauses."""
        self._run(self.waiting.next(), fail, look)

    def _run(self, jobs: Sequence[WorkerJob], fail: Fail, look: Callable[[], None]) -> None:
        runs: list[list[WorkerJob]] = []
        for job in jobs:
            try:
                self._places.check(job.span)
            except EngineError as error:
                fail(job.request, error)
                continue
            is_home = self._places.is_home
            before = runs[-1][-1].slot if runs else -2
            if before + 1 == job.slot and is_home(before) and is_home(job.slot):
                runs[-1].append(job)
            else:  # the first job, one after the gap that a refused job left, or a long session's
                runs.append([job])
        for run in runs:
            self._decode(run, fail, look)

    def _pause(self, slot: int, fail: Fail, look: Callable[[], None]) -> None:
        """Run rows of others that wait, in the middle of a session's decode aside."""
        paused = time.perf_counter_ns()
        look()
        self._run(self.waiting.narrow({*self._places.moved, slot}), fail, look)
        self._paused_ns += time.perf_counter_ns() - paused

    def _decode(self, run: Sequence[WorkerJob], fail: Fail, look: Callable[[], None]) -> None:
        started, paused_before = time.perf_counter_ns(), self._paused_ns
        pad_to = self._regimes.pad_to(run[0].regime)

        is_narrow = run[0].regime is Regime.NARROW
        try:
            if is_narrow:
                self._places.come_home([job.slot for job in run], started)
            else:
                self._places.step_aside(run[0].slot, started)
            found = [self._places.find(job.span) for job in run]
            part, spans = found[0][0], [span for _, span in found]
            pauses = part is not self.slice and not is_narrow
            pause = partial(self._pause, run[0].slot, fail, look) if pauses else None
            with self._threads.held() as threads:
                part.use_threads(threads)
                outputs = part.decode(spans, pad_to=pad_to, pause=pause)
        except EngineError as error:
            for job in run:
                fail(job.request, error)
            return
        taken = time.perf_counter_ns() - started - (self._paused_ns - paused_before)
        rows = 0
        for job, output in zip(run, outputs, strict=True):
            rows += len(job)
            job.last_row = 0 if self.slice.settings.fixed else rows - 1
            job.request.decoding_ns += taken
            job.done(job, output)


def _why_closed(part: Slice, *, is_stage: bool) -> str:
    """Say why a slice's sessions cannot be copied and traced; empty if they can."""
    try:
        part.check_traced()
    except UnsupportedModel as error:
        return str(error)
    if not is_stage:
        return "the ends of a model are its requester's own"
    if part.settings.device:
        return "a GPU computes steps together that would have to be shown one by one"
    return (
        "" if part.can_move else "llama.cpp does not give out all cells of such a model's sessions"
    )
