"""Who can run layers again for a client: other holders in the swarm, then this machine itself."""

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.evidence import Case
from p2pinfer.core.ids import PeerId
from p2pinfer.engine.llama.engine import open_stage
from p2pinfer.engine.store.assemble import PartsModel
from peers.audits.replay import OpenReplay, PeerReplays, Replay, by_engine
from peers.receipts.session_evidence import Gatherer
from transports.base import Transport


class Replays(PeerReplays):
    """Finds replays of a model's layers, also by an engine of this machine's own.

    Args:
        transport: reaches other holders.
        serving: returns what they say they serve of the model.
        model: whose parts this machine may hold.
        gatherer: seals sessions.
        draw: returns so many random bytes.
    """

    def __init__(
        self,
        transport: Transport,
        serving: Callable[[], Iterable[Advertisement]],
        model: PartsModel,
        gatherer: Gatherer,
        draw: Callable[[int], bytes],
    ) -> None:
        super().__init__(transport, serving, model.id, gatherer, draw)
        self._parts = model

    def find(self, first: int, end: int, besides: PeerId) -> Sequence[OpenReplay]:
        """Return who can replay these layers, in an order that nobody can foresee."""
        found = super().find(first, end, besides)
        if self._holds(first, end):  # last: it settles what others dispute, and costs most here
            found = [*found[:2], self._by_engine(first, end, end)]
        return found

    def judges(self, case: Case) -> Sequence[OpenReplay]:
        """Return this machine where it can judge a case, and otherwise others."""
        if self._holds(case.first, case.slice_end):
            return [self._by_engine(case.first, case.end, case.slice_end)]
        return super().judges(case)

    def _holds(self, first: int, end: int) -> bool:
        manifest, store = self._parts.manifest, self._parts.store
        return first < end <= manifest.layers and all(
            store.held(manifest.part(name)) for name in manifest.needed(first, end)
        )

    def _by_engine(self, first: int, end: int, slice_end: int) -> OpenReplay:
        @asynccontextmanager
        async def opening(context: int) -> AsyncIterator[Replay]:
            path = self._parts.stage(first, slice_end)
            async with (
                open_stage(path, first, sessions=1, context=context) as engine,
                by_engine(engine, end)(context) as replay,
            ):
                yield replay

        return opening
