"""Openings of virtual stages, which are true or false by what their peer does.

A virtual layer adds a key to a row, so a row's steps are known from what goes into the layer and
from the links in its cache. K rows hold the link that came with each position, V rows the
position's own, so that what a broken cache gives can be computed again as well. A cheat opens what
it sent: another row than its layers give shows in the last one of them.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import trio

from p2pinfer.core.errors import EngineDied
from p2pinfer.core.opening import OpenedLayer, OpenedTrace
from p2pinfer.core.regimes import Regime
from p2pinfer.core.shown_layers import LayerBytes
from p2pinfer.core.traced import Traced
from p2pinfer.core.verdict import RECEIVED, Fault, Verdict
from p2pinfer.engine.base import RowSteps
from peers.audits.steps import StepsJudge
from sim.model import MASK, ROW_BYTES, VirtualModel, damage_of, pack, unpack

LINK_BYTES = 8

_NOTHING = bytes(4)
"""Steps of a layer but its output: it has none."""


class OpeningStage(Protocol):
    """What an opening takes of a virtual stage."""

    @property
    def model(self) -> VirtualModel:
        """The model."""
        ...

    @property
    def first(self) -> int:
        """The first of its layers."""
        ...

    @property
    def rounding(self) -> float:
        """The mark of its numerics class."""
        ...

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        ...

    async def trace_a_row(self, layers: int) -> None:
        """Take the time of a row."""
        ...


class VirtualCopy:
    """A ``CellsCopy`` of a virtual stage's session."""

    attention = "f16"

    def __init__(
        self,
        stage: OpeningStage,
        layers: int,
        said: Iterable[int],
        links: Iterable[int],
        sent: Iterable[bytes],
    ) -> None:
        """Keep the links that came with each position, its own ones, and the rows sent for them."""
        self._stage, self._layers = stage, layers
        self._keys, self._values = np.array(list(said), "<u8"), np.array(list(links), "<u8")
        self._sent = list(sent)

    async def read(self, layer: int, first: int, end: int) -> tuple[bytes, bytes]:  # noqa: ARG002
        """Return K and V rows, the same for all layers."""
        await trio.lowlevel.checkpoint()
        return self._keys[first:end].tobytes(), self._values[first:end].tobytes()

    async def trace(self, position: int, row: bytes, *, regime: Regime) -> RowSteps:
        """Return the steps that the stage says it took for a row: the last gives what it sent."""
        stage = self._stage
        await stage.trace_a_row(self._layers)
        if stage.is_over:
            raise EngineDied("the engine has ended, and the copy of the cells with it")
        found: dict[tuple[int, str], bytes] = {}
        keys, values = self._keys[: position + 1], self._values[: position + 1]
        for number in range(self._layers):
            is_last = number == self._layers - 1
            true = _out_of(
                stage.model,
                stage.first + number,
                row,
                damage_of(keys, values) if number == 0 else 0,
                regime,
                stage.rounding,
            )
            row = self._sent[position] if is_last else true
            for step in Traced:
                found[number, str(step)] = row if step is Traced.OUT else _NOTHING
        return found

    def close(self) -> None:
        """Forget nothing; idempotent."""


class VirtualJudge(StepsJudge):
    """Judges openings as a key of the virtual model would."""

    def __init__(self, model: VirtualModel) -> None:
        self._model = model

    def covers(self, layers: Iterable[int]) -> bool:
        """Know all layers of the model."""
        return all(0 <= layer < self._model.layers for layer in layers)

    async def layer_bytes(self, layer: int) -> LayerBytes:  # noqa: ARG002
        """Say that layers are short: all of them are opened."""
        await trio.lowlevel.checkpoint()
        return LayerBytes(ROW_BYTES, ROW_BYTES, LINK_BYTES)

    async def judge(
        self,
        opening: OpenedTrace,
        *,
        by_layers: bool = False,  # noqa: ARG002
    ) -> Verdict:
        """Find the first layer that does not give what its stage says."""
        await trio.lowlevel.checkpoint()
        regime, first = Regime(opening.pledge.regime), opening.receipt.first
        for number, layer in enumerate(opening.layers, 1):
            fault = self._fault(layer, first, regime)
            if fault:
                return Verdict(Fault(layer.layer, fault, 1.0), number, number, {}, {})
        return Verdict(None, len(opening.layers), len(opening.layers), {}, {})

    async def renew(self) -> None:
        """Keep on: a virtual cheat learns nothing from a rejection."""
        await trio.lowlevel.checkpoint()

    def _fault(self, layer: OpenedLayer, first: int, regime: Regime) -> str:
        out = layer.steps[-1]
        if len(layer.given) != ROW_BYTES or len(out) != ROW_BYTES:
            return RECEIVED
        damage = 0
        if layer.layer == first:
            if not layer.keys:  # cut out of its opening: only with them can it be judged
                return ""
            damage = damage_of(np.frombuffer(layer.keys, "<u8"), np.frombuffer(layer.values, "<u8"))
        true = _out_of(self._model, layer.layer, layer.given, damage, regime, 0.0)
        is_true = all((a == b).all() for a, b in zip(unpack(out), unpack(true), strict=True))
        return "" if is_true else Traced.ATTENTION


def _out_of(
    model: VirtualModel, layer: int, row: bytes, damage: int, regime: Regime, rounding: float
) -> bytes:
    """Return what a layer gives for a row."""
    before, own = unpack(row)
    key = (model.sum(layer + 1, regime=regime) - model.sum(layer, regime=regime)) & MASK
    return pack(before, own + np.uint64(key) + np.uint64(damage), rounding)
