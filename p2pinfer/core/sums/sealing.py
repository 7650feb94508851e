"""Key shares on their way from one member to another: sealed by HPKE (RFC 9180) of `cryptography`.

The key encapsulation joins ML-KEM-768 and X25519: both would have to fall, and encrypted sums rest
on lattices as the first does. HPKE's base mode says nothing of who sealed: members send under their
identities, as all that peers send, and what a share belongs to is bound in.
"""

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

from p2pinfer.core.sums.layout import BadSum

SEED_BYTES = 96
"""Of a sealing key pair: 64 for ML-KEM-768, then 32 for X25519."""
_LATTICE_BYTES, _CURVE_BYTES = 1184, 32
SEALING_KEY_BYTES = _LATTICE_BYTES + _CURVE_BYTES
SEAL_BYTES = 1136
"""What a sealed text is longer by: both encapsulations, and the tag."""

_LATTICE_SEED_BYTES = 64
_SUITE = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)


class SealingKey:
    """A member's key pair for one sum; it goes with the sum.

    Args:
        seed: ``SEED_BYTES`` secret random bytes.
    """

    def __init__(self, seed: bytes) -> None:
        lattice = MLKEM768PrivateKey.from_seed_bytes(seed[:_LATTICE_SEED_BYTES])
        curve = X25519PrivateKey.from_private_bytes(seed[_LATTICE_SEED_BYTES:])
        self._private = MLKEM768X25519PrivateKey(lattice, curve)
        self.public = (
            lattice.public_key().public_bytes_raw() + curve.public_key().public_bytes_raw()
        )
        """What others seal with."""

    def unseal(self, sealed: bytes, info: bytes) -> bytes:
        """Return what was sealed with the same ``info``; raises BadSum."""
        try:
            return _SUITE.decrypt(sealed, self._private, info)
        except (InvalidTag, ValueError) as error:
            raise BadSum("what was sealed does not open") from error


def check_sealing_key(public: bytes) -> None:
    """Raise BadSum if nothing can be sealed with it, as with a point of low order."""
    seal(b"", public, b"")


def seal(text: bytes, public: bytes, info: bytes) -> bytes:
    """Seal a text for the holder of a key's other half; raises BadSum if that is none."""
    try:
        return _SUITE.encrypt(text, _read(public), info)
    except ValueError as error:
        raise BadSum("no sealing key") from error


def _read(public: bytes) -> MLKEM768X25519PublicKey:
    try:
        return MLKEM768X25519PublicKey(
            MLKEM768PublicKey.from_public_bytes(public[:_LATTICE_BYTES]),
            X25519PublicKey.from_public_bytes(public[_LATTICE_BYTES:]),
        )
    except ValueError as error:
        raise BadSum("no sealing key") from error
