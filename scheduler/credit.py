"""Credit: how much a peer may have here for what it did, for this peer or for those that helped it.

The flow from this peer to the asker over debts, by at most two steps: what this peer had from the
asker, and what it had from peers that had something from the asker in their turn; less what the
asker has had from here. A debt counts only as far as this peer owes the debtor something itself:
so peers that vouch for each other without having worked for anybody gain nothing, however many
they are (max-flow bounds Sybils: Seuken and Parkes, "Sybil-proof accounting mechanisms", 2014).

A flow bounds each asker by itself, and a hundred of them could each draw the same debt. So what an
asker had here on another's account is written down against that account, once and for all: all of
them together get no more than this peer owes them.
"""

from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from math import log10

from attrs import evolve, field, frozen

from p2pinfer.core.ids import PeerId

PLACES_MAX = 3
"""Beyond serving at all: the largest contributor is preferred to one that just came, no further."""

ANSWER_WORK = 10_000
"""In megabyte-rows: an answer of 100 tokens from a model of 100 MB, the least that counts."""

UNSTATED_MAX = 10 * ANSWER_WORK
"""Work that a peer may have had here without having said so; beyond it has no credit."""

Vouched = Mapping[PeerId, int]
"""What each peer says that it had from an asker."""

Passed = Mapping[tuple[PeerId, PeerId], int]
"""What an asker had here on the account of a peer that owes it: by asker and debtor."""

_NOTHING: Vouched = {}


@frozen
class Debts:
    """What a peer knows of what was done, all in megabyte-rows (see ``Amounts.worth``)."""

    had: Vouched = _NOTHING
    """By others for this peer, by its own count."""
    given: Vouched = _NOTHING
    """By this peer for others, by its own count."""
    unstated: Vouched = _NOTHING
    """The part of its work for them that they have not signed for."""
    passed: Passed = field(factory=dict)

    @cached_property
    def _drawn(self) -> Counter[PeerId]:
        """By each asker on others' accounts."""
        found: Counter[PeerId] = Counter()
        for (asker, _), work in self.passed.items():
            found[asker] += work
        return found

    @cached_property
    def _spent(self) -> Counter[PeerId]:
        """By others on each debtor's account."""
        found: Counter[PeerId] = Counter()
        for (_, debtor), work in self.passed.items():
            found[debtor] += work
        return found

    def owed(self, peer: PeerId) -> int:
        """Return what this peer still owes another; below zero where that one had more."""
        had, given = self.had.get(peer, 0), self.given.get(peer, 0)
        return had - given + self._drawn[peer] - self._spent[peer]

    def net(self, asker: PeerId, vouched: Vouched = _NOTHING) -> int:
        """Return what an asker may still have here; below zero where it had more.

        Args:
            asker: the peer.
            vouched: what the asker did for others, by their statements.
        """
        return self.owed(asker) + sum(self._through(asker, vouched).values())

    def places(self, asker: PeerId, vouched: Vouched = _NOTHING) -> int:
        """Return how many sessions more an asker may hold than another before that one is first."""
        if self.unstated.get(asker, 0) > UNSTATED_MAX:
            return 0
        net = self.net(asker, vouched)
        return 0 if net < ANSWER_WORK else min(1 + int(log10(net / ANSWER_WORK)), PLACES_MAX)

    def charges(self, asker: PeerId, vouched: Vouched) -> Passed:
        """Return what is to be passed on from an asker, which had more than it was owed."""
        over, found = -self.owed(asker), dict[tuple[PeerId, PeerId], int]()
        through = self._through(asker, vouched)
        for debtor in sorted(through, key=lambda each: (-through[each], each)):
            if over > 0 and through[debtor]:
                found[asker, debtor] = min(over, through[debtor])
                over -= found[asker, debtor]
        return found

    def charged(self, charges: Passed) -> "Debts":
        """Return the debts with something passed on."""
        return evolve(self, passed=Counter(self.passed) + Counter(charges))

    def _through(self, asker: PeerId, vouched: Vouched) -> dict[PeerId, int]:
        """Return how much an asker may still have on each debtor's account."""
        return {
            peer: max(0, min(self.owed(peer), work - self.passed.get((asker, peer), 0)))
            for peer, work in vouched.items()
            if peer != asker and self.had.get(peer, 0)
        }
