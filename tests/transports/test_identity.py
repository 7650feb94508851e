"""Identity files and signatures."""

from pathlib import Path

import pytest
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.peer.id import ID

from p2pinfer.core.errors import UserError
from p2pinfer.core.ids import PeerId
from transports.identity import Identity, ephemeral_identity, load_identity, public_key, verify


def test_a_new_file_is_private_and_stays(tmp_path: Path) -> None:
    """The first load draws a key and writes it for its owner only; later loads read it."""
    path = tmp_path / "data" / "identity"
    first = load_identity(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_identity(path).peer_id == first.peer_id
    assert [entry.name for entry in path.parent.iterdir()] == ["identity"]


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"zz" * 32, b"00" * 31, b"00" * 33])
def test_a_bad_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    """What is no key is named in one sentence, and never overwritten."""
    path = tmp_path / "identity"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UserError, match="identity"):
        load_identity(path)
    assert path.read_bytes() == content


def test_an_open_file_is_refused(tmp_path: Path) -> None:
    """A key that other users may read is no secret; the message says what to type."""
    path = tmp_path / "identity"
    load_identity(path)
    path.chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        load_identity(path)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    """A path that cannot be read is the user's to change."""
    with pytest.raises(UserError, match="cannot be used"):
        load_identity(tmp_path)


def test_the_peer_id_is_libp2ps() -> None:
    """Our peer id of a key is the one that libp2p derives."""
    identity = ephemeral_identity()
    key_pair = create_new_key_pair(identity.seed)
    assert identity.peer_id == ID.from_pubkey(key_pair.public_key).to_base58()
    assert public_key(identity.peer_id) == key_pair.public_key.to_bytes()


def test_a_signature_names_its_signer_and_its_data() -> None:
    """Only the signer's id and the same bytes verify."""
    one, other = Identity(b"1" * 32), Identity(b"2" * 32)
    signature = one.sign(b"data")
    assert verify(one.peer_id, b"data", signature)
    assert not verify(other.peer_id, b"data", signature)
    assert not verify(one.peer_id, b"date", signature)
    assert not verify(one.peer_id, b"data", signature[:-1] + bytes([signature[-1] ^ 1]))


@pytest.mark.parametrize(
    "text", ["", "x", "0OIl", "é", "1" * 10_000, "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"]
)
def test_an_id_without_an_ed25519_key_verifies_nothing(text: str) -> None:
    """An id from a stranger may be anything; it is refused, not raised."""
    assert not verify(PeerId(text), b"data", bytes(64))
