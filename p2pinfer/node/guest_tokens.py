"""Single-use invitations into private networks: tokens given away, and keys got for them.

A token is a file beside the keys of this machine's peers, which only their owner can read; a peer
looks there when a guest calls. Used or revoked is unlinked, which happens once and for all. The key
that a guest gets is kept under the token's id: the same invitation goes on working on that machine.
"""

import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import evolve
from blake3 import blake3

from p2pinfer.core.errors import UserError
from p2pinfer.node.atomic_file import replace_text
from p2pinfer.node.invitation import Invitation
from p2pinfer.places import data_dir
from transports.base import Reach
from transports.secret import SECRET_BYTES, read_network_key, token_id, write_secret

VALID_S: Final = 7 * 86_400.0
"""How long a token lies open: who has not come within a week asks again."""

TOKENS_MAX: Final = 64
"""Lying open on one machine."""

_FILE_BYTES_MAX: Final = 4096
_ID: Final = re.compile(r"[0-9a-f]{32}")


class GuestTokens:
    """The tokens that this machine has given away for one private network."""

    def __init__(self, reach: Reach) -> None:
        assert reach.key, "a network without a key needs no token"
        # Which network a token is for, without its key.
        self._network = blake3(reach.network.encode(), key=reach.key).hexdigest(16)

    def issue(self) -> bytes:
        """Give a new token away.

        Raises:
            UserError: too many lie open, or it cannot be written.
        """
        if sum(1 for _ in open_tokens()) >= TOKENS_MAX:
            raise UserError(
                f"{TOKENS_MAX} single-use invitations lie open: p2pinfer invite --revoke all takes"
                " them back"
            )
        token = secrets.token_bytes(SECRET_BYTES)
        said = {"token": token.hex(), "network": self._network, "until": _now_s() + VALID_S}
        replace_text(_path(token_id(token)), json.dumps(said))
        return token

    def token(self, known: str) -> bytes | None:
        """Return the token of an id; None if it was used, revoked, or is another network's."""
        if not _ID.fullmatch(known):
            return None  # a stranger says it
        said = _read(_path(known))
        return said[0] if said and said[1] == self._network else None

    def claim(self, known: str) -> bool:
        """Use a token up; whether it was still there."""
        return bool(self.token(known)) and revoke(known)


def open_tokens() -> Iterator[str]:
    """Yield the ids of the tokens that lie open; those that have expired are removed."""
    for path in list(_folder().iterdir()):
        if path.name.startswith("."):
            continue  # being written
        if _read(path):
            yield path.name
        else:
            path.unlink(missing_ok=True)


def revoke(known: str) -> bool:
    """Take the token of an id back; whether it was still there."""
    try:
        _path(known).unlink()
    except FileNotFoundError:
        return False
    return True


def key_file(token: bytes) -> Path:
    """Return where the key that a token has brought is kept on a guest's machine."""
    return data_dir() / "network-keys" / token_id(token)


async def enter_as_guest(invited: Invitation) -> Invitation:
    """Return a single-use invitation with the network's key, which is fetched once and kept.

    Raises:
        UserError: it was used by somebody else, revoked, or has expired; or it cannot be kept.
        NobodyServes: the machine that made it does not answer.
    """
    assert invited.token, "it is for one guest"
    path = key_file(invited.token)
    if not path.exists():
        from transports.libp2p.guests import fetch_network_key  # half a second of imports

        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):  # the token would be used up for nothing
            raise UserError(f"cannot keep the network's key in {path.parent}: make it writable")
        write_secret(path, await fetch_network_key(invited.addresses, invited.token))
    return evolve(invited, key=read_network_key(path), token=None)


def _folder() -> Path:
    path = data_dir() / "invitations"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _path(known: str) -> Path:
    return _folder() / known


def _read(path: Path) -> tuple[bytes, str] | None:
    """Return a token and its network; None if it is not there, damaged, or has expired."""
    try:
        with path.open("rb") as file:
            said = json.loads(file.read(_FILE_BYTES_MAX))
        token, network, until = bytes.fromhex(said["token"]), str(said["network"]), said["until"]
        valid = len(token) == SECRET_BYTES and float(until) > _now_s()
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return (token, network) if valid else None


def _now_s() -> float:
    return time.time_ns() / 1e9
