"""Sponsors: a serving peer vouches for a requester, so that full stages prefer contributors.

Requesters ask under fresh ids that no peer has seen before. What a stage knows of a serving peer
counts for a requester only if that peer says so. A sponsor's signature is good for one requester,
in one network, for a few minutes.
"""

from attrs import field, frozen

from p2pinfer.core.checks import PEER, blob, shown_size, whole
from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import SIGNATURE_BYTES

SPONSORED_MS_MAX = 600_000
"""The longest sponsorship: a peer that has left sponsors no requester for longer than this."""

SIGNED_AS = b"p2pinfer sponsor 1\0"
"""Prepended to what is signed, so that a signature for another purpose is no sponsorship."""


@frozen
class Sponsor:
    """A peer's signature that it asks through a requester: the message's sender."""

    peer: PeerId = field(validator=PEER)
    expires_ms: int = field(validator=whole(0, 1 << 62))
    """By wall clock, in milliseconds since 1970."""
    signature: bytes = field(validator=blob(SIGNATURE_BYTES, SIGNATURE_BYTES), repr=shown_size)


def to_sign(requester: PeerId, network: str, expires_ms: int) -> bytes:
    """Return the bytes that a sponsor signs."""
    texts = (text.encode() for text in (requester, network))
    parts = (len(text).to_bytes(4, "little") + text for text in texts)
    return SIGNED_AS + b"".join(parts) + expires_ms.to_bytes(8, "little")
