"""Which sums a model takes over, and where it moves."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.ids import PeerId
from p2pinfer.core.learning import Digest, Kind, RoundStatement, TaskId, digest_of
from scheduler.judging import (
    UPDATE_MAX,
    GroupSum,
    accepted,
    as_weights,
    is_possible,
    length,
    middle,
    moved,
    shortened,
)

GOOD, BAD = Digest(b"g" * 32), Digest(b"b" * 32)


def judgement(member: int, before: int, **after: int) -> RoundStatement:
    """Make what a member says of two sums."""
    listed = tuple({"good": GOOD, "bad": BAD}[name] for name in after)
    return RoundStatement(
        PeerId(f"{member:052}"),
        TaskId("a" * 64),
        1,
        0,
        Kind.JUDGEMENT,
        digest_of(b"draw"),
        listed=listed,
        losses=(before, *after.values()),
    )


def test_what_helps_two_and_costs_the_rest_little_is_taken() -> None:
    """As honest sums of facts do, where a median would refuse them; poison costs all but one."""
    good = [900_000, 950_000, 1_025_000, 1_010_000, 1_030_000, 1_004_000]
    bad = [0, 1_020_000, 1_100_000, 1_150_000, 1_080_000, 1_200_000]
    said = [judgement(n, 1_000_000, good=good[n], bad=bad[n]) for n in range(6)]
    assert accepted(said) == [GOOD]


def test_a_sum_that_helps_far_less_than_the_best_is_left_out() -> None:
    """It is as likely poisoned as of use; half as much is enough, and where none helps, no harm."""

    def taken(good: int, bad: int) -> list[Digest]:
        judges = [judgement(number, 1_000_000, good=good, bad=bad) for number in range(4)]
        return accepted(judges)

    assert taken(800_000, 970_000) == [GOOD]
    assert taken(800_000, 900_000) == [BAD, GOOD]
    assert taken(1_004_000, 1_009_000) == [BAD, GOOD]
    assert taken(1_004_000, 1_011_000) == [GOOD]


def test_a_sum_that_few_have_judged_is_not_taken() -> None:
    """More than half must have had it."""
    said = [judgement(0, 10, good=1), judgement(1, 10, good=1), judgement(2, 10, bad=1)]
    said.append(judgement(3, 10, bad=1))
    assert accepted(said) == []


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=9), st.floats(-1e6, 1e6))
def test_one_liar_moves_nothing_beyond_the_others(honest: list[float], lie: float) -> None:
    """Whatever it says, the middle is within what the others say."""
    assert min(honest) - 1e-9 <= middle([*honest, lie]) <= max(honest) + 1e-9


def test_a_long_sum_is_cut_to_the_median() -> None:
    """And to what honest members may send."""
    head = np.zeros(4, np.int32)
    sums = {
        GOOD: GroupSum(np.array([200, 0, 0, 0], np.int32), 2),
        BAD: GroupSum(np.array([0, 20_000, 0, 0], np.int32), 2),
        Digest(b"c" * 32): GroupSum(np.array([0, 0, 200, 0], np.int32), 2),
    }
    found = moved(head, sums, [*sums], 1 << 20, 300)
    assert found.tolist() == [100, 100, 100, 0]
    assert moved(head, sums, [*sums], 50, 300).tolist() == [50, 50, 50, 0]
    assert moved(head, sums, [], 50, 300).tolist() == [0, 0, 0, 0]


def test_of_two_sums_the_longer_is_cut_to_the_shorter() -> None:
    """A mean of the two would let the longer one draw its own limit up."""
    sums = {
        GOOD: GroupSum(np.array([200, 0], np.int32), 2),
        BAD: GroupSum(np.array([0, 20_000], np.int32), 2),
    }
    assert moved(np.zeros(2, np.int32), sums, [*sums], 1 << 20, 200).tolist() == [100, 100]


@given(
    st.lists(st.tuples(*[st.floats(-1, 1, width=32)] * 3), min_size=1, max_size=8),
    st.integers(1, 200_000),
)
def test_honest_updates_always_add_up_to_a_possible_sum(
    updates: list[tuple[float, ...]], clip: int
) -> None:
    """However long they were before they were cut; one that is longer than all of them is not."""
    cut = [shortened(np.array(each, np.float32), clip) for each in updates]
    assert is_possible(GroupSum(np.sum(cut, axis=0).astype(np.int32), len(cut)), clip)
    longer = np.array([clip * len(cut) + 1, 0, 0], np.int32)
    assert not is_possible(GroupSum(longer, len(cut)), clip)


def test_an_update_is_cut_before_it_is_sent() -> None:
    """To the task's norm, and to what the sums hold."""
    update = np.array([0.3, -0.4, 0.0], np.float32)
    assert length(shortened(update, 1000)) <= 1000
    assert length(shortened(update, 1 << 30)) == pytest.approx(2**15, rel=1e-3)
    assert shortened(np.array([9.0], np.float32), 1 << 30).tolist() == [UPDATE_MAX]


@given(st.integers(-(2**24) + 1, 2**24 - 1))
def test_numbers_are_exact_as_weights(number: int) -> None:
    """So the child has the same bytes on every machine."""
    assert as_weights(np.array([number], np.int32))[0] * 65536 == number
