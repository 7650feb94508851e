"""Checking files of evidence offline: for consistency, and against local layers.

A certificate holds the tokens. A machine with the model runs them through the first layers and then
through each stage, each position in its regime, and compares the roots of the rows with those that
the stages signed. So the file needs to hold no rows.
"""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from attrs import field, frozen

from p2pinfer.core import certificate as file
from p2pinfer.core import double_statement, fraud
from p2pinfer.core.certificate import Certificate
from p2pinfer.core.continuity import Vouched
from p2pinfer.core.errors import P2pinferError
from p2pinfer.core.fraud import FraudProof
from p2pinfer.core.receipts import SIGNED_AS
from p2pinfer.core.sections import BadFile
from p2pinfer.core.trust import short
from p2pinfer.core.witness import OpenedRows, Rows
from p2pinfer.engine.llama.engine import open_ends, open_stage
from p2pinfer.engine.store.assemble import PartsModel, open_parts
from p2pinfer.engine.store.store import Store
from p2pinfer.node.verify_openings import check_accusation, check_openings
from p2pinfer.places import cache_dir
from peers.audits.frauds import judge
from peers.audits.replay import EngineReplay, by_engine, cut
from transports.identity import verify

_NEITHER = (
    "this is neither an answer's certificate (as written by p2pinfer chat --certificate FILE) nor a"
    " proof that a peer cheated"
)

_NOT_HERE = "model {}… is not here; to add it: p2pinfer model add FILE"


@frozen
class Finding:
    """The result of one check."""

    what: str
    held: bool | None
    """None: it could not be checked here."""
    text: str

    def line(self) -> str:
        """Return the line to print."""
        mark = {True: "holds", False: "FAILS", None: "not checked"}[self.held]
        return f"{self.what:<14}{mark}: {self.text}"


@frozen
class Verified:
    """The results of all checks of a file."""

    findings: tuple[Finding, ...] = field(factory=tuple)
    answer: str = ""

    @property
    def held(self) -> bool:
        """Whether nothing failed."""
        return all(each.held is not False for each in self.findings)

    def lines(self) -> list[str]:
        """Return the lines to print."""
        return [each.line() for each in self.findings]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        findings = [{"what": e.what, "held": e.held, "text": e.text} for e in self.findings]
        return {"held": self.held, "answer": self.answer, "findings": findings}


async def verify_file(data: bytes, store: Store) -> Verified:
    """Check a certificate's bytes, or a fraud proof's, as far as this machine can."""
    if data.startswith(double_statement.MAGIC):
        return _verify_statements(data)
    if data.startswith(fraud.MAGIC):
        return await _verify_proof(data, store)
    if not data.startswith(file.MAGIC):
        return Verified((Finding("file", False, _NEITHER),))
    try:
        found, body, signature = file.parse(data)
        vouched = file.check(found)
    except BadFile as error:
        return Verified((Finding("file", False, str(error)),))
    findings = [
        Finding("file", True, f"{len(data)} bytes, {len(found.stages)} stages"),
        *_signatures(found, body, signature),
    ]
    if all(each.held for each in findings):
        positions = len(found.tokens)
        findings.append(Finding("receipts", True, f"consistent over {positions} rows"))
        findings.append(_audits(found))
        for each in await check_openings(found, vouched, store):
            text = f"{each.peer} ({each.layers}): {each.text}" if each.peer else each.text
            findings.append(Finding("opened rows", each.held, text))
        findings += await _replay(found, vouched, store)
    return Verified(tuple(findings), found.answer)


async def _verify_proof(data: bytes, store: Store) -> Verified:
    """Check that the accused peer cheated; a proof that does not show it fails."""
    try:
        found = fraud.parse(data, verify)
    except BadFile as error:
        return Verified((Finding("file", False, str(error)),))
    receipt, accused = found.receipt, short(found.accused)
    said = f"{len(data)} bytes by {short(found.author)}, signed by both"
    findings = [Finding("file", True, said)]
    if len(found.receipts) > 1:
        text = f"{accused} signed two results for the same {receipt.position} rows: it cheated"
        return Verified((*findings, Finding("proof", True, text)))
    if found.opening:
        held, text = await check_accusation(found, store)
        return Verified((*findings, Finding("proof", held, text)))
    layers = f"layers {receipt.first}:{receipt.end}"
    text = f"{accused} signed that it received these {receipt.position} rows for its {layers}"
    findings.append(Finding("rows", True, text))
    manifest = store.manifest(found.terms.model)
    if manifest is None:
        held, text = None, _NOT_HERE.format(found.terms.model[:12])
    else:
        held, text = await _judge(found, open_parts(store, manifest, cache_dir()))
    return Verified((*findings, Finding("proof", held, text)))


def _verify_statements(data: bytes) -> Verified:
    """Check that a peer signed two sums under one number."""
    try:
        found = double_statement.parse(data, verify)
    except BadFile as error:
        return Verified((Finding("file", False, str(error)),))
    accused, server = short(found.accused), short(found.author)
    said = Finding("file", True, f"{len(data)} bytes, two statements to {server}")
    sums = f"{found.one.amounts.worth:,} and {found.other.amounts.worth:,} megabyte-rows"
    text = f"{accused} signed {sums} under the number {found.one.count}: it contradicts itself"
    return Verified((said, Finding("proof", True, text)))


