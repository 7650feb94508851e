"""Routes: the fewest peers whose layers join up, or what is missing."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduler.routing import NoRoute, find_route


@dataclass(frozen=True)
class Offered:
    """A peer's offer."""

    peer: str
    first: int
    end: int


FIRST, END = 1, 6
layers = st.integers(0, END + 1)
ranges = st.tuples(layers, layers).map(sorted) | st.tuples(layers, layers)
offers = st.lists(
    st.builds(lambda peer, ends: Offered(peer, *ends), st.sampled_from("abcdef"), ranges),
    max_size=14,
)


def shortest(offers: Sequence[Offered], at: int) -> int:
    """Try every chain from a layer on and return the fewest hops, or a lot."""
    if at == END:
        return 0
    onward = (o for o in offers if o.first == at < o.end <= END)
    return 1 + min((shortest(offers, o.end) for o in onward), default=1000)


@settings(max_examples=500)
@given(offers)
def test_against_every_chain(offers: list[Offered]) -> None:
    """The chain joins up from the first layer to the last, and no other one is shorter."""
    fewest = shortest(offers, FIRST)
    try:
        route = find_route(offers, FIRST, END)
    except NoRoute:
        assert fewest >= 1000
        return
    assert set(route) <= set(offers)
    assert (route[0].first, route[-1].end) == (FIRST, END)
    assert all(a.end == b.first for a, b in pairwise(route))
    assert len(route) == fewest


@settings(max_examples=200)
@given(offers, st.randoms(use_true_random=False))
def test_order_does_not_matter(offers: list[Offered], random: object) -> None:
    """The same offers give the same route in whatever order they were heard."""
    shuffled = offers.copy()
    random.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis types it as a Random
    routes = []
    for heard in (offers, shuffled):
        try:
            routes.append(find_route(heard, FIRST, END))
        except NoRoute as error:
            routes.append([Offered(str(error), 0, 0)])
    assert routes[0] == routes[1]


@settings(max_examples=200)
@given(offers)
def test_every_hole_is_named(offers: list[Offered]) -> None:
    """Layers that nobody serves within the range are named, and only those."""
    served = {n for o in offers if o.first >= FIRST and o.end <= END for n in range(o.first, o.end)}
    holes = [n for n in range(FIRST, END) if n not in served]
    if holes:
        with pytest.raises(NoRoute) as caught:
            find_route(offers, FIRST, END)
        text = str(caught.value).removeprefix("nobody serves layers ")
        named = [range(*map(int, part.split(":"))) for part in text.split(", ")]
        assert [n for part in named for n in part] == holes


def test_nothing_between_the_ends_needs_nobody() -> None:
    """A requester that runs the whole model asks no peer."""
    assert find_route([], 3, 3) == []


def test_the_text_says_what_is_missing() -> None:
    """A person reads which layers to serve, or how far the chain gets."""
    with pytest.raises(NoRoute, match=r"^nobody serves layers 1:2, 5:7$"):
        find_route([Offered("a", 2, 5)], 1, 7)
    with pytest.raises(NoRoute, match="do not join up: they reach layer 4 of 1:7"):
        find_route([Offered("a", 1, 4), Offered("b", 3, 7)], 1, 7)
