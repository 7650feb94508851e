"""A zoo of cheats: what a stage may do instead of its work, each over real engines.

A cheat replaces an honest engine's sessions, or what the peer signs, opens or reports as an
auditor.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np
import trio
from attrs import evolve
from numpy.typing import NDArray

from p2pinfer.bench.layer_arithmetic import LayerArithmetic
from p2pinfer.core.errors import EngineError, UserError
from p2pinfer.core.messages import Open
from p2pinfer.core.receipts import SIGNED_AS, Receipt, Signed
from p2pinfer.core.regimes import Regime
from p2pinfer.core.traced import Traced
from p2pinfer.core.witness import OpenedRows, Seat, Witness
from p2pinfer.engine.base import CellsCopy, Decoded, Done, EngineSession, StageEngine
from peers.audits.replay import Replay, cut
from peers.receipts.prover import RowAgain
from peers.receipts.signer import ReceiptSigner, SessionRecord
from peers.steps.history import History

WINDOW_POSITIONS: Final = 64
"""Context left at a stage that truncates it."""

NOISE: Final = 0.03
"""Relative; under the bound between numerics classes, and no more than honest ones differ by."""

Rows = NDArray[np.float32]


@dataclass
class Host:
    """What a cheating peer can use."""

    engine: StageEngine
    """With the layers that it should run."""
    lower: StageEngine
    """The same layers, quantised to fewer bits."""
    other: StageEngine
    """Other layers of the model, the same number."""
    seen: dict[int, bytes] = field(default_factory=dict)
    """Rows that it computed in an earlier session, by position."""
    last_layer: LayerArithmetic | None = None
    """The last of the layers that it should run."""
    invented: dict[int, Mapping[Traced, bytes]] = field(default_factory=dict)
    """Steps of that layer that it computed from an invented attention, by position."""
    opened: RowAgain | None = None
    """The first row that it opened."""
    chance: np.random.Generator = field(default_factory=lambda: np.random.default_rng(1))


OpenSession = Callable[[Host, int], EngineSession]


async def submitted(session: EngineSession, position: int, rows: bytes, regime: Regime) -> Decoded:
    """Run rows and wait for them; raises EngineError."""
    done, outcomes = trio.Event(), list[Decoded | EngineError]()

    def take(outcome: Decoded | EngineError) -> None:
        outcomes.append(outcome)
        done.set()

    session.submit(position, rows, take, regime=regime)
    await done.wait()
    if isinstance(outcomes[0], EngineError):
        raise outcomes[0]
    return outcomes[0]


class Changed:
    """A session whose rows are changed on their way in or out.

    When somebody looks at one of them, it computes all again as it should have been.
    """

    def __init__(
        self,
        open_honest: Callable[[], EngineSession],
        width: int,
        inner: EngineSession | None = None,
    ) -> None:
        self._open_honest, self._width = open_honest, width
        self._inner = inner or open_honest()
        self._came_in: list[tuple[Regime, bytes]] = []

    def close(self) -> None:
        """Free the cells."""
        self._inner.close()

    def submit(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        """Run the rows as an honest stage does, and pass on what ``change`` makes of them."""
        del self._came_in[position:]
        self._came_in += [(regime, row.tobytes()) for row in self._rows(rows)]

        def take(outcome: Decoded | EngineError) -> None:
            if isinstance(outcome, Decoded):
                sent = self.change(position, self._rows(outcome.rows))
                outcome = Decoded(sent.astype("<f4").tobytes(), outcome.decoding_us)
            done(outcome)

        self.run(position, rows, take, regime=regime)

    def run(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        """Run rows in the inner session."""
        self._inner.submit(position, rows, done, regime=regime)

    async def inherit(self, parent: "Changed", length: int) -> None:
        """Begin with a copy of another session, as an honest stage does."""
        await self._inner.inherit(parent._inner, length)

    async def copy(self, positions: int) -> CellsCopy:
        """Run the rows in another session, as an honest stage does, and copy that one."""
        regimes, rows = zip(*self._came_in, strict=True)
        honest = self._open_honest()
        try:
            for position, some, regime in cut(OpenedRows(regimes, b"".join(rows)), 0):
                await submitted(honest, position, some, regime)
            return await honest.copy(positions)
        finally:
            honest.close()

    def change(self, position: int, sent: Rows) -> Rows:
        """Return the rows to send instead."""
        return sent

    def _rows(self, data: bytes) -> Rows:
        return np.frombuffer(data, "<f4").reshape(-1, self._width)


class _CopiedThrough(Changed):
    def run(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        done(Decoded(rows, 1))


class _StaleCells(Changed):
    """Never drops anything from its KV cache: new rows are always appended to the old ones."""

    _end = 0

    def run(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        self._inner.submit(self._end, rows, done, regime=regime)
        self._end += len(self._rows(rows))


class _TruncatedContext(Changed):
    """Forgets everything at intervals: short contexts cost less."""

    _start = 0

    def run(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        if not 0 <= position - self._start < WINDOW_POSITIONS:
            self._start = position
        self._inner.submit(position - self._start, rows, done, regime=regime)


class _AnotherSessions(Changed):
    """Sends what it computed in an earlier session at the same positions."""

    seen: dict[int, bytes]

    def change(self, position: int, sent: Rows) -> Rows:
        old = [self.seen.setdefault(position + at, row.tobytes()) for at, row in enumerate(sent)]
        return self._rows(b"".join(old))


class _AnotherPosition(Changed):
    """Sends each row one position late."""

    _last: Rows | None = None

    def change(self, position: int, sent: Rows) -> Rows:
        last = sent[:1] if self._last is None else self._last
        self._last = sent[-1:]
        return np.concatenate([last, sent[:-1]])


class _Noisy(Changed):
    chance: np.random.Generator

    def change(self, position: int, sent: Rows) -> Rows:
        noise = self.chance.standard_normal(sent.shape).astype(np.float32)
        sizes = [np.linalg.norm(each, axis=1, keepdims=True) for each in (sent, noise)]
        changed: Rows = sent + np.float32(NOISE) * noise * sizes[0] / sizes[1]
        return changed


def _wrapped(kind: type[Changed]) -> OpenSession:
    return lambda host, end: kind(partial(host.engine.open, end), host.engine.width)


def _another_sessions(host: Host, end: int) -> EngineSession:
    session = _AnotherSessions(partial(host.engine.open, end), host.engine.width)
    session.seen = host.seen
    return session


def noisy(host: Host, end: int) -> EngineSession:
    """Open a session whose rows get some noise."""
    session = _Noisy(partial(host.engine.open, end), host.engine.width)
    session.chance = host.chance
    return session


class Liar(ReceiptSigner):
    """A receipt signer that signs or opens false rows, in a way set later."""

    lie: Callable[[SessionRecord], None] | None = None

    def record(
        self, opened: Open, engine: StageEngine, history: History, cells: EngineSession
    ) -> SessionRecord:
        """Keep a record, and falsify it."""
        found = super().record(opened, engine, history, cells)
        if self.lie:
            self.lie(found)
        return found


def _refuse(record: SessionRecord) -> None:
    def refuse(position: int, count: int) -> tuple[bytes, bytes]:
        raise LookupError

    record.open = refuse  # type: ignore[method-assign]


def _forge(record: SessionRecord) -> None:
    record.seat = evolve(record.seat, sign=lambda _: bytes(64))


class _TwoRoots(Witness):
    """Signs one root at a checkpoint, and another at the end of the answer."""

    def due(self, seat: Seat) -> list[Signed]:
        return [_other_root(signed, seat) for signed in super().due(seat)]


def _other_root(signed: Signed, seat: Seat) -> Signed:
    body = evolve(Receipt.parse(signed.body), sent=bytes(32)).body()
    return Signed(body, seat.sign(SIGNED_AS + body))


def _equivocate(record: SessionRecord) -> None:
    record.witness = _TwoRoots(keep=False)


class LyingReplay:
    """An auditor that does not run what it is asked to run: it returns its input."""

    def __init__(self, name: str, inner: Replay) -> None:
        self.name, self.numerics, self.inner = name, inner.numerics, inner

    async def run(self, position: int, count: int, rows: bytes, *, regime: Regime) -> bytes:
        """Return the rows as they came."""
        return rows

    async def vouch(self, position: int) -> None:
        """Sign nothing."""


class FalseReplay(LyingReplay):
    """An auditor that tries to frame honest stages: it returns other rows than it computed."""

    async def run(self, position: int, count: int, rows: bytes, *, regime: Regime) -> bytes:
        """Return the right rows, scaled."""
        right = await self.inner.run(position, count, rows, regime=regime)
        return (np.frombuffer(right, "<f4") * np.float32(1.5)).tobytes()


@dataclass(frozen=True)
class Cheat:
    """One way to cheat."""

    name: str
    saves_work: bool
    open: OpenSession | None = None
    lie: Callable[[SessionRecord], None] | None = None
    other_class: bool = False
    """Claims to compute in a numerics class of its own."""
    turns: int = 1
    """Answers in a session; some cheats show only when it goes back."""
    warms_up: bool = False
    """Runs an honest session first."""
    colludes: bool = False
    """The previous stage copies its input through as well."""
    layers_differ: bool = False
    """Its first layer is another one already, not only the last."""
    auditor: type[LyingReplay] | None = None
    """The first auditor cheats, and the stages are honest."""


def _skipped(host: Host, end: int) -> EngineSession:
    return host.engine.open(end - 1)


def _lower(host: Host, end: int) -> EngineSession:
    return host.lower.open(end)


def _other_layers(host: Host, end: int) -> EngineSession:
    return host.other.open(host.other.end)


_COPIED = _wrapped(_CopiedThrough)

ZOO: Final = (
    Cheat("lower quantisation", True, _lower, layers_differ=True),
    Cheat(
        "lower quantisation, claiming another class",
        True,
        _lower,
        other_class=True,
        layers_differ=True,
    ),
    Cheat("a skipped layer", True, _skipped),
    Cheat("a skipped layer, claiming another class", True, _skipped, other_class=True),
    Cheat("inputs copied through", True, _COPIED),
    Cheat("stale KV", True, _wrapped(_StaleCells), turns=2),
    Cheat("outputs of another session", True, _another_sessions, warms_up=True),
    Cheat("the right answer for another position", False, _wrapped(_AnotherPosition)),
    Cheat("noise below the bound", False, noisy),
    Cheat("noise below the bound, claiming another class", False, noisy, other_class=True),
    Cheat("truncated context", True, _wrapped(_TruncatedContext)),
    Cheat("a different model: other layers", False, _other_layers, layers_differ=True),
    Cheat("inputs copied through, refusing to open", True, _COPIED, _refuse),
    Cheat("equivocation", False, lie=_equivocate),
    Cheat("a forged receipt", False, lie=_forge),
    Cheat("an auditor that runs nothing", True, auditor=LyingReplay),
    Cheat("an auditor that lies", False, auditor=FalseReplay),
    Cheat("two colluding neighbours", True, _COPIED, colludes=True),
)


def find_cheats(names: Sequence[str]) -> list[Cheat]:
    """Return cheats by their names, all if none is named; raises UserError."""
    known = {cheat.name: cheat for cheat in ZOO}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--only knows no {unknown[0]!r}, only: {'; '.join(known)}")
    return [known[name] for name in names or known]
