"""Envelopes: for one receiver and one purpose, from one sender, whatever others change."""

from random import Random

import pytest
from cryptography.hazmat.bindings._rust import openssl
from cryptography.hazmat.primitives import hashes, hmac
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

from tests.support.swarm import KEYS
from transports.envelope import (
    _SUITE,
    MESSAGE_BYTES_MAX,
    SEALING_KEY_BYTES,
    BadEnvelopeError,
    EnvelopeKey,
    Unsealed,
    _info,
    seal,
    unseal,
)

SENDER, RECEIVER, OTHER = KEYS[:3]
SECRET = b"s" * 32
KEY = EnvelopeKey(SECRET)
WHAT = b"test"


def envelope(message: bytes = b"hello") -> bytes:
    """Seal a message for the receiver."""
    return seal(SENDER, RECEIVER.peer_id, KEY.public, WHAT, message)


@pytest.mark.parametrize("size", [0, 1, 1000, MESSAGE_BYTES_MAX])
def test_an_envelope_opens_for_its_receiver(size: int) -> None:
    """And says who wrote it; no two are the same."""
    message = Random(size).randbytes(size)
    sealed = envelope(message)
    assert unseal(RECEIVER.peer_id, KEY, WHAT, sealed) == Unsealed(SENDER.peer_id, message)
    assert envelope(message) != sealed
    assert len(KEY.public) == SEALING_KEY_BYTES


def test_others_cannot_open_it() -> None:
    """With another key, under another name, for another purpose."""
    sealed = envelope()
    for name, key, purpose in (
        (RECEIVER, EnvelopeKey(b"t" * 32), WHAT),
        (OTHER, KEY, WHAT),
        (RECEIVER, KEY, b"other"),
    ):
        with pytest.raises(BadEnvelopeError):
            unseal(name.peer_id, key, purpose, sealed)


def test_a_receiver_cannot_pass_it_on_as_sent_to_another() -> None:
    """The signature inside names the receiver and its key, so a new seal does not hold."""
    inside = _SUITE.decrypt(envelope()[1:], KEY.private, info=_info(RECEIVER.peer_id, WHAT))
    theirs = EnvelopeKey(b"t" * 32)
    for name, key in ((OTHER, theirs), (OTHER, KEY), (RECEIVER, theirs)):
        sealed = _SUITE.encrypt(inside, key.private.public_key(), info=_info(name.peer_id, WHAT))
        with pytest.raises(BadEnvelopeError, match="did not sign"):
            unseal(name.peer_id, key, WHAT, b"\1" + sealed)


def test_a_name_cannot_be_put_over_anothers_signature() -> None:
    """Who strips the sender cannot claim the message as its own."""
    from transports.identity import public_key

    inside = _SUITE.decrypt(envelope()[1:], KEY.private, info=_info(RECEIVER.peer_id, WHAT))
    stolen = public_key(OTHER.peer_id) + inside[32:]
    info = _info(RECEIVER.peer_id, WHAT)
    sealed = _SUITE.encrypt(stolen, KEY.private.public_key(), info=info)
    with pytest.raises(BadEnvelopeError, match="did not sign"):
        unseal(RECEIVER.peer_id, KEY, WHAT, b"\1" + sealed)


def changed_envelopes(count: int, seed: int) -> int:
    """Try to open as many changed envelopes; return how many opened."""
    chance, opened = Random(seed), 0
    whole = [envelope(chance.randbytes(chance.randrange(60))) for _ in range(16)]
    for number in range(count):
        data = bytearray(chance.choice(whole))
        kind = number % 5
        if kind == 0:  # bits
            for _ in range(chance.choice((1, 1, 2, 9))):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        elif kind == 1:  # the beginning or the end
            data = (
                data[chance.randrange(1, 40) :] if number % 2 else data[: -chance.randrange(1, 40)]
            )
        elif kind == 2:  # something between
            at = chance.randrange(len(data))
            data[at:at] = chance.randbytes(chance.randrange(1, 9))
        elif kind == 3:  # two of them
            at = chance.randrange(1, len(data) - 1)
            data = data[:at] + chance.choice(whole)[at:]
        else:  # noise
            data = bytearray(b"\1" + chance.randbytes(chance.randrange(1400)))
        if bytes(data) in whole:
            continue
        try:
            unseal(RECEIVER.peer_id, KEY, WHAT, bytes(data))
        except BadEnvelopeError:
            continue
        opened += 1
    return opened


