"""Routes: the cheapest peers whose layers join up, or what is missing."""

import random
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise, permutations
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pinfer.core.advertisement import LINKS_MAX, Advertisement, RoundTrip, State
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from scheduler.offer_table import CHUNK_ROWS, LIE_FACTOR, STANDING_NEW, Experience, OfferTable
from scheduler.route_cost import (
    FULL_S,
    HOP_S,
    RELAY_BYTES_PER_S,
    RELAY_ROUND_TRIP_S_DEFAULT,
    RELAYED_SHARE,
    ROUND_TRIP_S_DEFAULT,
)
from scheduler.routing import Asking, NoRoute, RouteHop, begins, find_route, replacement
from tests.support.adverts import advert, peer_id, through

FIRST, END = 1, 6
NAMES = "abcdef"
ORDINARY = {"row_us": 1000, "chunk_us": 32000, "sessions_max": 4, "sessions_free": 4}
EXACT = Asking(spread=0.0)


def hop(offer: Advertisement, end: int) -> RouteHop:
    """Shorten."""
    return RouteHop(offer, end)


layers = st.integers(0, END + 1)
links = st.dictionaries(st.sampled_from(NAMES), st.integers(1, 300_000), max_size=LINKS_MAX).map(
    lambda known: tuple(RoundTrip(peer_id(name), us) for name, us in sorted(known.items()))
)
ways = st.just(("/memory/0",)) | st.lists(
    st.sampled_from(NAMES).map(through), min_size=1, max_size=3
).map(tuple)
adverts = st.builds(
    lambda ends, state, row_us, chunk_us, queued, free, context, links, ways: {
        "first": min(ends),
        "end": max(ends),
        "state": state,
        "row_us": row_us,
        "chunk_us": chunk_us,
        "queued_rows": queued,
        "sessions_max": 4,
        "sessions_free": free,
        "context": context,
        "links": links,
        "addresses": ways,
    },
    st.tuples(layers, layers),
    st.sampled_from([State.SERVING, State.SERVING, State.SERVING, *State]),
    st.integers(0, 5000) | st.just(1000),
    st.integers(0, 100_000),
    st.integers(0, 20),
    st.integers(0, 4),
    st.sampled_from([10, 100]),
    links,
    ways,
)
swarms = st.dictionaries(st.sampled_from(NAMES), adverts, max_size=6).map(
    lambda told: [advert(name, **fields) for name, fields in told.items()]
)
peers = st.sampled_from([peer_id(name) for name in NAMES])
experiences = st.builds(
    Experience,
    st.dictionaries(peers, st.floats(0.0001, 0.3)),
    st.dictionaries(peers, st.floats(0.01, 1) | st.just(0.0)),
    st.dictionaries(peers, st.floats(1, 10_000)),
)
askings = st.builds(
    Asking,
    st.sampled_from([1, 50]),
    experiences,
    st.sets(peers, max_size=2),
    st.just(0.0),
    st.just(0.0),
    st.booleans(),
    st.sampled_from([0, 8192]),
)


def detour(to: Advertisement, row_bytes: int) -> float:
    """Compute independently what a hidden peer's rows take longer to a peer, one way."""
    if not all("/p2p-circuit/" in address for address in to.addresses):
        return 0.0
    near = [
        link.round_trip_us / 1e6
        for link in to.links
        if any(f"/p2p/{link.peer}/p2p-circuit/" in address for address in to.addresses)
    ]
    leg = min([*near, ROUND_TRIP_S_DEFAULT]) if near else RELAY_ROUND_TRIP_S_DEFAULT
    return RELAYED_SHARE * (leg / 2 + row_bytes / RELAY_BYTES_PER_S)


def told(a: Advertisement, b: Advertisement) -> list[float]:
    """Return the round trips between two peers that these state."""
    claims = [link.round_trip_us / 1e6 for link in a.links if link.peer == b.peer]
    return claims + [link.round_trip_us / 1e6 for link in b.links if link.peer == a.peer]


