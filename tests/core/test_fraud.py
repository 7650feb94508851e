"""Fraud proofs: no peer can make one from an honest peer's receipts, or change one."""

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.evidence import FRAUD_ROWS_BYTES_MAX
from p2pinfer.core.fraud import (
    FILE_BYTES_MAX,
    FRAUD_POSITIONS_MAX,
    MAGIC,
    FraudProof,
    contradict,
    parse,
)
from p2pinfer.core.ids import SessionId
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sections import BadFile
from p2pinfer.core.witness import Rows
from tests.support.proofs import (
    ACCUSED,
    AUTHOR,
    FILE,
    OTHER,
    PROOF,
    RECEIPT,
    ROWS,
    TERMS,
    TWO,
    file,
    signed,
)
from transports.base import MESSAGE_BYTES_MAX
from transports.identity import verify

LONG = {"receipts": (signed(evolve(RECEIPT, position=FRAUD_POSITIONS_MAX + 1)),)}


@pytest.mark.parametrize("proof", [PROOF, TWO])
def test_a_good_proof_reads_back(proof: FraudProof) -> None:
    """Its summary too, which other peers get first."""
    found = parse(file(proof), verify)
    assert found == proof
    case = found.case()
    assert (case.accused, case.author) == (ACCUSED.peer_id, AUTHOR.peer_id)
    assert (case.first, case.end, case.slice_end) == (1, 10, 12)
    assert case.rows == (40 if proof is PROOF else 0)


def test_any_one_byte_changed_fails_and_says_where() -> None:
    """All bytes are tried."""
    for at in range(len(FILE)):
        with pytest.raises(BadFile, match=r"bytes \d+ to \d+"):
            parse(FILE[:at] + bytes([FILE[at] ^ 0x20]) + FILE[at + 1 :], verify)


@given(st.binary(max_size=200))
def test_noise_is_refused(data: bytes) -> None:
    """Also with the right beginning."""
    for each in (data, MAGIC + data):
        with pytest.raises(BadFile):
            parse(each, verify)


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"rows": ROWS[::-1].tobytes()}, "section rows: they are not those that the accused"),
        ({"rows": ROWS[:39].tobytes()}, "section rows"),
        ({"rows": b""}, "section rows"),
        ({"rows": np.full_like(ROWS, np.inf).tobytes()}, "section rows: no stage takes NaN"),
        ({"regimes": (31, 9)}, "section rows: they are not those that the accused"),
        ({"regimes": (30, 11)}, "section rows"),
        ({"regimes": (41, -1)}, "section rows"),
        (LONG, f"section rows: {FRAUD_POSITIONS_MAX + 1} are too many"),
        ({"accused": OTHER.peer_id}, "section accused: receipt 0 is not signed"),
        ({"receipts": (signed(RECEIPT, OTHER),)}, "section accused: receipt 0 is not signed"),
        ({"receipts": (signed(evolve(RECEIPT, end=13)),)}, "about no layers"),
        ({"terms": evolve(TERMS, session=SessionId(b"t" * 16))}, "about another session"),
        ({"receipts": TWO.receipts}, "do not contradict"),
        ({"receipts": TWO.receipts[:1] * 2, "rows": b"", "regimes": ()}, "do not contradict"),
    ],
)
def test_a_file_that_proves_nothing_is_refused(changes: dict[str, object], where: str) -> None:
    """Even signed by its author."""
    with pytest.raises(BadFile, match=where):
        parse(file(evolve(PROOF, **changes)), verify)  # type: ignore[arg-type]


def test_only_the_requester_may_accuse() -> None:
    """The receipt's session must be the author's own."""
    with pytest.raises(BadFile, match="did not sign"):
        parse(file(PROOF, OTHER), verify)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"number": 8, "rows": 99},
        {"received": b"r" * 32, "sent": b"y" * 32},
        {"position": 32, "sent": b"y" * 32},
        {"numerics": b"d" * 16, "sent": b"y" * 32},
        {"end": 9, "sent": b"y" * 32},
        {"terms": b"t" * 32, "sent": b"y" * 32},
    ],
)
def test_receipts_of_an_honest_peer_do_not_contradict(changes: dict[str, object]) -> None:
    """Also if a session was opened twice, so that its receipts are numbered from 1 again."""
    assert not contradict(RECEIPT, evolve(RECEIPT, **changes))  # type: ignore[arg-type]


def test_the_longest_proof_fits_in_a_message() -> None:
    """And reads back: at least the widest rows of one checkpoint fit."""
    count = 48
    rows = bytes(FRAUD_ROWS_BYTES_MAX)
    found, size = Rows(keep=False), len(rows) // count
    for at in range(count):
        found.put(at, 1, rows[:size], regime=Regime.WIDE)
    receipt = evolve(RECEIPT, position=count, received=found.tree.root(count))
    data = file(evolve(PROOF, receipts=(signed(receipt),), regimes=(count,), rows=rows))
    assert parse(data, verify).receipt == receipt
    assert len(data) <= FILE_BYTES_MAX < MESSAGE_BYTES_MAX
