"""Vouchers: for one requester, stage, network and epoch; and the rings that they are made in."""

from functools import cache
from random import Random

import pytest
from attrs import evolve
from blake3 import blake3

from p2pinfer.core.edwards import scalar_of
from p2pinfer.core.ids import PeerId
from p2pinfer.core.messages import Open
from p2pinfer.core.ring_signature import CHANCE_BYTES, RING_MAX
from p2pinfer.core.voucher import (
    CLOCKS_APART_S_MAX,
    EPOCH_S,
    RingVoucher,
    epoch_at,
    epochs_taken,
    ring_of,
    vouch,
)
from p2pinfer.core.wire import BadMessage, decode, encode
from tests.support.swarm import CONTEXT, KEYS, MODEL, session_id
from transports.identity import public_key

STAGE, ASKER, OTHER, *MEMBERS = KEYS
RING = [public_key(each.peer_id) for each in MEMBERS]
VOUCHER_BYTES_MAX = 98 + 64 * RING_MAX + 30
"""With the names and lengths of its fields."""


@cache
def word(
    by: int = 0,
    to: PeerId = ASKER.peer_id,
    at: PeerId = STAGE.peer_id,
    network: str = "main",
    epoch: int = 7,
    size: int = len(RING),
) -> RingVoucher:
    """Vouch as one of the members."""
    chance = blake3(f"{by} {to} {at}".encode()).digest(length=size * CHANCE_BYTES)
    return vouch(scalar_of(MEMBERS[by].seed), RING[:size], epoch, to, at, network, chance)


def test_it_holds_for_what_it_was_made_for_alone() -> None:
    """The requester, the stage, the network and the epoch."""
    what = ASKER.peer_id, STAGE.peer_id, "main"
    assert word().holds(*what)
    assert not word().holds(OTHER.peer_id, *what[1:])
    assert not word().holds(ASKER.peer_id, OTHER.peer_id, "main")
    assert not word().holds(*what[:2], "another")
    assert not evolve(word(), epoch=8).holds(*what)
    assert not evolve(word(), keys=word().keys[32:] + word().keys[:32]).holds(*what)


def test_a_member_has_one_tag_at_a_stage_in_an_epoch() -> None:
    """No matter who it vouches for, and in which ring; elsewhere and later it has others."""
    assert word().tag == word(to=OTHER.peer_id).tag == word(size=3).tag
    others = [word(1), word(at=OTHER.peer_id), word(network="another"), word(epoch=8)]
    assert word().tag not in {each.tag for each in others}


def test_it_travels_in_the_message_that_opens_a_session() -> None:
    """At most 1.2 kB of it; without it the message is as it was before there were vouchers."""
    me = ASKER.peer_id
    plain = Open(session_id(0), MODEL, me, me, 1, 29, CONTEXT)
    spoken = evolve(plain, voucher=word())
    assert decode(encode(spoken), Open) == spoken
    longest = evolve(word(), keys=bytes(32 * RING_MAX), answers=bytes(32 * RING_MAX))
    size = len(encode(evolve(plain, voucher=longest))) - len(encode(plain))
    assert size <= VOUCHER_BYTES_MAX
    assert b"Open" in encode(plain)
    assert len(encode(plain)) == len(encode(evolve(spoken, voucher=None)))


@pytest.mark.parametrize(
    "fields",
    [
        {"epoch": -1},
        {"keys": bytes(32)},
        {"keys": bytes(32 * (RING_MAX + 1)), "answers": bytes(32 * (RING_MAX + 1))},
        {"keys": bytes(33 * len(RING))},
        {"answers": bytes(32 * (len(RING) - 1))},
        {"tag": bytes(31)},
        {"challenge": bytes(33)},
        {"tag": "x" * 32},
    ],
)
def test_one_of_another_shape_is_no_message(fields: dict[str, object]) -> None:
    """What is wrong with it is found where all messages are judged."""
    me = ASKER.peer_id
    good = evolve(Open(session_id(0), MODEL, me, me, 1, 29, CONTEXT), voucher=word())
    spoilt = evolve(word())
    for name, value in fields.items():
        object.__setattr__(spoilt, name, value)
    object.__setattr__(good, "voucher", spoilt)
    with pytest.raises(BadMessage):
        decode(encode(good), Open)


def test_all_members_of_a_ring_choose_the_same_one() -> None:
    """Of 8 to 16 keys where there are many, and all of them where there are few."""
    chance = Random(3)
    for count in (2, 16, 17, 33, 100):
        keys = [chance.randbytes(32) for _ in range(count)]
        rings = {tuple(ring_of(key, [k for k in keys if k != key])) for key in keys}
        assert sum(map(len, rings)) == count
        assert all(len(ring) in range(min(count, 8), RING_MAX + 1) for ring in rings)
        assert all(tuple(ring_of(key, keys)) == ring for ring in rings for key in ring)


def test_a_ring_changes_little_when_a_peer_comes() -> None:
    """Its neighbours move by one place at most, so that a long stay hides among nearly the same."""
    chance = Random(4)
    keys = [chance.randbytes(32) for _ in range(100)]
    before = set(ring_of(keys[0], keys))
    for _ in range(10):
        now = set(ring_of(keys[0], [*keys, chance.randbytes(32)]))
        assert len(before & now) >= len(before) - 3


def test_epochs_are_of_ten_minutes() -> None:
    """Near the turn of one, both count, as clocks differ."""
    middle_ms, apart_ms = 1000 * EPOCH_S // 2, 1000 * CLOCKS_APART_S_MAX
    turn_ms = 1000 * EPOCH_S * 5
    assert epoch_at(turn_ms) == 5
    assert list(epochs_taken(turn_ms + middle_ms)) == [5]
    assert list(epochs_taken(turn_ms + apart_ms - 1)) == [4, 5]
    assert list(epochs_taken(turn_ms - apart_ms)) == [4, 5]
