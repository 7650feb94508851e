"""A chain whose middle stage other holders can replay, and stages that tamper with their rows."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import pytest
import trio
from attrs import field, frozen

from p2pinfer.core.errors import EngineError, lone_errors
from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Hop, Open
from p2pinfer.core.regimes import Regime
from p2pinfer.core.trust import Trust
from p2pinfer.engine.base import Decoded, Done, EngineSession
from peers.audits.auditor import Auditor
from peers.audits.replay import OpenReplay, Replay, by_engine, open_peer_replay
from peers.receipts.session_evidence import Gatherer
from tests.support.fake_engines import ROW_BYTES, FakeStage
from tests.support.swarm import (
    CHAINS,
    CONTEXT,
    KEYS,
    MODEL,
    PROMPT,
    Swarm,
    answer,
    session_id,
    swarm,
)

BOUNDS = CHAINS[3]
HOLDERS = KEYS[4:7]
OWN = "own"
"""Stands for the requester's own engine among the names of other holders."""

Tamper = Callable[[int, bytes], bytes]


class Tampering:
    """A stage's session that changes what comes out."""

    def __init__(self, inner: EngineSession, tamper: Tamper) -> None:
        self._inner, self._tamper = inner, tamper
        self.close, self.copy = inner.close, inner.copy

    def submit(self, position: int, rows: bytes, done: Done, *, regime: Regime) -> None:
        """Run the rows, and return altered ones."""

        def take(outcome: Decoded | EngineError) -> None:
            assert isinstance(outcome, Decoded)
            done(Decoded(self._tamper(position, outcome.rows), outcome.decoding_us))

        self._inner.submit(position, rows, take, regime=regime)

    async def inherit(self, parent: "Tampering", length: int) -> None:
        """Begin with a copy of another session, as an honest stage does."""
        await self._inner.inherit(parent._inner, length)


def cheat(engine: FakeStage, tamper: Tamper, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have all sessions of an engine tamper."""
    honest = engine.open
    monkeypatch.setattr(engine, "open", lambda *how: Tampering(honest(*how), tamper))


def at_70(position: int, rows: bytes) -> bytes:
    """Change only the row at position 70."""
    at = (70 - position) * ROW_BYTES
    if not 0 <= at < len(rows):
        return rows
    return rows[:at] + bytes(ROW_BYTES) + rows[at + ROW_BYTES :]


@frozen
class Case:
    """A swarm with other holders of the middle stage's layers, and the order of replays."""

    made: Swarm
    holders: Sequence[FakeStage]
    replays: list[str | PeerId]
    proofs: list[FraudProof] = field(factory=list)
    """Fraud proofs from the audits."""
    classes: dict[str, str] = field(factory=dict)
    """Numerics classes of the replays that differ from the stages' class."""

    async def examine(self, rate: float = 1.0) -> Trust:
        """Answer once, and audit."""
        auditor = Auditor(self.find, rate, on_fraud=self.proofs.append)
        async with self.made.open() as session:
            await answer(session, PROMPT)
            assert session.evidence
            return await auditor.examine(session.evidence, len(session.tokens))

    def find(self, first: int, end: int, besides: PeerId) -> list[OpenReplay]:
        """Return the replays; only the middle stage has other holders."""
        names = self.replays if (first, end) == BOUNDS[1:3] else [OWN]
        return [self._opening(name, first, end) for name in names if name != besides]

    def _opening(self, name: str, first: int, end: int) -> OpenReplay:
        @asynccontextmanager
        async def other(context: int) -> AsyncIterator[Replay]:
            me = self.made.me
            hop = Hop(PeerId(name), (f"/memory/{name}",), first, end)
            opened = Open(
                session_id(77),
                MODEL,
                me.peer_id,
                me.peer_id,
                hop.first,
                hop.end,
                context,
                blocks=True,
            )
            with lone_errors():
                async with trio.open_nursery() as nursery:
                    gatherer = Gatherer(nursery, me, lambda size: b"n" * size)
                    numerics = bytes.fromhex(
                        self.classes.get(name, FakeStage(first, end).numerics_class)
                    )
                    async with open_peer_replay(me, hop, opened, numerics, gatherer) as replay:
                        yield replay

        engine = FakeStage(first, end, context=CONTEXT)
        engine.numerics_class = self.classes.get(name, engine.numerics_class)
        own = by_engine(engine, end)
        return own if name == OWN else other


@asynccontextmanager
async def case(*replays: str | PeerId) -> AsyncIterator[Case]:
    """Run a chain of three, and three more holders of the middle stage's layers."""
    async with trio.open_nursery() as nursery, swarm(BOUNDS, evidence=True) as made:
        for key in HOLDERS:
            engine = FakeStage(*BOUNDS[1:3], context=CONTEXT)
            await nursery.start(made.add, key.peer_id, engine, key)
            made.route.pop()
        yield Case(made, made.engines[3:], list(replays))
        nursery.cancel_scope.cancel()


FIRST, SECOND, THIRD = (key.peer_id for key in HOLDERS)
