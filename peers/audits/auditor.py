"""Audits: another holder runs a stage's layers again, over the rows the stage signed for receiving.

The holder is asked in a plain session of one stage, so it cannot tell an audit from normal work,
and gives no verdict: it computes, and the requester compares. Rows are compared bit for bit; where
the two are of different numerics classes, differences within bounds are accepted. Only one chunk is
under way at a time, so that an audit never crowds out an answer.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from copy import copy
from functools import partial

import numpy as np

from p2pinfer.core.audit import THIS_MACHINE, Replayed, conclude, is_gone, is_settled
from p2pinfer.core.bounds import DEFAULT_BOUNDS, Bounds, distances, first_outside
from p2pinfer.core.continuity import Break
from p2pinfer.core.errors import P2pinferError, PeerError, PeerUnavailable
from p2pinfer.core.evidence import FRAUD_ROWS_BYTES_MAX, OPENING_ROWS_MAX
from p2pinfer.core.fraud import FRAUD_POSITIONS_MAX, FraudProof
from p2pinfer.core.ids import PeerId
from p2pinfer.core.layer_range import LayerRange
from p2pinfer.core.messages import Hop
from p2pinfer.core.receipts import Receipt, Signed, Terms
from p2pinfer.core.trust import Audited, AuditVerdict, Trust, Unproved, choose_audits
from p2pinfer.core.witness import OpenedRows, Rows, runs_of
from peers.audits.inspector import Inspector
from peers.audits.replay import OpenReplay, Replay, Vouching, cut
from peers.receipts.session_evidence import REPLACED_S_MAX, Evidence
from peers.steps.limits import ROW_TYPE
from transports.base import Transport

_log = logging.getLogger("p2pinfer.audit")

AUDITORS_MAX = 3
"""Asked about one stage: one, another if the first is gone or differs, and one to settle it."""

EXAMINED_TIMES_MAX = 3
"""An answer is examined again if a stage died meanwhile."""

FindReplays = Callable[[int, int, PeerId], Sequence[OpenReplay]]
"""Returns replays for layers ``first:end``, best first; never by the named peer."""


OpenRows = Callable[[int, int], Awaitable[OpenedRows]]
"""Takes a position and a count; returns that many rows from there on; raises PeerError."""


class _NotOpenedError(Exception):
    """Rows cannot be had as they were signed for; a peer that has died is not blamed."""

    def __init__(self, blamed: PeerId | None, text: str, position: int | None = None) -> None:
        super().__init__(text)
        self.blamed, self.position = blamed, position

    def found_by(self, name: str, refuted: int | None = None) -> Replayed:
        """Return it as a replay's finding."""
        return Replayed.not_opened(name, self.blamed, str(self), self.position, refuted)


