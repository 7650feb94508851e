"""Whether the attention that a stage shows is what its queries, keys and values give.

A head's attention is computed again by the kernel that fits the row best, and where that is not it,
with the query rounded in each way that float32's noise leaves open, and by other kernels.
"""

from collections.abc import Mapping
from typing import Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from p2pinfer.core.attention import ATTENTIONS, KERNELS, Attended, Kernel, attend
from p2pinfer.core.layer_key import LayerShape
from p2pinfer.core.opening import OpenedLayer, OpenedTrace, Pledge
from p2pinfer.core.regimes import Regime
from p2pinfer.core.traced import Traced

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

ATTENTION_MAX: Final = 1e-4
"""Of attention, relative to its output, by the worst head. Honest ones lie at most 7e-6 from it in
long prompts, where ggml's own exponential is known to float32's noise, and have the same bits
elsewhere."""

PROVEN_ATTENTION_MAX: Final = 1e-3
"""How far attention must be apart for an accusation. Kernels that were read but never run here, and
C libraries whose exponential is another, lie within that."""

FLIPPED_MAX: Final = 2
"""Numbers of a head whose sum in float16 may have been rounded the other way, since the last bit of
an exponential is not the same in all C libraries."""

_FLIPPED_BY: Final = 2**-10
"""How far such a number is off, relative to the largest of its head."""

_TIED_FROM: Final = 5e-6
"""From where on a head's attention is computed again with its query rounded in other ways, and by
other kernels: one head in 300."""

_TIED_TO: Final = 0.02
"""No rounding of a query changes its attention by as much."""

_TIES_MAX: Final = 6
"""Numbers of a query that are tried both ways: one in 1,000 is so close to halfway."""


@frozen(eq=False)
class OpenedHeads:
    """The heads of one layer, and its cached rows: positions by heads by numbers of a head."""

    queries: tuple[Doubles, ...]
    """Rotated, with each of the angles that the cached key allows, the likeliest first."""
    noise: Doubles
    """How far each of its numbers may be off."""
    key: Doubles
    value: Doubles
    keys: Floats
    values: Floats


def compute_attention(
    opening: OpenedTrace, heads: Mapping[int, OpenedHeads | None], shape: LayerShape
) -> tuple[Kernel, dict[int, Attended]]:
    """Compute the attention of all layers whose heads are known, and find by which kernel it was.

    The first of these layers shows the kernel.
    """
    found = {layer: each for layer, each in heads.items() if each is not None}
    kernel = KERNELS[0]
    if found and _is_half_sum(opening.pledge):
        first = next(each for each in opening.layers if each.layer in found)
        kernel = _kernel_of(first, found[first.layer], shape, opening.pledge)
    rows = {}
    for layer, each in found.items():
        query = each.queries[0].astype(np.float32)
        rows[layer] = _attend(query, each.keys, each.values, shape, opening.pledge, kernel)
    return kernel, rows


def _attend(
    query: Floats, keys: Floats, values: Floats, shape: LayerShape, pledge: Pledge, kernel: Kernel
) -> Attended:
    attention = ATTENTIONS[pledge.values]
    given = query[None], keys[None], values[None], shape.scale
    found = attend(*given, regime=Regime(pledge.regime), attention=attention, kernel=kernel)
    return Attended(found.rows[0], found.slack[0])


def _is_half_sum(pledge: Pledge) -> bool:
    return ATTENTIONS[pledge.values].is_half_sum and pledge.regime != Regime.BLOCK


def _kernel_of(layer: OpenedLayer, heads: OpenedHeads, shape: LayerShape, pledge: Pledge) -> Kernel:
    """Return the kernel whose sums a layer's attention fits best."""
    found, query = layer.step(Traced.ATTENTION), heads.queries[0].astype(np.float32)
    if found.size != query.size:
        return KERNELS[0]
    best, least = KERNELS[0], np.inf
    for kernel in KERNELS:
        true = _attend(query, heads.keys, heads.values, shape, pledge, kernel)
        by_heads = _apart_by_heads(found.reshape(true.rows.shape), true, may_flip=False)
        apart = float(np.median(by_heads))
        if apart < least:
            best, least = kernel, apart
        if least < _TIED_FROM:
            break
    return best


