"""Files that hold one secret of 32 bytes, as hexadecimal digits, readable only by their owner."""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Final

from blake3 import blake3

from p2pinfer.core.errors import UserError

SECRET_BYTES: Final = 32


def read_secret(path: Path, name: str, remedy: str) -> bytes:
    """Return the secret in the file at ``path``.

    Args:
        path: the file.
        name: what the file is, for the error message.
        remedy: what to do if it holds no secret.

    Raises:
        UserError: the file is not such a secret, is open to others, or cannot be read.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
        exposed = os.name == "posix" and path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it holds no text"
        raise UserError(f"The {name} {path} cannot be used: {why}. Name another one.") from error
    if exposed:
        raise UserError(f"The {name} {path} is open to other users: run chmod 600 {path}.")
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != SECRET_BYTES:
        raise UserError(
            f"The {name} {path} is not a key ({2 * SECRET_BYTES} hexadecimal digits). {remedy}"
        )
    return secret


def read_network_key(path: Path) -> bytes:
    """Return the key shared by all peers of a private network; raises as ``read_secret``."""
    return read_secret(path, "network key", "Ask a peer of that network for a copy.")


def token_id(token: bytes) -> str:
    """Return what a secret is called in public: 32 hexadecimal digits that say nothing of it."""
    return blake3(token, derive_key_context="p2pinfer invitation token id, version 1").hexdigest(16)


def create_secret(path: Path) -> bool:
    """Create a secret and write it, whole or not at all; False if the file already existed.

    Raises:
        OSError: the file cannot be written.
    """
    return write_secret(path, secrets.token_bytes(SECRET_BYTES))


def write_secret(path: Path, secret: bytes) -> bool:
    """Write a secret, whole or not at all; False if the file already existed, and stays.

    Raises:
        OSError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secret.hex() + "\n")
            file.flush()
            os.fsync(descriptor)
        with suppress(FileExistsError):  # another process was first: its key counts
            os.link(draft, path)
            return True
        return False
    finally:
        draft.unlink()
