"""Statements: a peer's signed word of how much others did for it.

    Owe      →  the user's newest statement to the peer that worked: "I had so much from you"
    Owed     ←  the user's newest statement that the worker has, countersigned: "so much it is"
    Vouch    →  others' statements in the sender's favour, to a peer that it may ask something

A statement is cumulative, like a cheque: the newest of a pair says all, and a lost one costs
nothing. The user's signature binds the user; with the worker's, both have agreed on the sums, and
on the number that the next statement must exceed. So a user whose books were put back from a copy
learns from the answer what it signed since, and goes on from there.

Numbers are milliseconds since 1970, or one more than the last. So a user that signs two amounts
under one number has chosen to: the two are a proof of it that everybody can check (``double``).

Work is counted in megabyte-rows: one row through layers whose weights take a megabyte. So it is
the same measure for every model. Parts of models that were sent count in megabytes, and shares that
were kept in megabyte-days.

What it rests on: Ed25519, and that a key signs in one place at a time. What it does not give: who
signed that it had work need not have had any. Unaudited.
"""

import struct
from collections.abc import Callable
from typing import Any

from attrs import astuple, field, frozen

from p2pinfer.core.checks import PEER, blob, many, shown_size, whole
from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import SIGNATURE_BYTES

SIGNED_AS = b"p2pinfer statement 1\0"
"""Prepended to what is signed, so that a signature for another purpose is no statement."""

SIGNED_AS_ALL = b"p2pinfer statement 2\0"
"""The same where parts or space are counted, which earlier releases do not know."""

COUNTERSIGNED_AS = b"p2pinfer statement agreed 1\0"

Verify = Callable[[PeerId, bytes, bytes], bool]

STATEMENTS_MAX = 32
"""In one message: the largest of a peer's claims; more would hardly change what it may have."""

WORK_MAX = 1 << 62

BYTES_PER_UNIT = 1_000_000

SENT_WORTH = 10
"""Megabyte-rows that a megabyte of parts counts for: a gigabyte is an answer of 100 tokens from a
model of 100 MB. Sending it takes a home's line as long as the answer takes a core or longer."""

KEPT_WORTH = 1
"""Megabyte-rows that a megabyte kept for a day counts for: disk is cheaper than a line."""

_NUMBERS = struct.Struct("<QQ")
_MORE = struct.Struct("<QQ")
_NUMBER: Any = whole(1, WORK_MAX)
_AMOUNT: Any = whole(0, WORK_MAX)


@frozen
class Amounts:
    """What one peer did for another, in all."""

    work: int = field(default=0, validator=_AMOUNT)
    """In megabyte-rows."""
    sent: int = field(default=0, validator=_AMOUNT)
    """Parts of models, in megabytes."""
    kept: int = field(default=0, validator=_AMOUNT)
    """Shares of models, in megabyte-days."""

    @property
    def worth(self) -> int:
        """All of it in megabyte-rows, as credit counts it."""
        return self.work + SENT_WORTH * self.sent + KEPT_WORTH * self.kept

    def __add__(self, other: "Amounts") -> "Amounts":
        return Amounts(self.work + other.work, self.sent + other.sent, self.kept + other.kept)

    def beyond(self, other: "Amounts") -> "Amounts":
        """Return by how much this is more, each amount by itself."""
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Amounts(*(max(0, mine - others) for mine, others in pairs))

    def covers(self, other: "Amounts") -> bool:
        """Whether no amount is smaller than the other's."""
        return other.beyond(self) == NOTHING


NOTHING = Amounts()


class Contradiction(ValueError):
    """A user signed two statements that cannot both be true."""

    def __init__(self, text: str, before: "Statement") -> None:
        super().__init__(text)
        self.before = before
        """The one that was known."""


@frozen
class Statement:
    """A user's word for all that a server did for it."""

    user: PeerId = field(validator=PEER)
    server: PeerId = field(validator=PEER)
    count: int = field(validator=_NUMBER)
    """Numbers the user's statements to the server, in rising order."""
    work: int = field(validator=_AMOUNT)
    """In megabyte-rows, since the first."""
    signature: bytes = field(
        default=bytes(SIGNATURE_BYTES),
        validator=blob(SIGNATURE_BYTES, SIGNATURE_BYTES),
        repr=shown_size,
    )
    """The user's."""
    sent: int = field(default=0, validator=_AMOUNT)
    """Parts of models that the server sent, in megabytes."""
    kept: int = field(default=0, validator=_AMOUNT)
    """Shares that it kept of models that the user keeps, too, in megabyte-days."""

    def __attrs_post_init__(self) -> None:
        if not (self.work or self.sent or self.kept):
            raise ValueError("a statement is about something")

    @property
    def amounts(self) -> Amounts:
        """What it is about."""
        return Amounts(self.work, self.sent, self.kept)

    def to_sign(self) -> bytes:
        """Return the bytes that the user signs."""
        ends = (end.encode() for end in (self.user, self.server))
        named = b"".join(len(end).to_bytes(4, "little") + end for end in ends)
        body = named + _NUMBERS.pack(self.count, self.work)
        if not (self.sent or self.kept):
            return SIGNED_AS + body
        return SIGNED_AS_ALL + body + _MORE.pack(self.sent, self.kept)

    def to_countersign(self) -> bytes:
        """Return the bytes that the server signs."""
        return COUNTERSIGNED_AS + self.to_sign()

    def is_signed(self, verify: Verify) -> bool:
        """Whether the signature is the user's."""
        return verify(self.user, self.to_sign(), self.signature)

    def is_agreed(self, verify: Verify, countersignature: bytes) -> bool:
        """Whether both have signed."""
        agreed = verify(self.server, self.to_countersign(), countersignature)
        return agreed and self.is_signed(verify)

    def follows(self, before: "Statement") -> bool:
        """Whether this one is newer than another of the same pair.

        Raises:
            Contradiction: they cannot both be true.
        """
        one, other = sorted((before, self), key=lambda each: each.count)
        rises = other.amounts.covers(one.amounts) and one.amounts != other.amounts
        if self.amounts != before.amounts if self.count == before.count else not rises:
            raise Contradiction(
                f"it signed {before.amounts} as number {before.count}, and"
                f" {self.amounts} as number {self.count}",
                before,
            )
        return self.count > before.count


def double(one: Statement, other: Statement) -> bool:
    """Whether no honest user signs both: two sums under one number, to one server."""
    pairs = ((each.user, each.server, each.count) for each in (one, other))
    return len(set(pairs)) == 1 and one.amounts != other.amounts


@frozen
class Owe:
    """My newest statement to you."""

    statement: Statement


@frozen
class Owed:
    """Your newest statement that I have, which may be newer than your books."""

    statement: Statement
    signature: bytes = field(validator=blob(SIGNATURE_BYTES, SIGNATURE_BYTES), repr=shown_size)
    """The server's, under the statement."""


@frozen
class Vouch:
    """Others' newest statements in my favour, the largest first."""

    statements: tuple[Statement, ...] = field(validator=many(Statement, STATEMENTS_MAX))
