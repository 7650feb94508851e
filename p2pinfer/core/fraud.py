"""A fraud proof: a peer's own signed receipt and what refutes it, in one file that travels.

A receipt says: from these rows (a Merkle root) my layers made those (another root). Layers of one
numerics class give the same bits every time. So any peer that holds the layers can run the rows
that the first root commits to, each in its regime; if the second root differs, the receipt is
false. No trust is needed: the rows hash to the root that the accused signed, so the author cannot
choose others. They begin at the session's first position, for each row depends on all before it.

Only a peer of the accused's own class can judge. Between classes honest rows differ too, and
a requester chooses its rows: it could choose them so that they differ by more than any bound.
Two receipts that contradict each other are a proof without rows, in any class.

An opening in which a step is not what the one before it gives is a proof in any class, too: the
accused signed for each step, and all who hold that one layer compute the step again. It is cut to
that layer; see ``core.opening`` and ``core.verdict``.

    session    the terms that the receipts name; the requester is the author, and signs the file
    accused    peer id, the end of the slice that it served, its receipts: one, or two
    rows       regimes (lengths of their runs) and the rows that it received
    opening    only in the third kind: the opening
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from attrs import astuple, field, frozen
from blake3 import blake3

from p2pinfer.core import sections
from p2pinfer.core.checks import LAYER, PEER, blob, many, shown_size
from p2pinfer.core.evidence import FRAUD_ROWS_BYTES_MAX, Case
from p2pinfer.core.ids import PeerId
from p2pinfer.core.opening import BadOpening, check_roots, check_signed, decode
from p2pinfer.core.receipts import SIGNED_AS as RECEIPT_SIGNED_AS
from p2pinfer.core.receipts import BadReceipt, Receipt, Signed, Terms
from p2pinfer.core.sections import BadFile
from p2pinfer.core.verdict import can_be_judged
from p2pinfer.core.witness import OpenedRows, Rows, regimes_of

MAGIC = b"p2pinfer fraud proof 1\n"
SIGNED_AS = b"p2pinfer fraud proof 1\0"

FILE_BYTES_MAX = FRAUD_ROWS_BYTES_MAX + 65_536
"""Beside the rows: terms, two receipts and regimes."""

FRAUD_POSITIONS_MAX = 16_384
"""Rows are hashed one by one. A real model's rows reach the byte limit first; a hostile proof's
may be one number wide, and a million of them took half a minute."""

BY_STEPS = b"p2pinfer steps 1"
"""Stands for the numerics class where steps are judged: no class has it, so that peers who know no
openings do not ask for such a proof."""

Verify = Callable[[PeerId, bytes, bytes], bool]
"""Whether a peer's signature over some bytes is valid."""


@frozen
class FraudProof:
    """Shows that a peer signed for rows that its layers do not give."""

    terms: Terms
    accused: PeerId = field(validator=PEER)
    slice_end: int = field(validator=LAYER)
    """The end (exclusive) of the slice that the accused served, which determines its class."""
    receipts: tuple[Signed, ...] = field(validator=many(Signed, 2, 1))
    """One that its rows refute, or two that contradict each other."""
    regimes: tuple[int, ...] = field(default=(), validator=many(int, FRAUD_POSITIONS_MAX + 1))
    """Lengths of runs, as ``runs_of`` gives them."""
    rows: bytes = field(default=b"", validator=blob(FRAUD_ROWS_BYTES_MAX), repr=shown_size)
    """All rows that it received and the receipt covers, float32 as on the wire."""
    opening: bytes = field(default=b"", validator=blob(FRAUD_ROWS_BYTES_MAX), repr=shown_size)
    """As ``core.opening`` encodes it, instead of rows."""

    @property
    def author(self) -> PeerId:
        """The accuser: the session's requester."""
        return self.terms.requester

    @property
    def receipt(self) -> Receipt:
        """The first receipt, parsed."""
        return Receipt.parse(self.receipts[0].body)

    @property
    def inputs(self) -> OpenedRows:
        """The rows, each with its regime."""
        return OpenedRows(regimes_of(self.regimes), self.rows)

    def case(self) -> Case:
        """Return the summary that is sent before the proof."""
        receipt = self.receipt
        if self.opening:
            layers = decode(self.opening).layers
            return Case(
                blake3(self.body()).digest(),
                self.terms.model,
                self.author,
                self.accused,
                layers[0].layer,
                layers[-1].layer + 1,
                self.slice_end,
                BY_STEPS,
                1,
            )
        return Case(
            blake3(self.body()).digest(),
            self.terms.model,
            self.author,
            self.accused,
            receipt.first,
            receipt.end,
            self.slice_end,
            receipt.numerics,
            receipt.position if self.rows else 0,
        )

    def body(self) -> bytes:
        """Return the file without its signature."""
        receipts = [[each.body, each.signature] for each in self.receipts]
        found: dict[str, Any] = {
            "session": astuple(self.terms),
            "accused": [self.accused, self.slice_end, receipts],
            "rows": [self.regimes, self.rows],
        }
        if self.opening:
            found["opening"] = self.opening
        return sections.write(MAGIC, found)


