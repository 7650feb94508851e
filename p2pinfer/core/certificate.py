"""A certificate: all that was signed and checked of an answer, in one file that anyone can check.

    MAGIC, sections, signature
    section    length of the name (1 byte), name, length of the body (4 bytes, little-endian), body,
               BLAKE3 of all that in 32 bytes
    signature  Ed25519 by the requester, 64 bytes, over ``SIGNED_AS`` and the BLAKE3 of all before

There is a section "session", one "tokens", one for each "stage N", and one "audits", each a msgpack
array. Every byte is covered twice, so a changed one is noticed and its section named; who changes a
section with its hash lacks the requester's signature, and the stages'.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgpack
from attrs import astuple, field, frozen
from attrs import validators as v
from blake3 import blake3

from p2pinfer.core.checks import LAYER, PEER, POSITIONS_MAX, blob, many, shown_size, text
from p2pinfer.core.continuity import Vouched, find_joint
from p2pinfer.core.ids import PeerId
from p2pinfer.core.receipts import (
    CHECKPOINT_POSITIONS,
    BadReceipt,
    Receipt,
    Signed,
    Terms,
    seal_of,
)
from p2pinfer.core.trust import Audited, Verdict, choose_audits

MAGIC = b"p2pinfer certificate 1\n"
SIGNED_AS = b"p2pinfer certificate 1\0"
FILE_BYTES_MAX = 64 << 20
"""The longest session through the longest route needs less."""

SECTIONS_MAX = 256
STAGES_MAX = 128
TEXT_CHARS_MAX = 1 << 22
AUDITORS_MAX = 16
_HASH_BYTES, _SIGNATURE_BYTES = 32, 64


class BadCertificate(ValueError):
    """The file is no certificate, or something in it is not what it was; the text says where."""


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
    """What a requester has of an answer."""

    terms: Terms
    nonce: bytes = field(validator=blob(32, 32), repr=shown_size)
    rate: float = field(validator=v.and_(v.instance_of(float), v.ge(0.0), v.le(1.0)))
    """Of audits."""
    tokens: tuple[int, ...] = field(validator=many(int, POSITIONS_MAX, 1))
    """Prompt and answer, as far as stages have run them."""
    regimes: tuple[int, ...] = field(validator=many(int, POSITIONS_MAX, 1))
    """Lengths of runs, wide and narrow in turn, a wide one first; it may be empty."""
    answer: str = field(validator=text(TEXT_CHARS_MAX))
    """What the requester read: its own word, which no stage knows."""
    stages: tuple[StageClaim, ...] = field(validator=many(StageClaim, STAGES_MAX, 1))
    audits: tuple[Audited, ...] = field(validator=many(Audited, STAGES_MAX))

    def wide(self) -> tuple[bool, ...]:
        """Return for each position whether it ran wide."""
        return tuple(
            index % 2 == 0 for index, length in enumerate(self.regimes) for _ in range(length)
        )

    def body(self) -> bytes:
        """Return the file without its signature."""
        terms = self.terms
        session = [
            *[terms.session, terms.model, terms.requester, terms.dtype, terms.seal],
            *[self.nonce, self.rate],
        ]
        sections: dict[str, Any] = {
            "session": session,
            "tokens": [self.tokens, self.regimes, self.answer],
        }
        for index, stage in enumerate(self.stages):
            receipts = [[each.body, each.signature] for each in stage.receipts]
            sections[f"stage {index}"] = [stage.peer, stage.first, stage.end, receipts]
        sections["audits"] = [list(astuple(audit)) for audit in self.audits]
        return MAGIC + b"".join(_section(name, values) for name, values in sections.items())


def runs_of(regimes: tuple[bool, ...]) -> tuple[int, ...]:
    """Return lengths of runs, wide and narrow in turn, a wide one first."""
    found, wide = [0], True
    for each in regimes:
        if each is not wide:
            found.append(0)
            wide = each
        found[-1] += 1
    return tuple(found)


def to_sign(body: bytes) -> bytes:
    """Return what the requester signs of a file."""
    return SIGNED_AS + blake3(body).digest()


def parse(data: bytes) -> tuple[Certificate, bytes, bytes]:
    """Read a file; returns the certificate, the body and its signature, which is not yet checked.

    Raises:
        BadCertificate: it is damaged or none; the text says where.
    """
    if not data.startswith(MAGIC):
        raise BadCertificate("bytes 0 to 22: this is no certificate of p2pinfer")
    if len(data) > FILE_BYTES_MAX:
        raise BadCertificate(f"the file is longer than {FILE_BYTES_MAX} bytes")
    body, signature = data[:-_SIGNATURE_BYTES], data[-_SIGNATURE_BYTES:]
    sections = dict(_sections(body))
    try:
        found = _build(sections)
        if found.body() != body:  # an order, a name or an encoding that none of ours has
            raise ValueError("it is not written as certificates are")
    except (ValueError, TypeError, KeyError, IndexError, BadReceipt) as error:
        raise BadCertificate(f"the sections do not make a certificate: {error}"[:300]) from error
    return found, body, signature


def check(certificate: Certificate) -> tuple[Vouched, ...]:
    """Hold the certificate's parts against each other; returns the stages' word.

    Signatures are checked elsewhere.

    Raises:
        BadCertificate: something contradicts something else; the text says what.
    """
    position = len(certificate.tokens)
    if sum(certificate.regimes) != position or min(certificate.regimes) < 0:
        raise BadCertificate("section tokens: tokens and regimes differ in number")
    if seal_of(certificate.nonce) != certificate.terms.seal:
        raise BadCertificate("section session: the nonce is not the one that was sealed")
    found, digest = [], certificate.terms.digest()
    for index, stage in enumerate(certificate.stages):
        receipts = {}
        for at, signed in enumerate(stage.receipts):
            try:
                receipt = Receipt.parse(signed.body)
            except BadReceipt as error:
                raise BadCertificate(f"section stage {index}: receipt {at}: {error}") from error
            about = (receipt.terms, receipt.first, receipt.end)
            if about != (digest, stage.first, stage.end):
                raise BadCertificate(f"section stage {index}: receipt {at} is about something else")
            receipts[receipt.position] = receipt
        if list(receipts) != sorted(receipts) or max(receipts) != position:
            raise BadCertificate(f"section stage {index}: its receipts are not for {position} rows")
        found.append(Vouched(stage.peer, stage.first, stage.end, receipts))
    if any(b.first != a.end for a, b in pairwise(found)):
        raise BadCertificate("the stages' layers leave a gap or overlap")
    if broken := find_joint(found, position):
        raise BadCertificate(f"{' or '.join(broken.peers)}, at {broken.position}: {broken.text}")
    bodies = [stage.receipts[position].body() for stage in found]
    chosen = {
        found[index].peer for index in choose_audits(certificate.nonce, bodies, certificate.rate)
    }
    if chosen != {audit.peer for audit in certificate.audits}:
        raise BadCertificate("section audits: these are not the stages that the nonce chose")
    return tuple(found)


def _section(name: str, values: Any) -> bytes:
    packed: bytes = msgpack.packb(values)
    head = bytes([len(name)]) + name.encode() + len(packed).to_bytes(4, "little") + packed
    return head + blake3(head).digest()


def _sections(body: bytes) -> Iterator[tuple[str, Any]]:
    at, number = len(MAGIC), 0
    while at < len(body):
        start, number = at, number + 1
        name_end = start + 1 + body[start]
        size_end = name_end + 4
        end = size_end + int.from_bytes(body[name_end:size_end], "little")
        name = body[start + 1 : name_end].decode("ascii", "replace")
        shown = name if name.replace(" ", "").isalnum() else f"number {number}"
        where = f"section {shown}, bytes {start} to {min(end + _HASH_BYTES, len(body)) - 1}"
        at = end + _HASH_BYTES
        if at > len(body) or blake3(body[start:end]).digest() != body[end:at]:
            raise BadCertificate(f"{where}: it is damaged")
        if number > SECTIONS_MAX:
            raise BadCertificate(f"{where}: there are too many sections")
        try:
            yield name, msgpack.unpackb(body[size_end:end], use_list=False)
        except Exception as error:  # msgpack raises five families
            raise BadCertificate(f"{where}: it is not msgpack") from error


def _build(sections: dict[str, Any]) -> Certificate:
    *terms, nonce, rate = sections["session"]
    tokens, regimes, answer = sections["tokens"]
    stages = []
    for index in range(len(sections) - 3):
        peer, first, end, receipts = sections[f"stage {index}"]
        stages.append(StageClaim(peer, first, end, tuple(Signed(*each) for each in receipts)))
    audits = tuple(_audit(*each) for each in sections["audits"])
    return Certificate(Terms(*terms), nonce, rate, tokens, regimes, answer, tuple(stages), audits)


def _audit(peer: Any, first: Any, end: Any, verdict: Any, by: Any, *rest: Any) -> Audited:
    texts = (peer, *by, *(each for each in rest if each is not None and type(each) is not int))
    if len(by) > AUDITORS_MAX or any(type(each) is not str or len(each) > 500 for each in texts):
        raise ValueError("an audit's fields")
    return Audited(peer, first, end, Verdict(verdict), by, *rest)
