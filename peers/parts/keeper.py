"""Keeping a model: this peer holds rows of it for others, within the space that it lends.

In rounds: look who is there and what they hold, check one of them by a chunk drawn at random, fetch
the rows that fall to this peer, rebuild what too few hold where this peer is first in rank, and
give up what is not its own. `scheduler.keeping` decides; nobody gives orders, and two peers that
decide differently do work twice and no harm.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from random import Random

import msgpack
import trio
from attrs import frozen

from p2pinfer.core.erasure import rebuild
from p2pinfer.core.errors import UserError, lone_errors
from p2pinfer.core.ids import ChunkId, ModelId, PeerId
from p2pinfer.core.manifest import Manifest, Part
from p2pinfer.core.model_names import readable_name
from p2pinfer.core.stripes import (
    DATA_SHARES,
    PARITY_SHARES,
    Band,
    Layout,
    StoragePlan,
    WrongPlan,
)
from p2pinfer.engine.store.damage import DamagedPart, MissingChunk
from p2pinfer.engine.store.store import Store
from peers.parts.census import Census, RowIndex, holders_of
from peers.parts.describe import Blame, Holders, fetch_lists, log_blame
from peers.parts.keep_server import KeepServer
from peers.parts.link import Holder
from peers.parts.planning import Planner
from peers.parts.progress import Meter
from peers.parts.protocol import Run, Tally, in_thread
from peers.parts.spot_check import spot_check
from peers.parts.stripe_reader import STRIPES_AT_ONCE
from peers.parts.transfer import Transfer
from scheduler.fetching import Fetching
from scheduler.keeping import (
    SHORT_S,
    Row,
    Wishes,
    choose_copies,
    may_lose,
    present,
    ranked,
    wishes,
)
from transports.base import Transport

_log = logging.getLogger("p2pinfer.parts")

ROUND_S = 300.0
"""Between two rounds: three of them pass before a group is rebuilt."""

ROUND_SOON_S = 60.0
"""While this peer still has rows to fetch, or others still have rows to take from it."""

ASK_AGAIN_S = 3600.0
"""Peers say every hour what they hold, and every round while something is lacking."""

TAKE_S_MAX = 1800.0
"""For the rows that a round fetches; what is there by then stays, and the next round goes on."""

Watch = Callable[["KeptState"], object]


@frozen
class KeptState:
    """How a model is kept, as one peer sees it."""

    name: str
    rows: int
    """Held here for others."""
    kept_bytes: int
    space_bytes: int
    keepers: int
    """Peers that lend space, this one included, and are up."""
    may_lose: int
    """How many peers may vanish with nothing lost; -1: something is out of reach now."""
    copies: int
    """Of each data row; 0: by code."""
    availability: float
    k: int
    m: int
    """Parity rows; 0 while there is no plan."""
    lacking: int
    """Rows that nobody present holds."""


@frozen
class Lending:
    """What a keeper may use, and how it keeps."""

    space_bytes: int
    k: int = DATA_SHARES
    m: int = PARITY_SHARES
    """Shares of a plan that this peer makes; others' plans say their own."""
    load: Callable[[], bytes | None] = lambda: None
    """Returns what an earlier run wrote."""
    save: Callable[[bytes], object] = lambda _: None
    """Writes what the next run is to know; both may wait for a disk."""


