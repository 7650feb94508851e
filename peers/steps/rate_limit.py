"""Rate limits for many peers: a token bucket each, which refills with time."""

from p2pinfer.core.ids import PeerId

PEERS_MAX = 1024
"""Peers remembered whose buckets are not full; beyond that, the fullest is forgotten first."""


ROUNDING_S = 1e-6
"""Rounding errors of many small waits add up to less than this."""


class RateLimits:
    """``most`` at once, and ``per_s`` in the long run, for each peer."""

    def __init__(self, most: float, per_s: float) -> None:
        self._most_s, self._each_s = most / per_s + ROUNDING_S, 1 / per_s
        self._full_at: dict[PeerId, float] = {}
        """When each peer's bucket is full again; a full bucket need not be remembered."""

    def spend(self, peer: PeerId, now: float, amount: float = 1) -> bool:
        """Take an amount from a peer's bucket; return whether there was enough."""
        full_at = self._full_at.get(peer, now)
        full_at = (full_at if full_at > now else now) + amount * self._each_s
        if full_at - now > self._most_s:
            return False
        self._full_at[peer] = full_at
        if len(self._full_at) > PEERS_MAX:
            self._forget_the_full(now)
        return True

    def _forget_the_full(self, now: float) -> None:
        left = {peer: at for peer, at in self._full_at.items() if at > now}
        if len(left) > PEERS_MAX:
            del left[min(left, key=left.__getitem__)]
        self._full_at = left
