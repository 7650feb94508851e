"""The account that a session counts against: the requester's own, or its sponsor's.

Work that a stage has seen a serving peer do is that peer's credit when places are few.
"""

from collections.abc import Callable

from attrs import frozen

from p2pinfer.core.errors import RemoteProtocolError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Open
from p2pinfer.core.sponsor import SPONSORED_MS_MAX, to_sign
from transports.identity import verify

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
        worked: whether this machine holds receipts for a peer's work: peers that demonstrably
            served it before come first.
    """

    def __init__(
        self,
        network: str,
        clock_ms: Callable[[], int],
        serves: Callable[[PeerId], bool],
        worked: Callable[[PeerId], bool],
    ) -> None:
        self._network, self._clock_ms = network, clock_ms
        self._serves, self._worked = serves, worked

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
        return Account(peer, 1 + self._worked(peer) if self._serves(peer) else 0)
