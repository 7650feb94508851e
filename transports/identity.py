"""Who a peer is: an Ed25519 key in a file, and the peer id that is its public half.

A peer id of this kind holds the whole public key (identity multihash of the key's protobuf,
https://github.com/libp2p/specs/blob/master/peer-ids/peer-ids.md), so a signature is checked with
nothing but the signer's id.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId

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
        self.peer_id = PeerId(base58.b58encode(PEER_ID_PREFIX + public).decode())

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature of ``data``."""
        return self._key.sign(data)


def ephemeral_identity() -> Identity:
    """Draw an identity that is kept nowhere."""
    return Identity(secrets.token_bytes(SEED_BYTES))


def load_identity(path: Path) -> Identity:
    """Read the key file at ``path``, or draw a key and create the file, readable by its owner only.

    Raises:
        UserError: the file is no key, is open to others, or cannot be read or written.
    """
    try:
        if not path.exists():
            _create(path, secrets.token_bytes(SEED_BYTES))
        text = path.read_text(encoding="ascii").strip()
        exposed = os.name == "posix" and path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"The identity file {path} cannot be used: {error}. Name another one."
        ) from error
    if exposed:
        raise UserError(f"The identity file {path} is open to other users: run chmod 600 {path}.")
    try:
        return Identity(bytes.fromhex(text))
    except ValueError:
        raise UserError(
            f"The identity file {path} is not a key ({2 * SEED_BYTES} hexadecimal digits). "
            "Restore it, or name another one to become a new peer."
        ) from None


def _create(path: Path, seed: bytes) -> None:
    """Write the file whole or not at all; one that appeared meanwhile stays as it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(seed.hex() + "\n")
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):  # another process was first: its key is the key
            os.link(draft, path)
    finally:
        draft.unlink()


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


def verify(peer: PeerId, data: bytes, signature: bytes) -> bool:
    """Whether ``signature`` over ``data`` was made with the key of ``peer``."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key(peer)).verify(signature, data)
    except (ValueError, InvalidSignature):
        return False
    return True
