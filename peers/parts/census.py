"""Who holds which rows of a model, who lends space to it, and how often peers are up.

A census is what a peer was told or saw: another's words are believed until a spot check or a
transfer shows them to be wrong. What is known of peers outlives a restart, or each restart would
take everybody who is away at that moment for gone.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import msgpack
from attrs import frozen

from p2pinfer.core.errors import PeerError, RemoteProtocolError
from p2pinfer.core.ids import ChunkId, PartHash, PeerId, PlanId
from p2pinfer.core.manifest import Manifest, Part
from p2pinfer.core.storage import NO_PLAN
from p2pinfer.core.stripes import Band, Layout, StoragePlan
from peers.parts.describe import Blame, Holders
from peers.parts.link import Holder
from peers.parts.survey import ask_all, ask_held, ask_kept
from scheduler.keeping import UP_WEIGHT_MAX, Group, Row, measured_up
from transports.base import Transport

_log = logging.getLogger("p2pinfer.parts")

KNOWN_MAX = 1024
"""Peers remembered, those longest silent forgotten first."""

DISTRUST_S = 24 * 3600.0
"""What a peer says is ignored for so long after it said what was not so."""

LACKED_MAX = 3
"""Spot checks in a row that a peer may fail: a row may have gone, or a line been slow."""

KEPT_S_MAX = 7 * 86_400.0
"""Between two checks of one peer for it to count as kept: days, where there are a thousand."""

_FORMAT = "p2pinfer census 1"


@dataclass
class SeenPeer:
    """What is known of one peer."""

    lent_bytes: int = 0
    plan: PlanId = NO_PLAN
    rows: set[Row] = field(default_factory=set)
    seen_s: float = float("-inf")
    """When it last answered, or was known to be there."""
    asked_s: float = float("-inf")
    """When it last said what it holds."""
    distrusted_until_s: float = float("-inf")
    lacked: int = 0
    """Spot checks in a row that it did not pass."""
    passed_s: float = float("inf")
    """When it last passed one."""


@frozen
class RowIndex:
    """The rows of a model: their groups, chunks and sizes."""

    groups: dict[int, Group]
    bands: dict[int, list[Band]]
    chunks: dict[Row, list[ChunkId]]
    size: dict[Row, int]
    """Bytes."""
    parts: dict[PartHash, Part]
    """All parts of the model, its parity included, by their hashes."""

    @classmethod
    def of(cls, manifest: Manifest, layout: Layout, plan: StoragePlan | None) -> "RowIndex":
        """Return the rows of a model; without a plan, only those of data."""
        groups, chunks, size = dict[int, Group](), dict[Row, list[ChunkId]](), dict[Row, int]()
        parts = {part.hash: part for part in manifest.parts}
        grouped = layout.grouped()
        for number, bands in grouped.items():
            for row in range(layout.k):
                found = [chunk for band in bands for chunk in band.data[row]]
                if found:
                    chunks[Row(number, row)] = found
                    size[Row(number, row)] = sum(map(layout.size, found))
            data = sum(Row(number, row) in chunks for row in range(layout.k))
            groups[number] = Group(number, data, layout.k, layout.m if plan else 0)
            for row in range(layout.m if plan else 0):
                assert plan
                named = [plan.parity[band.number][row] for band in bands]
                parts |= {part.hash: part for part in named}
                key = Row(number, layout.k + row)
                chunks[key] = [ChunkId(p.hash, n) for p in named for n in range(p.chunk_count)]
                size[key] = sum(part.size for part in named)
        return cls(groups, grouped, chunks, size, parts)

    def within(self, held: Collection[ChunkId]) -> set[Row]:
        """Return the rows that are whole in some chunks."""
        return {row for row, chunks in self.chunks.items() if all(c in held for c in chunks)}


class Census:
    """Keeps what is known of a model's keepers and holders up to date."""

    def __init__(
        self,
        transport: Transport,
        holders: Holders,
        manifest: Manifest,
        blame: Blame,
        clock_s: Callable[[], float],
    ) -> None:
        self._transport, self._holders, self._manifest = transport, holders, manifest
        self._blame, self._clock_s = blame, clock_s
        self.known: dict[PeerId, SeenPeer] = {}
        self.up: dict[PeerId, Holder] = {}
        """Peers that are there now."""
        self._answered = self._asked = 0.0

    @property
    def availability(self) -> float:
        """The measured share of keepers that is up."""
        return measured_up(self._answered, self._asked)

    def judge(self, error: PeerError) -> None:
        """Note who lied, or lacks what it said; and pass the blame on."""
        self._blame(error)
        if isinstance(error, RemoteProtocolError):
            self.distrust(error.peer)

    def distrust(self, peer: PeerId) -> None:
        """Ignore for a while what a peer says."""
        known = self.known.setdefault(peer, SeenPeer())
        known.rows.clear()
        known.distrusted_until_s = self._clock_s() + DISTRUST_S

    def note_check(self, peer: PeerId, row: Row, *, got: bool) -> float:
        """Note whether a peer gave a chunk of a row that it said it holds.

        Returns:
            For how long it has held what it says, in seconds, since the check before.
        """
        known = self.known[peer]
        now = self._clock_s()
        held_s = min(max(0.0, now - known.passed_s), KEPT_S_MAX) if got else 0.0
        known.passed_s = now if got else float("inf")
        known.lacked = 0 if got else known.lacked + 1
        if not got:
            known.rows.discard(row)
            known.asked_s = float("-inf")  # it is asked again what it holds
        if known.lacked >= LACKED_MAX:
            text = f"{peer} has not given what it says it holds, {LACKED_MAX} times in a row"
            self.judge(RemoteProtocolError(peer, text))
            known.lacked = 0
        return held_s

    def silent_s(self) -> dict[PeerId, float]:
        """Return for how long each trusted peer has been silent; 0: it is up."""
        now = self._clock_s()
        return {
            peer: 0.0 if peer in self.up else max(now - known.seen_s, 1e-9)
            for peer, known in self.known.items()
            if known.distrusted_until_s <= now
        }

    async def look(self, rows: RowIndex, again_s: float) -> None:
        """Note who is there, and ask those what they hold who have not said so for a while."""
        now = self._clock_s()
        there = {each.peer: each for each in self._holders()}
        there.pop(self._transport.peer_id, None)
        due = [
            holder
            for peer, holder in there.items()
            if now - self.known.get(peer, SeenPeer()).asked_s >= again_s
            and self.known.get(peer, SeenPeer()).distrusted_until_s <= now
        ]
        parts = list(rows.parts.values())

        async def ask(holder: Holder) -> tuple[int, PlanId, set[Row]]:
            try:
                kept = await ask_kept(self._transport, holder, self._manifest.id)
                lent, plan = kept.space_bytes, kept.plan
            except RemoteProtocolError:
                raise
            except PeerError:  # of an older version: it holds parts, and lends nothing
                lent, plan = 0, NO_PLAN
            held = await ask_held(self._transport, holder, self._manifest.id, parts)
            return lent, plan, rows.within(held)

        said = await ask_all(due, ask, self.judge)
        for holder in due:
            if holder.peer not in said:
                del there[holder.peer]
        for peer, (lent, plan, held) in said.items():
            known = self.known.setdefault(peer, SeenPeer())
            known.lent_bytes, known.plan, known.rows, known.asked_s = lent, plan, held, now
        for peer in there:
            self.known.setdefault(peer, SeenPeer()).seen_s = now
        self.up = there
        self._count()
        while len(self.known) > KNOWN_MAX:
            del self.known[min(self.known, key=lambda peer: self.known[peer].seen_s)]

    def _count(self) -> None:
        keepers = [peer for peer, known in self.known.items() if known.lent_bytes]
        self._asked += len(keepers)
        self._answered += sum(peer in self.up for peer in keepers)
        if self._asked > UP_WEIGHT_MAX:
            self._asked, self._answered = self._asked / 2, self._answered / 2

    def encode(self) -> bytes:
        """Return what ``recall`` reads."""
        peers = {
            peer: [each.lent_bytes, each.seen_s, each.distrusted_until_s, sorted(each.rows)]
            for peer, each in self.known.items()
        }
        told: bytes = msgpack.packb([_FORMAT, self._answered, self._asked, peers])
        return told

    def recall(self, data: bytes) -> None:
        """Read what an earlier run knew; nothing if it cannot be read."""
        try:
            kind, answered, asked, peers = msgpack.unpackb(data)
            if kind != _FORMAT:
                return
            self.known = {
                PeerId(str(peer)): SeenPeer(
                    lent_bytes=int(lent),
                    rows={Row(int(group), int(row)) for group, row in rows},
                    seen_s=float(seen),
                    distrusted_until_s=float(until),
                )
                for peer, (lent, seen, until, rows) in peers.items()
            }
            self._answered, self._asked = float(answered), float(asked)
        except Exception as error:  # noqa: BLE001  msgpack raises four families; any type anywhere
            _log.info("what was known of keepers cannot be read: %s", error)


def holders_of(census: Census, rows: Iterable[Row]) -> list[Holder]:
    """Return the peers that are up and hold any of some rows."""
    wanted = set(rows)
    return [
        holder
        for peer, holder in census.up.items()
        if not census.known[peer].rows.isdisjoint(wanted)
    ]
