"""Bootstrap addresses: those a person named, and the last ones of peers that fell silent."""

from collections.abc import Callable, Iterable, Sequence
from random import Random

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.ids import PeerId

LOST_MAX = 64
"""Silent peers remembered: through any one of them the others can be found again."""

LOST_S = 3600.0
"""How long they are looked for."""


class Bootstrap:
    """Addresses at which to look for missing peers."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._named: dict[str, None] = {}
        self._lost: dict[PeerId, tuple[str, float]] = {}

    def add(self, addresses: Sequence[str]) -> None:
        """Look for the peers at these addresses whenever they are missing."""
        self._named |= dict.fromkeys(addresses)

    def lost(self, gone: Iterable[Advertisement], now: float) -> None:
        """Remember peers that fell silent."""
        for found in gone:
            if found.addresses:
                self._lost.pop(found.peer, None)
                self._lost[found.peer] = found.addresses[0], now
        while self._lost:
            peer, (_, since) = next(iter(self._lost.items()))
            if len(self._lost) <= LOST_MAX and now - since < LOST_S:
                break
            del self._lost[peer]

    def found(self, peer: PeerId) -> None:
        """Stop looking for a peer."""
        self._lost.pop(peer, None)

    def pick(self, chance: Random, is_known: Callable[[PeerId], bool]) -> list[str]:
        """Return addresses to try now: all named ones of unknown peers, and one of a lost peer."""
        named = [
            address
            for address in self._named
            if (peer := PeerId(address.rpartition("/p2p/")[2])) != self._me and not is_known(peer)
        ]
        lost = [address for peer, (address, _) in self._lost.items() if not is_known(peer)]
        return named + ([chance.choice(lost)] if lost else [])