def most(a: Advertisement, swarm: Sequence[Advertisement], own: dict[PeerId, float]) -> float:
    """Compute independently how long the asker's round trip to a peer can be."""
    if a.peer in own:
        return own[a.peer]
    over = [own[b.peer] + max(told(a, b)) for b in swarm if b.peer in own and told(a, b)]
    return min([ROUND_TRIP_S_DEFAULT, *over])


def round_trip(
    a: Advertisement,
    b: Advertisement,
    swarm: Sequence[Advertisement],
    own: dict[PeerId, float],
    row_bytes: int,
) -> float:
    """Compute independently what a round trip is taken for, of rows from the one to the other."""
    claims = told(a, b)
    least = abs(own[a.peer] - own[b.peer]) if a.peer in own and b.peer in own else 0.0
    bound = min(most(a, swarm, own) + most(b, swarm, own), ROUND_TRIP_S_DEFAULT)
    if detour(a, row_bytes):  # both must be hidden, or the other one calls back
        bound += 2 * detour(b, row_bytes)
    return min(max(least, *claims), bound) if claims else bound


def work(a: Advertisement, count: int, swarm: Sequence[Advertisement], seen: Experience) -> float:
    """Compute independently what a peer's work on ``count`` layers costs."""
    said = sorted(b.row_us for b in swarm if b.row_us)
    middle = len(said) // 2
    median = (said[middle] + said[-middle - 1]) / 2 if said else 1000
    claimed = max(a.row_us, median / 10) if a.row_us else 0
    row_us = claimed or max(median, 1000)
    if seen.row_us.get(a.peer, 0) > LIE_FACTOR * claimed:
        row_us = seen.row_us[a.peer]
    batched_us = min(max(a.chunk_us or row_us * CHUNK_ROWS, row_us) / CHUNK_ROWS, row_us)
    standing = seen.standing.get(a.peer, STANDING_NEW)
    full_s = FULL_S if a.sessions_max and not a.sessions_free else 0
    queued_s = a.queued_rows * batched_us * (a.end - a.first) / 1e6
    return HOP_S + full_s + queued_s + 0.02 * (1 / standing - 1) + row_us * count / 1e6


def price(route: Sequence[RouteHop], swarm: Sequence[Advertisement], asking: Asking) -> float:
    """Compute independently what a route costs."""
    own, size = dict(asking.seen.round_trip_s), asking.row_bytes
    total = sum(work(h.offer, h.end - h.first, swarm, asking.seen) for h in route)
    total += sum(round_trip(a.offer, b.offer, swarm, own, size) for a, b in pairwise(route)) / 2
    for end in (route[0], route[-1]):
        unknown = most(end.offer, swarm, own) + 2 * detour(end.offer, size) * asking.hidden
        total += own.get(end.peer, unknown) / 2
    return total


def every_route(swarm: Sequence[Advertisement], asking: Asking) -> list[list[RouteHop]]:
    """Try every order of every few peers."""
    standing = asking.seen.standing
    usable = [
        a
        for a in swarm
        if a.state is State.SERVING
        and a.context >= asking.context
        and a.peer not in asking.without
        and standing.get(a.peer, 1) > 0
    ]
    found = []
    for count in range(1, len(usable) + 1):
        for chain in permutations(usable, count):
            joins = all(a.first < b.first <= a.end for a, b in pairwise(chain))
            if joins and chain[0].first == FIRST and chain[-1].first < END <= chain[-1].end:
                stops = [*(a.first for a in chain[1:]), END]
                found.append([hop(a, stop) for a, stop in zip(chain, stops, strict=True)])
    return found


@settings(max_examples=400)
@given(swarms, askings)
def test_against_every_chain(swarm: list[Advertisement], asking: Asking) -> None:
    """The chain joins up from the first layer to the last, and no other one is cheaper."""
    every = every_route(swarm, asking)
    try:
        route = find_route(swarm, FIRST, END, asking)
    except NoRoute:
        assert every == []
        return
    assert route in every
    cheapest = min(price(each, swarm, asking) for each in every)
    assert price(route, swarm, asking) == pytest.approx(cheapest, rel=1e-9)


