"""Which chunk to request from which holder next.

The rarest chunks go first, so that what only one peer holds is soon safe; among equally rare
chunks every fetcher begins at another place, so that fetchers soon have something for each
other. The fastest holder is asked first, and a slow one is not asked for what faster ones would
bring sooner. No chunk is requested from two holders at once. The clock is an argument, in seconds.
"""

from collections import Counter, deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from p2pinfer.core.ids import ChunkId, PartHash, PeerId
from p2pinfer.core.manifest import CHUNK_BYTES

HOLDERS_MAX = 8
"""Holders in use at once; more would bring nothing but bookkeeping."""

IN_FLIGHT_PER_HOLDER_MAX = 6
"""Chunks requested from one holder and not yet stored: two being read there, two in transit, two
being hashed and written here. With more, they leave the processors' caches before their turn."""

IN_FLIGHT_MAX = 24
"""Over all holders: 24 MiB at most wait to be stored, whatever the model's size."""

FIRST_CHUNK_S_MAX = 30.0
"""For a chunk from a holder of unknown rate: 35 KB/s is the least that counts as alive."""

CHUNK_S_MIN = 5.0
"""No holder counts as slow before this: a burst of other traffic lasts as long."""

SLOW_FACTOR = 4.0
"""A holder is slow when a chunk takes this many times what its chunks took so far."""

REST_S_MIN = 1.0
REST_S_MAX = 30.0
"""How long a holder that failed is left alone: doubled each time until it brings a chunk."""

DEFAULTS_MAX = 2
DEFAULT_REST_S = 120.0
"""A holder that was lost this many times in a row with chunks asked of it is left alone for long,
and what it claims counts as held by nobody: it may be rebuilt from elsewhere meanwhile."""

FAILURES_MAX = 10
"""Counted in a row; by then the pause has long reached ``REST_S_MAX``."""

RATED_BYTES_MIN = CHUNK_BYTES // 2
"""A smaller chunk's time is mostly its round trip, and tells nothing of a holder's rate."""

RATE_WEIGHT = 0.25
"""Weight of the newest chunk in a holder's smoothed rate."""


@dataclass
class _Holder:
    """What is known of a peer that holds, or held, chunks we lack."""

    claims: set[ChunkId] = field(default_factory=set)
    queue: deque[ChunkId] = field(default_factory=deque)
    """What it claims and we lack, best first; chunks requested meanwhile are dropped on the way."""
    asked: set[ChunkId] = field(default_factory=set)
    storing: int = 0
    """Chunks that it delivered and that are not yet stored."""
    quiet_since: float = 0.0
    """When its last chunk came, or when it was asked after a pause."""
    s_per_byte: float | None = None
    failures: int = 0
    """In a row."""
    defaults: int = 0
    """How often in a row it was lost while chunks were due from it."""
    rests_until: float = 0.0
    linked: bool = False
    banned: bool = False


