"""The proof that a peer signed two sums under one number: small, whole, and nobody else's."""

from random import Random

import pytest
from attrs import evolve

from p2pinfer.core.double_statement import MAGIC, NO_MODEL, DoubleStatement, parse
from p2pinfer.core.ids import PeerId
from p2pinfer.core.sections import BadFile
from p2pinfer.core.statement import Statement
from tests.support.swarm import KEYS
from transports.identity import Identity, verify

USER, SERVER, OTHER = KEYS[:3]


def signed(by: Identity, to: PeerId, count: int = 1, work: int = 5, sent: int = 0) -> Statement:
    """Return a peer's statement to another one."""
    made = Statement(by.peer_id, to, count, work, sent=sent)
    return evolve(made, signature=by.sign(made.to_sign()))


ONE, MORE = signed(USER, SERVER.peer_id), signed(USER, SERVER.peer_id, work=6)


def test_a_proof_reads_back_and_names_who_is_involved() -> None:
    """A few hundred bytes; its case is of no model, and needs no rows."""
    proof = DoubleStatement(ONE, MORE)
    data = proof.encode()
    assert parse(data, verify) == proof
    assert len(data) < 600
    case = proof.case()
    assert (case.accused, case.author, case.model, case.rows) == (
        USER.peer_id,
        SERVER.peer_id,
        NO_MODEL,
        0,
    )


def test_parts_count_too() -> None:
    """The same work under one number, and other megabytes."""
    proof = DoubleStatement(ONE, signed(USER, SERVER.peer_id, sent=1))
    assert parse(proof.encode(), verify) == proof


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        (ONE, ONE, "do not contradict"),
        (ONE, signed(USER, SERVER.peer_id, count=2, work=3), "do not contradict"),
        (ONE, signed(USER, OTHER.peer_id, work=6), "do not contradict"),
        (ONE, signed(OTHER, SERVER.peer_id, work=6), "do not contradict"),
        (ONE, evolve(ONE, work=6), "not signed"),
        (evolve(ONE, signature=OTHER.sign(ONE.to_sign())), MORE, "not signed"),
    ],
)
def test_what_proves_nothing_is_refused(one: Statement, other: Statement, why: str) -> None:
    """The same twice, other numbers, other pairs; or a sum that the user did not sign."""
    with pytest.raises(BadFile, match=why):
        parse(DoubleStatement(one, other).encode(), verify)


def test_changed_bytes_are_refused() -> None:
    """Each byte by itself, lost ends, and noise."""
    data, chance = DoubleStatement(ONE, MORE).encode(), Random(1)
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= chance.randrange(1, 256)
        with pytest.raises(BadFile):
            parse(bytes(changed), verify)
        with pytest.raises(BadFile):
            parse(data[:at], verify)
        with pytest.raises(BadFile):
            parse(MAGIC + chance.randbytes(chance.randrange(400)), verify)
