"""How much of something each of many peers may still do: a bucket each, which fills with time."""

from p2pinfer.core.ids import PeerId

PEERS_MAX = 1024
"""Peers remembered; the one longest idle is forgotten first, and its bucket is full again."""


ROUNDING_S = 1e-6
"""Sums of many small waits are off by less."""


class Allowances:
    """``most`` at once, and ``per_s`` in the long run, for each peer."""

    def __init__(self, most: float, per_s: float) -> None:
        self._most_s, self._each_s = most / per_s + ROUNDING_S, 1 / per_s
        self._full_at: dict[PeerId, float] = {}
        """Of each peer: when its bucket is full again; one that is full is as good as none."""

    def spend(self, peer: PeerId, now: float, amount: float = 1) -> bool:
        """Take an amount off what a peer may do, and say whether it may."""
        buckets = self._full_at
        before = buckets.pop(peer, now)
        if before < now:
            before = now
        after = before + amount * self._each_s
        good = after - now <= self._most_s
        if buckets:
            idle = next(iter(buckets))
            if buckets[idle] <= now or len(buckets) >= PEERS_MAX:
                del buckets[idle]
        buckets[peer] = after if good else before
        return good
