"""A certificate: all that was signed and checked for an answer, in one file anyone can check.

It has a section "session", one "tokens", one for each "stage N", and one "audits", in a file as
``sections`` writes it, signed by the requester. A changed receipt no longer fits its stage's
signature. Rows that stages opened are in a section "openings", where there are any.
"""

from itertools import pairwise
from typing import Any

from attrs import astuple, field, frozen
from attrs import validators as v

from p2pinfer.core import sections
from p2pinfer.core.checks import LAYER, PEER, POSITIONS_MAX, blob, many, shown_size, text
from p2pinfer.core.continuity import Vouched, find_joint
from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import CHECKPOINT_POSITIONS, BadReceipt, Receipt, Signed, Terms, seal_of
from p2pinfer.core.regimes import Regime
from p2pinfer.core.sections import BadFile
from p2pinfer.core.trust import ROWS_PROVEN, Audited, AuditVerdict, choose_audits
from p2pinfer.core.witness import regimes_of

MAGIC = b"p2pinfer certificate 1\n"
SIGNED_AS = b"p2pinfer certificate 1\0"
FILE_BYTES_MAX = 64 << 20
"""Enough for the longest session through the longest route."""

STAGES_MAX = 128
TEXT_CHARS_MAX = 1 << 22
AUDITORS_MAX = 16
_FIELDS_OF_BEFORE = 3
"""Of an audit behind its auditors, unless rows were opened in part."""

OPENINGS_MAX = 8 * STAGES_MAX
"""As many as all stages open for one answer."""


