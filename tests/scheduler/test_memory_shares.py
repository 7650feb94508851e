"""Memory divided among models: everybody's least, nobody's more than it can use, then equally."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.memory_shares import Appetite, divide

SIZES = st.integers(0, 1 << 40)
APPETITES = st.lists(
    st.tuples(SIZES, SIZES).map(lambda pair: Appetite(min(pair), max(pair))), max_size=6
)


@pytest.mark.parametrize(
    ("total", "appetites", "shares"),
    [
        (100, [(10, 90), (10, 90)], [50, 50]),
        (100, [(10, 20), (10, 90)], [20, 80]),
        (100, [(70, 90), (10, 90)], [70, 30]),
        (100, [(1, 5), (1, 6)], [5, 6]),
        (20, [(10, 90), (10, 90)], [10, 10]),
        (100, [(0, 100)], [100]),
    ],
)
def test_shares(total: int, appetites: list[tuple[int, int]], shares: list[int]) -> None:
    """Equal where possible; what a small model leaves goes to the other."""
    assert divide(total, [Appetite(*each) for each in appetites]) == shares


@given(total=SIZES, appetites=APPETITES)
def test_what_holds_for_all(total: int, appetites: list[Appetite]) -> None:
    """Nothing is given twice, and nothing of use is kept back."""
    if sum(each.least for each in appetites) > total:
        with pytest.raises(ValueError, match="more"):
            divide(total, appetites)
        return
    shares = divide(total, appetites)
    assert all(a.least <= s <= a.most for a, s in zip(appetites, shares, strict=True))
    assert sum(shares) <= total
    hungry = [s for a, s in zip(appetites, shares, strict=True) if a.least < s < a.most]
    assert len(set(hungry)) <= 1  # who is neither at the least nor full is at the common level
    left = total - sum(shares)
    assert left < max(len(appetites), 1) or shares == [each.most for each in appetites]
