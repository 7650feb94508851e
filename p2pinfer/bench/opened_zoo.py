"""What the zoo's cheats show when a row of theirs is to be opened.

They know the model, and what they sent; they sign whatever they like. What they cannot do is to
sign after they know the row, or to choose numbers by the asker's secret.
"""

import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from attrs import frozen

from p2pinfer.bench.zoo import ZOO, Changed, Cheat, Host, OpenSession, Rows, noisy
from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Refusal
from p2pinfer.core.receipts import Receipt
from p2pinfer.core.regimes import Regime
from p2pinfer.core.traced import Traced
from p2pinfer.engine.base import CellsCopy, EngineSession, RowSteps
from peers.receipts.prover import Prover, RowAgain, ShownCells
from peers.receipts.signer import ReceiptSigner, SessionRecord
from peers.steps.messaging import RefusedError
from transports.base import Transport

_PLACES: Final = {step: at for at, step in enumerate(Traced)}
_FROM_ATTENTION: Final = tuple(Traced)[_PLACES[Traced.ATTENTION] :]

ShowRow = Callable[[Host, RowAgain, bytes], RowAgain]
"""Takes what the layers gave, and the row that was sent instead; returns what is shown."""


@frozen
class Show:
    """How a cheat opens its rows."""

    row: ShowRow = lambda _, row, __: row
    cells: Callable[[CellsCopy, int], CellsCopy] = lambda copy, _: copy
    """Takes them, and how many layers they are of."""
    aside: int = 0
    """How far from the asked position it runs the row."""
    refuses: bool = False


class LyingProver(Prover):
    """A prover that shows other things than were computed, in a way set later."""

    show: Show | None = None

    def __init__(self, transport: Transport, signer: ReceiptSigner, host: Host) -> None:
        super().__init__(transport, signer, platform.machine())
        self._host, self._me = host, transport.peer_id

    def admit(self, peer: PeerId, record: SessionRecord, said: Receipt) -> None:
        """Open as much as is asked for: benchmarks do not wait for minutes to pass."""

    async def copy(self, record: SessionRecord, positions: int) -> CellsCopy:
        """Copy a session's cells, or invent some."""
        if self.show and self.show.refuses:
            raise RefusedError.of(self._me, Refusal.ENGINE_FAILED, "the engine is out of order")
        copy = await super().copy(record, positions)
        opened = record.opened
        return self.show.cells(copy, opened.end - opened.first) if self.show else copy

    async def run(self, shown: ShownCells, position: int, row: bytes) -> RowAgain:
        """Run a row again, and change what comes out."""
        if self.show is None:
            return await super().run(shown, position, row)
        at = max(position - self.show.aside, 0)
        regime = shown.record.witness.received.regime(position)
        found = await shown.copy.trace(at, row, regime=regime)
        there = 1 + max(layer for layer, _ in found)  # fewer, where it skips some
        layers = [min(layer, there - 1) for layer in range(shown.said.end - shown.said.first)]
        steps = [[found[layer, step] for step in Traced] for layer in layers]
        inputs = [row, *(each[-1] for each in steps[:-1])]
        sent = _sent(shown.record, position).astype("<f4").tobytes()
        again = self.show.row(self._host, RowAgain(position, inputs, steps), sent)
        self._host.opened = self._host.opened or again
        return again

    def came_out(self, record: SessionRecord, row: RowAgain) -> bytes:
        """Return what was sent, whatever came out this time."""
        if self.show is None:
            return super().came_out(record, row)
        return _sent(record, row.position).tobytes()


def _sent(record: SessionRecord, position: int) -> Rows:
    _, sent = record.open(position, 1)
    return np.frombuffer(sent, f"<f{len(sent) // record.width}")


def _bent(_: Host, row: RowAgain, sent: bytes) -> RowAgain:
    """Say that the last layer gives what was sent."""
    *steps, last = row.steps
    return RowAgain(row.position, row.inputs, [*steps, [*last[:-1], sent]])


def _replayed(host: Host, row: RowAgain, _: bytes) -> RowAgain:
    """Show what was shown of an earlier session."""
    old = host.opened
    return RowAgain(row.position, old.inputs, old.steps) if old else row


