"""The requester's side of openings: it asks one stage, and puts together what is to be checked.

What comes is what was asked for, within its bounds, and signed by the stage; anything else is the
stage's fault. Whether it is true is for ``core.opening`` and ``core.verdict`` to say.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Final

import trio
from attrs import frozen
from blake3 import blake3

from p2pinfer.core.errors import PeerUnavailable, RemoteProtocolError
from p2pinfer.core.kv_root import LAST_TAIL, KvStatement, kv_root
from p2pinfer.core.kv_root import SIGNED_AS as CELLS_SIGNED_AS
from p2pinfer.core.messages import Hop
from p2pinfer.core.opening import (
    OPENED_BYTES_MAX,
    PLEDGED_AS,
    BadOpening,
    OpenedLayer,
    OpenedRow,
    OpenedTrace,
    Pledge,
)
from p2pinfer.core.proving import (
    AskCells,
    AskLayers,
    AskSteps,
    CellRows,
    CellsAre,
    PledgeIs,
    StepsAre,
)
from p2pinfer.core.receipts import Receipt, Signed, Terms
from p2pinfer.core.regimes import Regime
from p2pinfer.core.shown_layers import ShownLayers
from p2pinfer.core.wire import encode
from peers.receipts.prover import LAYERS_OPENINGS, OPENING_S_MAX, OPENINGS, TURN_S_MAX
from peers.steps.messaging import receive, send
from transports.base import Channel, Transport
from transports.identity import verify

CELLS_S_MAX: Final = TURN_S_MAX + OPENING_S_MAX
"""For a stage to sign for its cells: it may have others to serve first."""


class OpensTooLate(PeerUnavailable):
    """A stage took longer for its rows than anybody waits."""


@frozen
class AskedRow:
    """A row that a stage received, as on the wire, and the regime that it ran in."""

    row: bytes
    regime: Regime


class CommittedCells:
    """A stage that has signed for its K and V rows, and has not been told yet which to show.

    Args:
        channel: to the stage.
        hop: the stage, and the layers that it ran.
        terms: of the session.
        receipt: what the cells belong to.
        said: the stage's answer, checked.
        by_layers: it opens the layers that are named; otherwise all of them.
    """

    def __init__(
        self,
        channel: Channel,
        hop: Hop,
        terms: Terms,
        receipt: Signed,
        said: CellsAre,
        *,
        by_layers: bool = False,
    ) -> None:
        self.by_layers = by_layers
        self.hop, self.statement = hop, said.signed
        self._channel, self._terms, self._receipt = channel, terms, receipt
        self._roots = said.layers
        self._asked: dict[int, AskedRow] = {}
        self._pledges: dict[int, tuple[Pledge, PledgeIs]] = {}
        layers = hop.end - hop.first
        self._whole = ShownLayers(0, layers, layers)
        self._shown: dict[int, ShownLayers] = {}
        self._cells = [_LayerCells() for _ in range(layers)]
        self._bytes_left = OPENED_BYTES_MAX

    async def ask(
        self, rows: Mapping[int, AskedRow], shown: Mapping[int, ShownLayers] | None = None
    ) -> None:
        """Name the positions, once, and wait until the stage has signed for all their steps.

        Args:
            rows: by position; at most ``PROVEN_ROWS_MAX``.
            shown: the layers to open of each, which are named only then; all of them unless the
                stage opens ``by_layers``.

        Raises:
            PeerError: the stage refused, is gone, or did something else.
        """
        assert not self._asked
        self._asked = dict(sorted(rows.items()))
        await send(
            self._channel,
            AskSteps(tuple(self._asked), b"".join(each.row for each in self._asked.values())),
        )
        with _in_time(self.hop):
            for position in self._asked:
                said = await receive(self._channel, PledgeIs)
                self._pledges[position] = self._read(position, said), said
        if self.by_layers:
            self._shown = {at: (shown or {}).get(at, self._whole) for at in self._asked}
            await send(self._channel, AskLayers(tuple(self._shown.values())))

    async def next(self) -> OpenedTrace:
        """Return the opening of the next position, in ascending order; raises as ``ask``."""
        position = next(iter(self._pledges))
        pledge, said = self._pledges.pop(position)
        with _in_time(self.hop):
            shown = self._shown.get(position, self._whole).of(len(self._cells))
            layers = tuple(
                [
                    await self._layer(number, position, with_cells=with_cells)
                    for number, with_cells in shown.items()
                ]
            )
        try:
            row = OpenedRow(
                self._asked[position].row, said.received_path, said.sent, said.sent_path
            )
            leaves = said.leaves or tuple(each.leaf() for each in layers)
            return OpenedTrace(pledge, said.signature, row, leaves, self._roots, layers)
        except ValueError as error:
            raise self._blame(str(error)) from error

    def _read(self, position: int, said: PledgeIs) -> Pledge:
        """Return a pledge, which must be about the row that was asked for."""
        try:
            pledge = Pledge.parse(said.body)
        except BadOpening as error:
            raise self._blame(str(error)) from error
        regime = int(self._asked[position].regime)
        wanted = self._terms, self.hop.peer, self._receipt, self.statement, position, regime
        found = (
            *(pledge.terms, pledge.peer, pledge.receipt, pledge.cells),
            *(pledge.position, pledge.regime),
        )
        if said.position != position or found != wanted:
            raise self._blame("it pledged itself to something else")
        if not verify(self.hop.peer, PLEDGED_AS + said.body, said.signature):
            raise self._blame("it did not sign its pledge")
        return pledge

    async def _layer(self, number: int, position: int, *, with_cells: bool) -> OpenedLayer:
        cells = self._cells[number] if with_cells else _LayerCells()
        shown = position + 1 if with_cells else 0
        while True:
            said = await receive(self._channel, CellRows, StepsAre)
            if said.layer != number:
                raise self._blame("it opened another layer")
            self._bytes_left -= cells.add(said) if isinstance(said, CellRows) else _size(said)
            if self._bytes_left < 0:
                raise self._blame(f"it opened more than {OPENED_BYTES_MAX} bytes")
            if isinstance(said, StepsAre):
                break
            if not cells.is_even or cells.count > shown:
                raise self._blame("it opened other K and V rows")
        if cells.count != shown or said.position != position:
            raise self._blame("it opened another position")
        layer = self.hop.first + number
        try:
            tail = said.tail if with_cells else LAST_TAIL
            return OpenedLayer(layer, said.given, said.steps, cells.keys, cells.values, tail)
        except ValueError as error:
            raise self._blame(str(error)) from error

    def _blame(self, text: str) -> RemoteProtocolError:
        return RemoteProtocolError(self.hop.peer, text)


class _LayerCells:
    """K and V rows of one layer, as far as they have come."""

    def __init__(self) -> None:
        self.count = 0
        self.is_even = True
        """All rows are of one size."""
        self._parts: list[CellRows] = []

    def add(self, said: CellRows) -> int:
        """Add rows; return how many bytes they have."""
        first = self._parts[0] if self._parts else said
        for ours, theirs in ((first.keys, said.keys), (first.values, said.values)):
            is_whole = len(theirs) % said.count == 0
            is_alike = len(ours) * said.count == len(theirs) * first.count
            self.is_even = self.is_even and is_whole and is_alike
        self._parts.append(said)
        self.count += said.count
        return len(said.keys) + len(said.values)

    @property
    def keys(self) -> bytes:
        """All K rows."""
        return b"".join(part.keys for part in self._parts)

    @property
    def values(self) -> bytes:
        """All V rows."""
        return b"".join(part.values for part in self._parts)


@asynccontextmanager
async def open_cells(
    transport: Transport, hop: Hop, terms: Terms, receipt: Signed, *, by_layers: bool = False
) -> AsyncIterator[CommittedCells]:
    """Have a stage sign for its K and V rows, and then open rows of them while the block lasts.

    Args:
        transport: reaches it.
        hop: the stage, and the layers that it ran.
        terms: of the session, which must still be open there.
        receipt: the stage's own, checked; it covers the rows that may be opened.
        by_layers: some of its layers will be named. A stage of before opens all of them.

    Raises:
        PeerUnavailable: it cannot be reached, or knows no openings.
        OpensTooLate: it takes too long.
        RefusedError: it says why not, and when to come back.
        RemoteProtocolError: it did not sign for what it was asked.
    """
    with _in_time(hop):
        asked = encode(AskCells(terms.session, receipt))
        channel, by_layers = await _open(transport, hop, asked, by_layers=by_layers)
    try:
        with _in_time(hop):
            said = await receive(channel, CellsAre)
        count = Receipt.parse(receipt.body).position
        statement = KvStatement.parse(said.signed.body)
        is_whole = len(said.layers) == hop.end - hop.first
        expected = KvStatement(blake3(receipt.body).digest(), kv_root(count, said.layers))
        signed = CELLS_SIGNED_AS + said.signed.body
        is_signed = verify(hop.peer, signed, said.signed.signature)
        if not is_whole or statement != expected or not is_signed:
            raise RemoteProtocolError(hop.peer, "it did not sign for its K and V rows")
        yield CommittedCells(channel, hop, terms, receipt, said, by_layers=by_layers)
    finally:
        channel.abort()


async def _open(
    transport: Transport, hop: Hop, asked: bytes, *, by_layers: bool
) -> tuple[Channel, bool]:
    """Open a channel, of the kind that names layers if the stage knows it; return whether so."""
    if by_layers:
        try:
            return await transport.open(hop.peer, LAYERS_OPENINGS, hop.addresses, first=asked), True
        except PeerUnavailable:  # if it is away, that shows once more
            pass
    return await transport.open(hop.peer, OPENINGS, hop.addresses, first=asked), False


@contextmanager
def _in_time(hop: Hop) -> Iterator[None]:
    try:
        with trio.fail_after(CELLS_S_MAX):
            yield
    except trio.TooSlowError:
        raise OpensTooLate(hop.peer, "it took too long to open its rows") from None


def _size(said: StepsAre) -> int:
    return len(said.given) + sum(map(len, said.steps))
