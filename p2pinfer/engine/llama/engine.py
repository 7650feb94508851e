"""Stages and ends in llama.cpp: sessions, numbered slots, over an engine worker."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs

from p2pinfer.core.errors import EngineDied, EngineError
from p2pinfer.core.limits import CONTEXT_DEFAULT, SESSIONS_DEFAULT
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import (
    Candidate,
    Decoded,
    Done,
    EngineBusy,
    NextToken,
    Room,
    RowSteps,
    Scores,
)
from p2pinfer.engine.frames import PartConfig, WorkerConfig
from p2pinfer.engine.gpu import Gpu
from p2pinfer.engine.llama.process import Answer, Answered, Pending, Worker, open_worker
from p2pinfer.engine.llama.tokenizer import Tokenizer, open_tokenizer
from p2pinfer.engine.special_tokens import SpecialTokens
from p2pinfer.engine.store.slice_files import in_use

READ_BYTES = 1 << 20
"""K and V rows per answer of the worker, which computes nothing while it sends them."""


class _Slots:
    """A worker's numbered slots; the lowest free one is taken first, so that they stay adjacent."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self._free = set(range(worker.config.sessions))
        self._long_cells = worker.config.long_cells

    def take(self, context: int | None = None) -> "_Slot":
        if not self.worker.is_running:
            raise EngineDied("the engine's process has ended and is being restarted")
        if not self._free:
            raise EngineBusy(f"all {self.worker.config.sessions} sessions are taken")
        long = context if context and context > self.worker.config.context else 0
        if long > self._long_cells:
            raise EngineBusy(f"{self._long_cells:,} positions are left for long sessions")
        number = min(self._free)
        self._free.remove(number)
        self._long_cells -= long
        if long:
            self.worker.tell("lengthen", number, long)
        return _Slot(self, number, long)

    def give_back(self, number: int, long: int) -> None:
        self._free.add(number)
        self._long_cells += long


class _Slot:
    """One session of one generation of a worker."""

    def __init__(self, slots: _Slots, number: int, long: int) -> None:
        self._slots, self._number, self._long = slots, number, long
        self._generation = slots.worker.generation
        self._closed = False

    def request(self, answered: Answered, kind: str, *values: object) -> None:
        self._check()
        self._slots.worker.request(answered, kind, self._number, *values)

    async def ask(self, kind: str, *values: object) -> Answer:
        self._check()
        return await self._slots.worker.ask(kind, self._number, *values)

    def tell(self, kind: str, *values: object) -> None:
        self._check()
        self._slots.worker.tell(kind, self._number, *values)

    async def inherit(self, parent: "_Slot", length: int) -> None:
        """Raise EngineError where the other session is over, or its cells died with a worker."""
        if parent._closed:
            raise EngineError("the other session is over")
        parent._check()
        await self.ask("inherit", parent._number, length)

    @property
    def worker(self) -> Worker:
        return self._slots.worker

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._slots.give_back(self._number, self._long)
        if self._is_alive():
            self._slots.worker.tell("close", self._number)

    def _is_alive(self) -> bool:
        worker = self._slots.worker
        return worker.is_running and worker.generation == self._generation

    def _check(self) -> None:
        assert not self._closed
        if not self._is_alive():
            raise EngineDied("the engine's process died, and the session's KV cache with it")


