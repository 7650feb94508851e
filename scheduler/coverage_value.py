"""What ranges of layers are worth to a swarm, given which peers hold what.

A peer that holds n layers of t seconds a row runs 1/(t·(n+2)) rows a second through each of them;
the additional two stand for taking a row and passing it on. A layer costs the swarm the time that
rows wait for it, 1 over the sum of its holders' rates, and an extra amount if only one peer holds
it. A range is worth the reduction of these costs: most where layers are weakest. All peers add to
the same sum, so a sequence of self-interested moves comes to an end.
"""

import numpy as np
from attrs import frozen

from p2pinfer.core.layer_range import LayerRange
from scheduler.offer_table import Flags, Floats, Whole

RARE = 1e-3
"""Share of the usual rate used instead of zero: a layer without a holder costs a thousand times
what it costs when work is spread evenly."""

STAGE_LAYERS = 2.0
"""A stage's work per row besides its layers, counted in layers. Without it the best place in a
large swarm would be the one weakest layer, and a chain would have as many hops as the model has
layers."""

ALONE = 0.3
"""Extra cost, in the same unit, of a layer that only one peer holds."""

NEAR = 0.005
"""Ranges whose worth differs by less than this share count as equal: a random draw decides."""


@frozen
class Cover:
    """How well the layers from ``lo`` on are held."""

    lo: int
    rate: Floats
    """Rows a second through each layer, in parts of what an even spread would give."""
    holders: Whole
    """How many peers hold each layer; those that the same machine's end takes away count as one."""

    @property
    def hi(self) -> int:
        """The end of the layers (exclusive)."""
        return self.lo + len(self.rate)

    @property
    def holes(self) -> int:
        """How many layers have no holder."""
        return int((self.holders == 0).sum())

    @property
    def lone(self) -> int:
        """How many layers have only one holder, and would be missing if it died."""
        return int((self.holders <= 1).sum())

    def plus(self, layers: LayerRange, speed: float, beside: Flags | None = None) -> "Cover":
        """Return the cover with one peer more; ``speed`` is in layers times the even rate.

        ``beside`` is which layers are held by others that end with it.
        """
        rate, holders = self.rate.copy(), self.holders.copy()
        if layers:
            part = self.part(layers)
            rate[part] += speed / (len(layers) + STAGE_LAYERS)
            holders[part] += 1 if beside is None else ~beside[part]
        return Cover(self.lo, rate, holders)

    def part(self, layers: LayerRange) -> slice:
        """Return where a range is in the columns."""
        return slice(layers.first - self.lo, layers.end - self.lo)


@frozen
class Place:
    """A range and its worth."""

    layers: LayerRange
    worth: float


def cover_of(
    lo: int, hi: int, first: Whole, end: Whole, speed: Floats, fate: Whole | None = None
) -> Cover:
    """Return the cover by ranges in absolute numbers, all within ``lo`` to ``hi``.

    Peers with the same number in ``fate`` end together: one machine brings all their callers.
    """
    rate, holders = covers_of(lo, hi, first[None], end[None], speed[None])
    if fate is not None:
        holders = holders - _too_many(lo, hi, first, end, fate)
    return Cover(lo, rate[0], holders[0])


def _too_many(lo: int, hi: int, first: Whole, end: Whole, fate: Whole) -> Whole:
    """Return how many holders of each layer end with another one of it."""
    _, number, count = np.unique(fate, return_inverse=True, return_counts=True)
    surplus = np.zeros(hi - lo, np.int64)
    for each in np.flatnonzero(count > 1):
        rows = np.flatnonzero(number == each)
        _, held = covers_of(lo, hi, first[rows][None], end[rows][None], np.zeros((1, len(rows))))
        surplus += np.maximum(held[0] - 1, 0)
    return surplus


def covers_of(lo: int, hi: int, first: Whole, end: Whole, speed: Floats) -> tuple[Floats, Whole]:
    """Return rates and holder counts of each layer for several sets of peers, a row for each."""
    lines, columns = len(first), hi - lo + 1
    row = columns * np.arange(lines)[:, None] - lo
    begins, ends = (first + row).ravel(), (end + row).ravel()

    def held(each: Floats) -> Floats:
        each, cells = each.ravel(), lines * columns
        change = np.bincount(begins, each, cells) - np.bincount(ends, each, cells)
        return change.reshape(lines, columns).cumsum(axis=1)[:, :-1]

    there = first < end
    whole = np.rint(held(there.astype(np.float64))).astype(np.int64)
    # Without a holder, the remainder of sums and differences is rounding, not a rate.
    rate = held(speed / (end - first + STAGE_LAYERS) * there)
    return np.where(whole > 0, rate, 0.0), whole


