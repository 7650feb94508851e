"""A process that only runs llama.cpp: it loads slices, then answers requests on a socket.

llama.cpp aborts the whole process on some bad input; here that ends a worker and not a node. The
worker waits on its socket when it has nothing to do, and leaves when the other end closes, so that
no orphan stays behind. It trusts the node that started it; ``frames`` says what they exchange.
"""

import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.errors import EngineError, P2pinferError, UnsupportedModel
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import CannotCopy, EngineBusy, Superseded
from p2pinfer.engine.cores import engine_cores, thread_counts
from p2pinfer.engine.frames import (
    PartConfig,
    PartReady,
    WorkerConfig,
    pack,
)
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.llama.aside import Aside
from p2pinfer.engine.llama.batching import Batcher, Regimes
from p2pinfer.engine.llama.binding import Sampler, Slice, Span, Vocabulary
from p2pinfer.engine.llama.core_shares import CoreShares, Threads, shares_folder
from p2pinfer.engine.llama.inbox import Inbox
from p2pinfer.engine.llama.kv_state import KvState
from p2pinfer.engine.llama.memory import aside_sessions
from p2pinfer.engine.llama.probed import probed
from p2pinfer.engine.llama.tracing import Trace
from p2pinfer.engine.llama.zero_pages import give_back_zeros

COPIED_BYTES_MAX = 48 << 20
"""Of a session's cells, which others wait for: some 20 ms. That is 4,096 positions of 16 layers of
the default model, and 1,500 of 8 layers of an 8B one. An opening holds them, and steps besides."""

if TYPE_CHECKING:  # loaded for the first answer that keeps to a grammar
    from p2pinfer.engine.llama.constraints import Grammars


YIELDING_NICENESS = 5
"""Of an engine that may take all cores: programs of the machine's owner go first."""


@dataclass(slots=True)
class _Request:
    """A numbered question of the node."""

    number: int
    decoding_ns: int = 0


@dataclass(slots=True)
class _Job:
    """A span that waits for its decode, and what to do with what comes out."""

    request: _Request
    span: Span
    regime: Regime
    done: Callable[["_Job", NDArray[np.float32]], None]
    last_row: int = 0
    """Where its last row lay in the decode."""

    @property
    def slot(self) -> int:
        return self.span.slot

    @property
    def position(self) -> int:
        return self.span.position

    @property
    def layers(self) -> int | None:
        return self.span.layers

    def __len__(self) -> int:
        return len(self.span)


_Fail = Callable[[_Request, EngineError], None]

NO_SLOT = -1


@dataclass(slots=True)
class _Copy:
    """The cells of one session as they were, and a slot aside to run rows behind them."""

    cells: KvState
    part: Slice
    slot: int


