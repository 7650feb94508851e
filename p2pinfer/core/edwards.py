"""The group of edwards25519: points and scalars of 32 bytes, and hashing to a point.

Points are added and multiplied by libsodium (``pynacl``), which has no hash to the curve that other
libraries know. That is RFC 9380's here, edwards25519_XMD:SHA-512_ELL2_RO_, over whole numbers of
Python: its input is public, so it need not be constant in time.
"""

import hashlib
from collections.abc import Iterator
from typing import Final

from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_is_valid_point,
    crypto_core_ed25519_scalar_reduce,
)

POINT_BYTES: Final = 32
SCALAR_BYTES: Final = 32

ORDER: Final = 2**252 + 27742317777372353535851937790883648493
"""Of the base point; scalars are below it."""

_P: Final = 2**255 - 19
_A: Final = 486662  # of curve25519, which is mapped to first
_NON_SQUARE: Final = 2
_ROOT_OF_MINUS_1: Final = pow(2, (_P - 1) // 4, _P)
_FIELD_BYTES: Final = 48
"""Reduced to one number of the field, so that none is likelier than another: 128 bits more."""
_HASH_BLOCK_BYTES: Final = 128  # of SHA-512
_NEUTRAL: Final = bytes([1]) + bytes(31)


def is_point(data: bytes) -> bool:
    """Whether bytes are a point of the group's prime order, canonically encoded."""
    return len(data) == POINT_BYTES and crypto_core_ed25519_is_valid_point(data)


def is_scalar(data: bytes) -> bool:
    """Whether bytes are a scalar below the group's order."""
    return len(data) == SCALAR_BYTES and int.from_bytes(data, "little") < ORDER


def reduce(digest: bytes) -> bytes:
    """Return 64 bytes as a scalar below the group's order."""
    return crypto_core_ed25519_scalar_reduce(digest)


def scalar_of(seed: bytes) -> bytes:
    """Return the secret scalar of an Ed25519 seed (RFC 8032, 5.1.5), below the group's order."""
    half = bytearray(hashlib.sha512(seed).digest()[:32])
    half[0] &= 248
    half[31] = half[31] & 127 | 64
    return reduce(bytes(half) + bytes(32))


def hash_to_point(message: bytes, domain: bytes) -> bytes:
    """Return a point whose logarithm nobody knows (RFC 9380, edwards25519_XMD:SHA-512_ELL2_RO_).

    Args:
        message: what is hashed.
        domain: what for; no other use may have the same: 1 to 255 bytes.
    """
    one, two = (_mapped(number) for number in _to_field(message, domain))
    found = crypto_core_ed25519_add(one, two)
    for _ in range(3):  # times the cofactor, 8
        found = crypto_core_ed25519_add(found, found)
    return found


def _to_field(message: bytes, domain: bytes) -> Iterator[int]:
    """Yield two numbers of the field (RFC 9380, 5.2), by expand_message_xmd (5.3.1)."""
    size, domain = 2 * _FIELD_BYTES, domain + bytes([len(domain)])
    head = bytes(_HASH_BLOCK_BYTES) + message + size.to_bytes(2, "big") + b"\0" + domain
    first = hashlib.sha512(head).digest()
    found = last = hashlib.sha512(first + b"\1" + domain).digest()
    mixed = bytes(a ^ b for a, b in zip(first, last, strict=True))
    found += hashlib.sha512(mixed + b"\2" + domain).digest()
    for at in (0, _FIELD_BYTES):
        yield int.from_bytes(found[at : at + _FIELD_BYTES], "big") % _P


def _mapped(number: int) -> bytes:
    """Return the point of a number (RFC 9380, 6.7.1 and 6.8.2), which may lack the prime order."""
    scaled = _NON_SQUARE * number * number % _P
    x = -_A * pow(1 + (0 if scaled == _P - 1 else scaled), -1, _P) % _P
    y, is_odd = _root(_montgomery(x)), True
    if y is None:
        x = (-x - _A) % _P
        y, is_odd = _root(_montgomery(x)), False
    assert y is not None
    if y % 2 != is_odd:
        y = -y % _P
    if y == 0 or x == _P - 1:
        return _NEUTRAL
    edwards_x = _ROOT_OF_SCALE * x * pow(y, -1, _P) % _P
    edwards_y = (x - 1) * pow(x + 1, -1, _P) % _P
    return (edwards_y | (edwards_x & 1) << 255).to_bytes(POINT_BYTES, "little")


def _montgomery(x: int) -> int:
    return (x * x * x + _A * x * x + x) % _P


def _root(square: int) -> int | None:
    """Return a square root in the field, or None if there is none."""
    for root in (found := pow(square, (_P + 3) // 8, _P), found * _ROOT_OF_MINUS_1 % _P):
        if root * root % _P == square:
            return root
    return None


def _even_root(square: int) -> int:
    root = _root(square % _P)
    assert root is not None
    return root if root % 2 == 0 else _P - root


_ROOT_OF_SCALE: Final = _even_root(-(_A + 2))
