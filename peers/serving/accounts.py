"""The account that a session counts against: the requester's own, or its sponsor's.

Work that a serving peer did is its credit when places are few; see ``scheduler.credit``.
"""

from collections.abc import Callable

from attrs import evolve, frozen

from p2pinfer.core.errors import RemoteProtocolError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ledger import LedgerEntry
from p2pinfer.core.messages import Open
from p2pinfer.core.sponsor import SPONSORED_MS_MAX, to_sign
from peers.receipts.signer import terms_of
from transports.identity import verify

SPONSORED_MAX = 4096
"""Sessions whose sponsor is remembered until they are over; more than a stage has at once."""

CLOCKS_APART_MS_MAX = 60_000
"""How far ahead a sponsor's clock may be."""


@frozen
class Account:
    """The peer that a session counts against."""

    peer: PeerId
    credit: int = 0
    """How many more sessions than another it may hold before the other is preferred."""


def own_account(_: Open, remote: PeerId) -> Account:
    """Treat all requesters the same, each on its own account."""
    return Account(remote)


class Accounts:
    """Knows which peers a stage prefers.

    Args:
        network: the swarm that sponsors must have signed for.
        clock_ms: the wall-clock time, in milliseconds.
        serves: whether a peer is known to serve now.
        places: how many sessions more a peer may hold for the work that it did, for this machine
            or for those that worked for this one.
    """

    def __init__(
        self,
        network: str,
        clock_ms: Callable[[], int],
        serves: Callable[[PeerId], bool],
        places: Callable[[PeerId], int],
    ) -> None:
        self._network, self._clock_ms = network, clock_ms
        self._serves, self._places = serves, places
        self._sponsors: dict[bytes, PeerId] = {}

    def of(self, opened: Open, remote: PeerId) -> Account:
        """Return the account that a peer's session counts against; an expired sponsor is ignored.

        Raises:
            RemoteProtocolError: its sponsor did not sign for it, which it could have checked.
        """
        sponsor, peer = opened.sponsor, remote
        if sponsor:
            signed = to_sign(remote, self._network, sponsor.expires_ms)
            if not verify(sponsor.peer, signed, sponsor.signature):
                raise RemoteProtocolError(remote, "its sponsor did not sign for it")
            left_ms = sponsor.expires_ms - self._clock_ms()
            if 0 < left_ms <= SPONSORED_MS_MAX + CLOCKS_APART_MS_MAX:
                peer = sponsor.peer
                self._sponsors[terms_of(opened).digest()] = peer
                if len(self._sponsors) > SPONSORED_MAX:
                    del self._sponsors[next(iter(self._sponsors))]
        return Account(peer, 1 + self._places(peer) if self._serves(peer) else 0)

    def booked(self, entry: LedgerEntry) -> LedgerEntry:
        """Return a session's entry, on the account of its sponsor if it had one."""
        return evolve(entry, user=self._sponsors.pop(entry.terms, entry.user))