class _Part:
    """One slice, how it computes here, and the jobs that wait for it."""

    def __init__(self, part: PartConfig, config: WorkerConfig, shares: CoreShares) -> None:
        try:
            self._probe = probed(part, config.threads, shares.count)
        except EngineError as error:
            raise EngineError(f"{Path(part.path).name}: {error}") from error
        counts = thread_counts(self._probe.settings.threads)
        self._threads = Threads(counts, None if config.threads else shares)
        self._regimes = Regimes(self._probe.regimes_agree)
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
        if is_stage and aside_sessions(config.sessions) and self.slice.can_move:
            aside = load(sessions=aside_sessions(config.sessions), like=self.slice)
            give_back_zeros()
        self._places = Aside(self.slice, aside)
        self._copy: _Copy | None = None
        self.closed = _why_closed(self.slice, is_stage=is_stage, has_aside=aside is not None)
        self.waiting: Batcher[_Job] = Batcher(self._regimes)
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
        return PartReady(
            layers=self.slice.kept_layers,
            width=self.slice.width,
            vocabulary=self.slice.vocabulary,
            regimes_agree=self._regimes.agree,
            blocks=self._probe.blocks,
            numerics_class=self._probe.numerics_class,
            repack=self._probe.settings.repack,
            flash_attention=self._probe.settings.flash_attention,
            closed=self.closed,
        )

    def copy(self, slot: int, positions: int) -> str:
        """Keep a copy of a session's first positions; return in which numbers V is kept.

        Raises as ``EngineSession.copy``; then nothing is kept.
        """
        self.drop()
        if self.closed:
            raise CannotCopy(self.closed)
        borrowed = self._places.borrow()
        if borrowed is None:
            raise EngineBusy("no cells are free beside those of sessions just now")
        try:
            cells = self._places.cells(slot, COPIED_BYTES_MAX)
            if cells.positions < positions:
                raise EngineError(f"the session holds {cells.positions} positions")
        except EngineError:
            self._places.give_back(borrowed[1])
            raise
        self._copy = _Copy(cells, *borrowed)
        return cells.values_type

    def read(self, layer: int, first: int, end: int) -> tuple[bytes, bytes]:
        """Return K and V rows of the copy; raises EngineError if there is none."""
        return self._copied().cells.rows(layer, first, end)

    def trace(self, span: Span, regime: Regime, fail: _Fail, look: Callable[[], None]) -> Trace:
        """Trace one row behind the copy's positions before it; pauses as a prompt's decode does.

        Raises:
            EngineError: there is no copy, or llama.cpp failed.
        """
        copy = self._copied()
        copy.part.restore(copy.slot, copy.cells, span.position)
        span = replace(span, slot=copy.slot)
        pause = partial(self._pause, NO_SLOT, fail, look)
        with self._threads.held() as threads:
            copy.part.use_threads(threads)
            return copy.part.trace(span, pad_to=self._regimes.pad_to(regime), pause=pause)

    def drop(self) -> None:
        """Forget the copy, if there is one."""
        if self._copy:
            self._places.give_back(self._copy.slot)
            self._copy = None

    def _copied(self) -> _Copy:
        if self._copy is None:
            raise EngineError("no session's cells are copied")
        return self._copy

    def step(self, fail: _Fail, look: Callable[[], None]) -> None:
        """Run the next decode; ``look`` takes requests that came since, while it pauses."""
        self._run(self.waiting.next(), fail, look)

    def _run(self, jobs: Sequence[_Job], fail: _Fail, look: Callable[[], None]) -> None:
        runs: list[list[_Job]] = []
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

    def _pause(self, slot: int, fail: _Fail, look: Callable[[], None]) -> None:
        """Run rows of others that wait, in the middle of a session's decode aside."""
        paused = time.perf_counter_ns()
        look()
        self._run(self.waiting.narrow({*self._places.moved, slot}), fail, look)
        self._paused_ns += time.perf_counter_ns() - paused

    def _decode(self, run: Sequence[_Job], fail: _Fail, look: Callable[[], None]) -> None:
        started, paused_before = time.perf_counter_ns(), self._paused_ns
        pad_to = self._regimes.pad_to(run[0].regime)

        is_narrow = run[0].regime is Regime.NARROW
        try:
            if is_narrow:
                self._places.come_home([job.slot for job in run], started)
            else:
                self._places.step_aside(run[0].slot, started)
            part, _ = self._places.find(run[0].span)
            spans = [self._places.find(job.span)[1] for job in run]
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
            job.last_row = rows - 1
            job.request.decoding_ns += taken
            job.done(job, output)


def _why_closed(part: Slice, *, is_stage: bool, has_aside: bool) -> str:
    """Say why a slice's sessions cannot be copied and traced; empty if they can."""
    try:
        part.check_traced()
    except UnsupportedModel as error:
        return str(error)
    if not is_stage:
        return "the ends of a model are its requester's own"
    if not part.settings.flash_attention:
        return "this machine computes attention in steps that cannot be proven, since that is fast"
    return "" if has_aside else "there are no cells beside those of sessions"


def _slot_of(frame: list[Any]) -> int | None:
    """Return the session that a request is about, if it is about one."""
    match frame:
        case ["rows" | "copy" | "inherit", _, int(slot), *_] | [
            "close" | "lengthen" | "sampling",
            int(slot),
            *_,
        ]:
            return slot
        case _:
            return None


def _has_experts(path: str) -> bool:
    header = read_header(Path(path))
    return bool(header.integer(f"{header.string('general.architecture')}.expert_count"))