@settings(max_examples=200)
@given(swarms, adverts, askings)
def test_who_comes_in_raises_no_price(
    swarm: list[Advertisement], fields: dict[str, Any], asking: Asking
) -> None:
    """One more peer, hidden or not, makes no route dearer: at worst nobody takes it."""
    # Without a speed of its own, it leaves the median, and so what others are believed to be.
    newcomer = advert("z", **(fields | {"row_us": 0, "links": ()}))
    try:
        before = find_route(swarm, FIRST, END, asking)
    except NoRoute:
        return
    after = find_route([*swarm, newcomer], FIRST, END, asking)
    both = [*swarm, newcomer]
    assert price(after, both, asking) <= price(before, both, asking) * (1 + 1e-9)


@settings(max_examples=200)
@given(swarms, askings)
def test_to_be_open_raises_no_price(swarm: list[Advertisement], asking: Asking) -> None:
    """A hidden peer whose port is forwarded makes no route dearer."""
    try:
        before = find_route(swarm, FIRST, END, asking)
    except NoRoute:
        return
    for hidden in [a for a in swarm if detour(a, 0)]:
        opened = [evolve(a, addresses=("/memory/0",)) if a is hidden else a for a in swarm]
        after = find_route(opened, FIRST, END, asking)
        assert price(after, opened, asking) <= price(before, swarm, asking) * (1 + 1e-9)


@settings(max_examples=200)
@given(swarms, askings, st.floats(0, 1), st.randoms(use_true_random=False))
def test_order_does_not_matter(
    swarm: list[Advertisement], asking: Asking, chance: float, shuffle: random.Random
) -> None:
    """The same offers give the same route in any order."""
    asking = Asking(asking.context, asking.seen, asking.without, chance)
    shuffled = swarm.copy()
    shuffle.shuffle(shuffled)
    found = []
    for heard in (swarm, shuffled):
        try:
            found.append((find_route(heard, FIRST, END, asking), ""))
        except NoRoute as error:
            found.append(([], str(error)))
    assert found[0] == found[1]


@settings(max_examples=200)
@given(swarms)
def test_every_hole_is_named(swarm: list[Advertisement]) -> None:
    """There is no chain exactly where layers are in no usable range, and those are named."""
    usable = [a for a in swarm if a.state is State.SERVING and a.first >= FIRST]
    held = {layer for a in usable for layer in range(a.first, a.end)}
    holes = [layer for layer in range(FIRST, END) if layer not in held]
    if not holes:
        find_route(swarm, FIRST, END)
        return
    with pytest.raises(NoRoute) as caught:
        find_route(swarm, FIRST, END)
    text = str(caught.value).removeprefix("nobody serves layers ").partition(";")[0]
    named = [range(*map(int, part.split(":"))) for part in text.split(", ")]
    assert [layer for part in named for layer in part] == holes


@settings(max_examples=200)
@given(swarms)
def test_where_chains_begin(swarm: list[Advertisement]) -> None:
    """A chain begins at these layers, and at no others."""
    found = []
    for first in range(END):
        try:
            find_route(swarm, first, END)
        except NoRoute:
            continue
        found.append(first)
    assert begins(swarm, END) == found


def test_no_layers_between_the_ends_need_no_peer() -> None:
    """A requester that runs the whole model asks no peer."""
    assert find_route([], 3, 3) == []


def test_the_text_says_what_is_missing() -> None:
    """A person reads which layers to serve, and how many to keep for there to be a chain."""
    with pytest.raises(NoRoute, match=r"^nobody serves layers 1:2, 5:7$"):
        find_route([advert("a", 2, 5)], 1, 7)
    with pytest.raises(NoRoute, match=r"^nobody serves layers 1:3; .* 7 begins at layer 3$"):
        find_route([advert("a", 0, 5), advert("b", 3, 7)], 1, 7)


