"""Two statements that a user signed under one number, with different sums: a proof that it lied.

It needs no judge and no layers: who has the two signatures has the proof, and anybody can check
it. It travels among fraud proofs (see ``peers.audits.frauds``), as a case of no model.

What it rests on: Ed25519, and that one key signs in one place at a time. A key that runs on two
machines can convict its owner. Unaudited.

    magic, then a msgpack array of the two statements' fields
"""

from typing import Any

import msgpack
from attrs import astuple, frozen
from blake3 import blake3

from p2pinfer.core.evidence import Case
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.sections import BadFile
from p2pinfer.core.statement import Statement, Verify, double

MAGIC = b"p2pinfer double statement 1\n"

FILE_BYTES_MAX = 1024
"""Two statements have less than half of it."""

NO_MODEL = ModelId("0" * 64)
"""In its case: peers of earlier releases serve no such model, and do not ask for the proof."""


@frozen
class DoubleStatement:
    """What shows that a user signed two sums under one number."""

    one: Statement
    other: Statement

    @property
    def author(self) -> PeerId:
        """The server that the statements were made to."""
        return self.one.server

    @property
    def accused(self) -> PeerId:
        """The user."""
        return self.one.user

    def case(self) -> Case:
        """Return the summary that is sent before the proof."""
        digest = blake3(self.encode()).digest()
        return Case(digest, NO_MODEL, self.author, self.accused, 0, 1, 1, bytes(16), 0)

    def encode(self) -> bytes:
        """Return the file."""
        packed: bytes = msgpack.packb([astuple(self.one), astuple(self.other)])
        return MAGIC + packed


def parse(data: bytes, verify: Verify) -> DoubleStatement:
    """Read a file, and check all of it.

    Raises:
        BadFile: it is damaged, a signature is missing, or it proves nothing.
    """
    if not data.startswith(MAGIC) or len(data) > FILE_BYTES_MAX:
        raise BadFile("it does not begin like a double statement, or is too long")
    try:
        found = _build(msgpack.unpackb(data[len(MAGIC) :], use_list=False))
        is_canonical = found.encode() == data
    except Exception as error:  # msgpack raises five families
        raise BadFile(f"these are no two statements: {error}"[:300]) from error
    if not is_canonical:
        raise BadFile("its encoding is not the canonical one")
    if not double(found.one, found.other):
        raise BadFile("the statements do not contradict each other")
    if not all(each.is_signed(verify) for each in (found.one, found.other)):
        raise BadFile(f"a statement is not signed by {found.accused}")
    return found


def _build(values: Any) -> DoubleStatement:
    one, other = (Statement(*each) for each in values)
    return DoubleStatement(one, other)