class _Worker:
    """Requests in, answers out."""

    def __init__(self, config: WorkerConfig, inbox: Inbox, send: Callable[[bytes], None]) -> None:
        if any(_has_experts(part.path) for part in config.parts):
            # ggml's tiled kernels pick by rows per expert, so a row would depend on its batch.
            os.environ["GGML_CPU_TILED_MM"] = "0"
        cores = engine_cores()
        shares = CoreShares(shares_folder() if len(cores) > 1 else None, cores)
        if config.threads:
            shares.keep(config.threads)
        self.parts = [_Part(part, config, shares) for part in config.parts]
        if not config.threads and any(part.threads_max > 1 for part in self.parts):
            os.nice(YIELDING_NICENESS)
        self._first, self._last = self.parts[0], self.parts[-1]
        self._vocabulary = Vocabulary(self._first.slice.vocab)
        self._grammars: Grammars | None = None
        self._samplers: dict[int, Sampler] = {}
        self._inbox, self._send = inbox, send
        self._put_off: list[list[Any]] = []
        """Requests that must not be carried out in the middle of a decode."""
        self._errands: deque[list[Any]] = deque()
        """Requests about a copy, one of which is carried out between two decodes."""

    def is_busy(self) -> bool:
        return bool(self._errands) or any(part.waiting for part in self.parts)

    def step(self) -> None:
        for part in reversed(self.parts):  # a sampled token is embedded in the same turn
            if part.waiting:
                part.step(self._fail, self._look)
        while self._put_off:
            self.take(self._put_off.pop(0))
        if self._errands:
            self._run_errand(self._errands.popleft())

    def _look(self) -> None:
        """Take rows that came in the middle of a stage's decode; what frees cells is put off."""
        for frame in self._inbox.frames(wait=False):
            slot = _slot_of(frame)
            if frame[0] == "rows" and all(slot != _slot_of(each) for each in self._put_off):
                self.take(frame)
            else:
                self._put_off.append(frame)

    def take(self, frame: list[Any]) -> None:
        """Carry out a request, or line it up for a decode."""
        match frame:
            case ["rows", number, slot, position, regime, rows, layers]:
                span = Span(slot, position, self._rows(rows), layers=layers)
                for job in self._first.waiting.supersede(slot, position):
                    self._fail(job.request, Superseded())
                self._line_up(self._first, _Request(number), span, regime, self._give_rows)
            case ["embed", number, slot, position, regime, tokens]:
                span = Span(slot, position, np.array(tokens, np.int32))
                self._line_up(self._first, _Request(number), span, regime, self._give_rows)
            case ["absorb", number, slot, position, regime, rows]:
                span = Span(slot, position, self._rows(rows), outputs=False)
                self._line_up(self._last, _Request(number), span, regime, self._acknowledge)
            case ["next", number, slot, position, regime, rows, drafted]:
                span = Span(slot, position, self._rows(rows))
                done = partial(self._sample, drafted)
                self._line_up(self._last, _Request(number), span, regime, done)
            case ["sampling", slot, sampling, recent, said]:
                self._clear(slot)  # jobs still waiting belong to an answer that is no longer wanted
                self._start(slot, Sampling(**sampling), recent, said)
            case ["lengthen", slot, context]:
                for part in self.parts:
                    part.lengthen(slot, context)
            case ["inherit", number, slot, source, length]:
                self._try(number, partial(self._inherit, slot, source, length))
            case ["close", slot]:
                self._clear(slot)
                for part in self.parts:
                    part.forget(slot)
            case ["copy" | "read" | "trace" | "drop", *_]:
                self._errands.append(frame)
            case _:
                raise AssertionError(f"the node asked for {frame[:1]}")

    def _run_errand(self, frame: list[Any]) -> None:
        """Carry out a request about a copy."""
        match frame:
            case ["copy", number, slot, positions]:
                self._try(number, lambda: [self._first.copy(slot, positions)])
            case ["read", number, layer, first, end]:
                self._try(number, lambda: [*self._first.read(layer, first, end)])
            case ["trace", number, position, regime, row, layers]:
                span = Span(0, position, self._rows(row), layers=layers)
                self._try(number, lambda: [self._trace(span, Regime(regime))])
            case _:
                self._first.drop()

    def _start(self, slot: int, sampling: Sampling, recent: list[int], said: list[int]) -> None:
        constraint = None
        if sampling.grammar:
            if self._grammars is None:
                from p2pinfer.engine.llama.constraints import Grammars

                self._grammars = Grammars(self._vocabulary)
            constraint = self._grammars.begin(sampling.grammar, said)
        part = self._last.slice_of(slot)
        self._samplers[slot] = Sampler(part, sampling, recent, constraint)

    def _inherit(self, slot: int, source: int, length: int) -> list[Any]:
        for part in self.parts:
            part.inherit(slot, source, length)
        return []

    def _trace(self, span: Span, regime: Regime) -> list[tuple[int, str, bytes]]:
        found = self._first.trace(span, regime, self._fail, self._look)
        return [(layer, str(step), numbers.tobytes()) for (layer, step), numbers in found.items()]

    def _try(self, number: int, work: Callable[[], list[Any]]) -> None:
        """Carry out a request at once, and answer it."""
        request, started = _Request(number), time.perf_counter_ns()
        try:
            values = work()
        except EngineError as error:
            self._fail(request, error)
            return
        request.decoding_ns = time.perf_counter_ns() - started
        self._answer(request, *values)

    def _rows(self, data: bytes) -> NDArray[np.float32]:
        return np.frombuffer(data, np.float32).reshape(-1, self._first.slice.width)

    def _line_up(
        self,
        part: _Part,
        request: _Request,
        span: Span,
        regime: int,
        done: Callable[[_Job, NDArray[np.float32]], None],
    ) -> None:
        part.waiting.add(_Job(request, span, Regime(regime), done))

    def _give_rows(self, job: _Job, rows: NDArray[np.float32]) -> None:
        self._answer(job.request, rows.tobytes())

    def _acknowledge(self, job: _Job, _: NDArray[np.float32]) -> None:
        self._answer(job.request)

    def _sample(self, drafted: int | None, job: _Job, logits: NDArray[np.float32]) -> None:
        """Draw a token, and embed it at once: that saves a round trip.

        One that ends the answer goes nowhere, and one that was drafted has been embedded before.
        """
        piece_of = self._vocabulary.piece
        try:
            token, found = self._samplers[job.slot].sample(job.last_row, logits)
        except EngineError as error:
            self._fail(job.request, error)
            return
        likely = [(each, piece_of(each), p) for each, p in found]
        piece = piece_of(token)
        if self._vocabulary.is_end(token):
            self._answer(job.request, token, piece, True, b"", likely)
            return

        def give(follower: _Job, rows: NDArray[np.float32]) -> None:
            self._answer(follower.request, token, piece, False, rows.tobytes(), likely)

        position = job.span.position + len(job)
        span = Span(job.slot, position, np.array([token], np.int32))
        is_full = position >= self._first.slice_of(job.slot).context
        if token == drafted or is_full:
            self._answer(job.request, token, piece, False, b"", likely)
        else:
            self._line_up(self._first, job.request, span, Regime.NARROW, give)

    def _clear(self, slot: int) -> None:
        """Drop a session's sampler and its waiting jobs, each of which fails."""
        for part in self.parts:
            for job in part.waiting.drop(slot):
                self._fail(job.request, EngineError("the session was given up"))
        if sampler := self._samplers.pop(slot, None):
            sampler.close()

    def _answer(self, request: _Request, *values: Any) -> None:
        self._send(pack([request.number, request.decoding_ns // 1000, *values]))

    def _fail(self, request: _Request, error: EngineError) -> None:
        self._send(pack([request.number, None, str(error), type(error).__name__]))


def _serve(sock: socket.socket) -> None:
    """Answer requests until the node closes its end."""
    inbox = Inbox(sock)
    worker: _Worker | None = None
    while not inbox.is_closed:
        # Look without waiting between decodes; wait in the kernel when idle.
        for frame in inbox.frames(wait=not (worker and worker.is_busy())):
            if worker:
                worker.take(frame)
                continue
            try:
                worker = _Worker(WorkerConfig.parse(frame[0]), inbox, sock.sendall)
            except P2pinferError as error:
                sock.sendall(pack(["refused", type(error).__name__, str(error)]))
                return
            sock.sendall(pack(["ready", [asdict(part.describe()) for part in worker.parts]]))
        if worker:
            worker.step()


def main() -> None:
    """Serve on the socket whose file descriptor is the first argument."""
    os.environ["GGML_NO_BACKTRACE"] = "1"  # an abort's own sentence is what the node reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C is the node's business
    sock = socket.socket(fileno=int(sys.argv[1]))
    with suppress(BrokenPipeError, ConnectionResetError):  # the node went away in mid-answer
        _serve(sock)
    os._exit(0)  # nothing to save; llama.cpp's own destructors only take time


if __name__ == "__main__":
    main()
