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
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.errors import EngineError, P2pinferError
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import Superseded
from p2pinfer.engine.cores import engine_cores
from p2pinfer.engine.frames import (
    WorkerConfig,
    pack,
)
from p2pinfer.engine.gguf.reader import read_header
from p2pinfer.engine.llama.binding import Sampler, Span, Vocabulary
from p2pinfer.engine.llama.core_shares import CoreShares, shares_folder
from p2pinfer.engine.llama.inbox import Inbox
from p2pinfer.engine.llama.loaded_part import LoadedPart, WorkerJob, WorkerRequest
from p2pinfer.engine.llama.logprobs import log_probabilities

if TYPE_CHECKING:  # loaded for the first answer that keeps to a grammar
    from p2pinfer.engine.llama.constraints import Grammars


YIELDING_NICENESS = 5
"""Of an engine that may take all cores: programs of the machine's owner go first."""

READS_A_TURN = 8
"""Of a copy's cells between two decodes: 8 MiB, in a few milliseconds. All at once would keep
others waiting for 48 MiB; one by one, each behind a decode, takes a busy stage over a minute."""


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
        self.parts = [LoadedPart(part, config, shares) for part in config.parts]
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
        """Requests about a copy; between two decodes one is carried out, or some reads."""

    def is_busy(self) -> bool:
        return bool(self._errands) or any(part.waiting for part in self.parts)

    def step(self) -> None:
        self._decode()
        reads = takewhile(lambda frame: frame[0] == "read", self._errands)
        for _ in list(islice(reads, READS_A_TURN)) or list(islice(self._errands, 1)):
            self._run_errand(self._errands.popleft())

    def _decode(self) -> None:
        """Run one decode of each part, if anything waits."""
        for part in reversed(self.parts):  # a sampled token is embedded in the same turn
            if part.waiting:
                part.step(self._fail, self._look)
        while self._put_off:
            self.take(self._put_off.pop(0))

    def _let_others(self) -> bool:
        """Serve sessions in the middle of a trace, whose cells are none of theirs.

        Returns:
            Whether anything was decoded.
        """
        for frame in self._inbox.frames(wait=False):
            self.take(frame)
        if not any(part.waiting for part in self.parts):
            return False
        self._decode()
        return True

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
                self._line_up(self._first, WorkerRequest(number), span, regime, self._give_rows)
            case ["embed", number, slot, position, regime, tokens]:
                span = Span(slot, position, np.array(tokens, np.int32))
                self._line_up(self._first, WorkerRequest(number), span, regime, self._give_rows)
            case ["absorb", number, slot, position, regime, rows]:
                span = Span(slot, position, self._rows(rows), outputs=False)
                self._line_up(self._last, WorkerRequest(number), span, regime, self._acknowledge)
            case ["score", number, slot, position, regime, rows, following]:
                span = Span(slot, position, self._rows(rows), every=True)
                done = partial(self._score, following)
                self._line_up(self._last, WorkerRequest(number), span, regime, done)
            case ["next", number, slot, position, regime, rows, drafted, following]:
                span = Span(slot, position, self._rows(rows), every=bool(following))
                done = partial(self._sample, drafted, following)
                self._line_up(self._last, WorkerRequest(number), span, regime, done)
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
                copy = partial(self._first.copy, slot, positions, self._let_others)
                self._try(number, lambda: [copy()])
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
        found = self._first.trace(span, regime, self._let_others)
        return [(layer, str(step), numbers.tobytes()) for (layer, step), numbers in found.items()]

    def _try(self, number: int, work: Callable[[], list[Any]]) -> None:
        """Carry out a request at once, and answer it."""
        request, started = WorkerRequest(number), time.perf_counter_ns()
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
        part: LoadedPart,
        request: WorkerRequest,
        span: Span,
        regime: int,
        done: Callable[[WorkerJob, NDArray[np.float32]], None],
    ) -> None:
        part.waiting.add(WorkerJob(request, span, Regime(regime), done))

    def _give_rows(self, job: WorkerJob, rows: NDArray[np.float32]) -> None:
        self._answer(job.request, rows.tobytes())

    def _acknowledge(self, job: WorkerJob, _: NDArray[np.float32]) -> None:
        self._answer(job.request)

    def _score(self, following: list[int], job: WorkerJob, logits: NDArray[np.float32]) -> None:
        """Say how likely each of some tokens is behind its row."""
        self._answer(job.request, self._scores(job.slot, following, logits))

    def _scores(
        self, slot: int, following: list[int], logits: NDArray[np.float32]
    ) -> list[list[Any]]:
        told = self._samplers[slot].prompt_told
        likely = [
            log_probabilities(row, token, told)
            for row, token in zip(logits, following, strict=False)
        ]
        piece = partial(self._vocabulary.piece, special=True)
        return [[(each, piece(each), p) for each, p in found] for found in likely]

    def _sample(
        self,
        drafted: int | None,
        following: list[int],
        job: WorkerJob,
        logits: NDArray[np.float32],
    ) -> None:
        """Draw a token, and embed it at once: that saves a round trip.

        One that ends the answer goes nowhere, and one that was drafted has been embedded before.
        """
        piece_of = self._vocabulary.shown
        scores = self._scores(job.slot, following, logits) if following else []
        logits = logits[-1:]
        try:
            token, found = self._samplers[job.slot].sample(job.last_row, logits)
        except EngineError as error:
            self._fail(job.request, error)
            return
        likely = [(each, piece_of(each), p) for each, p in found]
        piece = piece_of(token)
        if self._vocabulary.is_end(token):
            self._answer(job.request, token, piece, True, b"", likely, scores)
            return

        def give(follower: WorkerJob, rows: NDArray[np.float32]) -> None:
            self._answer(follower.request, token, piece, False, rows.tobytes(), likely, scores)

        position = job.span.position + len(job)
        span = Span(job.slot, position, np.array([token], np.int32))
        is_full = position >= self._first.slice_of(job.slot).context
        if token == drafted or is_full:
            self._answer(job.request, token, piece, False, b"", likely, scores)
        else:
            self._line_up(self._first, job.request, span, Regime.NARROW, give)

    def _clear(self, slot: int) -> None:
        """Drop a session's sampler and its waiting jobs, each of which fails."""
        for part in self.parts:
            for job in part.waiting.drop(slot):
                self._fail(job.request, EngineError("the session was given up"))
        if sampler := self._samplers.pop(slot, None):
            sampler.close()

    def _answer(self, request: WorkerRequest, *values: Any) -> None:
        self._send(pack([request.number, request.decoding_ns // 1000, *values]))

    def _fail(self, request: WorkerRequest, error: EngineError) -> None:
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