class _LocalCopy:
    def __init__(self, worker: Worker, layers: int, copies: list["_LocalCopy"]) -> None:
        self._worker, self._layers, self._copies = worker, layers, copies
        self._generation = worker.generation
        self.attention = ""
        self._positions_at_once = 0
        copies.append(self)

    async def read(self, layer: int, first: int, end: int) -> tuple[bytes, bytes]:
        if not self._positions_at_once:
            _, *found = await self._ask("read", layer, 0, 1)
            self._positions_at_once = max(READ_BYTES // sum(map(len, found)), 1)
        many = self._positions_at_once
        # All of it is asked for before any is awaited: each answer may take a decode of others.
        asked = [
            self._start("read", layer, at, min(at + many, end)) for at in range(first, end, many)
        ]
        answers = [await each.wait() for each in asked]
        keys, values = zip(*((keys, values) for _, keys, values in answers), strict=True)
        return b"".join(keys), b"".join(values)

    async def trace(self, position: int, row: bytes, *, regime: Regime) -> RowSteps:
        _, found = await self._ask("trace", position, regime, row, self._layers)
        return {(layer, step): numbers for layer, step, numbers in found}

    def close(self) -> None:
        if self in self._copies:
            self._copies.remove(self)
            if self._is_alive():
                self._worker.tell("drop")

    async def _ask(self, kind: str, *values: object) -> Answer:
        return await self._start(kind, *values).wait()

    def _start(self, kind: str, *values: object) -> Pending:
        assert self in self._copies
        if not self._is_alive():
            raise EngineDied("the engine's process died, and the copy of the cells with it")
        return self._worker.start(kind, *values)

    def _is_alive(self) -> bool:
        return self._worker.is_running and self._worker.generation == self._generation


class _LocalStageSession:
    def __init__(self, slot: _Slot, layers: int, copies: list[_LocalCopy]) -> None:
        self._slot, self._layers, self._copies = slot, layers, copies
        self._closed = False

    def submit(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        def answered(answer: Answer | EngineError) -> None:
            if not self._closed:
                done(answer if isinstance(answer, EngineError) else Decoded(answer[1], answer[0]))

        self._slot.request(answered, "rows", position, regime, rows, self._layers)

    async def inherit(self, parent: "_LocalStageSession", length: int) -> None:
        assert self._layers <= parent._layers
        await self._slot.inherit(parent._slot, length)

    async def copy(self, positions: int) -> _LocalCopy:
        if self._copies:
            raise EngineBusy("another session's cells are copied just now")
        copy = _LocalCopy(self._slot.worker, self._layers, self._copies)
        try:
            _, copy.attention = await self._slot.ask("copy", positions)
        except BaseException:
            copy.close()
            raise
        return copy

    def close(self) -> None:
        self._closed = True
        self._slot.close()


class LocalStage:
    """A stage's layers in a worker process; a ``StageEngine``."""

    def __init__(self, worker: Worker, first: int) -> None:
        (part,) = worker.parts
        self.worker = worker
        self.first, self.end = first, first + part.layers
        self.width = part.width
        self.room = _room(worker)
        self.context = max(self.room.usual, self.room.longest)
        self.numerics_class, self.blocks = part.numerics_class, part.blocks
        self._slots = _Slots(worker)
        self._copies: list[_LocalCopy] = []

    def open(self, end: int, context: int | None = None) -> _LocalStageSession:
        """Reserve a session's cells up to a layer; raises EngineBusy or EngineDied."""
        assert self.first < end <= self.end
        return _LocalStageSession(self._slots.take(context), end - self.first, self._copies)


class _LocalEndsSession:
    def __init__(self, slot: _Slot) -> None:
        self._slot = slot
        self.close = slot.close

    async def inherit(self, parent: "_LocalEndsSession", length: int) -> None:
        await self._slot.inherit(parent._slot, length)

    def start(self, sampling: Sampling, recent: list[int], said: Sequence[int] = ()) -> None:
        self._slot.tell("sampling", attrs.asdict(sampling), recent, list(said))

    async def embed(self, position: int, tokens: list[int], *, regime: Regime) -> Decoded:
        decoding_us, rows = await self._slot.ask("embed", position, regime, tokens)
        return Decoded(rows, decoding_us)

    async def absorb(self, position: int, rows: bytes, *, regime: Regime) -> int:
        (decoding_us,) = await self._slot.ask("absorb", position, regime, rows)
        assert isinstance(decoding_us, int)
        return decoding_us

    async def score(
        self, position: int, rows: bytes, following: list[int], *, regime: Regime
    ) -> Scores:
        _, scores = await self._slot.ask("score", position, regime, rows, following)
        return [_candidates(each) for each in scores]

    async def next(
        self,
        position: int,
        rows: bytes,
        *,
        regime: Regime,
        drafted: int | None = None,
        following: Sequence[int] = (),
    ) -> NextToken:
        values = position, regime, rows, drafted, list(following)
        answer = await self._slot.ask("next", *values)
        decoding_us, token, piece, is_end, rows, likely, scores = answer
        found = [_candidates(each) for each in scores]
        return NextToken(token, piece, is_end, rows, decoding_us, _candidates(likely), found)


def _candidates(likely: list[Any]) -> tuple[Candidate, ...]:
    return tuple(Candidate(*each) for each in likely)


class LocalEnds:
    """The ends of a model in a worker process; an ``Ends``."""

    def __init__(self, worker: Worker, layers: int, tokenizer: Tokenizer) -> None:
        first, last = worker.parts
        self.worker, self._tokenizer = worker, tokenizer
        self.first, self.end = first.layers, layers - last.layers
        self.width = first.width
        self.context = max(worker.config.context, worker.config.long_context)
        self.vocabulary, self.blocks = first.vocabulary, first.blocks and last.blocks
        self._slots = _Slots(worker)

    async def tokenize(
        self, text: str, *, special: bool, literal: Sequence[int] = (), most: int | None = None
    ) -> list[int]:
        """Return a text's tokens; as ``Tokenizer.tokenize``."""
        return await self._tokenizer.tokenize(text, special=special, literal=literal, most=most)

    async def pieces(self, tokens: Sequence[int]) -> list[bytes]:
        """Return the bytes that each token stands for; as ``Tokenizer.pieces``."""
        return await self._tokenizer.pieces(tokens)

    async def read_grammar(self, text: str, *, is_gbnf: bool = False) -> str:
        """Return a grammar for ``Sampling``; as ``Tokenizer.read_grammar``."""
        return await self._tokenizer.read_grammar(text, is_gbnf=is_gbnf)

    async def special_tokens(self) -> SpecialTokens:
        """Return the vocabulary's special tokens; raises as ``tokenize``."""
        return await self._tokenizer.special_tokens()

    def open(self, context: int | None = None) -> _LocalEndsSession:
        """Reserve a session's cells; raises EngineBusy or EngineDied."""
        return _LocalEndsSession(self._slots.take(context))


def _room(worker: Worker) -> Room:
    config = worker.config
    return Room(config.context, config.long_context, config.long_cells)


@asynccontextmanager
async def open_stage(
    path: Path,
    first: int,
    *,
    sessions: int = SESSIONS_DEFAULT,
    context: int = CONTEXT_DEFAULT,
    threads: int | None = 1,
    long_context: int = 0,
    long_cells: int = 0,
    gpu: Gpu | None = None,
) -> AsyncIterator[LocalStage]:
    """Run a stage's slice, whose first layer is the model's ``first``, in a worker process.

    Some of its sessions may be as long as ``long_context``, and share ``long_cells`` positions. Its
    layers are on the GPU, if there is one and it is exact.

    Raises:
        BadModelFile, UnsupportedModel: the slice cannot be run.
        EngineDied: the worker died while loading.
    """
    part = PartConfig(str(path), tokens=False, logits=False)
    with in_use(path):
        config = WorkerConfig((part,), sessions, context, threads, long_context, long_cells, gpu)
        async with open_worker(config) as worker:
            yield LocalStage(worker, first)


@asynccontextmanager
async def open_ends(
    first_end: Path,
    last_end: Path,
    layers: int,
    *,
    sessions: int = SESSIONS_DEFAULT,
    context: int = CONTEXT_DEFAULT,
    threads: int | None = 1,
    long_context: int = 0,
    long_cells: int = 0,
    gpu: Gpu | None = None,
) -> AsyncIterator[LocalEnds]:
    """Run both ends of a model in one worker process; raises as ``open_stage``.

    ``layers``: how many the whole model has.
    """
    parts = (
        PartConfig(str(first_end), tokens=True, logits=False),
        PartConfig(str(last_end), tokens=False, logits=True),
    )
    config = WorkerConfig(parts, sessions, context, threads, long_context, long_cells, gpu)
    with in_use(first_end, last_end):
        async with open_tokenizer(first_end) as tokenizer, open_worker(config) as worker:
            yield LocalEnds(worker, layers, tokenizer)
