"""Which chain of peers to take from the first layer that is needed to the last.

A stage can be entered only at the first layer that it holds, and left after any. So a chain is a
sequence of peers whose first layers rise, each one's within the range of the one before or right
after it; each runs its layers up to where the next one begins. So wherever ranges that begin no
earlier than the route cover all of its layers, there is a chain. Its price is the time of one token
in seconds; the cheapest is found layer by layer, since at a layer only the cheapest ways to have
run all layers before it count.

Where tokens are drafted, the slowest stage has a price too. Then the search is repeated with slower
and slower stages ruled out, as long as that can pay: each time with a longer trip, and a quicker
slowest stage.
"""

from collections.abc import Collection, Iterable

import numpy as np
from attrs import evolve, frozen

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from scheduler.offer_table import (
    NOTHING_SEEN,
    STANDING_NEW,
    Experience,
    Flags,
    Floats,
    OfferTable,
    Whole,
)
from scheduler.route_cost import (
    ROUND_TRIP_S_DEFAULT,
    AskerTrips,
    Prices,
    RouteLinks,
    asker_trips,
    known_ways,
    prices,
    relay_detours,
    round_trips,
    token_s,
    trip_share,
)

SPREAD = 0.2
"""Peers' prices are raised by up to this share at random: among near equals each asker picks
another, and no peer is crowded because all see the same cheapest."""

QUICKER_MIN = 0.05
"""Each search rules out stages down to this share below the slowest of the one before."""

SEARCHES_MAX = 16
"""For one route: the slowest stage is then half as slow as in the first one."""


class NoRoute(LookupError):
    """No chain of offers joins up; the text says what is missing."""


@frozen
class RouteHop:
    """A peer of a route, and which of its layers it runs: from its first on, not always all."""

    offer: Advertisement
    end: int
    """The end (exclusive) of the layers that it is to run."""

    @property
    def peer(self) -> PeerId:
        """The peer that runs them."""
        return self.offer.peer

    @property
    def addresses(self) -> tuple[str, ...]:
        """The addresses at which it is reached."""
        return self.offer.addresses

    @property
    def first(self) -> int:
        """The first layer that it runs."""
        return self.offer.first

    @property
    def context(self) -> int:
        """Positions that it can hold in a session."""
        return self.offer.context


@frozen
class Asking:
    """What a route is wanted for, and what the asker contributes."""

    context: int = 1
    """Positions that the session needs; peers with fewer are left out."""
    seen: Experience = NOTHING_SEEN
    without: Collection[PeerId] = ()
    chance: float = 0.0
    """Drawn by the caller, from 0 to 1: decides among near equals."""
    spread: float = SPREAD
    hidden: bool = True
    """Others cannot dial the asker, or it is not known: it may need a relay to a hidden peer."""
    row_bytes: int = 0
    """Of one token's row, which takes its time through a relay; 0 counts none."""
    drafted: float = 0.0
    """Share of the tokens whose rows set out before the token before them is drawn."""


ANY = Asking()


def find_route(
    offers: Iterable[Advertisement] | OfferTable, first: int, end: int, asking: Asking = ANY
) -> list[RouteHop]:
    """Return the cheapest chain of peers that runs the layers from ``first`` to ``end``.

    The same offers, in any order, and the same chance give the same route.

    Raises:
        NoRoute: no offers join up.
    """
    view = OfferTable.of(offers)
    trips, detour_s = asker_trips(view, asking.seen), relay_detours(view, asking.row_bytes)
    ends_s = trips.assumed_s(detour_s, hidden=asking.hidden)
    return _cheapest(view, LayerRange(first, end), asking, trips, (ends_s, ends_s))


def replacement(
    offers: Iterable[Advertisement] | OfferTable,
    layers: LayerRange,
    between: tuple[PeerId | None, PeerId | None],
    asking: Asking = ANY,
) -> list[RouteHop]:
    """Return the cheapest peers to run a hop's layers between two others, which stay as they are.

    ``between`` names the previous and the next peer; None stands for the asker.

    Raises:
        NoRoute: no offers join up.
    """
    view = OfferTable.of(offers)
    trips, detour_s = asker_trips(view, asking.seen), relay_detours(view, asking.row_bytes)
    ends = [
        trips.assumed_s(detour_s, hidden=asking.hidden)
        if peer is None
        else round_trips(view, peer, trips, detour_s, arrives=arrives)
        for peer, arrives in zip(between, (False, True), strict=True)
    ]
    without = {*asking.without, *(peer for peer in between if peer is not None)}
    return _cheapest(view, layers, evolve(asking, without=without), trips, (ends[0], ends[1]))


