"""Engines that take time and no arithmetic: the production protocols over ``sim.model``.

Which waiting rows share a decode is decided by the batcher of the real engine.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np
import trio

from p2pinfer.core.errors import EngineDied, EngineError
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sampling import Sampling
from p2pinfer.engine.base import (
    CannotCopy,
    CellsCopy,
    Decoded,
    Done,
    EngineBusy,
    NextToken,
    Room,
    Scores,
    Superseded,
)
from p2pinfer.engine.llama.batching import Batcher, Regimes
from sim.model import MASK, ORIGIN, ROW_BYTES, WIDTH, Cache, Links, VirtualModel, link_of, pack

CHUNK_ROWS = 32
"""The rows in the decode that ``chunk_s`` measures, as in advertisements."""


_REGIMES = Regimes(agree=False)

Spend = Callable[[float], Awaitable[object]]
"""Lets that many seconds of work pass; they take longer where others share the cores."""


def _rows(count: int, regime: Regime) -> int:
    """Return how many rows a decode computes, with those that fill it up."""
    return max(count, _REGIMES.pad_to(regime))


def numerics_class(number: int) -> str:
    """Return the name of one; peers of different classes compute the same except for rounding."""
    return f"{number:032x}"


@dataclass(frozen=True)
class VirtualSpeed:
    """How fast a machine runs one layer."""

    row_s: float
    """A decode of one row."""
    chunk_s: float
    """A decode of ``CHUNK_ROWS``."""
    handling_s: float = 0.0
    """What a session's rows take besides: to receive, to check and to send them."""
    aside_s: float = 0.0
    """And what they take when they have been sent."""

    def decode_s(self, rows: int, layers: int) -> float:
        """Return what a decode takes."""
        per_row = (self.chunk_s - self.row_s) / (CHUNK_ROWS - 1)
        return layers * (self.row_s + per_row * (rows - 1))


@dataclass(frozen=True)
class VirtualCheat:
    """The share of its decodes in which a stage cheats."""

    kind: str
    """``copies`` its input at no cost; ``skips`` its last layer; ``garbles`` what comes out."""
    rate: float


class _Job:
    """Rows that wait for the engine."""

    __slots__ = ("done", "layers", "position", "regime", "rows", "session", "slot")

    def __init__(
        self, session: "_Cells", position: int, rows: bytes, done: Done, *, regime: Regime
    ) -> None:
        self.session, self.slot, self.layers = session, session.slot, session.layers
        self.position, self.rows, self.done, self.regime = position, rows, done, regime

    def __len__(self) -> int:
        return len(self.rows) // ROW_BYTES