def apart_after_ties(
    heads: OpenedHeads,
    found: Floats,
    true: Attended,
    shape: LayerShape,
    pledge: Pledge,
    kernel: Kernel,
) -> float:
    """Return how far a layer's attention is apart by the worst head, each by its best tie.

    A query is rounded to float16 first. A number that lies halfway between two, as far as float32
    can tell, may have been rounded either way, and that changes the rounding of every sum behind.
    """
    is_half = _is_half_sum(pledge)
    apart = _apart_by_heads(found, true, may_flip=is_half)
    worst = float(apart.max())
    if pledge.regime == Regime.BLOCK and ATTENTIONS[pledge.values].is_half_sum:
        return worst
    kernels = sorted(KERNELS, key=lambda each: each is not kernel) if is_half else KERNELS[:1]
    for head in np.flatnonzero(apart > _TIED_FROM):
        if apart[head] > _TIED_TO:
            return worst
        ways = [_tied(each[head], heads.noise[head]) for each in heads.queries]
        choices = np.concatenate(ways)
        group = head // (shape.heads // shape.kv_heads)
        cells = heads.keys[:, group : group + 1], heads.values[:, group : group + 1]
        for each in kernels:
            tied = _attend(choices, *cells, shape, pledge, each)
            same = np.broadcast_to(found[head], tied.rows.shape)
            by_choices = _apart_by_heads(same, tied, may_flip=is_half)
            apart[head] = min(apart[head], by_choices.min())
            if apart[head] <= _TIED_FROM:
                break
        if apart[head] > ATTENTION_MAX:
            break
    return float(apart.max())


def _tied(query: Doubles, noise: Doubles) -> Floats:
    """Return a head's numbers with each combination of roundings of those that are halfway."""
    low, high = ((query + by).astype(np.float16) for by in (-noise, noise))
    gaps = np.abs(high.astype(np.float32) - low)
    halfway = np.argsort(-gaps)[: min(_TIES_MAX, np.count_nonzero(gaps))]
    choices = np.repeat(query.astype(np.float16)[None], 1 << len(halfway), axis=0)
    for bit, at in enumerate(halfway):
        is_high = np.arange(len(choices)) >> bit & 1
        choices[:, at] = np.where(is_high, high[at], low[at])
    return choices.astype(np.float32)


def _apart_by_heads(found: Floats, attended: Attended, *, may_flip: bool) -> Doubles:
    """Return how far heads are apart, each relative to the true one; heads by their numbers.

    ``may_flip``: a few numbers of each may have been rounded the other way, and do not count.
    """
    true = attended.rows
    sizes = np.linalg.norm(true.astype(np.float64), axis=1)
    off = np.maximum(np.abs(found.astype(np.float64) - true) - attended.slack, 0)
    if may_flip:
        most = np.argpartition(off, -FLIPPED_MAX, axis=1)[:, -FLIPPED_MAX:]
        largest = np.abs(true).max(axis=1, keepdims=True)
        flipped = np.take_along_axis(off, most, 1)
        left = np.where(flipped <= _FLIPPED_BY * largest, 0.0, flipped)
        np.put_along_axis(off, most, left, 1)
    apart = np.linalg.norm(off, axis=1)
    relative: Doubles = apart / np.where(sizes > 0, sizes, 1)
    # Beside an infinite number in a cached row all others would be as good as none.
    is_finite = np.isfinite(found).all(axis=1) & np.isfinite(true).all(axis=1)
    return np.where(is_finite & np.isfinite(relative), relative, np.inf)
