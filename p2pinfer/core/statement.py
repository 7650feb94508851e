"""Statements: a peer's signed word of how much others did for it.

    Owe      →  the user's newest statement to the peer that worked: "I had so much from you"
    Vouch    →  others' statements in the sender's favour, to a peer that it may ask something

A statement is cumulative, like a cheque: the newest of a pair says all, and a lost one costs
nothing. Together with the receipts, which the worker signs, both sides have signed. A user that
signs two amounts under one number, or a smaller one under a later number, contradicts itself.

Work is counted in megabyte-rows: one row through layers whose weights take a megabyte. So it is
the same measure for every model.
"""

import struct
from collections.abc import Callable
from typing import Any

from attrs import field, frozen

from p2pinfer.core.checks import PEER, blob, many, shown_size, whole
from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import SIGNATURE_BYTES

SIGNED_AS = b"p2pinfer statement 1\0"
"""Prepended to what is signed, so that a signature for another purpose is no statement."""

STATEMENTS_MAX = 32
"""In one message: the largest of a peer's claims; more would hardly change what it may have."""

WORK_MAX = 1 << 62

BYTES_PER_UNIT = 1_000_000

_NUMBERS = struct.Struct("<QQ")
_COUNT: Any = whole(1, WORK_MAX)


class Contradiction(ValueError):
    """A user signed two statements that cannot both be true."""


@frozen
class Statement:
    """A user's word for all the work that a server did for it."""

    user: PeerId = field(validator=PEER)
    server: PeerId = field(validator=PEER)
    count: int = field(validator=_COUNT)
    """Counts the user's statements to the server."""
    work: int = field(validator=_COUNT)
    """In megabyte-rows, since the first."""
    signature: bytes = field(
        default=bytes(SIGNATURE_BYTES),
        validator=blob(SIGNATURE_BYTES, SIGNATURE_BYTES),
        repr=shown_size,
    )
    """The user's."""

    def to_sign(self) -> bytes:
        """Return the bytes that the user signs."""
        ends = (end.encode() for end in (self.user, self.server))
        named = b"".join(len(end).to_bytes(4, "little") + end for end in ends)
        return SIGNED_AS + named + _NUMBERS.pack(self.count, self.work)

    def is_signed(self, verify: Callable[[PeerId, bytes, bytes], bool]) -> bool:
        """Whether the signature is the user's."""
        return verify(self.user, self.to_sign(), self.signature)

    def follows(self, before: "Statement") -> bool:
        """Whether this one is newer than another of the same pair.

        Raises:
            Contradiction: they cannot both be true.
        """
        if (self.count == before.count) != (self.work == before.work) or (
            (self.count > before.count) != (self.work > before.work)
        ):
            raise Contradiction(
                f"it signed {before.work:,} as number {before.count}, and"
                f" {self.work:,} as number {self.count}"
            )
        return self.count > before.count


@frozen
class Owe:
    """My newest statement to you."""

    statement: Statement


@frozen
class Vouch:
    """Others' newest statements in my favour, the largest first."""

    statements: tuple[Statement, ...] = field(validator=many(Statement, STATEMENTS_MAX))


def work_of(rows: int, weights_bytes: int) -> int:
    """Return the work of a number of rows through layers with a number of bytes of weights."""
    return min(rows * weights_bytes // BYTES_PER_UNIT, WORK_MAX)