def _cheapest(
    view: OfferTable,
    layers: LayerRange,
    asking: Asking,
    trips: AskerTrips,
    ends: tuple[Floats, Floats],
) -> list[RouteHop]:
    """Find the cheapest chain; ``ends`` are the round trips to each row as the first and last."""
    if not layers:
        return []
    rows = np.flatnonzero(_usable(view, layers, asking))
    rows = rows[np.lexsort((view.column("key")[rows], view.column("first")[rows]))]
    first = view.column("first")[rows]
    end = np.minimum(view.column("end")[rows], layers.end)
    if missing := _holes(first, end, layers):
        raise NoRoute(_words(view, missing, layers, asking))
    trips = trips.of(rows)
    price = prices(view, asking.seen, asking.chance, asking.spread).of(rows)
    detour_s = relay_detours(view, asking.row_bytes)[rows]
    ways = known_ways(view, rows, trips, detour_s)
    search = _Search(first, end, price, trips.most_s, ways, detour_s, trip_share(asking.drafted))
    chain = search.best(layers.end, ends[0][rows] / 2, ends[1][rows] / 2, asking.drafted)
    stops = [*(int(first[at]) for at in chain[1:]), layers.end]
    offers = (view.advertisement(int(rows[at])) for at in chain)
    return [RouteHop(offer, stop) for offer, stop in zip(offers, stops, strict=True)]


def _usable(view: OfferTable, layers: LayerRange, asking: Asking) -> Flags:
    """Return which rows may be part of a chain."""
    first, end = view.column("first"), view.column("end")
    usable: Flags = view.is_state(State.SERVING) & (layers.first <= first) & (first < layers.end)
    usable &= (first < end) & (view.column("context") >= asking.context)
    usable &= view.fill(asking.seen.standing, STANDING_NEW) > 0
    for peer in asking.without:
        row = view.row_of(peer)
        if row is not None:
            usable[row] = False
    return usable


