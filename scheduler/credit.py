"""Credit: how much a peer may have here for what it did, for this peer or for those that helped it.

The flow from this peer to the asker over debts, by at most two steps: what this peer had from the
asker, and what it had from peers that had something from the asker in their turn; less what the
asker has had from here. A debt counts only as far as a peer that this one had work from owes it:
so peers that vouch for each other without having worked for anybody gain nothing, however many
they are (max-flow bounds Sybils: Seuken and Parkes, "Sybil-proof accounting mechanisms", 2014).
"""

from collections.abc import Mapping
from math import log10

from attrs import frozen

from p2pinfer.core.ids import PeerId

PLACES_MAX = 3
"""Beyond serving at all: the largest contributor is preferred to one that just came, no further."""

ANSWER_WORK = 10_000
"""In megabyte-rows: an answer of 100 tokens from a model of 100 MB, the least that counts."""

UNSTATED_MAX = 10 * ANSWER_WORK
"""Work that a peer may have had here without having said so; beyond it has no credit."""

_NOTHING: Mapping[PeerId, int] = {}


@frozen
class Debts:
    """What a peer knows of work done, in megabyte-rows."""

    had: Mapping[PeerId, int] = _NOTHING
    """By others for this peer, by its own receipts."""
    given: Mapping[PeerId, int] = _NOTHING
    """By this peer for others, by its own count."""
    stated: Mapping[PeerId, int] = _NOTHING
    """The part of it that they have signed for."""

    def net(self, asker: PeerId, vouched: Mapping[PeerId, int] = _NOTHING) -> int:
        """Return what an asker may still have here; below zero where it had more.

        Args:
            asker: the peer.
            vouched: work that the asker did for others, by their statements.
        """
        had = self.had.get(asker, 0)
        through = sum(min(self.had.get(peer, 0), work) for peer, work in vouched.items())
        return had + through - self.given.get(asker, 0)

    def places(self, asker: PeerId, vouched: Mapping[PeerId, int] = _NOTHING) -> int:
        """Return how many sessions more an asker may hold than another before that one is first."""
        given = self.given.get(asker, 0)
        if given - self.stated.get(asker, 0) > UNSTATED_MAX:
            return 0
        net = self.net(asker, vouched)
        return 0 if net < ANSWER_WORK else min(1 + int(log10(net / ANSWER_WORK)), PLACES_MAX)
