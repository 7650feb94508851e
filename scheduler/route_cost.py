"""What a route over the rows of a table costs, in seconds per token: work, and links between.

Without drafts each token is one trip along the route. With them a share of the tokens is under way
before the one before it is drawn: those follow each other as fast as the slowest stage lets them
through, and as fast as trips end of which a few are under way at once. So a route of many quick
stages may be worth its longer trip. See ``peers.asking.drafts``.
"""

import numpy as np
from attrs import frozen

from p2pinfer.core.ids import PeerId
from p2pinfer.core.limits import ROWS_IN_FLIGHT_MAX
from scheduler.offer_table import (
    STANDING_NEW,
    US_PER_S,
    Experience,
    Flags,
    Floats,
    OfferTable,
    Whole,
    batched_row_us,
    believed_row_us,
    peer_key,
)

ROUND_TRIP_S_DEFAULT = 0.2
"""Assumed between peers if not measured: the far side of the world. Also the most that any round
trip counts as: an unknown one may be as bad."""

HOP_S = 0.0005
"""The cost of passing a boundary in the two processes, besides the network."""

FULL_S = 10.0
"""The price of a peer without room for a session: it would refuse, unless one ends just now."""

RELAYED_SHARE = 0.3
"""Of pairs that both sit behind NAT, those that cannot punch a hole and talk through a relay: 4.4
million attempts in IPFS (https://arxiv.org/abs/2510.27500)."""

RELAY_ROUND_TRIP_S_DEFAULT = 0.1
"""Assumed between a hidden peer and its nearest relay where none is told: they are chosen near."""

RELAY_BYTES_PER_S = 500_000.0
"""What a relay carries for one pair, one way: its usual limit."""

DISTRUST_S = 0.02
"""The price per token of half a standing; it at least doubles with each further half."""


@frozen
class Prices:
    """What each row of a table costs a token."""

    fixed_s: Floats
    """Once per stage, however few layers it runs."""
    layer_s: Floats
    """For each layer that it runs."""
    risk_s: Floats
    """Once per stage too, but no time that passes: what it may cost that a peer fails."""

    def of(self, rows: Whole | slice) -> "Prices":
        """Return the prices of some rows."""
        return Prices(self.fixed_s[rows], self.layer_s[rows], self.risk_s[rows])

    def stage_s(self, layers: Floats | Whole) -> Floats:
        """Return for how long a token's row keeps each stage to itself, given layers to run."""
        return self.fixed_s + self.layer_s * layers


def trip_share(drafted: float) -> float:
    """Return which part of a trip a token takes, given the share of tokens that are drafted."""
    return 1 - drafted + drafted / ROWS_IN_FLIGHT_MAX


def token_s(trip_s: float, slowest_s: float, drafted: float) -> float:
    """Return what a token costs on a route.

    Args:
        trip_s: of a row along all stages and back, risks included by ``1 / trip_share``.
        slowest_s: that a row keeps the slowest stage to itself.
        drafted: share of the tokens whose rows set out before the token before is drawn.
    """
    return trip_share(drafted) * trip_s + drafted * slowest_s


def prices(view: OfferTable, seen: Experience, chance: float, spread: float) -> Prices:
    """Return what each peer costs, raised by up to ``spread`` at random."""
    row_us = believed_row_us(view, seen)
    standing = view.fill(seen.standing, STANDING_NEW)
    with np.errstate(divide="ignore"):  # a standing of 0 costs infinitely much
        distrust_s = DISTRUST_S * (1 / standing - 1)
    held = np.maximum(view.column("end") - view.column("first"), 0)
    sessions = view.fill(seen.sessions, 0)  # each has a row there, as a rule
    queued = np.maximum(view.column("queued_rows"), sessions)
    queued_s = queued * batched_row_us(view, row_us) * held / US_PER_S
    most = view.column("sessions_max")
    full = (most > 0) & (np.minimum(view.column("sessions_free"), most - sessions) <= 0)
    lot = 1 + spread * lots(view.column("key"), chance)
    risk_s = distrust_s + FULL_S * full
    return Prices((HOP_S + queued_s) * lot, row_us / US_PER_S * lot, risk_s * lot)


def lots(keys: Whole, chance: float) -> Floats:
    """Draw a number from 0 to 1 for each key: other numbers for another chance.

    It uses SplitMix64's mixing, so it is the same in every process and for any order of the keys.
    """
    mixed = keys.astype(np.uint64) ^ np.uint64(int(chance * 2**63))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return mixed / np.float64(2**64)


def relay_detours(view: OfferTable, row_bytes: int) -> Floats:
    """Return what a hidden peer's rows take longer, one way, to each row of the table; 0 if open.

    It is a mean, for a pair that nobody has measured: most punch a hole, and go no detour; the
    others go to the receiver's relay and on, and wait for the relay's rate. Such a detour is
    between nothing and the way to that relay and back, and half of that where the sender is as far
    from the relay as from the receiver. ``row_bytes`` is what a token's row has; 0 leaves out the
    rate.
    """
    told_s = view.column("relay_us") / US_PER_S
    round_trip_s = np.where(told_s > 0, told_s, RELAY_ROUND_TRIP_S_DEFAULT)
    round_trip_s = np.minimum(round_trip_s, ROUND_TRIP_S_DEFAULT)
    detour_s = RELAYED_SHARE * (round_trip_s / 2 + row_bytes / RELAY_BYTES_PER_S)
    return np.where(view.column("hidden") > 0, detour_s, 0.0)