def test_changed_envelopes_do_not_open() -> None:
    """Bits, cuts, pieces of two, noise; and none raises anything else."""
    assert changed_envelopes(500, 1) == 0


@pytest.mark.long
def test_a_million_changed_envelopes_do_not_open() -> None:
    """As many as a network sees in years."""
    assert changed_envelopes(1_000_000, 2) == 0


def test_what_cannot_be_sealed_is_refused() -> None:
    """Too long, or with a key that is none."""
    with pytest.raises(ValueError, match="at most"):
        envelope(bytes(MESSAGE_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="no sealing key"):
        seal(SENDER, RECEIVER.peer_id, KEY.public[:-1], WHAT, b"")
    with pytest.raises(ValueError, match="32 bytes"):
        EnvelopeKey(b"short")


def test_hpke_gives_the_answers_of_rfc_9180() -> None:
    """Appendix A.2.1.1: DHKEM(X25519), HKDF-SHA256, ChaCha20-Poly1305, base mode, message 0."""
    suite = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.CHACHA20_POLY1305)
    key = X25519PrivateKey.from_private_bytes(
        bytes.fromhex("8057991eef8f1f1af18f4a9491d16a1ce333f695d4db8e38da75975c4478e0fb")
    )
    sealed = bytes.fromhex(
        "1afa08d3dec047a643885163f1180476fa7ddb54c6a8029ea33f95796bf2ac4a"
        "1c5250d8034ec2b784ba2cfd69dbdb8af406cfe3ff938e131f0def8c8b60b4db"
        "21993c62ce81883d2dd1b51a28"
    )
    info = bytes.fromhex("4f6465206f6e2061204772656369616e2055726e")
    opened = openssl.hpke._decrypt_with_aad(suite, sealed, key, info, b"Count-0")
    assert opened == b"Beauty is truth, truth beauty"


def test_the_hybrid_is_hpke_over_x_wing() -> None:
    """Unsealed by the steps of RFC 9180 and of the X-Wing draft, from ML-KEM, X25519 and SHA-3."""
    sealed, info = envelope(b"by hand")[1:], _info(RECEIVER.peer_id, WHAT)
    seeds = _seeds()
    lattice = MLKEM768PrivateKey.from_seed_bytes(seeds[:64])
    curve = X25519PrivateKey.from_private_bytes(seeds[64:])
    enc, ciphertext = sealed[:1120], sealed[1120:]
    by_lattice = lattice.decapsulate(enc[:1088])
    by_curve = curve.exchange(X25519PublicKey.from_public_bytes(enc[1088:]))
    ends = enc[1088:] + curve.public_key().public_bytes_raw()
    digest = hashes.Hash(hashes.SHA3_256())
    digest.update(by_lattice + by_curve + ends + b"\\.//^\\")
    shared = digest.finalize()
    key, nonce = _schedule(shared, info)
    inside = ChaCha20Poly1305(key).decrypt(nonce, ciphertext, b"")
    assert inside[96:] == b"by hand"


def _seeds() -> bytes:
    from blake3 import blake3

    return blake3(SECRET, derive_key_context="p2pinfer sealing key 1").digest(96)


def _mac(key: bytes, data: bytes) -> bytes:
    made = hmac.HMAC(key, hashes.SHA256())
    made.update(data)
    return made.finalize()


def _schedule(shared: bytes, info: bytes) -> tuple[bytes, bytes]:
    """Return the key and the first nonce (RFC 9180, 5.1, base mode)."""
    suite = b"HPKE" + (0x647A).to_bytes(2, "big") + (1).to_bytes(2, "big") + (3).to_bytes(2, "big")

    def extract(salt: bytes, label: bytes, data: bytes) -> bytes:
        return _mac(salt or bytes(32), b"HPKE-v1" + suite + label + data)

    def expand(secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
        labelled = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + context
        return _mac(secret, labelled + b"\1")[:size]

    context = b"\0" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared, b"secret", b"")
    return expand(secret, b"key", context, 32), expand(secret, b"base_nonce", context, 12)
