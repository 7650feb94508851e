"""Keys of members: only with founders' signatures and the member's own secret, for one epoch."""

from random import Random
from typing import Any

import pytest
from attrs import evolve
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl.bindings import (
    crypto_core_ed25519_add,
    crypto_core_ed25519_scalar_add,
    crypto_core_ed25519_scalar_mul,
    crypto_core_ed25519_scalar_reduce,
    crypto_core_ed25519_sub,
    crypto_scalarmult_ed25519_base_noclamp,
    crypto_scalarmult_ed25519_noclamp,
)

from p2pinfer.core.edwards import scalar_of
from transports import membership
from transports.identity import Identity, public_key
from transports.membership import (
    EPOCH_S,
    FOUNDERS_MAX,
    GRACE_S,
    PROOF_BYTES_MAX,
    Founding,
    Grant,
    MemberKey,
    NotAMemberError,
    ProvenMember,
    _challenge,
    check,
    grant,
)

KEYS = [Identity(bytes([number]) * 32) for number in range(1, 22)]
FOUNDERS, (MEMBER, OTHER, A, B) = KEYS[:FOUNDERS_MAX], KEYS[FOUNDERS_MAX : FOUNDERS_MAX + 4]
NAME = public_key(MEMBER.peer_id)
BINDING = b"b" * 32
CHANCE = bytes(64)


def founding(threshold: int = 1, count: int = 1) -> Founding:
    """Return a network."""
    keys = tuple(public_key(each.peer_id) for each in FOUNDERS[:count])
    return Founding("home", keys, threshold, bytes(32))


def key_of(made: Founding, member: Identity = MEMBER, epoch: int = 7) -> MemberKey:
    """Return a member's key, for which the last founders signed."""
    some = FOUNDERS[: len(made.founders)][-made.threshold :]
    grants = [grant(each, made, public_key(member.peer_id), epoch) for each in some]
    return MemberKey.of(member, made, grants)


@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (1, 3), (2, 3), (16, 16)])
def test_a_member_proves_that_enough_founders_signed(threshold: int, count: int) -> None:
    """One, some, or all of them."""
    made = founding(threshold, count)
    proof = key_of(made).prove(A.peer_id, B.peer_id, BINDING, CHANCE)
    assert check(made, proof, A.peer_id, B.peer_id, BINDING) == ProvenMember(NAME, 7)
    assert len(proof) <= PROOF_BYTES_MAX


def test_a_proof_is_good_for_one_connection_of_one_network() -> None:
    """Not between other peers, in the other direction, in another handshake or network."""
    made = founding()
    proof = key_of(made).prove(A.peer_id, B.peer_id, BINDING, CHANCE)
    for network, prover, verifier, binding in (
        (made, B, A, BINDING),
        (made, A, OTHER, BINDING),
        (made, OTHER, B, BINDING),
        (made, A, B, b"c" * 32),
        (evolve(made, network="other"), A, B, BINDING),
        (evolve(made, key=b"k" * 32), A, B, BINDING),
        (evolve(made, epoch_s=EPOCH_S + 1), A, B, BINDING),
    ):
        with pytest.raises(NotAMemberError):
            check(network, proof, prover.peer_id, verifier.peer_id, binding)


def test_any_changed_bit_is_noticed() -> None:
    """Of the epoch, the names, the founders, and the signature; and other lengths."""
    made = founding(2, 3)
    proof = key_of(made).prove(A.peer_id, B.peer_id, BINDING, CHANCE)
    for at in range(len(proof)):
        changed = bytearray(proof)
        changed[at] ^= 1 << at % 8
        with pytest.raises(NotAMemberError):
            check(made, bytes(changed), A.peer_id, B.peer_id, BINDING)
    for wrong in (b"", proof[:-1], proof + b"\0", Random(1).randbytes(len(proof))):
        with pytest.raises(NotAMemberError):
            check(made, wrong, A.peer_id, B.peer_id, BINDING)


def test_it_takes_enough_different_founders_and_ones_own_secret() -> None:
    """Nor do another member's grants, another epoch's, or a stranger's do."""
    made = founding(2, 3)
    one, two, three = (grant(each, made, NAME, 7) for each in FOUNDERS[:3])
    assert MemberKey.of(MEMBER, made, [one, two, three])
    for grants in (
        [one],
        [one, one],
        [one, grant(FOUNDERS[1], made, NAME, 8)],
        [one, evolve(two, secret=three.secret)],
        [one, evolve(two, founder=2)],
        [one, evolve(two, founder=3)],
    ):
        with pytest.raises(ValueError, match="founder"):
            MemberKey.of(MEMBER, made, grants)
    with pytest.raises(ValueError, match="not for this member"):
        MemberKey.of(OTHER, made, [one, two])
    with pytest.raises(ValueError, match="not in tuple"):
        grant(OTHER, made, NAME, 7)


