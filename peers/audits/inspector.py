"""Proving a stage's work from openings: no second holder of its layers is needed.

The stage signs for its K and V rows before it hears which rows will be looked at. What it then
opens is checked here, with a proof key or with layers that are here; a false step is blamed on it
with a proof that others can check. It is a spot check: a row that is not named is not seen.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from itertools import pairwise
from typing import Final

import numpy as np
import trio
from attrs import evolve
from blake3 import blake3

from p2pinfer.core.advertisement import Advertisement
from p2pinfer.core.audit import THIS_MACHINE
from p2pinfer.core.errors import P2pinferError, PeerError, PeerUnavailable, RemoteProtocolError
from p2pinfer.core.evidence import FRAUD_ROWS_BYTES_MAX
from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Refusal
from p2pinfer.core.opening import (
    OPENED_BYTES_MAX,
    BadOpening,
    OpenedTrace,
    check_roots,
    check_shown,
    encode,
)
from p2pinfer.core.receipts import Receipt
from p2pinfer.core.shown_layers import (
    LayerBytes,
    ShownLayers,
    choose_layers,
    opened_bytes,
    rows_seen,
)
from p2pinfer.core.trust import (
    ROWS_PROVEN,
    Audited,
    AuditVerdict,
    Unproved,
    choose_audits,
    rows_text,
)
from p2pinfer.core.verdict import Fault, can_be_judged, cut_to
from peers.audits.patience import Patience
from peers.audits.steps import StepsJudge
from peers.parts.protocol import Run, in_thread
from peers.receipts.openings import AskedRow, OpensTooLate, open_cells
from peers.receipts.prover import RETRY_MS, counted_bytes, own_limits
from peers.receipts.session_evidence import Evidence
from peers.steps.limits import ROW_TYPE
from peers.steps.messaging import RefusedError
from transports.base import Transport

_log = logging.getLogger("p2pinfer.openings")

KEPT_BYTES_MAX: Final = 16 << 20
"""Of openings that are kept for an answer's certificate."""

CELLS_BYTES_COPIED: Final = 32 << 20
"""Of a session, that every engine copies; it may have grown by half since its stages signed."""

_DRAWN_BY: Final = b"p2pinfer 1 rows to prove\0"


