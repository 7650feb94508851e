"""Rebuilding chunks that nobody holds, from other shares of their stripes."""

import logging
from collections.abc import Collection
from functools import partial

from blake3 import blake3

from p2pinfer.core.erasure import rebuild
from p2pinfer.core.errors import RemoteProtocolError
from p2pinfer.core.ids import ChunkId, PeerId, PlanId
from p2pinfer.core.manifest import Manifest
from p2pinfer.core.stripes import Band, Layout, StoragePlan, WrongPlan
from p2pinfer.engine.store.damage import MissingChunk
from p2pinfer.engine.store.store import Store
from peers.parts.describe import Blame, Holders
from peers.parts.link import Holder
from peers.parts.protocol import Run
from peers.parts.stripe_reader import STRIPES_AT_ONCE, Shares, StripeReader
from peers.parts.survey import find_plans
from transports.base import Transport

_log = logging.getLogger("p2pinfer.parts")


class Mender:
    """Rebuilds lost chunks of one model by whichever storage plan proves right."""

    def __init__(
        self,
        transport: Transport,
        holders: Holders,
        store: Store,
        manifest: Manifest,
        blame: Blame,
        run: Run,
    ) -> None:
        self._transport, self._known, self._store = transport, holders, store
        self._manifest, self._blame, self._run = manifest, blame, run
        self._wrong: set[PlanId] = set()
        self._doubted: Collection[PeerId] = ()

    async def mend(
        self, lost: Collection[ChunkId], doubted: Collection[PeerId] = ()
    ) -> set[ChunkId]:
        """Rebuild and store what can be of these chunks, and return it.

        A chunk that somebody holds after all is left to be fetched. Those who are ``doubted`` are
        not asked. ``blame`` gets the error of each peer that goes by a plan which decoding has
        shown to be wrong.
        """
        self._doubted = doubted
        for plan, supporters in await self._plans():
            if plan.id in self._wrong:
                continue
            try:
                made = await self._mend_by(plan, lost)
            except WrongPlan as error:
                self._wrong.add(plan.id)
                for peer in supporters:
                    text = f"{peer} keeps {self._manifest.name} by a wrong storage plan: {error}"
                    self._blame(RemoteProtocolError(peer, text))
                continue
            if made:
                return made
        return set()

    def _holders(self) -> list[Holder]:
        return [holder for holder in self._known() if holder.peer not in self._doubted]

    async def _plans(self) -> list[tuple[StoragePlan, list[PeerId]]]:
        own = await self._run(self._store.plan, self._manifest)
        if own and own.id not in self._wrong:
            return [(own, [])]
        return await find_plans(self._transport, self._holders(), self._manifest, self._blame)

    async def _mend_by(self, plan: StoragePlan, lost: Collection[ChunkId]) -> set[ChunkId]:
        """Rebuild chunks by a plan; raises WrongPlan."""
        layout = Layout(self._manifest, plan.k, plan.m)
        reader = StripeReader(
            self._transport,
            self._holders,
            self._store,
            self._manifest,
            layout,
            plan,
            self._blame,
            self._run,
        )
        by_band: dict[int, dict[int, list[ChunkId]]] = {}
        for chunk in sorted(lost):
            number, stripe, _ = layout.find(chunk)
            by_band.setdefault(number, {}).setdefault(stripe, []).append(chunk)
        made: set[ChunkId] = set()
        for number, stripes in by_band.items():
            band = layout.band(number)
            held = set[ChunkId]().union(*(await reader.survey(band)).values())
            gone = {
                stripe: left
                for stripe, chunks in stripes.items()
                if (left := [chunk for chunk in chunks if chunk not in held])
            }
            order = sorted(gone)
            for at in range(0, len(order), STRIPES_AT_ONCE):
                some = order[at : at + STRIPES_AT_ONCE]
                for stripe, shares in (await reader.read(band, some)).items():
                    make = partial(self._rebuild, layout, band, stripe, shares, gone[stripe])
                    made.update(await self._run(make))
        return made

    def _rebuild(
        self, layout: Layout, band: Band, stripe: int, shares: Shares, lost: list[ChunkId]
    ) -> list[ChunkId]:
        """Decode chunks, check them against the manifest, and store them; raises WrongPlan."""
        rows = {layout.find(chunk)[2]: chunk for chunk in lost}
        size = band.shares_bytes[stripe]
        found = rebuild(layout.k, layout.m, shares, list(rows), size)
        parts = {part.hash: part for part in self._manifest.parts}
        for row, data in found.items():
            part, index = parts[rows[row].part], rows[row].number
            listed = self._store.listed(part)
            if listed is None:
                raise MissingChunk(f"the hashes of {part.name} are not here")
            chunk = data[: listed.chunk_size(index)]
            if blake3(chunk).digest() != listed.chunks[index]:
                raise WrongPlan(f"its parity gives other bytes for chunk {index} of {part.name}")
            self._store.write_chunk(listed, index, chunk)
            _log.info("rebuilt chunk %d of %s, which nobody holds", index, part.name)
        return lost
