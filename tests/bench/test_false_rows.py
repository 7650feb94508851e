"""What is said of a cheat's false rows: how many, how far apart, and how likely to be missed."""

import numpy as np
import pytest

from p2pinfer.bench.false_rows import FALSE_FROM, chance_missed, compare
from p2pinfer.core.receipts import Receipt
from peers.audits.inspector import choose_rows


@pytest.mark.parametrize("at", [0, 30, 54, 72])
def test_a_lone_false_row_is_mostly_missed(at: int) -> None:
    """One of the 18 or 19 rows of its quarter is opened."""
    missed = chance_missed([position == at for position in range(73)])
    assert missed in (pytest.approx(1 - 1 / 18), pytest.approx(1 - 1 / 19))


def test_what_is_false_in_a_whole_quarter_is_never_missed() -> None:
    """Also if the other rows are true; and nobody catches an answer in which all rows are."""
    assert chance_missed([position >= 54 for position in range(73)]) == 0
    assert chance_missed([position >= 55 for position in range(73)]) > 0
    assert chance_missed([False] * 73) == 1
    assert chance_missed([True]) == 0


def test_small_and_large_rows_are_measured_alike() -> None:
    """Each by its own length, and only what is more than kernels differ by."""
    chance = np.random.default_rng(1)
    true = chance.standard_normal((40, 64), np.float32)
    true[::2] *= 1000
    sent = true.copy()
    sent[0] *= 1 + FALSE_FROM / 2
    sent[20:] *= np.float32(1.01)
    found = compare(sent, true)
    assert (found.rows, found.false, found.missed) == (40, 20, 0)
    assert found.apart == pytest.approx(0.01, rel=1e-3)
    assert compare(true, true).apart == 0


def test_the_chance_is_that_of_the_rows_which_are_drawn() -> None:
    """Counted over nonces, where two rows of the second quarter and five of the last are false."""
    is_false = [position in (20, 21, 60, 61, 62, 63, 72) for position in range(73)]
    root = bytes(32)
    receipt = Receipt(root, 1, 3, 1, 73, 73, root, root, bytes(16))
    missed = sum(
        not any(is_false[at] for at in choose_rows(number.to_bytes(32, "little"), receipt))
        for number in range(4000)
    )
    assert missed / 4000 == pytest.approx(chance_missed(is_false), abs=0.02)