class Inspector:
    """Proves stages of one model.

    Args:
        transport: reaches them.
        judge: judges what they open.
        serving: returns the advertisements of the peers that serve the model.
        rate: the share of stages that is proven although others could run them again.
        on_fraud: called, if a stage cheated, with a proof that others can check themselves.
        on_failed: called with the errors of stages that open nothing.
        run: runs slow work, so that nothing else waits for it.
    """

    def __init__(
        self,
        transport: Transport,
        judge: StepsJudge,
        serving: Callable[[], Iterable[Advertisement]],
        rate: float,
        on_fraud: Callable[[FraudProof], None] = lambda _: None,
        on_failed: Callable[[PeerError], None] = lambda _: None,
        run: Run = in_thread,
    ) -> None:
        self.rate = rate
        self._transport, self._judge, self._serving = transport, judge, serving
        self._on_fraud, self._on_failed, self._run = on_fraud, on_failed, run
        self._asked = own_limits()
        self._patience = Patience()

    def over(self, transport: Transport, on_fraud: Callable[[FraudProof], None]) -> "Inspector":
        """Return one that asks, and accuses, in another name; it shares all limits with this."""
        found = copy(self)
        found._transport, found._on_fraud = transport, on_fraud
        return found

    def choose(self, nonce: bytes, receipts: list[bytes]) -> list[int]:
        """Return which stages to prove beside those that are run again, as ``choose_audits``."""
        return choose_audits(blake3(_DRAWN_BY, key=nonce).digest(), receipts, self.rate)

    def is_alone(self, receipt: Receipt, peer: PeerId) -> bool:
        """Whether nobody else could give a receipt's rows bit for bit."""
        numerics = receipt.numerics.hex()
        return not any(
            offer.first == receipt.first
            and receipt.end <= offer.end
            and offer.numerics_class == numerics
            for offer in self._serving()
            if offer.peer != peer
        )

    async def prove(self, evidence: Evidence, index: int, receipt: Receipt) -> Audited | Unproved:
        """Have a stage open some rows, and check them, or say why that cannot be done.

        Args:
            evidence: of the session, which is settled and still open.
            index: of the stage in the route.
            receipt: the stage's for all rows.
        """
        peer = evidence.stages[index].hop.peer
        layers = range(receipt.first, receipt.end)
        if not self._judge.covers(layers):
            return Unproved(peer, receipt.first, receipt.end, self._judge.lacks(layers))
        width = len(evidence.witness.received.open(0, 1).rows) // np.dtype(ROW_TYPE).itemsize
        size = counted_bytes(width, receipt)
        if not self._asked.spend(peer, trio.current_time(), size):
            why = "it opened as many rows for this machine just now as it does for anybody"
            return Unproved(peer, receipt.first, receipt.end, why)
        found: Audited | str
        try:
            layer = await self._judge.layer_bytes(receipt.first)
            try:
                found = await self._prove(evidence, index, receipt, layer)
            except RefusedError as error:
                if not await self._comes_back(error, size):
                    raise
                found = await self._prove(evidence, index, receipt, layer)
        except (BadOpening, RemoteProtocolError) as error:
            if not isinstance(error, RemoteProtocolError) or error.peer == peer:
                return _audited(peer, receipt, AuditVerdict.NOT_OPENED, str(error), blamed=peer)
            found = f"the stage before it did not open its rows: {error}"
        except PeerUnavailable as error:  # or it knows no openings
            found = str(error)
            if isinstance(error, OpensTooLate) and self._patience.is_tried(peer):
                self._on_failed(error)
        except RefusedError as error:
            found = f"it refused: {error.refused.text}"
            if not self._is_excused(error, index, receipt, layer):
                self._on_failed(PeerUnavailable(error.peer, f"it opens no rows: {error}"))
        except P2pinferError as error:
            found = str(error)
        if isinstance(found, Audited):
            self._patience.opened(peer, receipt.numerics)
            return found
        _log.info("%s was not proved: %s", peer, found)
        return Unproved(peer, receipt.first, receipt.end, found)

    async def _comes_back(self, no: RefusedError, size: int) -> bool:
        """Wait as long as a busy stage says; return whether to ask it again."""
        refused = no.refused
        if refused.code is not Refusal.BUSY or not 0 < refused.retry_ms <= RETRY_MS:
            return False
        await trio.sleep(refused.retry_ms / 1000)
        return self._asked.spend(no.peer, trio.current_time(), size)

    def _is_excused(
        self, no: RefusedError, index: int, receipt: Receipt, layer: LayerBytes
    ) -> bool:
        """Return whether an honest stage may have to refuse so."""
        code = no.refused.code
        if code is Refusal.BAD_REQUEST:  # the stage before may have opened another row than it sent
            return index > 0
        cells = layer.cell * receipt.position * (receipt.end - receipt.first)
        return self._patience.may_refuse(
            no.peer, code, receipt.numerics, is_long=cells > CELLS_BYTES_COPIED
        )

    async def _prove(
        self, evidence: Evidence, index: int, receipt: Receipt, layer: LayerBytes
    ) -> Audited | str:
        stage, count = evidence.stages[index], receipt.position
        peer, kept_bytes = stage.hop.peer, _kept_bytes(evidence)
        positions, layers = choose_rows(evidence.nonce, receipt), receipt.end - receipt.first
        shown = choose_layers(evidence.nonce, receipt, positions, layer)
        everything = ShownLayers(0, layers, layers)
        is_cut = any(each != everything for each in shown)
        signed = stage.signed(count)[count]
        async with open_cells(
            self._transport, stage.hop, evidence.terms, signed, by_layers=is_cut
        ) as cells:
            if is_cut and not cells.by_layers:
                if _all_bytes(layer, layers, positions) > OPENED_BYTES_MAX:
                    return "its software opens all of its layers at once, which is too much"
                shown = [everything] * len(positions)
            asked = {}
            for position in positions:
                # Not before the stage has signed for its cells: the one before it, which learns the
                # positions here, could tell it for which rows to invent K and V.
                opened = await evidence.inputs(index, position, 1)
                asked[position] = AskedRow(opened.rows, opened.regimes[0])
            await cells.ask(asked, dict(zip(positions, shown, strict=True)))
            keeps = True
            for position, of_row in zip(positions, shown, strict=True):
                opening = await cells.next()
                if not can_be_judged(opening.pledge):
                    return f"what a machine of kind {opening.pledge.machine} computes is unknown"
                await self._run(check_roots, opening)
                check_shown(opening, of_row.of(layers))
                verdict = await self._judge.judge(opening)
                if verdict.fault:
                    if verdict.fault.is_provable:
                        self._accuse(evidence, opening, verdict.fault)
                    await self._judge.renew()
                    text, at = verdict.fault.text(), position
                    return _audited(peer, receipt, AuditVerdict.CHEATED, text, at, blamed=peer)
                data = encode(opening)
                # Where a row's layers begin is known from the rows before it: none is left out.
                keeps = keeps and kept_bytes + len(data) <= KEPT_BYTES_MAX
                if keeps:
                    kept = evidence.openings if of_row == everything else evidence.cut_openings
                    kept.append(data)
                    kept_bytes += len(data)
        seen, many = rows_seen(shown, layers), len(positions)
        text = rows_text(many, count, seen / many)
        found = _audited(peer, receipt, AuditVerdict.PROVED, text)
        return found if seen == many else evolve(found, seen=seen)

    def _accuse(self, evidence: Evidence, opening: OpenedTrace, fault: Fault) -> None:
        pledge, receipt = opening.pledge, opening.receipt
        data = encode(cut_to(opening, fault))
        if len(data) > FRAUD_ROWS_BYTES_MAX:
            _log.info("%s cheated, but the proof would be too long to send", pledge.peer)
            return
        self._on_fraud(
            FraudProof(evidence.terms, pledge.peer, receipt.end, (pledge.receipt,), opening=data)
        )


