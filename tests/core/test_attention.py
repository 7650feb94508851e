"""Attention in float16 has the bits that each kernel gives, written down as in C, sum by sum."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from p2pinfer.core.attention import ATTENTIONS, CHUNK_POSITIONS, KERNELS, Attended, Kernel, attend
from p2pinfer.core.regimes import Regime

F, D, H = np.float32, np.float64, np.float16
HEADS, GROUPS = 4, 2


def fused(by: Any, with_: Any, to: Any, kernel: Kernel) -> np.float32:
    """Multiply and add in float32."""
    product = D(by) * D(with_)
    return F(product + D(to)) if kernel.fuses else F(F(product) + F(to))


def dot(keys: NDArray[np.float32], asked: NDArray[np.float32], kernel: Kernel) -> np.float32:
    """``ggml_vec_dot_f16``: a sum for each lane of each register, then added in pairs."""
    lanes, count = kernel.lanes, kernel.step // kernel.lanes
    whole = len(keys) // kernel.step * kernel.step
    sums = [[F(0)] * lanes for _ in range(count)]
    for at in range(whole):
        number, lane = at % kernel.step // lanes, at % lanes
        sums[number][lane] = fused(keys[at], asked[at], sums[number][lane], kernel)
    while len(sums) > 1:
        half = len(sums) // 2
        sums = [[a + b for a, b in zip(sums[n], sums[n + half], strict=True)] for n in range(half)]
    row = sums[0]
    while len(row) > 4:
        row = [a + b for a, b in zip(row[: len(row) // 2], row[len(row) // 2 :], strict=True)]
    one, two, three, four = row
    total = (one + three) + (two + four) if lanes == 16 else (one + two) + (three + four)
    left = sum((D(F(keys[n] * asked[n])) for n in range(whole, len(keys))), D(total))
    return F(left)


def head(
    keys: NDArray[np.float32],
    values: NDArray[np.float32],
    asked: NDArray[np.float32],
    scale: float,
    kernel: Kernel,
) -> NDArray[np.float32]:
    """``ggml_compute_forward_flash_attn_ext_f16_one_chunk``."""
    width = len(asked)
    native = width // 128 * 128 if kernel.is_native else 0
    highest, total, sums = F(-np.inf), F(0), [H(0)] * width
    for key, value in zip(keys, values, strict=True):
        score = F(dot(key, asked, kernel) * F(scale))
        shrink, weight = F(1), F(1)
        if score > highest:
            shrink, highest = F(np.exp(D(F(highest - score)))), score
            for at in range(width):
                by = H(shrink) if at < native else shrink
                sums[at] = H(F(sums[at]) * F(by))
        else:
            weight = F(np.exp(D(F(score - highest))))
        for at in range(width):
            if at < native:
                sums[at] = H(D(value[at]) * D(H(weight)) + D(sums[at]))
            else:
                sums[at] = H(fused(value[at], weight, sums[at], kernel))
        total = F(D(total) * D(shrink) + D(weight))
    return np.array(sums, H).astype(F) * (F(1) / total)


def half_sums(queries: Any, keys: Any, values: Any, regime: Regime, kernel: Kernel) -> Attended:
    """Attend with sums in float16."""
    how = ATTENTIONS["f16"]
    return attend(queries, keys, values, 0.25, regime=regime, attention=how, kernel=kernel)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.name)
@pytest.mark.parametrize(("width", "count"), [(64, CHUNK_POSITIONS + 3), (80, 7), (144, 20)])
def test_sums_have_a_kernels_bits(kernel: Kernel, width: int, count: int) -> None:
    """Heads that fill registers, and heads that do not; scores that rise and fall."""
    chance = np.random.default_rng(width)
    keys, values = chance.standard_normal((2, 1, count, GROUPS, width)).astype(H).astype(F)
    queries = chance.standard_normal((1, HEADS, width)).astype(F)
    found = half_sums(queries, keys, values, Regime.NARROW, kernel).rows
    for at in range(HEADS):
        group, asked = at * GROUPS // HEADS, queries[0, at].astype(H).astype(F)
        true = head(keys[0, :, group], values[0, :, group], asked, 0.25, kernel)
        assert found[0, at].tobytes() == true.tobytes()


def test_kernels_differ() -> None:
    """So that a test of one says nothing of another; without fused sums they seldom do."""
    chance = np.random.default_rng(1)
    keys, values = chance.standard_normal((2, 1, 200, 1, 128)).astype(H).astype(F)
    queries = chance.standard_normal((1, 8, 128)).astype(F)
    rows = {
        half_sums(queries, keys, values, Regime.WIDE, each).rows.tobytes()
        for each in KERNELS
        if each.fuses
    }
    assert len(rows) == 3


def test_plain_attention_rounds_weights_to_float16() -> None:
    """Summed up in the other order in float32, it differs by no more than is told."""
    chance = np.random.default_rng(3)
    keys, values = chance.standard_normal((2, 1, 3000, GROUPS, 64)).astype(H).astype(F)
    queries = 2 * chance.standard_normal((1, HEADS, 64)).astype(F)
    given = queries, keys, values, 0.125
    found = attend(*given, regime=Regime.NARROW, attention=ATTENTIONS["plain"])
    for at in range(HEADS):
        k, v = keys[0, ::-1, at * GROUPS // HEADS], values[0, ::-1, at * GROUPS // HEADS]
        scores = (k * queries[0, at].astype(H).astype(F)).sum(1, dtype=F) * F(0.125)
        weights = np.exp(scores - scores.max(), dtype=F)
        halves = (weights * (F(1) / weights.sum(dtype=F))).astype(H).astype(F)
        off = np.abs((halves[:, None] * v).sum(0, dtype=F) - found.rows[0, at])
        size = np.abs(found.rows[0, at]).max()
        assert (off <= found.slack[0, at] + 2e-6 * size).all()
        assert found.slack[0, at].max() < 2e-4 * size
    flash = attend(*given, regime=Regime.NARROW, attention=ATTENTIONS["bf16"])
    assert not flash.slack.any()
    assert np.abs(flash.rows - found.rows).max() > 1e-5 * np.abs(flash.rows).max()


@pytest.mark.parametrize(("apart", "slack"), [(2**-10, 2**-11), (2**-9, 0.0)])
def test_a_weight_halfway_between_two_float16_may_go_either_way(apart: float, slack: float) -> None:
    """Of two positions, whose scores are apart, the first weighs a half and a quarter of that."""
    keys = np.array([apart, 0.0], F).reshape(1, 2, 1, 1)
    values = np.array([1.0, 0.0], F).reshape(1, 2, 1, 1)
    one, how = np.ones((1, 1, 1), F), ATTENTIONS["plain"]
    found = attend(one, keys, values, 1.0, regime=Regime.NARROW, attention=how)
    assert found.slack.item() == slack
    assert abs(found.rows.item() - (0.5 + apart / 4)) <= 2**-12
