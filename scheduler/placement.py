"""Which contiguous range of layers a peer should serve, decided by itself from its own view.

It looks for the range where it is worth most (``scheduler.coverage_value``); in a small swarm it
also minds the plan that is best for all (``scheduler.plan``). What keeps a swarm whole when peers
decide at once, each from a view that is a little old:

- A peer leaves a layer only to a holder that outranks it in this turn. Ranks are pseudo-random,
  from the peers' ids and the turn's number, so at least one holder of each layer stays for the
  turn. In the first half of a turn none leaves: by then all know of the moves of the turn before.
- It moves only where it is worth clearly more: in a small swarm while no other peer moves, in a
  large one with a probability that is smaller, the fewer must move for the layers to be level.
- Where layers are missing, one peer fills them that is not needed where it is: all agree on which.
  If there is none, nothing works anyway: all line up again in their present order, each
  moving as little as it can. From one view all compute the same line.
- Holders that one machine's end takes away count as one: a relay, and those behind it alone.
- Joining peers choose in the order of their keys, each knowing what those before it will choose.

A stage can be entered only at its first layer, but left after any. So whatever covers all layers
contains a chain of peers, if no range begins before those that the swarm is to cover. A requester
that keeps more layers to itself begins at one of ``routing.begins``.
"""

from collections.abc import Iterable

import numpy as np
from attrs import frozen

from p2pinfer.core.advertisement import Advertisement, State
from p2pinfer.core.layer_range import LayerRange
from scheduler.coverage_value import best_place, cover_of
from scheduler.offer_table import NOTHING_SEEN, Experience, OfferTable, Whole
from scheduler.plan import PEERS_MAX, make_plan
from scheduler.route_cost import lots
from scheduler.swarm_members import Members

GAIN_MIN = 1.25
"""A peer moves where it is worth this many times what it is worth now: moving costs a
fetch and its sessions, and a view is never quite right."""

PLAN_SHARE_MIN = 0.92
"""A small swarm moves to its plan if its weakest layer is below this share of its planned rate."""

JOINERS_MAX = 64
"""Joining peers whose choice is foreseen; with more, ties are broken only at random."""

JOIN_CHECK_S = 2.0
"""When a joining peer looks again: by then it knows of those that joined at the same time."""

HOLE_CHECK_S = 5.0
"""When a peer looks again while layers are missing."""

FILL_S = 15.0
"""How long one peer has to fill missing layers before it may be another's turn."""

TURN_S = 60.0
"""How long ranks stay as they are: twice the time news takes to spread, and clocks differ."""

CHECK_S = 60.0
"""When a peer looks again while all is well, give or take half at random."""

MEAN_ABOVE = 0.8
"""Mean distance above the mean, in standard deviations, of a normal distribution's upper half."""


@frozen
class Choice:
    """What a peer should serve, why, and when to ask again."""

    layers: LayerRange
    moves: bool
    """It differs from what the peer serves or has announced."""
    reason: str
    """For people."""
    urgent: bool
    """Layers are missing: move at once."""
    check_again_s: float


def choose(
    offers: Iterable[Advertisement] | OfferTable,
    own: Advertisement,
    layers: LayerRange,
    *,
    now_s: float,
    chance: float,
    seen: Experience = NOTHING_SEEN,
) -> Choice:
    """Return the range that a peer should serve, of the layers that the swarm is to cover.

    ``own`` is its own advertisement: joining without layers while it has not chosen; joining with
    a range that it announced and may still change; serving. ``now_s`` is wall-clock time;
    ``chance`` is drawn by the caller, from 0 to 1.
    """
    assert own.layers_max >= 1
    swarm = Members.of(OfferTable.of(offers), own, layers, seen)
    if own.state is State.JOINING:
        return _join(swarm, chance)
    if swarm.whole.holes:
        return _mend(swarm, now_s, chance)
    return _serve(swarm, now_s, chance)


def _stay(swarm: Members, reason: str, check_again_s: float, *, urgent: bool = False) -> Choice:
    return Choice(swarm.present, False, reason, urgent, check_again_s)


def _move(swarm: Members, place: LayerRange, check_again_s: float) -> Choice:
    """Return the choice of a range, with what it is needed for in words."""
    holders = int(swarm.others.holders[swarm.others.part(place)].min())
    who = {0: "nobody else serves", 1: "one other peer serves"}.get(holders)
    reason = f"{who or f'only {holders} others serve'} some of layers {place}"
    return Choice(place, place != swarm.present, reason, holders == 0, check_again_s)


def _join(swarm: Members, chance: float) -> Choice:
    """Choose a first range, or stay with an announced one if no earlier peer chose the same.

    Of many that join at once only as many reconsider as must: if all did, each for the others'
    sake, they would never begin to serve.
    """
    place = _foresee(swarm)
    here = swarm.present
    if not here:
        return _move(swarm, place, JOIN_CHECK_S)
    same = swarm.joining & (swarm.first < here.end) & (here.first < swarm.end)
    same &= swarm.key < swarm.key[-1]
    now, then = (swarm.worth(each) for each in (here, place))
    gain = then > GAIN_MIN * now
    yields = len(swarm.key) <= PEERS_MAX or chance <= _movers(swarm)
    if same.any() and gain and yields:
        return _move(swarm, place, JOIN_CHECK_S)
    return _stay(swarm, "as announced", JOIN_CHECK_S)


