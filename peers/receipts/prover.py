"""The stage's side of openings: it shows what its layers computed for rows that a requester names.

Two signatures come first. The stage signs for its K and V rows before it hears a position, and for
the steps of a row, which it runs again, before it shows them. It works for one requester at a time,
on a copy of the session's cells, so that neither this session nor others wait; what it sends, how
often and how long is bounded, and beyond that it says when to come back.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import trio
from blake3 import blake3

from p2pinfer.core.errors import ChannelClosed, EngineError, RemoteProtocolError
from p2pinfer.core.ids import PeerId
from p2pinfer.core.kv_root import SIGNED_AS as CELLS_SIGNED_AS
from p2pinfer.core.kv_root import KvStatement, SignedKv, kv_root, tails
from p2pinfer.core.merkle import leaf
from p2pinfer.core.messages import Refusal
from p2pinfer.core.opening import PLEDGED_AS, Pledge, layer_leaf, trace_root
from p2pinfer.core.proving import (
    CELLS_BYTES_MAX,
    AskCells,
    AskLayers,
    AskSteps,
    CellRows,
    CellsAre,
    PledgeIs,
    StepsAre,
)
from p2pinfer.core.receipts import SIGNED_AS, BadReceipt, Receipt, Signed
from p2pinfer.core.shown_layers import ShownLayers
from p2pinfer.core.traced import Traced
from p2pinfer.engine.base import CannotCopy, CellsCopy, EngineBusy
from peers.receipts.signer import ReceiptSigner, SessionRecord, terms_of
from peers.steps.limits import ROW_TYPE
from peers.steps.messaging import RefusedError, receive, refuse, send
from peers.steps.rate_limit import RateLimits
from transports.base import Channel, Transport
from transports.identity import verify

_log = logging.getLogger("p2pinfer.openings")

OPENINGS: Final = "openings"
LAYERS_OPENINGS: Final = "openings-2"
"""The same, but the asker says of which layers; peers of before know only the first."""

OPENING_S_MAX: Final = 60.0
"""For a channel as a whole, once its turn has come. A stage that is never idle traces its rows in
eleven times the time that it needs for them, since its sessions go first."""

ASKED_S_MAX: Final = 10.0
"""From an answer until the next question, and for the first one."""

TURN_S_MAX: Final = 10.0
"""Waiting for the turn of others, then the asker is told to come back."""

ASKERS_MAX: Final = 4
"""Served or waiting, each on one channel; a fifth is told to come back."""

CHANNEL_BYTES_MIN: Final = 16 << 20
"""What a channel counts for at least, since it keeps others from their turn as well."""

PEER_BYTES_MAX: Final = 8 * CHANNEL_BYTES_MIN
PEER_BYTES_PER_S: Final = CHANNEL_BYTES_MIN / 60
"""Of cells shown to one requester: eight channels at once, then one a minute. 4,096 positions of
ten layers of the default model count 94 MB."""

ALL_BYTES_MAX: Final = 8 * PEER_BYTES_MAX
ALL_BYTES_PER_S: Final = 15 * PEER_BYTES_PER_S
"""Of cells shown to anybody: each byte is read, hashed and sent."""

READS_AT_ONCE: Final = 8
"""Layers whose cells are asked of an engine together: answers wait for a decode of others, and
forty in a row took a busy stage longer than a minute."""

RETRY_MS: Final = 15_000
"""When to come back: few channels take longer."""

InThread = Callable[..., Awaitable[list[bytes]]]
"""Runs a function that takes long, without holding up the event loop."""


@dataclass(frozen=True)
class ShownCells:
    """What one requester has been shown of a session: a statement about its cells."""

    record: SessionRecord
    receipt: Signed
    said: Receipt
    """The receipt, parsed."""
    copy: CellsCopy
    chains: Sequence[Sequence[bytes]]
    """Each layer's, before each position."""
    statement: SignedKv


@dataclass(frozen=True)
class RowAgain:
    """A row that was run again."""

    position: int
    inputs: Sequence[bytes]
    """What goes into each layer."""
    steps: Sequence[Sequence[bytes]]