class Auditor:
    """Settles answers and audits a share of their stages.

    Args:
        find: finds peers that can replay layers.
        rate: the share of stages that is audited.
        bounds: between numerics classes.
        on_fraud: called, if a stage cheated, with a proof that others can check themselves.
        inspector: proves stages from rows that they open; None: nothing is proven.
    """

    def __init__(
        self,
        find: FindReplays,
        rate: float,
        bounds: Bounds = DEFAULT_BOUNDS,
        on_fraud: Callable[[FraudProof], None] = lambda _: None,
        inspector: Inspector | None = None,
    ) -> None:
        self.rate, self._inspector = rate, inspector
        self._find, self._on_fraud = find, on_fraud
        self._bounds = bounds

    def over(
        self, transport: Transport, find: FindReplays, on_fraud: Callable[[FraudProof], None]
    ) -> "Auditor":
        """Return one that asks, and accuses, in another name over another transport."""
        found = copy(self)
        found._find, found._on_fraud = find, on_fraud
        found._inspector = self._inspector and self._inspector.over(transport, on_fraud)
        return found

    async def examine(self, evidence: Evidence, position: int) -> Trust:
        """Return what holds for a session's first ``position`` rows; raises no other peer's error.

        If a stage dies while others are audited, its replacement must match everything that was
        signed, and the stages already chosen are still audited: dying saves no cheat.
        """
        owed: frozenset[Hop] = frozenset()
        unproved: list[Unproved] = []
        evidence.openings.clear()
        evidence.cut_openings.clear()
        with evidence.in_need():
            for _ in range(EXAMINED_TIMES_MAX):
                if broken := await evidence.settle(position):
                    audits = await self._suspect(evidence, broken)
                    break
                owed, audits, unproved = await self._sample(evidence, position, owed)
                if not any(map(is_gone, audits)) or not await evidence.wait_changed(REPLACED_S_MAX):
                    break
        stages = evidence.stages
        for stage in stages:
            if stage.contradiction:
                hop = stage.hop
                proof = FraudProof(evidence.terms, hop.peer, hop.end, stage.contradiction)
                self._on_fraud(proof)
        proof_rate = self._inspector.rate if self._inspector else 0.0
        return Trust(
            len(stages), position, self.rate, broken, tuple(audits), proof_rate, tuple(unproved)
        )

    async def _sample(
        self, evidence: Evidence, position: int, owed: frozenset[Hop]
    ) -> tuple[frozenset[Hop], list[Audited], list[Unproved]]:
        """Audit the stages still owed an audit and those that the nonce chooses.

        Returns:
            Those stages, what was found, and who could not be proven.
        """
        stages = evidence.stages
        last = [stage.vouched(position).receipts[position] for stage in stages]
        chosen = choose_audits(evidence.nonce, [each.body() for each in last], self.rate)
        owed = owed.union(stages[index].hop for index in chosen)
        due = [index for index, stage in enumerate(stages) if stage.hop in owed]
        found: list[Audited | Unproved] = []
        for index in due:
            found += await self._prove_or_audit(evidence, index, last[index])
        if self._inspector:
            more = self._inspector.choose(evidence.nonce, [each.body() for each in last])
            for index in set(more).difference(due):
                found.append(await self._inspector.prove(evidence, index, last[index]))
        audits = [each for each in found if isinstance(each, Audited)]
        return owed, audits, [each for each in found if isinstance(each, Unproved)]

    async def _prove_or_audit(
        self, evidence: Evidence, index: int, receipt: Receipt
    ) -> list[Audited | Unproved]:
        """Audit one stage; where nobody else is of its class, have it open rows instead."""
        peer, inspector = evidence.stages[index].hop.peer, self._inspector
        if inspector and inspector.is_alone(receipt, peer):
            proved = await inspector.prove(evidence, index, receipt)
            if isinstance(proved, Audited):
                return [proved]
            return [proved, await self._audit(evidence, index, receipt)]
        found = await self._audit(evidence, index, receipt)
        if inspector and found.verdict is AuditVerdict.NOT_REPLAYED:
            proved = await inspector.prove(evidence, index, receipt)
            return [proved] if isinstance(proved, Audited) else [found, proved]
        return [found]

    async def _suspect(self, evidence: Evidence, broken: Break) -> list[Audited]:
        """Find out, as far as possible, which of two stages signed something false.

        The first one is audited. If it computed correctly, the other one may still have received
        something else. Then both are asked to sign again: one may contradict itself.
        """
        if len(broken.peers) < 2:
            return []
        at, stages = broken.position, evidence.stages
        index = [stage.hop.peer for stage in stages].index(broken.peers[0])
        found = [await self._audit(evidence, index, stages[index].vouched(at).receipts[at])]
        for stage in stages[index : index + 2]:
            if not stage.fault:
                await stage.settle(at)
        return found

    async def _audit(self, evidence: Evidence, index: int, receipt: Receipt) -> Audited:
        """Audit one stage; if an auditor differs from it, another one settles which is right."""
        peer = evidence.stages[index].hop.peer
        found: list[Replayed] = []
        vouchings: dict[str, Vouching | None] = {}
        for opening in self._find(receipt.first, receipt.end, peer)[:AUDITORS_MAX]:
            try:
                async with opening(receipt.position) as replay:
                    one = await _replay(evidence, index, receipt, replay, self._bounds)
                    if one.verdict is AuditVerdict.CHEATED:
                        vouchings[one.by] = await replay.vouch(receipt.position)
            except P2pinferError as error:
                _log.info("an auditor is gone: %s", error)
                continue
            found.append(one)
            if is_settled(found):
                break
        concluded = conclude(peer, LayerRange(receipt.first, receipt.end), found)
        signed = evidence.stages[index].signed(receipt.position)
        if concluded.blamed == peer and found[-1].refuted:
            await self._accuse(evidence, index, peer, evidence.terms, signed[found[-1].refuted])
        if concluded.blamed and (vouching := vouchings.get(concluded.blamed)):
            its = vouching.receipts
            lies = (at for at in its if at in signed and _sent(its[at]) != _sent(signed[at]))
            if (at := next(lies, None)) is not None:
                await self._accuse(evidence, index, concluded.blamed, vouching.terms, its[at])
        return concluded

    async def _accuse(
        self, evidence: Evidence, index: int, accused: PeerId, terms: Terms, signed: Signed
    ) -> None:
        """Build a fraud proof that shows others that a receipt is false, where possible.

        The receipt is a stage's, or that of an auditor that was given the same rows.
        """
        receipt = Receipt.parse(signed.body)
        size = receipt.position * _row_bytes(evidence)
        if size > FRAUD_ROWS_BYTES_MAX or receipt.position > FRAUD_POSITIONS_MAX:
            _log.info("%s cheated, but the proof would be too long to send", accused)
            return
        try:
            rows = await _inputs(evidence, index, receipt)
        except _NotOpenedError as error:
            _log.info("%s cheated, but its inputs cannot be had: %s", accused, error)
            return
        opened = rows.open(0, receipt.position)
        regimes = runs_of(opened.regimes)
        self._on_fraud(FraudProof(terms, accused, receipt.end, (signed,), regimes, opened.rows))


def _sent(signed: Signed) -> bytes:
    return Receipt.parse(signed.body).sent