def choose_rows(nonce: bytes, receipt: Receipt) -> list[int]:
    """Return the positions that a stage is to open, which it could not foresee; ascending.

    One lies in each of as many equal parts of the session. However many rows are false, and
    wherever they lie, that finds one at least as often as rows drawn from the whole session; and a
    cheat that begins behind the middle, like one that forgets what is far back, has two rows to
    fear there.

    Args:
        nonce: the requester's, 32 bytes.
        receipt: the stage's for all rows.
    """
    drawn = blake3(_DRAWN_BY + receipt.body(), key=nonce)
    return [
        part[int.from_bytes(drawn.digest(8, seek=8 * number), "little") % len(part)]
        for number, part in enumerate(parts_of(receipt.position))
    ]


def parts_of(count: int) -> list[range]:
    """Cut ``count`` positions into equal parts, in each of which one row is opened."""
    rows = min(ROWS_PROVEN, count)
    edges = [count * part // rows for part in range(rows + 1)]
    return [range(start, end) for start, end in pairwise(edges)]


def _audited(
    peer: PeerId,
    receipt: Receipt,
    verdict: AuditVerdict,
    text: str,
    position: int | None = None,
    blamed: PeerId | None = None,
) -> Audited:
    by = (THIS_MACHINE,)
    return Audited(peer, receipt.first, receipt.end, verdict, by, position, blamed, text)


def _kept_bytes(evidence: Evidence) -> int:
    return sum(map(len, (*evidence.openings, *evidence.cut_openings)))


def _all_bytes(layer: LayerBytes, layers: int, positions: Sequence[int]) -> int:
    """Return how many bytes a stage sends that opens all of its layers."""
    steps = [opened_bytes(layer, layers, at, ShownLayers(0, layers, 0)) for at in positions]
    return sum(steps) + layers * layer.cell * (positions[-1] + 1)
