"""A session's kept rows can be sent again, whatever was dropped, spilt or cut meanwhile."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.regimes import Regime
from peers.steps.history import KEPT_STEPS_MIN, Budget, History, Kept

ROW = 4
"""Bytes."""

STEPS = st.lists(
    st.tuples(
        st.just(0) | st.integers(0, 400),
        st.integers(1, 3) | st.integers(1, ROWS_PER_DECODE_MAX),
        st.sampled_from(Regime),
    ),
    max_size=60,
)
"""How far back each begins, its row count, and its regime if that may hold as many rows."""

Position = tuple[bytes, Regime]


def play(
    history: History, steps: list[tuple[int, int, Regime]]
) -> tuple[list[Position], list[int]]:
    """Keep steps; return the row at each position, and the step number it came with."""
    rows: list[Position] = []
    numbers: list[int] = []
    for number, (back, count, wanted) in enumerate(steps, 1):
        position = max(0, len(rows) - back)
        regime = wanted if count <= wanted.rows_max else Regime.BLOCK
        added = [(number.to_bytes(2, "big") + at.to_bytes(2, "big"), regime) for at in range(count)]
        history.add(number, position, count, regime, (), b"".join(row for row, _ in added))
        del rows[position:], numbers[position:]
        rows += added
        numbers += [number] * count
    return rows, numbers


def positions(kept: Kept) -> list[Position]:
    """Split a step into its positions."""
    assert kept.rows is not None
    assert len(kept.rows) == ROW * kept.count
    return [(kept.rows[at : at + ROW], kept.regime) for at in range(0, len(kept.rows), ROW)]


def replay(history: History, known: int) -> list[Kept]:
    """Return everything that would be sent to a peer that has nothing."""
    found: list[Kept] = []
    number = 0
    while kept := history.following(number, known):
        found.append(kept)
        number = kept.number
    return found


@given(STEPS, st.integers(0, 70), st.integers(0, 3000))
@settings(max_examples=300)
def test_a_replay_is_what_was_sent(
    steps: list[tuple[int, int, Regime]], known: int, memory: int
) -> None:
    """Each position once, in its regime; awaited steps under their own numbers."""
    budget = Budget(memory)
    history = History(budget)
    rows, numbers = play(history, steps)
    again = replay(history, known)
    assert [row for kept in again for row in positions(kept)] == rows
    assert all(kept.count <= kept.regime.rows_max for kept in again)
    assert all(kept.position == sum(k.count for k in again[:n]) for n, kept in enumerate(again))
    waited = {kept.number: kept.count for kept in again if kept.number > known}
    assert waited == {n: numbers.count(n) for n in set(numbers) if n > known}
    assert history.count_after(known) == len(waited)
    history.close()
    assert (budget.memory_left, budget.disk_left) == (memory, Budget().disk_left)


@given(STEPS, st.integers(0, 300), st.integers(0, 300), st.integers(0, 3000))
def test_rows_are_read_by_position(
    steps: list[tuple[int, int, Regime]], position: int, count: int, memory: int
) -> None:
    """A reader gets exactly the positions it asks for."""
    history = History(Budget(memory))
    rows, _ = play(history, steps)
    position = min(position, len(rows))
    end = min(position + count, len(rows))
    found = list(history.read(position, end))
    assert [row for kept in found for row in positions(kept)] == rows[position:end]
    with pytest.raises(LookupError):
        list(history.read(0, len(rows) + 1))
    history.close()


def test_old_rows_go_to_the_disk_and_come_back() -> None:
    """Beyond the memory limit only the newest steps stay in memory."""
    budget = Budget(memory_bytes_max=10 * ROW)
    history = History(budget)
    rows, _ = play(history, [(0, 1, Regime.NARROW)] * 100)
    assert budget.disk_left == Budget().disk_left - (100 - KEPT_STEPS_MIN) * ROW
    assert [row for kept in replay(history, 100) for row in positions(kept)] == rows
    history.close()


@pytest.mark.parametrize("full", [True, False])
def test_beyond_the_disk_limit_the_oldest_are_lost(
    full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session continues, and unsent steps are kept; the history knows that it is incomplete.

    The same happens if the disk itself is full.
    """
    if full:
        budget = Budget(memory_bytes_max=0, disk_bytes_max=10 * ROW)
    else:
        budget = Budget(memory_bytes_max=0)
        monkeypatch.setattr("os.pwrite", lambda *_: 0)
    history = History(budget)
    rows, _ = play(history, [(0, 1, Regime.NARROW)] * 100)
    assert history.start > 0
    assert history.end == 100
    newest = replay(history, 0)
    assert len(newest) >= KEPT_STEPS_MIN
    assert [row for kept in newest for row in positions(kept)] == rows[history.start :]
    with pytest.raises(LookupError):
        list(history.read(0, 1))
    history.add(101, 0, 1, Regime.NARROW, (), b"back")
    assert history.start == 0
    history.close()
    assert budget.memory_left == 0