@frozen
class AskerTrips:
    """Round trips between the asker and each row of a table, in seconds."""

    measured_s: Floats
    """NaN where there is none."""
    most_s: Floats
    """As measured; where it was not, no more than this."""

    def of(self, rows: Whole) -> "AskerTrips":
        """Return those of some rows."""
        return AskerTrips(self.measured_s[rows], self.most_s[rows])

    def assumed_s(self, detour_s: Floats, *, hidden: bool) -> Floats:
        """Return what to assume of each; see `relay_detours`, and ``hidden`` is the asker."""
        unknown_s = self.most_s + 2 * detour_s * hidden
        return np.where(np.isnan(self.measured_s), unknown_s, self.measured_s)


def asker_trips(view: OfferTable, seen: Experience) -> AskerTrips:
    """Return the asker's round trips, and how long those can be that it has not measured.

    By the triangle inequality a peer is no farther than the way to another and the link between
    those two, of which either tells. Else peers in the asker's own town would count as the far
    side of the world until they were called, and few are.
    """
    measured_s = view.fill(seen.round_trip_s, np.nan)
    is_known = ~np.isnan(measured_s)
    teller, told, time_us = told_links(view.column("key"), *view.links())
    is_new = is_known[teller] != is_known[told]
    teller, told, time_us = teller[is_new], told[is_new], time_us[is_new]
    known, unknown = np.where(is_known[teller], (teller, told), (told, teller))
    links = longest_told(known, unknown, time_us, len(view))
    most_s = np.where(is_known, measured_s, ROUND_TRIP_S_DEFAULT)
    np.minimum.at(most_s, links.target, measured_s[links.source] + links.round_trip_s)
    return AskerTrips(measured_s, most_s)


def taken_for(
    known_s: Floats, near: AskerTrips, far: AskerTrips, detour_s: Floats | float = 0.0
) -> Floats:
    """Return the round trips to assume between peers.

    ``known_s`` is what they state, 0 if nothing. The asker's own round trips to the one and the
    other bound it from both sides, and the most that they can be from above. ``detour_s`` is what a
    relay may add to a way that is unknown, and to the bounds.
    """
    least = np.nan_to_num(np.abs(near.measured_s - far.measured_s), nan=0.0)
    said = np.where(known_s > 0, np.maximum(known_s, least), np.inf)
    bound = np.minimum(near.most_s + far.most_s, ROUND_TRIP_S_DEFAULT)
    return np.minimum(said, bound + detour_s)


def round_trips(
    view: OfferTable, peer: PeerId, trips: AskerTrips, detour_s: Floats, *, arrives: bool
) -> Floats:
    """Return the round trips to assume between a peer and each row, in seconds.

    ``arrives`` is whether rows come from there to the peer; else they go there from it.
    """
    keys, times_us = view.links()
    known_us = np.where(keys == peer_key(peer), times_us, 0).max(axis=1, initial=0)
    row = view.row_of(peer)
    if row is None:
        unknown = AskerTrips(np.full(1, np.nan), np.full(1, ROUND_TRIP_S_DEFAULT))
        return taken_for(known_us / US_PER_S, trips, unknown)
    for key, time_us in zip(keys[row], times_us[row], strict=True):
        linked = view.column("key") == key
        known_us[linked] = np.maximum(known_us[linked], time_us)
    hidden: Flags = view.column("hidden") > 0
    detours = np.where(hidden & hidden[row], detour_s[row] if arrives else detour_s, 0.0)
    return taken_for(known_us / US_PER_S, trips, trips.of(np.array([row])), 2 * detours)


@frozen
class RouteLinks:
    """Known round trips from rows to rows, ordered by destination."""

    source: Whole
    target: Whole
    round_trip_s: Floats


def known_ways(view: OfferTable, rows: Whole, trips: AskerTrips, detour_s: Floats) -> RouteLinks:
    """Return the round trips among rows that are in the order of their first layers.

    A way leads from a row to one that begins within its range or right after it. Rows are numbered
    by their places in ``rows``, as are ``trips`` and ``detour_s``.
    """
    keys, first, end = (view.column(name)[rows] for name in ("key", "first", "end"))
    teller, told, time_us = told_links(keys, *(column[rows] for column in view.links()))
    source, target = np.minimum(teller, told), np.maximum(teller, told)
    leads = (first[source] < first[target]) & (first[target] <= end[source])
    links = longest_told(source[leads], target[leads], time_us[leads], len(rows))
    source, target = links.source, links.target
    detours = np.where(detour_s[source] > 0, 2 * detour_s[target], 0.0)
    assumed_s = taken_for(links.round_trip_s, trips.of(source), trips.of(target), detours)
    return RouteLinks(source, target, assumed_s)


def told_links(keys: Whole, to_keys: Whole, times_us: Whole) -> tuple[Whole, Whole, Whole]:
    """Return which row tells of a link to which other one, and its microseconds.

    Rows are numbered by their places in ``keys``; the other two are as `OfferTable.links` has them.
    """
    order = np.argsort(keys)
    teller, slot = np.nonzero(times_us)
    wanted = to_keys[teller, slot]
    found = np.searchsorted(keys, wanted, sorter=order)
    told = order[np.minimum(found, len(keys) - 1)]
    is_row = keys[told] == wanted
    return teller[is_row], told[is_row], times_us[teller, slot][is_row]


def longest_told(source: Whole, target: Whole, time_us: Whole, count: int) -> RouteLinks:
    """Return one link for each pair of ``count`` rows; where both state it, the longer counts."""
    pair = target * count + source
    by_pair = np.argsort(pair, kind="stable")
    starts = np.flatnonzero(np.diff(pair[by_pair], prepend=-1))
    if not len(starts):
        return RouteLinks(source, target, time_us / US_PER_S)
    longest_s = np.maximum.reduceat(time_us[by_pair], starts) / US_PER_S
    return RouteLinks(source[by_pair][starts], target[by_pair][starts], longest_s)
