"""Running layers again: on another holder, or on an engine of this machine."""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from copy import copy
from itertools import groupby
from typing import Protocol

import trio
from attrs import frozen

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.audit import THIS_MACHINE
from p2pinfer.core.errors import EngineError, PeerUnavailable, lone_errors
from p2pinfer.core.evidence import Case
from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.messages import Hop, Open
from p2pinfer.core.receipts import Signed, Terms
from p2pinfer.core.regimes import Regime
from p2pinfer.core.witness import OpenedRows
from p2pinfer.engine.base import Decoded, StageEngine
from peers.asking.chain import Chain
from peers.asking.opening import open_chain
from peers.receipts.session_evidence import Evidence, Gatherer
from peers.steps.history import Budget, History
from transports.base import Transport

REPLAY_S_MAX = 30.0
"""For one chunk of at most 64 rows."""

SESSION_ID_BYTES = 16


@frozen
class Vouching:
    """What a replaying peer signs, as for any session."""

    terms: Terms
    receipts: Mapping[int, Signed]


class Replay(Protocol):
    """Runs a stage's layers again, in a session of its own."""

    @property
    def name(self) -> str:
        """A peer id, or ``THIS_MACHINE``, which does not lie."""
        ...

    @property
    def numerics(self) -> bytes:
        """The numerics class it computes in."""
        ...

    async def run(self, position: int, count: int, rows: bytes, *, regime: Regime) -> bytes:
        """Return the layers' output for some rows, both encoded as on the wire.

        Raises:
            PeerError, EngineError: the rows were not run.
        """
        ...

    async def vouch(self, position: int) -> Vouching | None:
        """Return its receipts for up to the first ``position`` rows, if it signs any."""
        ...


OpenReplay = Callable[[int], AbstractAsyncContextManager[Replay]]
"""Opens a replay of that many positions; raises PeerError, EngineError or UserError."""


def cut(opened: OpenedRows, position: int) -> list[tuple[int, bytes, Regime]]:
    """Cut rows into runs of one regime, each at most as long as a decode may be."""
    size = len(opened.rows) // len(opened.regimes)
    found, start = [], 0
    for regime, same in groupby(opened.regimes):
        end = start + len(list(same))
        for at in range(start, end, regime.rows_max):
            rows = opened.rows[at * size : min(at + regime.rows_max, end) * size]
            found.append((position + at, rows, regime))
        start = end
    return found


class PeerReplay:
    """Another holder of the layers, asked as if for an answer."""

    def __init__(self, chain: Chain, numerics: bytes, evidence: Evidence) -> None:
        self.name: str = chain.route[-1].peer
        self.numerics, self._chain, self._evidence = numerics, chain, evidence

    async def run(self, position: int, count: int, rows: bytes, *, regime: Regime) -> bytes:
        """Return the peer's output for the rows; raises PeerError."""
        if regime is Regime.BLOCK and not self._chain.blocks:
            raise PeerUnavailable(self._chain.route[-1].peer, "it does not run blocks")
        try:
            with trio.fail_after(REPLAY_S_MAX):
                self._chain.send(position, rows, count, regime=regime)
                step = await self._chain.receive(position, count, len(rows))
        except trio.TooSlowError:
            raise PeerUnavailable(self._chain.route[-1].peer, "it took too long") from None
        return step.rows

    async def vouch(self, position: int) -> Vouching:
        """Return its receipts, which bind it like any stage's."""
        await self._evidence.settle(position)
        return Vouching(self._evidence.terms, self._evidence.stages[0].signed(position))


@asynccontextmanager
async def open_peer_replay(
    transport: Transport, hop: Hop, opened: Open, numerics: bytes, gatherer: Gatherer
) -> AsyncIterator[PeerReplay]:
    """Open a session with one holder, which asks for receipts like every other session.

    Args:
        transport: reaches it.
        hop: the holder, and the layers that it is to run.
        opened: the session.
        numerics: the class it computes in.
        gatherer: begins the session's evidence.

    Raises:
        PeerError: it does not accept the session.
    """
    evidence = gatherer.begin(opened)
    with lone_errors():
        async with trio.open_nursery() as nursery:
            chain = Chain(transport, evidence.opened, History(Budget()), evidence)
            async with open_chain(chain, [hop], nursery):
                yield PeerReplay(chain, numerics, evidence)


