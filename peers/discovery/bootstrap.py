"""Bootstrap addresses: those a person named, and those of peers that answered or fell silent."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.checks import ADDRESSES_MAX
from p2pinfer.core.ids import PeerId

LOST_MAX = 64
"""Silent peers remembered: through any one of them the others can be found again."""

LOST_S = 3600.0
"""How long they are looked for."""

ANSWERED_MAX = 16
"""Peers remembered, until the next start too, because they answered where they were called: a start
calls them all at once, and one of them leads to the others."""

WAYS_BACK_MAX = 3
"""Of them, those that are asked again at once: each tells all that it knows."""

Way = tuple[PeerId, tuple[str, ...]]
"""A peer, and where it may be."""


class Bootstrap:
    """Addresses at which to look for missing peers."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._named: dict[str, None] = {}
        self._lost: dict[PeerId, tuple[tuple[str, ...], float]] = {}
        self.answered: dict[PeerId, tuple[tuple[str, ...], float]] = {}
        """Where peers are that answered, and when they last did; the latest is the last."""

    def add(self, addresses: Sequence[str]) -> None:
        """Look for the peers at these addresses whenever they are missing."""
        self._named |= dict.fromkeys(addresses)

    def lost(self, gone: Iterable[Advertisement], now: float) -> None:
        """Remember peers that fell silent."""
        self.recall({found.peer: found.addresses for found in gone}, now)

    def recall(self, gone: Mapping[PeerId, tuple[str, ...]], now: float) -> None:
        """Look for these peers, one at a time, at any of their addresses."""
        for peer, addresses in gone.items():
            if addresses and peer != self._me:
                self._lost.pop(peer, None)
                self._lost[peer] = addresses, now
        while self._lost:
            peer, (_, since) = next(iter(self._lost.items()))
            if len(self._lost) <= LOST_MAX and now - since < LOST_S:
                break
            del self._lost[peer]

    def found(self, peer: PeerId, addresses: Iterable[str], now: float) -> None:
        """Take in that a peer answered, and where it is.

        Where it was before is kept behind that while there is room: a person may have typed an
        address that the peer itself does not know.
        """
        self._lost.pop(peer, None)
        before, _ = self.answered.pop(peer, ((), now))
        if kept := tuple(dict.fromkeys([*addresses, *before]))[:ADDRESSES_MAX]:
            self.answered[peer] = kept, now
            if len(self.answered) > ANSWERED_MAX:
                del self.answered[next(iter(self.answered))]

    def ways_back(self) -> list[str]:
        """Return where the last few peers are that answered."""
        latest = list(self.answered.values())[-WAYS_BACK_MAX:]
        return [addresses[0] for addresses, _ in latest]

    def pick(self, chance: Random, is_known: Callable[[PeerId], bool]) -> list[Way]:
        """Return the peers to try now: all named ones that are unknown, and one lost one."""
        named = [
            (peer, (address,))
            for address in self._named
            if (peer := PeerId(address.rpartition("/p2p/")[2])) != self._me and not is_known(peer)
        ]
        lost = [(peer, at) for peer, (at, _) in self._lost.items() if not is_known(peer)]
        return named + ([chance.choice(lost)] if lost else [])
