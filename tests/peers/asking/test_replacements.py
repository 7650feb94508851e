"""Which stages are too slow, and which peers replace them."""

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from attrs import evolve
from trio.testing import MockClock

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.layer_range import LayerRange
from peers.asking.experience import Experiences, stage_times
from peers.asking.replacements import SLOW_TIMES, TIMES_MIN, Replacements, rows_of_others
from scheduler.routing import Asking, RouteHop
from tests.support.swarm import MODEL, PEERS, peer

CLAIMED_US = 100


def offer(
    name: str, first: int, end: int, row_us: int = CLAIMED_US, numerics: str = "0"
) -> Advertisement:
    """Return a peer's advertisement."""
    return Advertisement(
        peer(name), (), MODEL, "model", 30, first, end, 256, numerics * 32, 1, row_us=row_us
    )


def replacements(
    others: list[Advertisement], taken_us: tuple[int, ...], count: int
) -> Replacements:
    """Begin with three stages of ten layers that took ``taken_us`` for each token."""
    route = [offer("stage0", 1, 11), offer("stage1", 11, 21), offer("stage2", 21, 29)]
    hops = [RouteHop(each, each.end) for each in route]
    made = Replacements(
        hops, lambda: [*route, *others], Asking(), Experiences(), lambda _: None, lambda _: None
    )
    times = stage_times()
    times.extend([taken_us] * count)
    session: Any = SimpleNamespace(times=times)
    made.session = session
    return made


SLOW_US = SLOW_TIMES * CLAIMED_US * 10 + 1


@pytest.mark.parametrize(
    ("others", "taken_us", "count", "found"),
    [
        pytest.param([("fast", 11, 25, 100)], (900, SLOW_US, 900), TIMES_MIN, 1, id="slow"),
        pytest.param([("fast", 11, 25, 100)], (900, SLOW_US, 900), TIMES_MIN - 1, None, id="few"),
        pytest.param([("fast", 11, 25, 100)], (900, SLOW_US - 1, 9), 20, None, id="not so slow"),
        pytest.param(
            [("fast", 11, 25, 100)], (SLOW_US, 2 * SLOW_US, SLOW_US), 20, None, id="a busy machine"
        ),
        pytest.param(
            [("fast", 11, 25, 100)],
            (SLOW_US, 5 * SLOW_US, SLOW_US),
            20,
            1,
            id="and slower by itself",
        ),
        pytest.param([("no", 11, 25, 510)], (900, SLOW_US, 900), 20, None, id="no better"),
        pytest.param([("silent", 11, 25, 0)], (900, SLOW_US, 900), 20, None, id="says nothing"),
        pytest.param([("other", 21, 29, 100)], (900, SLOW_US, 900), 20, None, id="other layers"),
        pytest.param([], (900, SLOW_US, 900), 20, None, id="nobody"),
        pytest.param([("fast", 11, 25, 100)], (SLOW_US, SLOW_US), 20, None, id="another route"),
    ],
)
async def test_a_slow_stage_is_replaced_by_a_fast_one(
    others: list[tuple[str, int, int, int]],
    taken_us: tuple[int, ...],
    count: int,
    found: int | None,
    autojump_clock: MockClock,
) -> None:
    """If it is ten times slower than claimed over several tokens, and another is twice as fast."""
    await trio.lowlevel.checkpoint()
    made = replacements([offer(*each) for each in others], taken_us, count)
    index, hops = made.repair().better()
    if found is None:
        assert not hops
    else:
        assert index == found
        assert [(hop.peer, hop.first, hop.end) for hop in hops] == [(peer(others[0][0]), 11, 21)]
        assert PEERS[1] not in [hop.peer for hop in hops]


@pytest.mark.parametrize(("queued_rows", "stranger"), [(16, 64), (64, 0), (0, 0)])
async def test_a_route_is_as_busy_as_its_busiest_stage(
    queued_rows: int, stranger: int, autojump_clock: MockClock
) -> None:
    """A peer that is not on it does not count."""
    await trio.lowlevel.checkpoint()
    others = [evolve(offer("other", 11, 21), queued_rows=stranger)]
    made = replacements(others, (), 0)
    assert made.repair().rows_of_others(1) == 0
    made.route[1] = RouteHop(offer("late", 11, 21), 21)
    others.append(evolve(offer("late", 11, 21), queued_rows=queued_rows))
    made = replacements(others, (), 0)
    made.route[1] = RouteHop(offer("late", 11, 21), 21)
    assert made.repair().rows_of_others(1) == max(0, queued_rows - 1)


@pytest.mark.parametrize(
    ("most", "free", "queued_rows", "own", "rows"),
    [
        (0, 0, 0, 1, 0),
        (8, 8, 0, 1, 0),
        (8, 7, 0, 1, 0),
        (8, 3, 0, 1, 2),
        (8, 3, 9, 1, 8),
        (8, 3, 9, 9, 2),
    ],
)
def test_sessions_of_others_count_where_no_rows_are_told(
    most: int, free: int, queued_rows: int, own: int, rows: float
) -> None:
    """Two of them as one row; one's own is none of them."""
    told = evolve(
        offer("late", 11, 21), sessions_max=most, sessions_free=free, queued_rows=queued_rows
    )
    assert rows_of_others(told, own) == rows


@pytest.mark.parametrize(("numerics", "found"), [("0", "alike"), ("2", "fast")])
async def test_same_numerics_class_comes_first(
    numerics: str, found: str, autojump_clock: MockClock
) -> None:
    """However much slower it is; if there is none, other classes serve."""
    await trio.lowlevel.checkpoint()
    others = [offer("fast", 11, 25, 1, "1"), offer("alike", 11, 21, 5_000, numerics)]
    hops = (
        replacements(others, (), 0)
        .repair()
        .choose(LayerRange(11, 21), (PEERS[0], PEERS[2]), [peer("stage1")])
    )
    assert [hop.peer for hop in hops] == [peer(found)]