class Keeper:
    """Keeps rows of one model."""

    def __init__(
        self,
        transport: Transport,
        holders: Holders,
        store: Store,
        manifest: Manifest,
        lending: Lending,
        server: KeepServer,
        chance: Random,
        *,
        watch: Watch = lambda _: None,
        say: Callable[[str], object] = lambda _: None,
        blame: Blame = log_blame,
        run: Run = in_thread,
        clock_s: Callable[[], float] = trio.current_time,
        tally: Tally | None = None,
    ) -> None:
        self._transport, self._store, self._manifest = transport, store, manifest
        self._lending, self._chance, self._run = lending, chance, run
        self._tally = tally or Tally()
        self._watch, self._say, self._clock_s = watch, say, clock_s
        self.census = Census(transport, holders, manifest, blame, clock_s)
        self._trusted = partial(self._trusted_of, holders)
        self._planner = Planner(
            transport, self._trusted, store, manifest, chance, self.census.judge, run
        )
        self._plan: StoragePlan | None = None
        self._layout = Layout(manifest, lending.k, lending.m)
        self._rows = RowIndex.of(manifest, self._layout, None)
        self._held: set[Row] = set()
        self._taken: set[Row] = set()
        """Rows that are here because they are kept, and not because this machine uses them."""
        self._copies: int | None = None
        self._short_since: dict[int, float] = {}
        self._is_restless = True
        server.lent = self._lent

    def _lent(self, model: ModelId) -> int:
        return self._lending.space_bytes if model == self._manifest.id else 0

    def _trusted_of(self, holders: Holders) -> list[Holder]:
        now = self._clock_s()
        known = self.census.known
        return [
            holder
            for holder in holders()
            if holder.peer not in known or known[holder.peer].distrusted_until_s <= now
        ]

    async def run(self) -> None:
        """Keep the model, for ever; where the disk is full, it says so and tries again."""
        await self._recall()
        with lone_errors():
            while True:
                is_settled = True
                try:
                    is_settled = await self.round()
                except (UserError, MissingChunk, DamagedPart) as error:
                    self._say(str(error))
                pause_s = ROUND_S if is_settled else ROUND_SOON_S
                await trio.sleep(pause_s * self._chance.uniform(0.7, 1.0))

    async def round(self) -> bool:
        """Do what is due now; return whether all rows are where they belong."""
        await self._note_held()
        await self.census.look(self._rows, 0.0 if self._is_restless else ASK_AGAIN_S)
        if self._plan is None:
            await self._find_plan()
        await self._spot_check()
        wanted = self._decide()
        before = set(self._taken)
        await self._take([Row(g, row) for g, each in wanted.items() for row in sorted(each.take)])
        await self._rebuild(wanted)
        await self._release(wanted)
        if any(each.release for each in wanted.values()):
            await self._note_held()
        await self._save()
        self._watch(self._report(wanted))
        has_moved = self._taken != before
        self._is_restless = has_moved or any(each.is_short for each in wanted.values())
        return not has_moved

    # The plan

    async def _find_plan(self) -> None:
        """Use the plan that is here, or that others go by; or make it, where this peer is first."""
        plan = await self._planner.own()
        if plan is None:
            said = {peer: known.plan for peer, known in self.census.known.items() if known.plan}
            up = {peer: plan for peer, plan in said.items() if peer in self.census.up}
            plan = await self._planner.adopt(self.census.up, up)
        if plan is None and self._is_first_to_plan():
            plan = await self._make_plan()
        if plan is not None:
            self._plan = plan
            self._layout = Layout(self._manifest, plan.k, plan.m)
            self._rows = await self._run(RowIndex.of, self._manifest, self._layout, plan)
            await self._note_held()
            await self.census.look(self._rows, 0.0)

    def _is_first_to_plan(self) -> bool:
        """Who lends space and has the whole model is; or else who ranks first of those who do."""
        data = {row for row in self._rows.chunks if row.row < self._layout.k}
        here = {*self.census.up, self._me}
        order = [p for p in ranked(self._manifest.id, -1, self._keepers()) if p in here]
        held = {peer: self.census.known[peer].rows for peer in self.census.up}
        held[self._me] = self._held
        whole = [peer for peer in order if data <= held[peer]]
        return (whole or order)[0] == self._me

    async def _make_plan(self) -> StoragePlan | None:
        size, said = self._manifest.size, 0

        def tell(done: int) -> None:
            nonlocal said
            if done * 10 // size > said:
                said = done * 10 // size
                name = readable_name(self._manifest.name)
                self._say(f"computing parity of {name}: {10 * said} %")

        left = self._room()

        async def put(part: Part, chunks: Sequence[bytes]) -> None:
            nonlocal left
            if part.size <= left:
                left -= part.size
                await self._run(self._store.write_chunks, part, dict(enumerate(chunks)))
                await self._run(self._store.finish, part)

        plan = await self._planner.make(self._layout, put, tell)
        if plan:  # all of the parity here was just made, and is here for others
            rows = RowIndex.of(self._manifest, self._layout, plan)
            self._taken |= {row for row in rows.chunks if row.row >= self._layout.k}
        return plan

    # Decisions

    @property
    def _me(self) -> PeerId:
        return self._transport.peer_id

    def _keepers(self) -> dict[PeerId, int]:
        """Return what each peer lends that is not gone."""
        here = present(self.census.silent_s(), self.census.availability)
        lent = {peer: self.census.known[peer].lent_bytes for peer in here}
        return {peer: n for peer, n in lent.items() if n} | {self._me: self._lending.space_bytes}

    def _decide(self) -> dict[int, Wishes]:
        """Return what this peer is to do for each group."""
        known, up = self.census.known, {*self.census.up, self._me}
        silent = self.census.silent_s()
        keepers = self._keepers()
        available = self.census.availability
        layout = self._layout
        copies = choose_copies(layout.k, layout.m, len(keepers), available, self._copies)
        self._copies = copies if self._plan or copies else 1  # without parity, some copy at least
        by_group: dict[int, dict[PeerId, set[int]]] = {number: {} for number in self._rows.groups}
        for peer in silent:
            for row in known[peer].rows & self._rows.chunks.keys():
                by_group[row.group].setdefault(peer, set()).add(row.row)
        for row in self._held:
            by_group[row.group].setdefault(self._me, set()).add(row.row)
        found: dict[int, Wishes] = {}
        for number, group in self._rows.groups.items():
            holds = by_group[number]
            here = present({p: silent[p] for p in holds if p in silent}, available) | {self._me}
            holds = {peer: rows for peer, rows in holds.items() if peer in here}
            order = ranked(self._manifest.id, number, keepers)
            found[number] = wishes(group, self._me, order, holds, up, self._copies)
        return found

    def _report(self, wanted: dict[int, Wishes]) -> KeptState:
        up = self.census.up
        holds: dict[int, dict[PeerId, set[int]]] = {number: {} for number in self._rows.groups}
        for peer in up:
            for row in self.census.known[peer].rows & self._rows.chunks.keys():
                holds[row.group].setdefault(peer, set()).add(row.row)
        for row in self._held:
            holds[row.group].setdefault(self._me, set()).add(row.row)
        return KeptState(
            name=self._manifest.name,
            rows=len(self._taken),
            kept_bytes=self._used(),
            space_bytes=self._lending.space_bytes,
            keepers=1 + sum(bool(self.census.known[peer].lent_bytes) for peer in up),
            may_lose=may_lose((group, holds[n]) for n, group in self._rows.groups.items()),
            copies=self._copies or 0,
            availability=self.census.availability,
            k=self._layout.k,
            m=self._layout.m if self._plan else 0,
            lacking=sum(len(each.lost) for each in wanted.values()),
        )

    # Rows

    async def _note_held(self) -> None:
        """Look which rows are here."""
        self._held = await self._run(self._look_held)
        self._taken &= self._held | {row for row in self._taken if row not in self._rows.chunks}

    def _look_held(self) -> set[Row]:
        held: set[ChunkId] = set()
        for part in self._rows.parts.values():
            held.update(ChunkId(part.hash, n) for n in self._store.chunks_held(part))
        return self._rows.within(held)

    def _used(self) -> int:
        return sum(self._rows.size.get(row, 0) for row in self._taken)

    def _room(self) -> int:
        return self._lending.space_bytes - self._used()

    async def _take(self, rows: Iterable[Row]) -> None:
        """Fetch rows that fall to this peer, as many as there is room for, the rarest first."""
        holders = {row: len(holders_of(self.census, [row])) for row in rows}
        chosen: list[Row] = []
        left = self._room()
        for row in sorted(holders, key=lambda row: (holders[row], row)):
            if self._rows.size[row] <= left:
                left -= self._rows.size[row]
                chosen.append(row)
        if not chosen:
            return
        with trio.move_on_after(TAKE_S_MAX):
            await self._fetch(chosen)
        await self._note_held()
        self._taken |= set(chosen) & self._held

    async def _fetch(self, rows: Sequence[Row]) -> None:
        """Fetch rows into the store, and finish the parts that are whole then."""
        chunks = [chunk for row in rows for chunk in self._rows.chunks[row]]
        names = dict.fromkeys(chunk.part for chunk in chunks)
        holders = partial(holders_of, self.census, rows)
        listed = await fetch_lists(
            self._transport,
            holders,
            self._store,
            self._manifest.id,
            [self._rows.parts[name] for name in names],
            blame=self.census.judge,
            run=self._run,
        )
        parts = {part.hash: part for part in listed}
        held = {
            ChunkId(part.hash, n)
            for part in listed
            for n in await self._run(self._store.chunks_held, part)
        }
        sizes = {c: parts[c.part].chunk_size(c.number) for c in chunks if c not in held}
        transfer = Transfer(
            self._transport,
            self._store,
            self._manifest.id,
            listed,
            Fetching(sizes, self._chance.random()),
            self._run,
            self.census.judge,
            had=self._tally.had,
        )
        await transfer.run(holders, Meter(sum(sizes.values())), lambda _: None)
        for part in listed:
            if len(await self._run(self._store.chunks_held, part)) == part.chunk_count:
                await self._run(self._store.finish, part)

    async def _rebuild(self, wanted: dict[int, Wishes]) -> None:
        """Rebuild lost rows of groups that have been short for long, where this peer is first."""
        now = self._clock_s()
        short = {n for n, each in wanted.items() if each.is_short and each.lost}
        self._short_since = {number: self._short_since.get(number, now) for number in short}
        for number, since in self._short_since.items():
            each = wanted[number]
            if self._plan and each.is_first and now - since >= SHORT_S:
                try:
                    await self._rebuild_group(number, each.lost)
                except WrongPlan as error:
                    self._refuse_plan(error)
                    return

    def _refuse_plan(self, error: WrongPlan) -> None:
        assert self._plan
        said = [peer for peer, known in self.census.known.items() if known.plan == self._plan.id]
        self._planner.refuse(self._plan, said, error)
        self._plan = None

    async def _rebuild_group(self, number: int, lost: frozenset[int]) -> None:
        """Rebuild rows from any ``k`` others, checked against the manifest and the plan."""
        _log.info("rebuilding rows %s of group %d", sorted(lost), number)
        assert self._plan
        reader = self._planner.reader(self._layout, self._plan)
        for band in self._rows.bands[number]:
            for at in range(0, band.stripes, STRIPES_AT_ONCE):
                some = range(at, min(at + STRIPES_AT_ONCE, band.stripes))
                for stripe, shares in (await reader.read(band, some)).items():
                    rows = {r: c for r, c in reader.shares(band, stripe).items() if r in lost}
                    size = band.shares_bytes[stripe]
                    make = partial(
                        rebuild, self._layout.k, self._layout.m, shares, list(rows), size
                    )
                    for row, data in (await self._run(make)).items():
                        await self._put_rebuilt(band, rows[row], data)
        await self._note_held()
        self._taken |= {Row(number, row) for row in lost} & self._held

    async def _put_rebuilt(self, band: Band, chunk: ChunkId, data: bytes) -> None:
        """Store a rebuilt chunk; raises WrongPlan if it is not what its hash says."""
        (part,) = await fetch_lists(
            self._transport,
            self._trusted,
            self._store,
            self._manifest.id,
            [self._rows.parts[chunk.part]],
            blame=self.census.judge,
            run=self._run,
        )
        data = data[: part.chunk_size(chunk.number)]
        if await self._run(self._store.write_chunks, part, {chunk.number: data}):
            raise WrongPlan(f"band {band.number} gives other bytes for {part.name}")
        if len(await self._run(self._store.chunks_held, part)) == part.chunk_count:
            await self._run(self._store.finish, part)

    async def _release(self, wanted: dict[int, Wishes]) -> None:
        """Give up rows that were kept here, and that their owners hold now."""
        for number, each in wanted.items():
            for row in sorted(each.release):
                key = Row(number, row)
                if key not in self._taken:
                    continue
                by_part: dict[Part, set[int]] = {}
                for chunk in self._rows.chunks[key]:
                    part = self._rows.parts[chunk.part]
                    by_part.setdefault(part, set()).add(chunk.number)
                for part, chunks in by_part.items():
                    # A whole part of the model may be in use by others on this machine.
                    if row >= self._layout.k or not await self._run(self._store.held, part):
                        await self._run(self._store.drop, part, chunks)
                self._taken.discard(key)

    async def _spot_check(self) -> None:
        """Ask one peer for one chunk of those that it says it holds, drawn at random."""
        able = [p for p in sorted(self.census.up) if self.census.known[p].rows]
        if not able:
            return
        peer = self._chance.choice(able)
        row = self._chance.choice(sorted(self.census.known[peer].rows))
        if row not in self._rows.chunks:
            return
        chunk = self._chance.choice(self._rows.chunks[row])
        part = await self._run(self._store.listed, self._rows.parts[chunk.part])
        if part is not None:
            holder = self.census.up[peer]
            got = await spot_check(
                self._transport, holder, self._manifest.id, part, chunk.number, self.census.judge
            )
            known = self.census.known[peer]
            held = sum(self._rows.size[each] for each in known.rows if each in self._rows.size)
            held_s = self.census.note_check(peer, row, got=got)
            self._tally.kept(peer, int(min(held, known.lent_bytes) * held_s))

    # Between runs

    async def _recall(self) -> None:
        data = await self._run(self._lending.load)
        if data is None:
            return
        try:
            taken, census = msgpack.unpackb(data, use_list=False)
            self._taken = {Row(int(group), int(row)) for group, row in taken}
            self.census.recall(census)
        except Exception as error:  # noqa: BLE001  msgpack raises four families; any type anywhere
            _log.info("what was kept before cannot be read: %s", error)

    async def _save(self) -> None:
        await self._run(
            self._lending.save, msgpack.packb([sorted(self._taken), self.census.encode()])
        )