def _foresee(swarm: Members) -> LayerRange:
    """Return where a joining peer should begin, given what others that join will choose.

    Either each takes the best place that those with smaller keys leave, or all take those of the
    plan: all of them agree on which of the two is better for the whole.
    """
    own = len(swarm.key) - 1
    undecided = swarm.joining & (swarm.first == swarm.end)
    undecided[own] = True
    rows = np.flatnonzero(undecided)
    rows = rows[np.argsort(swarm.key[rows])]
    if len(rows) > JOINERS_MAX:
        rows = np.append(rows[rows != own][: JOINERS_MAX - 1], own)
    cover = swarm.cover(~undecided)
    first, end = swarm.first.copy(), swarm.end.copy()
    for row in rows:
        speed, lot = float(swarm.speed[row]), float(lots(swarm.key[row : row + 1], 0.0)[0])
        beside = swarm.at(first, end).beside(int(row)) if swarm.share_fates else None
        place = best_place(cover, speed, int(swarm.size[row]), lot, beside=beside).layers
        cover = cover.plus(place, speed, beside)
        first[row], end[row] = place.first, place.end
    plan = _plan(swarm)
    if plan is not None:
        planned = [np.where(undecided, *each) for each in zip(plan, (first, end), strict=True)]
        if swarm.at(planned[0], planned[1]).whole.rate.min() > cover.rate.min():
            first, end = planned
    return LayerRange(int(first[own]), int(end[own]))


def _plan(swarm: Members) -> tuple[Whole, Whole] | None:
    """Return where the plan puts each peer, unless they are too many for one."""
    if len(swarm.key) > PEERS_MAX:
        return None
    order = np.argsort(swarm.key)
    plan = make_plan(swarm.lo, swarm.hi, swarm.speed[order], swarm.size[order])
    first, end = np.empty_like(swarm.first), np.empty_like(swarm.end)
    first[order], end[order] = plan.first, plan.end
    return first, end


def _serve(swarm: Members, now_s: float, chance: float) -> Choice:
    """Stay, or move to where the peer is worth more."""
    check_s = CHECK_S * (0.5 + chance)
    lot, dice = (float(n) for n in lots(np.array([1, 2]), chance))
    keep = _bound(swarm, now_s)
    planned = _planned(swarm)
    if planned and keep and not _can_hand_over(swarm, keep, planned):
        planned = None
    place = planned or _better(swarm, keep, lot)
    if place == swarm.present:
        return _stay(swarm, "worth most here", check_s)
    small = len(swarm.key) <= PEERS_MAX  # there, one peer still joining or moving changes a lot
    if swarm.joining.any() if small else swarm.cover(swarm.serving).holes:
        return _stay(swarm, "worth more elsewhere, but others are still joining", check_s)
    if now_s % TURN_S < TURN_S / 2:
        wait_s = TURN_S / 2 * (1 + lot) - now_s % TURN_S
        return _stay(swarm, "worth more elsewhere, but must wait for its turn", wait_s)
    if planned is None and dice > _movers(swarm):
        return _stay(swarm, "worth more elsewhere, but lets others go first", check_s)
    return _move(swarm, place, check_s)


def _can_hand_over(swarm: Members, keep: LayerRange, place: LayerRange) -> bool:
    """Whether a peer can move without a moment in which layers are missing that it must keep.

    Its memory must hold both ranges at once.
    """
    return place.covers(keep) and len(swarm.present) + len(place) <= int(swarm.size[-1])


