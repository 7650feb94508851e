"""Receipts: one way to write each, small, and bound to everything they state."""

from typing import Any

import pytest
from attrs import evolve, fields
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.receipts import (
    BODY_BYTES,
    RECEIPT_BYTES_MAX,
    SIGNATURE_BYTES,
    BadReceipt,
    Receipt,
    Terms,
    seal_of,
)

TERMS = Terms(
    SessionId(b"s" * 16), ModelId("ab" * 32), PeerId("me".ljust(52, "x")), "f32", seal_of(b"n")
)
ROOTS = st.binary(min_size=32, max_size=32)
RECEIPTS = st.builds(
    Receipt,
    terms=ROOTS,
    first=st.integers(0, 1024),
    end=st.integers(0, 1024),
    number=st.integers(0, 2**32 - 1),
    position=st.integers(0, 1 << 22),
    rows=st.integers(0, 1 << 62),
    received=ROOTS,
    sent=ROOTS,
    numerics=st.binary(min_size=16, max_size=16),
)


@given(RECEIPTS)
def test_a_receipt_reads_back(receipt: Receipt) -> None:
    """All signed fields are read."""
    assert Receipt.parse(receipt.body()) == receipt


@given(st.binary(min_size=BODY_BYTES, max_size=BODY_BYTES))
def test_bytes_are_a_receipt_in_one_way_or_none(body: bytes) -> None:
    """Two bodies with one meaning would allow two signatures for one statement."""
    try:
        receipt = Receipt.parse(body)
    except BadReceipt:
        return
    assert receipt.body() == body


@given(st.binary(max_size=2 * BODY_BYTES).filter(lambda body: len(body) != BODY_BYTES))
def test_bytes_of_another_length_are_refused(body: bytes) -> None:
    """Nothing may follow a receipt or be missing from it."""
    with pytest.raises(BadReceipt):
        Receipt.parse(body)


def test_a_receipt_and_its_signature_are_small() -> None:
    """One is sent per stage and checkpoint."""
    assert BODY_BYTES + SIGNATURE_BYTES <= RECEIPT_BYTES_MAX


def test_terms_bind_each_of_their_fields() -> None:
    """A receipt of one session, model, requester or nonce fits no other."""
    others: dict[str, Any] = {
        "session": SessionId(b"t" * 16),
        "model": ModelId("cd" * 32),
        "requester": PeerId("you".ljust(52, "x")),
        "dtype": "f16",
        "seal": seal_of(b"m"),
    }
    assert set(others) == {field.name for field in fields(Terms)}
    changed = [evolve(TERMS, **{name: value}).digest() for name, value in others.items()]
    assert len({TERMS.digest(), *changed}) == 1 + len(others)
