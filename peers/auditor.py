"""Audits: layers run again over what a stage signed for having received, by somebody else.

Another holder is asked in a plain session of one stage, so it cannot tell an audit from work, and
has no verdict to give: it computes, and the requester compares. What it says is compared bit for
bit; where bits differ and the two are of different numerics classes, within bounds. One chunk is
under way at a time, so that an audit never crowds out an answer.
"""

import logging
from collections.abc import Callable, Sequence

from attrs import frozen

from p2pinfer.core.bounds import DEFAULT_BOUNDS, Bounds, distances, first_outside
from p2pinfer.core.errors import P2pinferError, PeerError, PeerUnavailable
from p2pinfer.core.ids import PeerId
from p2pinfer.core.limits import ROWS_PER_DECODE_MAX
from p2pinfer.core.messages import Hop
from p2pinfer.core.receipts import Receipt
from p2pinfer.core.trust import Audited, Trust, Verdict, choose_audits
from p2pinfer.core.witness import Rows
from peers.evidence import Evidence
from peers.replay import THIS_MACHINE, OpenReplay, Replay, cut

_log = logging.getLogger("p2pinfer.audit")

AUDITORS_MAX = 3
"""Asked for one stage: one, another where the first is gone or differs, and one to settle it."""

FindReplays = Callable[[int, int, PeerId], Sequence[OpenReplay]]
"""Returns who can replay layers ``first:end``, the named peer excepted, best first."""


@frozen
class _Replayed:
    """What one replay found."""

    by: str
    verdict: Verdict
    position: int | None = None
    blamed: PeerId | None = None
    text: str = ""


class Auditor:
    """Settles answers and audits a share of their stages.

    Args:
        find: who can replay layers.
        rate: the share of stages that is audited.
        bounds: between numerics classes.
    """

    def __init__(
        self, find: FindReplays, rate: float, bounds: Callable[[int, int], Bounds] | None = None
    ) -> None:
        self.rate = rate
        self._find = find
        self._bounds = bounds or (lambda _first, _end: DEFAULT_BOUNDS)

    async def examine(self, evidence: Evidence, position: int) -> Trust:
        """Return what holds of a session's first ``position`` rows; raises nothing of others."""
        broken = await evidence.settle(position)
        stages = evidence.stages
        audits: list[Audited] = []
        if broken is None:
            last = [stage.vouched(position).receipts[position] for stage in stages]
            bodies = [receipt.body() for receipt in last]
            chosen = choose_audits(evidence.nonce, bodies, self.rate)
            audits = [await self._audit(evidence, index, last[index]) for index in chosen]
        return Trust(len(stages), position, self.rate, broken, tuple(audits))

    async def _audit(self, evidence: Evidence, index: int, receipt: Receipt) -> Audited:
        """Audit one stage; where an auditor differs from it, another one settles who is right."""
        peer = evidence.stages[index].hop.peer
        found: list[_Replayed] = []
        for opening in self._find(receipt.first, receipt.end, peer)[:AUDITORS_MAX]:
            try:
                async with opening(receipt.position) as replay:
                    one = await _replay(evidence, index, receipt, replay, self._bounds)
            except P2pinferError as error:
                _log.info("an auditor is gone: %s", error)
                continue
            found.append(one)
            if _is_settled(found):
                break
        return _conclude(Hop(peer, (), receipt.first, receipt.end), found)


def _is_settled(found: Sequence[_Replayed]) -> bool:
    last = found[-1]
    if last.verdict is not Verdict.CHEATED or last.by == THIS_MACHINE:
        return True
    return sum(each.verdict is Verdict.CHEATED for each in found) > 1


def _conclude(stage: Hop, found: Sequence[_Replayed]) -> Audited:
    """Return what several replays of a stage amount to."""
    if not found:
        return Audited(stage.peer, stage.first, stage.end, Verdict.NOT_REPLAYED)
    last, by = found[-1], tuple(each.by for each in found)
    verdict, blamed, text = last.verdict, last.blamed, last.text
    if verdict is Verdict.CHEATED and not _is_settled(found):
        verdict, blamed = Verdict.DISPUTED, None
    elif verdict in (Verdict.SAME, Verdict.CLOSE) and len(found) > 1:
        blamed, text = PeerId(found[0].by), "the first auditor computed other rows"
    return Audited(stage.peer, stage.first, stage.end, verdict, by, last.position, blamed, text)


