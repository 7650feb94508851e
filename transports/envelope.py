"""Envelopes: messages that one peer seals for another, signed inside by the one that wrote them.

    suite (1 byte), then HPKE's enc and ciphertext (RFC 9180, single shot, base mode)
    inside     the sender's public key, its signature, and the message

The signature is over the purpose, both names, the receiver's sealing key, and the message: an
envelope that was opened cannot be sealed again for somebody else, nor shown as another one's.
Anybody may make the key that a thing is sealed with; so HPKE's own authentication is not used,
which falls to those who have the receiver's key.

What it rests on: HPKE and Ed25519 of the library ``cryptography``, sign-then-encrypt with both
identities bound (An, Dodis and Rabin 2002). The composition is ours, unaudited. What it does not
give: forward secrecy against those who get the receiver's key later, anonymity of the receiver
towards those who see the traffic, and hidden lengths.
"""

from struct import Struct
from typing import Final

from attrs import frozen
from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

from p2pinfer.core.ids import PeerId
from transports.identity import Identity, peer_of, public_key, verify

MESSAGE_BYTES_MAX: Final = 1 << 20

_SIGNED_AS: Final = b"p2pinfer envelope 1\0"
_KEY_BYTES: Final = 32
_SIGNATURE_BYTES: Final = 64
_PQ_KEY_BYTES: Final = 1184
_SIZES: Final = Struct("<HHHI")

HYBRID: Final = 1
"""ML-KEM-768 with X25519 (X-Wing), HKDF-SHA256, ChaCha20-Poly1305: safe while either holds."""

_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)

SEALING_KEY_BYTES: Final = _PQ_KEY_BYTES + _KEY_BYTES
"""Of the public half: that of ML-KEM, then that of X25519."""


class BadEnvelopeError(Exception):
    """It was not sealed for this receiver and purpose, or its sender did not sign it."""


class EnvelopeKey:
    """The key that a receiver opens envelopes with, from 32 secret bytes."""

    def __init__(self, secret: bytes) -> None:
        if len(secret) != _KEY_BYTES:
            raise ValueError(f"a secret has {_KEY_BYTES} bytes, not {len(secret)}")
        seeds = blake3(secret, derive_key_context="p2pinfer sealing key 1").digest(96)
        lattice = MLKEM768PrivateKey.from_seed_bytes(seeds[:64])
        curve = X25519PrivateKey.from_private_bytes(seeds[64:])
        self.private = MLKEM768X25519PrivateKey(lattice, curve)
        self.public = (
            lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        )
        """What others seal with."""


@frozen
class Unsealed:
    """What was in an envelope."""

    sender: PeerId
    message: bytes


def seal(
    sender: Identity, receiver: PeerId, sealing_key: bytes, purpose: bytes, message: bytes
) -> bytes:
    """Sign a message and seal it.

    Args:
        sender: who signs.
        receiver: its name, which is signed.
        sealing_key: the public half of its key.
        purpose: what the message is for; it opens for nothing else.
        message: any bytes.

    Raises:
        ValueError: the key is none, or the message is too long.
    """
    if len(message) > MESSAGE_BYTES_MAX:
        raise ValueError(f"a message has {MESSAGE_BYTES_MAX} bytes at most")
    if len(sealing_key) != SEALING_KEY_BYTES:
        raise ValueError("that is no sealing key")
    signature = sender.sign(_to_sign(sender.peer_id, receiver, sealing_key, purpose, message))
    inside = public_key(sender.peer_id) + signature + message
    key = MLKEM768X25519PublicKey(
        MLKEM768PublicKey.from_public_bytes(sealing_key[:_PQ_KEY_BYTES]),
        X25519PublicKey.from_public_bytes(sealing_key[_PQ_KEY_BYTES:]),
    )
    sealed = _SUITE.encrypt(inside, key, info=_info(receiver, purpose))
    return bytes([HYBRID]) + sealed


def unseal(receiver: PeerId, key: EnvelopeKey, purpose: bytes, data: bytes) -> Unsealed:
    """Open an envelope.

    Raises:
        BadEnvelopeError: it is none, for somebody else, or for another purpose.
    """
    if data[:1] != bytes([HYBRID]) or len(data) > MESSAGE_BYTES_MAX + 2 * SEALING_KEY_BYTES:
        raise BadEnvelopeError("it is no envelope of a kind that is known here")
    try:
        inside = _SUITE.decrypt(data[1:], key.private, info=_info(receiver, purpose))
    except (InvalidTag, ValueError):
        raise BadEnvelopeError("it was not sealed for this receiver and purpose") from None
    head = _KEY_BYTES + _SIGNATURE_BYTES
    if len(inside) < head:
        raise BadEnvelopeError("it holds no signature")
    sender = peer_of(inside[:_KEY_BYTES])
    signature, message = inside[_KEY_BYTES:head], inside[head:]
    if not verify(sender, _to_sign(sender, receiver, key.public, purpose, message), signature):
        raise BadEnvelopeError("its sender did not sign it for this receiver")
    return Unsealed(sender, message)


def _info(receiver: PeerId, purpose: bytes) -> bytes:
    return b"\0".join((_SIGNED_AS + purpose, receiver.encode()))


def _to_sign(
    sender: PeerId, receiver: PeerId, sealing_key: bytes, purpose: bytes, message: bytes
) -> bytes:
    names = purpose, sender.encode(), receiver.encode()
    sizes = _SIZES.pack(*map(len, names), len(message))
    return b"".join((_SIGNED_AS, sizes, *names, sealing_key, message))