def to_sign(body: bytes) -> bytes:
    """Return the bytes that the author signs for a file."""
    return sections.to_sign(SIGNED_AS, body)


def contradict(one: Receipt, other: Receipt) -> bool:
    """Whether no honest peer signs both: from the same rows, layers of one class make the same."""
    mine, others = (
        (each.terms, each.first, each.end, each.numerics, each.position, each.received)
        for each in (one, other)
    )
    return mine == others and one.sent != other.sent


def parse(data: bytes, verify: Verify) -> FraudProof:
    """Read a file and check all that can be checked without layers.

    What is left is to run the rows and compare; two receipts are a proof as they are.

    Raises:
        BadFile: it is damaged, a signature is missing, or it proves nothing.
    """
    found, body, signature = sections.read(data, MAGIC, FILE_BYTES_MAX, _build)
    if not verify(found.author, to_sign(body), signature):
        at = f"bytes {len(body)} to {len(data) - 1}"
        raise BadFile(f"{at}: its author {found.author} did not sign this")
    for number, signed in enumerate(found.receipts):
        if not verify(found.accused, RECEIPT_SIGNED_AS + signed.body, signed.signature):
            raise BadFile(f"section accused: receipt {number} is not signed by {found.accused}")
    try:
        receipts = [Receipt.parse(signed.body) for signed in found.receipts]
    except BadReceipt as error:
        raise BadFile(f"section accused: {error}") from error
    digest, (receipt, *others) = found.terms.digest(), receipts
    if any(each.terms != digest for each in receipts):
        raise BadFile("section accused: a receipt is about another session")
    if not receipt.first < receipt.end <= found.slice_end:
        raise BadFile("section accused: the receipt is about no layers")
    if found.opening:
        _check_opening(found, verify)
        if others or found.rows or found.regimes:
            raise BadFile("section opening: there is other evidence beside it")
    elif others:
        if not contradict(receipt, others[0]) or found.rows or found.regimes:
            raise BadFile("section accused: the receipts do not contradict each other")
    else:
        _check_rows(found, receipt)
    return found


def _check_rows(proof: FraudProof, receipt: Receipt) -> None:
    count = receipt.position
    if count > FRAUD_POSITIONS_MAX:
        raise BadFile(f"section rows: {count} are too many")
    if proof.terms.dtype != "f32" or not count or sum(map(abs, proof.regimes)) != count:
        raise BadFile("section rows: they are not those of the receipt")
    if not proof.rows or len(proof.rows) % (4 * count):
        raise BadFile("section rows: they are not of one width")
    if not np.isfinite(np.frombuffer(proof.rows, "<f4")).all():
        raise BadFile("section rows: no stage takes NaN or infinity")
    received, size = Rows(keep=False), len(proof.rows) // count
    for at, regime in enumerate(proof.inputs.regimes):
        received.put(at, 1, proof.rows[at * size : (at + 1) * size], regime=regime)
    if received.tree.root(count) != receipt.received:
        raise BadFile("section rows: they are not those that the accused signed for")


def _check_opening(proof: FraudProof, verify: Verify) -> None:
    try:
        opening = decode(proof.opening)
        check_signed(opening, verify)
        check_roots(opening)
    except BadOpening as error:
        raise BadFile(f"section opening: {error}") from error
    pledge = opening.pledge
    about = pledge.terms, pledge.peer, pledge.receipt
    if about != (proof.terms, proof.accused, proof.receipts[0]):
        raise BadFile("section opening: it is about something else")
    if not can_be_judged(pledge):
        raise BadFile("section opening: what such a machine computes cannot be judged")


def _build(found: dict[str, Any]) -> FraudProof:
    accused, slice_end, receipts = found["accused"]
    signed = tuple(Signed(*each) for each in receipts)
    regimes, rows = found["rows"]
    terms, opening = Terms(*found["session"]), found.get("opening", b"")
    return FraudProof(terms, accused, slice_end, signed, regimes, rows, opening)
