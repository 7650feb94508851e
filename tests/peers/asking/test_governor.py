"""How far ahead a session drafts: as far as may well be of use, and never at others' cost."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peers.asking.drafts import DRAFTS_MAX
from peers.asking.governor import (
    OF_USE_FAR_MIN,
    OF_USE_MIN,
    PAUSE_TOKENS_MAX,
    PLAIN_EVERY_TOKENS,
    PLAIN_TOKENS,
    SHARE_TOKENS,
    DraftRecord,
    Governor,
)


def begun(record: DraftRecord | None = None) -> Governor:
    """Return one that knows what plain tokens take: a second."""
    governor = Governor(record or DraftRecord())
    for _ in range(PLAIN_TOKENS):
        governor.took(1.0, drafting=False)
    return governor


def go_on(governor: Governor, right: float, tokens: int, seed: int = 3) -> int:
    """Draft tokens of which that share is right; return during how many any was under way."""
    chance, drafting = Random(seed), 0
    for _ in range(tokens):
        is_drafting = governor.depth > 0
        drafting += is_drafting
        if is_drafting:
            (governor.kept if chance.random() < right else governor.dropped)()
        governor.took(0.5 if is_drafting else 1.0, drafting=is_drafting)
    return drafting


def test_depth_follows_what_became_of_drafts() -> None:
    """It grows while they are kept; while none is, tries become rare."""
    governor = Governor(DraftRecord())
    assert governor.depth == 0
    governor = begun()
    assert 0 < (first := governor.depth) < DRAFTS_MAX
    for _ in range(8):
        governor.kept()
    assert governor.depth > 2 * first
    for _ in range(50):
        governor.kept()
    assert governor.depth == DRAFTS_MAX
    for _ in range(20):
        governor.dropped()
    assert first < governor.depth < DRAFTS_MAX
    go_on(governor, 0.0, 400)
    assert 0 < go_on(governor, 0.0, 1000) <= 10


def test_always_wrong_drafts_stop_early() -> None:
    """A requester learns it in its first answer, and every later answer is nearly plain."""
    record = DraftRecord()
    assert go_on(begun(record), 0.0, 150) <= 24
    assert sum(go_on(Governor(record), 0.0, 150) for _ in range(10)) <= 15


@pytest.mark.parametrize(("right", "least"), [(0.3, 0.9), (0.5, 0.97), (0.7, 0.97), (0.9, 0.97)])
def test_drafts_that_are_often_right_go_on(right: float, least: float) -> None:
    """One that is wrong at once, as happens to half of them by chance, stops none behind it."""
    assert go_on(begun(), right, 5000) / 5000 > least


@pytest.mark.parametrize(("right", "deep"), [(0.5, 3), (0.7, 6), (0.9, DRAFTS_MAX)])
def test_a_row_goes_out_if_one_in_ten_is_of_use(right: float, deep: int) -> None:
    """By how many drafts were right, in all answers of the requester, whatever its sessions."""
    record = DraftRecord()
    go_on(begun(record), right, 2000)
    depths = []
    for seed in range(200):
        go_on(governor := Governor(record), right, 10, seed)
        depths.append(governor.depth)
    assert deep <= sorted(depths)[100] <= deep + 2


@pytest.mark.parametrize(("trip_s", "deep"), [(0.1, 5), (0.15, 7), (0.28, 8), (9.0, 8)])
def test_more_go_out_over_long_links(trip_s: float, deep: int) -> None:
    """Where a row of use saves a longer trip, stages that take 20 ms run more of them in vain."""
    governor = begun()
    go_on(governor, 0.7, 2000)
    for _ in range(200):
        governor.went(trip_s, 0.02)
    for _ in range(200):  # exactly seven in ten, of late as by and large
        for is_right in (True, True, False, True, True, True, False, True, True, False):
            (governor.kept if is_right else governor.dropped)()
    assert governor.depth == deep


def test_no_more_go_out_than_the_route_holds() -> None:
    """Others would wait in front of its slowest stage."""
    governor = begun()
    for _ in range(60):
        governor.kept()
    assert governor.depth == DRAFTS_MAX
    for trip_s, slowest_s, depth in ((0.155, 0.02, 7), (0.02, 0.1, 1), (0.5, 0.0, DRAFTS_MAX)):
        for _ in range(200):
            governor.went(trip_s, slowest_s)
        assert governor.depth == depth


def test_depth_falls_as_others_wait() -> None:
    """To nothing where there are many: a row in vain would make each of them wait."""
    governor = begun()
    for _ in range(60):
        governor.kept()
    for _ in range(14):
        governor.dropped()
    depths = []
    for waiting in range(10):
        governor.waiting = waiting
        depths.append(governor.depth)
    assert depths == sorted(depths, reverse=True)
    assert depths[0] > depths[1] > depths[4] > depths[-1] == 0


def test_a_hiccup_is_not_put_down_to_drafts() -> None:
    """A token that waits for another session's prompt says nothing of what drafts cost."""
    governor = begun()
    for number in range(40):
        governor.took(30.0 if number == 12 else 0.5, drafting=True)
        assert governor.depth


