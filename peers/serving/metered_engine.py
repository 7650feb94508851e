"""An engine that counts its load: how many sessions are open, how many rows are queued."""

from collections.abc import Callable
from functools import partial

from p2pinfer.core.errors import EngineError
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.base import (
    CellsCopy,
    Decoded,
    Done,
    EngineSession,
    StageEngine,
    Superseded,
)


class MeteredEngine:
    """A ``StageEngine`` that knows its load."""

    def __init__(
        self, engine: StageEngine, sessions_max: int, on_change: Callable[[], object]
    ) -> None:
        """Count an engine's load; ``on_change`` is called whenever that changes."""
        self.first, self.end = engine.first, engine.end
        self.width, self.context, self.room = engine.width, engine.context, engine.room
        self.numerics_class, self.blocks = engine.numerics_class, engine.blocks
        self.sessions_max = sessions_max
        self.sessions = 0
        self.queued_rows = 0
        """Submitted to the engine and not yet computed."""
        self.rows = 0
        """Computed so far."""
        self.on_change = on_change
        self._engine = engine

    def open(self, end: int, context: int | None = None) -> "_MeteredSession":
        """Reserve a session's cells; raises as the engine."""
        return _MeteredSession(self, self._engine.open(end, context))


class _MeteredSession:
    def __init__(self, engine: MeteredEngine, session: EngineSession) -> None:
        self._engine, self._session = engine, session
        self._queued_rows = 0
        self._closed = False
        engine.sessions += 1
        engine.on_change()

    def submit(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        count = len(rows) // (4 * self._engine.width)
        self._session.submit(position, rows, partial(self._done, count, done), regime=regime)
        self._queue(count)

    async def inherit(self, parent: "_MeteredSession", length: int) -> None:
        await self._session.inherit(parent._session, length)

    async def copy(self, positions: int) -> CellsCopy:
        return await self._session.copy(positions)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._session.close()
            self._queue(-self._queued_rows)  # these are no longer computed
            self._engine.sessions -= 1
            self._engine.on_change()

    def _queue(self, count: int) -> None:
        self._queued_rows += count
        self._engine.queued_rows += count
        self._engine.on_change()

    def _done(self, count: int, done: Done, outcome: Decoded | EngineError) -> None:
        self._queue(-count)
        self._engine.rows += 0 if isinstance(outcome, Superseded) else count
        done(outcome)
