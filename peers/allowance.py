"""How much of something each of many peers may still do: a bucket each, which fills with time."""

from p2pinfer.core.ids import PeerId

PEERS_MAX = 1024
"""Peers remembered; the one longest idle is forgotten first, and its bucket is full again."""


class Allowances:
    """``most`` at once, and ``per_s`` in the long run, for each peer."""

    def __init__(self, most: float, per_s: float) -> None:
        self._most, self._per_s = most, per_s
        self._left: dict[PeerId, tuple[float, float]] = {}
        """Of each peer: how much it may do, as of when."""

    def spend(self, peer: PeerId, now: float, amount: float = 1) -> bool:
        """Take an amount off what a peer may do, and say whether it may."""
        left, at = self._left.pop(peer, (self._most, now))
        left = min(self._most, left + self._per_s * (now - at))
        good = left >= amount
        if self._left and self._is_spare(idle := next(iter(self._left)), now):
            del self._left[idle]
        self._left[peer] = (left - amount if good else left, now)
        return good

    def _is_spare(self, peer: PeerId, now: float) -> bool:
        """Whether a bucket is full again, which is as good as none, or there are too many."""
        left, at = self._left[peer]
        return left + self._per_s * (now - at) >= self._most or len(self._left) >= PEERS_MAX
