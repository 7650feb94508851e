"""Replays of layers for a client: by other holders in the swarm, then by this machine."""

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
    """Finds replays of a model's layers, including by an engine on this machine.

    Args:
        transport: reaches other holders.
        serving: returns the advertisements of peers that serve the model.
        model: the model, of which this machine may hold parts.
        gatherer: seals sessions.
        draw: returns a number of random bytes.
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
        """Return replays of these layers, in an unpredictable order."""
        found = super().find(first, end, besides)
        if self._holds(first, end):  # last: it settles disputes, and costs this machine most
            found = [*found[:2], self._by_engine(first, end, end)]
        return found

    def judges(self, case: Case) -> Sequence[OpenReplay]:
        """Return this machine's replay if it can judge the case, else other holders'."""
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
