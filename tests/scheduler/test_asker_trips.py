"""How far the asker takes peers to be that it has never called."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from p2pinfer.core.advertisement import LINKS_MAX, Advertisement, RoundTrip
from p2pinfer.core.layer_range import LayerRange
from scheduler.offer_table import Experience, OfferTable
from scheduler.route_cost import ROUND_TRIP_S_DEFAULT, asker_trips, round_trips
from scheduler.routing import Asking, RouteHop, find_route, replacement
from tests.support.adverts import advert, peer_id

US_PER_S = 1e6
NAMES = "abcdefgh"
places = st.tuples(st.floats(0, 0.15), st.floats(0, 0.15))
links = st.sets(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=30)


def telling(name: str, **round_trip_ms: int) -> Advertisement:
    """Return an offer of a peer that tells how far some others are."""
    told = tuple(RoundTrip(peer_id(to), 1000 * ms) for to, ms in round_trip_ms.items())
    return advert(name, 1, 9, row_us=1000, links=told)


def most_ms(swarm: Sequence[Advertisement], **measured_ms: int) -> dict[str, int]:
    """Return how far each peer can be, given what the asker has measured."""
    seen = Experience({peer_id(name): ms / 1000 for name, ms in measured_ms.items()})
    found = asker_trips(OfferTable.of(swarm), seen).most_s
    return {a.peer: round(1000 * s) for a, s in zip(swarm, found.tolist(), strict=True)}


@given(
    st.dictionaries(st.sampled_from(NAMES), places), places, links, st.sets(st.sampled_from(NAMES))
)
def test_nobody_is_farther_than_honest_links_allow(
    at: dict[str, tuple[float, float]],
    here: tuple[float, float],
    told: set[tuple[str, str]],
    called: set[str],
) -> None:
    """In a world where the straight way is the shortest, no bound is below the truth."""
    swarm = []
    for name in sorted(at):
        others = [to for one, to in sorted(told) if one == name and to in at][:LINKS_MAX]
        far = {to: math.ceil(US_PER_S * math.dist(at[name], at[to])) or 1 for to in others}
        ways = tuple(RoundTrip(peer_id(to), us) for to, us in far.items())
        swarm.append(advert(name, 1, 9, links=ways))
    true_s = {peer_id(name): math.dist(here, place) for name, place in at.items()}
    measured = {peer_id(name): true_s[peer_id(name)] for name in called & at.keys()}
    trips = asker_trips(OfferTable.of(swarm), Experience(measured))
    for each, most_s in zip(swarm, trips.most_s.tolist(), strict=True):
        assert most_s == measured.get(each.peer, most_s)
        assert most_s >= min(true_s[each.peer], ROUND_TRIP_S_DEFAULT) - 1e-9


@pytest.mark.parametrize(
    ("swarm", "least_ms"),
    [
        ((telling("near", known=5), telling("known")), 15),
        ((telling("near"), telling("known", near=5)), 15),
        ((telling("near", known=5), telling("known", near=7)), 17),
        ((telling("near", known=50, other=20), telling("known"), telling("other")), 50),
        ((telling("near", known=195), telling("known")), 200),
        ((telling("near", stranger=5), telling("stranger"), telling("known")), 200),
        ((telling("near", gone=5), telling("known")), 200),
    ],
)
def test_a_link_to_one_that_was_called_tells(
    swarm: tuple[Advertisement, ...], least_ms: int
) -> None:
    """Either end may tell; where both do, the longer counts, and of several ways the shortest."""
    assert most_ms(swarm, known=10, other=30)[peer_id("near")] == least_ms


def test_what_was_measured_outranks_what_is_told() -> None:
    """A far peer that claims to be beside a near one stays far once it was called."""
    swarm = [telling("far", known=1), telling("known")]
    assert most_ms(swarm, known=10) == {peer_id("far"): 11, peer_id("known"): 10}
    assert most_ms(swarm, known=10, far=250) == {peer_id("far"): 250, peer_id("known"): 10}


def test_how_far_peers_can_be_refutes_no_link() -> None:
    """Two may be neighbours though the one can only be near, and the other may be far."""
    swarm = [
        telling("a", known=5, b=1),
        telling("b", distant=1),
        *map(telling, ("known", "distant")),
    ]
    seen = Experience({peer_id("known"): 0.01, peer_id("distant"): 0.15})
    view = OfferTable.of(swarm)
    trips = asker_trips(view, seen)
    found = round_trips(view, peer_id("b"), trips, np.zeros(len(view)), arrives=True)
    assert found[view.row_of(peer_id("a"))] == pytest.approx(0.001)


def test_a_route_begins_near_the_asker() -> None:
    """Of two that were never called, the one is taken that cannot be far; as a replacement too."""
    known = evolve(telling("known"), first=20, end=30)
    near, far = telling("z", known=5), telling("a", known=150)
    for swarm in ([near, far, known], [far, known, near]):
        asking = Asking(seen=Experience({known.peer: 0.01}), spread=0.0)
        assert find_route(swarm, 1, 9, asking) == [RouteHop(near, 9)]
        assert replacement(swarm, LayerRange(1, 9), (None, None), asking) == [RouteHop(near, 9)]