@frozen
class StageClaim:
    """One stage of the route, and what it signed."""

    peer: PeerId = field(validator=PEER)
    first: int = field(validator=LAYER)
    end: int = field(validator=LAYER)
    receipts: tuple[Signed, ...] = field(
        validator=many(Signed, POSITIONS_MAX // CHECKPOINT_POSITIONS + 1, 1)
    )
    """In the order of their positions."""


@frozen
class Certificate:
    """What a requester has as evidence for an answer."""

    terms: Terms
    nonce: bytes = field(validator=blob(32, 32), repr=shown_size)
    rate: float = field(validator=v.and_(v.instance_of(float), v.ge(0.0), v.le(1.0)))
    """Audit rate."""
    tokens: tuple[int, ...] = field(validator=many(int, POSITIONS_MAX, 1))
    """Prompt and answer, as far as the stages have run them."""
    regimes: tuple[int, ...] = field(validator=many(int, POSITIONS_MAX, 1))
    """Lengths of runs, as ``runs_of`` gives them."""
    answer: str = field(validator=text(TEXT_CHARS_MAX))
    """What the requester read: its own claim, which no stage can confirm."""
    stages: tuple[StageClaim, ...] = field(validator=many(StageClaim, STAGES_MAX, 1))
    audits: tuple[Audited, ...] = field(validator=many(Audited, 2 * STAGES_MAX))
    openings: tuple[bytes, ...] = field(default=(), validator=many(bytes, OPENINGS_MAX))
    """As ``core.opening`` encodes them; each names its stage."""
    cut_openings: tuple[bytes, ...] = field(default=(), validator=many(bytes, OPENINGS_MAX))
    """Those that lack layers, which a reader of before would find false."""

    def regimes_by_position(self) -> tuple[Regime, ...]:
        """Return the regime that each position ran in."""
        return regimes_of(self.regimes)

    def body(self) -> bytes:
        """Return the file without its signature."""
        found: dict[str, Any] = {
            "session": [*astuple(self.terms), self.nonce, self.rate],
            "tokens": [self.tokens, self.regimes, self.answer],
        }
        for index, stage in enumerate(self.stages):
            receipts = [[each.body, each.signature] for each in stage.receipts]
            found[f"stage {index}"] = [stage.peer, stage.first, stage.end, receipts]
        found["audits"] = [_values_of(audit) for audit in self.audits]
        if self.openings:
            found["openings"] = self.openings
        if self.cut_openings:
            found["openings of some layers"] = self.cut_openings
        return sections.write(MAGIC, found)


def to_sign(body: bytes) -> bytes:
    """Return the bytes that the requester signs for a file."""
    return sections.to_sign(SIGNED_AS, body)


def parse(data: bytes) -> tuple[Certificate, bytes, bytes]:
    """Read a file; return the certificate, the body and its signature, not yet checked.

    Raises:
        BadFile: it is damaged or not a certificate; the text says where.
    """
    return sections.read(data, MAGIC, FILE_BYTES_MAX, _build)


def check(certificate: Certificate) -> tuple[Vouched, ...]:
    """Check the certificate's parts against each other; return the stages' receipts.

    Signatures are checked elsewhere.

    Raises:
        BadFile: two parts contradict each other; the text says which.
    """
    position = len(certificate.tokens)
    if sum(map(abs, certificate.regimes)) != position:
        raise BadFile("section tokens: tokens and regimes differ in number")
    if seal_of(certificate.nonce) != certificate.terms.seal:
        raise BadFile("section session: the nonce is not the one that was sealed")
    found, digest = [], certificate.terms.digest()
    for index, stage in enumerate(certificate.stages):
        receipts = {}
        for at, signed in enumerate(stage.receipts):
            try:
                receipt = Receipt.parse(signed.body)
            except BadReceipt as error:
                raise BadFile(f"section stage {index}: receipt {at}: {error}") from error
            about = (receipt.terms, receipt.first, receipt.end)
            if about != (digest, stage.first, stage.end):
                raise BadFile(f"section stage {index}: receipt {at} is about something else")
            receipts[receipt.position] = receipt
        if list(receipts) != sorted(receipts) or max(receipts) != position:
            raise BadFile(f"section stage {index}: its receipts are not for {position} rows")
        found.append(Vouched(stage.peer, stage.first, stage.end, receipts))
    if any(b.first != a.end for a, b in pairwise(found)):
        raise BadFile("the stages' layers leave a gap or overlap")
    if broken := find_joint(found, position):
        raise BadFile(f"{' or '.join(broken.peers)}, at {broken.position}: {broken.text}")
    bodies = [stage.receipts[position].body() for stage in found]
    chosen = {
        found[index].peer for index in choose_audits(certificate.nonce, bodies, certificate.rate)
    }
    if not chosen <= {audit.peer for audit in certificate.audits}:  # extra audits do no harm
        raise BadFile("section audits: these are not the stages that the nonce chose")
    return tuple(found)


def _build(found: dict[str, Any]) -> Certificate:
    *terms, nonce, rate = found["session"]
    tokens, regimes, answer = found["tokens"]
    stages, openings = [], found.pop("openings", ())
    cut = found.pop("openings of some layers", ())
    for index in range(len(found) - 3):
        peer, first, end, receipts = found[f"stage {index}"]
        stages.append(StageClaim(peer, first, end, tuple(Signed(*each) for each in receipts)))
    audits = tuple(_audit(*each) for each in found["audits"])
    about = Terms(*terms), nonce, rate, tokens, regimes, answer
    return Certificate(*about, tuple(stages), audits, openings, cut)


def _values_of(audit: Audited) -> list[Any]:
    """Leave out what is not there: readers of before reject it."""
    values = list(astuple(audit))
    return values if audit.seen is not None else values[:-1]


def _audit(peer: Any, first: Any, end: Any, verdict: Any, by: Any, *rest: Any) -> Audited:
    rest, seen = rest[:_FIELDS_OF_BEFORE], rest[_FIELDS_OF_BEFORE:]
    if any(type(each) is not float or not 0 <= each <= ROWS_PROVEN for each in seen):
        raise ValueError("how much of the opened rows was seen")
    texts = (peer, *by, *(each for each in rest if each is not None and type(each) is not int))
    if len(by) > AUDITORS_MAX or any(type(each) is not str or len(each) > 500 for each in texts):
        raise ValueError("an audit's fields")
    return Audited(peer, first, end, AuditVerdict(verdict), by, *rest, *seen)
