"""What is known about the peers of one model: an entry for each, and totals over all of them."""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain

from blake3 import blake3

from p2pinfer.core.advertisement import Advertisement, Heard, State
from p2pinfer.core.exchange import BUCKETS, DIGEST_BYTES, NUMBER_BYTES, TAG_BYTES
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.wire import BadMessage, decode

PARSED_MAX = 4096
"""Parsed advertisements cached: in one process, many peers may hear the same bytes."""

_DIGESTS = struct.Struct(f">{BUCKETS}I")
assert _DIGESTS.size == BUCKETS * DIGEST_BYTES

CALLS_MISSED_MAX = 3
"""Unanswered calls in a row after which a peer is not relied on: an advertisement may be false, or
be repeated by another peer after its author is gone. One call may be lost, and a busy machine may
miss two."""


@dataclass(frozen=True, slots=True)
class Parsed:
    """An advertisement, and values derived from it for comparing."""

    advertisement: Advertisement
    tag: bytes
    word: bytes
    """The tag and the sequence number: of two with the same tag, the greater is newer."""
    bucket: int
    mark: int
    """A hash of ``word``, different for each advertisement."""
    held: LayerRange
    """The layers that others can rely on; none if the peer is draining or undialable."""

    @classmethod
    def of(cls, found: Advertisement) -> "Parsed":
        """Derive the values for comparing."""
        tag = blake3(found.peer.encode()).digest(TAG_BYTES)
        word = tag + found.sequence.to_bytes(NUMBER_BYTES, "big")
        mark = blake3(word).digest(NUMBER_BYTES)[-DIGEST_BYTES:]
        is_open = found.addresses and found.state is not State.DRAINING
        held = LayerRange(found.first, found.end) if is_open else LayerRange(0, 0)
        return cls(found, tag, word, tag[0] % BUCKETS, int.from_bytes(mark, "big"), held)


@dataclass(slots=True)
class IndexEntry:
    """What was last heard of a peer."""

    parsed: Parsed
    heard: Heard
    made_at: float
    """By this machine's own clock, in seconds."""
    full_at: float
    """When its author's rate limit is full again."""
    index: "ModelIndex"
    """The index that holds it."""
    check_at: float = 0.0
    """When to check whether it has fallen silent."""
    has_answered: bool = False
    """It answered when it was dialled; that it dials others does not show that they reach it."""
    missed: int = 0
    """Calls in a row that it did not answer."""
    is_there: bool = True
    """It can be relied on: it has not missed too many calls in a row."""


class ModelIndex:
    """The peers of one model, and digests of their advertisements."""

    def __init__(self) -> None:
        self.entries: dict[PeerId, IndexEntry] = {}
        self.buckets = [0] * BUCKETS
        self._sorted: list[dict[PeerId, IndexEntry]] = [{} for _ in range(BUCKETS)]
        self.holders: list[int] = []
        """How many present peers hold each layer, or are about to, and do not mean to leave."""
        self.crowd = 0
        """Peers of the model, estimated from the stream of advertisements."""
        self.flow_ms = 0
        """Sum of the periods of all advertisements received in the current window."""
        self.counted_from = self.count_at = 0.0

    def add(self, peer: PeerId, entry: IndexEntry) -> None:
        """Add the entry of a new peer."""
        self.entries[peer] = self._sorted[entry.parsed.bucket][peer] = entry
        self.buckets[entry.parsed.bucket] ^= entry.parsed.mark
        self._tally(entry.parsed.held, 1)

    def renew(self, entry: IndexEntry, parsed: Parsed) -> None:
        """Put a newer advertisement into a peer's entry; its call counts stay."""
        before = entry.parsed
        self.buckets[parsed.bucket] ^= before.mark ^ parsed.mark
        if parsed.held != before.held and entry.is_there:  # rare: most are plain renewals
            self._tally(before.held, -1)
            self._tally(parsed.held, 1)
        entry.parsed = parsed

    def drop(self, peer: PeerId) -> None:
        """Forget a peer."""
        entry = self.entries.pop(peer, None)
        if entry:
            del self._sorted[entry.parsed.bucket][peer]
            self.buckets[entry.parsed.bucket] ^= entry.parsed.mark
            if entry.is_there:
                self._tally(entry.parsed.held, -1)

    def note_call(self, peer: PeerId, *, answered: bool) -> None:
        """Record whether a peer answered when it was called."""
        entry = self.entries[peer]
        was_there = entry.is_there
        entry.has_answered |= answered
        entry.missed = 0 if answered else entry.missed + 1
        entry.is_there = entry.missed < CALLS_MISSED_MAX
        if entry.is_there != was_there:
            self._tally(entry.parsed.held, 1 if entry.is_there else -1)

    def _tally(self, held: LayerRange, one: int) -> None:
        if held.end > len(self.holders):
            self.holders += [0] * (held.end - len(self.holders))
        for layer in held.each():
            self.holders[layer] += one

    def missing(self, layers: LayerRange) -> list[int]:
        """Return the layers of a range that no peer holds."""
        known = range(layers.first, min(layers.end, len(self.holders)))
        beyond = range(max(layers.first, len(self.holders)), layers.end)
        return [*(layer for layer in known if not self.holders[layer]), *beyond]

    def fewest(self, layers: LayerRange) -> int:
        """Return how many peers hold a range's rarest layer; for an empty one, more than exist."""
        missing = [0] * max(0, layers.end - len(self.holders))
        served = self.holders + missing if missing else self.holders
        return min(served[layers.first : layers.end], default=len(self.entries) + 1)

    def rarest(self, found: Advertisement) -> int:
        """Return how many peers serve the rarest of a peer's layers."""
        return self.fewest(LayerRange(found.first, found.end))

    def count(self, now: float, window_s: float) -> None:
        """Estimate the crowd: each peer sends one advertisement in each period of its own."""
        if self.count_at:
            self.crowd = round(self.flow_ms / 1000 / (now - self.counted_from))
        self.flow_ms, self.counted_from, self.count_at = 0, now, now + window_s

    def digests(self) -> bytes:
        """Return a digest of each bucket."""
        return _DIGESTS.pack(*self.buckets)

    def differing(self, digests: bytes) -> int:
        """Return the buckets, as bits, whose digests differ from another peer's."""
        pairs = zip(self.buckets, _DIGESTS.unpack(digests), strict=True)
        return sum(1 << i for i, (own, their) in enumerate(pairs) if own != their)

    def within(self, buckets: int) -> Iterator[IndexEntry]:
        """Yield the entries of some buckets."""
        some = (entries for at, entries in enumerate(self._sorted) if buckets >> at & 1)
        return chain.from_iterable(entries.values() for entries in some)

    def newest(self, buckets: int) -> bytes:
        """Return the tag and sequence number of each peer in some buckets."""
        return b"".join([entry.parsed.word for entry in self.within(buckets)])


@lru_cache(PARSED_MAX)
def parse(body: bytes) -> Parsed | None:
    """Parse an advertisement; None if it is invalid."""
    try:
        found = decode(body, Advertisement)
    except BadMessage:
        return None
    if found.first > found.end or found.end > found.layers:
        return None
    return Parsed.of(found)


def aged(entry: IndexEntry, now: float) -> Heard:
    """Return an advertisement with its current age, for passing on."""
    heard, age_ms = entry.heard, max(0, round(1000 * (now - entry.made_at)))
    return heard if age_ms == heard.age_ms else Heard(heard.body, heard.signature, age_ms)