async def _replay(
    evidence: Evidence,
    index: int,
    receipt: Receipt,
    replay: Replay,
    bounds: Callable[[int, int], Bounds],
) -> _Replayed:
    """Run a stage's inputs again, and compare.

    Raises:
        P2pinferError: the replay failed.
    """
    peer, name = evidence.stages[index].hop.peer, replay.name
    before = evidence.stages[index - 1].hop.peer if index else peer
    inputs, outputs = Rows(keep=False), Rows(keep=True)
    for at in range(0, receipt.position, ROWS_PER_DECODE_MAX):
        count = min(ROWS_PER_DECODE_MAX, receipt.position - at)
        try:
            opened = await evidence.inputs(index, at, count)
        except PeerError as error:
            return _not_opened(name, at, error)
        for position, rows, wide in cut(opened, at):
            size = len(opened.rows) // count
            run = len(rows) // size
            inputs.put(position, run, rows, wide=wide)
            outputs.put(position, run, await replay.run(position, run, rows, wide=wide), wide=wide)
    if inputs.tree.root(receipt.position) != receipt.received:
        text = "it opened other rows than it signed for"
        return _Replayed(name, Verdict.NOT_OPENED, None, before, text)
    if outputs.tree.root(receipt.position) == receipt.sent:
        for at, earlier in evidence.stages[index].vouched(receipt.position).receipts.items():
            if outputs.tree.root(at) != earlier.sent:
                return _Replayed(name, Verdict.CHEATED, at, peer, "it signed for other rows before")
        return _Replayed(name, Verdict.SAME)
    return await _compare(evidence, index, receipt, replay, outputs, bounds)


async def _compare(
    evidence: Evidence,
    index: int,
    receipt: Receipt,
    replay: Replay,
    replayed: Rows,
    bounds: Callable[[int, int], Bounds],
) -> _Replayed:
    """Open what the stage sent, and find where it differs from the replay, and by how much."""
    peer, sent = evidence.stages[index].hop.peer, Rows(keep=True)
    for at in range(0, receipt.position, ROWS_PER_DECODE_MAX):
        count = min(ROWS_PER_DECODE_MAX, receipt.position - at)
        try:
            opened = await evidence.outputs(index, at, count)
        except PeerError as error:
            return _not_opened(replay.name, at, error)
        for position, rows, wide in cut(opened, at):
            sent.put(position, len(rows) * count // len(opened.rows), rows, wide=wide)
    if sent.tree.root(receipt.position) != receipt.sent:
        text = "it opened other rows than it signed for"
        return _Replayed(replay.name, Verdict.NOT_OPENED, None, peer, text)
    count = receipt.position
    ours, theirs = replayed.open(0, count).rows, sent.open(0, count).rows
    if len(ours) != len(theirs):
        return _Replayed(replay.name, Verdict.CHEATED, 0, peer, "its rows have another width")
    apart = distances(theirs, ours, evidence.terms.dtype, count)
    if replay.numerics == receipt.numerics:
        beyond: int | None = _first_other(ours, theirs, count)
    else:
        beyond = first_outside(apart, bounds(receipt.first, receipt.end))
    if beyond is None:
        return _Replayed(replay.name, Verdict.CLOSE, text=f"{apart.max():.2%} apart at most")
    text = f"rows lie {apart[beyond]:.2%} apart"
    return _Replayed(replay.name, Verdict.CHEATED, beyond, peer, text)


def _not_opened(by: str, position: int, error: PeerError) -> _Replayed:
    """Blame a peer that does not open what it signed for, unless it is just gone."""
    blamed = None if isinstance(error, PeerUnavailable) else error.peer
    return _Replayed(by, Verdict.NOT_OPENED, position, blamed, str(error))


def _first_other(ours: bytes, theirs: bytes, count: int) -> int:
    """Return the first of ``count`` rows that differs; 0 where only their regimes do."""
    size = len(ours) // count
    starts = range(0, len(ours), size)
    return next((at // size for at in starts if ours[at : at + size] != theirs[at : at + size]), 0)
