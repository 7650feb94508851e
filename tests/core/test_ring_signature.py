"""Ring signatures: only members of the ring can make one, and one tag for each event."""

from collections.abc import Sequence
from functools import cache
from random import Random

import pytest
from attrs import evolve
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from nacl.bindings import crypto_core_ed25519_add, crypto_scalarmult_ed25519_base_noclamp

from p2pinfer.core import ring_signature
from p2pinfer.core.edwards import ORDER, hash_to_point, reduce, scalar_of
from p2pinfer.core.ring_signature import (
    CHANCE_BYTES,
    RING_MAX,
    RingSignature,
    sign,
    tag_of,
    verify,
)
from tests.core.test_edwards import SMALL_ORDER
from tests.support import edwards

SECRETS = [scalar_of(bytes([number]) * 32) for number in range(1, RING_MAX + 2)]
KEYS = [crypto_scalarmult_ed25519_base_noclamp(secret) for secret in SECRETS]
EVENT, MESSAGE = b"stage and epoch", b"requester"
KNOWN = "fb2ddea1110e6889ee6deb3e049d1be148c71de0df470788"
"""BLAKE3 of the signature below, when it was first made and checked by plain whole numbers."""

MUTATED = 1_000_000


@cache
def made(
    size: int = 4, place: int = 2, event: bytes = EVENT, message: bytes = MESSAGE
) -> RingSignature:
    """Return a signature of one of the first keys."""
    chance = blake3(b"chance").digest(length=size * CHANCE_BYTES)
    return sign(SECRETS[place], KEYS[:size], event, message, chance)


def is_closed(signature: RingSignature, ring: Sequence[bytes], event: bytes, said: bytes) -> bool:
    """Whether a ring of challenges is closed, computed without libsodium."""
    at_event = hash_to_point(event, ring_signature._EVENT)
    stated = ring_signature._stated(ring, event, said, signature.tag)
    challenge = signature.challenge
    for key, answer in zip(ring, signature.answers, strict=True):
        both = edwards.commitments(at_event, signature.tag, key, answer, challenge)
        challenge = ring_signature._challenge(stated, both[:32], both[32:])
    return challenge == signature.challenge


def whole(signature: RingSignature) -> bytes:
    """Return a signature's bytes."""
    return signature.tag + signature.challenge + b"".join(signature.answers)


