"""Linkable ring signatures: one of several keys has signed, and nobody learns which.

With the base point G, a ring of keys P_i = x_i G, an event and h, the event hashed to a point, the
owner of x_j shows the tag T = x_j h and closes a ring of challenges, each the hash of

    event, ring, message, T, s_i G + c_i P_i, s_i h + c_i T

where all s_i but its own are random. Nobody without one of the secrets can close it; and a key has
one tag for an event, so that two signatures of one key for one event are seen to be of one key,
whatever their rings and messages are. Tags of one key for two events have nothing in common.

This is the linkable ring signature of Liu, Wei and Wong ("Linkable spontaneous anonymous group
signature for ad hoc groups", 2004), where h comes from an event, as in Tsang and Wei (2005), and
not from the ring; in the form with one challenge (Abe, Ohkubo and Suzuki 2002; Back 2015). The tag
is not x_j H(P_j), as Back's and Monero's key image is: that one never changes.

What it rests on: discrete logarithms and the decisional Diffie-Hellman assumption on edwards25519,
with BLAKE3 and RFC 9380's hash as random oracles. Arithmetic is libsodium's; every point that comes
from others must be of prime order, so that a tag cannot be varied by points of small order. The
keys are Ed25519 keys: challenges there are SHA-512 of other things, so that neither kind of
signature helps to forge the other. The composition is ours, unaudited, and Python's part of it is
not constant in time. What it does not give: more than one in n; and nothing against those who hold
the secrets of others in the ring, which shows which signatures are theirs, and so which are not.
"""

from collections.abc import Sequence
from typing import Final

from attrs import frozen
from blake3 import blake3
from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_sub,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)
from nacl.exceptions import CryptoError

from p2pinfer.core.edwards import (
    hash_to_point,
    is_point,
    is_scalar,
    reduce,
)

RING_MIN, RING_MAX = 2, 16
"""Keys in a ring. With 16 it takes 6 ms of a laptop's core to sign, and as long to check."""

CHANCE_BYTES: Final = 64
"""Random bytes that one more member of a ring costs."""

_EVENT: Final = b"p2pinfer 1 event of a ring signature, edwards25519_XMD:SHA-512_ELL2_RO_"
_CHALLENGE: Final = "p2pinfer 1 challenge of a ring signature"
_STATED: Final = "p2pinfer 1 what a ring signature is about"
_NONCE: Final = "p2pinfer 1 nonce of a ring signature"


@frozen
class RingSignature:
    """A signature by one key of a ring."""

    tag: bytes
    """The same in all signatures of that key for one event."""
    challenge: bytes
    """The first key's."""
    answers: tuple[bytes, ...]
    """One for each key."""


def tag_of(secret: bytes, event: bytes) -> bytes:
    """Return the tag of the key with this secret scalar for an event."""
    return crypto_scalarmult_ed25519_noclamp(secret, hash_to_point(event, _EVENT))


def sign(
    secret: bytes, ring: Sequence[bytes], event: bytes, message: bytes, chance: bytes
) -> RingSignature:
    """Sign as one of a ring.

    Args:
        secret: a scalar whose key is in the ring.
        ring: ``RING_MIN`` to ``RING_MAX`` different keys.
        event: what the tag is for.
        message: what is signed.
        chance: ``CHANCE_BYTES`` for each key, random and never used before.

    Raises:
        ValueError: the secret's key is not in the ring, or that is none.
    """
    _check(ring)
    size, place = len(ring), ring.index(crypto_scalarmult_ed25519_base_noclamp(secret))
    if len(chance) != size * CHANCE_BYTES:
        raise ValueError(f"it takes {size * CHANCE_BYTES} random bytes")
    at_event = hash_to_point(event, _EVENT)
    tag = crypto_scalarmult_ed25519_noclamp(secret, at_event)
    stated = _stated(ring, event, message, tag)
    draws = [chance[at : at + CHANCE_BYTES] for at in range(0, len(chance), CHANCE_BYTES)]
    answers = list(map(reduce, draws))
    # Of secret and message too, so that a bad random source does not give the secret away.
    hedged = secret + draws[place] + stated
    nonce = reduce(blake3(hedged, derive_key_context=_NONCE).digest(length=64))
    commitments = (
        crypto_scalarmult_ed25519_base_noclamp(nonce),
        crypto_scalarmult_ed25519_noclamp(nonce, at_event),
    )
    challenges = {(place + 1) % size: _challenge(stated, *commitments)}
    for step in range(1, size):
        at = (place + step) % size
        commitments = _commitments(at_event, ring[at], tag, answers[at], challenges[at])
        challenges[(at + 1) % size] = _challenge(stated, *commitments)
    product = crypto_core_ed25519_scalar_mul(challenges[place], secret)
    answers[place] = crypto_core_ed25519_scalar_sub(nonce, product)
    return RingSignature(tag, challenges[0], tuple(answers))


def verify(signature: RingSignature, ring: Sequence[bytes], event: bytes, message: bytes) -> bool:
    """Whether one of the ring's keys signed this message for this event."""
    scalars = (signature.challenge, *signature.answers)
    if len(signature.answers) != len(ring) or not all(map(is_scalar, scalars)):
        return False
    try:
        _check(ring)
    except ValueError:
        return False
    if not is_point(signature.tag):
        return False
    at_event = hash_to_point(event, _EVENT)
    stated = _stated(ring, event, message, signature.tag)
    challenge = signature.challenge
    try:
        for key, answer in zip(ring, signature.answers, strict=True):
            commitments = _commitments(at_event, key, signature.tag, answer, challenge)
            challenge = _challenge(stated, *commitments)
    except CryptoError:  # the neutral element, or a scalar of zero: no honest signer gets there
        return False
    return challenge == signature.challenge


def _check(ring: Sequence[bytes]) -> None:
    if not RING_MIN <= len(ring) <= RING_MAX:
        raise ValueError(f"a ring has {RING_MIN} to {RING_MAX} keys")
    if len(set(ring)) < len(ring) or not all(map(is_point, ring)):
        raise ValueError("a ring has different keys, and each is one")


def _stated(ring: Sequence[bytes], event: bytes, message: bytes, tag: bytes) -> bytes:
    """Return the digest of all that is the same in every challenge."""
    texts = b"".join(len(text).to_bytes(4, "little") + text for text in (event, message))
    keys = len(ring).to_bytes(4, "little") + b"".join(ring)
    return blake3(texts + keys + tag, derive_key_context=_STATED).digest()


def _challenge(stated: bytes, at_base: bytes, at_event: bytes) -> bytes:
    body = blake3(stated + at_base + at_event, derive_key_context=_CHALLENGE)
    return reduce(body.digest(length=64))


def _commitments(
    at_event: bytes, key: bytes, tag: bytes, answer: bytes, challenge: bytes
) -> tuple[bytes, bytes]:
    """Return s G + c P and s h + c T."""
    at_base = crypto_core_ed25519_add(
        crypto_scalarmult_ed25519_base_noclamp(answer),
        crypto_scalarmult_ed25519_noclamp(challenge, key),
    )
    both = crypto_core_ed25519_add(
        crypto_scalarmult_ed25519_noclamp(answer, at_event),
        crypto_scalarmult_ed25519_noclamp(challenge, tag),
    )
    return at_base, both
