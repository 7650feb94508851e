"""Receipts: what a stage signs about the rows that it received and sent.

A receipt at a position commits its signer to every row before it, in and out, with the regimes;
the next one supersedes it. Its body has a fixed layout, so that there is one way to write it, and
the signature covers every field.
"""

import struct
from typing import Any

from attrs import field, frozen
from attrs import validators as v
from blake3 import blake3

from p2pinfer.core.checks import HASH, LAYER, PEER, POSITIONS_MAX, SESSION, blob, shown_size, whole
from p2pinfer.core.ids import ModelId, PeerId, SessionId

CHECKPOINT_POSITIONS = 32
"""How often a stage signs. Ed25519 takes 35 µs and checking it 120 µs, so a tenth of a percent of
decoding even on a small model."""

RECEIPT_BYTES_MAX = 300
"""Body and signature, per stage and checkpoint."""

SIGNED_AS = b"p2pinfer receipt 1\0"
"""Prepended to a body before signing, so that a signature for another purpose is no receipt."""

_BODY = struct.Struct("<32sHHIIQ32s32s16s")
BODY_BYTES = _BODY.size
SIGNATURE_BYTES = 64

_ROOT: Any = blob(32, 32)


class BadReceipt(ValueError):
    """The bytes are not a receipt, or its signature does not match."""


def seal_of(nonce: bytes) -> bytes:
    """Return the seal: what a requester shows before it reveals the nonce."""
    return blake3(nonce, derive_key_context="p2pinfer 1 audit nonce").digest()


@frozen
class Terms:
    """What a session is about: the same for all its stages, and bound by each of their receipts."""

    session: SessionId = field(validator=SESSION)
    model: ModelId = field(validator=HASH)
    requester: PeerId = field(validator=PEER)
    dtype: str = field(validator=v.in_(("f32", "f16")))
    seal: bytes = field(validator=_ROOT, repr=shown_size)
    """Seal of the nonce that will choose what is audited; see ``seal_of``."""

    def digest(self) -> bytes:
        """Return the BLAKE3 hash that stands for the terms in a receipt."""
        state = blake3(derive_key_context="p2pinfer 1 terms")
        for part in (self.model, self.requester, self.dtype):
            text = part.encode()
            state.update(len(text).to_bytes(4, "little") + text)
        return state.update(self.session + self.seal).digest()


@frozen
class Receipt:
    """A stage's commitment to the first ``position`` rows of a session."""

    terms: bytes = field(validator=_ROOT, repr=shown_size)
    """Digest of the session's terms."""
    first: int = field(validator=LAYER)
    end: int = field(validator=LAYER)
    number: int = field(validator=whole(0, (1 << 32) - 1))
    """Counts the signer's receipts in the session."""
    position: int = field(validator=whole(0, POSITIONS_MAX))
    """The roots cover the positions before this one."""
    rows: int = field(validator=whole(0, 1 << 62))
    """Rows computed in the session so far, dropped ones too: the work of the signer's layers."""
    received: bytes = field(validator=_ROOT, repr=shown_size)
    sent: bytes = field(validator=_ROOT, repr=shown_size)
    numerics: bytes = field(validator=blob(16, 16))
    """The signer's numerics class."""

    def body(self) -> bytes:
        """Return the bytes that are signed, after ``SIGNED_AS``."""
        return _BODY.pack(
            self.terms,
            self.first,
            self.end,
            self.position,
            self.number,
            self.rows,
            self.received,
            self.sent,
            self.numerics,
        )

    @classmethod
    def parse(cls, body: bytes) -> "Receipt":
        """Parse what ``body`` wrote.

        Raises:
            BadReceipt: the bytes are not a receipt's body.
        """
        if len(body) != BODY_BYTES:
            raise BadReceipt(f"a receipt has {BODY_BYTES} bytes, not {len(body)}")
        terms, first, end, position, number, rows, received, sent, numerics = _BODY.unpack(body)
        try:
            return cls(terms, first, end, number, position, rows, received, sent, numerics)
        except ValueError as error:
            raise BadReceipt(f"a receipt that no correct peer signs: {error}") from error


@frozen
class Signed:
    """A receipt as it travels; the signer is named elsewhere, and only its key's signature fits."""

    body: bytes = field(validator=blob(BODY_BYTES, BODY_BYTES), repr=shown_size)
    signature: bytes = field(validator=blob(SIGNATURE_BYTES, SIGNATURE_BYTES), repr=shown_size)