@pytest.mark.parametrize("size", [2, 3, RING_MAX])
def test_each_member_can_sign(size: int) -> None:
    """First, last and between; all for the same message."""
    for place in {0, size // 2, size - 1}:
        assert verify(made(size, place), KEYS[:size], EVENT, MESSAGE)


def test_a_signature_is_the_one_of_before() -> None:
    """Known, and closed for plain whole numbers, too."""
    assert is_closed(made(), KEYS[:4], EVENT, MESSAGE)
    assert not is_closed(made(), KEYS[:4], EVENT, MESSAGE + b".")
    assert blake3(whole(made())).digest(length=24).hex() == KNOWN


def test_a_member_has_one_tag_for_an_event() -> None:
    """Whatever the ring and the message are; others have others, and so have other events."""
    one, other = made(), made(8, message=b"another")
    assert one.tag == other.tag == tag_of(SECRETS[2], EVENT)
    tags = {made(4, place, event).tag for place in range(4) for event in (EVENT, b"next")}
    assert len(tags) == 8


def test_nobody_outside_can_sign() -> None:
    """Nor for a ring that is none."""
    for ring in (KEYS[1:5], KEYS[:1], KEYS[:17], [*KEYS[:2], KEYS[0]], [KEYS[0], SMALL_ORDER[1]]):
        chance = bytes(CHANCE_BYTES * len(ring))
        with pytest.raises(ValueError, match=r"ring|list"):
            sign(SECRETS[0], ring, EVENT, MESSAGE, chance)
        assert not verify(made(), ring, EVENT, MESSAGE)
    with pytest.raises(ValueError, match="random"):
        sign(SECRETS[0], KEYS[:4], EVENT, MESSAGE, bytes(CHANCE_BYTES))


@settings(max_examples=40)
@given(st.integers(2, 6), st.data())
def test_another_message_event_or_ring_is_not_signed(size: int, data: st.DataObject) -> None:
    """A changed, missing, added or moved key among them, and those of another ring."""
    place = data.draw(st.integers(0, size - 1))
    ring = KEYS[:size]
    other = data.draw(st.permutations(KEYS[: size + 1]).map(lambda keys: keys[:size]))
    signature = made(size, place)
    assert verify(signature, other, EVENT, MESSAGE) == (other == ring)
    said = data.draw(st.sampled_from([MESSAGE, b""]) | st.binary(max_size=20))
    event = data.draw(st.sampled_from([EVENT, b""]) | st.binary(max_size=20))
    is_same = (said, event) == (MESSAGE, EVENT)
    assert verify(signature, ring, event, said) == is_same
    assert not verify(evolve(signature, answers=signature.answers[1:]), ring, EVENT, MESSAGE)


@given(st.integers(0, 5), st.integers(0, 255))
def test_a_changed_bit_is_seen(part: int, bit: int) -> None:
    """In the tag, the challenge, or an answer."""
    parts = [made().tag, made().challenge, *made().answers]
    changed = int.from_bytes(parts[part], "little") ^ 1 << bit
    parts[part] = changed.to_bytes(32, "little")
    spoilt = RingSignature(parts[0], parts[1], tuple(parts[2:]))
    assert not verify(spoilt, KEYS[:4], EVENT, MESSAGE)


def test_a_number_has_one_form() -> None:
    """Adding the group's order to an answer makes no second signature."""
    answer = int.from_bytes(made().answers[1], "little") + ORDER
    answers = (made().answers[0], answer.to_bytes(32, "little"), *made().answers[2:])
    assert not verify(evolve(made(), answers=answers), KEYS[:4], EVENT, MESSAGE)


@pytest.mark.parametrize("small", SMALL_ORDER[::2])
def test_a_tag_cannot_be_varied_by_points_of_small_order(small: bytes) -> None:
    """Signed again with such a tag, one ring in eight would close, and count as another's."""
    tag = edwards.encode(edwards.add(edwards.decode(made().tag), edwards.decode(small)))
    assert crypto_core_ed25519_add(made().tag, small) == tag
    assert not verify(evolve(made(), tag=tag), KEYS[:4], EVENT, MESSAGE)


@pytest.mark.long
def test_of_a_million_damaged_signatures_none_holds() -> None:
    """Bits, whole parts, swapped parts, parts of others, and chosen edges."""
    chance, ring = Random(23), KEYS[:2]
    said = ((EVENT, MESSAGE), (b"other", MESSAGE), (EVENT, b"other"))
    good = [made(2, place, *each) for place in (0, 1) for each in said]
    edges = [*SMALL_ORDER, ORDER.to_bytes(32, "little"), b"\xff" * 32, *KEYS[:2]]
    held = 0
    for _ in range(MUTATED):
        parts = [chance.choice(good[:1] * 3 + good).tag, good[0].challenge, *good[0].answers]
        for _ in range(chance.choice((1, 1, 2))):
            at = chance.randrange(4)
            match chance.randrange(5):
                case 0:
                    bits = int.from_bytes(parts[at], "little") ^ 1 << chance.randrange(256)
                    parts[at] = bits.to_bytes(32, "little")
                case 1:
                    parts[at] = reduce(chance.randbytes(64))
                case 2:
                    other = chance.choice(good[1:])
                    parts[at] = (other.tag, other.challenge, *other.answers)[at]
                case 3:
                    to = chance.randrange(4)
                    parts[at], parts[to] = parts[to], parts[at]
                case _:
                    parts[at] = chance.choice(edges)
        spoilt = RingSignature(parts[0], parts[1], tuple(parts[2:]))
        if spoilt not in good:
            held += verify(spoilt, ring, EVENT, MESSAGE)
    assert held == 0