def test_a_hop_ends_where_the_next_begins() -> None:
    """Ranges that overlap join up, and the last one stops at the route's end."""
    swarm = [advert("a", 1, 20, **ORDINARY), advert("b", 12, 30, **ORDINARY)]
    assert find_route(swarm, 1, 28) == [hop(swarm[0], 12), hop(swarm[1], 28)]


def test_each_figure_steers() -> None:
    """Of two peers that differ in one figure, the one that it favours is taken."""
    good = advert("z", 1, 9, **ORDINARY)
    for worse in (
        {"row_us": 2000},
        {"queued_rows": 50},
        {"sessions_free": 0},
        {"context": 8},
        {"state": State.DRAINING},
    ):
        swarm = [advert("a", 1, 9, **(ORDINARY | worse)), good]
        assert find_route(swarm, 1, 9, Asking(context=9, spread=0.0)) == [hop(good, 9)], worse
    bad = advert("a", 1, 9, **ORDINARY)
    for seen in (
        Experience(standing={bad.peer: 0.3}),
        Experience(row_us={bad.peer: 3000.0}),
        Experience(round_trip_s={good.peer: 0.01}),
        Experience(sessions={bad.peer: 1}),
    ):
        assert find_route([bad, good], 1, 9, Asking(seen=seen, spread=0.0)) == [hop(good, 9)]


def test_own_sessions_take_places_before_their_peer_says_so() -> None:
    """A far peer with room is better than a near one that this node has filled itself."""
    near = advert("a", 1, 9, **(ORDINARY | {"sessions_max": 4, "sessions_free": 4}))
    far = advert("z", 1, 9, **(ORDINARY | {"sessions_max": 4, "sessions_free": 1}))
    for count, best in ((0, near), (3, near), (4, far)):
        seen = Experience(round_trip_s={near.peer: 0.01}, sessions={near.peer: count})
        assert find_route([near, far], 1, 9, Asking(seen=seen, spread=0.0)) == [hop(best, 9)]


def test_a_full_peer_or_a_slow_way_is_better_than_none() -> None:
    """What is nearly unusable is used if there is nothing else; a proven cheat never is."""
    full = advert("a", 1, 9, **(ORDINARY | {"sessions_free": 0}))
    assert find_route([full], 1, 9) == [hop(full, 9)]
    with pytest.raises(NoRoute):
        find_route([full], 1, 9, Asking(seen=Experience(standing={full.peer: 0.0})))


def test_requesters_do_not_herd() -> None:
    """Each near equal is taken by some requester, and one that is twice as slow by none."""
    swarm = [advert(name, 1, 9, **ORDINARY) for name in "abcd"]
    swarm.append(advert("slow", 1, 9, **(ORDINARY | {"row_us": 2000})))
    taken = Counter(find_route(swarm, 1, 9, Asking(chance=n / 400))[0].peer for n in range(400))
    assert min(taken[a.peer] for a in swarm[:4]) > 60
    assert taken[swarm[4].peer] == 0


def test_a_replacement_lies_near_those_that_stay() -> None:
    """Recovery takes the peer with the shortest links to the neighbours of the one that is gone."""
    before = advert("a", 1, 5, **ORDINARY, links=(RoundTrip(peer_id("near"), 1000),))
    gone = advert("b", 5, 9, **ORDINARY)
    near = advert("near", 5, 12, **ORDINARY, links=(RoundTrip(peer_id("c"), 1000),))
    far = advert("far", 5, 9, **ORDINARY, links=(RoundTrip(peer_id("c"), 90_000),))
    behind = advert("c", 9, 12, **ORDINARY)
    swarm = [before, gone, far, near, behind]
    asking = Asking(without={gone.peer}, spread=0.0)
    found = replacement(swarm, LayerRange(5, 9), (before.peer, behind.peer), asking)
    assert found == [hop(near, 9)]


def test_a_replacement_may_take_several() -> None:
    """Where no single peer holds all layers of the hop, several do."""
    swarm = [advert("a", 1, 9), advert("b", 1, 5), advert("c", 4, 9), advert("d", 9, 12)]
    asking = evolve(EXACT, without={swarm[0].peer})
    found = replacement(swarm, LayerRange(1, 9), (None, swarm[3].peer), asking)
    assert found == [hop(swarm[1], 4), hop(swarm[2], 9)]