async def _judge(found: FraudProof, model: PartsModel) -> tuple[bool | None, str]:
    """Run a proof's rows again; return whether it holds, or None, and a sentence."""
    receipt, accused = found.receipt, short(found.accused)
    if found.slice_end > model.manifest.layers:
        return False, f"the model has no layers {receipt.first}:{found.slice_end}"
    if missing := _missing(model, model.manifest.needed(receipt.first, found.slice_end)):
        return None, f"this machine lacks the model's {missing}"
    try:
        path = model.stage(receipt.first, found.slice_end)
        async with open_stage(path, receipt.first, sessions=1, context=receipt.position) as engine:
            held = await judge(found, [by_engine(engine, receipt.end)])
    except P2pinferError as error:
        return None, str(error)
    if held is None:
        return None, f"{accused} computes in a numerics class that this machine does not have"
    if held:
        return True, f"its layers produce other rows than {accused} signed: it cheated"
    return (
        False,
        f"its layers produce exactly the rows that {accused} signed: the accusation is false",
    )


def _signatures(found: Certificate, body: bytes, signature: bytes) -> Iterable[Finding]:
    author = found.terms.requester
    if not verify(author, file.to_sign(body), signature):
        at = f"bytes {len(body)} to {len(body) + len(signature) - 1}"
        yield Finding("signatures", False, f"{at}: the requester {short(author)} did not sign this")
        return
    for index, stage in enumerate(found.stages):
        for number, signed in enumerate(stage.receipts):
            if not verify(stage.peer, SIGNED_AS + signed.body, signed.signature):
                text = (
                    f"section stage {index}: receipt {number} is not signed by {short(stage.peer)}"
                )
                yield Finding("signatures", False, text)
                return
    count = sum(len(stage.receipts) for stage in found.stages)
    yield Finding("signatures", True, f"{count} by stages, and the requester's")


def _audits(found: Certificate) -> Finding:
    """Report the requester's audits: its own claim, but it could not choose the stages."""
    said = "; ".join(audit.line() for audit in found.audits) or "none"
    return Finding("audits", True, f"chosen by the nonce, at a rate of {found.rate:g}: {said}")


async def _replay(found: Certificate, vouched: Sequence[Vouched], store: Store) -> list[Finding]:
    """Run again every stage whose layers this machine holds, up to the first it lacks."""
    manifest = store.manifest(found.terms.model)
    if manifest is None:
        return [Finding("rows", None, _NOT_HERE.format(found.terms.model[:12]))]
    findings: list[Finding] = []
    try:
        model = open_parts(store, manifest, cache_dir())
        if missing := _missing(model, manifest.ends(found.stages[0].first)):
            return [Finding("rows", None, f"this machine lacks the model's {missing}")]
        rows = await _embed(found, model)
        for index, stage in enumerate(vouched):
            what = f"stage {index}"
            if missing := _missing(model, manifest.needed(stage.first, stage.end)):
                findings.append(Finding(what, None, f"this machine lacks the model's {missing}"))
                break
            finding, rows = await _run(what, stage, rows, model)
            findings.append(finding)
            if not finding.held:  # so the rows that later stages received are unknown
                break
    except P2pinferError as error:
        findings.append(Finding("rows", None, str(error)))
    return findings


def _missing(model: PartsModel, names: Iterable[str]) -> str:
    held = model.store.held
    return next((name for name in names if not held(model.manifest.part(name))), "")


async def _embed(found: Certificate, model: PartsModel) -> Rows:
    """Run the tokens through the requester's own first layers."""
    tokens, rows = found.tokens, Rows(keep=True)
    regimes = OpenedRows(
        found.regimes_by_position(), bytes(len(tokens))
    )  # one byte per row, to cut at the same places
    paths, layers = model.ends(found.stages[0].first), model.manifest.layers
    async with open_ends(*paths, layers, sessions=1, context=len(tokens)) as ends:
        cells = ends.open()
        for at, run, regime in cut(regimes, 0):
            decoded = await cells.embed(at, list(tokens[at : at + len(run)]), regime=regime)
            rows.put(at, len(run), decoded.rows, regime=regime)
        cells.close()
    return rows


@asynccontextmanager
async def _stage(model: PartsModel, stage: Vouched, context: int) -> AsyncIterator[EngineReplay]:
    path = model.stage(stage.first, stage.end)
    async with open_stage(path, stage.first, sessions=1, context=context) as engine:
        replay = EngineReplay(engine, stage.end)
        yield replay
        replay.close()


async def _run(
    what: str, stage: Vouched, received: Rows, model: PartsModel
) -> tuple[Finding, Rows]:
    """Run a stage again, and compare with its receipt at each checkpoint."""
    count = max(stage.receipts)
    peer = f"{short(stage.peer)} (layers {stage.first}:{stage.end})"
    last = stage.receipts[count]
    if received.tree.root(count) != last.received:
        text = f"{peer} received other rows than the layers before it produce on this machine"
        return Finding(what, None, text), received
    sent = Rows(keep=True)
    async with _stage(model, stage, count) as replay:
        for at, rows, regime in cut(received.open(0, count), 0):
            run = len(rows) // (4 * replay.width)
            sent.put(at, run, await replay.run(at, run, rows, regime=regime), regime=regime)
        numerics = replay.numerics
    for at, receipt in stage.receipts.items():
        if sent.tree.root(at) == receipt.sent and received.tree.root(at) == receipt.received:
            continue
        if numerics != last.numerics:
            text = f"{peer} computes in another numerics class than this machine"
            return Finding(what, None, text), sent
        text = f"{peer} signed other rows than its layers produce, before position {at}"
        return Finding(what, False, text), sent
    return Finding(what, True, f"{peer} signed exactly the rows that its layers produce"), sent
