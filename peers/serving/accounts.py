"""On whose account a session is asked for: the requester's own, or its sponsor's.

What a stage has seen of a peer that serves is that peer's credit where places are few.
"""

from collections.abc import Callable

from attrs import frozen

from p2pinfer.core.errors import RemoteProtocolError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Open
from p2pinfer.core.sponsor import SPONSORED_MS_MAX, to_sign
from transports.identity import verify

CLOCKS_APART_MS_MAX = 60_000
"""A sponsor's clock may be so far ahead."""


@frozen
class Account:
    """Who is counted as holding a session."""

    peer: PeerId
    credit: int = 0
    """Of sessions that it may hold more than another before that one is preferred."""


def own_account(_: Open, remote: PeerId) -> Account:
    """Count everybody alike, each in its own name."""
    return Account(remote)


class Accounts:
    """Knows whom a stage prefers.

    Args:
        network: which its sponsors must have meant.
        clock_ms: the time on everybody's clock, in milliseconds.
        serves: whether a peer is known to serve now.
        worked: whether this machine holds receipts for a peer's work: those who have served it
            before, and not by their own word alone, come first.
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
        """Return on whose account a peer asks; a sponsor's word that is no longer good is none.

        Raises:
            RemoteProtocolError: its sponsor did not sign for it, which it could have seen.
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
