"""Which key a peer takes: this machine's first one that no other peer here uses.

Two peers with one identity would look like one peer to the swarm, and not see each other. So a
running peer holds a lock on its key's file; the lock ends with its process, however that ends.
"""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from p2pinfer.core.errors import UserError
from p2pinfer.places import data_dir
from transports.identity import Identity, load_identity

PEERS_PER_MACHINE_MAX = 64
"""Keys created for one machine's peers if none is named."""


@dataclass(frozen=True)
class OwnKey:
    """Who a peer is, and the file that says it."""

    identity: Identity
    path: Path


@contextmanager
def hold_identity(named: Path | None) -> Iterator[OwnKey]:
    """Yield the named file's key, or this machine's first key that is not in use.

    Raises:
        UserError: the file cannot be used, or another peer uses it.
    """
    candidates = [named] if named else _own_keys()
    for path in candidates:
        identity = load_identity(path)
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield OwnKey(identity, path)
            return
    raise UserError(
        f"another peer on this machine uses the key {candidates[0].name}: name another file with"
        " --identity"
    )


def _own_keys() -> list[Path]:
    numbers = range(2, PEERS_PER_MACHINE_MAX + 1)
    return [data_dir() / name for name in ("identity", *(f"identity-{n}" for n in numbers))]