class Prover:
    """Opens rows of a peer's sessions for their requesters.

    Args:
        transport: to requesters.
        signer: keeps the records of sessions.
        machine: the kind of CPU, such as ``x86_64``.
        in_thread: hashes cells.
    """

    def __init__(
        self,
        transport: Transport,
        signer: ReceiptSigner,
        machine: str,
        in_thread: InThread = trio.to_thread.run_sync,
    ) -> None:
        self._transport, self._signer = transport, signer
        self._machine, self._in_thread = machine, in_thread
        self._askers: set[PeerId] = set()
        self._turn = trio.Lock()
        self._of_peer = RateLimits(PEER_BYTES_MAX, PEER_BYTES_PER_S)
        self._of_all = RateLimits(ALL_BYTES_MAX, ALL_BYTES_PER_S)

    def listen(self) -> None:
        """Answer requesters from now on."""
        self._transport.handle(OPENINGS, partial(self._serve, by_layers=False))
        self._transport.handle(LAYERS_OPENINGS, partial(self._serve, by_layers=True))

    async def _serve(self, channel: Channel, *, by_layers: bool) -> None:
        try:
            with trio.fail_after(ASKED_S_MAX):
                asked = await receive(channel, AskCells)
            async with self._let_in(channel.remote):
                with trio.fail_after(OPENING_S_MAX):
                    await self._show(channel, asked, by_layers=by_layers)
        except ChannelClosed:
            pass  # the requester has left
        except RemoteProtocolError as error:
            _log.info("%s", error)
            await refuse(channel, self._no(Refusal.BAD_REQUEST, str(error)))
        except trio.TooSlowError:
            await refuse(channel, self._no(Refusal.TOO_SLOW, "the opening took too long"))
        except EngineBusy as error:
            await refuse(channel, self._no(Refusal.BUSY, str(error), RETRY_MS))
        except CannotCopy as error:
            await refuse(channel, self._no(Refusal.CONTEXT_FULL, str(error)))
        except EngineError as error:
            await refuse(channel, self._no(Refusal.ENGINE_FAILED, str(error)))
        except RefusedError as error:
            await refuse(channel, error)

    @asynccontextmanager
    async def _let_in(self, peer: PeerId) -> AsyncIterator[None]:
        """Wait for a requester's turn, and keep it while the block lasts; raises RefusedError."""
        if peer in self._askers or len(self._askers) >= ASKERS_MAX:
            raise self._no(Refusal.BUSY, "others' openings are under way", RETRY_MS)
        self._askers.add(peer)
        try:
            with trio.move_on_after(TURN_S_MAX) as waiting:
                await self._turn.acquire()
            if waiting.cancelled_caught:
                raise self._no(Refusal.BUSY, "others' openings are under way", RETRY_MS)
            try:
                yield
            finally:
                self._turn.release()
        finally:
            self._askers.remove(peer)

    async def _show(self, channel: Channel, asked: AskCells, *, by_layers: bool) -> None:
        """Sign for the cells, and open the rows that the requester names then."""
        record = self._signer.find(asked.session, channel.remote)
        if record is None:
            raise self._no(Refusal.UNKNOWN_SESSION, "no such session is served here for you")
        said = self._own(record, asked.receipt)
        self.admit(channel.remote, record, said)
        copy = await self.copy(record, said.position)
        try:
            self._check_held(record, said)  # what the copy holds is known by now
            shown = await self._commit(record, asked.receipt, said, copy)
            await send(channel, CellsAre(shown.statement, tuple(c[0] for c in shown.chains)))
            with trio.fail_after(ASKED_S_MAX):
                steps = await receive(channel, AskSteps)
            await self._open(channel, shown, steps, by_layers=by_layers)
        finally:
            copy.close()

    def _own(self, record: SessionRecord, receipt: Signed) -> Receipt:
        """Parse a receipt that this peer must have signed for a session as it still is.

        Raises:
            RemoteProtocolError: it did not.
            RefusedError: the session has gone back since.
        """
        seat = record.seat
        try:
            said = Receipt.parse(receipt.body)
        except BadReceipt as error:
            raise RemoteProtocolError(record.opened.requester, str(error)) from error
        is_about_it = (said.terms, said.first, said.end) == (seat.terms, seat.first, seat.end)
        signed = SIGNED_AS + receipt.body
        if not is_about_it or not verify(self._transport.peer_id, signed, receipt.signature):
            raise RemoteProtocolError(record.opened.requester, "the receipt is none of ours")
        self._check_held(record, said)
        return said

    def _check_held(self, record: SessionRecord, said: Receipt) -> None:
        count, witness = said.position, record.witness
        is_held = 0 < count <= witness.length and (said.received, said.sent) == (
            witness.received.tree.root(count),
            witness.sent.tree.root(count),
        )
        if not is_held:
            raise self._no(Refusal.NOT_HELD, "the session has gone back since")

    def admit(self, peer: PeerId, record: SessionRecord, said: Receipt) -> None:
        """Count the cells that are to be shown, or raise RefusedError."""
        size = counted_bytes(record.width, said)
        now_s, mine = trio.current_time(), self._transport.peer_id
        if not (
            self._of_peer.spend(peer, now_s, size)
            and self._of_all.spend(mine, now_s, min(size, ALL_BYTES_MAX))
        ):
            text = "as many rows as this peer opens were opened just now"
            raise self._no(Refusal.BUSY, text, RETRY_MS)

    async def _commit(
        self, record: SessionRecord, receipt: Signed, said: Receipt, copy: CellsCopy
    ) -> ShownCells:
        chains: list[list[bytes]] = []
        layers = said.end - said.first
        for at in range(0, layers, READS_AT_ONCE):
            some = range(at, min(at + READS_AT_ONCE, layers))
            cells = await _read(copy, [(layer, 0, said.position) for layer in some])
            chains += [await self._in_thread(tails, *each, said.position) for each in cells]
        root = kv_root(said.position, [chain[0] for chain in chains])
        body = KvStatement(blake3(receipt.body).digest(), root).body()
        statement = SignedKv(body, record.seat.sign(CELLS_SIGNED_AS + body))
        return ShownCells(record, receipt, said, copy, chains, statement)

    async def _open(
        self, channel: Channel, shown: ShownCells, asked: AskSteps, *, by_layers: bool
    ) -> None:
        given = list(self._check(channel.remote, shown, asked))
        rows = []
        for position, row in given:
            again = await self.run(shown, position, row)
            rows.append(again)
            await send(channel, self._pledge(shown, again, by_layers=by_layers))
        layers = shown.said.end - shown.said.first
        wanted = [ShownLayers(0, layers, layers).of(layers) for _ in rows]
        if by_layers:
            wanted = await _wanted(channel, layers, len(rows))
        sent = [0] * layers
        for again, of_row in zip(rows, wanted, strict=True):
            position = again.position
            of_layers = list(of_row.items())
            for at in range(0, len(of_layers), READS_AT_ONCE):
                some = of_layers[at : at + READS_AT_ONCE]
                due = [(layer, sent[layer], position + 1) for layer, has_cells in some if has_cells]
                cells = iter(await _read(shown.copy, due))
                for layer, has_cells in some:
                    if has_cells:
                        await _send_cells(channel, layer, position + 1 - sent[layer], *next(cells))
                        sent[layer] = position + 1
                    steps = again.inputs[layer], tuple(again.steps[layer])
                    tail = shown.chains[layer][position + 1]
                    await send(channel, StepsAre(position, layer, *steps, tail))

    def _check(
        self, peer: PeerId, shown: ShownCells, asked: AskSteps
    ) -> Iterator[tuple[int, bytes]]:
        """Yield each position with the row that came in there, as float32.

        Raises:
            RemoteProtocolError: they are not those.
            RefusedError: the session has gone back.
        """
        record, said = shown.record, shown.said
        self._check_held(record, said)
        size, received = record.width * np.dtype(ROW_TYPE).itemsize, record.witness.received
        if len(asked.rows) != size * len(asked.positions) or asked.positions[-1] >= said.position:
            raise RemoteProtocolError(peer, "it asks for rows that the receipt does not cover")
        for number, position in enumerate(asked.positions):
            row = asked.rows[number * size : (number + 1) * size]
            regime = received.regime(position)
            if leaf(position, row, regime=regime) != received.tree.leaf(position):
                raise RemoteProtocolError(peer, "it names a row that did not come in there")
            yield position, row

    async def copy(self, record: SessionRecord, positions: int) -> CellsCopy:
        """Copy a session's cells; raises as ``EngineSession.copy``."""
        return await record.cells.copy(positions)

    async def run(self, shown: ShownCells, position: int, row: bytes) -> RowAgain:
        """Run a row again; raises EngineError."""
        regime = shown.record.witness.received.regime(position)
        found = await shown.copy.trace(position, row, regime=regime)
        layers = range(shown.said.end - shown.said.first)
        steps = [[found[layer, step] for step in Traced] for layer in layers]
        inputs = [row, *(found[layer, Traced.OUT] for layer in layers)][:-1]
        return RowAgain(position, inputs, steps)

    def _pledge(self, shown: ShownCells, row: RowAgain, *, by_layers: bool) -> PledgeIs:
        """Sign for a row's steps.

        Raises:
            RefusedError: the session has gone back, or the row came out otherwise this time.
        """
        record, said, position = shown.record, shown.said, row.position
        self._check_held(record, said)
        received, sent = record.witness.received, record.witness.sent
        regime, came_out = received.regime(position), self.came_out(record, row)
        leaves = tuple(layer_leaf(*each) for each in zip(row.inputs, row.steps, strict=True))
        body = Pledge(
            terms_of(record.opened),
            self._transport.peer_id,
            shown.receipt,
            shown.statement,
            position,
            int(regime),
            shown.copy.attention,
            self._machine,
            trace_root(leaves),
        ).body()
        return PledgeIs(
            position,
            body,
            record.seat.sign(PLEDGED_AS + body),
            received.tree.path(position, said.position),
            came_out,
            sent.tree.path(position, said.position),
            leaves if by_layers else (),
        )

    def came_out(self, record: SessionRecord, row: RowAgain) -> bytes:
        """Return the row that the session sent, as on the wire; raises RefusedError if not so."""
        came_out = row.steps[-1][-1]
        regime, sent = record.witness.sent.regime(row.position), record.witness.sent
        if leaf(row.position, came_out, regime=regime) != sent.tree.leaf(row.position):
            raise self._no(Refusal.ENGINE_FAILED, "the row comes out otherwise than it did")
        return came_out

    def _no(self, code: Refusal, text: str, retry_ms: int = 0) -> RefusedError:
        return RefusedError.of(self._transport.peer_id, code, text, retry_ms)