class PeerReplays:
    """Finds other holders that replay a model's layers.

    Args:
        transport: reaches them.
        serving: returns the advertisements of the peers that serve the model.
        model: its id.
        gatherer: seals sessions.
        draw: returns that many random bytes.
    """

    def __init__(
        self,
        transport: Transport,
        serving: Callable[[], Iterable[Advertisement]],
        model: ModelId,
        gatherer: Gatherer,
        draw: Callable[[int], bytes],
    ) -> None:
        self._transport, self._serving, self._model = transport, serving, model
        self._gatherer, self._draw = gatherer, draw

    def over(self, transport: Transport, gatherer: Gatherer) -> "PeerReplays":
        """Return one that reaches the same holders over another transport."""
        found = copy(self)
        found._transport, found._gatherer = transport, gatherer
        return found

    def find(self, first: int, end: int, besides: PeerId) -> Sequence[OpenReplay]:
        """Return replays by peers that hold these layers, in an unpredictable order."""
        return [self._by_peer(offer, first, end) for offer in self._holders(first, end, besides)]

    def judges(self, case: Case) -> Sequence[OpenReplay]:
        """Return replays in exactly a case's numerics class, in an unpredictable order."""
        return [
            self._by_peer(offer, case.first, case.end)
            for offer in self._holders(case.first, case.end, case.accused)
            if offer.numerics_class == case.numerics.hex() and offer.peer != case.author
        ]

    def _holders(self, first: int, end: int, besides: PeerId) -> list[Advertisement]:
        holders = [
            offer
            for offer in self._serving()
            if offer.first == first and end <= offer.end and offer.peer != besides
        ]
        holders.sort(key=lambda _: self._draw(8))
        return holders

    def _by_peer(self, offer: Advertisement, first: int, end: int) -> OpenReplay:
        hop = Hop(offer.peer, offer.addresses, first, end)

        def opening(context: int) -> AbstractAsyncContextManager[Replay]:
            session = SessionId(self._draw(SESSION_ID_BYTES))
            me = self._transport.peer_id
            opened = Open(session, self._model, me, me, first, end, context, blocks=True)
            numerics = bytes.fromhex(offer.numerics_class)
            return open_peer_replay(self._transport, hop, opened, numerics, self._gatherer)

        return opening


class EngineReplay:
    """An engine on this machine."""

    name = THIS_MACHINE

    def __init__(self, engine: StageEngine, end: int) -> None:
        self.numerics = bytes.fromhex(engine.numerics_class)
        self.width = engine.width
        self._session = engine.open(end)

    async def run(self, position: int, count: int, rows: bytes, *, regime: Regime) -> bytes:
        """Return the engine's output for float32 rows; raises EngineError."""
        if len(rows) != 4 * self.width * count:
            raise EngineError("the rows are not of the model's width")
        done = trio.Event()
        outcome: list[Decoded | EngineError] = []

        def take(decoded: Decoded | EngineError) -> None:
            outcome.append(decoded)
            done.set()

        self._session.submit(position, rows, take, regime=regime)
        await done.wait()
        if isinstance(outcome[0], EngineError):
            raise outcome[0]
        return outcome[0].rows

    async def vouch(self, position: int) -> None:
        """Sign nothing: a machine need not prove anything to itself."""

    def close(self) -> None:
        """Free the session's cells."""
        self._session.close()


def by_engine(engine: StageEngine, end: int) -> OpenReplay:
    """Return an opener of replays up to layer ``end`` on a running engine."""

    @asynccontextmanager
    async def opening(_: int) -> AsyncIterator[Replay]:
        replay = EngineReplay(engine, end)
        try:
            yield replay
        finally:
            replay.close()

    return opening