class _Cells:
    """One session in a stage."""

    def __init__(self, stage: "VirtualStage", slot: int, end: int) -> None:
        self._stage, self.slot = stage, slot
        self.layers = end - stage.first
        self.cache = Cache(stage.model, stage.first, end)
        self.end = end
        self.lined_up: list[_Job] = []
        """Submitted and not yet done."""
        self._expected = 0  # positions held once all that was submitted is decoded

    def submit(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        """Line up rows; see ``StageSession.submit``."""
        if self._stage.is_over:
            raise EngineDied("the engine has ended, and the session's KV cache with it")
        job = _Job(self, position, rows, done, regime=regime)
        if position > self._expected or position + len(job) > self._stage.context:
            raise EngineError(f"position {position} does not fit into the session")
        self._expected = position + len(job)
        self.lined_up.append(job)
        self._stage.add(job)

    async def inherit(self, parent: "_Cells", length: int) -> None:
        """Begin with a copy of another session."""
        await trio.lowlevel.checkpoint()
        if parent.cache.length < length:
            raise EngineError(f"the other session does not hold {length} positions")
        self.cache.inherit(parent.cache, length)
        self._expected = length

    async def copy(self, positions: int) -> CellsCopy:  # noqa: ARG002 -- an EngineSession's
        """Refuse: virtual layers have no steps to show."""
        raise CannotCopy("virtual layers have no steps to show")

    def close(self) -> None:
        """Free the cells; idempotent."""
        self._stage.free(self)


class VirtualStage:
    """A ``StageEngine`` whose decodes take virtual time; ``run`` must run meanwhile."""

    def __init__(
        self,
        model: VirtualModel,
        first: int,
        end: int,
        speed: VirtualSpeed,
        *,
        sessions: int,
        context: int,
        numerics: int = 0,
        cheat: VirtualCheat | None = None,
        chance: Random | None = None,
        spend: Spend = trio.sleep,
    ) -> None:
        self.model, self.first, self.end, self.speed = model, first, end, speed
        self.width, self.context, self.numerics_class = WIDTH, context, numerics_class(numerics)
        self.blocks = True
        self._rounding = numerics / 256
        self.sessions_max = sessions
        self.busy_s = 0.0
        """Spent decoding."""
        self.lies = 0
        """Decodes whose rows were not what the layers give."""
        self._cheat, self._chance = cheat, chance or Random(0)  # noqa: S311 -- a scenario's seed
        self._spend, self.is_over = spend, False
        self._open: dict[int, _Cells] = {}
        self._batcher: Batcher[_Job] = Batcher(_REGIMES)
        self._work = trio.Event()

    @property
    def sessions(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def cells(self) -> frozenset[object]:
        """Those of the open sessions, to tell one from another."""
        return frozenset(self._open.values())

    @property
    def room(self) -> Room:
        """Every session is of one length."""
        return Room(self.context)

    def open(self, end: int, context: int | None = None) -> _Cells:  # noqa: ARG002
        """Reserve a session's cells; see ``StageEngine.open``."""
        if len(self._open) >= self.sessions_max:
            raise EngineBusy(f"all {self.sessions_max} sessions are taken")
        slot = next(n for n in range(self.sessions_max) if n not in self._open)
        cells = self._open[slot] = _Cells(self, slot, end)
        return cells

    def add(self, job: _Job) -> None:
        """Put rows in the queue, in place of those that they overwrite."""
        for other in self._batcher.supersede(job.slot, job.position):
            other.session.lined_up.remove(other)
            other.done(Superseded())
        self._batcher.add(job)
        self._work.set()

    def free(self, cells: _Cells) -> None:
        """Forget a session and what waits for it."""
        if self._open.get(cells.slot) is cells:
            del self._open[cells.slot]
            self._batcher.drop(cells.slot)

    def die(self) -> None:
        """Lose all sessions, as when the process ends."""
        self.is_over = True
        for cells in list(self._open.values()):
            for job in [*cells.lined_up]:
                job.done(EngineDied("the engine has ended"))

    async def run(self) -> None:
        """Decode for ever."""
        while True:
            if not self._batcher:
                self._work = trio.Event()
                await self._work.wait()
            jobs = self._batcher.next()
            rows = _rows(sum(len(job) for job in jobs), jobs[0].regime)
            lies = self._cheat is not None and self._chance.random() < self._cheat.rate
            took_s = self.speed.decode_s(rows, jobs[0].layers)
            if lies and self._cheat and self._cheat.kind == "copies":
                took_s = 0.0
            if self.speed.handling_s:
                await self._spend(len(jobs) * self.speed.handling_s)
            since_s = trio.current_time()
            await self._spend(took_s)
            took_s = trio.current_time() - since_s
            self.busy_s += took_s
            self.lies += lies
            for job in jobs:
                if self._open.get(job.slot) is job.session:
                    job.session.lined_up.remove(job)
                    job.done(Decoded(self._compute(job, lies=lies), int(1e6 * took_s)))
            if self.speed.aside_s:
                await self._spend(len(jobs) * self.speed.aside_s)

    def _compute(self, job: _Job, *, lies: bool) -> bytes:
        before, own = job.session.cache.run(job.position, job.rows, regime=job.regime)
        if lies and self._cheat:
            own = self._falsify(job, own)
        return pack(before, own, self._rounding)

    def _falsify(self, job: _Job, own: Links) -> Links:
        """Return what a cheat says came out."""
        assert self._cheat
        key = self.model.sum(job.session.end, regime=job.regime)
        first = self.first if self._cheat.kind == "copies" else job.session.end - 1
        missing = (key - self.model.sum(first, regime=job.regime)) & MASK
        if self._cheat.kind == "garbles":
            missing = self._chance.getrandbits(64) | 1
        return own - np.uint64(missing)


class _EndsCells:
    """One session in a requester's own layers."""

    def __init__(self, ends: "VirtualEnds") -> None:
        self._ends, self._closed = ends, False
        self._links = [ORIGIN]
        self._last = Cache(ends.model, ends.end, ends.model.layers)

    def start(self, sampling: Sampling, recent: list[int], said: Sequence[int] = ()) -> None:
        """Sample: the likeliest token, always."""

    async def inherit(self, parent: "_EndsCells", length: int) -> None:
        """Begin with a copy of another session."""
        await trio.lowlevel.checkpoint()
        if min(len(parent._links) - 1, parent._last.length) < length:
            raise EngineError(f"the other session does not hold {length} positions")
        self._links = parent._links[: length + 1]
        self._last.inherit(parent._last, length)

    async def embed(self, position: int, tokens: list[int], *, regime: Regime) -> Decoded:
        """Run tokens through the first layers."""
        await self._ends.handle()
        took_us = await self._ends.spend(_rows(len(tokens), regime))
        return Decoded(self._embed(position, tokens, regime=regime), took_us)

    def _embed(self, position: int, tokens: list[int], *, regime: Regime) -> bytes:
        assert position < len(self._links)
        del self._links[position + 1 :]
        for token in tokens:
            self._links.append(link_of(self._links[-1], token))
        own = np.array(self._links[position + 1 :], np.uint64)
        own = own + np.uint64(self._ends.model.sum(self._ends.first, regime=regime))
        return pack(np.array(self._links[position:-1], np.uint64), own)

    async def absorb(self, position: int, rows: bytes, *, regime: Regime) -> int:
        """Run rows through the last layers for their cache alone."""
        await self._ends.handle()
        took_us = await self._ends.spend(_rows(len(rows) // ROW_BYTES, regime))
        self._last.run(position, rows, regime=regime)
        return took_us

    async def score(
        self, position: int, rows: bytes, following: list[int], *, regime: Regime
    ) -> Scores:
        """Run rows for their cache; a simulated model knows no likelihoods."""
        await self.absorb(position, rows, regime=regime)
        return [()] * len(following)

    async def next(
        self,
        position: int,
        rows: bytes,
        *,
        regime: Regime,
        drafted: int | None = None,
        following: Sequence[int] = (),
    ) -> NextToken:
        """Run rows through the last layers, and say what follows the last one."""
        count = len(rows) // ROW_BYTES
        await self._ends.handle()
        took_us = await self._ends.spend(_rows(count, regime))
        _, own = self._last.run(position, rows, regime=regime)
        token = self._ends.model.pick(int(own[-1]), regime)
        after = position + count
        if after < self._ends.context and token != drafted:
            took_us += await self._ends.spend(1)
            continued = self._embed(after, [token], regime=Regime.NARROW)
        else:
            continued = b""
        scores: Scores = [()] * len(following)
        return NextToken(token, b" %d" % token, False, continued, took_us, scores=scores)

    def close(self) -> None:
        """Free the cells; idempotent."""
        if not self._closed:
            self._closed = True
            self._ends.sessions -= 1


class VirtualEnds:
    """``Ends`` of ``keep`` layers on either side, on their own machine."""

    def __init__(
        self,
        model: VirtualModel,
        keep: int,
        speed: VirtualSpeed,
        *,
        sessions: int,
        context: int,
        spend: Spend = trio.sleep,
    ) -> None:
        self.model, self.first, self.end = model, keep, model.layers - keep
        self.width, self.context, self.vocabulary = WIDTH, context, model.vocabulary
        self.blocks = True
        self.sessions = 0
        self._keep, self._speed, self._sessions_max, self._spend = keep, speed, sessions, spend

    async def spend(self, rows: int) -> int:
        """Take the time of a decode; return it in microseconds."""
        since_s = trio.current_time()
        await self._spend(self._speed.decode_s(rows, self._keep))
        return int(1e6 * (trio.current_time() - since_s))

    async def handle(self) -> None:
        """Take the time for what a session's rows take besides."""
        if self._speed.handling_s:
            await self._spend(self._speed.handling_s)

    async def tokenize(self, text: str, *, special: bool) -> list[int]:  # noqa: ARG002
        """Make each word a token."""
        return [1 + sum(word.encode()) % (self.model.vocabulary - 1) for word in text.split()]

    def open(self, context: int | None = None) -> _EndsCells:  # noqa: ARG002
        """Reserve a session's cells; see ``Ends.open``."""
        if self.sessions >= self._sessions_max:
            raise EngineBusy(f"all {self._sessions_max} sessions are taken")
        self.sessions += 1
        return _EndsCells(self)
