"""Routes of those who draft: a quicker slowest stage may be worth a longer trip."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.advertisement import Advertisement, RoundTrip
from p2pinfer.core.limits import ROWS_IN_FLIGHT_MAX
from scheduler import routing
from scheduler.offer_table import STANDING_NEW, Experience
from scheduler.route_cost import FULL_S
from scheduler.routing import QUICKER_MIN, Asking, NoRoute, RouteHop, find_route
from tests.scheduler.test_routing import (
    END,
    EXACT,
    FIRST,
    ORDINARY,
    askings,
    every_route,
    price,
    swarms,
    work,
)
from tests.support.adverts import advert, peer_id

LAN = 2_000
"""Microseconds there and back."""


def risk(offer: Advertisement, seen: Experience) -> float:
    """Compute independently what a peer costs besides time."""
    standing = seen.standing.get(offer.peer, STANDING_NEW)
    full = bool(offer.sessions_max and not offer.sessions_free)
    return 0.02 * (1 / standing - 1) + FULL_S * full


def drafting_price(
    route: Sequence[RouteHop], swarm: Sequence[Advertisement], asking: Asking
) -> float:
    """Compute independently what a token costs, some of which set out while others are awaited."""
    seen, share = asking.seen, asking.drafted
    risks = [risk(each.offer, seen) for each in route]
    stages = [
        work(each.offer, each.end - each.first, swarm, seen) - at_risk
        for each, at_risk in zip(route, risks, strict=True)
    ]
    trip = price(route, swarm, asking) - sum(risks)
    drafted = trip / ROWS_IN_FLIGHT_MAX + max(stages)
    return sum(risks) + (1 - share) * trip + share * drafted


@settings(max_examples=200)
@given(swarms, askings, st.floats(0, 1))
def test_against_every_chain(swarm: list[Advertisement], asking: Asking, share: float) -> None:
    """No chain is cheaper by more than the steps in which slower stages are ruled out."""
    asking = evolve(asking, drafted=share)
    try:
        route = find_route(swarm, FIRST, END, asking)
    except NoRoute:
        return
    cheapest = min(drafting_price(each, swarm, asking) for each in every_route(swarm, asking))
    found = drafting_price(route, swarm, asking)
    assert cheapest * (1 - 1e-9) <= found <= cheapest / (1 - QUICKER_MIN) * (1 + 1e-9)


def chain(names: str, step: int, way_us: int, **fields: int) -> list[Advertisement]:
    """Return peers of ``step`` layers each, near each other and near the asker."""
    return [
        advert(
            name,
            1 + step * at,
            1 + step * (at + 1),
            **(ORDINARY | fields),
            links=tuple(RoundTrip(peer_id(other), way_us) for other in names if other != name),
        )
        for at, name in enumerate(names)
    ]


def test_many_quick_stages_beat_few_slow_ones_where_tokens_are_drafted() -> None:
    """The short chain has the shorter trip; with rows under way the long one makes more tokens."""
    short = chain("yz", 12, LAN, row_us=2_000)  # 2 stages of 24 ms
    long = chain("abcdefgh", 3, 4 * LAN, row_us=1_800)  # 8 of 5.4 ms, four times as far apart
    own = {a.peer: 0.004 for a in [*short, *long]}
    seen = Experience(round_trip_s=own, standing=dict.fromkeys(own, 1.0))
    asking = evolve(EXACT, seen=seen)
    swarm = [*short, *long]
    for share, best in ((0.0, short), (0.2, short), (0.7, long), (1.0, long)):
        route = find_route(swarm, 1, 25, evolve(asking, drafted=share))
        assert [each.offer for each in route] == best, share


def test_a_slow_stage_is_ruled_out_though_its_trip_is_the_shortest() -> None:
    """The layers of one slow peer go to two, whose trip is longer."""
    ends = chain("ab", 4, LAN)
    slow = advert("s", 9, 17, **ORDINARY)
    halves = [advert("t", 9, 13, **ORDINARY), advert("u", 13, 17, **ORDINARY)]
    own = {a.peer: 0.002 for a in [*ends, slow, *halves]}
    seen = Experience(round_trip_s=own, standing=dict.fromkeys(own, 1.0))
    asking = evolve(EXACT, seen=seen)
    for share, tail in ((0.0, [slow]), (0.8, halves)):
        route = find_route([*ends, slow, *halves], 1, 17, evolve(asking, drafted=share))
        assert [each.offer for each in route] == [*ends, *tail]


def test_a_risk_is_not_made_small_by_drafts() -> None:
    """Who may fail costs as much per token, however many tokens share a trip."""
    for share in (0.0, 0.5, 1.0):
        quick = advert("a", 1, 9, **ORDINARY)
        sound = advert("z", 1, 9, **(ORDINARY | {"row_us": 2_000}))
        seen = Experience(standing={quick.peer: 0.3, sound.peer: 0.9})
        route = find_route([quick, sound], 1, 9, evolve(EXACT, seen=seen, drafted=share))
        assert route[0].offer is sound, share


def test_searches_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each search finds a quicker chain, no more than a fixed number are made."""
    made = 0
    search = routing._Search._quickest

    def counted(*arguments: object) -> tuple[list[int], float]:
        nonlocal made
        made += 1
        return search(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(routing._Search, "_quickest", counted)
    # Each peer that is quicker is a little further away.
    swarm = [
        advert(f"p{n:02}", 1, 9, **(ORDINARY | {"row_us": 9_000 - 400 * n})) for n in range(20)
    ]
    own = {a.peer: 0.002 + 0.00322 * n for n, a in enumerate(swarm)}
    asking = evolve(EXACT, seen=Experience(round_trip_s=own), drafted=1.0)
    find_route(swarm, 1, 9, asking)
    assert 2 < made <= routing.SEARCHES_MAX
    made = 0
    find_route(swarm, 1, 9, evolve(asking, drafted=0.0))
    assert made == 1


def test_one_stage_needs_no_second_search_to_be_right() -> None:
    """A route of one peer is the same with drafts as without."""
    swarm = [advert("a", 1, 9, **ORDINARY), advert("b", 1, 9, **(ORDINARY | {"row_us": 1_500}))]
    plain = find_route(swarm, 1, 9, EXACT)
    assert find_route(swarm, 1, 9, evolve(EXACT, drafted=0.9)) == plain
    assert [a.offer.peer for a, _ in pairwise([*plain, *plain])] == [peer_id("a")]