def counted_bytes(width: int, said: Receipt) -> int:
    """Return how many bytes of cells an opening counts for.

    Args:
        width: numbers of a row.
        said: the receipt whose rows are opened.
    """
    widest = 2 * 2 * width  # K and V of as many heads as the queries have, in float16
    size = max(widest * said.position * (said.end - said.first), CHANNEL_BYTES_MIN)
    return min(size, PEER_BYTES_MAX)


def own_limits() -> RateLimits:
    """Return what a requester counts for itself, to ask no stage for more than it opens."""
    return RateLimits(PEER_BYTES_MAX, 0.9 * PEER_BYTES_PER_S)  # a stage counts a little later


async def _wanted(channel: Channel, layers: int, rows: int) -> list[dict[int, bool]]:
    """Return of each row the layers that the requester names, and which of them show K and V.

    Raises:
        RemoteProtocolError: they are not the stage's.
    """
    with trio.fail_after(ASKED_S_MAX):
        asked = await receive(channel, AskLayers)
    try:
        wanted = [each.of(layers) for each in asked.shown]
    except ValueError as error:
        raise RemoteProtocolError(channel.remote, str(error)) from error
    if len(wanted) != rows:
        raise RemoteProtocolError(channel.remote, "it names layers of other rows")
    return wanted


async def _read(
    copy: CellsCopy, wanted: Sequence[tuple[int, int, int]]
) -> list[tuple[bytes, bytes]]:
    """Read the cells of several layers, from a position to another, in few turns of the engine.

    Raises:
        EngineError: as ``CellsCopy.read``.
    """
    found: dict[int, tuple[bytes, bytes]] = {}
    failed: list[EngineError] = []

    async def read(number: int, layer: int, first: int, end: int) -> None:
        try:
            found[number] = await copy.read(layer, first, end)
        except EngineError as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        for number, each in enumerate(wanted):
            nursery.start_soon(read, number, *each)
    if failed:
        raise failed[0]
    return [found[number] for number in range(len(wanted))]


async def _send_cells(channel: Channel, layer: int, count: int, keys: bytes, values: bytes) -> None:
    """Send K and V rows, in messages that hold as many as they may."""
    wide, deep = len(keys) // count, len(values) // count
    step = max(CELLS_BYTES_MAX // max(wide, deep), 1)
    for at in range(0, count, step):
        many = min(step, count - at)
        until = at + many
        part = keys[at * wide : until * wide], values[at * deep : until * deep]
        await send(channel, CellRows(layer, many, *part))