@pytest.mark.parametrize("far_us", [90_000, 0])
def test_a_relay_has_its_price_and_a_call_back_has_none(far_us: int) -> None:
    """Of two peers behind a hidden one the open one is taken; a near relay costs less."""
    far = (RoundTrip(peer_id("r"), far_us),) if far_us else ()
    near = (RoundTrip(peer_id("r"), 1000),)
    first = advert("a", 1, 5, **ORDINARY, addresses=(through("r"),))
    hidden = advert("b", 5, 9, **ORDINARY, addresses=(through("r"),), links=far)
    nearer = evolve(hidden, peer=peer_id("c"), links=near)
    slower = advert("d", 5, 9, **(ORDINARY | {"row_us": 1100}), addresses=("/memory/0",))
    behind = advert("e", 9, 12, **ORDINARY, addresses=("/memory/0",))
    open_first = evolve(first, addresses=("/memory/0",))
    for begin, middle, best in (
        (first, (hidden, nearer), nearer),
        (first, (hidden, slower), slower),
        (open_first, (hidden, slower), hidden),
    ):
        assert find_route([begin, *middle, behind], 1, 12, EXACT)[1].offer is best
    for asker, best in ((EXACT, slower), (evolve(EXACT, hidden=False), hidden)):
        assert find_route([hidden, slower], 5, 9, asker)[0].offer is best


def test_a_measured_way_costs_what_was_measured() -> None:
    """Two hidden peers that have punched a hole are as near as their pings say, relay or not."""
    first = advert("a", 1, 5, **ORDINARY, addresses=(through("r"),))
    punched = advert(
        "b", 5, 9, **ORDINARY, addresses=(through("r"),), links=(RoundTrip(first.peer, 9000),)
    )
    open_ = advert("d", 5, 9, **ORDINARY, addresses=("/memory/0",))
    asking = evolve(EXACT, hidden=False)
    assert find_route([first, punched, open_], 1, 9, asking)[1].offer is punched


def test_a_replacement_pays_for_its_relays() -> None:
    """Between two hidden peers an open one is taken rather than a hidden one that is as good."""
    before = advert("a", 1, 5, **ORDINARY, addresses=(through("r"),))
    behind = advert("c", 9, 12, **ORDINARY, addresses=(through("r"),))
    hidden = advert("h", 5, 9, **ORDINARY, addresses=(through("r"),))
    open_ = advert("o", 5, 9, **(ORDINARY | {"row_us": 1100}), addresses=("/memory/0",))
    swarm, gap = [before, hidden, open_, behind], LayerRange(5, 9)
    assert replacement(swarm, gap, (before.peer, behind.peer), EXACT) == [hop(open_, 9)]
    open_ends = [evolve(a, addresses=("/memory/0",)) for a in (before, behind)]
    swarm = [open_ends[0], hidden, open_, open_ends[1]]
    assert replacement(swarm, gap, (before.peer, behind.peer), EXACT) == [hop(hidden, 9)]


def test_absurd_claims_are_harmless() -> None:
    """Huge figures, odd ranges and impossible speeds neither raise nor attract for long."""
    honest = [advert(name, 1, 9, **ORDINARY) for name in "abc"]
    worst = dict.fromkeys(("row_us", "chunk_us"), 60_000_000)
    hostile = [
        advert("h", 1, 1024, **worst, queued_rows=1 << 20),
        advert("i", 1024, 0),
        advert("j", 9, 1),
        advert("k", 1, 9, row_us=1, links=tuple(RoundTrip(peer_id("k"), 1) for _ in range(8))),
    ]
    route = find_route(OfferTable.of([*honest, *hostile]), 1, 9, EXACT)
    assert route == [hop(hostile[3], 9)]  # believed, at a tenth of the others, until observed
    seen = Experience(row_us={hostile[3].peer: 1500.0})
    assert find_route([*honest, *hostile], 1, 9, Asking(seen=seen))[0].offer in honest
