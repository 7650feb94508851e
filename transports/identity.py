"""A peer's identity: an Ed25519 key in a file, and the peer id that is its public half.

A peer id of this kind contains the whole public key (identity multihash of the key's protobuf,
https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md), so a signature can be checked
with nothing but the signer's id.
"""

import secrets
from pathlib import Path
from typing import Final

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from transports.secret import create_secret, read_secret

SEED_BYTES: Final = 32
PEER_ID_PREFIX: Final = bytes.fromhex("002408011220")
"""Identity multihash (0x00) of 36 bytes: key type 1 (Ed25519), then 32 bytes of key."""

PEER_ID_CHARS_MAX = 64
"""An Ed25519 id has 52; decoding base58 takes quadratic time, so longer texts are not tried."""


class Identity:
    """A private key; ``seed`` is its 32 secret bytes."""

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_BYTES:
            raise ValueError(f"a key has {SEED_BYTES} bytes, not {len(seed)}")
        self.seed = seed
        self._key = Ed25519PrivateKey.from_private_bytes(seed)
        public = self._key.public_key().public_bytes_raw()
        self.peer_id = peer_of(public)

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of ``data``."""
        return self._key.sign(data)


def ephemeral_identity() -> Identity:
    """Draw an identity that is stored nowhere."""
    return Identity(secrets.token_bytes(SEED_BYTES))


def load_identity(path: Path) -> Identity:
    """Read the key file at ``path``, or create it with a fresh key, readable only by its owner.

    Raises:
        UserError: the file is not a key, is open to others, or cannot be read or written.
    """
    try:
        if not path.exists():
            create_secret(path)
    except OSError as error:
        raise UserError(
            f"The identity file {path} cannot be written ({error.strerror}): make room for it, or"
            " name another one with --identity."
        ) from error
    remedy = "Restore it, or name another one to become a new peer."
    return Identity(read_secret(path, "identity file", remedy))


def public_key(peer: PeerId) -> bytes:
    """Return the 32 bytes of the public key inside a peer id.

    Raises:
        ValueError: the text is not the id of an Ed25519 key.
    """
    if len(peer) > PEER_ID_CHARS_MAX:
        raise ValueError("too long for a peer id")
    data = base58.b58decode(peer)
    if len(data) != len(PEER_ID_PREFIX) + 32 or not data.startswith(PEER_ID_PREFIX):
        raise ValueError("not the id of an Ed25519 key")
    return data[len(PEER_ID_PREFIX) :]


def peer_of(key: bytes) -> PeerId:
    """Return the id of the peer whose public key has these 32 bytes."""
    return PeerId(base58.b58encode(PEER_ID_PREFIX + key).decode())


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made with the key of ``peer``."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key(peer)).verify(signature, data)
    except (ValueError, InvalidSignature):
        return False
    return True
