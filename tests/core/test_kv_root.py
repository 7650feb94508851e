"""Roots over K and V rows: shown from the first position on, and layer by layer."""

import struct

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.kv_root import STATEMENT_BYTES, KvStatement, kv_root, tails
from p2pinfer.core.receipts import BadReceipt

WIDE, DEEP = 6, 4


def rows(count: int, width: int) -> st.SearchStrategy[bytes]:
    """Draw rows of a cache."""
    return st.binary(min_size=count * width, max_size=count * width)


@given(st.integers(1, 40), st.data())
def test_rows_up_to_a_position_need_one_hash_more(count: int, data: st.DataObject) -> None:
    """The first rows and the hash behind them lead to the hash before all."""
    keys, values = data.draw(rows(count, WIDE)), data.draw(rows(count, DEEP))
    found = tails(keys, values, count)
    shown = data.draw(st.integers(1, count))
    some = tails(keys[: shown * WIDE], values[: shown * DEEP], shown, found[shown])
    assert some == found[: shown + 1]
    assert len(found) == count + 1


def test_the_hashes_are_those_that_stages_have_signed() -> None:
    """As the module's first lines say; certificates of before hold them."""
    keys, values = bytes(range(3 * WIDE)), bytes(range(100, 100 + 3 * DEEP))
    key = blake3(b"p2pinfer kv 1 cell").digest()
    chain = [b"t" * 32]
    for at in reversed(range(3)):
        cell = keys[at * WIDE : (at + 1) * WIDE] + values[at * DEEP : (at + 1) * DEEP]
        chain.append(blake3(struct.pack("<II", at, WIDE) + cell + chain[-1], key=key).digest())
    assert tails(keys, values, 3, b"t" * 32) == chain[::-1]


@given(st.integers(1, 20), st.data())
def test_other_rows_have_other_hashes(count: int, data: st.DataObject) -> None:
    """One bit of K or V changes every hash up to its position, and none behind it."""
    keys, values = data.draw(rows(count, WIDE)), data.draw(rows(count, DEEP))
    found = tails(keys, values, count)
    at = data.draw(st.integers(0, count - 1))
    changed = bytearray(keys)
    changed[at * WIDE] ^= 1
    other = tails(bytes(changed), values, count)
    assert [a != b for a, b in zip(found, other, strict=True)] == [
        n <= at for n in range(count + 1)
    ]
    assert tails(values, keys, count)[0] != found[0]


def test_a_root_binds_positions_and_the_order_of_layers() -> None:
    """The same hashes in another order, or for another length, have another root."""
    one, two = b"1" * 32, b"2" * 32
    assert len({kv_root(3, [one, two]), kv_root(3, [two, one]), kv_root(4, [one, two])}) == 3


def test_a_statement_reads_back() -> None:
    """And anything else is refused."""
    statement = KvStatement(b"r" * 32, b"k" * 32)
    assert KvStatement.parse(statement.body()) == statement
    with pytest.raises(BadReceipt, match=str(STATEMENT_BYTES)):
        KvStatement.parse(statement.body()[:-1])