async def _replay(
    evidence: Evidence,
    index: int,
    receipt: Receipt,
    replay: Replay,
    bounds: Bounds,
) -> Replayed:
    """Run a stage's inputs again, and compare.

    Raises:
        P2pinferError: the replay failed.
    """
    peer, name, count = evidence.stages[index].hop.peer, replay.name, receipt.position
    try:
        inputs = await _inputs(evidence, index, receipt)
    except _NotOpenedError as error:
        return error.found_by(name)
    outputs, size = Rows(keep=True), len(inputs.open(0, 1).rows)
    for position, rows, regime in cut(inputs.open(0, count), 0):
        run = len(rows) // size
        found = await replay.run(position, run, rows, regime=regime)
        outputs.put(position, run, found, regime=regime)
    if outputs.tree.root(count) == receipt.sent:
        refuted = _first_refuted(evidence, index, count, outputs)
        if refuted is None:
            return Replayed.same(name)
        text = "it signed for other rows before"
        return Replayed.cheated(name, peer, refuted, text, refuted, is_far=False)
    return await _compare(evidence, index, receipt, replay, outputs, bounds)


async def _inputs(evidence: Evidence, index: int, receipt: Receipt) -> Rows:
    """Return the rows a stage received, which must match its receipt and be valid input.

    All are checked before any is run: an auditor refuses invalid rows, and would seem to be gone.

    Raises:
        _NotOpenedError: the stage before it does not open them.
    """
    before = evidence.stages[index - 1].hop.peer if index else evidence.stages[0].hop.peer
    count = receipt.position
    found = await _receive(partial(evidence.inputs, index), count, receipt.received, before)
    rows = found.open(0, count).rows
    is_of_size = len(rows) == count * _row_bytes(evidence)
    if not is_of_size or not np.isfinite(np.frombuffer(rows, ROW_TYPE)).all():
        raise _NotOpenedError(before, "it signed for rows that no stage takes")
    return found


def _row_bytes(evidence: Evidence) -> int:
    return len(evidence.witness.received.open(0, 1).rows)


async def _receive(open_rows: OpenRows, count: int, root: bytes, opener: PeerId) -> Rows:
    """Return the first ``count`` rows that a peer opens, which must have the root it signed for.

    Raises:
        _NotOpenedError: it does not open them, or opens others.
    """
    found = Rows(keep=True)
    for at in range(0, count, OPENING_ROWS_MAX):
        many = min(OPENING_ROWS_MAX, count - at)
        try:
            opened = await open_rows(at, many)
        except PeerError as error:
            blamed = None if isinstance(error, PeerUnavailable) else error.peer
            raise _NotOpenedError(blamed, str(error), at) from error
        for position, rows, regime in cut(opened, at):
            found.put(position, len(rows) * many // len(opened.rows), rows, regime=regime)
    if found.tree.root(count) != root:
        raise _NotOpenedError(opener, "it opened other rows than it signed for")
    return found


async def _compare(
    evidence: Evidence,
    index: int,
    receipt: Receipt,
    replay: Replay,
    replayed: Rows,
    bounds: Bounds,
) -> Replayed:
    """Open the rows that the stage sent; find where they differ from the replay, and how far."""
    peer, name, count = evidence.stages[index].hop.peer, replay.name, receipt.position
    is_same = replay.numerics == receipt.numerics
    is_certain = is_same and name == THIS_MACHINE
    refuted = _first_refuted(evidence, index, count, replayed) if is_certain else None
    try:
        sent = await _receive(partial(evidence.outputs, index), count, receipt.sent, peer)
    except _NotOpenedError as error:
        return error.found_by(name, refuted)
    ours, theirs = replayed.open(0, count).rows, sent.open(0, count).rows
    if len(ours) != len(theirs):
        text = "its rows have another width"
        return Replayed.cheated(name, peer, 0, text, None, is_far=True)
    apart = distances(theirs, ours, count)
    outside = first_outside(apart, bounds)
    beyond = _first_other(ours, theirs, count) if is_same else outside
    if beyond is None:
        return Replayed.close(name, f"{apart.max():.2%} apart at most")
    refuted = _first_refuted(evidence, index, count, replayed, beyond)
    text = f"rows lie {apart[beyond]:.2%} apart"
    is_far = outside is not None
    return Replayed.cheated(name, peer, beyond, text, refuted, is_far=is_far)


def _first_refuted(
    evidence: Evidence, index: int, position: int, replayed: Rows, behind: int = -1
) -> int | None:
    """Return the position of a stage's first receipt after ``behind`` that a replay contradicts."""
    receipts = evidence.stages[index].vouched(position).receipts
    wrong = (at for at, each in receipts.items() if replayed.tree.root(at) != each.sent)
    return next((at for at in wrong if at > behind), None)


def _first_other(ours: bytes, theirs: bytes, count: int) -> int:
    """Return the first of ``count`` rows that differs; 0 if only their regimes do."""
    size = len(ours) // count
    starts = range(0, len(ours), size)
    return next((at // size for at in starts if ours[at : at + size] != theirs[at : at + size]), 0)
