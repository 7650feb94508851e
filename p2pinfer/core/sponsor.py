"""Sponsors: a peer that serves signs for a requester, so that full stages prefer who gives, too.

Requesters ask under ids of their own that nobody has seen before. What a stage knows of peers that
serve counts for them only if such a peer says so. A sponsor's word is good for one requester, in
one network, for a few minutes.
"""

from attrs import field, frozen

from p2pinfer.core.checks import PEER, blob, shown_size, whole
from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import SIGNATURE_BYTES

SPONSORED_MS_MAX = 600_000
"""How long a word is good: a peer that has left sponsors nobody for longer."""

SIGNED_AS = b"p2pinfer sponsor 1\0"
"""Put in front of what is signed, so that no other signature of the key will do."""


@frozen
class Sponsor:
    """A peer's word that it asks through somebody; whom, stands outside: who sent it."""

    peer: PeerId = field(validator=PEER)
    expires_ms: int = field(validator=whole(0, 1 << 62))
    """Of everybody's clock, in milliseconds since 1970."""
    signature: bytes = field(validator=blob(SIGNATURE_BYTES, SIGNATURE_BYTES), repr=shown_size)


def to_sign(requester: PeerId, network: str, expires_ms: int) -> bytes:
    """Return what a sponsor signs."""
    texts = (text.encode() for text in (requester, network))
    parts = (len(text).to_bytes(4, "little") + text for text in texts)
    return SIGNED_AS + b"".join(parts) + expires_ms.to_bytes(8, "little")