def worth_of(cover: Cover, layers: LayerRange, speed: float, beside: Flags | None = None) -> float:
    """Return what one more peer would be worth there; ``beside`` is as in `Cover.plus`."""
    if not layers:
        return 0.0
    part, then = cover.part(layers), cover.plus(layers, speed, beside)
    more = _cost(then.rate[part], then.holders[part])
    return float((_cost(cover.rate[part], cover.holders[part]) - more).sum())


def best_place(
    cover: Cover,
    speed: float,
    layers_max: int,
    lot: float,
    keep: LayerRange | None = None,
    beside: Flags | None = None,
) -> Place:
    """Return the most valuable range of at most ``layers_max`` layers; it must contain ``keep``.

    Among equals, longer ones win, then those flush with what others hold; ``lot``, from 0 to 1,
    decides among the rest. ``beside`` is as in `Cover.plus`.
    """
    lo, rate, holders = cover.lo, cover.rate[None], cover.holders[None]
    kept = LayerRange(keep.first - lo, keep.end - lo) if keep else None
    sizes = np.array([speed]), np.array([layers_max])
    first, end, worth = best_places(rate, holders, *sizes, lot, kept, beside)
    return Place(LayerRange(lo + int(first[0]), lo + int(end[0])), float(worth[0]))


def best_places(
    rate: Floats,
    holders: Whole,
    speed: Floats,
    layers_max: Whole,
    lot: float,
    keep: LayerRange | None = None,
    beside: Flags | None = None,
) -> tuple[Whole, Whole, Floats]:
    """Return what ``best_place`` does for several covers at once, counted from their first layer.

    Covers are rows; ``speed`` and ``layers_max`` belong to the one peer that each is to gain, and
    ``beside`` to all.
    """
    count, rows = rate.shape[1], np.arange(len(rate))
    first_max, end_min = (keep.first, keep.end) if keep else (count, 0)
    lengths = np.arange(max(end_min - first_max, 1), min(int(layers_max.max()), count) + 1)[:, None]
    before = _cost(rate, holders)
    # By cover, length and first layer: the total worth of the layers from there on.
    more = (speed[:, None] / (lengths[:, 0] + STAGE_LAYERS))[:, :, None]
    then = holders + 1 if beside is None else holders + ~beside
    saved = before[:, None] - _cost(rate[:, None] + more, then[:, None])
    total = np.zeros((len(rows), len(lengths), count + 1))
    np.cumsum(saved, axis=2, out=total[:, :, 1:])
    firsts = np.arange(count)
    ends = firsts + lengths
    worth = total[:, np.arange(len(lengths))[:, None], np.minimum(ends, count)] - total[:, :, :-1]
    worth[:, (ends > count) | (ends < end_min) | (firsts > first_max)] = -np.inf
    worth[lengths[:, 0] > np.maximum(layers_max, lengths[0])[:, None]] = -np.inf
    longest = worth.max(axis=2)
    best = longest.max(axis=1)
    enough = best - NEAR * np.abs(best)
    longest_row = len(lengths) - 1 - (longest >= enough[:, None])[:, ::-1].argmax(axis=1)
    length, worth = lengths[longest_row], worth[rows, longest_row]
    equals = worth >= enough[:, None]
    flush = equals & _are_flush(before, np.minimum(firsts + length, count))
    equals = np.where(flush.any(axis=1)[:, None], flush, equals)
    drawn = (lot * (equals.sum(axis=1) - 1) + 0.5).astype(np.int64) + 1
    first = (equals.cumsum(axis=1) == drawn[:, None]).argmax(axis=1)
    return first, first + length[:, 0], worth[rows, first]


def _are_flush(cost: Floats, end: Whole) -> Flags:
    """Return which ranges, a column for each first layer, begin or end where others do.

    Preferring these leaves no small gaps between.
    """
    edge = np.ones((len(cost), cost.shape[1] + 1), np.bool_)
    edge[:, 1:-1] = cost[:, 1:] != cost[:, :-1]
    found: Flags = edge[:, :-1] | np.take_along_axis(edge, end, axis=1)
    return found


def _cost(rate: Floats, holders: Whole) -> Floats:
    """Return what each layer costs the swarm."""
    cost: Floats = 1 / (rate + RARE) + ALONE * (holders == 1)
    return cost
