"""Checking openings offline: those that a certificate keeps, and the one of a fraud proof."""

from collections.abc import Sequence

from attrs import field, frozen

from p2pinfer.core.certificate import Certificate
from p2pinfer.core.continuity import Vouched
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.opening import (
    BadOpening,
    OpenedTrace,
    check_roots,
    check_signed,
    decode,
)
from p2pinfer.core.receipts import BadReceipt
from p2pinfer.core.shown_layers import layers_shown, rows_seen
from p2pinfer.core.trust import caught_by, short
from p2pinfer.core.verdict import can_be_judged
from p2pinfer.engine.store.store import Store
from p2pinfer.node.proof_keys import judge_of
from peers.audits.inspector import choose_rows
from peers.audits.steps import StepsJudge
from transports.identity import verify

NO_KEY = "this machine has neither the layers nor a proof key (p2pinfer model proof-key)"


@frozen
class StageOpenings:
    """What the openings of one stage show."""

    peer: str
    layers: str
    held: bool | None
    """None: it could not be checked here."""
    text: str
    positions: list[int] = field(factory=list)


async def check_openings(
    found: Certificate, vouched: Sequence[Vouched], store: Store
) -> list[StageOpenings]:
    """Check all openings of a certificate whose receipts were checked, one result a stage."""
    manifest = store.manifest(found.terms.model)
    judge = judge_of(store, manifest) if manifest else None
    results = []
    try:
        openings = [decode(data) for data in (*found.openings, *found.cut_openings)]
    except BadOpening as error:
        return [StageOpenings("", "", False, str(error))]
    for stage in vouched:
        mine = [each for each in openings if _is_of(each, stage)]
        if mine:
            results.append(await _check_stage(found, stage, mine, judge))
    if not all(any(_is_of(each, stage) for stage in vouched) for each in openings):
        results.append(StageOpenings("", "", False, "a row was opened by a peer of no stage"))
    return results


def _is_of(opening: OpenedTrace, stage: Vouched) -> bool:
    """Whether an opening is a stage's; a peer may have been two of them."""
    try:
        return (opening.pledge.peer, opening.receipt.first) == (stage.peer, stage.first)
    except BadReceipt:
        return opening.pledge.peer == stage.peer


async def _check_stage(
    found: Certificate, stage: Vouched, openings: list[OpenedTrace], judge: StepsJudge | None
) -> StageOpenings:
    layers, peer = f"layers {stage.first}:{stage.end}", short(stage.peer)
    positions = [each.pledge.position for each in openings]
    last = stage.receipts[max(stage.receipts)]

    def result(held: bool | None, text: str) -> StageOpenings:
        return StageOpenings(peer, layers, held, text, positions)

    for each in openings:
        try:
            check_signed(each, verify)
            check_roots(each)
        except BadOpening as error:
            return result(False, str(error))
        if each.pledge.terms != found.terms or each.receipt != last:
            return result(False, "a row was opened for another receipt")
    chosen = choose_rows(found.nonce, last)
    if not set(positions) <= set(chosen):
        return result(False, "these are not the rows that the nonce chose")
    shown = {each.pledge.position: each for each in openings}
    seen = layers_shown(found.nonce, last, [shown[at] for at in chosen if at in shown], chosen)
    if seen is None:
        return result(False, "these are not the layers that the nonce chose")
    if judge is None or not judge.covers(range(stage.first, stage.end)):
        return result(None, NO_KEY)
    for each in openings:
        if not can_be_judged(each.pledge):
            return result(None, f"what a machine of kind {each.pledge.machine} computes is unknown")
        try:
            verdict = await judge.judge(each, by_layers=True)
        except P2pinferError as error:
            return result(None, str(error))
        if verdict.fault:
            return result(False, f"{verdict.fault.text()}, at position {each.pledge.position}")
    rows = ", ".join(map(str, positions))
    opened = rows_seen(seen, stage.end - stage.first)
    chance = 100 * caught_by(opened, 0.1)
    odds = (
        "if a tenth of all its rows were false in one layer, these would show it with a chance of"
        f" {chance:.0f} %"
    )
    if (share := opened / len(seen)) < 1:
        holds = f"every opened step of its rows {rows} holds: {share:.0%} of the layers"
    else:
        holds = f"every step of its rows {rows} holds"
    return result(True, f"{holds}; {odds}")


async def check_accusation(found: FraudProof, store: Store) -> tuple[bool | None, str]:
    """Judge a parsed proof with an opening; return whether it holds, or None, and a sentence."""
    opening, accused = decode(found.opening), short(found.accused)
    manifest = store.manifest(found.terms.model)
    if manifest is None:
        return None, f"model {found.terms.model[:12]}… is not here; to add it: p2pinfer model add"
    judge = judge_of(store, manifest)
    if not judge.covers(each.layer for each in opening.layers):
        return None, NO_KEY
    try:
        verdict = await judge.judge(opening, by_layers=True)
    except P2pinferError as error:
        return None, str(error)
    if verdict.fault and not verdict.fault.is_provable:
        return None, f"{verdict.fault.text()}, too little to accuse {accused} of anything"
    if verdict.fault:
        return True, f"{verdict.fault.text()} from what {accused} says goes in: it cheated"
    return False, f"every step that {accused} opened holds: the accusation is false"
