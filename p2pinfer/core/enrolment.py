"""Messages among the members of a network of founders.

AskGrant  →  GrantIs comes back from a founder, or Denied
StillIn   →  StillIn comes back: both show that they are members in a new epoch, so that the
             connection, and what goes on there, outlives the one that it began in
"""

from attrs import field, frozen

from p2pinfer.core.checks import blob, shown_size, whole

GRANT_BYTES_MAX = 4096
"""An envelope with one grant has a third of it."""

PROOF_BYTES_MAX = 1024
"""A proof that 16 founders signed has 633."""

SEALING_KEY_BYTES_MAX = 2048

_KEY = blob(32, 32)
_EPOCH = whole(0, 1 << 62)


@frozen
class AskGrant:
    """Sign for me, for an epoch."""

    member: bytes = field(validator=_KEY)
    epoch: int = field(validator=_EPOCH)
    sealing_key: bytes = field(validator=blob(SEALING_KEY_BYTES_MAX), repr=shown_size)
    """Made for this question: what the answer is sealed with."""
    signature: bytes = field(validator=blob(64, 64), repr=shown_size)
    """The member's."""

    def to_sign(self) -> bytes:
        """Return the bytes that the member signs."""
        return (
            b"".join((b"p2pinfer ask grant 1\0", self.member, self.epoch.to_bytes(8, "little")))
            + self.sealing_key
        )


@frozen
class GrantIs:
    """A founder's grant, sealed for the member."""

    envelope: bytes = field(validator=blob(GRANT_BYTES_MAX, 1), repr=shown_size)


@frozen
class StillIn:
    """I am a member in this epoch, too."""

    proof: bytes = field(validator=blob(PROOF_BYTES_MAX, 1), repr=shown_size)