@pytest.mark.parametrize("slower", [1.1, 3.0])
def test_drafts_that_take_longer_than_they_save_pause(slower: float) -> None:
    """Where machines are busy, rows that are run in vain delay the others."""
    record, drafting, taken = DraftRecord(), 0, 0.0
    for _ in range(20):  # sessions
        governor = Governor(record)
        for _ in range(150):
            is_drafting = governor.depth > 0
            drafting += is_drafting
            if is_drafting:
                governor.kept()
            taken += slower if is_drafting else 1.0
            governor.took(slower if is_drafting else 1.0, drafting=is_drafting)
    assert 0 < drafting <= 20 * 24
    assert slower > 2.0 or taken <= 20 * 150 / 0.95


def test_what_plain_tokens_take_is_measured_again() -> None:
    """Drafts that were worth it an hour ago may not be now; it takes one token in a hundred."""
    record, plain, tokens = DraftRecord(), 0, 0
    while tokens < 4 * PLAIN_EVERY_TOKENS:
        governor = Governor(record)
        for _ in range(150):
            plain += governor.depth == 0
            tokens += 1
            governor.took(0.1 if governor.depth else 1.0, drafting=governor.depth > 0)
    assert 3 * PLAIN_TOKENS <= plain <= 6 * PLAIN_TOKENS


@pytest.mark.parametrize("of_use", [OF_USE_MIN, OF_USE_FAR_MIN])
def test_rows_in_vain_are_bounded(of_use: float) -> None:
    """Rows for a token are fewer than four, over links of any length."""
    for percent in range(1, 100):
        right, deep = percent / 100, 0
        while right ** (deep + 1) >= of_use and deep < DRAFTS_MAX:
            deep += 1
        assert 1 + (1 - right) * deep < 4


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)).map(sorted), max_size=20))
def test_the_share_of_drafted_tokens_is_one(answers: list[list[int]]) -> None:
    """Never more than all, and nothing before there are tokens."""
    record = DraftRecord()
    assert record.share == 0.0
    for kept, tokens in answers:
        record.add(kept, tokens)
        assert 0.0 <= record.share <= 1.0


def test_the_share_of_drafted_tokens_follows_the_last_answers() -> None:
    """One short answer says little, and what was long ago nothing any more."""
    record = DraftRecord()
    record.add(8, 8)
    assert record.share < 0.1
    for _ in range(20):
        record.add(70, 100)
    assert record.share == pytest.approx(0.7, abs=0.01)
    record.add(0, 6 * SHARE_TOKENS)
    assert record.share < 0.01


@pytest.mark.parametrize("waiting", [0.0, 1.0, 2.5])
def test_drafts_are_tried_again_beside_others(waiting: float) -> None:
    """Once wrong is not always wrong, however many sessions stay open at the stages."""
    record = DraftRecord()
    go_on(begun(record), 0.0, 400)
    governor = Governor(record)
    governor.waiting = waiting
    assert go_on(governor, 1.0, 3 * PAUSE_TOKENS_MAX) > 100
