"""What ranges of layers are worth to a swarm, given who holds what.

A peer that holds n layers of t seconds a row runs 1/(t·(n+2)) rows a second through each of them;
the two more stand for taking a row and passing it on. A layer costs the swarm the time that rows
wait for it, 1 over the sum of its holders' rates, and something more if one peer alone holds it. A
range is worth what it takes off these costs: most where layers are weakest. All peers add to the
same sum, so moves for a gain of one's own end.
"""

import numpy as np
from attrs import frozen

from scheduler.view import Flags, Floats, Whole

RARE = 1e-3
"""Share of the usual rate that stands for none: a layer without a holder costs a thousand times
what it costs where work is spread evenly."""

STAGE_LAYERS = 2.0
"""What a stage does for a row besides its layers, counted in layers. Without it the best place in a
large swarm would be the one weakest layer, and a chain as many hops as the model has layers."""

ALONE = 0.3
"""What it costs, in the same measure, that one peer alone holds a layer."""

NEAR = 0.005
"""Ranges whose worth differs by less than this share are equals: the lot decides among them."""


@frozen
class Cover:
    """Who holds the layers from ``lo`` on."""

    lo: int
    rate: Floats
    """Rows a second through each layer, in parts of what an even spread would give."""
    holders: Whole
    """How many peers hold each layer."""

    @property
    def hi(self) -> int:
        """The layer behind the last."""
        return self.lo + len(self.rate)

    @property
    def holes(self) -> int:
        """How many layers nobody holds."""
        return int((self.holders == 0).sum())

    @property
    def lone(self) -> int:
        """How many layers would be missing if a peer, the only one to hold them, died."""
        return int((self.holders <= 1).sum())

    def plus(self, first: int, end: int, speed: float) -> "Cover":
        """Return the cover with one peer more; ``speed`` is in layers times the even rate."""
        rate, holders = self.rate.copy(), self.holders.copy()
        if first < end:
            rate[first - self.lo : end - self.lo] += speed / (end - first + STAGE_LAYERS)
            holders[first - self.lo : end - self.lo] += 1
        return Cover(self.lo, rate, holders)


@frozen
class Place:
    """A range, and what it is worth."""

    first: int
    end: int
    worth: float


def cover_of(lo: int, hi: int, first: Whole, end: Whole, speed: Floats) -> Cover:
    """Return who holds what: ranges in absolute numbers, all within ``lo`` to ``hi``."""
    count = hi - lo + 1
    share = speed / (end - first + STAGE_LAYERS) * (first < end)
    rate = np.bincount(first - lo, share, count) - np.bincount(end - lo, share, count)
    one = (first < end).astype(np.float64)
    holders = np.bincount(first - lo, one, count) - np.bincount(end - lo, one, count)
    whole = np.rint(holders.cumsum()[:-1]).astype(np.int64)
    # What is left of sums and differences where nobody holds a layer is rounding, not a rate.
    return Cover(lo, np.where(whole > 0, rate.cumsum()[:-1], 0.0), whole)


def worth_of(cover: Cover, first: int, end: int, speed: float) -> float:
    """Return what one more peer would be worth there."""
    if first == end:
        return 0.0
    part = slice(first - cover.lo, end - cover.lo)
    more = _cost(cover.rate[part] + speed / (end - first + STAGE_LAYERS), cover.holders[part] + 1)
    return float((_cost(cover.rate[part], cover.holders[part]) - more).sum())


def best_place(
    cover: Cover, speed: float, layers_max: int, lot: float, keep: tuple[int, int] | None = None
) -> Place:
    """Return the range of at most so many layers that is worth most; ``keep`` must lie within it.

    Among equals, longer ones are taken, of these such as lie flush with what others hold, and then
    the lot decides, a number from 0 to 1.
    """
    count = len(cover.rate)
    before = _cost(cover.rate, cover.holders)
    kept = (keep[0] - cover.lo, keep[1] - cover.lo) if keep else (count, 0)
    lengths = np.arange(max(kept[1] - kept[0], 1), min(layers_max, count) + 1)[:, None]
    # A row per length, a column per first layer: what the layers from there on are worth together.
    saved = before - _cost(cover.rate + speed / (lengths + STAGE_LAYERS), cover.holders + 1)
    total = np.zeros((len(lengths), count + 1))
    np.cumsum(saved, axis=1, out=total[:, 1:])
    firsts = np.arange(count)
    ends = firsts + lengths
    worth = total[np.arange(len(lengths))[:, None], np.minimum(ends, count)] - total[:, :-1]
    worth[(ends > count) | (ends < kept[1]) | (firsts > kept[0])] = -np.inf
    best = float(worth.max())
    enough = best - NEAR * abs(best)
    row = int((worth.max(axis=1) >= enough).nonzero()[0][-1])
    length, worth = int(lengths[row, 0]), worth[row]
    equals = (worth >= enough).nonzero()[0]
    flush = equals[_is_flush(before, equals, length)]
    equals = flush if len(flush) else equals
    first = int(equals[int(lot * (len(equals) - 1) + 0.5)])
    return Place(cover.lo + first, cover.lo + first + length, float(worth[first]))


def _is_flush(cost: Floats, first: Whole, length: int) -> Flags:
    """Return which ranges begin or end where others do, so that no splinters are left between."""
    edge = np.ones(len(cost) + 1, np.bool_)
    edge[1:-1] = cost[1:] != cost[:-1]
    found: Flags = edge[first] | edge[first + length]
    return found


def _cost(rate: Floats, holders: Whole) -> Floats:
    """Return what each layer costs the swarm."""
    cost: Floats = 1 / (rate + RARE) + ALONE * (holders == 1)
    return cost
