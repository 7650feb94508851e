"""What was last heard of each peer of one model, and digests of it: to compare, and to count."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from attrs import evolve
from blake3 import blake3

from p2pinfer.core.advertisement import Advertisement, Heard
from p2pinfer.core.exchange import BUCKETS, DIGEST_BYTES, NUMBER_BYTES, TAG_BYTES
from p2pinfer.core.ids import PeerId
from p2pinfer.core.wire import BadMessage, decode

PARSED_MAX = 4096
"""Advertisements kept taken apart: many peers of one process hear the same bytes."""

CALLS_MISSED_MAX = 3
"""Calls in a row that a peer leaves unanswered, and is not counted on: a word may be a lie, or be
repeated by another after its author is gone. One may be lost, and a busy machine may miss two."""


@dataclass(frozen=True)
class Parsed:
    """An advertisement, and what comparing needs of it."""

    advertisement: Advertisement
    tag: bytes
    bucket: int
    mark: int
    """Differs from advertisement to advertisement."""


@dataclass(slots=True)
class Entry:
    """What was last heard of a peer."""

    parsed: Parsed
    heard: Heard
    made_at: float
    """By this peer's own clock, in seconds."""
    credit: float
    has_answered: bool = False
    """It was seen to be there itself, and is not only heard of."""
    missed: int = 0
    """Calls in a row that it did not answer."""

    @property
    def is_there(self) -> bool:
        """Whether it is to be counted on: what a peer says is a hint until it has answered."""
        return self.missed < CALLS_MISSED_MAX


class Shelf:
    """The peers of one model, and digests of what is known of them."""

    def __init__(self) -> None:
        self.entries: dict[PeerId, Entry] = {}
        self.buckets = [0] * BUCKETS
        self.holders: list[int] = []
        """How many peers serve each layer."""
        self.crowd = 0
        """Peers of the model, as far as the stream of advertisements tells."""
        self._flow, self._counted_from = 0.0, 0.0

    def put(self, peer: PeerId, entry: Entry) -> None:
        """Keep an entry in the place of the former."""
        self.drop(peer)
        self.entries[peer] = entry
        self._tally(entry.parsed, 1)

    def drop(self, peer: PeerId) -> Entry | None:
        """Forget a peer."""
        entry = self.entries.pop(peer, None)
        if entry:
            self._tally(entry.parsed, -1)
        return entry

    def _tally(self, parsed: Parsed, one: int) -> None:
        self.buckets[parsed.bucket] ^= parsed.mark
        found = parsed.advertisement
        if found.end > len(self.holders):
            self.holders += [0] * (found.end - len(self.holders))
        for layer in range(found.first, found.end):
            self.holders[layer] += one

    def rarest(self, found: Advertisement) -> int:
        """Return how many serve that layer of a peer's which fewest do."""
        missing = [0] * max(0, found.end - len(self.holders))
        served = self.holders + missing if missing else self.holders
        return min(served[found.first : found.end], default=len(self.entries) + 1)

    def count(self, period_s: float, now: float, window_s: float) -> None:
        """Estimate the crowd: each peer sends one advertisement in each period of its own."""
        self._flow += period_s
        if now - self._counted_from >= window_s:
            self.crowd = round(self._flow / (now - self._counted_from))
            self._flow, self._counted_from = 0.0, now

    def digests(self) -> bytes:
        """Return a digest of each bucket."""
        mask = (1 << 8 * DIGEST_BYTES) - 1
        return b"".join((mark & mask).to_bytes(DIGEST_BYTES, "big") for mark in self.buckets)

    def differing(self, digests: bytes) -> int:
        """Return the buckets, as bits, whose digests differ from another peer's."""
        own = self.digests()
        found = 0
        for i in range(BUCKETS):
            part = slice(i * DIGEST_BYTES, (i + 1) * DIGEST_BYTES)
            found |= (own[part] != digests[part]) << i
        return found

    def within(self, buckets: int) -> Iterator[Entry]:
        """Yield the entries of some buckets."""
        return (e for e in self.entries.values() if buckets >> e.parsed.bucket & 1)

    def newest(self, buckets: int) -> bytes:
        """Return tag and sequence number of each peer in some buckets."""
        return b"".join(
            e.parsed.tag + e.parsed.advertisement.sequence.to_bytes(NUMBER_BYTES, "big")
            for e in self.within(buckets)
        )


@lru_cache(PARSED_MAX)
def parse(body: bytes) -> Parsed | None:
    """Take an advertisement apart; None if it is none."""
    try:
        found = decode(body, Advertisement)
    except BadMessage:
        return None
    if found.first > found.end or found.end > found.layers:
        return None
    tag = blake3(found.peer.encode()).digest(TAG_BYTES)
    mark = blake3(tag + found.sequence.to_bytes(NUMBER_BYTES, "big")).digest(NUMBER_BYTES)
    return Parsed(found, tag, tag[0] % BUCKETS, int.from_bytes(mark, "big"))


def aged(entry: Entry, now: float) -> Heard:
    """Return an advertisement as it is passed on now."""
    age_ms = max(0, round(1000 * (now - entry.made_at)))
    return entry.heard if age_ms == entry.heard.age_ms else evolve(entry.heard, age_ms=age_ms)
