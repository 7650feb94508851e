"""Audits: layers run again over what a stage signed for having received, by somebody else.

Another holder is asked in a plain session of one stage, so it cannot tell an audit from work, and
has no verdict to give: it computes, and the requester compares. What it says is compared bit for
bit; where bits differ and the two are of different numerics classes, within bounds. One chunk is
under way at a time, so that an audit never crowds out an answer.
"""

import logging
from collections.abc import Callable, Sequence

import numpy as np
from attrs import evolve, frozen

from p2pinfer.core.bounds import DEFAULT_BOUNDS, Bounds, distances, first_outside
from p2pinfer.core.continuity import Break
from p2pinfer.core.errors import P2pinferError, PeerError, PeerUnavailable
from p2pinfer.core.evidence import FRAUD_ROWS_BYTES_MAX, OPENING_ROWS_MAX
from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Hop
from p2pinfer.core.receipts import Receipt, Signed, Terms
from p2pinfer.core.trust import Audited, AuditVerdict, Trust, choose_audits
from p2pinfer.core.witness import Rows, runs_of
from peers.audits.replay import THIS_MACHINE, OpenReplay, Replay, Vouching, cut
from peers.receipts.session_evidence import REPLACED_S_MAX, Evidence
from peers.serving.stage_session import NUMPY_TYPES

_log = logging.getLogger("p2pinfer.audit")

AUDITORS_MAX = 3
"""Asked for one stage: one, another where the first is gone or differs, and one to settle it."""

EXAMINED_TIMES_MAX = 3
"""An answer is examined again where a stage died meanwhile."""

FindReplays = Callable[[int, int, PeerId], Sequence[OpenReplay]]
"""Returns who can replay layers ``first:end``, the named peer excepted, best first."""


@frozen
class _Replayed:
    """What one replay found."""

    by: str
    verdict: AuditVerdict
    position: int | None = None
    blamed: PeerId | None = None
    text: str = ""
    refuted: int | None = None
    """The position of the first receipt that is not so."""
    vouching: Vouching | None = None
    """What an auditor signed that found other rows."""
    is_far: bool = True
    """The rows lie farther apart than those of two numerics classes may."""


