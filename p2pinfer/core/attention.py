"""One row's attention over K and V as they are cached, in the order in which ggml adds them up.

Read in ggml's ``ops.cpp``, ``vec.h`` and ``simd-mappings.h`` (the release that pyproject.toml
pins). Of its four ways to compute attention on a CPU:

    flash, rows one by one, V in float16     running sums in float16, each addition rounded to it
    flash, rows one by one, V in bfloat16    sums in float32
    flash, tiles of 64 rows, V in float16    sums in float32, and queries are not rounded to float16
    plain, V in float16                      sums in float32, weights are rounded to float16

float32 sums lie within 1e-6 of exact ones, which are taken here. Of float16 ones each rounding is
followed, or the two sides would be 1e-3 apart at 50 positions and 7e-3 at 1,000. Which way a number
is rounded depends on the last bit of its weight, and that on how the compiled kernel adds up
products of K and queries: so there is one ``Kernel`` for each kind of x86 processor. Where weights
are rounded, one of some hundred lies so close to halfway that it may go either way, and what comes
of that is told.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from attrs import frozen
from numpy.typing import NDArray

from p2pinfer.core.regimes import Regime

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]

CHUNK_POSITIONS: Final = 256
"""Whose products are held at once: 8 MB for 32 heads of 128 numbers."""

_NATIVE_STEP: Final = 128
"""Numbers that the kernel with float16 arithmetic takes at a time; what is over is done as
elsewhere."""


WEIGHT_NOISE: Final = 5e-7
"""How far a weight may be off in float32, relative to it: an exponential, a sum, a quotient."""

SCORE_NOISE: Final = 1e-7
"""The same for each unit of its key's and query's lengths, scaled: float32 adds the product up."""


@frozen
class Attention:
    """How a stage keeps V, and computes attention with it; K is always in float16."""

    values: str
    """In which numbers V is kept."""
    is_flash: bool

    @property
    def is_half_sum(self) -> bool:
        """Whether rows one by one are added up in float16."""
        return self.is_flash and self.values == "f16"


ATTENTIONS: Final = {
    "f16": Attention("f16", is_flash=True),
    "bf16": Attention("bf16", is_flash=True),
    "plain": Attention("f16", is_flash=False),
}
"""By the names that pledges have for them."""


@frozen(eq=False)
class Attended:
    """What a row attends to."""

    rows: Floats
    """Layers by heads by numbers of a head."""
    slack: Floats
    """How far each of them may be off, since float32 leaves open how weights were rounded."""


@frozen
class Kernel:
    """How a build of ggml adds up in float16."""

    name: str
    lanes: int
    """Numbers of a vector register of float32."""
    step: int
    """Numbers of a head that are taken at a time, in several registers."""
    fuses: bool = True
    """Products are added without being rounded before."""
    is_native: bool = False
    """Products with V are float16, too."""


AVX512, AVX2 = Kernel("AVX-512", 16, 64), Kernel("AVX2", 8, 32)

KERNELS: Final = (
    AVX512,
    AVX2,
    Kernel("AVX-512 FP16", 16, 64, is_native=True),
    Kernel("AVX", 8, 32, fuses=False),
    Kernel("SSE3", 4, 32, fuses=False),
)
"""All that there are for x86, the most frequent first."""


def attend(
    queries: Floats,
    keys: Floats,
    values: Floats,
    scale: float,
    *,
    regime: Regime,
    attention: Attention,
    kernel: Kernel = AVX512,
) -> Attended:
    """Return the attention of one row in each of several layers.

    Args:
        queries: rotated; layers by heads by numbers of a head.
        keys: as cached; layers by positions by heads of K by numbers of a head.
        values: in the same form.
        scale: of products of queries and keys.
        regime: of the row.
        attention: how it is computed.
        kernel: whose float16 sums to follow, where there are any.
    """
    is_tiled = regime is Regime.BLOCK and attention.is_half_sum
    asked = queries if is_tiled else queries.astype(np.float16).astype(np.float32)
    layers, heads, width = queries.shape
    groups = keys.shape[2]
    asked = asked.reshape(layers, groups, heads // groups, width)
    if attention.is_half_sum and not is_tiled:
        rows = _half_sums(asked, keys, values, scale, kernel).reshape(layers, heads, width)
        return Attended(rows, np.zeros_like(rows))
    # layers, heads of K, positions, queries of each
    scores = np.einsum("lpgw,lghw->lgph", keys, asked, dtype=np.float64, optimize=True) * scale
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    slack = np.zeros(queries.shape, np.float32)
    if not attention.is_flash:
        lengths = np.linalg.norm(keys, axis=3).transpose(0, 2, 1)[..., None]
        lengths = lengths * np.linalg.norm(asked, axis=3)[:, :, None] * scale
        noise = WEIGHT_NOISE + SCORE_NOISE * lengths
        low, high = (_to_half(weights * (1 + by)) for by in (-noise, noise))
        slack = np.einsum("lgph,lpgw->lghw", high - low, np.abs(values), optimize=True)
        slack = slack.reshape(queries.shape).astype(np.float32)
        weights = _to_half(weights)
    found = np.einsum("lgph,lpgw->lghw", weights, values, optimize=True)
    return Attended(found.reshape(queries.shape).astype(np.float32), slack)


def _to_half(numbers: Doubles) -> Doubles:
    """Round to float32, then to float16."""
    rounded: Doubles = numbers.astype(np.float32).astype(np.float16).astype(np.float64)
    return rounded


def _half_sums(asked: Floats, keys: Floats, values: Floats, scale: float, kernel: Kernel) -> Floats:
    """Add values up in float16 from the first position on; layers, heads of K, queries, numbers."""
    layers, groups, heads, width = asked.shape
    native = width - width % _NATIVE_STEP if kernel.is_native else 0
    sums = np.zeros((layers, groups, heads, width), np.float16)
    highest = np.full((layers, groups, heads), -np.inf, np.float32)
    total = np.zeros((layers, groups, heads), np.float32)
    for at, scores in _scores(asked, keys, np.float32(scale), kernel):
        is_new = scores > highest
        before, highest = highest, np.where(is_new, scores, highest)
        shrinks = np.ones_like(scores)
        if is_new.any():
            shrinks[is_new] = _exp(before[is_new] - highest[is_new])
            sums[is_new] = _rounded(sums[is_new], shrinks[is_new][:, None], native)
        weights = _exp(scores - highest)
        total = (total.astype(np.float64) * shrinks + weights).astype(np.float32)
        _add(sums, values[:, at, :, None], weights[..., None], native, fuses=kernel.fuses)
    found: Floats = sums.astype(np.float32) * (np.float32(1) / total)[..., None]
    return found


def _scores(
    asked: Floats, keys: Floats, scale: np.float32, kernel: Kernel
) -> Iterator[tuple[int, Floats]]:
    """Yield each position with the scores of all queries there: layers, heads of K, queries."""
    for first in range(0, keys.shape[1], CHUNK_POSITIONS):
        some = keys[:, first : first + CHUNK_POSITIONS]
        scores = _dots(some[:, :, :, None], asked[:, None], kernel) * scale
        for at in range(scores.shape[1]):
            yield first + at, scores[:, at]


def _dots(keys: Floats, asked: Floats, kernel: Kernel) -> Floats:
    """Return the products of the last axis, which is summed in registers, and these in halves."""
    width, lanes = keys.shape[-1], kernel.lanes
    whole = width - width % kernel.step
    products = keys * asked  # of two float16 each, so they are exact
    steps = products[..., :whole].reshape(*products.shape[:-1], -1, kernel.step // lanes, lanes)
    sums = np.zeros((*products.shape[:-1], kernel.step // lanes, lanes), np.float32)
    for at in range(steps.shape[-3]):
        sums += steps[..., at, :, :]
    while sums.shape[-2] > 1:
        sums = _folded(sums, axis=-2)
    sums = sums[..., 0, :]
    while sums.shape[-1] > 4:
        sums = _folded(sums, axis=-1)
    if lanes == AVX512.lanes:
        total = (sums[..., 0] + sums[..., 2]) + (sums[..., 1] + sums[..., 3])
    else:
        total = (sums[..., 0] + sums[..., 1]) + (sums[..., 2] + sums[..., 3])
    left = products[..., whole:].sum(axis=-1, dtype=np.float64)
    found: Floats = (total + left).astype(np.float32)
    return found


def _folded(sums: Floats, axis: int) -> Floats:
    one, other = np.split(sums, 2, axis=axis)
    folded: Floats = one + other
    return folded


def _exp(numbers: Floats) -> Floats:
    """Return the exponential, rounded once, as C libraries have it but for one in some hundred."""
    powers: Floats = np.exp(numbers.astype(np.float64)).astype(np.float32)
    return powers


def _rounded(sums: Any, by: Floats, native: int) -> Any:
    """Return sums times a number, in float16."""
    found = (sums.astype(np.float32) * by).astype(np.float16)
    if native:
        half = by.astype(np.float16).astype(np.float32)
        found[..., :native] = (sums[..., :native].astype(np.float32) * half).astype(np.float16)
    return found


def _add(sums: Any, values: Floats, weights: Floats, native: int, *, fuses: bool) -> None:
    """Add values times weights to sums in float16."""
    wide = values[..., native:]
    if fuses:
        exact = wide.astype(np.float64) * weights + sums[..., native:]
        sums[..., native:] = exact.astype(np.float32).astype(np.float16)
    else:
        sums[..., native:] = (wide * weights + sums[..., native:].astype(np.float32)).astype(
            np.float16
        )
    if native:
        half = weights.astype(np.float16).astype(np.float64)
        sums[..., :native] = (values[..., :native] * half + sums[..., :native]).astype(np.float16)
