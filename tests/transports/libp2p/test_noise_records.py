"""Records on the path of every token: the library's own bytes, however the network cuts them."""

import random
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag
from noise.backends.default.ciphers import ChaCha20Cipher  # type: ignore[import-untyped]
from noise.state import CipherState  # type: ignore[import-untyped]

from transports.libp2p.noise_records import RECORD_BYTES_MAX, TAG_BYTES, NoiseRecords

KEY = bytes(range(32))


def _state(used: int = 0) -> Any:
    """Return one direction of the library, as a handshake and some messages leave it."""
    state = CipherState(SimpleNamespace(cipher_class=ChaCha20Cipher))
    state.initialize_key(KEY)
    for _ in range(used):
        state.encrypt_with_ad(b"", b"before")
    return state


def _records(used: int = 0) -> NoiseRecords:
    protocol = SimpleNamespace(cipher_state_encrypt=_state(used), cipher_state_decrypt=_state(used))
    noise: Any = SimpleNamespace(noise_state=SimpleNamespace(noise_protocol=protocol))
    session: Any = SimpleNamespace(_drain=lambda _: b"")
    return NoiseRecords(session, noise)


def test_records_go_on_where_the_library_left_off() -> None:
    """The same bytes as its own, one after the other."""
    ours, theirs = _records(used=3), _state(used=3)
    for plain in (b"one", b"", bytes(2359)):
        due = theirs.encrypt_with_ad(b"", plain)
        assert ours.seal([plain]) == len(due).to_bytes(2, "big") + due


def test_what_is_cut_anywhere_is_read_whole() -> None:
    """One record at a time, several, and parts of them; the longest, and empty ones."""
    rng = random.Random(1)
    for _ in range(50):
        sender, receiver = _records(), _records()
        frames = [
            rng.randbytes(rng.choice([0, 1, 12, 2359, RECORD_BYTES_MAX - TAG_BYTES]))
            for _ in range(rng.randint(1, 6))
        ]
        sealed = b"".join(sender.seal([each]) for each in frames)
        cuts = sorted(rng.randint(0, len(sealed)) for _ in range(rng.randint(0, 5)))
        pieces = [sealed[a:b] for a, b in zip([0, *cuts], [*cuts, len(sealed)], strict=True)]
        read = b"".join(receiver._opened(piece) for piece in pieces if piece)
        assert read == b"".join(frames)


def test_each_whole_record_is_read_at_once() -> None:
    """Where it comes alone, as a token's does."""
    sender, receiver = _records(), _records()
    for number in range(5):
        assert receiver._opened(sender.seal([b"row %d" % number])) == b"row %d" % number


def test_a_changed_or_repeated_record_ends_the_connection() -> None:
    """By an error, which the connection's reader turns into its end."""
    sender, receiver = _records(), _records()
    sealed = sender.seal([b"a row"])
    spoilt = sealed[:-1] + bytes([sealed[-1] ^ 1])
    with pytest.raises(InvalidTag):
        _records()._opened(spoilt)
    assert receiver._opened(sealed) == b"a row"
    with pytest.raises(InvalidTag):
        receiver._opened(sealed)