class Fetching:
    """The missing chunks, which holders claim them, and which were requested from which.

    ``sizes`` gives the bytes of each missing chunk; ``start``, from 0 to 1, is where in them this
    fetcher begins. A chunk is free, then requested (`ask`), then being stored (`arrived`), then
    gone from here (`stored`); anything that goes wrong on the way makes it free again.
    """

    def __init__(self, sizes: Mapping[ChunkId, int], start: float) -> None:
        self._sizes = dict(sizes)
        order = list(sizes)
        offset = int(start * len(order))
        self._place = {chunk: n for n, chunk in enumerate(order[offset:] + order[:offset])}
        self._free = set(order)
        self._holders: dict[PeerId, _Holder] = {}
        self._claimed: Counter[ChunkId] = Counter()
        self._stale = False  # claims have changed: the queues must be rebuilt
        self.in_flight = 0
        """Chunks requested, or being stored."""
        self.bytes_left = sum(self._sizes.values())

    @property
    def linked(self) -> list[PeerId]:
        """The holders in use."""
        return [peer for peer, holder in self._holders.items() if holder.linked]

    @property
    def givers(self) -> int:
        """How many of them have something for us."""
        return sum(bool(holder.claims) for holder in self._holders.values())

    @property
    def asked(self) -> int:
        """How many chunks have been requested and have not arrived."""
        return sum(len(holder.asked) for holder in self._holders.values())

    @property
    def missing(self) -> Collection[ChunkId]:
        """The chunks not stored yet."""
        return self._sizes.keys()

    @property
    def done(self) -> bool:
        """Whether everything is stored."""
        return not self._sizes

    def claims_all(self, peer: PeerId) -> bool:
        """Whether a holder claims everything that is missing."""
        return self._sizes.keys() <= self._holders[peer].claims

    def nobody_holds(self) -> set[PartHash]:
        """Return parts with unrequested chunks that no linked holder claims."""
        return {chunk.part for chunk in self.unheld()}

    def unheld(self) -> list[ChunkId]:
        """Return the unrequested chunks that no linked holder claims, in order."""
        self._make_queues()
        return sorted(chunk for chunk in self._free if not self._claimed[chunk])

    @property
    def doubted(self) -> set[PeerId]:
        """Holders whose claims are worth nothing: they lied, or did not bring what they claimed."""
        return {
            p for p, each in self._holders.items() if each.banned or each.defaults >= DEFAULTS_MAX
        }

    def made(self, chunk: ChunkId) -> bool:
        """Record that a chunk is stored that no holder gave; say whether it was missing."""
        if chunk not in self._free:  # requested meanwhile, or stored
            return False
        self._free.remove(chunk)
        self.bytes_left -= self._sizes.pop(chunk)
        return True

    def link(self, known: Iterable[PeerId], now: float) -> list[PeerId]:
        """Return which of the known holders to use in addition to the present ones."""
        chosen: list[PeerId] = []
        room = HOLDERS_MAX - len(self.linked)
        for peer in known:
            holder = self._holders.setdefault(peer, _Holder())
            resting = holder.banned or now < holder.rests_until
            if len(chosen) < room and not holder.linked and not resting:
                holder.linked = True
                chosen.append(peer)
        return chosen

    def useless(self) -> list[PeerId]:
        """Return holders to drop: all places are taken, and these have nothing for us."""
        if len(linked := self.linked) < HOLDERS_MAX:
            return []
        return [p for p in linked if self._holders[p].claims.isdisjoint(self._sizes)]

    def claim(self, peer: PeerId, chunks: Iterable[ChunkId]) -> None:
        """Record what a holder says it holds; this replaces its earlier claim."""
        claims = {chunk for chunk in chunks if chunk in self._sizes}
        if claims != self._holders[peer].claims:
            self._holders[peer].claims = claims
            self._stale = True

    def ask(self, now: float) -> list[tuple[PeerId, ChunkId]]:
        """Return which chunk to request from which holder now."""
        self._make_queues()
        ready = [(peer, holder) for peer, holder in self._holders.items() if holder.linked]
        ready.sort(key=lambda each: each[1].s_per_byte or 0.0)  # unknown rates first, to learn them
        asked: list[tuple[PeerId, ChunkId]] = []
        while ready:
            able = []
            for peer, holder in ready:  # one chunk each in turn, so that all of them have work
                chunk = self._next(holder)
                if chunk is None:
                    continue
                if not holder.asked:
                    holder.quiet_since = now
                holder.asked.add(holder.queue.popleft())
                self._free.remove(chunk)
                self.in_flight += 1
                asked.append((peer, chunk))
                able.append((peer, holder))
            ready = able
        return asked

    def arrived(self, peer: PeerId, chunk: ChunkId, now: float) -> None:
        """Record that a requested chunk arrived."""
        holder = self._holders[peer]
        holder.asked.remove(chunk)
        holder.storing += 1
        if (size := self._sizes[chunk]) >= RATED_BYTES_MIN:
            took = (now - holder.quiet_since) / size
            before = took if holder.s_per_byte is None else holder.s_per_byte
            holder.s_per_byte = before + RATE_WEIGHT * (took - before)
        holder.quiet_since = now

    def stored(self, peer: PeerId, chunk: ChunkId) -> None:
        """Record that a chunk was correct and is stored."""
        self._holders[peer].storing -= 1
        self._holders[peer].failures = self._holders[peer].defaults = 0
        self.in_flight -= 1
        self.bytes_left -= self._sizes.pop(chunk)

    def spoilt(self, peer: PeerId, chunk: ChunkId) -> None:
        """Record that a chunk was not the requested one."""
        self._holders[peer].storing -= 1
        self._release(chunk)
        self.ban(peer)

    def denied(self, peer: PeerId, chunk: ChunkId) -> None:
        """Record that a holder lacks a chunk it claimed."""
        holder = self._holders[peer]
        holder.asked.remove(chunk)
        holder.claims.discard(chunk)
        self._claimed[chunk] -= 1
        self._release(chunk)

    def lost(self, peer: PeerId, now: float) -> None:
        """Record that a holder is gone, slow, busy or useless: it is left alone for a while."""
        holder = self._holders[peer]
        holder.rests_until = now + min(REST_S_MAX, REST_S_MIN * 2**holder.failures)
        holder.defaults += bool(holder.asked)
        if holder.defaults >= DEFAULTS_MAX:
            holder.rests_until = now + DEFAULT_REST_S
        holder.failures = min(holder.failures + 1, FAILURES_MAX)
        holder.linked = False
        holder.claims = set()
        holder.queue.clear()
        self._stale = True
        asked, holder.asked = holder.asked, set()
        for chunk in asked:
            self._release(chunk)

    def ban(self, peer: PeerId) -> None:
        """Record that a holder lied: it is not asked again."""
        self._holders[peer].banned = True

    def slow(self, now: float) -> list[PeerId]:
        """Return the holders with an overdue chunk."""
        return [p for p, holder in self._holders.items() if holder.asked and now > _due(holder)]

    def _release(self, chunk: ChunkId) -> None:
        """Free a chunk and put it first in the queues of all that claim it."""
        self.in_flight -= 1
        self._free.add(chunk)
        for holder in self._holders.values():
            if chunk in holder.claims:
                holder.queue.appendleft(chunk)

    def _next(self, holder: _Holder) -> ChunkId | None:
        """Return the head of a holder's queue, if it may be requested now."""
        while holder.queue and holder.queue[0] not in self._free:
            holder.queue.popleft()
        if (
            not holder.queue
            or holder.banned
            or self.in_flight >= IN_FLIGHT_MAX
            or len(holder.asked) + holder.storing >= IN_FLIGHT_PER_HOLDER_MAX
        ):
            return None
        chunk = holder.queue[0]
        return None if self._sooner_elsewhere(holder, chunk) else chunk

    def _sooner_elsewhere(self, holder: _Holder, chunk: ChunkId) -> bool:
        """Whether faster holders would bring all that is left before this one brings a chunk."""
        own = holder.s_per_byte or 0.0
        rates = [
            1 / other.s_per_byte
            for other in self._holders.values()
            if other.s_per_byte and other.s_per_byte < own and chunk in other.claims
        ]
        return bool(rates) and own * self._sizes[chunk] > self.bytes_left / sum(rates)

    def _make_queues(self) -> None:
        """Order what each holder claims, if claims have changed."""
        if not self._stale:
            return
        self._stale = False
        self._claimed = Counter()
        for holder in self._holders.values():
            self._claimed.update(holder.claims)
        claimed = (chunk for chunk in self._free if self._claimed[chunk])
        order = sorted(claimed, key=lambda chunk: (self._claimed[chunk], self._place[chunk]))
        for holder in self._holders.values():
            holder.queue = deque(chunk for chunk in order if chunk in holder.claims)


def _due(holder: _Holder) -> float:
    """Return when the next chunk of a holder is overdue."""
    if holder.s_per_byte is None:
        return holder.quiet_since + FIRST_CHUNK_S_MAX
    usual_s = holder.s_per_byte * CHUNK_BYTES
    return holder.quiet_since + max(CHUNK_S_MIN, SLOW_FACTOR * usual_s)
