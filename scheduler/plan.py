"""A good place for every peer of a small swarm at once, the same on every peer that computes it.

Peers that each look for their own best place can settle where none alone can improve things, though
two together could. In a large swarm that costs little; in one of a dozen peers, a fifth of the
throughput or more. So they also compute, only from what the peers can do, where all of
them would best begin: several orders are tried, in each of which they settle one after the other,
and the one with the best weakest layer is taken. Present places do not enter: so the plan stays
the same while peers move to it, and peers whose views differ in places have the same plan.
"""

from functools import lru_cache

import numpy as np
from attrs import frozen

from scheduler.coverage_value import best_places, covers_of
from scheduler.offer_table import Floats, Whole

PEERS_MAX = 24
"""Beyond this, chance and numbers do the plan's work, and it would take long."""

ORDERS = 12
"""Tried: by size and by speed, both ways, and then at random. More find little that is better."""

ROUNDS_MAX = 8
"""Rounds in which the peers of one order settle."""

SPEED_STEPS = 8
"""Per doubling: measured speeds that differ by less give the same plan."""


@frozen
class Plan:
    """A range for each peer, in the order given."""

    first: tuple[int, ...]
    end: tuple[int, ...]


def make_plan(lo: int, hi: int, speed: Floats, layers_max: Whole) -> Plan:
    """Return where peers of these speeds and sizes should be for the weakest layer to be best.

    They must be in an order that all peers share, such as that of their keys.
    """
    steps = np.rint(np.log2(speed) * SPEED_STEPS).astype(np.int64)
    sizes = np.minimum(layers_max, hi - lo)
    return _plan(lo, hi, tuple(steps.tolist()), tuple(sizes.tolist()))


@lru_cache(maxsize=64)
def _plan(lo: int, hi: int, steps: tuple[int, ...], sizes: tuple[int, ...]) -> Plan:
    speed = 2.0 ** (np.array(steps, np.float64) / SPEED_STEPS)
    speed /= speed.sum() / (hi - lo)
    size = np.array(sizes, np.int64)
    chance = np.random.Generator(np.random.PCG64(0))  # the same draws in every process
    orders = [np.argsort(by, kind="stable") for by in (-size, -speed, size, speed)]
    orders += [chance.permutation(len(steps)) for _ in range(ORDERS - len(orders))]
    first, end = _settle(lo, hi, speed, size, np.array(orders))
    rate, _ = covers_of(lo, hi, first, end, np.broadcast_to(speed, first.shape))
    best = int(rate.min(axis=1).argmax())
    return Plan(tuple(first[best].tolist()), tuple(end[best].tolist()))


def _settle(lo: int, hi: int, speed: Floats, size: Whole, orders: Whole) -> tuple[Whole, Whole]:
    """In each order let one peer after the other take its best place, until none moves.

    All orders, the rows, are processed at once; one that has settled stays as it is.
    """
    lines, speeds = np.arange(len(orders)), np.broadcast_to(speed, orders.shape)
    first, end = np.full(orders.shape, lo), np.full(orders.shape, lo)
    for _ in range(ROUNDS_MAX):
        before = first.copy(), end.copy()
        for peers in orders.T:
            end[lines, peers] = first[lines, peers]
            rate, holders = covers_of(lo, hi, first, end, speeds)
            place = best_places(rate, holders, speed[peers], size[peers], 0.0)
            first[lines, peers], end[lines, peers] = lo + place[0], lo + place[1]
        if (before[0] == first).all() and (before[1] == end).all():
            break
    return first, end