@pytest.mark.parametrize("is_weighted", [True, False])
def test_a_founder_cannot_cancel_another_one_out(
    monkeypatch: pytest.MonkeyPatch, *, is_weighted: bool
) -> None:
    """Nor admit anybody alone; in a plain sum of signatures it could, by choosing its R last."""
    made = founding(2, 2)
    name, message = public_key(A.peer_id), made.to_grant(public_key(A.peer_id), 7)
    other = made.founders[1]
    their_r = crypto_scalarmult_ed25519_base_noclamp(crypto_core_ed25519_scalar_reduce(b"r" * 64))
    theirs = crypto_core_ed25519_add(
        their_r, crypto_scalarmult_ed25519_noclamp(_challenge(their_r, other, message), other)
    )
    nonce = crypto_core_ed25519_scalar_reduce(b"n" * 64)
    own_r = crypto_core_ed25519_sub(crypto_scalarmult_ed25519_base_noclamp(nonce), theirs)
    challenge = _challenge(own_r, made.founders[0], message)
    signed = crypto_core_ed25519_scalar_add(
        nonce, crypto_core_ed25519_scalar_mul(challenge, scalar_of(FOUNDERS[0].seed))
    )
    secret = crypto_core_ed25519_scalar_add(scalar_of(A.seed), signed)
    if not is_weighted:
        monkeypatch.setattr(membership, "_weight", lambda *_: b"\1" + bytes(31))
    membership._public.cache_clear()
    forged = MemberKey(made, name, 7, ((0, own_r), (1, their_r)), secret)
    proof = forged.prove(A.peer_id, B.peer_id, BINDING, CHANCE)
    if is_weighted:
        with pytest.raises(NotAMemberError):
            check(made, proof, A.peer_id, B.peer_id, BINDING)
    else:
        assert check(made, proof, A.peer_id, B.peer_id, BINDING).key == name
    membership._public.cache_clear()


def test_grants_are_ed25519_signatures() -> None:
    """Those of another implementation, for the same key and message (RFC 8032 is deterministic)."""
    made = founding()
    found = grant(FOUNDERS[0], made, NAME, 7)
    signature = Ed25519PrivateKey.from_private_bytes(FOUNDERS[0].seed).sign(made.to_grant(NAME, 7))
    assert found.shown + found.secret == signature
    # RFC 8032, 7.1, test 1: the public half of a seed's scalar.
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    public = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert crypto_scalarmult_ed25519_base_noclamp(scalar_of(seed)).hex() == public


def test_founders_do_not_know_a_members_secret() -> None:
    """With all grants, and another secret in the member's place, nothing is proved."""
    made = founding()
    grants = [grant(FOUNDERS[0], made, NAME, 7)]
    right = MemberKey.of(MEMBER, made, grants)
    theirs = MemberKey.of(OTHER, made, [grant(FOUNDERS[0], made, public_key(OTHER.peer_id), 7)])
    forged = evolve(right, secret=theirs.secret)
    proof = forged.prove(A.peer_id, B.peer_id, BINDING, CHANCE)
    with pytest.raises(NotAMemberError):
        check(made, proof, A.peer_id, B.peer_id, BINDING)


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0},
        {"threshold": 2},
        {"founders": ()},
        {"founders": (bytes(32),)},
        {"founders": (public_key(A.peer_id),) * 2},
        {"key": bytes(31)},
        {"epoch_s": 1},
    ],
)
def test_a_network_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    """Thresholds out of reach, keys that are none, epochs shorter than clocks are apart."""
    with pytest.raises(ValueError, match=r"threshold|key|founder|epoch"):
        evolve(founding(), **change)


def test_points_of_small_order_are_no_keys() -> None:
    """The identity, one of order 8, and one with a part of small order."""
    made = founding()
    eight = bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
    for wrong in (b"\1" + bytes(31), eight, bytes(31) + b"\x80", b"\xff" * 32):
        with pytest.raises(ValueError, match="no member's key"):
            grant(FOUNDERS[0], made, wrong, 7)
        assert not Grant(7, 0, wrong, bytes(32)).holds(made, NAME)


def test_epochs_overlap_for_a_moment() -> None:
    """So that clocks may be apart by two minutes."""
    made = founding()
    border = 10 * EPOCH_S
    assert made.epochs_admitted(border + EPOCH_S / 2) == range(10, 11)
    assert made.epochs_admitted(border - GRACE_S + 1) == range(9, 11)
    assert made.epochs_admitted(border + GRACE_S - 1) == range(9, 11)
    assert made.epochs_admitted(border + GRACE_S + 1) == range(10, 11)
