"""The account that a session counts against: the requester's own, or its sponsor's.

A requester that some serving peer vouches for, it is not known which, has the credit of one.

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
from peers.serving.vouchers import TakenVouchers
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


async def own_account(_: Open, remote: PeerId) -> Account:
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
        vouched: takes ring vouchers, and knows who has one; without it nobody's counts.
    """

    def __init__(
        self,
        network: str,
        clock_ms: Callable[[], int],
        serves: Callable[[PeerId], bool],
        places: Callable[[PeerId], int],
        vouched: TakenVouchers | None = None,
    ) -> None:
        self._network, self._clock_ms = network, clock_ms
        self._serves, self._places, self._vouched = serves, places, vouched
        self._sponsors: dict[bytes, PeerId] = {}

    async def of(self, opened: Open, remote: PeerId) -> Account:
        """Return the account that a peer's session counts against; an expired sponsor is ignored.

        Raises:
            RemoteProtocolError: its sponsor did not sign for it, which it could have checked, or
                nobody vouches for it who did not for another one.
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
        if self._serves(peer):
            return Account(peer, 1 + self._places(peer))
        if self._vouched and opened.voucher:
            await self._vouched.take(opened.voucher, remote)
        return Account(peer, int(bool(self._vouched and self._vouched.knows(remote))))

    def booked(self, entry: LedgerEntry) -> LedgerEntry:
        """Return a session's entry, on the account of its sponsor if it had one."""
        return evolve(entry, user=self._sponsors.pop(entry.terms, entry.user))