class Auditor:
    """Settles answers and audits a share of their stages.

    Args:
        find: who can replay layers.
        rate: the share of stages that is audited.
        bounds: between numerics classes.
        on_fraud: told of what others can check by themselves, where a stage cheated.
    """

    def __init__(
        self,
        find: FindReplays,
        rate: float,
        bounds: Bounds = DEFAULT_BOUNDS,
        on_fraud: Callable[[FraudProof], None] = lambda _: None,
    ) -> None:
        self.rate = rate
        self._find, self._on_fraud = find, on_fraud
        self._bounds = bounds

    async def examine(self, evidence: Evidence, position: int) -> Trust:
        """Return what holds of a session's first ``position`` rows; raises nothing of others.

        Where a stage dies while others are audited, whoever takes its place must join up with all
        that was signed, and what had been chosen is audited all the same: dying saves nobody.
        """
        owed: frozenset[Hop] = frozenset()
        for _ in range(EXAMINED_TIMES_MAX):
            broken = await evidence.settle(position)
            if broken:
                audits = await self._suspect(evidence, broken)
                break
            owed, audits = await self._sample(evidence, position, owed)
            if not any(map(_is_gone, audits)) or not await evidence.wait_changed(REPLACED_S_MAX):
                break
        stages = evidence.stages
        for stage in stages:
            if stage.contradiction:
                hop = stage.hop
                proof = FraudProof(evidence.terms, hop.peer, hop.end, stage.contradiction)
                self._on_fraud(proof)
        return Trust(len(stages), position, self.rate, broken, tuple(audits))

    async def _sample(
        self, evidence: Evidence, position: int, owed: frozenset[Hop]
    ) -> tuple[frozenset[Hop], list[Audited]]:
        """Audit the stages that are owed it and those that the nonce chooses; return both."""
        stages = evidence.stages
        last = [stage.vouched(position).receipts[position] for stage in stages]
        chosen = choose_audits(evidence.nonce, [each.body() for each in last], self.rate)
        owed = owed.union(stages[index].hop for index in chosen)
        due = [index for index, stage in enumerate(stages) if stage.hop in owed]
        return owed, [await self._audit(evidence, index, last[index]) for index in due]

    async def _suspect(self, evidence: Evidence, broken: Break) -> list[Audited]:
        """Find out which of two stages signed what is not so, as far as that can be.

        The first one is audited. Where it computed what it should, the other one may still have
        received something else. Then both are asked to sign once more: one may contradict itself.
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
        """Audit one stage; where an auditor differs from it, another one settles who is right."""
        peer = evidence.stages[index].hop.peer
        found: list[_Replayed] = []
        for opening in self._find(receipt.first, receipt.end, peer)[:AUDITORS_MAX]:
            try:
                async with opening(receipt.position) as replay:
                    one = await _replay(evidence, index, receipt, replay, self._bounds)
                    if one.verdict is AuditVerdict.CHEATED:
                        one = evolve(one, vouching=await replay.vouch(receipt.position))
            except P2pinferError as error:
                _log.info("an auditor is gone: %s", error)
                continue
            found.append(one)
            if _is_settled(found):
                break
        concluded = _conclude(Hop(peer, (), receipt.first, receipt.end), found)
        signed = evidence.stages[index].signed(receipt.position)
        if concluded.blamed == peer and found[-1].refuted:
            await self._accuse(evidence, index, peer, evidence.terms, signed[found[-1].refuted])
        for liar in found:
            if liar.by == concluded.blamed and liar.vouching:
                its = liar.vouching.receipts
                lies = (at for at in its if at in signed and _sent(its[at]) != _sent(signed[at]))
                if (at := next(lies, None)) is not None:
                    terms = liar.vouching.terms
                    await self._accuse(evidence, index, concluded.blamed, terms, its[at])
        return concluded

    async def _accuse(
        self, evidence: Evidence, index: int, accused: PeerId, terms: Terms, signed: Signed
    ) -> None:
        """Put together what shows others that a receipt is not so, where that can be.

        It is one of a stage, or of an auditor, who was given the same rows.
        """
        rows, receipt = Rows(keep=True), Receipt.parse(signed.body)
        position = receipt.position
        try:
            for at in range(0, position, OPENING_ROWS_MAX):
                count = min(OPENING_ROWS_MAX, position - at)
                opened = await evidence.inputs(index, at, count)
                if len(opened.rows) // count * position > FRAUD_ROWS_BYTES_MAX:
                    _log.info("%s cheated, but the proof would be too long to send", accused)
                    return
                for start, data, regime in cut(opened, at):
                    rows.put(start, len(data) * count // len(opened.rows), data, regime=regime)
        except PeerError as error:
            _log.info("%s cheated, but its inputs are not to be had: %s", accused, error)
            return
        if rows.tree.root(position) == receipt.received:
            opened = rows.open(0, position)
            regimes = runs_of(opened.regimes)
            proof = FraudProof(terms, accused, receipt.end, (signed,), regimes, opened.rows)
            self._on_fraud(proof)


def _is_gone(audited: Audited) -> bool:
    """Whether a stage could not open its rows, as one that has died cannot."""
    return audited.verdict is AuditVerdict.NOT_OPENED and audited.blamed is None


def _sent(signed: Signed) -> bytes:
    return Receipt.parse(signed.body).sent


def _is_settled(found: Sequence[_Replayed]) -> bool:
    """Whether nobody else need be asked: this machine spoke, or two agree where they differ."""
    last = found[-1]
    if last.by == THIS_MACHINE or last.verdict is AuditVerdict.NOT_OPENED:
        return True
    return len(_saying(found, last.verdict)) > 1 or (len(found) == 1 and _is_fine(last))


def _is_fine(one: _Replayed) -> bool:
    return one.verdict in (AuditVerdict.SAME, AuditVerdict.CLOSE)


def _saying(found: Sequence[_Replayed], verdict: AuditVerdict) -> list[_Replayed]:
    """Return those that found the same, bits within bounds counting as the same bits."""
    is_fine = verdict in (AuditVerdict.SAME, AuditVerdict.CLOSE)
    return [each for each in found if each.verdict is verdict or (is_fine and _is_fine(each))]


def _conclude(stage: Hop, found: Sequence[_Replayed]) -> Audited:
    """Return what several replays of a stage amount to.

    One auditor that differs is not believed against the stage and another one. It is blamed where
    two others, or this machine, found what the stage had found. But other bits within bounds are
    refuted only by somebody who found the stage's bits: those of other classes cannot tell.
    """
    if not found:
        return Audited(stage.peer, stage.first, stage.end, AuditVerdict.NOT_REPLAYED)
    last, by = found[-1], tuple(each.by for each in found)
    cheated = _saying(found, AuditVerdict.CHEATED)
    if not _is_settled(found):
        last = next((each for each in found if _is_fine(each)), last)
    verdict, blamed, text = last.verdict, last.blamed, last.text
    if verdict is AuditVerdict.CHEATED and not _is_settled(found):
        verdict, blamed = AuditVerdict.DISPUTED, None
    elif _is_fine(last) and cheated:
        text = "another auditor computed other rows"
        if not cheated[0].is_far and all(each.verdict is not AuditVerdict.SAME for each in found):
            verdict = AuditVerdict.DISPUTED
        elif _is_settled(found):
            blamed = PeerId(cheated[0].by)
    return Audited(stage.peer, stage.first, stage.end, verdict, by, last.position, blamed, text)


async def _replay(
    evidence: Evidence,
    index: int,
    receipt: Receipt,
    replay: Replay,
    bounds: Bounds,
) -> _Replayed:
    """Run a stage's inputs again, and compare.

    Raises:
        P2pinferError: the replay failed.
    """
    peer, name, count = evidence.stages[index].hop.peer, replay.name, receipt.position
    inputs = await _inputs(evidence, index, receipt, name)
    if isinstance(inputs, _Replayed):
        return inputs
    outputs, size = Rows(keep=True), len(inputs.open(0, 1).rows)
    for position, rows, regime in cut(inputs.open(0, count), 0):
        run = len(rows) // size
        found = await replay.run(position, run, rows, regime=regime)
        outputs.put(position, run, found, regime=regime)
    if outputs.tree.root(count) == receipt.sent:
        refuted = _first_refuted(evidence, index, count, outputs)
        if refuted is None:
            return _Replayed(name, AuditVerdict.SAME)
        text = "it signed for other rows before"
        return _Replayed(name, AuditVerdict.CHEATED, refuted, peer, text, refuted, is_far=False)
    return await _compare(evidence, index, receipt, replay, outputs, bounds)


async def _inputs(evidence: Evidence, index: int, receipt: Receipt, name: str) -> Rows | _Replayed:
    """Return what a stage received, which must be what it signed for and what stages take.

    All of it before any is run: an auditor refuses nonsense, and would only seem to be gone.
    """
    before = evidence.stages[index - 1].hop.peer if index else evidence.stages[0].hop.peer
    found, count = Rows(keep=True), receipt.position
    for at in range(0, count, OPENING_ROWS_MAX):
        many = min(OPENING_ROWS_MAX, count - at)
        try:
            opened = await evidence.inputs(index, at, many)
        except PeerError as error:
            return _not_opened(name, at, error)
        for position, rows, regime in cut(opened, at):
            found.put(position, len(rows) * many // len(opened.rows), rows, regime=regime)
    if found.tree.root(count) != receipt.received:
        text = "it opened other rows than it signed for"
        return _Replayed(name, AuditVerdict.NOT_OPENED, None, before, text)
    rows = found.open(0, count).rows
    row_bytes = len(evidence.witness.received.open(0, 1).rows)
    numbers = NUMPY_TYPES[evidence.opened.dtype]
    if len(rows) != count * row_bytes or not np.isfinite(np.frombuffer(rows, numbers)).all():
        text = "it signed for rows that no stage takes"
        return _Replayed(name, AuditVerdict.NOT_OPENED, None, before, text)
    return found


async def _compare(
    evidence: Evidence,
    index: int,
    receipt: Receipt,
    replay: Replay,
    replayed: Rows,
    bounds: Bounds,
) -> _Replayed:
    """Open what the stage sent, and find where it differs from the replay, and by how much."""
    peer, sent = evidence.stages[index].hop.peer, Rows(keep=True)
    count, is_same = receipt.position, replay.numerics == receipt.numerics
    is_certain = is_same and replay.name == THIS_MACHINE
    refuted = _first_refuted(evidence, index, count, replayed) if is_certain else None
    for at in range(0, count, OPENING_ROWS_MAX):
        size = min(OPENING_ROWS_MAX, count - at)
        try:
            opened = await evidence.outputs(index, at, size)
        except PeerError as error:
            return evolve(_not_opened(replay.name, at, error), refuted=refuted)
        for position, rows, regime in cut(opened, at):
            sent.put(position, len(rows) * size // len(opened.rows), rows, regime=regime)
    if sent.tree.root(count) != receipt.sent:
        text = "it opened other rows than it signed for"
        return _Replayed(replay.name, AuditVerdict.NOT_OPENED, None, peer, text, refuted)
    ours, theirs = replayed.open(0, count).rows, sent.open(0, count).rows
    if len(ours) != len(theirs):
        return _Replayed(replay.name, AuditVerdict.CHEATED, 0, peer, "its rows have another width")
    apart = distances(theirs, ours, evidence.terms.dtype, count)
    outside = first_outside(apart, bounds)
    beyond = _first_other(ours, theirs, count) if is_same else outside
    if beyond is None:
        return _Replayed(replay.name, AuditVerdict.CLOSE, text=f"{apart.max():.2%} apart at most")
    refuted = _first_refuted(evidence, index, count, replayed, beyond)
    text = f"rows lie {apart[beyond]:.2%} apart"
    is_far = outside is not None
    return _Replayed(replay.name, AuditVerdict.CHEATED, beyond, peer, text, refuted, is_far=is_far)


def _first_refuted(
    evidence: Evidence, index: int, position: int, replayed: Rows, behind: int = -1
) -> int | None:
    """Return the position of a stage's first receipt, behind one, that a replay contradicts."""
    receipts = evidence.stages[index].vouched(position).receipts
    wrong = (at for at, each in receipts.items() if replayed.tree.root(at) != each.sent)
    return next((at for at in wrong if at > behind), None)


def _not_opened(by: str, position: int, error: PeerError) -> _Replayed:
    """Blame a peer that does not open what it signed for, unless it is just gone."""
    blamed = None if isinstance(error, PeerUnavailable) else error.peer
    return _Replayed(by, AuditVerdict.NOT_OPENED, position, blamed, str(error))


def _first_other(ours: bytes, theirs: bytes, count: int) -> int:
    """Return the first of ``count`` rows that differs; 0 where only their regimes do."""
    size = len(ours) // count
    starts = range(0, len(ours), size)
    return next((at // size for at in starts if ours[at : at + size] != theirs[at : at + size]), 0)
