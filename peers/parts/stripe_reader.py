"""Reading stripes: any ``k`` shares of each, from the store and from those who hold the others."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping

import trio
from blake3 import blake3

from p2pinfer.core.errors import lone_errors
from p2pinfer.core.ids import ChunkId, PartHash, PeerId
from p2pinfer.core.manifest import Manifest, Part
from p2pinfer.core.stripes import Band, Layout, StoragePlan
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk
from p2pinfer.engine.store.store import Store
from peers.parts.describe import Blame, Holders, fetch_lists
from peers.parts.link import Holder
from peers.parts.progress import Meter
from peers.parts.protocol import Run
from peers.parts.survey import survey
from peers.parts.transfer import Transfer
from scheduler.fetching import Fetching
from transports.base import Transport

_log = logging.getLogger("p2pinfer.parts")

STRIPES_AT_ONCE = 2
"""Read into memory together: 16 MiB of shares where eight make a stripe, and as much is made."""

READ_S_MAX = 300.0
"""For the shares of some stripes: 16 MiB at 56 KB/s."""

TRIES = 3
"""How often holders that do not bring what they claimed are passed over for others."""

Shares = dict[int, bytes]
"""Shares of one stripe by their rows: data first, then parity. Zeros need no bytes."""


class ChunksInMemory:
    """Chunks in memory, each checked as in the store."""

    def __init__(self) -> None:
        self.chunks: dict[ChunkId, bytes] = {}

    def write_chunks(self, part: Part, chunks: Mapping[int, bytes]) -> set[int]:
        """Keep those chunks that are correct; return the numbers of the others."""
        right = {
            index: data
            for index, data in chunks.items()
            if len(data) == part.chunk_size(index) and blake3(data).digest() == part.chunks[index]
        }
        self.chunks |= {ChunkId(part.hash, index): data for index, data in right.items()}
        return chunks.keys() - right.keys()

    def finish(self, part: Part) -> None:
        """Nothing more is to be done."""


class StripeReader:
    """Reads a model's stripes; without a plan, only their data."""

    def __init__(
        self,
        transport: Transport,
        holders: Holders,
        store: Store,
        manifest: Manifest,
        layout: Layout,
        plan: StoragePlan | None,
        blame: Blame,
        run: Run,
    ) -> None:
        self._transport, self._holders, self._store = transport, holders, store
        self._manifest, self.layout, self.plan = manifest, layout, plan
        self._blame, self._run = blame, run
        self._parts = {part.hash: part for part in manifest.parts}

    def shares(self, band: Band, stripe: int) -> dict[int, ChunkId]:
        """Return the chunks of a stripe by their rows, parity included; zeros are left out."""
        found = band.at(stripe)
        if self.plan:
            rows = enumerate(self.plan.parity[band.number], self.layout.k)
            found |= {row: ChunkId(part.hash, stripe) for row, part in rows}
        return found

    def parts_of(self, band: Band) -> dict[PartHash, Part]:
        """Return the parts that a band's chunks lie in."""
        found = {chunk.part: self._parts[chunk.part] for row in band.data for chunk in row}
        if self.plan:
            found |= {part.hash: part for part in self.plan.parity[band.number]}
        return found

    async def survey(self, band: Band) -> dict[PeerId, set[ChunkId]]:
        """Ask all holders which chunks of a band they have."""
        parts = list(self.parts_of(band).values())
        return await survey(self._transport, self._holders(), self._manifest.id, parts, self._blame)

    async def read(
        self, band: Band, stripes: Iterable[int], without: Collection[ChunkId] = ()
    ) -> dict[int, Shares]:
        """Return ``k`` shares of each of these stripes; those are left out that lack some.

        Chunks in ``without`` are taken for lost, whatever others say.
        """
        with lone_errors():
            held = await self.survey(band)
            own: set[ChunkId] = set()
            for part in self.parts_of(band).values():
                own |= {
                    ChunkId(part.hash, n) for n in await self._run(self._store.chunks_held, part)
                }
            missed = set(without)
            memory = ChunksInMemory()
            for _ in range(TRIES):
                counted = Counter(chunk for chunks in held.values() for chunk in chunks)
                there = {chunk for chunk in (own | counted.keys()) if chunk not in missed}
                there |= memory.chunks.keys()
                rank = _ranking(own | memory.chunks.keys(), counted)
                chosen = {
                    stripe: rows
                    for stripe in stripes
                    if (rows := self._choose(band, stripe, there, rank)) is not None
                }
                wanted = {chunk for rows in chosen.values() for chunk in rows.values()}
                mine = wanted & own - memory.chunks.keys()
                missed |= mine - await self._read_own(mine, band, memory)
                left = wanted - own - memory.chunks.keys()
                await self._bring(left, held, band, memory)
                missed |= wanted - memory.chunks.keys()
                if not wanted - memory.chunks.keys():
                    break
            return {
                stripe: self._taken(rows, memory)
                for stripe, rows in chosen.items()
                if all(chunk in memory.chunks for chunk in rows.values())
            }

    def _choose(
        self,
        band: Band,
        stripe: int,
        there: Collection[ChunkId],
        rank: Callable[[ChunkId], tuple[int, int]],
    ) -> dict[int, ChunkId] | None:
        """Return which shares of a stripe to read; None if there are too few."""
        shares = self.shares(band, stripe)
        zeros = self.layout.k - len(band.at(stripe))
        at_hand = [row for row, chunk in shares.items() if chunk in there]
        at_hand.sort(key=lambda row: (*rank(shares[row]), row))
        need = self.layout.k - zeros
        return {row: shares[row] for row in at_hand[:need]} if len(at_hand) >= need else None

    def _taken(self, rows: Mapping[int, ChunkId], memory: ChunksInMemory) -> Shares:
        """Return a stripe's shares, with those that are zeros."""
        shares = {row: memory.chunks[chunk] for row, chunk in rows.items()}
        zeros = self.layout.k - len(rows)
        unused = (row for row in range(self.layout.k - 1, -1, -1) if row not in rows)
        return shares | {row: b"" for row, _ in zip(unused, range(zeros), strict=False)}

    async def _read_own(
        self, chunks: Iterable[ChunkId], band: Band, memory: ChunksInMemory
    ) -> set[ChunkId]:
        parts = self.parts_of(band)
        for chunk in sorted(chunks):
            try:
                data = await self._run(self._store.read_chunk, parts[chunk.part], chunk.number)
            except (DamagedPart, MissingChunk) as error:
                _log.warning("%s", error)
            else:
                memory.chunks[chunk] = data
        return set(memory.chunks)

    async def _bring(
        self,
        chunks: set[ChunkId],
        held: Mapping[PeerId, Collection[ChunkId]],
        band: Band,
        memory: ChunksInMemory,
    ) -> None:
        """Fetch chunks into memory, as far as their holders bring them in time."""
        useful = {peer for peer, has in held.items() if not chunks.isdisjoint(has)}
        parts = [self.parts_of(band)[name] for name in sorted({chunk.part for chunk in chunks})]

        def holders() -> list[Holder]:
            return [holder for holder in self._holders() if holder.peer in useful]

        if not useful:
            return
        with trio.move_on_after(READ_S_MAX):
            listed = await fetch_lists(
                self._transport,
                holders,
                self._store,
                self._manifest.id,
                parts,
                blame=self._blame,
                run=self._run,
            )
            by_hash = {part.hash: part for part in listed}
            sizes = {c: by_hash[c.part].chunk_size(c.number) for c in sorted(chunks)}
            transfer = Transfer(
                self._transport,
                memory,
                self._manifest.id,
                listed,
                Fetching(sizes, 0.0),
                self._run,
                self._blame,
            )
            meter = Meter(sum(sizes.values()))
            await transfer.run(holders, meter, lambda _: None)


def _ranking(
    own: Collection[ChunkId], counted: Mapping[ChunkId, int]
) -> Callable[[ChunkId], tuple[int, int]]:
    """Return an order: what is here first, then what most peers hold."""
    return lambda chunk: (0 if chunk in own else 1, -counted.get(chunk, 0))
