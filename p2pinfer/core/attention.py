"""One row's attention over K and V as they are cached, in the order in which ggml adds them up.

Read in ggml's ``ops.cpp`` (the release that pyproject.toml pins). Of its three ways to compute
attention on a CPU:

    rows one by one, V in float16      running sums in float16, each addition rounded to it
    rows one by one, V in bfloat16     sums in float32
    tiles of 64 rows, V in float16     sums in float32, and queries are not rounded to float16

float32 sums lie within 1e-6 of exact ones, which are taken here; the order of the float16 ones is
kept, or the two sides would be 1e-3 apart at 50 positions and 7e-3 at 1,000.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from p2pinfer.core.regimes import Regime

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


def attend(
    queries: Floats,
    keys: Floats,
    values: Floats,
    scale: float,
    *,
    regime: Regime,
    is_half: bool,
) -> Floats:
    """Return the attention of one row in each of several layers.

    Args:
        queries: rotated; layers by heads by numbers of a head.
        keys: as cached; layers by positions by heads of K by numbers of a head.
        values: in the same form.
        scale: of products of queries and keys.
        regime: of the row.
        is_half: whether V is kept in float16, not in bfloat16.

    Returns:
        Layers by heads by numbers of a head.
    """
    is_tiled = regime is Regime.BLOCK and is_half
    asked = queries if is_tiled else queries.astype(np.float16).astype(np.float32)
    layers, heads, width = queries.shape
    groups = keys.shape[2]
    asked = asked.reshape(layers, groups, heads // groups, width)
    # layers, heads of K, positions, queries of each
    scores = np.einsum("lpgw,lghw->lgph", keys, asked, dtype=np.float64, optimize=True) * scale
    if is_tiled or not is_half:
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        found = np.einsum("lgph,lpgw->lghw", weights, values, optimize=True)
    else:
        found = _half_sums(scores, values)
    rows: Floats = found.reshape(layers, heads, width).astype(np.float32)
    return rows


def _half_sums(scores: Doubles, values: Floats) -> Any:
    """Add values up in float16 from the first position on, as ggml does for single rows."""
    highest = np.maximum.accumulate(scores, axis=2)
    before = np.concatenate([np.full_like(highest[:, :, :1], -np.inf), highest[:, :, :-1]], axis=2)
    is_new = highest > before
    shrinks = np.exp(before - highest).astype(np.float32)
    weights = np.exp(scores - highest).astype(np.float32)
    layers, groups, positions, heads = scores.shape
    sums = np.zeros((layers, groups, heads, values.shape[-1]), np.float16)
    for at in range(positions):
        new = is_new[:, :, at]
        if at and new.any():
            sums[new] = sums[new].astype(np.float32) * shrinks[:, :, at][new][:, None]
        added = values[:, at, :, None] * weights[:, :, at, :, None]
        sums = (sums.astype(np.float32) + added).astype(np.float16)
    total = np.exp(scores - highest[:, :, -1:]).sum(axis=2)
    return sums.astype(np.float64) / total[..., None]
