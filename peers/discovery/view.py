"""What a peer knows about the swarm: the newest advertisement of each peer, until it is stale.

A plain data structure: the time is an argument, nothing waits. Of the models that this peer follows
it keeps all advertisements up to a limit, and beyond it a sample that covers every layer; of other
models it keeps a few peers each, which can be asked for more.
"""

import heapq
from collections.abc import Callable, Collection, Iterable
from enum import Enum, auto
from random import Random

from p2pinfer.core.advertisement import (
    ADVERTISEMENTS_MAX,
    PERIOD_MS_DEFAULT,
    PERIOD_MS_MAX,
    Advertisement,
    Heard,
    State,
)
from p2pinfer.core.exchange import TAG_BYTES
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from peers.discovery.model_index import IndexEntry, ModelIndex, Parsed, parse
from peers.steps.rate_limit import ROUNDING_S
from transports.blocklist import Blocklist

SHORTEST_S = PERIOD_MS_DEFAULT / 1000
"""Period of a small swarm."""

ARRIVALS_PER_S_MAX = 10
"""Advertisements of one model that a peer receives, however many peers there are: with more, the
period stretches."""

PERIODS_MISSED_MAX = 3.5
"""Three renewals missed: the peer is gone, or cut off."""

LATE_RATIO, MENDED_S = 1.25, 60.0
"""With long periods, one missed renewal suffices: anti-entropy with at least two other peers a
minute repairs what gossip lost, so a renewal is never later than this."""

PERIOD_RATIO_MAX = 4
"""An advertised period counts for at most this many times our own."""

SHORTER = 0.7
"""If a period shrinks below this share, the new advertisement's expiry is scheduled at once, as it
is earlier. Otherwise the old check is early enough; each newcomer changes every period a little."""

SILENCED_S = 300.0
"""How long a departed peer's last sequence number is remembered, so that repeating its last
advertisement cannot bring it back. A peer that returns with its clock set back is ignored for as
long."""

MODELS_MAX = 64
"""Models of which a few peers are kept without following them."""

GLIMPSE_MAX = 16
"""Peers kept of each of those."""

EXPIRIES_PER_PEER_MAX = 4
"""Expiries noted per advertisement that there is room for; honest peers' periods need no more."""

SAID_MAX = 6
SAID_EACH_S = 2.5
"""Advertisements taken from one author: this many at once, then one per this many seconds; honest
peers send fewer."""

_SAID_MOST_S = SAID_MAX * SAID_EACH_S + ROUNDING_S

Verify = Callable[[PeerId, bytes, bytes], bool]
"""Whether a signature is a peer's for some bytes."""


def lasts_s(period_s: float) -> float:
    """Return for how long an advertisement with a given renewal period is valid."""
    return min(PERIODS_MISSED_MAX * period_s, LATE_RATIO * period_s + MENDED_S)


class Taken(Enum):
    """What became of an advertisement."""

    NEW = auto()
    OLD = auto()
    """Known already, or silenced: of no use to other peers either."""
    BAD = auto()
    """Not genuine."""


NEW, OLD, LEFT = Taken.NEW, Taken.OLD, State.LEFT
"""Looked up once: they are needed for every advertisement received."""


