"""Regimes: their numbers never change, and prompts are split so that short turns lose nothing."""

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.regimes import LONG_ROWS_MIN, Regime, from_wire, on_wire, split
from p2pinfer.core.witness import regimes_of, runs_of

NARROW, WIDE, BLOCK = Regime


def test_numbers_and_limits_are_part_of_the_protocol() -> None:
    """Receipts bind the numbers, and stages refuse more rows than a regime allows."""
    assert [int(each) for each in Regime] == [0, 1, 2]
    assert [each.rows_max for each in Regime] == [7, 48, 64]


def test_older_peers_understand_narrow_and_wide() -> None:
    """They are sent as booleans, as before."""
    sent = [on_wire(each) for each in Regime]
    assert sent == [False, True, 2]
    assert [type(each) for each in sent[:2]] == [bool, bool]
    assert [from_wire(each) for each in (False, True, 2)] == list(Regime)


@pytest.mark.parametrize("value", [0, 1, 3, -1, 2.0, 1.0, "2", None, b"\2"])
def test_nothing_else_is_a_regime(value: Any) -> None:
    """Numbers for the first two are refused: those have only one form."""
    with pytest.raises(ValueError, match="no regime"):
        from_wire(value)


@given(st.integers(0, 5000), st.integers(1, 3000), st.booleans())
def test_a_split_covers_each_position_once(start: int, count: int, blocks: bool) -> None:
    """In order, without gaps, in decodes of allowed sizes; in blocks only if allowed."""
    chunks = split(start, start + count, blocks=blocks)
    assert (chunks[0].start, chunks[-1].end) == (start, start + count)
    assert all(a.end == b.start for a, b in pairwise(chunks))
    assert all(0 < each.end - each.start <= each.regime.rows_max for each in chunks)
    assert {each.regime for each in chunks} <= ({WIDE, BLOCK} if blocks else {WIDE})
    padding = sum(64 - (each.end - each.start) for each in chunks if each.regime is BLOCK)
    assert padding <= max(15, count // 8)


@pytest.mark.parametrize(
    ("count", "due"),
    [
        (20, [(20, WIDE)]),
        (48, [(48, WIDE)]),
        (49, [(49, BLOCK)]),
        (64, [(64, BLOCK)]),
        (100, [(64, BLOCK), (36, WIDE)]),
        (LONG_ROWS_MIN + 5, [(64, BLOCK)] * 8 + [(5, BLOCK)]),
    ],
)
def test_short_turns_do_not_pay_for_padding(count: int, due: list[tuple[int, Regime]]) -> None:
    """Wide until blocks pay off; in a long turn the last rows are a block too."""
    found = split(7, 7 + count, blocks=True)
    assert [(each.end - each.start, each.regime) for each in found] == due


@given(st.lists(st.sampled_from(Regime), max_size=200).map(tuple))
def test_runs_stand_for_regimes(regimes: tuple[Regime, ...]) -> None:
    """Regimes written as runs read back."""
    assert regimes_of(runs_of(regimes)) == regimes


def test_runs_without_blocks_are_written_as_before() -> None:
    """Older files are readable, and older versions read new files without blocks."""
    assert runs_of([WIDE] * 3 + [NARROW] * 2 + [WIDE]) == (3, 2, 1)
    assert runs_of([NARROW] * 2) == (0, 2)
    assert runs_of([BLOCK] * 5 + [NARROW, WIDE] + [BLOCK] * 2 + [WIDE]) == (-5, 0, 1, 1, -2, 0, 1)
    assert regimes_of((3, 2, 1)) == (WIDE,) * 3 + (NARROW,) * 2 + (WIDE,)
