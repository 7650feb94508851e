"""Standing: it falls on lies and failures, recovers slowly, and steers."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.ids import PeerId
from scheduler import standing
from scheduler.offer_table import LIE_FACTOR, STANDING_NEW, Experience, OfferTable, believed_row_us
from scheduler.standing import RECOVERY_S, SEEN_S_MAX, Standing, Standings
from tests.support.adverts import advert, peer_id

US = 1000.0
Change = Callable[[Standing, float], Standing]
CHANGES: dict[str, Change] = {
    "kept": lambda one, now_s: one.worked(now_s, US, US),
    "lied": lambda one, now_s: one.worked(now_s, 50 * US, US),
    "refused": Standing.refused,
    "failed": Standing.failed,
    "cheated": Standing.cheated,
    "waited": Standing.at,
}
histories = st.lists(st.tuples(st.sampled_from(sorted(CHANGES)), st.floats(0, 1e6)), max_size=40)


def fold(history: list[tuple[str, float]]) -> Standing:
    """Apply a history of events, each a number of seconds after the one before."""
    one, now_s = Standing(), 0.0
    for name, after_s in history:
        now_s += after_s
        one = CHANGES[name](one, now_s)
    return one


@given(histories)
def test_a_standing_is_a_share(history: list[tuple[str, float]]) -> None:
    """It always stays from 0 to 1, and 0 is only for proven cheats, for good."""
    one = fold(history)
    assert 0 <= one.value <= 1
    if any(name == "cheated" for name, _ in history):
        assert one.value == 0
    else:
        assert one.value > 0


@given(histories, st.floats(0, 1e6))
def test_each_event_moves_it_its_own_way(history: list[tuple[str, float]], after_s: float) -> None:
    """Compared with waiting: work as claimed never lowers it, anything else never raises it."""
    one = fold(history)
    now_s = one.at_s + after_s
    waited = one.at(now_s).value
    for name in ("lied", "refused", "failed", "cheated"):
        assert CHANGES[name](one, now_s).value <= waited
    if one.row_us <= US:
        assert CHANGES["kept"](one, now_s).value >= waited


@given(histories, st.floats(0, 1e6), st.floats(0, 1e6))
def test_time_brings_it_back(history: list[tuple[str, float]], one_s: float, two_s: float) -> None:
    """It nears a newcomer's from either side and never passes it, in one wait or in two."""
    one = fold(history)
    start_s = one.at_s
    between, after = one.at(start_s + one_s), one.at(start_s + one_s + two_s)
    low, high = sorted((one.value, 0.0 if one.cheat else STANDING_NEW))
    assert low - 1e-9 <= between.value <= high + 1e-9
    assert abs(after.value - STANDING_NEW) <= abs(between.value - STANDING_NEW) + 1e-9
    assert between.at(start_s + one_s + two_s).value == pytest.approx(after.value)


def test_recovery_takes_hours() -> None:
    """Half of what a failure cost is back in an hour, and no sooner."""
    failed = Standing().failed(0.0)
    assert failed.at(RECOVERY_S / 2).value < (failed.value + STANDING_NEW) / 2
    assert failed.at(RECOVERY_S).value == pytest.approx((failed.value + STANDING_NEW) / 2)


def test_a_liar_loses_what_it_claimed() -> None:
    """Its observed time replaces its claim, as long as the observation is recent."""
    liar = peer_id("liar")
    known = Standings()
    for n in range(10):
        known.put(liar, known.of(liar, n).worked(n, 900.0, 100.0))
    seen = known.experience(10.0, {})
    assert seen.standing[liar] < STANDING_NEW / 5
    view = OfferTable.of([advert("liar", 1, 2, row_us=100)])
    assert believed_row_us(view, seen).tolist() == [pytest.approx(900)]
    assert believed_row_us(view, Experience(row_us={liar: 100 * LIE_FACTOR})).tolist() == [100]
    assert believed_row_us(view).tolist() == [100]
    assert liar not in known.experience(20.0 + SEEN_S_MAX, {}).row_us


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit, the least known peers are forgotten, and a cheat never is."""
    monkeypatch.setattr(standing, "PEERS_MAX", 8)
    known = Standings()
    known.put(peer_id("cheat"), Standing().cheated(0.0))
    known.put(peer_id("failed"), Standing().failed(0.0))
    for n in range(50):
        peer = PeerId(peer_id(str(n)))
        known.put(peer, known.of(peer, n).refused(n))
    assert len(known) == 8
    assert known.of(peer_id("cheat"), 50.0).cheat
    assert known.of(peer_id("failed"), 0.0).value < STANDING_NEW