@frozen
class _Search:
    """Rows in the order of their first layers, and what is known of them."""

    first: Whole
    end: Whole
    price: Prices
    most_s: Floats
    """That the round trip from the asker takes."""
    ways: RouteLinks
    detour_s: Floats
    """What a hidden peer's rows take longer to each row, one way; 0 where it is no hidden one."""
    trip_share: float = 1.0
    """That a token takes of a trip; risks count in full."""

    def best(self, end: int, entry_s: Floats, exit_s: Floats, drafted: float) -> list[int]:
        """Return the cheapest chain of rows; there is one, since no layer is missing."""
        found: list[int] = []
        least_s = below_s = np.inf
        for _ in range(SEARCHES_MAX):
            chain, trip_s = self._quickest(end, entry_s, exit_s, below_s)
            if found and self.trip_share * trip_s >= least_s:  # and so are all behind it
                break
            slowest_s = self._slowest_s(chain, end)
            price_s = token_s(trip_s, slowest_s, drafted)
            if price_s < least_s:
                found, least_s = chain, price_s
            if not drafted:
                break
            below_s = (1 - QUICKER_MIN) * slowest_s
        return found

    def _slowest_s(self, chain: list[int], end: int) -> float:
        """Return for how long a row keeps the slowest stage of a chain to itself."""
        stops = np.array([*self.first[chain[1:]], end])
        return float(self.price.of(np.array(chain)).stage_s(stops - self.first[chain]).max())

    def _quickest(
        self, end: int, entry_s: Floats, exit_s: Floats, below_s: float
    ) -> tuple[list[int], float]:
        """Return the chain with the least trip, risks included, and that trip in seconds.

        Where no chain has all of its stages quicker than ``below_s``, the trip is infinite.
        """
        begins = np.unique(self.first)
        arrived_s = np.where(self.first == begins[0], entry_s, np.inf)
        before = np.full(len(self.first), -1)
        over_s = self.most_s / 2
        for layer in begins[1:]:
            some = slice(*np.searchsorted(self.first, (layer, layer + 1)))
            left_s = self._left(arrived_s, int(layer), some.start, below_s)
            anyhow, far_s = self._cheapest_before(left_s, some)
            near, near_s = self._cheapest_before(left_s + over_s[: some.start], some)
            far_s = far_s + ROUND_TRIP_S_DEFAULT / 2
            near_s = near_s + over_s[some]
            arrived_s[some] = np.minimum(far_s, near_s)
            before[some] = np.where(near_s < far_s, near, anyhow)
            self._take_known_ways(arrived_s, before, left_s, some)
        back_s = self._left(arrived_s, end, len(self.first), below_s) + exit_s
        chain = [int(back_s.argmin())]
        while before[chain[-1]] >= 0:
            chain.append(int(before[chain[-1]]))
        return chain[::-1], float(back_s.min())

    def _cheapest_before(self, left_s: Floats, some: slice) -> tuple[Whole, Floats]:
        """Return from where each of some rows is reached at the least price, and that price.

        Between two hidden peers there may be a relay, whose price belongs to who receives.
        """
        best = int(left_s.argmin())
        found, price_s = np.full(some.stop - some.start, best), left_s[best] + self.detour_s[some]
        if not self.detour_s[best]:
            return found, np.full(len(found), left_s[best])
        straight_s = np.where(self.detour_s[: some.start] > 0, np.inf, left_s)
        other = int(straight_s.argmin())
        return (
            np.where(price_s <= straight_s[other], found, other),
            np.minimum(price_s, straight_s[other]),
        )

    def _left(self, arrived_s: Floats, layer: int, count: int, below_s: float) -> Floats:
        """Return the price to have run all before a layer, by which row ran the last of them."""
        price = self.price.of(slice(count))
        stage_s = price.stage_s(layer - self.first[:count])
        left_s = arrived_s[:count] + stage_s + price.risk_s / self.trip_share
        left_s[(self.end[:count] < layer) | (stage_s >= below_s)] = np.inf
        return left_s

    def _take_known_ways(
        self, arrived_s: Floats, before: Whole, left_s: Floats, some: slice
    ) -> None:
        """Let rows be reached over known ways where those are cheaper."""
        these = slice(*np.searchsorted(self.ways.target, (some.start, some.stop)))
        source, target = self.ways.source[these], self.ways.target[these]
        through_s = left_s[source] + self.ways.round_trip_s[these] / 2
        np.minimum.at(arrived_s, target, through_s)
        best = (through_s == arrived_s[target]) & np.isfinite(through_s)
        before[target[best]] = source[best]


def _holes(first: Whole, end: Whole, layers: LayerRange) -> list[LayerRange]:
    """Return the ranges of layers that no row holds."""
    held = np.zeros(len(layers) + 1, np.int64)
    np.add.at(held, first - layers.first, 1)
    np.add.at(held, end - layers.first, -1)
    return LayerRange.joined(
        int(layers.first + at) for at in np.flatnonzero(held.cumsum()[:-1] == 0)
    )


def begins(
    offers: Iterable[Advertisement] | OfferTable, end: int, asking: Asking = ANY
) -> list[int]:
    """Return the layers, in order, at which a chain to ``end`` can begin.

    A requester that keeps the first layers to itself picks one of these as their number.
    """
    view = OfferTable.of(offers)
    usable = _usable(view, LayerRange(0, end), asking)
    longest = np.zeros(end, np.int64)  # by first layer
    np.maximum.at(longest, view.column("first")[usable], view.column("end")[usable])
    found = [end]
    for layer in np.flatnonzero(longest)[::-1]:
        if found[-1] <= longest[layer]:
            found.append(int(layer))
    return found[:0:-1]


def _words(view: OfferTable, missing: list[LayerRange], layers: LayerRange, asking: Asking) -> str:
    """Say which layers no peer serves, and where a chain to the same end begins instead."""
    words = "nobody serves layers " + ", ".join(map(str, missing))
    later = [layer for layer in begins(view, layers.end, asking) if layer > layers.first]
    return f"{words}; a chain to {layers.end} begins at layer {later[0]}" if later else words
