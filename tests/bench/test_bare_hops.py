"""The floor of a boundary: processes that only hand a row on, and what their hops leave."""

import time

import pytest

from p2pinfer.bench.bare_hops import TIME_BYTES, open_bare_chain
from p2pinfer.bench.decode import DecodeRun, floor


def test_hops_are_counted_without_the_reads_between_them() -> None:
    """Which take far longer here; the processes end with the block."""
    with open_bare_chain([1 << 20, 64 << 20, 1 << 20], TIME_BYTES + 100) as seconds:
        seconds(2)
        started = time.perf_counter()
        hops_s = seconds(10)
        assert 0 < hops_s < time.perf_counter() - started


def test_long_messages_come_whole() -> None:
    """Longer than what is received at once."""
    with open_bare_chain([1 << 10, 1 << 10], 200_000) as seconds:
        assert seconds(3) > 0


def test_the_floor_is_of_runs_in_the_same_turn() -> None:
    """Hops of 0.5 and 4 s beside 1 and 8 s alone, in two turns of which one is slow."""
    alone = [DecodeRun([1, 2, 3], 0.0, each) for each in (1.0, 8.0)]
    found = floor(alone, [0.5, 4.0], 1)
    assert found["decode_ratio"] == pytest.approx(2 / 3, abs=0.001)
    assert found["ms_per_boundary"] == (125.0 + 1000.0) / 2
