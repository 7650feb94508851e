"""Membership of a network of founders: keys that certify themselves, one epoch at a time.

Each founder signs for a member's public key and an epoch, by Ed25519, and gives the signature's two
halves to the member: R, which everybody may see, and z, which stays secret. A threshold of founders
has to. With its own secret u the member then has a secret that nobody else can have, not even the
founders, and everybody computes the public half of it from what is public (G is the base point):

    secret   s = u + Σ a_i z_i
    public   S = U + Σ a_i (R_i + c_i P_i)

U = uG is the member's public key, P_i a founder's, c_i the challenge of that founder's signature as
in Ed25519, and a_i a hash of all that is public, so that no founder can choose its R to cancel
another one out. A signature that S verifies shows that a threshold of founders signed for U and the
epoch, and that its maker has u. There is no certificate: S is computed and not shown.

Each connection begins with such a signature by either side, over both peer ids and that handshake,
so it is good for nothing else. Founders sign for an epoch and the next one, and no more for who is
expelled: so two epochs later at the latest nobody admits it.

What it rests on: discrete logarithms on edwards25519, SHA-512, BLAKE3; self-certified keys (Girault
1991; Al-Riyami and Paterson 2003) put together with half-aggregated Ed25519 signatures (Chalkias
et al. 2021). A composition of ours, no named standard, unaudited; the arithmetic is libsodium's.
What it does not give: a threshold of founders can admit anybody, under any key; members see
each other's keys; and an expelled member may stay for two epochs.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from struct import Struct
from typing import Final

from attrs import field, frozen
from blake3 import blake3
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)
from nacl.exceptions import CryptoError

from p2pinfer.core.edwards import is_point, reduce, scalar_of
from p2pinfer.core.ids import PeerId
from transports.identity import Identity, public_key

FOUNDERS_MAX: Final = 16
"""Each adds 33 bytes and 0.2 ms to a proof."""

KEY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

EPOCH_S: Final = 7 * 86_400 // 2
"""By default. Founders sign for an epoch and the next, so an expelled member is out in a week."""

EPOCH_S_MIN: Final = 600
"""Clocks may be a minute apart, and members ask founders once in a few minutes."""

GRACE_S: Final = 120.0
"""Before and after an epoch, within which its members are admitted: for clocks that are apart."""

PROOF_BYTES_MAX: Final = 41 + (KEY_BYTES + 1) * FOUNDERS_MAX + SIGNATURE_BYTES

_GRANT: Final = b"p2pinfer member 1\0"
_PROOF: Final = b"p2pinfer member proof 1\0"
_HEAD: Final = Struct("<Q32sB")

Clock = Callable[[], float]
"""Returns seconds since 1970."""


class NotAMemberError(Exception):
    """A proof of membership does not hold; the text says why."""


@frozen
class Founding:
    """What makes a network of founders; every member knows it."""

    network: str
    founders: tuple[bytes, ...]
    """Their public keys."""
    threshold: int
    """How many of them must sign for a member."""
    key: bytes
    """A secret of all members, as a private network's key is: who lacks it learns nothing."""
    epoch_s: int = EPOCH_S

    def __attrs_post_init__(self) -> None:
        if not 1 <= self.threshold <= len(self.founders) <= FOUNDERS_MAX:
            raise ValueError(f"a threshold of 1 up to all founders, at most {FOUNDERS_MAX}")
        if len(set(self.founders)) < len(self.founders):
            raise ValueError("each founder counts once")
        if not all(map(is_point, self.founders)) or len(self.key) != KEY_BYTES:
            raise ValueError("a key is not one")
        if self.epoch_s < EPOCH_S_MIN:
            raise ValueError(f"an epoch has {EPOCH_S_MIN} s at least")

    @property
    def id(self) -> bytes:
        """What signatures name the network by: 32 bytes."""
        sizes = f"{self.threshold} {len(self.founders)} {self.epoch_s} {self.network}".encode()
        said = b"".join((self.key, *self.founders, sizes))
        return blake3(said, derive_key_context="p2pinfer network of founders, 1").digest()

    def epoch_at(self, now_s: float) -> int:
        """Return the number of an epoch, from 1970 on."""
        return int(now_s // self.epoch_s)

    def epochs_admitted(self, now_s: float) -> range:
        """Return the epochs whose members are admitted: one, or two near the border."""
        return range(self.epoch_at(now_s - GRACE_S), self.epoch_at(now_s + GRACE_S) + 1)

    def to_grant(self, member: bytes, epoch: int) -> bytes:
        """Return what founders sign for a member."""
        return b"".join((_GRANT, self.id, epoch.to_bytes(8, "little"), member))


@frozen
class Grant:
    """A founder's signature for a member; its second half is the member's secret."""

    epoch: int
    founder: int
    """Place among the founders."""
    shown: bytes
    secret: bytes = field(repr=False)

    def holds(self, founding: Founding, member: bytes) -> bool:
        """Whether the founder made it for this member."""
        if not 0 <= self.founder < len(founding.founders):
            return False
        try:
            key = Ed25519PublicKey.from_public_bytes(founding.founders[self.founder])
            key.verify(self.shown + self.secret, founding.to_grant(member, self.epoch))
        except (InvalidSignature, ValueError):
            return False
        return is_point(self.shown)


def grant(founder: Identity, founding: Founding, member: bytes, epoch: int) -> Grant:
    """Sign for a member, as a founder.

    Raises:
        ValueError: this is none of the founders, or the member's key is not one.
    """
    if not is_point(member):
        raise ValueError("that is no member's key")
    place = founding.founders.index(public_key(founder.peer_id))
    made = founder.sign(founding.to_grant(member, epoch))
    return Grant(epoch, place, made[:KEY_BYTES], made[KEY_BYTES:])


@frozen
class MemberKey:
    """A member's key of one epoch, which proves that founders signed for it."""

    founding: Founding
    member: bytes
    epoch: int
    shown: tuple[tuple[int, bytes], ...]
    """Each founder's place and R."""
    secret: bytes = field(repr=False)

    @classmethod
    def of(cls, member: Identity, founding: Founding, grants: Iterable[Grant]) -> "MemberKey":
        """Put a member's secret and its grants of one epoch together.

        Raises:
            ValueError: they are too few, of several epochs, or not for this member.
        """
        name = public_key(member.peer_id)
        found = sorted({each.founder: each for each in grants}.values(), key=lambda g: g.founder)
        found = found[: founding.threshold]
        if len(found) < founding.threshold or len({each.epoch for each in found}) != 1:
            raise ValueError(f"it takes {founding.threshold} founders' signatures for one epoch")
        if not all(each.holds(founding, name) for each in found):
            raise ValueError("a founder's signature is not for this member")
        epoch, shown = found[0].epoch, tuple((each.founder, each.shown) for each in found)
        secret = scalar_of(member.seed)
        for place, each in enumerate(found):
            weight = _weight(founding, name, epoch, shown, place)
            part = crypto_core_ed25519_scalar_mul(weight, each.secret)
            secret = crypto_core_ed25519_scalar_add(secret, part)
        made = cls(founding, name, epoch, shown, secret)
        assert crypto_scalarmult_ed25519_base_noclamp(secret) == made.public
        return made

    @property
    def public(self) -> bytes:
        """The key that its signatures are checked with."""
        return _public(self.founding, self.member, self.epoch, self.shown)

    def prove(self, me: PeerId, other: PeerId, binding: bytes, chance: bytes) -> bytes:
        """Return a proof of membership.

        Args:
            me: the peer that shows it.
            other: the peer that it is shown to.
            binding: of the connection: 32 bytes.
            chance: 64 random bytes, never used before.
        """
        count = len(self.shown)
        head = _HEAD.pack(self.epoch, self.member, count)
        head += b"".join(bytes([place]) + shown for place, shown in self.shown)
        message = _to_prove(self.founding, head, me, other, binding)
        # As in Ed25519, where the secret is a seed; so that any implementation of it checks this.
        nonce = reduce(hashlib.sha512(self.secret + chance + message).digest())
        commitment = crypto_scalarmult_ed25519_base_noclamp(nonce)
        challenge = _challenge(commitment, self.public, message)
        answer = crypto_core_ed25519_scalar_add(
            nonce, crypto_core_ed25519_scalar_mul(challenge, self.secret)
        )
        return head + commitment + answer


@frozen
class ProvenMember:
    """Who has proved to be a member, and for which epoch."""

    key: bytes
    epoch: int


def check(
    founding: Founding, proof: bytes, prover: PeerId, me: PeerId, binding: bytes
) -> ProvenMember:
    """Return who made a proof; whether its epoch is admitted now is for the caller to say.

    Raises:
        NotAMemberError: it proves nothing.
    """
    size = _HEAD.size + founding.threshold * (KEY_BYTES + 1)
    if len(proof) != size + SIGNATURE_BYTES:
        raise NotAMemberError("its proof of membership has another length than this network's")
    head, signature = proof[:size], proof[size:]
    epoch, member, count = _HEAD.unpack_from(head)
    places = [head[at : at + KEY_BYTES + 1] for at in range(_HEAD.size, size, KEY_BYTES + 1)]
    shown = tuple((each[0], each[1:]) for each in places)
    if count != founding.threshold or list(shown) != sorted(shown):
        raise NotAMemberError("its proof of membership names other founders than it may")
    numbers = {place for place, _ in shown}
    if len(numbers) < count or max(numbers) >= len(founding.founders):
        raise NotAMemberError("its proof of membership names other founders than it may")
    if not is_point(member) or not all(is_point(each) for _, each in shown):
        raise NotAMemberError("its proof of membership holds no keys")
    try:
        key = Ed25519PublicKey.from_public_bytes(_public(founding, member, epoch, shown))
        key.verify(signature, _to_prove(founding, head, prover, me, binding))
    except (InvalidSignature, ValueError, CryptoError):
        raise NotAMemberError("its proof of membership does not hold") from None
    return ProvenMember(member, epoch)


def _to_prove(founding: Founding, head: bytes, me: PeerId, other: PeerId, binding: bytes) -> bytes:
    ends = (end.encode() for end in (me, other))
    named = b"".join(len(end).to_bytes(2, "little") + end for end in ends)
    return b"".join((_PROOF, founding.id, named, len(binding).to_bytes(2, "little"), binding, head))


def _challenge(commitment: bytes, key: bytes, message: bytes) -> bytes:
    """Return the challenge of an Ed25519 signature (RFC 8032, 5.1.6)."""
    return reduce(hashlib.sha512(commitment + key + message).digest())


def _weight(
    founding: Founding,
    member: bytes,
    epoch: int,
    shown: Sequence[tuple[int, bytes]],
    place: int,
) -> bytes:
    said = b"".join(bytes([number]) + each for number, each in shown)
    body = b"".join(
        (b"p2pinfer member weight 1\0", founding.to_grant(member, epoch), said, bytes([place]))
    )
    return reduce(hashlib.sha512(body).digest())


@lru_cache(maxsize=1024)
def _public(
    founding: Founding, member: bytes, epoch: int, shown: tuple[tuple[int, bytes], ...]
) -> bytes:
    """Return the public half of a member's key; raises CryptoError where there is none."""
    message, found = founding.to_grant(member, epoch), member
    for place, (number, commitment) in enumerate(shown):
        founder = founding.founders[number]
        challenge = _challenge(commitment, founder, message)
        signed = crypto_core_ed25519_add(
            commitment, crypto_scalarmult_ed25519_noclamp(challenge, founder)
        )
        weight = _weight(founding, member, epoch, shown, place)
        found = crypto_core_ed25519_add(found, crypto_scalarmult_ed25519_noclamp(weight, signed))
    return found
