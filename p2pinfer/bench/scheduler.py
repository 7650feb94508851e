"""The cost of decisions in large swarms: which layers to serve, and which route to take.

A table is kept up to date advertisement by advertisement, so building it is timed separately from
the decisions. Read how times grow with the number of peers; absolute ones depend on the machine.
"""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from attrs import evolve

from p2pinfer.core.advertisement import LINKS_MAX, Advertisement, RoundTrip, State
from p2pinfer.core.ids import ModelId, PeerId
from p2pinfer.core.layer_range import LayerRange
from scheduler.offer_table import Experience, OfferTable
from scheduler.placement import choose
from scheduler.routing import Asking, NoRoute, find_route, replacement

LAYERS: Final = 80
"""Layers of a model of 70B weights; the requester runs the first and the last one."""

SPAN: Final = LayerRange(1, LAYERS - 1)
HELD_MAX = 30
ROUND_TRIPS = 50
"""How many peers' round trips a requester has measured."""

GOAL_MS: Final = 50.0
PEERS_MIN: Final = -(-len(SPAN) // HELD_MAX)
"""The fewest peers that hold all layers, one range after the other."""


async def scheduler_bench(
    rounds: int, placed: Sequence[int], routed: Sequence[int]
) -> dict[str, Any]:
    """Measure decisions, and return what ``p2pinfer bench scheduler`` prints.

    Args:
        rounds: decisions of each kind and size.
        placed: sizes of swarms in which a peer decides where to serve, each at least ``PEERS_MIN``.
        routed: sizes of swarms in which a requester looks for a route, the same.
    """
    chance = random.Random(0)  # noqa: S311 -- the same swarm each time
    offers = list(_swarm(max(*placed, *routed), chance))
    started = time.perf_counter()
    views = {count: OfferTable.of(offers[:count]) for count in {*placed, *routed}}
    put_us = (time.perf_counter() - started) * 1e6 / sum(map(len, views.values()))
    place = {count: _timed(rounds, _placing(views[count], offers[0])) for count in placed}
    join = {count: _timed(rounds, _placing(views[count], _newcomer(offers[0]))) for count in placed}
    ways = {count: _timed(rounds, _routing(views[count], offers[:count])) for count in routed}
    mend = {count: _mending(views[count]) for count in routed}
    again = {count: _timed(rounds, mend[count]) for count in routed}
    return {
        "layers": LAYERS,
        "rounds": rounds,
        "view_us_per_advertisement": round(put_us, 2),
        "place_ms": place,
        "join_ms": join,
        "route_ms": ways,
        "replacements_ms": again,
        "replaceable": {count: round(statistics.mean(mend[count](0.0)), 2) for count in routed},
        "goal_ms": GOAL_MS,
        "share_of_goal": {
            "place": round(place[max(placed)]["median"] / GOAL_MS, 2),
            "route": round(ways[max(routed)]["median"] / GOAL_MS, 2),
        },
    }


def _swarm(count: int, chance: random.Random) -> Iterator[Advertisement]:
    """Draw peers of many sizes and speeds, each with links to some others.

    The first ``PEERS_MIN`` hold all layers between them, so that every swarm has a route.
    """
    peers = [PeerId(f"12D3Koo{n:x>45}") for n in range(count)]
    for n, peer in enumerate(peers):
        size = chance.randint(1, HELD_MAX)
        first = chance.randint(SPAN.first - size, SPAN.end)  # so that the ends are no thinner
        first = min(max(first, SPAN.first), SPAN.end - size)
        if n < PEERS_MIN:
            first = SPAN.first + n * HELD_MAX
            size = min(HELD_MAX, SPAN.end - first)
        near = (peers[chance.randrange(min(count, n + 1000))] for _ in range(LINKS_MAX))
        yield Advertisement(
            peer=peer,
            addresses=(),
            model=ModelId("0" * 64),
            model_name="bench",
            layers=LAYERS,
            first=first,
            end=first + size,
            context=4096,
            numerics_class="0" * 32,
            sequence=0,
            layers_max=HELD_MAX,
            row_us=chance.randint(500, 5000),
            chunk_us=chance.randint(5_000, 50_000),
            sessions_max=8,
            sessions_free=chance.randint(0, 8),
            queued_rows=chance.randint(0, 40),
            links=tuple(RoundTrip(other, chance.randint(1_000, 200_000)) for other in near),
        )


def _newcomer(offer: Advertisement) -> Advertisement:
    return evolve(offer, state=State.JOINING, first=0, end=0)


def _placing(view: OfferTable, own: Advertisement) -> Callable[[float], object]:
    """Return a decision of a peer where to serve, late enough in a turn that it may move."""
    return lambda chance: choose(view, own, SPAN, now_s=45.0, chance=chance)


def _routing(view: OfferTable, offers: list[Advertisement]) -> Callable[[float], object]:
    """Return a search for a route by a requester that knows some round trips and standings."""
    some = {offer.peer: 0.001 * (n + 1) for n, offer in enumerate(offers[:ROUND_TRIPS])}
    seen = Experience(round_trip_s=some, standing=dict.fromkeys(some, 0.9))
    return lambda chance: find_route(view, SPAN.first, SPAN.end, Asking(seen=seen, chance=chance))


def _mending(view: OfferTable) -> Callable[[float], list[bool]]:
    """Return a search for a replacement of each hop of a route.

    A session can enter a stage only at its first layer, so in a small swarm many hops have no
    replacement; finding none is a decision too.
    """
    route = find_route(view, SPAN.first, SPAN.end)
    peers = [None, *(hop.peer for hop in route), None]
    others = frozenset(hop.peer for hop in route)

    def mend(chance: float) -> list[bool]:
        asking = Asking(chance=chance, without=others)
        found = []
        for at, hop in enumerate(route):
            chain, lost = [], LayerRange(hop.first, hop.end)
            with suppress(NoRoute):
                chain = replacement(view, lost, (peers[at], peers[at + 2]), asking)
            found.append(bool(chain))
        return found

    return mend


def _timed(rounds: int, decide: Callable[[float], object]) -> dict[str, float]:
    """Return the time of a decision in milliseconds, over some rounds; the first warms up."""
    times_ms = []
    for at in range(rounds + 1):
        started = time.perf_counter()
        decide(at / (rounds + 1))
        times_ms.append((time.perf_counter() - started) * 1000)
    times_ms = times_ms[1:]
    return {"median": round(statistics.median(times_ms), 2), "worst": round(max(times_ms), 2)}
