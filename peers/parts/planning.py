"""A model's storage plan: taken from others once some of it was computed again, or else made."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from random import Random

import trio
from blake3 import blake3

from p2pinfer.core.erasure import encode, rebuild
from p2pinfer.core.errors import RemoteProtocolError
from p2pinfer.core.ids import PeerId, PlanId
from p2pinfer.core.manifest import Manifest, Part
from p2pinfer.core.stripes import (
    Band,
    Layout,
    StoragePlan,
    WrongPlan,
    make_plan,
    parity_part,
)
from p2pinfer.engine.store.store import Store
from peers.parts.describe import Blame, Holders, fetch_lists
from peers.parts.link import Holder
from peers.parts.protocol import Run
from peers.parts.stripe_reader import STRIPES_AT_ONCE, Shares, StripeReader
from peers.parts.survey import plans_of
from transports.base import Transport

_log = logging.getLogger("p2pinfer.parts")

CHECKS = 2
"""Stripes of another's plan that are computed again before it is used: a plan of which half is
wrong passes one time in four, and is then found out by the first that is rebuilt."""

CHECK_S_MAX = 600.0
"""For that; those who go by a plan may refuse what it is checked by."""

Put = Callable[[Part, Sequence[bytes]], Awaitable[None]]
"""Takes a parity part, with its chunks' hashes, and its chunks."""


class Planner:
    """Finds, checks and makes plans of one model."""

    def __init__(
        self,
        transport: Transport,
        holders: Holders,
        store: Store,
        manifest: Manifest,
        chance: Random,
        blame: Blame,
        run: Run,
    ) -> None:
        self._transport, self._holders, self._store = transport, holders, store
        self._manifest, self._chance, self._blame, self._run = manifest, chance, blame, run
        self._wrong: set[PlanId] = set()

    def reader(self, layout: Layout, plan: StoragePlan | None) -> StripeReader:
        """Return what reads the model's stripes."""
        return StripeReader(
            self._transport,
            self._holders,
            self._store,
            self._manifest,
            layout,
            plan,
            self._blame,
            self._run,
        )

    async def own(self) -> StoragePlan | None:
        """Return the plan that is here."""
        return await self._run(self._store.plan, self._manifest)

    async def adopt(
        self, known: Mapping[PeerId, Holder], said: Mapping[PeerId, PlanId]
    ) -> StoragePlan | None:
        """Keep the plan that most others go by and that proves right, and return it."""
        left = {peer: plan for peer, plan in said.items() if plan not in self._wrong}
        for plan, peers in await plans_of(
            self._transport, known, self._manifest, left, self._blame
        ):
            is_checked = False
            try:
                with trio.move_on_after(CHECK_S_MAX):
                    is_checked = await self._check(plan)
            except WrongPlan as error:
                self.refuse(plan, peers, error)
                continue
            if is_checked:
                await self._run(self._store.add_plan, plan)
                return plan
        return None

    def refuse(self, plan: StoragePlan, peers: Sequence[PeerId], error: WrongPlan) -> None:
        """Never look at a plan again, and blame those who go by it."""
        self._wrong.add(plan.id)
        for peer in peers:
            text = f"{peer} keeps {self._manifest.name} by a wrong storage plan: {error}"
            self._blame(RemoteProtocolError(peer, text))

    async def _check(self, plan: StoragePlan) -> bool:
        """Compute some stripes again; False if none could be had. Raises WrongPlan."""
        layout = Layout(self._manifest, plan.k, plan.m)
        reader = self.reader(layout, plan)
        checked = 0
        for _ in range(2 * CHECKS):
            band = layout.band(self._chance.randrange(layout.bands))
            stripe = self._chance.randrange(band.stripes)
            for shares in (await reader.read(band, [stripe])).values():
                await self.verify(layout, plan, band, stripe, shares)
                checked += 1
            if checked >= CHECKS:
                break
        return checked > 0

    async def verify(
        self, layout: Layout, plan: StoragePlan, band: Band, stripe: int, shares: Shares
    ) -> None:
        """Compare all shares that follow from some with the plan; raises WrongPlan."""
        parity = plan.parity[band.number]
        listed = await fetch_lists(
            self._transport,
            self._holders,
            self._store,
            self._manifest.id,
            parity,
            blame=self._blame,
            run=self._run,
        )
        hashes = {part.hash: part.chunks[stripe] for part in listed}
        expected = {layout.k + row: hashes[part.hash] for row, part in enumerate(parity)}
        parts = {part.hash: part for part in self._manifest.parts}
        sizes = {row: layout.size(chunk) for row, chunk in band.at(stripe).items()}
        for row, chunk in band.at(stripe).items():
            if found := await self._run(self._store.listed, parts[chunk.part]):
                expected[row] = found.chunks[chunk.number]
        lacking = [row for row in expected if row not in shares]
        size = band.shares_bytes[stripe]
        compute = partial(rebuild, layout.k, layout.m, shares, lacking, size)
        for row, data in (await self._run(compute)).items():
            if blake3(data[: sizes.get(row, size)]).digest() != expected[row]:
                raise WrongPlan(f"stripe {stripe} of band {band.number} has other shares")

    async def make(
        self, layout: Layout, put: Put, tell: Callable[[int], None]
    ) -> StoragePlan | None:
        """Compute the plan from all of the model, here or elsewhere; None if some is not to be had.

        ``put`` gets each parity part; ``tell`` is told how many bytes of the model are done.
        """
        reader = self.reader(layout, None)
        parts: list[list[Part]] = []
        done = 0
        for band in layout.each():
            rows: list[list[bytes]] = [[] for _ in range(layout.m)]
            for at in range(0, band.stripes, STRIPES_AT_ONCE):
                some = range(at, min(at + STRIPES_AT_ONCE, band.stripes))
                read = await reader.read(band, some)
                if read.keys() != set(some):
                    return None
                for stripe in some:
                    shares = [read[stripe][row] for row in range(layout.k)]
                    for row, data in zip(
                        rows, await self._run(encode, shares, layout.m), strict=True
                    ):
                        row.append(data)
                    done += sum(map(len, shares))
                    tell(done)
            hashed = [[blake3(chunk).digest() for chunk in row] for row in rows]
            parity = [parity_part(band, row, each) for row, each in enumerate(hashed)]
            for part, row in zip(parity, rows, strict=True):
                await self._run(self._store.add_list, part, b"".join(part.chunks))
                await put(part, row)
            parts.append(parity)
        plan = make_plan(self._manifest, layout.k, layout.m, parts)
        await self._run(self._store.add_plan, plan)
        return plan
