"""How fast an engine is: a peer measures its speed before advertising it."""

import math
from dataclasses import dataclass

import numpy as np
import trio

from p2pinfer.core.advertisement import DECODING_US_MAX
from p2pinfer.core.errors import EngineError
from p2pinfer.core.regimes import Regime
from p2pinfer.engine.base import Decoded, EngineSession, StageEngine

ROWS, CHUNKS = 12, 4
"""Decodes of each kind. The fastest counts: slower ones shared the machine with something else."""

CHUNK_ROWS = 32


@dataclass(frozen=True)
class EngineSpeed:
    """Microseconds per layer."""

    row_us: int
    """For a decode of one row."""
    chunk_us: int
    """For a decode of ``CHUNK_ROWS`` rows."""


async def measure(engine: StageEngine) -> EngineSpeed:
    """Time a few decodes in an engine that serves no sessions yet.

    Raises:
        EngineError: it cannot decode.
    """
    session = engine.open(engine.end)
    try:
        chunks = await _fastest_us(engine, session, CHUNK_ROWS, CHUNKS)
        rows = await _fastest_us(engine, session, 1, ROWS)
    finally:
        session.close()
    layers = engine.end - engine.first
    return EngineSpeed(_per_layer(rows, layers), _per_layer(chunks, layers))


async def _fastest_us(engine: StageEngine, session: EngineSession, rows: int, decodes: int) -> int:
    """Return the time of the fastest decode of ``rows`` rows at a session's start, in µs."""
    data = np.ones(rows * engine.width, "<f4").tobytes()
    regime = Regime.WIDE if rows > 1 else Regime.NARROW
    return min([await _decode_us(session, data, regime=regime) for _ in range(decodes)])


async def _decode_us(session: EngineSession, rows: bytes, *, regime: Regime) -> int:
    outcomes: list[Decoded | EngineError] = []
    is_done = trio.Event()

    def done(outcome: Decoded | EngineError) -> None:
        outcomes.append(outcome)
        is_done.set()

    session.submit(0, rows, done, regime=regime)
    await is_done.wait()
    (outcome,) = outcomes
    if isinstance(outcome, EngineError):
        raise outcome
    return outcome.decoding_us


def _per_layer(decoding_us: int, layers: int) -> int:
    return min(max(1, math.ceil(decoding_us / layers)), DECODING_US_MAX)