class SwarmView:
    """All that a peer knows; ``room`` is how many advertisements it keeps."""

    def __init__(
        self, me: PeerId, verify: Verify, chance: Random, room: int = ADVERTISEMENTS_MAX
    ) -> None:
        self.me = me
        self.indexes: dict[ModelId, ModelIndex] = {}
        self.followed: dict[ModelId, None] = {}
        self.on_newer_sequence: Callable[[int], object] = lambda _: None
        """Called with the number of an advertisement that an earlier run of this peer made."""
        self._verify, self._chance, self._room = verify, chance, room
        self._known: dict[PeerId, IndexEntry] = {}
        """Entries of all models: a peer is in one index only."""
        self._silenced: dict[PeerId, tuple[int, float]] = {}
        """Forgotten peers' last sequence number and when, so old advertisements do not return."""
        self._expiries: list[tuple[float, PeerId]] = []
        """When to check whether a peer has fallen silent; valid only if its entry agrees."""
        self._blocklist = Blocklist()

    def follow(self, model: ModelId) -> bool:
        """Keep all of a model's peers from now on; return whether it was not followed before."""
        new = model not in self.followed
        self.followed[model] = None
        return new

    def get(self, peer: PeerId) -> IndexEntry | None:
        """Return a peer's entry."""
        return self._known.get(peer)

    def of(self, model: ModelId) -> Iterable[IndexEntry]:
        """Return the entries of a model's peers."""
        index = self.indexes.get(model)
        return index.entries.values() if index else ()

    def missing(self, model: ModelId, layers: LayerRange) -> list[int]:
        """Return the layers of a range that no peer holds, or is about to."""
        index = self.indexes.get(model)
        return index.missing(layers) if index else [*layers.each()]

    def fewest_holders(self, model: ModelId, layers: LayerRange) -> int:
        """Return how many peers hold a range's rarest layer, or are about to."""
        index = self.indexes.get(model)
        return index.fewest(layers) if index else 0

    @property
    def is_full(self) -> bool:
        """Whether there is no room for one more peer, so that the known ones are a sample."""
        return len(self._known) >= self._room

    def period_s(self, model: ModelId) -> float:
        """Return the period after which a peer of this model renews its advertisement."""
        index = self.indexes.get(model)
        crowd = 1 + len(index.entries) if index else 1
        if index and self.is_full:
            crowd = max(crowd, index.crowd)
        return min(max(SHORTEST_S, crowd / ARRIVALS_PER_S_MAX), PERIOD_MS_MAX / 1000)

    def take(self, heard: Heard, now: float, topic: ModelId | None = None) -> Taken:
        """Judge an advertisement and keep it if it is new.

        One that came by gossip, on the ``topic`` of a model, must be of that model, and counts
        against its author's rate limit.
        """
        parsed = parse(heard.body)
        if parsed is None:
            return Taken.BAD
        found = parsed.advertisement
        if topic and found.model != topic:
            return Taken.BAD
        peer = found.peer
        if self._blocklist.blocks(peer):
            return OLD
        before = self._known.get(peer)
        known = before.parsed.advertisement.sequence if before else self._last_word(peer, now)
        if found.sequence <= known:
            return OLD
        made_at = now - heard.age_ms / 1000 if heard.age_ms else now
        full_at = before.full_at if before else made_at
        full_at = (full_at if full_at > made_at else made_at) + SAID_EACH_S
        if full_at > made_at + _SAID_MOST_S:
            if topic:
                return OLD
            full_at = made_at + _SAID_MOST_S
        if heard.age_ms and made_at + self._lasts_s(found) <= now:
            return OLD
        if not self._verify(peer, heard.body, heard.signature):
            return Taken.BAD
        if peer == self.me:
            self.on_newer_sequence(found.sequence)
            return OLD
        if topic and self.is_full:  # the kept entries no longer show how many peers there are
            index = self._index(found.model)
            index.flow_ms += found.period_ms
            if now >= index.count_at:
                index.count(now, self.period_s(found.model))
        if found.state is LEFT:
            self._silence(peer, found.sequence, now)
        elif before or self._make_room(found):
            self._keep(before, parsed, heard, made_at, full_at)
        return NEW

    def note_call(self, peer: PeerId, *, answered: bool) -> None:
        """Record whether a peer answered when it was called."""
        if entry := self._known.get(peer):
            entry.index.note_call(peer, answered=answered)

    def note_caller(self, peer: PeerId) -> None:
        """Record a call from a peer: it is present, but that does not show that others reach it."""
        if (entry := self._known.get(peer)) and entry.has_answered:
            self.note_call(peer, answered=True)

    def put(self, parsed: Parsed, heard: Heard, made_at: float) -> None:
        """Keep our own advertisement, which never expires here."""
        self._keep(self._known.get(self.me), parsed, heard, made_at, made_at)

    def _keep(
        self, entry: IndexEntry | None, parsed: Parsed, heard: Heard, made_at: float, full_at: float
    ) -> None:
        """Put a new advertisement in place of the known one."""
        found, before = parsed.advertisement, entry.parsed.advertisement if entry else None
        if entry is None or before is None or before.model != found.model:
            self._drop(found.peer)
            index = self._index(found.model)
            entry = self._known[found.peer] = IndexEntry(parsed, heard, made_at, full_at, index)
            index.add(found.peer, entry)
            self._expect(entry, made_at + self._lasts_s(found))
            return
        entry.index.renew(entry, parsed)
        entry.heard, entry.made_at, entry.full_at = heard, made_at, full_at
        if found.period_ms < SHORTER * before.period_ms:
            expires_at = made_at + self._lasts_s(found)
            if expires_at < entry.check_at:
                self._expect(entry, expires_at)

    def expire(self, now: float) -> list[Advertisement]:
        """Drop expired advertisements, and return them."""
        gone: list[Advertisement] = []
        while self._expiries and self._expiries[0][0] <= now:
            at, peer = heapq.heappop(self._expiries)
            entry = self._known.get(peer)
            if entry is None or entry.check_at != at or peer == self.me:
                continue  # outdated: its check was rescheduled
            found = entry.parsed.advertisement
            if (expires_at := entry.made_at + self._lasts_s(found)) > now:
                self._expect(entry, expires_at)  # it was renewed, or the swarm has grown meanwhile
            else:
                gone.append(found)
                self._silence(peer, found.sequence, now)
        return gone

    def _expect(self, entry: IndexEntry, expires_at: float) -> None:
        """Schedule a check for whether a peer has fallen silent."""
        entry.check_at = expires_at
        heapq.heappush(self._expiries, (expires_at, entry.parsed.advertisement.peer))
        if len(self._expiries) > EXPIRIES_PER_PEER_MAX * self._room:  # a peer renews far too often
            self._expiries = sorted((entry.check_at, peer) for peer, entry in self._known.items())

    def _last_word(self, peer: PeerId, now: float) -> int:
        """Return a departed peer's last sequence number while it is remembered, otherwise -1."""
        number, since = self._silenced.get(peer, (-1, now))
        return number if now - since < SILENCED_S else -1

    def forget(self, peer: PeerId, now: float) -> None:
        """Drop a peer; its older advertisements are not accepted again."""
        if entry := self.get(peer):
            self._silence(peer, entry.parsed.advertisement.sequence, now)

    def shut_out(self, peer: PeerId, now: float) -> None:
        """Drop a peer, and ignore its advertisements from now on."""
        self._blocklist.block(peer)
        self.forget(peer, now)

    def knows(self, peer: PeerId) -> bool:
        """Whether a peer has an entry."""
        return peer in self._known

    def knows_nobody(self) -> bool:
        """Whether no other peer is known."""
        return not any(peer != self.me for peer in self._known)

    def glimpses(self, but: Collection[ModelId] = ()) -> list[IndexEntry]:
        """Return the newest few entries of every model except those in ``but``."""
        found: list[IndexEntry] = []
        for model, index in self.indexes.items():
            if model not in but:
                found += heapq.nlargest(
                    GLIMPSE_MAX, index.entries.values(), key=lambda entry: entry.made_at
                )
        return found

    def models_digest(self) -> bytes:
        """Return a digest of the ids of all models that have peers."""
        found = 0
        for model, index in self.indexes.items():
            if index.entries:
                found ^= int.from_bytes(bytes.fromhex(model)[:TAG_BYTES], "big")
        return found.to_bytes(TAG_BYTES, "big")

    def _lasts_s(self, found: Advertisement) -> float:
        period_s = found.period_ms / 1000
        if period_s > PERIOD_RATIO_MAX * SHORTEST_S:  # otherwise our own is always long enough
            period_s = min(period_s, PERIOD_RATIO_MAX * self.period_s(found.model))
        return lasts_s(period_s)

    def _index(self, model: ModelId) -> ModelIndex:
        if model not in self.indexes:
            self.indexes[model] = ModelIndex()
        return self.indexes[model]

    def _silence(self, peer: PeerId, sequence: int, now: float) -> None:
        self._drop(peer)
        self._silenced.pop(peer, None)
        self._silenced[peer] = sequence, now
        if len(self._silenced) > self._room:
            del self._silenced[next(iter(self._silenced))]

    def _drop(self, peer: PeerId) -> None:
        entry = self._known.pop(peer, None)
        if entry:
            model = entry.parsed.advertisement.model
            entry.index.drop(peer)
            if not entry.index.entries and model not in self.followed:
                del self.indexes[model]

    def _make_room(self, found: Advertisement) -> bool:
        """Whether to keep a newcomer; a peer that must make room for it is dropped."""
        index = self.indexes.get(found.model) or ModelIndex()
        if found.model not in self.followed:
            if not index.entries and len(self.indexes) >= MODELS_MAX + len(self.followed):
                return False
            if len(index.entries) >= GLIMPSE_MAX:
                self._drop(min(index.entries, key=lambda peer: index.entries[peer].made_at))
        if not self.is_full:
            return True
        victim = self._spare(index, found)
        if victim:
            self._drop(victim)
        return victim is not None

    def _spare(self, index: ModelIndex, found: Advertisement) -> PeerId | None:
        """Return a peer whose layers are all served by more peers than the newcomer's rarest."""
        others = [peer for peer in index.entries if peer != self.me]
        drawn = self._chance.sample(others, min(GLIMPSE_MAX, len(others)))
        rarest = {peer: index.rarest(index.entries[peer].parsed.advertisement) for peer in drawn}
        victim = max(drawn, key=lambda peer: rarest[peer], default=None)
        return victim if victim and index.rarest(found) < rarest[victim] else None
