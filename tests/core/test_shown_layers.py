"""Which layers of a row are opened: within its bytes, evenly, and unforeseen."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from attrs import evolve
from hypothesis import example, given
from hypothesis import strategies as st

from p2pinfer.core.opening import OpenedTrace, check_roots, check_shown, encode
from p2pinfer.core.regimes import Regime
from p2pinfer.core.shown_layers import (
    LONG_ROW_BYTES_MAX,
    LayerBytes,
    ShownLayers,
    choose_layers,
    layers_shown,
    opened_bytes,
    row_bytes_max,
    rows_seen,
)
from p2pinfer.core.traced import Traced
from p2pinfer.core.trust import ROWS_PROVEN, caught_by
from p2pinfer.core.witness import Rows
from peers.audits.inspector import choose_rows
from tests.support.openings import cut_to_layers, opened
from tests.support.proofs import RECEIPT

SMALL = LayerBytes(row=2304, steps=38_400, cell=768)
"""Of SmolLM2-135M."""
LARGE = LayerBytes(row=16_384, steps=286_720, cell=4096)
"""Of Llama 3.1 8B."""
HUGE = LayerBytes(row=32_768, steps=614_400, cell=4096)
"""Of Llama 3.1 70B."""


def chosen(layers: int, count: int, layer: LayerBytes, nonce: bytes) -> list[ShownLayers]:
    """Choose layers of a stage of so many, for rows of a session of so many positions."""
    receipt = evolve(RECEIPT, first=1, end=1 + layers, position=count)
    return choose_layers(nonce, receipt, choose_rows(nonce, receipt), layer)


nonces = st.binary(min_size=32, max_size=32)


@given(
    nonces,
    st.integers(1, 200),
    st.integers(1, 100_000),
    st.builds(LayerBytes, st.just(4096), st.integers(8192, 3 << 20), st.integers(64, 1 << 16)),
)
@example(bytes(32), 28, 200, SMALL)
@example(bytes(32), 32, 4096, LARGE)
@example(bytes(32), 80, 200, HUGE)
def test_no_opening_is_longer_than_its_row_may_be(
    nonce: bytes, layers: int, count: int, layer: LayerBytes
) -> None:
    """Of any model, whatever the stage holds; but for the least that an opening has to show."""
    receipt = evolve(RECEIPT, first=0, end=layers, position=count)
    positions = choose_rows(nonce, receipt)
    for position, shown in zip(
        positions, choose_layers(nonce, receipt, positions, layer), strict=True
    ):
        size = opened_bytes(layer, layers, position, shown)
        least = opened_bytes(layer, layers, position, ShownLayers(0, min(2, layers), 1))
        assert size <= max(row_bytes_max(position), least)
        assert size <= LONG_ROW_BYTES_MAX or not shown.cells
        of_layers = shown.of(layers)
        assert len(of_layers) == shown.steps
        assert sum(of_layers.values()) == shown.cells
        assert shown.steps == layers or shown.steps > shown.cells, "what lies behind is seen too"


@given(nonces, st.integers(1, 200), st.integers(4, 5000), st.sampled_from((SMALL, LARGE, HUGE)))
@example(bytes(32), 28, 200, SMALL)
def test_every_layer_is_seen_as_often_as_is_said(
    nonce: bytes, layers: int, count: int, layer: LayerBytes
) -> None:
    """Or once more; so is what lies between two layers."""
    shown = chosen(layers, count, layer, nonce)
    least = int(rows_seen(shown, layers))
    cells = Counter(at for each in shown for at, has in each.of(layers).items() if has)
    between = Counter(
        at
        for each in shown
        for at in each.of(layers)
        if (at + 1) % layers in each.of(layers)
        and (each.steps == layers or at != _last(each, layers))
    )
    for at in range(layers):
        assert least <= cells[at] <= ROWS_PROVEN
        assert between[at] >= least


def _last(shown: ShownLayers, layers: int) -> int:
    return (shown.start + shown.steps - 1) % layers


def test_a_lie_in_one_layer_is_seen_as_often_as_is_said() -> None:
    """In all rows, in half of them, in a tenth: the odds that are printed, over many answers."""
    chance, tries = np.random.default_rng(1), 1000
    for layers, count, layer in ((28, 200, SMALL), (32, 300, LARGE), (80, 200, HUGE)):
        for part in (1.0, 0.5, 0.1):
            caught, said = 0, []
            for number in range(tries):
                shown = chosen(layers, count, layer, number.to_bytes(32, "little"))
                lies = chance.random(ROWS_PROVEN) < part
                caught += any(
                    lie and each.of(layers).get(7) for lie, each in zip(lies, shown, strict=True)
                )
                said.append(caught_by(rows_seen(shown, layers), part))
            assert caught / tries >= np.mean(said) - 0.025
            if (layers, part) == (28, 1.0):
                assert caught == tries
                assert min(said) == 1


def test_all_layers_are_shown_where_they_are_not_too_long() -> None:
    """Ten layers of the smallest model at 200 positions, and at 2,000."""
    assert {
        each.of(10) == dict.fromkeys(range(10), True) for each in chosen(10, 200, SMALL, bytes(32))
    } == {True}
    assert rows_seen(chosen(10, 2000, SMALL, bytes(32)), 10) == ROWS_PROVEN
    assert rows_seen(chosen(28, 200, SMALL, bytes(32)), 28) > 2
    assert rows_seen(chosen(1, 200, HUGE, bytes(32)), 1) == ROWS_PROVEN


@pytest.mark.parametrize(
    ("start", "steps", "cells"), [(0, 0, 0), (0, 2, 3), (-1, 1, 1), (0, 1, -1), (1 << 20, 1, 1)]
)
def test_what_is_no_choice_of_layers_is_not_made(start: int, steps: int, cells: int) -> None:
    """K and V without steps, none at all, or numbers that no model has."""
    with pytest.raises(ValueError, match=r"start|steps|cells|layer"):
        ShownLayers(start, steps, cells)


def test_layers_that_a_stage_lacks_are_not_named() -> None:
    """They start among its own, and there are as many."""
    assert ShownLayers(2, 3, 1).of(3) == {0: False, 1: False, 2: True}
    for shown in (ShownLayers(3, 1, 1), ShownLayers(0, 4, 1)):
        with pytest.raises(ValueError, match="not among 3 layers"):
            shown.of(3)


def traces(
    layers: int, count: int, shown: Sequence[ShownLayers], at: list[int]
) -> list[OpenedTrace]:
    """Open layers of made-up numbers."""
    draw = np.random.default_rng(3)
    received, sent = Rows(keep=True), Rows(keep=True)
    for kept in (received, sent):
        for place in range(count):
            kept.put(place, 1, bytes(SMALL.row), regime=Regime.NARROW)
    size = (SMALL.steps - SMALL.row) // len(Traced) // 4 * 4
    computed = [
        (
            bytes(SMALL.row),
            tuple(draw.bytes(size) for _ in Traced),
            draw.bytes(count * SMALL.cell // 2),
            draw.bytes(count * SMALL.cell // 2),
        )
        for _ in range(layers)
    ]
    found = []
    for position, each in zip(at, shown, strict=True):
        whole = opened(
            received, sent, computed, position=position, count=count, regime=Regime.NARROW
        )
        found.append(cut_to_layers(whole, each))
    return found


def test_bytes_are_counted_as_they_are_sent() -> None:
    """Real openings of some layers, encoded: within what was counted, and not far below."""
    layers, count, nonce = 12, 400, bytes(range(32))
    one = ShownLayers(4, 9, 6)
    (first,) = traces(layers, count, [one], [count - 1])
    receipt = check_roots(first)
    check_shown(first, one.of(layers))
    size = opened_bytes(SMALL, layers, count - 1, one)
    assert 0.98 * size < len(encode(first)) <= size
    positions = choose_rows(nonce, receipt)
    shown = choose_layers(nonce, receipt, positions, LayerBytes(2304, 300_000, 7680))
    assert any(each.steps < layers for each in shown)
    found = traces(layers, count, shown, positions)
    assert layers_shown(nonce, receipt, found, positions) == shown
    assert layers_shown(nonce, receipt, found[:2], positions) == shown[:2]
    assert layers_shown(nonce, receipt, found[1:], positions) is None, "one lacks before"
    assert layers_shown(b"x" * 32, receipt, found, positions) is None
    less = evolve(found[3], layers=found[3].layers[1:])
    assert layers_shown(nonce, receipt, [*found[:3], less], positions) is None
