"""Vouchers: some serving peer vouches for a requester at one stage, and nobody learns which.

A sponsor's word (`p2pinfer.core.sponsor`) names the peer. A voucher is signed by a ring of serving
peers' keys instead (`p2pinfer.core.ring_signature`), over the requester, the stage, the network and
an epoch of ten minutes. Its tag is the same whenever the same peer vouches at this stage in this
epoch, so each has one voice there: the first requester that shows the tag has it.

The keys are those that peer ids stand for, so that a stage knows them without being told: a key of
its own would have to be in advertisements, which older peers refuse with another field in them.

What it gives: a stage knows one peer in n, and whether that peer has vouched there for another one
in these ten minutes. What it does not give: it hides no address, and not when somebody asks; a
requester that asks in several epochs is known by its id, and the peers that were in all its rings
are fewer; members that are known not to be up at that moment, and stages that are in a ring
themselves, do not count; and a peer that works together with a stage can say that it was not it.
"""

from collections.abc import Sequence
from typing import Any, Final

from attrs import field, frozen
from blake3 import blake3

from p2pinfer.core import ring_signature
from p2pinfer.core.checks import blob, shown_size, whole
from p2pinfer.core.edwards import POINT_BYTES, SCALAR_BYTES
from p2pinfer.core.ids import PeerId
from p2pinfer.core.ring_signature import RING_MAX, RING_MIN, RingSignature

EPOCH_S: Final = 600
"""In which a peer vouches for one requester: who starts again is without for so long at most."""

CLOCKS_APART_S_MAX: Final = 60
"""How far apart two peers' clocks may be."""

_EVENT: Final = b"p2pinfer voucher event 1\0"
_MESSAGE: Final = b"p2pinfer voucher 1\0"


def _list_of(size: int) -> Any:
    """Check for the bytes of ``RING_MIN`` to ``RING_MAX`` things of one size."""
    is_blob = blob(RING_MAX * size, RING_MIN * size)

    def check(instance: object, attribute: Any, value: bytes) -> None:
        is_blob(instance, attribute, value)
        if len(value) % size:
            raise ValueError(f"{attribute.name} must be whole numbers of {size} bytes")

    return check


@frozen
class RingVoucher:
    """A ring's signature for the sender of an ``Open``: 98 bytes, and 64 for each of the ring."""

    epoch: int = field(validator=whole(0, 1 << 40))
    keys: bytes = field(validator=_list_of(POINT_BYTES), repr=shown_size)
    """Of the peers of which one vouches."""
    tag: bytes = field(validator=blob(POINT_BYTES, POINT_BYTES), repr=shown_size)
    challenge: bytes = field(validator=blob(SCALAR_BYTES, SCALAR_BYTES), repr=shown_size)
    answers: bytes = field(validator=_list_of(SCALAR_BYTES), repr=shown_size)

    def __attrs_post_init__(self) -> None:
        if len(self.keys) // POINT_BYTES != len(self.answers) // SCALAR_BYTES:
            raise ValueError("a voucher has an answer for each key")

    @property
    def ring(self) -> list[bytes]:
        """The keys, one by one."""
        return _split(self.keys, POINT_BYTES)

    def holds(self, requester: PeerId, stage: PeerId, network: str) -> bool:
        """Whether one of the ring signed for this requester, at this stage, in this network."""
        answers = tuple(_split(self.answers, SCALAR_BYTES))
        signature = RingSignature(self.tag, self.challenge, answers)
        event, message = _to_sign(requester, stage, network, self.epoch)
        return ring_signature.verify(signature, self.ring, event, message)


def vouch(
    secret: bytes,
    ring: Sequence[bytes],
    epoch: int,
    requester: PeerId,
    stage: PeerId,
    network: str,
    chance: bytes,
) -> RingVoucher:
    """Vouch for a requester at a stage; the arguments are as of ``ring_signature.sign``.

    Raises:
        ValueError: that is no ring, or the secret's key is not in it.
    """
    event, message = _to_sign(requester, stage, network, epoch)
    made = ring_signature.sign(secret, ring, event, message, chance)
    return RingVoucher(epoch, b"".join(ring), made.tag, made.challenge, b"".join(made.answers))


def epoch_at(now_ms: int) -> int:
    """Return the number of an epoch, from 1970 on."""
    return now_ms // (1000 * EPOCH_S)


def epochs_taken(now_ms: int) -> range:
    """Return the epochs whose vouchers are taken: one, or two near the turn of an epoch."""
    apart_ms = 1000 * CLOCKS_APART_S_MAX
    return range(epoch_at(now_ms - apart_ms), epoch_at(now_ms + apart_ms) + 1)


def ring_of(key: bytes, others: Sequence[bytes]) -> list[bytes]:
    """Return the keys of the ring that one key vouches in, in order; fewer than two are no ring.

    All keys, or if these are too many, the part of them that are next to each other by hash: halved
    as often as it takes. So those of a ring that know the same peers all choose that ring, and it
    changes little from one epoch to the next: members that a requester has in all its rings are
    those that it stays hidden among.
    """
    found = sorted({key, *others}, key=lambda each: (blake3(each).digest(), each))
    while len(found) > RING_MAX:
        half = len(found) // 2
        found = found[:half] if key in found[:half] else found[half:]
    return found


def _to_sign(requester: PeerId, stage: PeerId, network: str, epoch: int) -> tuple[bytes, bytes]:
    """Return the event, of which each key has one tag, and what is signed."""
    number = epoch.to_bytes(8, "little")
    event = _EVENT + _texts(stage, network) + number
    return event, _MESSAGE + _texts(requester, stage, network) + number


def _texts(*texts: str) -> bytes:
    each = (text.encode() for text in texts)
    return b"".join(len(text).to_bytes(4, "little") + text for text in each)


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]
