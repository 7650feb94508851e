"""How benchmarks evaluate their measurements."""

import random

from p2pinfer.bench.evidence import median_interval


def test_the_interval_of_a_median_is_by_ranks() -> None:
    """It matches tables of the sign test."""
    for count, bounds in ((6, (1, 6)), (9, (2, 8)), (30, (10, 21)), (100, (40, 61))):
        assert median_interval(list(range(count, 0, -1))) == bounds
    assert median_interval([3.0]) == (3.0, 3.0)


def test_the_interval_holds_the_true_median_as_often_as_it_says() -> None:
    """For skewed values, too: in at least 95 of 100 samples, and not always."""
    chance, true = random.Random(1), 0.6931
    held = 0
    for _ in range(1000):
        low, high = median_interval([chance.expovariate(1.0) for _ in range(40)])
        held += low <= true <= high
    assert 945 <= held < 1000