def _as_invented(host: Host, row: RowAgain, _: bytes) -> RowAgain:
    """Show the last layer's steps as they were computed from an invented attention."""
    *steps, last = row.steps
    invented = host.invented[row.position]
    last = [*last[: _PLACES[Traced.ATTENTION]], *(invented[step] for step in _FROM_ATTENTION)]
    return RowAgain(row.position, row.inputs, [*steps, last])


class _SelfCentred(Changed):
    """Has each row attend to itself alone in the last layer, which reads no cache for it.

    All that follows from there is computed as it should be.
    """

    def __init__(self, host: Host, end: int) -> None:
        super().__init__(
            partial(host.engine.open, end), host.engine.width, host.engine.open(end - 1)
        )
        assert host.last_layer
        self._layer, self._invented = host.last_layer, host.invented
        self._invented.clear()

    def change(self, position: int, sent: Rows) -> Rows:
        found = [self._layer.self_centred(row) for row in sent]
        for at, steps in enumerate(found):
            named = {step: numbers.tobytes() for step, numbers in steps.items()}
            self._invented[position + at] = named
        return np.stack([steps[Traced.OUT] for steps in found])


class _InventedCells:
    """Cells in which the last layer's V rows are those of nobody, from the start or later on."""

    def __init__(self, copy: CellsCopy, layers: int, *, late: bool) -> None:
        self._copy, self._last, self._is_inventing = copy, layers - 1, not late
        self.attention = copy.attention
        self.close = copy.close

    async def read(self, layer: int, first: int, end: int) -> tuple[bytes, bytes]:
        """Return true K rows, and in the last layer V rows that are negated."""
        keys, values = await self._copy.read(layer, first, end)
        if self._is_inventing and layer == self._last:
            values = (-np.frombuffer(values, "<f2")).tobytes()
        return keys, values

    async def trace(self, position: int, row: bytes, *, regime: Regime) -> RowSteps:
        """Run the row; from now on its position is known."""
        self._is_inventing = True
        return await self._copy.trace(position, row, regime=regime)


def _self_centred(host: Host, end: int) -> EngineSession:
    return _SelfCentred(host, end)


@dataclass(frozen=True)
class OpenedCheat:
    """A cheat, and what it shows."""

    cheat: Cheat
    show: Show
    layer: int | None
    """Which of its layers is to be named, as an index; None where nothing is shown of any."""

    @property
    def name(self) -> str:
        """Of the cheat."""
        return self.cheat.name


def _shown(
    name: str, opens: OpenSession, *, warms_up: bool = False, show: Show, layer: int = -1
) -> OpenedCheat:
    return OpenedCheat(Cheat(name, False, opens, warms_up=warms_up), show, layer)


def _bending(cheat: Cheat) -> OpenedCheat:
    if cheat.lie:
        return OpenedCheat(cheat, Show(refuses=True), None)
    return OpenedCheat(cheat, Show(_bent), 0 if cheat.layers_differ else -1)


_OF_ROWS: Final = tuple(_bending(cheat) for cheat in ZOO if cheat.open)

OPENED_ZOO: Final = (
    *_OF_ROWS,
    _shown("noise, opened as it should have been", noisy, show=Show()),
    _shown("invented attention outputs", _self_centred, show=Show(_as_invented)),
    _shown(
        "invented K and V",
        _self_centred,
        show=Show(_as_invented, partial(_InventedCells, late=False)),
    ),
    _shown(
        "K and V invented for the row",
        _self_centred,
        show=Show(_as_invented, partial(_InventedCells, late=True)),
    ),
    _shown("noise, opened at another position", noisy, show=Show(_bent, aside=1), layer=0),
    _shown(
        "noise, opened from another session",
        noisy,
        warms_up=True,
        show=Show(_replayed),
        layer=0,
    ),
)


def find_opened(names: Sequence[str]) -> list[OpenedCheat]:
    """Return cheats by their names, all if none is named; raises UserError."""
    known = {each.name: each for each in OPENED_ZOO}
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--only knows no {unknown[0]!r}, only: {'; '.join(known)}")
    return [known[name] for name in names or known]