def _bound(swarm: Members, now_s: float) -> LayerRange | None:
    """Return the range of present layers that the peer must not leave in this turn."""
    turn = float(lots(np.array([int(now_s // TURN_S)]), 0.0)[0])
    rank = lots(swarm.key, turn)
    stay = swarm.cover(swarm.serving & (rank > rank[-1]))
    bound = swarm.present.first + np.flatnonzero(stay.holders[stay.part(swarm.present)] == 0)
    return LayerRange(int(bound[0]), int(bound[-1]) + 1) if len(bound) else None


def _planned(swarm: Members) -> LayerRange | None:
    """Return the peer's place in the plan, if clearly better for the whole than the present one.

    It is not if it leaves more layers to a single holder.
    """
    plan = _plan(swarm)
    if plan is None:
        return None
    now, then = swarm.whole, swarm.at(*plan).whole
    if then.lone > now.lone or now.rate.min() >= PLAN_SHARE_MIN * then.rate.min():
        return None
    return LayerRange(int(plan[0][-1]), int(plan[1][-1]))


def _better(swarm: Members, keep: LayerRange | None, lot: float) -> LayerRange:
    """Return a range where the peer would be worth clearly more, or the present one.

    In a small swarm it must neither make the weakest layer weaker, else the plan would bring it
    back, nor leave more layers to a single holder.
    """
    others, speed, beside = swarm.others, float(swarm.speed[-1]), swarm.beside(-1)
    # Both ranges at once, for a moment.
    room = int(swarm.size[-1]) - (len(swarm.present) if keep else 0)
    if keep and room < len(keep):
        return swarm.present
    place = best_place(others, speed, room, lot, keep, beside)
    if place.worth <= GAIN_MIN * swarm.worth(swarm.present):
        return swarm.present
    now, then = swarm.whole, others.plus(place.layers, speed, beside)
    if len(swarm.key) <= PEERS_MAX and (then.lone > now.lone or then.rate.min() < now.rate.min()):
        return swarm.present
    return place.layers


def _movers(swarm: Members) -> float:
    """Return the share of peers in crowded places that would have to move for all to be level.

    At least one in total: in a small swarm no share is a whole peer. Of a swarm that is too large
    to be known whole, a sample shows unevenness that is not there; what chance does is left out.
    """
    rate = swarm.whole.rate
    crowded = rate > rate.mean()
    surplus = (rate[crowded] - rate.mean()).sum()
    if swarm.is_sample:
        variance = cover_of(swarm.lo, swarm.hi, swarm.first, swarm.end, swarm.speed**2).rate
        surplus -= MEAN_ABOVE * np.sqrt(variance[crowded]).sum()
    share = float(surplus) / max(float(rate[crowded].sum()), 1e-9)
    return max(share, 1 / max(int(swarm.serving.sum()), 1))


def _mend(swarm: Members, now_s: float, chance: float) -> Choice:
    """Fill missing layers, if it is this peer's turn, or take its place in a new line."""
    fillers = _fillers(swarm)
    if fillers:
        # Mostly the best one, but any at some time: the best may be dead, or lie.
        lot = float(lots(np.array([int(now_s // FILL_S)]), 0.0)[0])
        row, place = fillers[int(len(fillers) * lot**3)]
        if row == len(swarm.key) - 1:
            return _move(swarm, place, HOLE_CHECK_S)
        return _stay(swarm, "another peer is to fill what is missing", HOLE_CHECK_S, urgent=True)
    line = _line_up(swarm)
    if line is None:
        others, speed, beside = swarm.others, float(swarm.speed[-1]), swarm.beside(-1)
        best = best_place(others, speed, int(swarm.size[-1]), chance, beside=beside).layers
        if others.plus(best, speed).holes < swarm.whole.holes:
            return _move(swarm, best, HOLE_CHECK_S)
        return _stay(swarm, "all together have no room for all layers", HOLE_CHECK_S, urgent=True)
    if line == swarm.present:
        return _stay(swarm, "others are to fill what is missing", HOLE_CHECK_S, urgent=True)
    return Choice(line, True, "layers are missing: all line up again", True, HOLE_CHECK_S)


def _fillers(swarm: Members) -> list[tuple[int, LayerRange]]:
    """Return which peers could each fill missing layers without leaving others missing, and where.

    The best come first: those that fill most, then those whose move best helps the weakest layer.
    """
    missing = swarm.whole.holders == 0
    found: list[tuple[int, float, int, int, LayerRange]] = []
    rows = np.flatnonzero(swarm.serving) if len(swarm.key) <= PEERS_MAX else ()
    for row in rows:
        speed = float(swarm.speed[row])
        others = swarm.cover(np.arange(len(swarm.key)) != row)
        beside = swarm.beside(int(row))
        best = best_place(others, speed, int(swarm.size[row]), 0.0, beside=beside).layers
        after = others.plus(best, speed, beside)
        if after.holes < missing.sum() and not ((after.holders == 0) & ~missing).any():
            weakest = float(after.rate.min())
            found.append((after.holes, -weakest, int(swarm.key[row]), int(row), best))
    return [(row, place) for *_, row, place in sorted(found)]


def _line_up(swarm: Members) -> LayerRange | None:
    """Return this peer's place when all line up to cover every layer; None if they are too few.

    In the order of their first layers, each begins as near to its own as it can: no later than
    where those before it end, and late enough that those after it reach the end.
    """
    rows = np.flatnonzero(swarm.first < swarm.end)
    rows = rows[np.lexsort((swarm.key[rows], swarm.first[rows]))]
    behind = swarm.size[rows][::-1].cumsum()[::-1]
    if not len(rows) or behind[0] < swarm.hi - swarm.lo:
        return None
    reached = swarm.lo
    for row, left in zip(rows, behind, strict=True):
        size = int(swarm.size[row])
        nearest = max(swarm.lo, min(int(swarm.first[row]), reached, swarm.hi - size))
        begin = max(nearest, swarm.hi - int(left))
        reached = max(reached, begin + size)
        if row == len(swarm.key) - 1:
            return LayerRange(begin, begin + size)
    return None
