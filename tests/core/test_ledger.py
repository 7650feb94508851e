"""The ledger: nothing counts twice, and nothing counts for the wrong peer."""

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.ids import ModelId, PeerId, SessionId
from p2pinfer.core.ledger import LedgerAccount, LedgerEntry, accounts, entry_of, fold
from p2pinfer.core.receipts import BadReceipt, Receipt, Terms

ME, YOU = (PeerId(name.ljust(52, "x")) for name in ("me", "you"))
TERMS = Terms(SessionId(b"s" * 16), ModelId("ab" * 32), ME, "f32", bytes(32))
RECEIPT = Receipt(TERMS.digest(), 1, 10, 1, 32, 40, bytes(32), bytes(32), bytes(16))

ENTRIES = st.lists(
    st.builds(
        LedgerEntry,
        server=st.sampled_from([ME, YOU]),
        user=st.just(YOU),
        terms=st.sampled_from([b"a" * 32, b"b" * 32]),
        first=st.just(1),
        end=st.integers(2, 4),
        rows=st.integers(0, 100),
    ),
    max_size=12,
)


@given(ENTRIES, st.randoms())
def test_order_and_repetition_change_nothing(entries: list[LedgerEntry], chance: object) -> None:
    """Receipts may arrive late, twice, or after a newer one."""
    shuffled = [*entries, *entries]
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    again = {key: entry.rows for key, entry in fold(shuffled).items()}
    assert again == {key: entry.rows for key, entry in fold(entries).items()}


@given(ENTRIES, ENTRIES)
def test_a_ledger_grows_by_folding(one: list[LedgerEntry], more: list[LedgerEntry]) -> None:
    """Folded entries need not be kept."""
    whole = {key: entry.rows for key, entry in fold([*one, *more]).items()}
    assert {k: e.rows for k, e in fold([*fold(one).values(), *more]).items()} == whole


def test_a_receipt_is_worth_no_more_than_was_sent() -> None:
    """A stage that signs for more rows than it got gains nothing."""
    assert entry_of(TERMS, YOU, RECEIPT, 100).layer_rows == 40 * 9
    assert entry_of(TERMS, YOU, RECEIPT, 33).layer_rows == 33 * 9


def test_a_receipt_of_another_session_is_worth_nothing() -> None:
    """The same with another requester, model or nonce: the terms bind all of them."""
    with pytest.raises(BadReceipt):
        entry_of(evolve(TERMS, requester=YOU), YOU, RECEIPT, 100)


def test_accounts_add_up_by_peer() -> None:
    """Served and used work are separate."""
    served = LedgerEntry(ME, YOU, b"a" * 32, 1, 3, 10)
    used = evolve(served, server=YOU, user=ME)
    assert accounts([served, served], [used, evolve(used, terms=b"b" * 32)]) == [
        LedgerAccount(YOU, 20, 40)
    ]
